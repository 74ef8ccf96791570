"""The command ``warmup``: compile the usual kernels into the disk cache ahead, so that no program waits for them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .arrays import ELEMENTS, dtype_named
from .choose import choose, registry
from .plans import describe
from .problem import Problem

# Input shape, weight shape and arguments of forward convolutions, large enough for several tasks.
FORWARD: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((1, 16, 4000), (16, 16, 3), {"padding": 1}),
    ((1, 16, 56, 56), (16, 16, 3, 3), {"padding": 1}),
    ((1, 16, 56, 56), (16, 16, 3, 3), {"padding": 1, "stride": 2}),
    ((1, 16, 56, 56), (16, 16, 1, 1), {}),
    ((1, 64, 7, 7), (128, 64, 3, 3), {"padding": 1}),
    ((1, 16, 56, 56), (16, 16, 5, 5), {"padding": 2}),
    ((1, 3, 112, 112), (16, 3, 7, 7), {"padding": 3, "stride": 2}),
    ((1, 32, 56, 56), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    ((1, 1, 128, 128), (1, 1, 5, 5), {"padding": 2}),
    ((1, 1, 256, 256), (1, 1, 31, 31), {"padding": 15}),
    ((1, 16, 16, 32, 32), (16, 16, 3, 3, 3), {"padding": 1}),
    ((1, 16, 16, 32, 32), (16, 16, 3, 3, 3), {"padding": 1, "stride": 2}),
    ((1, 16, 16, 32, 32), (16, 16, 1, 3, 3), {"padding": (0, 1, 1)}),
    ((1, 16, 16, 32, 32), (16, 16, 3, 1, 1), {"padding": (1, 0, 0)}),
    ((1, 1, 32, 32, 32), (8, 1, 5, 5, 5), {"padding": 2}),
)
TRANSPOSED: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((1, 16, 28, 28), (16, 16, 2, 2), {"stride": 2}),
    ((1, 16, 8, 16, 16), (16, 16, 3, 3, 3), {"padding": 1, "stride": 2}),
)
_NONE = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0, "padding_mode": "zeros", "out_dtype": None}


def warm(dtypes: Sequence[str]) -> int:
    """Run every algorithm on layers of every kind in these dtypes, and say what was compiled; 1 where that cannot be kept."""
    problems = [problem for dtype in dtypes for problem in usual_problems(dtype)]
    from numba.core import config, event

    from .cpu import direct, threads
    from .cpu.compile import cache_folder

    folder = cache_folder(direct.convolve_rows)
    if config.DISABLE_JIT or folder is None:
        print("Nothing to do: " + ("NUMBA_DISABLE_JIT is set." if config.DISABLE_JIT else "no cache folder can be written."))
        return 1
    logging.getLogger("numbaconv").setLevel(logging.ERROR)  # the notice that compiling is under way
    threads.SERIAL_BELOW = 0.0  # small layers, too, run on all threads
    began = time.perf_counter()
    for name in (algorithm.name for algorithm in registry("cpu")):
        for dtype in dtypes:
            start = time.perf_counter()
            with event.install_recorder("numba:compile") as compiled:
                ran = sum(_run(problem, name) for problem in problems if problem.dtype == dtype)
            if ran:
                functions = sum(record.is_start for _, record in compiled.buffer)
                what = f"{functions} functions compiled in {time.perf_counter() - start:.1f} s" if functions else "already compiled"
                print(f"{name:<16}{dtype:<12}{what}", flush=True)
    print(f"{time.perf_counter() - began:.1f} s in all, kept in {folder}")
    return 0


def warm_for_gpu(dtypes: Sequence[str], architecture: str | None) -> int:
    """Compile what ``auto`` takes for such layers on a GPU of this architecture, or the one that is here, on all processors."""
    from . import cuda
    from .bench.ahead import compile_ahead, processes

    problems = [str(problem) for dtype in dtypes for problem in usual_problems(dtype)]
    if architecture is None:
        reason = cuda.unavailable_reason()
        if reason is not None:
            raise ValueError(f"--architecture must say what to compile for where there is no GPU: {reason}")
        from .cuda.driver import driver

        architecture = driver().architecture(driver().current_device())
    registry("cuda")  # says what to install
    from .cuda.launch import cache_folder

    if cache_folder() is None:
        print("Nothing to do: no cache folder can be written.")
        return 1
    began = time.perf_counter()
    with processes(os.cpu_count()) as pool:
        count = compile_ahead(problems, architecture, pool, print)
    print(f"{count} kernels for {architecture} in {time.perf_counter() - began:.1f} s, kept in {cache_folder()}")
    return 0


def usual_problems(dtype: str) -> Iterator[Problem]:
    """Layers of every kind: forward convolutions, gradients of their weights, transposed convolutions."""
    for transposed, layers in ((False, FORWARD), (True, TRANSPOSED)):
        for source, weight, given in layers:
            problem = describe(source, weight, None, **_NONE | given, transposed=transposed, dtype=dtype)
            yield problem
            if not transposed:
                yield replace(problem, direction="weight_grad")


def _run(problem: Problem, algorithm: str) -> bool:
    """Compute the problem on zeros where the algorithm supports it."""
    if any(verdict.name == algorithm and verdict.reason for verdict in choose(problem, "fast").verdicts):
        return False
    setup, storage = choose(problem, "fast", algorithm).setup, ELEMENTS[problem.dtype].storage
    source = np.zeros((1, problem.source_channels, *problem.source_size), storage)
    result = np.zeros((1, problem.result_channels, *problem.result_size), storage)
    weight = np.zeros((problem.out_channels, problem.in_per_group, *problem.kernel), dtype_named(problem.dtype))
    if problem.direction == "weight_grad":
        setup.run(source, (result,), np.zeros(weight.shape, storage))
    else:
        setup.run(source, setup.pack(weight, None), result)
    return True
