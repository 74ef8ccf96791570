"""Time a voxel of cubes of growing size: python tests/benchmarks/scaling.py [--largest 512] [--threads 1]

float32, 16 to 16 channels, kernels of 3 x 3 x 3, padding 1, a frozen plan, with fresh results and with ``out=``.  Sizes that do not
fit into the memory that is free are left out and named.  Prints a Markdown table; exits with 1 where the largest time a voxel with
fresh results passes the smallest by more than 15 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import numbaconv
from numbaconv.bench.timing import on_threads

CHANNELS = 16
SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512)
FLAT = 1.15
LEAST = 0.4
"""Seconds of calls of each kind and size, at least."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=SIZES[-1], metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    options = parser.parse_args()
    print("| size | algorithm | ns a voxel, fresh result | with out= | calls |\n|---|---|---:|---:|---:|")
    with on_threads(options.threads):
        fresh, reused = zip(*(found for size in SIZES if size <= options.largest and (found := measure(size, options.threads))))
    spreads = [max(times) / min(times) for times in (fresh, reused)]
    print(f"\nlargest over smallest: {spreads[0]:.2f} with fresh results, {spreads[1]:.2f} with out=")
    return int(spreads[0] > FLAT)


def measure(size: int, threads: int) -> tuple[float, float] | None:
    """Nanoseconds a voxel with fresh results and with ``out=``; None where memory is short."""
    voxels = size**3
    needed = int(2.05 * 4 * CHANNELS * voxels)  # input and one result
    if needed > available():
        print(f"| {size} | needs {needed / 2**30:.1f} GiB, {available() / 2**30:.1f} GiB are free |")
        return None
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3, 3), np.float32) / np.float32(20)
    plan = numbaconv.plan((1, CHANNELS, size, size, size), weight, padding=1)
    x = np.empty((1, CHANNELS, size, size, size), np.float32)
    for channel in x[0]:
        rng.standard_normal(out=channel, dtype=np.float32)
    clock = time.process_time if threads == 1 else time.perf_counter
    fresh, calls = median(lambda: plan(x), clock)
    out = np.zeros_like(x)
    reused, _ = median(lambda: plan(x, out=out), clock)
    times = 1e9 * fresh / voxels, 1e9 * reused / voxels
    print(f"| {size} | {plan.algorithm} | {times[0]:.1f} | {times[1]:.1f} | {calls} |", flush=True)
    return times


def median(call: Callable[[], Any], clock: Callable[[], float]) -> tuple[float, int]:
    """Median seconds of a call after one that is not counted, and how many calls that were."""
    call()
    seconds: list[float] = []
    while len(seconds) < 5 or sum(seconds) < LEAST:
        start = clock()
        call()
        seconds.append(clock() - start)
    return statistics.median(seconds), len(seconds)


def available() -> int:
    """Bytes of memory that can be had without swapping; everything where the system does not say."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 2**62)


if __name__ == "__main__":
    sys.exit(main())
