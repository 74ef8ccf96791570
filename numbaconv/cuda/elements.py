"""How kernels read, sum and write each dtype: the same table as on the CPU, as functions of addresses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from ..problem import itemsize
from . import ptx


@dataclass(frozen=True)
class Element:
    """One dtype in a kernel.  ``load(address)`` widens to the accumulator, ``store(address, value)`` rounds or truncates to the dtype."""

    name: str
    bytes: int
    accumulator: str
    """Name of the dtype of sums and of packed weights: float32 for float16 and bfloat16, int32 for narrow integers."""
    load: Callable[..., Any]
    store: Callable[..., Any]

    @property
    def sum_type(self) -> Any:
        """The accumulator as a numba type."""
        return getattr(types, self.accumulator)

    @property
    def zero(self) -> Any:
        """The accumulator's zero, for a kernel to close over."""
        return np.dtype(self.accumulator).type(0)


@functools.cache
def element(name: str) -> Element:
    """The element of a dtype's name."""
    if name in ("float16", "bfloat16"):
        load, store = _halves(name)
        return Element(name, 2, "float32", load, store)
    if name.startswith("complex"):
        load, store = _complex(name)
        return Element(name, itemsize(name), name, load, store)
    if name in ("int8", "int16", "uint8"):
        load, store = _narrow(name)
        return Element(name, itemsize(name), "int32", load, store)
    return Element(name, itemsize(name), name, ptx.load(name), ptx.store(name))


def _halves(name: str) -> tuple[Any, Any]:
    read, write = ptx.load("uint16"), ptx.store("uint16")
    widen = ptx.half_to_float if name == "float16" else ptx.bfloat_to_float
    narrow = ptx.float_to_half if name == "float16" else ptx.float_to_bfloat

    @cuda.jit(device=True)
    def load(address):  # type: ignore[no-untyped-def]
        return widen(read(address))

    @cuda.jit(device=True)
    def store(address, value):  # type: ignore[no-untyped-def]
        write(address, narrow(value))

    return load, store


def _complex(name: str) -> tuple[Any, Any]:
    part = "float32" if name == "complex64" else "float64"
    read, write = ptx.load(part, 2), ptx.store(part, 2)

    @cuda.jit(device=True)
    def load(address):  # type: ignore[no-untyped-def]
        parts = read(address)
        return complex(parts[0], parts[1])

    @cuda.jit(device=True)
    def store(address, value):  # type: ignore[no-untyped-def]
        write(address, (value.real, value.imag))

    return load, store


def _narrow(name: str) -> tuple[Any, Any]:
    read, write, kind = ptx.load(name), ptx.store(name), getattr(types, name)

    @cuda.jit(device=True)
    def load(address):  # type: ignore[no-untyped-def]
        return types.int32(read(address))

    @cuda.jit(device=True)
    def store(address, value):  # type: ignore[no-untyped-def]
        write(address, kind(value))

    return load, store


@functools.cache
def load_many(name: str, count: int) -> Any:
    """``load_many(name, count)(address)``: ``count`` neighbours of an accumulator's dtype as a tuple; ``address`` is a multiple of 16."""
    lanes = 1 if name.startswith("complex") else min(count, 16 // itemsize(name))
    step = types.uint64(lanes * itemsize(name))
    one = element(name).load if lanes == 1 else ptx.load(name, lanes)
    if lanes == 1:

        @cuda.jit(device=True)
        def load(address):  # type: ignore[no-untyped-def]
            return (one(address),)
    else:
        load = one
    if count == lanes:
        return load
    rest = load_many(name, count - lanes)

    @cuda.jit(device=True)
    def load_all(address):  # type: ignore[no-untyped-def]
        return load(address) + rest(address + step)

    return load_all
