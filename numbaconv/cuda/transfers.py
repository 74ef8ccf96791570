"""Copies between host and device, for what asks for them by name: a layer's device, and its state."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..arrays import AnyArray, dtype_named, name_of
from ..device import DeviceArray
from .arrays import contiguous, empty, reader
from .copies import copy
from .driver import driver


def device_index(device: str) -> int:
    """The number of ``"cuda"`` (the current device) or ``"cuda:1"``; ValueError where there is none."""
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise ValueError(f"device must be None, 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    number = driver().current_device() if found[1] is None else int(found[1])
    if number >= driver().devices():
        raise ValueError(f"device must be one of the {driver().devices()} there are, got {device!r}")
    return number


def to_device(array: AnyArray, device: int) -> Any:
    """A copy on the device, as an array of numba.cuda, ready when this returns."""
    owner = driver().empty(array.shape, name_of(array), device, 0)
    placed = reader(type(owner))("array", owner)
    if placed is not None and array.size:
        source = np.ascontiguousarray(array)
        driver().upload(placed.pointer, source.ctypes.data, source.nbytes, device, 0)
    return owner


def to_host(array: DeviceArray) -> AnyArray:
    """A copy on the host, C-contiguous."""
    if array.strides != contiguous(array.shape, array.itemsize):
        packed = empty(array.shape, array.dtype, array)
        copy(array, packed)
        array = packed
    result = np.empty(array.shape, dtype_named(array.dtype))
    if result.size:
        driver().download(result.ctypes.data, array.pointer, result.nbytes, array.device, array.stream)
    return result


def overwrite(array: DeviceArray, values: AnyArray) -> None:
    """Write values of the array's shape and dtype into it."""
    placed = reader(type(made := to_device(values, array.device)))("values", made)
    if placed is not None and array.size:
        copy(placed.seen(placed.shape, placed.strides, array.stream), array)
