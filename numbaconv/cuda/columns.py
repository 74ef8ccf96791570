"""im2col and its transpose on a device: see :mod:`numbaconv.columns`, whose checks come first."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from ..device import DeviceArray
from ..problem import Problem
from .arrays import empty
from .driver import Call, driver
from .elements import element
from .geometry import AXIS, STEPS, Steps, axes_of, forward_meets, numbers, transposed_meets
from .launch import Kernel

THREADS = 256


class Columns(NamedTuple):
    """Shape of the columns (N, C, taps, blocks) and their strides in elements."""

    total: int
    channels: int
    n: int
    row: int
    block: int


COLUMNS = types.NamedUniTuple(types.int64, len(Columns._fields), Columns)


@functools.cache
def unfold_kernel(name: str) -> Kernel:
    """A thread writes one entry of the columns."""
    part = element(name)
    load, store, zero, size = part.load, part.store, part.zero, types.uint64(part.bytes)
    i32, i64, u64 = types.int32, types.int64, types.uint64

    def unfold(source, result, depth, height, width, source_steps, columns):  # type: ignore[no-untyped-def]
        rest = u64(u64(cuda.blockIdx.x) * u64(THREADS) + u64(cuda.threadIdx.x))
        if rest >= u64(columns.total):
            return
        w, rest = i32(rest % u64(width.result)), rest // u64(width.result)
        h, rest = i32(rest % u64(height.result)), rest // u64(height.result)
        d, rest = i32(rest % u64(depth.result)), rest // u64(depth.result)
        k, rest = i32(rest % u64(width.kernel)), rest // u64(width.kernel)
        j, rest = i32(rest % u64(height.kernel)), rest // u64(height.kernel)
        i, rest = i32(rest % u64(depth.kernel)), rest // u64(depth.kernel)
        c, n = i64(rest % u64(columns.channels)), i64(rest // u64(columns.channels))
        zd, zh, zw = forward_meets(depth, d, i, 0), forward_meets(height, h, j, 0), forward_meets(width, w, k, 0)
        value = zero
        if zd >= 0 and zh >= 0 and zw >= 0:
            offset = n * source_steps.n + c * source_steps.c + zd * source_steps.d + zh * source_steps.h + zw * source_steps.w
            value = load(source + u64(offset) * size)
        row = ((c * depth.kernel + i) * height.kernel + j) * width.kernel + k
        block = (i64(d) * height.result + h) * width.result + w
        store(result + u64(n * columns.n + row * columns.row + block * columns.block) * size, value)

    return Kernel(f"unfold-{name}", unfold, (types.uint64,) * 2 + (AXIS,) * 3 + (STEPS, COLUMNS), THREADS)


@functools.cache
def fold_kernel(name: str) -> Kernel:
    """A thread sums one cell of the image, over the taps in order."""
    part = element(name)
    load, store, zero, size = part.load, part.store, part.zero, types.uint64(part.bytes)
    i32, i64, u64 = types.int32, types.int64, types.uint64

    def fold(source, result, depth, height, width, result_steps, columns):  # type: ignore[no-untyped-def]
        rest = u64(u64(cuda.blockIdx.x) * u64(THREADS) + u64(cuda.threadIdx.x))
        if rest >= u64(columns.total):
            return
        w, rest = i32(rest % u64(width.result)), rest // u64(width.result)
        h, rest = i32(rest % u64(height.result)), rest // u64(height.result)
        d, rest = i32(rest % u64(depth.result)), rest // u64(depth.result)
        c, n = i64(rest % u64(columns.channels)), i64(rest // u64(columns.channels))
        total = zero
        row = c * depth.kernel * height.kernel * width.kernel
        for i in range(depth.kernel):
            zd = transposed_meets(depth, d, i32(i), 0)
            for j in range(height.kernel):
                zh = transposed_meets(height, h, i32(j), 0)
                for k in range(width.kernel):
                    zw = transposed_meets(width, w, i32(k), 0)
                    if zd >= 0 and zh >= 0 and zw >= 0:
                        block = (i64(zd) * height.source + zh) * width.source + zw
                        total += load(source + u64(n * columns.n + row * columns.row + block * columns.block) * size)
                    row += 1
        offset = n * result_steps.n + c * result_steps.c + d * result_steps.d + h * result_steps.h + w * result_steps.w
        store(result + u64(offset) * size, total)

    return Kernel(f"fold-{name}", fold, (types.uint64,) * 2 + (AXIS,) * 3 + (STEPS, COLUMNS), THREADS)


def unfold(x: DeviceArray, problem: Problem, shape: tuple[int, ...]) -> Any:
    """The columns, of ``shape`` (N, C * taps, blocks) or without N, of an image (N, C, *size) or (C, *size)."""
    result = empty(shape, x.dtype, x)
    n, row, block = _column_steps(result)
    _launch(
        unfold_kernel(x.dtype),
        problem,
        x,
        result,
        Steps(*x.five(problem.rank).steps),
        Columns(result.size, problem.in_channels, n, row, block),
    )
    return result.owner


def fold(x: DeviceArray, problem: Problem, shape: tuple[int, ...]) -> Any:
    """The image, of ``shape`` (N, C, *size) or without N, that sums columns (N, C * taps, blocks) or (C * taps, blocks)."""
    result = empty(shape, x.dtype, x)
    n, row, block = _column_steps(x)
    gradient = problem.gradient("input_grad")
    _launch(
        fold_kernel(x.dtype),
        gradient,
        x,
        result,
        Steps(*result.five(problem.rank).steps),
        Columns(result.size, problem.in_channels, n, row, block),
    )
    return result.owner


def _column_steps(array: DeviceArray) -> tuple[int, ...]:
    return (0,) * (3 - array.ndim) + array.steps


def _launch(kernel: Kernel, problem: Problem, source: DeviceArray, result: DeviceArray, steps: Steps, columns: Columns) -> None:
    blocks = -(-columns.total // THREADS)
    if math.prod(result.shape):
        call = Call(driver().function(kernel, source.device), (blocks, 1, 1), 2, numbers([*axes_of(problem), steps, columns]))
        call(result.stream, source.pointer, result.pointer)
