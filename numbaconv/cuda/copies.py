"""Strided copies on a device: weights into the order that a kernel reads, conjugates, and columns of sliding blocks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from numba import cuda
from numba.cuda import types

from ..device import DeviceArray
from .driver import MOST_BLOCKS, Call, driver
from .elements import element
from .geometry import numbers
from .launch import Kernel

THREADS = 256
_AXES = 6
_SIX = tuple[int, int, int, int, int, int]


class Sizes(NamedTuple):
    """Six numbers, one an axis, the last the fastest."""

    a: int
    b: int
    c: int
    d: int
    e: int
    f: int


_WIDE = types.NamedUniTuple(types.int64, _AXES, Sizes)


@functools.cache
def copy_kernel(source: str, result: str, conjugate: bool) -> Kernel:
    """A kernel that writes six axes of a C-contiguous or strided result, zero beyond the source's sizes."""
    read, write = element(source), element(result)
    load, store, zero = read.load, write.store, read.zero
    source_bytes, result_bytes = types.uint64(read.bytes), types.uint64(write.bytes)
    wide = types.int64

    def copy(source, result, total, sizes, inside, source_steps, result_steps):  # type: ignore[no-untyped-def]
        position = wide(cuda.blockIdx.x) * wide(THREADS) + wide(cuda.threadIdx.x)
        if position < total:
            read_at, write_at, within = wide(0), wide(0), True
            for axis in range(_AXES - 1, -1, -1):
                rest = position // sizes[axis]
                index = position - rest * sizes[axis]
                position = rest
                read_at += index * source_steps[axis]
                write_at += index * result_steps[axis]
                within = within and index < inside[axis]
            value = load(source + types.uint64(read_at) * source_bytes) if within else zero
            if conjugate:
                value = value.conjugate()
            store(result + types.uint64(write_at) * result_bytes, value)

    name = f"copy-{source}-{result}{'-conjugate' * conjugate}"
    return Kernel(name, copy, (types.uint64, types.uint64, types.int64, _WIDE, _WIDE, _WIDE, _WIDE), THREADS)


def strided_copy(
    source: DeviceArray,
    result: DeviceArray,
    sizes: Sequence[int],
    source_steps: Sequence[int],
    result_steps: Sequence[int],
    inside: Sequence[int] | None = None,
    conjugate: bool = False,
) -> None:
    """Write a result of at most six ``sizes`` from the source; steps in elements; zeros where an index is not ``inside``."""
    kernel = copy_kernel(source.dtype, result.dtype, conjugate)
    total = math.prod(sizes)
    if not total:
        return
    lead = _AXES - len(sizes)
    shape, most = (1,) * lead + tuple(sizes), (1,) * lead + tuple(inside or sizes)
    steps = [(0,) * lead + tuple(s) for s in (source_steps, result_steps)]
    blocks = -(-total // THREADS)
    if blocks > MOST_BLOCKS:
        raise ValueError(f"a copy of {total} elements is too large for one launch")
    constants = numbers([total, shape, most, *steps])
    Call(driver().function(kernel, result.device), (blocks, 1, 1), 2, constants)(result.stream, source.pointer, result.pointer)


def copy(source: DeviceArray, result: DeviceArray, conjugate: bool = False) -> None:
    """Copy an array of at most six axes into another of its shape, which may be the array itself."""
    strided_copy(source, result, source.shape, source.steps, result.steps, conjugate=conjugate)
