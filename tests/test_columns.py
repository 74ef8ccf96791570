"""unfold and fold against plain loops, torch's recorded numbers and each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbaconv

UNFOLD = {1: numbaconv.unfold1d, 2: numbaconv.unfold2d, 3: numbaconv.unfold3d}
FOLD = {1: numbaconv.fold1d, 2: numbaconv.fold2d, 3: numbaconv.fold3d}
DTYPES = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8")

# size, kernel_size, dilation, padding, stride
GEOMETRIES = (
    ((6,), (3,), 1, 0, 1),
    ((6,), 2, (2,), (3,), [4]),  # stride beyond the kernel: cells in no block
    ((1,), 1, 1, 5, 2),  # most blocks see padding only
    ((4, 5), (2, 3), 1, 0, 1),
    ((5, 4), 2, (2, 1), (1, 0), (2, 1)),
    ((3, 4), (4, 2), (1, 3), [3, 2], (3, 2)),
    ((3, 4, 5), (2, 1, 3), 1, 0, 1),
    ((3, 4, 3), 2, (2, 1, 2), (1, 0, 2), (1, 3, 2)),
)
RECORDED = {
    case["id"]: case["outcome"] for case in json.loads((Path(__file__).parent / "data" / "torch_behaviours.json").read_text())["cases"]
}


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def recorded_input(*shape: int) -> np.ndarray:
    """The input of torch's recorded cases."""
    return ((np.arange(math.prod(shape)) * 7) % 11 - 5.0).reshape(shape)


def whole_numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Small integers, exact in every dtype; for uint8 modulo 256."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-5, 6, shape)
    return (x + 1j * rng.integers(-5, 6, shape) if dtype.startswith("complex") else x).astype(dtype_of(dtype))


