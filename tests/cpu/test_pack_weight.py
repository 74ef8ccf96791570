"""The weight's order for implicit GEMM, against plain loops: every way in which its elements can lie in memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from numbaconv.cpu.gemm import TILE_ROWS
from numbaconv.cpu.pack_weight import pack_pieces, pack_weight
from numbaconv.cpu.target import target

KERNEL = 9


def expected(
    memory: np.ndarray,
    base: int,
    strides: Sequence[int],
    counts: Sequence[int],
    at_once: int,
    taps: Sequence[int],
    together: int,
    rows: int,
) -> np.ndarray:
    """(groups, row blocks, K, rows, together); strides and counts of groups, filters and channels."""
    groups, filters, channels = counts
    blocks = [range(first, min(first + at_once, channels)) for first in range(0, channels, at_once)]
    products = [(tap, c) for block in blocks for tap in taps for c in block[::together]]
    packed = np.zeros((groups, -(-filters // rows), len(products), rows, together), memory.dtype)
    for group, filter, (k, (tap, channel)), i in itertools.product(range(groups), range(filters), enumerate(products), range(together)):
        if channel + i < channels:
            place = base + group * strides[0] + filter * strides[1] + (channel + i) * strides[2] + tap
            packed[group, filter // rows, k, filter % rows, i] = memory[place]
    return packed


@pytest.mark.parametrize("filters, channels, at_once", [(1, 1, 4), (8, 5, 7), (19, 40, 7), (21, 6, 6)])
@pytest.mark.parametrize(
    "taps, of_filter, of_channel",
    [
        (range(KERNEL), "many", KERNEL),  # a convolution
        (range(KERNEL)[::-1], KERNEL, "many"),  # the gradient of its input
        (range(0, KERNEL, 2), KERNEL, "many"),  # a part of one with stride
        (range(2), "many", 2),
        ([0], "many", 1),
        ([0], 1, "many"),
        (range(0, 50, 10), 3, 200),
        ([3, 90], 1000, 100),
        ([-t for t in range(KERNEL)], -500, -KERNEL),
        ([0, 0, 0], 0, 0),  # one number everywhere
        ([0, 1, 1], 7, 2),
        ([], 9, 9),
    ],
)
@pytest.mark.parametrize("dtype, together", [("float32", 1), ("float64", 1), ("int64", 1), ("int16", 2)])
@pytest.mark.parametrize("whole_vectors", [False, True])
def test_order(
    taps: Sequence[int], of_filter: int | str, of_channel: int | str, filters: int, channels: int, at_once: int, dtype: str, together: int,
    whole_vectors: bool,
) -> None:  # fmt: skip
    strides = [20_000, channels * KERNEL if of_filter == "many" else of_filter, filters * KERNEL if of_channel == "many" else of_channel]
    rows = target().lanes(dtype) if whole_vectors and together == 1 else TILE_ROWS
    at_once += -at_once % together
    memory, base = np.random.default_rng(0).integers(1, 100, 100_000).astype(dtype), 50_000
    whole = expected(memory, base, strides, (2, filters, channels), at_once, taps, together, rows)
    packed = np.full(whole.size + 7, 111, dtype)
    address, numbers = memory.ctypes.data + base * memory.itemsize, [*strides, 2, filters, channels, at_once, together, rows]
    assert pack_weight(address, np.array(numbers, np.int64), np.array(taps, np.int64), packed, 3)
    np.testing.assert_array_equal(packed[3 : len(packed) - 4], whole.reshape(-1))
    assert (packed[:3] == 111).all() and (packed[len(packed) - 4 :] == 111).all(), "elements around were written"
    shared, finite = np.full_like(packed, 111), np.ones(1, np.int64)
    pack_pieces(
        address,
        np.array(numbers, np.int64),
        np.array(taps, np.int64),
        shared,
        3,
        finite,
        2 * -(-filters // rows) * -(-channels // at_once) if taps else 0,
        np.zeros(1, np.int64),
    )
    assert finite[0] == 1 and shared.tobytes() == packed.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_is_seen(bad: float, dtype: str) -> None:
    weight = np.full((11, 5, 3), np.finfo(dtype).max, dtype)
    numbers = np.array([0, 15, 3, 1, 11, 5, 5, 1, TILE_ROWS])
    arguments = weight.ctypes.data, numbers, np.arange(3), np.empty(2 * TILE_ROWS * 15, dtype), 0
    assert pack_weight(*arguments)
    for place in range(weight.size):
        before, weight.flat[place] = weight.flat[place], bad
        assert not pack_weight(*arguments)
        finite = np.ones(1, np.int64)
        pack_pieces(*arguments, finite, 2, np.zeros(1, np.int64))
        assert finite[0] == 0
        weight.flat[place] = before
