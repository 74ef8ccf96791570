"""Views with given values and any memory layout that NumPy can describe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def with_axes_in_order(array: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The same values in memory that lists ``order``'s last axis fastest (its reverse is Fortran order)."""
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


def with_steps(array: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """The same values, every axis stored ``abs(step)`` cells apart, backwards where the step is negative; garbage in between."""
    buffer = np.empty([max(1, n * abs(step)) for n, step in zip(array.shape, steps)], array.dtype)
    buffer.view(np.uint8)[...] = 0xFF  # NaN in every floating dtype
    view = buffer[tuple(slice(None, n * abs(step), abs(step)) for n, step in zip(array.shape, steps))]
    view = view[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)]
    view[...] = array
    return view


def unaligned(array: np.ndarray) -> np.ndarray:
    """The same values one byte off their alignment."""
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def byte_swapped(array: np.ndarray) -> np.ndarray:
    """The same values in the other byte order."""
    return array.astype(array.dtype.newbyteorder())


def read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.setflags(write=False)
    return view


def repeated(array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The first cell along ``axes`` seen everywhere along them, by strides of zero: other values, same shape."""
    first = array[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(array.ndim))]
    return np.broadcast_to(first, array.shape)


def channels_last(array: np.ndarray) -> np.ndarray:
    return with_axes_in_order(array, [0, *range(2, array.ndim), 1])
