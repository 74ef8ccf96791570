"""Kernels that numba-cuda compiles, run in the emulator: what the compiler makes of Python's control flow, numbers and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numba import cuda
from numba.cuda import types

from numbaconv.cuda import ptx
from numbaconv.cuda.elements import element
from numbaconv.cuda.launch import Kernel, compile_ptx

from .emulator import Program
from .snippets import ORDERS, run

i32, i64, u64 = types.int32, types.int64, types.uint64


def compiled(function: Any, *signature: Any, threads: int = 64) -> Program:
    return Program(compile_ptx(Kernel(f"test_{function.__name__}", function, signature, threads), "sm_80"))


def test_control_flow() -> None:
    """Collatz steps up to a limit, with continue and break in nested loops."""
    load, store = ptx.load("int32"), ptx.store("int32")

    def steps(x, y, limit):  # type: ignore[no-untyped-def]
        at = u64(u64(cuda.blockIdx.x) * u64(64) + u64(cuda.threadIdx.x)) * u64(4)
        number, count = load(u64(x + at)), i32(0)
        for outer in range(limit):
            if outer & 1:
                continue
            while number > i32(1):
                number = i32(number >> i32(1)) if i32(number & i32(1)) == i32(0) else i32(i32(i32(3) * number) + i32(1))
                count = i32(count + i32(1))
                if i32(count & i32(7)) == i32(0):
                    break
            if number <= i32(1):
                break
        store(u64(y + at), count)

    def expected(number: int, limit: int) -> int:
        count = 0
        for outer in range(limit):
            if outer & 1:
                continue
            while number > 1:
                number = number >> 1 if number % 2 == 0 else 3 * number + 1
                count += 1
                if count & 7 == 0:
                    break
            if number <= 1:
                break
        return count

    x = np.arange(1, 193, dtype=np.int32)
    for order in ORDERS:
        _, y = run(compiled(steps, u64, u64, i32), x, np.zeros_like(x), numbers=(9,), grid=3, block=64, order=order)
        np.testing.assert_array_equal(y, [expected(int(n), 9) for n in x])


@pytest.mark.parametrize("kind", ["int32", "int64", "uint32"])
def test_division_and_remainder(kind: str) -> None:
    number = getattr(types, kind)
    load, store, size = ptx.load(kind), ptx.store(kind), u64(np.dtype(kind).itemsize)

    def divide(x, y, z):  # type: ignore[no-untyped-def]
        at = u64(u64(cuda.threadIdx.x) * size)
        a, b = load(u64(x + at)), load(u64(y + at))
        store(u64(z + at), number(number(a // b) * number(1000)) + number(a % b))

    rng = np.random.default_rng(0)
    signed = kind != "uint32"
    a = rng.integers(-(10**8) if signed else 0, 10**8, 64).astype(kind)
    b = (rng.integers(1, 10**4, 64) * (rng.choice([-1, 1], 64) if signed else 1)).astype(kind)
    *_, z = run(compiled(divide, u64, u64, u64), a, b, np.zeros_like(a), block=64)
    expected = (a.astype(np.int64) // b * 1000 + a.astype(np.int64) % b).astype(kind)
    np.testing.assert_array_equal(z, expected)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8"])
def test_every_dtype(name: str) -> None:
    """x * x + y in the accumulator, stored in the dtype."""
    kind = element(name)
    load, store, size = kind.load, kind.store, u64(kind.bytes)

    def square(x, y, z):  # type: ignore[no-untyped-def]
        at = u64(u64(cuda.threadIdx.x) * size)
        value = load(u64(x + at))
        store(u64(z + at), value * value + load(u64(y + at)))

    rng = np.random.default_rng(0)
    x, y = (np.array(rng.integers(-9, 9, 64) + (1j * rng.integers(-9, 9, 64) if "complex" in name else 0)).astype(name) for _ in range(2))
    *_, z = run(compiled(square, u64, u64, u64), x, y, np.zeros_like(x), block=64)
    np.testing.assert_array_equal(z, (x.astype(kind.accumulator) ** 2 + y.astype(kind.accumulator)).astype(name))


def test_bfloat16() -> None:
    kind = element("bfloat16")
    load, store = kind.load, kind.store

    def triple(x, y):  # type: ignore[no-untyped-def]
        at = u64(u64(cuda.threadIdx.x) * u64(2))
        value = load(u64(x + at))
        store(u64(y + at), value + value + value)

    import ml_dtypes

    x = np.linspace(-3, 3, 64).astype(ml_dtypes.bfloat16)
    _, y = run(compiled(triple, u64, u64), x.view(np.uint16), np.zeros(64, np.uint16), block=64)
    np.testing.assert_array_equal(y.view(ml_dtypes.bfloat16), (3 * x.astype(np.float32)).astype(ml_dtypes.bfloat16))


def test_shared_and_local_arrays() -> None:
    """Each thread sorts three numbers that other threads have left, in an array indexed at run time."""
    load, store = ptx.load("float32"), ptx.store("float32")

    def median(x, y):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(66, "float32")
        thread = i32(cuda.threadIdx.x)
        shared[thread] = load(u64(x + u64(thread) * u64(4)))
        if thread < 2:
            shared[64 + thread] = load(u64(x + u64(64 + thread) * u64(4)))
        cuda.syncthreads()
        values = cuda.local.array(3, "float32")
        for i in range(3):
            at = i
            while at > 0 and values[at - 1] > shared[thread + i]:
                values[at] = values[at - 1]
                at -= 1
            values[at] = shared[thread + i]
        store(u64(y + u64(thread) * u64(4)), values[1])

    x = np.random.default_rng(0).standard_normal(66).astype(np.float32)
    program = compiled(median, u64, u64)
    for order in ORDERS:
        _, y = run(program, x, np.zeros(64, np.float32), block=64, order=order)
        np.testing.assert_array_equal(y, np.median(np.lib.stride_tricks.sliding_window_view(x, 3), axis=1))


def test_what_lanes_of_a_warp_exchange() -> None:
    load, store = ptx.load("float32"), ptx.store("float32")

    def total(x, y):  # type: ignore[no-untyped-def]
        value = load(u64(x + u64(cuda.threadIdx.x) * u64(4)))
        by = 16
        while by:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, by)
            by >>= 1
        if cuda.any_sync(0xFFFFFFFF, value > 0):
            value = -value
        store(u64(y + u64(cuda.threadIdx.x) * u64(4)), value)

    x = np.arange(64, dtype=np.float32)
    _, y = run(compiled(total, u64, u64), x, np.zeros_like(x), block=64)
    np.testing.assert_array_equal(y, np.repeat(-x.reshape(2, 32).sum(1), 32))