def full(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * rank if len(values) == 1 else values


def block_cells(size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> list[list[tuple[int, ...] | None]]:
    """For every tap, for every block, the cell it reads, or None in the padding: the definition, one cell at a time."""
    rank = len(size)
    kernel, dilation, padding, stride = (full(v, rank) for v in (kernel, dilation, padding, stride))
    counts = [(i + 2 * p - d * (k - 1) - 1) // s + 1 for i, p, d, k, s in zip(size, padding, dilation, kernel, stride)]
    rows = []
    for tap in np.ndindex(*kernel):
        row: list[tuple[int, ...] | None] = []
        for block in np.ndindex(*counts):
            cell = tuple(b * s + t * d - p for b, s, t, d, p in zip(block, stride, tap, dilation, padding))
            row.append(cell if all(0 <= c < i for c, i in zip(cell, size)) else None)
        rows.append(row)
    return rows


def unfold_loops(x: np.ndarray, *geometry: Any) -> np.ndarray:
    """x of shape (N, C, *size)."""
    cells = block_cells(x.shape[2:], *geometry)
    columns = np.zeros((x.shape[0], x.shape[1], len(cells), len(cells[0])), x.dtype)
    for n, c in np.ndindex(*x.shape[:2]):
        for t, row in enumerate(cells):
            for b, cell in enumerate(row):
                if cell is not None:
                    columns[n, c, t, b] = x[(n, c, *cell)]
    return columns.reshape(x.shape[0], -1, len(cells[0]))


def fold_loops(columns: np.ndarray, size: tuple[int, ...], *geometry: Any) -> np.ndarray:
    cells = block_cells(size, *geometry)
    channels = columns.shape[1] // len(cells)
    parts = columns.reshape(columns.shape[0], channels, len(cells), len(cells[0]))
    wide = np.complex128 if columns.dtype.kind == "c" else np.float64
    image = np.zeros((columns.shape[0], channels, *size), wide)
    for n, c in np.ndindex(*image.shape[:2]):
        for t, row in enumerate(cells):
            for b, cell in enumerate(row):
                if cell is not None:
                    image[(n, c, *cell)] += wide(parts[n, c, t, b])
    return (image.astype(np.int64) if columns.dtype.kind in "iu" else image).astype(columns.dtype)


def assert_fresh(result: np.ndarray, expected: np.ndarray) -> None:
    assert type(result) is np.ndarray
    assert result.dtype == expected.dtype and result.dtype.isnative
    assert result.flags.c_contiguous and result.flags.writeable
    np.testing.assert_array_equal(result, expected)


# ---- values --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_against_loops(geometry: tuple[Any, ...], dtype: str) -> None:
    size, *window = geometry
    rank = len(size)
    x = whole_numbers((2, 3, *size), dtype)
    expected = unfold_loops(x, *window)
    assert_fresh(UNFOLD[rank](x, *window), expected)
    assert_fresh(UNFOLD[rank](x[1], *window), expected[1])

    columns = whole_numbers(expected.shape, dtype, seed=1)
    image = fold_loops(columns, size, *window)
    assert_fresh(FOLD[rank](columns, size, *window), image)
    assert_fresh(FOLD[rank](columns[1], size, *window), image[1])


@pytest.mark.parametrize(
    ("case_id", "compute"),
    [
        ("fold.unfold", lambda a: numbaconv.unfold(a(1, 2, 4, 5), (2, 3))),
        ("fold.unfold_all", lambda a: numbaconv.unfold(a(1, 2, 5, 5), 2, dilation=2, padding=1, stride=2)),
        ("fold.unfold_unbatched", lambda a: numbaconv.unfold(a(2, 4, 4), 2)),
        ("fold.fold", lambda a: numbaconv.fold(a(1, 8, 9), (4, 4), 2)),
        ("fold.fold_all", lambda a: numbaconv.fold(a(1, 8, 9), (5, 5), 2, dilation=2, padding=1, stride=2)),
        ("fold.fold_unbatched", lambda a: numbaconv.fold(a(8, 9), (4, 4), 2)),
        ("fold.pixel_check", lambda a: numbaconv.fold(numbaconv.unfold(a(1, 1, 4, 4), 2), (4, 4), 2)),
        ("empty.batch0_unfold", lambda a: numbaconv.unfold(a(0, 2, 5, 5), 3)),
        ("empty.batch0_fold", lambda a: numbaconv.fold(a(0, 18, 9), (5, 5), 3)),
    ],
)
def test_torch_recorded(case_id: str, compute: Any) -> None:
    outcome = RECORDED[case_id]
    assert_fresh(compute(recorded_input), np.array(outcome["values"], outcome["dtype"]).reshape(outcome["shape"]))


def test_two_dimensional_by_default() -> None:
    assert numbaconv.unfold is numbaconv.unfold2d and numbaconv.fold is numbaconv.fold2d


def test_unfold_of_a_ramp() -> None:
    """The columns of torch's documentation: channel-major, then the taps, the last axis fastest."""
    x = np.arange(18.0).reshape(1, 2, 3, 3)
    rows = [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    np.testing.assert_array_equal(numbaconv.unfold(x, 2), [rows + [[9 + v for v in row] for row in rows]])


def test_fold_of_unfold_counts_the_blocks() -> None:
    counts = numbaconv.fold(numbaconv.unfold(np.ones((1, 1, 4, 5)), 3, padding=1), (4, 5), 3, padding=1)
    along_h, along_w = np.array([2, 3, 3, 2]), np.array([2, 3, 3, 3, 2])
    np.testing.assert_array_equal(counts[0, 0], np.outer(along_h, along_w))


@pytest.mark.parametrize("padding", [((0, 2), (1, 0)), "same", "same_upper", "same_lower", "valid"])
def test_columns_are_what_the_convolution_reads(padding: Any) -> None:
    """A convolution is its weight matrix times the columns, for every form of padding that it takes."""
    x, w = whole_numbers((2, 3, 5, 6), "float32"), whole_numbers((4, 3, 2, 3), "float32", seed=1)
    y = numbaconv.conv2d(x, w, padding=padding)
    columns = numbaconv.unfold(x, (2, 3), padding=padding)
    np.testing.assert_array_equal((w.reshape(4, -1) @ columns).reshape(y.shape), y)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_fold_is_the_transpose(data: st.DataObject) -> None:
    """sum(unfold(x) * y) == sum(x * fold(y)), exactly in whole numbers, for any geometry."""
    rank = data.draw(st.integers(1, 3))

    def axes(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(least, most), min_size=rank, max_size=rank)))

    kernel, dilation, padding, stride = axes(1, 4), axes(1, 3), axes(0, 4), axes(1, 5)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding)]
    size = tuple(n + data.draw(st.integers(0, 4)) for n in least)
    x = whole_numbers((1, 2, *size), "int64")
    columns = UNFOLD[rank](x, kernel, dilation, padding, stride)
    y = whole_numbers(columns.shape, "int64", seed=1)
    folded = FOLD[rank](y, size, kernel, dilation, padding, stride)
    assert folded.shape == x.shape
    assert (columns * y).sum() == (x * folded).sum()


