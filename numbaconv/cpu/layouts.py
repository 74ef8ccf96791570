"""Memory of any layout as kernels take it, and its address."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from ..arrays import AnyArray
from .compile import call_specialised, kernel, only_specialised, specialise
from .simd import address_of


def readable_memory(array: AnyArray) -> AnyArray:
    """:func:`memory_of` an array that is only read, as a read-only array: of one type, then, whether the array itself is or not."""
    memory = memory_of(array)
    memory.setflags(write=False)
    return memory


def memory_of(array: AnyArray) -> AnyArray:
    """All memory between an array's first and last byte as a 1-D array, a view of its own.

    One 1-D array stands for every layout, so that kernels are compiled once; only the array's own elements may be accessed through it,
    from the place and with the steps that :func:`place_and_steps` tells.
    """
    if array.flags.c_contiguous:
        return array.reshape(-1)
    if array.size == 0:
        return np.empty(0, array.dtype)
    lowest = array[tuple(slice(None, None, -1 if step < 0 else 1) for step in array.strides)]
    extent = sum((n - 1) * abs(step) for n, step in zip(array.shape, array.strides)) // array.itemsize + 1
    return np.lib.stride_tricks.as_strided(lowest, (extent,), (array.itemsize,))


def place_and_steps(array: AnyArray) -> list[int]:
    """Where element [0, ..., 0] lies in :func:`memory_of` an array, then the array's strides, in elements."""
    steps = [step // array.itemsize for step in array.strides]
    return [sum((1 - n) * step for n, step in zip(array.shape, steps) if step < 0 < n), *steps]


def address(array: AnyArray) -> int:
    """Byte address of element [0, 0, ...], in a fifth of the time that NumPy's own attributes take to tell it."""
    try:
        return _address(array)  # type: ignore[no-any-return]
    except (TypeError, RuntimeError):  # not specialised yet for this dtype and rank, or just now for another, by another thread
        specialise(_address, (types.Array(from_dtype(array.dtype), array.ndim, "A", readonly=True),))
        return int(call_specialised(_address, array))


@only_specialised
@kernel()
def _address(array):  # type: ignore[no-untyped-def]
    return address_of(array)
