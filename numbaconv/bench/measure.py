"""One layer: every contender prepared, checked against the reference, and timed beside the others."""

from __future__ import annotations

import datetime
import functools
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays import AnyArray, dtype_named
from ..problem import Problem
from ..sample import Sample, WeightSample, draw_sample, draw_weight_sample
from . import gradients
from .contenders import OURS, Contender, Prepared, Task
from .layers import Layer
from .peak import peak_call
from .timing import Turns, interleaved

PLACES = 32  # of a result at which answers are checked, all channels each
PAIRS = 8  # of channels of a weight gradient, all taps each
_TOLERANCE = {"float64": 1024 * 2.0**-53, "complex128": 1024 * 2.0**-53, "float16": 4 * 2.0**-11, "bfloat16": 4 * 2.0**-8}
_PEAK = "peak"
Expected = tuple[Sample | WeightSample, AnyArray]


@dataclass(frozen=True)
class Row:
    """One contender on one layer; what a CSV file holds.

    seconds : the median over rounds; best : the least
    flops : by the definition; peak : of the machine, operations a second, measured in the same rounds
    max_error, rms_error : of the sampled results, as fractions of their largest magnitude
    version : of the packages that the contender is made of
    """

    machine: str
    date: str
    layer: str
    problem: str
    threads: int
    contender: str
    version: str
    note: str
    reuses_output: bool
    seconds: float
    best: float
    rounds: int
    flops: int
    peak: float
    max_error: float
    rms_error: float

    @property
    def gflops(self) -> float:
        """10^9 operations of the definition a second, padding included."""
        return self.flops / self.seconds / 1e9


class WrongAnswer(Exception):
    """An answer that is not the convolution's."""


def bench_layer(layer: Layer, peers: Sequence[Contender], threads: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Time ours and the peers on a layer; ``say`` is told of peers that refuse it or answer wrongly, which are not timed.

    Raises WrongAnswer when an answer of our own is wrong.
    """
    p = layer.problem
    task = layer_task(layer, threads)
    checked = check_contenders(layer, [task], expected(task), OURS if p.direction == "forward" else gradients.OURS, peers, say)
    peak, operations = peak_call(p.dtype, threads)
    turns = interleaved({_PEAK: peak, **{one.contender.name: one.prepared.call for one in checked}}, threads, rounds)
    rate = operations / turns[_PEAK].median
    return [Row(**row_of(machine(), layer, threads, one, turns[one.contender.name], rate)) for one in checked]


def layer_task(layer: Layer, threads: int) -> Task:
    """The layer's task on NumPy arrays."""
    return Task(layer.problem, *layer.arrays(), threads, None if layer.problem.direction == "forward" else layer.grad_output())


class Checked(NamedTuple):
    """A contender whose answer is right, with its largest and root mean square error."""

    contender: Contender
    prepared: Prepared
    errors: tuple[float, float]


def check_contenders(
    layer: Layer,
    tasks: Sequence[Task],
    right: Expected,
    ours: Sequence[Contender],
    peers: Sequence[Contender],
    say: Callable[[str], None],
) -> list[Checked]:
    """Contenders prepared for the tasks, which are copies of one, and their answers checked; ``say`` is told of peers that fail.

    Raises WrongAnswer when an answer of our own is wrong, or an element of it was not written.
    """
    found = []
    for contender in (*ours, *peers):
        try:
            prepared = contender.rotating(tasks)
            if prepared is None:
                continue
            answer = prepared.answer(prepared.call())
            if contender in ours and np.isnan(answer).any():
                raise WrongAnswer("some elements are NaN, or were not written")
            found.append(Checked(contender, prepared, check(layer.problem, answer, *right)))
        except Exception as error:  # other people's software, which may raise anything
            if contender in ours:
                raise
            say(f"{layer.name}: {contender.name}: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")
    return found


def expected(task: Task) -> Expected:
    """What is checked of a task's answer, and its exact values."""
    p, g = task.problem, task.grad_output
    if g is None:
        sample = draw_sample(p, task.input, PLACES)
        return sample, sample.exact(task.weight, task.bias)
    if p.transposed:
        sample = draw_sample(p, g, PLACES)
        weight = np.conjugate(task.weight) if task.weight.dtype.kind == "c" else task.weight  # as autograd has it
        return sample, sample.exact(weight, None)
    pairs = draw_weight_sample(p, PAIRS)
    return pairs, pairs.exact(task.input, g)


def expected_of(layer: Layer) -> Expected:
    """The same of a layer's task."""
    return expected(layer_task(layer, 1))


def check(problem: Problem, answer: AnyArray, sample: Sample | WeightSample, exact: AnyArray) -> tuple[float, float]:
    """Largest and root mean square error at the sampled places, as fractions of the largest magnitude there.

    Raises WrongAnswer for another shape or dtype, and where the largest error passes 1024 units of rounding (4 for 16-bit numbers,
    which are rounded once more; none for integers): more than a sound algorithm errs by, less than a wrong one.
    """
    dtype = dtype_named(problem.out_dtype)
    if answer.shape != problem.result_shape or answer.dtype != dtype:
        raise WrongAnswer(f"{answer.dtype} of shape {answer.shape} instead of {dtype} of {problem.result_shape}")
    found, whole = sample.found(answer), dtype.kind in "iu"
    error = np.abs(found.astype(exact.dtype) - (exact.astype(dtype).astype(exact.dtype) if whole else exact))
    scale = float(np.abs(exact).max()) or 1.0
    largest, mean = float(error.max()) / scale, float(np.sqrt(np.mean(np.square(error)))) / scale
    if not largest <= (0 if whole else _TOLERANCE.get(dtype.name, 1024 * 2.0**-24)):
        raise WrongAnswer(f"largest error {largest:.2e} of the largest magnitude")
    return largest, mean


def row_of(machine: str, layer: Layer, threads: int, checked: Checked, turns: Turns, peak: float) -> dict[str, Any]:
    """The fields of a Row."""
    contender, (largest, mean) = checked.contender, checked.errors
    return {
        "machine": machine, "date": datetime.date.today().isoformat(), "layer": layer.name, "problem": str(layer.problem),
        "threads": threads, "contender": contender.name, "version": contender.version, "note": checked.prepared.note,
        "reuses_output": contender.reuses_output, "seconds": turns.median, "best": turns.best, "rounds": len(turns.seconds),
        "flops": layer.problem.flops, "peak": peak, "max_error": largest, "rms_error": mean,
    }  # fmt: skip


@functools.cache
def machine() -> str:
    """The processor's name and how many CPUs the system has."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        pairs = [line.split(":", 1) for line in info.read_text("utf-8").split("\n\n")[0].splitlines() if ":" in line]
        known = {key.strip(): value.strip() for key, value in pairs}
        name = f"{known.get('model name', name)} (family {known.get('cpu family', '?')}, model {known.get('model', '?')})"
    return f"{name}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"
