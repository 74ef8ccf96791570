"""What every algorithm must satisfy on a case, as plain functions: pytest and the subprocess tests both call them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from numbaconv import Problem, reference
from numbaconv.choose import Algorithm, registry
from numbaconv.cpu import threads

from .cases import call, dtype_of, integer_arrays, normal_arrays

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


def taking(problem: str) -> list[str]:
    """Names of the registered algorithms that take the problem of this text."""
    parsed = Problem.parse(problem)
    return [algorithm.name for algorithm in registry("cpu") if algorithm.supports(parsed) is None]


# Those that form every product of the definition, whose sums of whole numbers are exact.
DEFINITION: list[Algorithm] = [algorithm for algorithm in registry("cpu") if algorithm.accuracy == "definition"]


def every(problems: Iterable[Problem], algorithms: Iterable[Algorithm] = DEFINITION) -> pytest.MarkDecorator:
    """Parametrize by (algorithm, problem) for the problems that each algorithm supports; the id names both."""
    problems = list(problems)
    pairs = [pytest.param(a.name, p, id=f"{a.name}-{p}") for a in algorithms for p in problems if a.supports(p) is None]
    return pytest.mark.parametrize("algorithm, problem", pairs)


def check_exact(p: Problem, algorithm: str) -> None:
    """Whole-number inputs: equal to the reference, in a fresh result and in a poisoned ``out`` whose surroundings survive.

    The second call runs on all threads, however little work there is.
    """
    x, w, b = integer_arrays(p)
    expected = reference.convolve(p, x, w, b)
    fresh = call(p, x, w, b, algorithm=algorithm)
    assert type(fresh) is np.ndarray and fresh.dtype == dtype_of(p.out_dtype)
    assert fresh.flags.c_contiguous and fresh.flags.writeable and fresh.dtype.isnative
    assert_same(fresh, expected)

    buffer, out = poisoned(p.result_shape, dtype_of(p.out_dtype))
    untouched = buffer.copy()
    with always_parallel():
        assert call(p, x, w, b, algorithm=algorithm, out=out) is out
    assert_same(out, expected)
    inside = (slice(1, -1),) * out.ndim
    buffer[inside] = untouched[inside]
    assert buffer.tobytes() == untouched.tobytes(), "cells around out were written"


@contextlib.contextmanager
def always_parallel() -> Iterator[None]:
    """Small problems, too, are shared among the threads."""
    before, threads.SERIAL_BELOW = threads.SERIAL_BELOW, 0.0
    try:
        yield
    finally:
        threads.SERIAL_BELOW = before


def check_rounding(p: Problem, algorithm: str) -> None:
    """Normally distributed inputs: within the rounding errors that summation in any order can have."""
    x, w, b = normal_arrays(p)
    exact = reference.convolve(p, x, w, b, rounded=False)
    error = np.abs(wide(call(p, x, w, b, algorithm=algorithm)) - exact)
    bound = rounding_bound(p, x, w, b, exact)
    assert (error <= bound).all(), f"error up to {np.nanmax(error / bound):.3g} of the bound"


def rounding_bound(p: Problem, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, exact: np.ndarray) -> np.ndarray:
    """Largest rounding error of each result element (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1).

    A sum of K products and a bias, in any order, with or without fma, errs by at most gamma(K + 2) * sum |w||x|, where gamma(n) =
    n u / (1 - n u).  A complex product is two products in each component, whose magnitudes |re| + |im| bound.  The float64 reference
    errs by as much in its own precision, and float16 and bfloat16 round once more.
    """
    terms = p.out_per_group * p.taps if p.transposed else p.in_per_group * p.taps
    terms = (2 * terms if x.dtype.kind == "c" else terms) + 2
    magnitudes = replace(p, dtype="float64", out_dtype="float64")
    total = reference.convolve(magnitudes, magnitude(x), magnitude(w), None if b is None else magnitude(b))
    accumulator = {"float64": "float64", "complex128": "float64"}.get(p.dtype, "float32")
    u = ROUNDOFF[accumulator] + ROUNDOFF["float64"]
    bound = terms * u / (1 - terms * u) * total
    if p.dtype in ("float16", "bfloat16"):
        bound += ROUNDOFF[p.dtype] * (np.abs(exact) + bound) + SMALLEST[p.dtype]
    return bound * (2**0.5 if x.dtype.kind == "c" else 1) + SMALLEST[accumulator]


def poisoned(shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A buffer full of NaN (integers: 0x5A bytes) and the view of ``shape`` inside it, one cell away from every edge."""
    buffer = np.full(tuple(n + 2 for n in shape), 0x5A, np.uint8)
    if dtype.kind in "iu":
        buffer = np.full((*buffer.shape, dtype.itemsize), 0x5A, np.uint8).view(dtype)[..., 0]
    else:
        buffer = np.full(buffer.shape, np.nan, dtype)
    return buffer, buffer[(slice(1, -1),) * len(shape)]


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """The same shape, dtype and values; NaN equals NaN."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    np.testing.assert_array_equal(wide(got), wide(expected))


def wide(array: np.ndarray) -> np.ndarray:
    """The same values where sums and differences of them are exact enough: floats as float64."""
    return array.astype(np.float64) if array.dtype.name in ("float16", "bfloat16", "float32") else array


def magnitude(array: np.ndarray) -> np.ndarray:
    array = wide(array)
    return np.abs(array.real) + np.abs(array.imag) if array.dtype.kind == "c" else np.abs(array)
