"""What a small call costs beside its kernel: python tests/benchmarks/small.py

1 x 8 x 8 x 8 with 3 x 3 filters, padding 1, by every algorithm that takes it: microseconds of the kernel itself (the workers that a
call runs, run again with the same arguments), of a frozen plan and of the plain function.  torch's functional call beside them where
it is installed.  Prints a Markdown table; exits with 1 where a plan costs more than 5 µs over the kernel, or the function more than
15 µs, with the algorithm that ``auto`` takes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

import numbaconv
from numbaconv import Problem
from numbaconv.bench.contenders import PEERS, Task, frozen
from numbaconv.bench.timing import on_threads
from numbaconv.choose import choose
from numbaconv.cpu import threads

TEXT = "f32_fwd_mb1g1_ic8ih8iw8_oc8kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1"
PLAN_LIMIT, FUNCTION_LIMIT = 5.0, 15.0
REPEATS, ROUNDS = 500, 21


def main() -> int:
    problem = Problem.parse(TEXT)
    rng = np.random.default_rng(0)
    shapes = problem.source_shape, problem.weight_shape, (problem.result_channels,)
    task = Task(problem, *(rng.standard_normal(shape, np.float32) for shape in shapes), threads=1)
    choice = choose(problem)
    print("| algorithm | kernel µs | plan | plan, out= | function | plan over kernel | function over kernel |\n|---" + "|---:" * 6 + "|")
    passed = True
    with on_threads(1):
        for verdict in choice.verdicts:
            if verdict.reason is None:
                over_plan, over_function = measure(task, verdict.name, verdict.name == choice.name)
                if verdict.name == choice.name:
                    passed = over_plan <= PLAN_LIMIT and over_function <= FUNCTION_LIMIT
        for peer in PEERS:
            if peer.name == "torch" and importlib.util.find_spec("torch"):
                print(f"\ntorch.nn.functional.conv2d: {microseconds([peer.prepare(task).call])[0]:.2f} µs")
    return int(not passed)


def measure(task: Task, algorithm: str, taken: bool) -> tuple[float, float]:
    """Microseconds of a plan and of the function over the kernel itself."""
    plan, out = frozen(task, algorithm), np.empty(task.problem.result_shape, np.float32)
    x, w, b = task.input, task.weight, task.bias
    calls = [
        kernel_of(lambda: plan(x, out=out)),
        lambda: plan(x),
        lambda: plan(x, out=out),
        lambda: numbaconv.conv2d(x, w, b, padding=1, algorithm=algorithm),
    ]
    kernel, fresh, reused, function = microseconds(calls)
    name = algorithm + (", taken by auto" if taken else "")
    print(f"| {name} | {kernel:.2f} | {fresh:.2f} | {reused:.2f} | {function:.2f} | {fresh - kernel:.2f} | {function - kernel:.2f} |")
    return fresh - kernel, function - kernel


def kernel_of(call: Callable[[], Any]) -> Callable[[], None]:
    """The workers that ``call`` runs, as one function that runs them again."""
    shared: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    honest = threads.share

    def recorded(worker: Any, arguments: Any, tasks: int, seconds: float, address: int = 0) -> int:
        shared.append((worker, arguments))
        return honest(worker, arguments, tasks, seconds, address)

    with contextlib.ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.startswith("numbaconv.cpu.") and getattr(module, "share", None) is honest:
                patches.enter_context(mock.patch.object(module, "share", recorded))
        call()
    counter = np.zeros(1, np.int64)

    def again() -> None:
        for worker, arguments in shared:
            counter[0] = 0
            worker(*arguments, counter)

    return again


def microseconds(calls: list[Callable[[], Any]]) -> list[float]:
    """Median microseconds of each call, interleaved."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, seconds in zip(calls, times):
            call()
            start = time.process_time()
            for _ in range(REPEATS):
                call()
            seconds.append(1e6 * (time.process_time() - start) / REPEATS)
    return [statistics.median(seconds) for seconds in times]


if __name__ == "__main__":
    sys.exit(main())
