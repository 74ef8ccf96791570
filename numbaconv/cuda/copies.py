"""Strided copies on a device: weights into the order that a kernel reads, conjugates, and columns of sliding blocks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from ..device import DeviceArray
from .driver import MOST_BLOCKS, Call, driver
from .elements import element
from .launch import Kernel

THREADS = 256
_AXES = 6


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
    if 0 in sizes:
        return
    on: Any = driver()
    given = (tuple(sizes), tuple(source_steps), tuple(result_steps), tuple(inside or sizes))
    prepared = _prepared(on, result.device, source.dtype, result.dtype, conjugate, *given)
    prepared(result.stream, source.pointer, result.pointer)


@functools.lru_cache(maxsize=256)
def _prepared(on: Any, device: int, source: str, result: str, conjugate: bool, *given: tuple[int, ...]) -> Call:
    """The launch for these sizes, steps of source and result, and inner sizes."""
    blocks = -(-math.prod(given[0]) // THREADS)
    if blocks > MOST_BLOCKS:
        raise ValueError(f"a copy of {math.prod(given[0])} elements is too large for one launch")
    lead = _AXES - len(given[0])
    sizes, source_steps, result_steps, inside = ((fill,) * lead + part for fill, part in zip((1, 0, 0, 1), given))
    constants = [math.prod(sizes), *sizes, *inside, *source_steps, *result_steps]
    return Call(on.function(copy_kernel(source, result, conjugate), device), (blocks, 1, 1), 2, constants)


def copy(source: DeviceArray, result: DeviceArray, conjugate: bool = False) -> None:
    """Copy an array of at most six axes into another of its shape, which may be the array itself."""
    strided_copy(source, result, source.shape, source.steps, result.steps, conjugate=conjugate)
