"""Any memory layout of the arguments and of ``out``: the same result, and the arguments unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import numbaconv
from numbaconv import Problem, reference

from . import layouts
from .cases import BFLOAT16, call, case, integer_arrays
from .checks import assert_same, every

GEOMETRIES = [
    Problem.parse(case(direction, size, kernel, t=t, mb=2, g=2, ic=4, oc=6, s=s, p=1, d=d, b=1, mode=mode))
    for t in ("f32", "f64", "f16", "c64", "s8", "s64")
    for direction, size, kernel, s, d, mode in (
        ("fwd", (9,), (3,), 2, 1, "zeros"),
        ("fwd", (5, 20), (3, 3), 1, 1, "zeros"),
        ("fwd", (6, 7), (3, 2), (1, 2), 2, "reflect"),
        ("fwd", (3, 4, 5), (2, 3, 3), 1, 1, "circular"),
        ("igrad", (4, 7), (3, 3), 2, 1, "zeros"),
        ("igrad", (3, 2, 3), (2, 2, 3), 1, (1, 2, 1), "zeros"),
    )
]
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "channels_last": lambda a: layouts.channels_last(a) if a.ndim > 2 else a,
    "rotated": lambda a: layouts.with_axes_in_order(a, np.roll(range(a.ndim), 1).tolist()),
    "reversed": lambda a: layouts.with_steps(a, (-1,) * a.ndim),
    "last_reversed": lambda a: layouts.with_steps(a, (1,) * (a.ndim - 1) + (-1,)),
    "strided": lambda a: layouts.with_steps(a, (2, 3, -2, 2, 3)[: a.ndim]),
    "read_only": layouts.read_only,
    "unaligned": layouts.unaligned,
    "byte_swapped": layouts.byte_swapped,
    "repeated_all": lambda a: layouts.repeated(a, range(a.ndim)),
    "repeated_last": lambda a: layouts.repeated(a, [a.ndim - 1]),
    "repeated_first": lambda a: layouts.repeated(a, [0]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@every(GEOMETRIES)
def test_argument_layouts(algorithm: str, problem: Problem, layout: str) -> None:
    p = problem
    x, w, b = (LAYOUTS[layout](array) for array in integer_arrays(p))
    before = [array.tobytes() for array in (x, w, b)]
    y = call(p, x, w, b, algorithm=algorithm)
    assert_same(y, reference.convolve(p, x, w, b))
    assert y.flags.c_contiguous and y.flags.writeable and y.dtype.isnative
    assert [array.tobytes() for array in (x, w, b)] == before, "an argument was changed"


OUTS = ("fortran", "channels_last", "rotated", "reversed", "last_reversed", "strided")


@pytest.mark.parametrize("layout", OUTS)
@every(GEOMETRIES)
def test_out_layouts(algorithm: str, problem: Problem, layout: str) -> None:
    p = problem
    x, w, b = integer_arrays(p)
    expected = reference.convolve(p, x, w, b)
    poison = np.full(expected.shape, np.nan if expected.dtype.kind in "fc" else 90, expected.dtype)
    out = LAYOUTS[layout](poison)
    assert out.strides != expected.strides
    assert call(p, x, w, b, out=out, algorithm=algorithm) is out
    assert_same(out, expected)


def test_an_unbatched_out_and_one_with_unit_axes() -> None:
    x, w = np.ones((1, 2, 5, 6), np.float32), np.ones((1, 2, 3, 3), np.float32)
    expected = numbaconv.conv2d(x, w)
    out = np.lib.stride_tricks.as_strided(np.zeros(12, np.float32), (1, 1, 3, 4), (0, 0, 16, 4))  # strides of unit axes say nothing
    assert_same(numbaconv.conv2d(x, w, out=out), expected)
    assert_same(numbaconv.conv2d(x[0], w, out=np.zeros((1, 3, 4), np.float32)), expected[0])


def test_bfloat16_layouts() -> None:
    p = Problem.parse(case("fwd", (5, 6), (3, 3), t="bf16", p=1, b=1))
    x, w, b = integer_arrays(p)
    expected = reference.convolve(p, x, w, b)
    for layout in ("fortran", "reversed", "strided", "read_only", "unaligned", "channels_last"):
        assert_same(call(p, *(LAYOUTS[layout](array) for array in (x, w, b))), expected)
    assert expected.dtype == BFLOAT16


def test_memmap(tmp_path: Path) -> None:
    """Mapped files as arguments (read-only and copy-on-write) and as ``out``; a fresh result is a plain array."""
    p = Problem.parse(case("fwd", (5, 18), (3, 3), ic=3, oc=4, p=1, b=1, mb=2))
    arrays = integer_arrays(p)
    expected = reference.convolve(p, *arrays)
    for mode in ("r", "c"):
        mapped = []
        for i, array in enumerate(arrays):
            path = tmp_path / f"{mode}{i}"
            array.tofile(path)
            mapped.append(np.memmap(path, array.dtype, mode, shape=array.shape))
        y = call(p, *mapped)
        assert type(y) is np.ndarray
        assert_same(y, expected)
    out = np.memmap(tmp_path / "out", expected.dtype, "w+", shape=expected.shape)
    assert call(p, *arrays, out=out) is out
    out.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out", expected.dtype).reshape(expected.shape), expected)


def test_two_views_of_one_buffer_as_arguments() -> None:
    """Input, weight and bias may overlap each other: only ``out`` may not."""
    memory = np.arange(200, dtype=np.float64) % 7 - 3
    x, w, b = memory[:60].reshape(1, 2, 5, 6), memory[30:66].reshape(2, 2, 3, 3), memory[59:61]
    copies = [array.copy() for array in (x, w, b)]
    assert_same(numbaconv.conv2d(x, w, b), numbaconv.conv2d(*copies))


# ---- offsets beyond 2**31 elements, in sparse files -------------------------------------------------------------------
FAR = 2**31 + 12345


def sparse(path: Path, dtype: type, size: int) -> np.ndarray:
    return np.memmap(path, dtype, "w+", shape=(size,))


def test_input_beyond_two_gibi_elements(tmp_path: Path) -> None:
    """Three cells of a row of 3 * 2**31 int8 are read, the last beyond 2**32: offsets are 64-bit."""
    row = sparse(tmp_path / "row", np.int8, 2 * FAR + 1)
    row[[0, FAR, 2 * FAR]] = 3, 5, 7
    y = numbaconv.conv1d(row[None, None], np.ones((1, 1, 1), np.int8), stride=FAR)
    np.testing.assert_array_equal(y, [[[3, 5, 7]]])
    y = numbaconv.conv1d(row[None, None], np.array([[[1, 10]]], np.int8), stride=FAR, dilation=FAR)
    np.testing.assert_array_equal(y, [[[53, 75]]])
    z = numbaconv.conv1d(row[None, None], np.array([[[1, 2, 4]]], np.int8), dilation=FAR)
    np.testing.assert_array_equal(z, [[[3 + 10 + 28]]])


def test_result_beyond_two_gibi_elements(tmp_path: Path) -> None:
    """Two images, 2**31 elements apart in ``out``, the second also backwards."""
    buffer = sparse(tmp_path / "out", np.int8, FAR + 8)
    out = np.lib.stride_tricks.as_strided(buffer, (2, 1, 4), (FAR, 4, 1))
    x = np.array([[[1, 2, 3, 4]], [[5, 6, 7, 8]]], np.int8)
    for view in (out, out[::-1]):
        buffer[:4] = buffer[FAR : FAR + 4] = 90
        numbaconv.conv1d(x, np.ones((1, 1, 1), np.int8), out=view)
        np.testing.assert_array_equal(view, x)
    assert not buffer[4:100].any() and not buffer[FAR - 100 : FAR].any()