# ---- arithmetic ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("dtype", "large"), [("float16", 2048.0), ("bfloat16", 256.0)])
def test_halves_are_summed_in_float32(dtype: str, large: float) -> None:
    """Next to ``large`` a single one is lost in the half precision; eight of them are not in float32."""
    columns = np.ones((9, 9), dtype_of(dtype))
    columns[0] = large
    middle = numbaconv.fold1d(columns, 17, 9)[0, 8]
    assert float(middle) == large + 8


def test_integers_are_exact_modulo_their_range() -> None:
    columns = np.full((4, 3), 100, np.int8)
    np.testing.assert_array_equal(numbaconv.fold1d(columns, 6, 4), np.array([[100, 200, 300, 300, 200, 100]]).astype(np.int8))
    huge = np.full((2, 2), 2**63 - 1, np.int64)
    np.testing.assert_array_equal(numbaconv.fold1d(huge, 3, 2), [[2**63 - 1, -2, 2**63 - 1]])


def test_nonfinite_values_pass_without_warning() -> None:
    columns = np.array([[np.inf, 1], [-np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(numbaconv.fold1d(columns, 3, 2), np.array([[np.inf, -np.inf, np.nan]], np.float32))
    assert numbaconv.fold1d(np.full((2, 2), 60000, np.float16), 3, 2)[0, 1] == np.inf


# ---- layouts -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x[..., ::-1, ::-1],
        lambda x: np.asfortranarray(x),
        lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: np.broadcast_to(x[:, :, :1], x.shape),
        lambda x: np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    ],
    ids=["reversed", "fortran", "channels_last", "byte_swapped", "zero_stride", "unaligned"],
)
def test_layouts(layout: Any) -> None:
    x = layout(whole_numbers((2, 3, 4, 5), "float32"))
    before = x.copy()
    assert_fresh(numbaconv.unfold(x, 2, 1, 1, 2), unfold_loops(np.array(x, np.float32), 2, 1, 1, 2))
    columns = layout(whole_numbers((2, 12, 1, 5), "float32"))[:, :, 0]
    assert_fresh(numbaconv.fold(columns, (2, 6), 2), fold_loops(np.array(columns, np.float32), (2, 6), 2, 1, 0, 1))
    np.testing.assert_array_equal(x, before)


def test_no_channels() -> None:
    assert numbaconv.unfold(np.zeros((2, 0, 4, 4)), 3).shape == (2, 0, 4)
    assert numbaconv.fold(np.zeros((2, 0, 4)), (4, 4), 3).shape == (2, 0, 4, 4)


def test_huge_stride_and_padding() -> None:
    np.testing.assert_array_equal(numbaconv.unfold1d(np.ones((1, 4)), 2, stride=2**61), [[1.0], [1.0]])
    np.testing.assert_array_equal(numbaconv.unfold1d(np.ones((1, 1)), 2, 2**60, 2**60, 2**61), [[0.0], [1.0]])


# ---- refusals ------------------------------------------------------------------------------------------------------------
X, COLUMNS = np.zeros((1, 2, 4, 4)), np.zeros((1, 8, 9))


@pytest.mark.parametrize(
    ("compute", "error", "message"),
    [
        (lambda: numbaconv.unfold(np.zeros((4, 4)), 2), ValueError, r"^input must have 3 .* or 4 .*unfold2d, got shape \(4, 4\)"),
        (lambda: numbaconv.unfold(np.zeros((1, 2, 4, 4, 4)), 2), ValueError, r"^input must have 3 .* or 4 "),
        (lambda: numbaconv.unfold3d(X[0], 2), ValueError, r"^input must have 4 .* or 5 .*unfold3d"),
        (lambda: numbaconv.unfold([[1.0]], 2), TypeError, "^input must be a numpy.ndarray, got list"),
        (lambda: numbaconv.unfold(X > 0, 2), TypeError, "^input must have one of the dtypes .* got bool"),
        (lambda: numbaconv.unfold(np.zeros((1, 2, 0, 4)), 1), ValueError, "^input must have at least one element along every"),
        (lambda: numbaconv.unfold(X, 5), ValueError, r"^kernel extent .* must not exceed the padded input, got extent \(5, 5\)"),
        (lambda: numbaconv.unfold(X, 3, dilation=2), ValueError, "^kernel extent"),
        (lambda: numbaconv.unfold(X, 0), ValueError, "^kernel_size must be at least 1, got 0"),
        (lambda: numbaconv.unfold(X, 2.0), TypeError, "^kernel_size must be an integer"),
        (lambda: numbaconv.unfold(X, (2, 2, 2)), ValueError, "^kernel_size must be an integer or a tuple or list of 1 or 2"),
        (lambda: numbaconv.unfold(X, 2, stride=0), ValueError, "^stride must be at least 1, got 0"),
        (lambda: numbaconv.unfold(X, 2, dilation=0), ValueError, "^dilation must be at least 1, got 0"),
        (lambda: numbaconv.unfold(X, 2, padding=-1), ValueError, "^padding must be at least 0, got -1"),
        (lambda: numbaconv.unfold(X, 2, padding="full"), ValueError, "^padding must be integers, pairs or one of"),
        (lambda: numbaconv.unfold(X, 2, dilation=2**61, padding=2**61), ValueError, r"must be below 2\*\*62"),
        (lambda: numbaconv.unfold(X, (1, 2**30), padding=(0, 2**30)), MemoryError, "GiB"),
        (lambda: numbaconv.fold(np.zeros((1, 8, 8)), (4, 4), 2), ValueError, r"^input must have a column for each of 3 \* 3 = 9 blocks"),
        (
            lambda: numbaconv.fold(np.zeros((1, 7, 9)), (4, 4), 2),
            ValueError,
            r"^input must have a multiple of prod\(kernel_size\) = 4 rows",
        ),
        (lambda: numbaconv.fold(np.zeros(9), (4, 4), 2), ValueError, r"^input must have 2 .* or 3 .*fold2d, got shape \(9,\)"),
        (lambda: numbaconv.fold(COLUMNS > 0, (4, 4), 2), TypeError, "^input must have one of the dtypes"),
        (lambda: numbaconv.fold(COLUMNS, (4, 4, 4), 2), ValueError, "^output_size must be an integer or a tuple"),
        (lambda: numbaconv.fold(COLUMNS, (4, 0), 2), ValueError, r"^output_size\[1\] must be at least 1, got 0"),
        (lambda: numbaconv.fold(COLUMNS, 4.0, 2), TypeError, "^output_size must be an integer"),
        (lambda: numbaconv.fold(np.zeros((1, 2, 1)), 2**20, 1, stride=2**20), MemoryError, "GiB"),
    ],
)
def test_refusals(compute: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compute()


def test_torch_agrees_on_random_geometries() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    rng = np.random.default_rng(0)
    computed = 0
    while computed < 60:
        size, kernel, dilation, padding, stride = (
            tuple(map(int, rng.integers(lo, hi, 2))) for lo, hi in ((1, 9), (1, 4), (1, 4), (0, 4), (1, 6))
        )
        x = whole_numbers((2, 3, *size), "float64", seed=computed)
        try:
            expected = torch.nn.functional.unfold(torch.from_numpy(x), kernel, dilation, padding, stride)
        except RuntimeError:
            with pytest.raises(ValueError, match=r"^kernel extent"):
                numbaconv.unfold(x, kernel, dilation, padding, stride)
            continue
        computed += 1
        columns = numbaconv.unfold(x, kernel, dilation, padding, stride)
        assert_fresh(columns, expected.numpy())
        folded = torch.nn.functional.fold(expected, size, kernel, dilation, padding, stride)
        assert_fresh(numbaconv.fold(columns, size, kernel, dilation, padding, stride), folded.numpy())
