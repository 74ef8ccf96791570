"""The command ``bench --device cuda``: what it measures, prints and writes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from ..problem import Problem
from .ahead import compile_ahead, processes
from .contenders import Contender, find_peers
from .gpu import Gpu, GpuRow, TorchGpu, bench_on_gpu, gpu_peers, ieee_torch
from .gpu_report import cost_lines, describe, gpu_results, markdown, summary
from .launch_cost import Cost, measure_costs
from .layers import Layer, find_gpu_layers
from .measure import WrongAnswer, expected_of
from .report import Result, read_csv, write_csv


def run(options: argparse.Namespace) -> int:
    """Measure and report; 1 where an answer of ours is wrong or there is no GPU."""
    if options.check_choice:
        raise ValueError("--check-choice goes with --device cpu")
    if options.saved:
        _report(options, [row for path in options.saved for row in read_csv(Path(path), GpuRow)], [])
        return 0
    layers = [
        (layer, find_peers(options.against, gpu_peers(direction)))
        for direction in options.direction
        for dtype in options.dtype or [None]
        for layer in find_gpu_layers(options.layers, dtype, direction, options.batch)
    ]
    why = _unavailable()
    if why is not None:
        print(f"nothing is measured: {why}")
        return 1
    with ieee_torch():
        return measure(options, layers, TorchGpu(), _architecture())


def measure(options: argparse.Namespace, layers: Sequence[tuple[Layer, list[Contender]]], gpu: Gpu, architecture: str) -> int:
    """Compile ahead, time the layers and the fixed costs; 1 where an answer of ours is wrong."""
    begin = time.monotonic()
    pool = processes()
    try:
        compile_ahead(list(dict.fromkeys(str(layer.problem) for layer, _ in layers)), architecture, pool, _say)
        _say(f"{gpu.name}; kernels compiled after {time.monotonic() - begin:.0f} s")
        costs = measure_costs(gpu)  # by the host's clock, so while nothing else runs there
        if options.costs:
            write_csv(options.costs, costs)
        for line in cost_lines(costs):
            _say(line)
        rows, failed = _measure_layers(options, layers, gpu, pool, begin)
    finally:
        pool.shutdown(cancel_futures=True)
    _report(options, rows, costs)
    return int(failed)


def _measure_layers(
    options: argparse.Namespace, layers: Sequence[tuple[Layer, list[Contender]]], gpu: Gpu, pool: Executor, begin: float
) -> tuple[list[GpuRow], bool]:
    """The rows of the layers, and whether an answer of ours is wrong; what is right is worked out in the pool, ahead of the device."""
    rows, failed = list[GpuRow](), False
    right = [pool.submit(expected_of, layer) for layer, _ in layers]
    for done, (layer, peers) in enumerate(layers):
        if options.seconds is not None and time.monotonic() - begin > options.seconds:
            _say(f"{len(layers) - done} of {len(layers)} layers are left out: --seconds {options.seconds:g} have passed")
            break
        try:
            measured = bench_on_gpu(layer, peers, gpu, options.rounds, _say, right[done].result())
        except Exception as error:  # the other layers are measured all the same: time on a device is dear
            what = "is WRONG" if isinstance(error, WrongAnswer) else f"FAILED: {type(error).__name__}"
            _say(f"{layer.name}: {layer.problem.direction}: numbaconv {what}: {error}")
            failed = True
            continue
        _say(f"{Problem.parse(measured[0].problem).direction:<12}{describe(Result(tuple(measured)))}")
        rows += measured
        if options.csv:
            write_csv(options.csv, rows)  # after each layer: an interrupted run keeps what it has
    return rows, failed


def _say(text: str) -> None:
    print(text, flush=True)


def _report(options: argparse.Namespace, rows: Sequence[GpuRow], costs: Sequence[Cost]) -> None:
    if not rows:
        return
    for line in summary(rows):
        print(line)
    if options.markdown:
        text = markdown(rows, costs, "python -m numbaconv " + " ".join(sys.argv[1:]))
        options.markdown.write_text(text, encoding="utf-8")
    if options.png:
        from .chart import draw_panels

        draw_panels(options.png, gpu_results(rows))


def _unavailable() -> str | None:
    """Why nothing can be measured here."""
    import importlib.util

    from ..cuda import unavailable_reason

    why = unavailable_reason()
    if why is not None:
        return why
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed, which keeps the arrays and the clock, and is what is compared with"
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def _architecture() -> str:
    from ..cuda.driver import driver

    return driver().architecture(driver().current_device())
