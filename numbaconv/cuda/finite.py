"""Whether all numbers of an array on a device are finite, found there and left there: nobody waits for the answer."""

from __future__ import annotations

import functools

from numba import cuda
from numba.cuda import types

from ..device import DeviceArray
from . import ptx
from .arrays import empty
from .copies import strided_copy
from .driver import Call, driver
from .launch import Kernel

THREADS = 256
MOST_BLOCKS = 1024


@functools.cache
def find_kernel(name: str) -> Kernel:
    """Writes 1 to an int32 where a number of the real dtype ``name`` is infinite or NaN: every thread that meets one, the same 1."""
    load, store, size, wide = ptx.load(name), ptx.store("int32"), types.uint64(ptx.STORED[name][0].bitwidth // 8), types.int64

    def find(values, found, count):  # type: ignore[no-untyped-def]
        at = wide(cuda.blockIdx.x) * wide(THREADS) + wide(cuda.threadIdx.x)
        other = False
        while at < count:
            value = load(values + types.uint64(at) * size)
            other = other or value - value != 0
            at += wide(cuda.gridDim.x) * wide(THREADS)
        if other:
            store(found, types.int32(1))

    return Kernel(f"find-not-finite-{name}", find, (types.uint64, types.uint64, types.int64), THREADS)


def find_not_finite(array: DeviceArray) -> DeviceArray:
    """A fresh int32 of shape (1,): 1 where a number of the C-contiguous real array is infinite or NaN, else 0."""
    found = empty((1,), "int32", array)
    strided_copy(found, found, (1,), (0,), (1,), (0,))
    function = driver().function(find_kernel(array.dtype), array.device)
    blocks = min(MOST_BLOCKS, -(-array.size // THREADS))
    if blocks:
        Call(function, (blocks, 1, 1), 2, [array.size])(array.stream, array.pointer, found.pointer)
    return found
