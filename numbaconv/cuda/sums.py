"""Sums on a device: over images and space (the gradient of a bias), and of two arrays (gradients that accumulate)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from numba import cuda
from numba.cuda import types

from ..device import DeviceArray
from .arrays import empty
from .driver import Call, driver
from .elements import element
from .geometry import STEPS, Steps, numbers
from .launch import Kernel
from .reduce import THREADS, sum_pairwise


class Sizes(NamedTuple):
    images: int
    cells: int
    height: int
    width: int


SIZES = types.NamedUniTuple(types.int64, len(Sizes._fields), Sizes)


@functools.cache
def sums_kernel(name: str) -> Kernel:
    """One block of threads a channel: each thread sums every 256th cell, image after image, in float64; then the threads pairwise."""
    part = element(name)
    load, store, sum_type = part.load, part.store, part.sum_type
    wide = {"float32": types.float64, "complex64": types.complex128}.get(part.accumulator, sum_type)
    i32, i64, u64 = types.int32, types.int64, types.uint64
    size = u64(part.bytes)

    def channel_sums(source, result, steps, sizes):  # type: ignore[no-untyped-def]
        thread, channel = i32(cuda.threadIdx.x), i64(cuda.blockIdx.x)
        total = wide(0)
        for n in range(sizes.images):
            base = u64(source + u64(n * steps.n + channel * steps.c) * size)
            cell = i64(thread)
            while cell < sizes.cells:
                row = cell // sizes.width
                w = cell - row * sizes.width
                d = row // sizes.height
                h = row - d * sizes.height
                total += load(base + u64(d * steps.d + h * steps.h + w * steps.w) * size)
                cell += THREADS
        shared = cuda.shared.array(THREADS, wide)
        shared[thread] = total
        sum_pairwise(shared, thread)
        if thread == 0:
            store(result + u64(channel) * size, sum_type(shared[0]))

    return Kernel(f"channel-sums-{name}", channel_sums, (types.uint64, types.uint64, STEPS, SIZES), THREADS)


def channel_sums(array: DeviceArray) -> DeviceArray:
    """The sum of (N, C, ...) over every axis but the second, (C,), of the array's dtype."""
    result = empty((array.shape[1],), array.dtype, array)
    source = array.five(array.ndim - 2)
    if result.size:
        sizes = Sizes(source.shape[0], math.prod(source.shape[2:]), *source.shape[3:])
        function = driver().function(sums_kernel(array.dtype), array.device)
        call = Call(function, (result.size, 1, 1), 2, numbers([Steps(*source.steps), sizes]))
        call(array.stream, source.pointer, result.pointer)
    return result


@functools.cache
def add_kernel(name: str) -> Kernel:
    """A thread adds one pair of elements of two 5-D arrays."""
    part = element(name)
    load, store = part.load, part.store
    i64, u64 = types.int64, types.uint64
    size = u64(part.bytes)

    def add(a, b, result, shape, a_steps, b_steps, result_steps):  # type: ignore[no-untyped-def]
        position = i64(cuda.blockIdx.x) * THREADS + i64(cuda.threadIdx.x)
        if position < shape.n * shape.c * shape.d * shape.h * shape.w:
            at_a, at_b, at_result = i64(0), i64(0), i64(0)
            for axis in range(4, -1, -1):
                rest = position // shape[axis]
                index = position - rest * shape[axis]
                position = rest
                at_a += index * a_steps[axis]
                at_b += index * b_steps[axis]
                at_result += index * result_steps[axis]
            store(result + u64(at_result) * size, load(a + u64(at_a) * size) + load(b + u64(at_b) * size))

    return Kernel(f"add-{name}", add, (types.uint64,) * 3 + (STEPS,) * 4, THREADS)


def add(a: DeviceArray, b: DeviceArray, result: DeviceArray) -> None:
    """Write the sum of two arrays of one shape, of one to five axes."""
    lead = 5 - a.ndim
    if result.size:
        shape = Steps(*(1,) * lead, *a.shape)
        steps = [Steps(*(0,) * lead, *array.steps) for array in (a, b, result)]
        function = driver().function(add_kernel(a.dtype), a.device)
        call = Call(function, (-(-result.size // THREADS), 1, 1), 3, numbers([shape, *steps]))
        call(result.stream, a.pointer, b.pointer, result.pointer)
