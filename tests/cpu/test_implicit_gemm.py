"""Implicit GEMM where its blocks end: K blocks, panels, tiles, tasks; every way of packing; bits that nothing else may change.

The table of all algorithms (test_cases.py) holds small problems; those here are just large enough to have several blocks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numbaconv import Problem, reference
from numbaconv.axes import UNIT_LINE, Line, merged, pixel_count, taps_that_meet
from numbaconv.cpu import threads
from numbaconv.cpu.elements import kind_of
from numbaconv.cpu.gemm import TILE_ROWS, TILE_VECTORS
from numbaconv.cpu.gemm_costs import DEPTH, blocking
from numbaconv.cpu.gemm_shape import MOST_PARTS, division
from numbaconv.cpu.implicit_gemm import ImplicitGemm, ImplicitGemmSetup
from numbaconv.cpu.target import Target, _from_features, target

from ..cases import call, case, dtype_of, integer_arrays, normal_arrays
from ..checks import always_parallel, assert_same, check_exact
from ..layouts import channels_last, read_only, repeated, with_axes_in_order, with_steps

WIDTH = TILE_VECTORS * target().lanes("float32")

# Dilated so far that pieces of the result leave taps out: in each rank, strided, and with taps that read padding alone everywhere.
CUT = [
    case("fwd", (192,), (3,), mb=2, ic=60, oc=66, p=128, d=128, b=1),
    case("fwd", (41, 50), (3, 3), ic=48, oc=2 * 72, g=2, s=2, p=18, d=18, b=1, t="f64"),
    case("fwd", (20, 22, 24), (2, 3, 3), ic=9, oc=27, p=(4, 8, 9), d=(8, 8, 9), b=1),
    case("fwd", (30, 31), (5, 5), ic=9, oc=27, p=24, d=12, b=1),
]

# Few pixels and many rows of the weight: pixels are broadcast, and whole, half and single rows of a tile are left over.
TURNED = [
    case("fwd", (7, 7), (3, 3), mb=2, ic=30, oc=100, p=1, b=1),
    case("fwd", (7, 7), (1, 1), ic=2 * (DEPTH + 1), oc=2 * 96, g=2, b=1, mb=2, t="f64"),
    case("fwd", (14, 14), (1, 1), ic=400, oc=128, b=1),
    case("fwd", (2, 4, 5), (1, 3, 3), ic=30, oc=200, p=(0, 1, 1), mode="circular"),
    case("fwd", (13, 13), (3, 3), ic=61, oc=130, p=4, d=4, s=2, b=1, t="s32"),
    case("fwd", (7, 7), (3, 3), ic=30, oc=100, p=1, b=1, t="bf16"),
    case("fwd", (10,), (2 * DEPTH + 5,), ic=2, oc=100, p=DEPTH),
    case("igrad", (7, 7), (3, 3), mb=2, ic=100, oc=30, p=1, b=1),
]

BLOCKS = [
    # K: one block exactly, one product more, uneven blocks, a block of each channel, a kernel that is several blocks
    case("fwd", (40,), (1,), ic=DEPTH, oc=TILE_ROWS + 1),
    case("fwd", (40,), (1,), ic=DEPTH + 1, oc=TILE_ROWS + 1, b=1),
    case("fwd", (9, 10), (3, 3), ic=61, oc=9, p=1, b=1),
    case("fwd", (6, 7, 9), (3, 3, 3), ic=29, oc=5, p=1, t="f64"),
    case("fwd", (17, 18), (13, 12), ic=3, oc=2, p=4),
    case("fwd", (40, 45), (31, 29), ic=2, oc=3, p=((3, 5), (6, 6)), b=1),
    case("fwd", (700,), (2 * DEPTH + 5,), ic=2, oc=2, p=30, t="f64"),
    # pixels: one vector and one more, one panel and one more, several tasks and one pixel more
    *(case("fwd", (n,), (3,), ic=3, oc=TILE_ROWS, p=1) for n in (WIDTH // TILE_VECTORS + 1, WIDTH, WIDTH + 1, 8 * WIDTH, 16 * WIDTH + 1)),
    case("fwd", (3, 1, 300), (2, 1, 5), ic=3, oc=17, mb=2, g=1, p=(1, 0, 2)),
    # taps that read padding alone are left out, in runs
    case("fwd", (33, 35), (3, 3), ic=25, oc=9, p=12, d=12, b=1),
    case("fwd", (5, 6), (5, 5), ic=9, oc=4, p=9, d=3),
    # away from the borders a table serves many panels, also where the taps run backwards
    case("fwd", (5, 40, 24), (3, 3, 3), ic=3, oc=4, p=1, b=1),
    case("fwd", (80, 97), (7, 7), ic=3, oc=4, s=2, p=3, mode="reflect"),
    case("fwd", (300, 7), (29, 7), ic=1, oc=4, p=((9, 2), 3)),
    case("igrad", (4, 50, 48), (2, 3, 3), ic=2, oc=3, p=(0, 1, 1), d=(1, 2, 1)),
    # one tap of every second cell, of which the next panel's lines are asked for
    case("fwd", (40, 45), (1, 1), ic=2 * DEPTH + 1, oc=9 * TILE_ROWS, s=2, b=1),
    # groups, batches, few and many filters
    case("fwd", (20, 30), (3, 3), ic=6, oc=3 * 11, g=3, mb=3, p=1),
    case("fwd", (4, 3), (1, 1), ic=70, oc=130, mb=5, t="f64"),
    # transposed: every remainder of the stride has its own taps, some none
    case("igrad", (9, 11), (3, 3), ic=4, oc=70, s=2, p=1, op=1, b=1),
    case("igrad", (4, 5, 6), (2, 3, 4), ic=6, oc=50, s=(1, 2, 3), d=(1, 2, 1), p=(0, 1, 2), t="f64"),
    case("igrad", (5, 20), (3, 3), ic=3, oc=20, s=(4, 1), mb=2, b=1),
    # other dtypes: several K blocks, with pairs of channels and one left over; more panels than are staged at once
    *(
        case("fwd", (9, 10), (3, 3), ic=61, oc=9, p=1, b=1, t=t)
        for t in ("f16", "bf16", "s8", "u8-s32", "s16", "s32", "s64", "c64", "c128")
    ),
    case("fwd", (40,), (1,), ic=2 * DEPTH + 1, oc=TILE_ROWS + 1, b=1, t="u8"),
    case("fwd", (17, 18), (13, 12), ic=3, oc=2, p=4, t="s16-s32"),
    case("fwd", (700,), (2 * DEPTH + 5,), ic=3, oc=2, p=30, t="bf16"),
    case("fwd", (30, 41), (1, 1), ic=3, oc=900, t="s8"),
    case("fwd", (33, 35), (3, 3), ic=25, oc=9, p=12, d=12, b=1, t="s8"),
    case("igrad", (9, 11), (3, 3), ic=4, oc=71, s=2, p=1, op=1, b=1, t="f16"),
    case("igrad", (9, 11), (3, 3), ic=4, oc=71, s=2, p=1, op=1, b=1, t="s8-s32"),
    case("igrad", (9, 11), (3, 3), ic=4, oc=71, s=2, p=1, op=1, b=1, t="c64"),
    case("fwd", (40,), (1,), ic=DEPTH // 2 + 1, oc=TILE_ROWS + 1, b=1, t="c64"),
    case("fwd", (20, 30), (3, 3), ic=6, oc=3 * 11, g=3, mb=3, p=1, b=1, t="c128"),
    case("fwd", (17, 18), (13, 12), ic=3, oc=2, p=4, t="c64"),
    case("fwd", (33, 35), (3, 3), ic=25, oc=9, p=12, d=12, b=1, t="c64"),
    *CUT,
    *TURNED,
]

SPACINGS = [
    case("fwd", size, kernel, ic=5, oc=6, s=s, d=d, p=p, mode=mode, b=1)
    for size, kernel, d, p in (((9, 37), (3, 4), 1, (1, (2, 1))), ((6, 5), (2, 3), (1, 2), (1, 2)))
    for s in (1, (1, 2), (2, 3))
    for mode in ("zeros", "reflect", "replicate", "circular")
] + [
    case("fwd", (9, 37), (3, 4), ic=5, oc=6, s=s, p=1, mode=mode, b=1, t=t)
    for s in (1, 2, 3)
    for mode in ("zeros", "reflect")
    for t in ("f16", "bf16", "s8", "u8-s32", "s16", "c64", "c128")
]  # fmt: skip


@pytest.mark.parametrize("text", BLOCKS + SPACINGS)
def test_exact(text: str) -> None:
    check_exact(Problem.parse(text), "implicit_gemm")


@pytest.mark.parametrize("size, kernel", [((40, 1), (1, 1)), ((40, 1), (3, 1)), ((40, 2), (3, 1)), ((6, 7, 1), (2, 3, 2))])
def test_narrow_images(size: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """Every lane or two is a row of its own: up to as many entries a vector as it has lanes."""
    check_exact(Problem.parse(case("fwd", size, kernel, ic=3, oc=4, p=1)), "implicit_gemm")


@pytest.mark.parametrize("axis", [0, 1])
def test_a_stride_beyond_everything(axis: int) -> None:
    """One result along the axis; multiplied with the step between cells in memory the stride does not fit 64 bits."""
    steps = [1, 1]
    steps[axis] = 2**61
    p = Problem.parse(case("fwd", (8, 20), (3, 3), ic=3, oc=4, p=1, s=steps))
    x, w, _ = integer_arrays(p)
    assert_same(call(p, with_steps(x, (1, 1, 7, 9)), w, None, algorithm="implicit_gemm"), reference.convolve(p, x, w))


# ---- layouts -----------------------------------------------------------------------------------------------------------
LAYOUTS = {
    "channels last": channels_last,
    "Fortran order": lambda a: with_axes_in_order(a, range(a.ndim)[::-1]),
    "every second column": lambda a: with_steps(a, (1, 1, 1, 2)),
    "every third column backwards": lambda a: with_steps(a, (1, 2, -1, -3)),
    "images backwards": lambda a: with_steps(a, (-1, -1, 3, 1)),
    "read-only": read_only,
}
STRIDED = [case("fwd", (10, 51), (3, 3), mb=2, ic=25, oc=11, s=s, p=1, b=1, t=t) for s in (1, 2) for t in ("f32", "f16", "bf16", "c64")]
INTEGERS = [case("fwd", (10, 51), (3, 3), mb=2, ic=25, oc=11, s=s, p=1, b=1, t=t) for s in (1, 2) for t in ("s8", "s16-s32", "s32")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", STRIDED)
def test_layouts_of_the_input_do_not_change_a_bit(text: str, layout: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    expected = call(p, x, w, b, algorithm="implicit_gemm")
    assert call(p, LAYOUTS[layout](x), LAYOUTS[layout](w), b, algorithm="implicit_gemm").tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
@pytest.mark.parametrize("text", [*STRIDED, case("igrad", (5, 26), (3, 3), mb=2, ic=25, oc=31, s=2, p=1)])
def test_layouts_of_the_result_do_not_change_a_bit(text: str, layout: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    expected = call(p, x, w, b, algorithm="implicit_gemm")
    check_strided_result(p, x, w, b, expected, LAYOUTS[layout], np.nan)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
@pytest.mark.parametrize("text", INTEGERS)
def test_layouts_of_integers(text: str, layout: str) -> None:
    p = Problem.parse(text)
    x, w, b = integer_arrays(p)
    expected = reference.convolve(p, x, w, b)
    assert_same(call(p, LAYOUTS[layout](x), LAYOUTS[layout](w), b, algorithm="implicit_gemm"), expected)
    check_strided_result(p, x, w, b, expected, LAYOUTS[layout], 0x5A)


def check_strided_result(p, x, w, b, expected, layout, poison) -> None:  # type: ignore[no-untyped-def]
    """The same bits in an ``out`` of another layout, and nothing written between its cells."""
    out = layout(np.full_like(expected, poison))
    untouched = around(out).copy()
    call(p, x, w, b, algorithm="implicit_gemm", out=out)
    assert out.tobytes() == expected.tobytes()
    out[...] = poison
    assert around(out).tobytes() == untouched.tobytes(), "cells between those of out were written"


def around(view: np.ndarray) -> np.ndarray:
    """The whole memory that a view was made of, as bytes."""
    while view.base is not None:
        view = view.base
    return np.lib.stride_tricks.as_strided(view, (view.size,), (view.itemsize,)).view(np.uint8)


def test_strides_of_zero() -> None:
    p = Problem.parse(case("fwd", (6, 20), (3, 3), mb=3, ic=4, oc=5, p=1))
    x, w, b = integer_arrays(p)
    for axes in ((0,), (1,), (2, 3), (0, 1, 2, 3)):
        same = repeated(x, axes)
        assert_same(call(p, same, w, b, algorithm="implicit_gemm"), reference.convolve(p, same, w, b))


# ---- bits --------------------------------------------------------------------------------------------------------------
BITS = [
    case("fwd", (12, 31), (3, 3), mb=5, ic=30, oc=20, p=1, b=1),
    case("fwd", (12, 31), (3, 3), mb=5, ic=60, oc=20, g=2, p=2, d=2, s=2),
    case("igrad", (6, 31), (3, 3), mb=5, ic=20, oc=60, s=2, b=1, t="f64"),
    case("fwd", (12, 31), (3, 3), mb=5, ic=30, oc=20, p=1, b=1, t="f16"),
    case("fwd", (40, 31), (3, 3), mb=5, ic=61, oc=20, p=1, t="bf16"),
    case("igrad", (6, 31), (3, 3), mb=5, ic=20, oc=60, s=2, b=1, t="f16"),
    case("fwd", (12, 31), (3, 3), mb=5, ic=30, oc=20, p=1, b=1, t="c64"),
]


@pytest.mark.parametrize("text", BITS)
def test_bits_do_not_depend_on_the_batch_or_the_threads(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    together = call(p, x, w, b, algorithm="implicit_gemm")
    alone = [call(replace(p, batch=1), x[i : i + 1], w, b, algorithm="implicit_gemm") for i in range(p.batch)]
    assert together.tobytes() == np.concatenate(alone).tobytes()
    with always_parallel():
        assert together.tobytes() == call(p, x, w, b, algorithm="implicit_gemm").tobytes()


@pytest.mark.parametrize("dilation", [1, 5])
def test_bits_do_not_depend_on_the_place_of_a_block(dilation: int) -> None:
    """A crop computed alone, with its halo, has the bits of the whole: also where the whole leaves taps out."""
    p = Problem.parse(case("fwd", (30, 40), (3, 3), ic=25, oc=9, p=dilation, d=dilation))
    x, w, b = normal_arrays(p)
    whole = call(p, x, w, b, algorithm="implicit_gemm")
    crop = Problem.parse(case("fwd", (9 + 2 * dilation, 11 + 2 * dilation), (3, 3), ic=25, oc=9, d=dilation))
    padded = np.pad(x, ((0, 0), (0, 0), (dilation, dilation), (dilation, dilation)))
    for row, column in ((0, 0), (3, 5), (21, 29), (10, 7)):
        block = padded[:, :, row : row + 9 + 2 * dilation, column : column + 11 + 2 * dilation]
        part = call(crop, block, w, b, algorithm="implicit_gemm")
        np.testing.assert_array_equal(part, whole[:, :, row : row + 9, column : column + 11])


def test_one_infinite_weight_shows_at_the_border_alone() -> None:
    p = Problem.parse(case("fwd", (30, 60), (3, 3), ic=30, oc=9, p=12, d=12))
    x, w, _ = integer_arrays(p)
    x, w[4, 7, 0, 1] = np.abs(x) + 1, np.inf
    y = call(p, x, w, None, algorithm="implicit_gemm")
    assert np.isnan(y[0, 4, :12]).all() and np.isposinf(y[0, 4, 12:]).all()
    assert np.isfinite(np.delete(y, 4, axis=1)).all()


# ---- integers and halves -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("t, low, high", [("s8", -128, -128), ("u8", 255, 255), ("s16", -(2**15), -(2**15)), ("s16", -(2**15), 2**15 - 1)])
@pytest.mark.parametrize("out", ["", "-s32"])
def test_integers_wrap_at_their_extremes(t: str, low: int, high: int, out: str) -> None:
    """All cells and all weights extreme: a pair of products is 2**31 at -2**15, the one sum that the instruction itself wraps."""
    p = Problem.parse(case("fwd", (5, 20), (3, 3), ic=301, oc=9, p=1, t=t + out))
    x, w, _ = integer_arrays(p)
    x[...], w[...] = low, high
    assert_same(call(p, x, w, None, algorithm="implicit_gemm"), reference.convolve(p, x, w))


@pytest.mark.parametrize("t", ["s8", "u8", "s16", "s16-s32", "s32", "s64"])
def test_long_sums_of_integers_wrap(t: str) -> None:
    check_exact(Problem.parse(case("fwd", (4, 9), (3, 3), ic=1999, oc=3, p=1, b=1, t=t)), "implicit_gemm")


@pytest.mark.parametrize("t, cell", [("f16", 1 / 16), ("bf16", 1 / 2)])
def test_halves_are_rounded_once(t: str, cell: float) -> None:
    """A K block adds less than half a unit in the last place of the bias, 2**15: all would be lost, were sums rounded in between."""
    p = Problem.parse(case("fwd", (30,), (1,), ic=5 * DEPTH, oc=3, b=1, t=t))
    x, w, b = (np.ones_like(a) for a in integer_arrays(p))
    x[...], b[:] = cell, 2.0**15
    assert_same(call(p, x, w, b, algorithm="implicit_gemm"), reference.convolve(p, x, w, b))
    assert float(call(p, x, w, b, algorithm="implicit_gemm")[0, 0, 0]) > 2.0**15


@pytest.mark.parametrize("t", ["f16", "bf16"])
def test_every_half_converts(t: str) -> None:
    """All 65,536 bit patterns through a kernel of one weight, 1: widened, rounded back."""
    p = Problem.parse(case("fwd", (2**16,), (1,), ic=1, oc=1, t=t))
    _, w, _ = integer_arrays(p)
    x = np.arange(2**16, dtype=np.uint16).view(w.dtype).reshape(1, 1, -1)
    with np.errstate(invalid="ignore"):
        assert_same(call(p, x, np.ones_like(w), None, algorithm="implicit_gemm"), x)


@pytest.mark.parametrize("t", ["f16", "bf16"])
def test_halves_round_to_nearest_even(t: str) -> None:
    """Sums halfway between two halves, just beside it, subnormal and beyond the largest; the reference rounds float64 once."""
    p = Problem.parse(case("fwd", (4000,), (1,), ic=2, oc=1, t=t))
    x, w, _ = integer_arrays(p)
    rng = np.random.default_rng(1)
    largest = np.ldexp(rng.integers(1, 256, x.shape[2]), rng.integers(-30, 9, x.shape[2])).astype(x.dtype)
    x[0, 0], x[0, 1], w[...] = largest, np.ldexp(largest.astype(np.float64), rng.integers(-13, -6, x.shape[2])).astype(x.dtype), 1
    assert_same(call(p, x, w, None, algorithm="implicit_gemm"), reference.convolve(p, x, w))


# ---- what it says about itself -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [*BLOCKS[:7], *SPACINGS[:3], *BLOCKS[-16:]])
def test_sizes_are_as_stated(text: str) -> None:
    p = Problem.parse(text)
    _, w, b = integer_arrays(p)
    axes = (slice(None), slice(None)) + (None,) * (3 - p.rank)
    setup = ImplicitGemm().setup(p)
    assert sum(part.nbytes for part in setup.pack(w[axes], b)) == setup.packed_bytes
    result = p.result_channels * int(np.prod(p.result_size)) * dtype_of(p.out_dtype).itemsize
    assert 0 < setup.workspace < threads.most_threads() * (4 << 20) + result


def test_workspace_does_not_grow_with_the_image() -> None:
    small, large = (ImplicitGemmSetup(Problem.parse(case("fwd", (n, n, n), (3, 3, 3), ic=32, oc=64, p=1))) for n in (64, 2048))
    assert large.workspace == small.workspace


@pytest.mark.parametrize("channels, kernel", [(1, 1), (64, 1), (1000, 1), (64, 9), (32, 27), (5, 343), (3, 1000), (7, 0)])
@pytest.mark.parametrize("dtype", ["float32", "int8", "complex64"])
def test_blocking_covers_everything(channels: int, kernel: int, dtype: str) -> None:
    kind = kind_of(dtype)
    at_once, taps = blocking(channels, kernel, kind)
    assert 1 <= at_once <= channels + kind.together - 1 and 1 <= taps <= max(kernel, 1) and kind.products(at_once) * taps <= DEPTH
    assert taps == max(kernel, 1) or at_once == kind.together, "the packed weight runs through all taps of a block of channels"


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
@pytest.mark.parametrize("members", [1, 3, 50])
@pytest.mark.parametrize("near", [20, 5000])
@pytest.mark.parametrize(
    "pixels, most, repeat", [(1, 1, 1), (49, 2, 49), (196, 5, 49), (784, 7, 7), (784, 16, 196), (12544, 7, 7), (80001, 16, 300)]
)
def test_division_covers_every_panel_once(pixels: int, most: int, repeat: int, members: int, near: int, threads: int) -> None:
    for rows in (3, 128, 2048):
        d, panels = division(pixels, rows, 16, 64, members, most, repeat, near, threads), -(-pixels // (TILE_VECTORS * 16))
        firsts = [run * d.panels - min(run, d.short) for run in range(d.runs)]
        lasts = [min(first + d.panels - (run < d.short), panels) for run, first in enumerate(firsts)]
        assert [0, *lasts] == [*firsts, panels] and all(first < last for first, last in zip(firsts, lasts))
        units = -(-rows // TILE_ROWS)
        assert d.panels <= most and 1 <= d.splits <= units and (d.splits == units or d.panels * units <= near * d.splits)
        assert threads > 1 or d.splits == 1 or d.panels * units > near * (d.splits - 1)


def test_division_gives_every_thread_as_much() -> None:
    """A small plane is cut into runs."""
    assert division(784, 128, 16, 256, 1, 7, 7, 1000, 2)[2:] == (4, 1)


REASONS = {
    case("igrad", (20, 20), (3, 3), s=MOST_PARTS): "convolutions",
}


@pytest.mark.parametrize("text", REASONS)
def test_declines_with_a_reason(text: str) -> None:
    reason = ImplicitGemm().supports(Problem.parse(text))
    assert reason is not None and REASONS[text] in reason


def test_declines_without_the_compiler_and_without_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem.parse(case("fwd", (9,), (3,)))
    assert ImplicitGemm().supports(p) is None
    assert "channels" in str(ImplicitGemm().supports(replace(p, in_channels=0)))
    assert "weight" in str(ImplicitGemm().supports(replace(p, direction="weight_grad")))
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", True)
    assert "NUMBA_DISABLE_JIT" in str(ImplicitGemm().supports(p))


@pytest.mark.skipif(target().registers < 32, reason="smaller tiles leave few lanes empty")
@pytest.mark.parametrize("text", [TURNED[0], *TURNED[4:]])
def test_few_pixels_are_broadcast(text: str) -> None:
    assert ImplicitGemmSetup(Problem.parse(text)).turned


@pytest.mark.parametrize("text", CUT)
def test_dilated_taps_are_left_out_by_pieces(text: str) -> None:
    p = Problem.parse(text)
    setup = ImplicitGemmSetup(p)
    assert len(setup.parts) > 1
    assert sum(pixel_count(part) for part in setup.parts) == np.prod(p.out_size)
    for axes, size, whole in zip(zip(*setup.parts), p.source_size, p.out_size):
        assert all(axis.size == whole or taps_that_meet(axis, size) % 1 == 0 for axis in axes)


# ---- parts -------------------------------------------------------------------------------------------------------------
def test_axes_are_merged_where_memory_allows() -> None:
    d, h, w = Line(2, 60, 2, 60, 1, (0,)), Line(5, 12, 5, 12, 1, (0,)), Line(12, 1, 12, 1, 1, (0,))
    assert merged([d, h, w]) == [UNIT_LINE, UNIT_LINE, Line(120, 1, 120, 1, 1, (0,))]
    three = w._replace(shifts=(-1, 0, 1))
    assert merged([d, h, three]) == [UNIT_LINE, Line(10, 12, 10, 12, 1, (0,)), three]
    assert merged([d, h._replace(result_stride=13), w]) == [d, h._replace(result_stride=13), w]
    assert merged([d._replace(size=1, step=2**61), three, w])[0].step == 1
    assert merged([d, h, w._replace(step=2)])[1:] == [Line(10, 12, 10, 12, 1, (0,)), w._replace(step=2)]
    column = Line(1, 7, 1, 9, 1, (0,))
    assert merged([d, three, column]) == [UNIT_LINE, d, three]


def test_targets() -> None:
    avx512 = frozenset({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
    pairs = "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx2.pmadd.wd", "llvm.x86.sse2.pmadd.wd"
    assert _from_features(avx512, "x86_64") == Target(64, 32, fma=True, float16=True, pairs_instruction=pairs[0])
    assert _from_features(avx512 | {"avx512vnni"}, "x86_64").fused_pairs
    assert _from_features(frozenset({"avx2", "fma"}), "x86_64") == Target(32, 16, fma=True, float16=False, pairs_instruction=pairs[1])
    assert _from_features(frozenset({"avx2", "f16c"}), "x86_64") == Target(32, 16, fma=False, float16=True, pairs_instruction=pairs[1])
    assert _from_features(frozenset({"sse4.2"}), "x86_64") == Target(16, 16, fma=False, float16=False, pairs_instruction=pairs[2])
    assert _from_features(frozenset({"neon"}), "aarch64") == Target(16, 32, fma=True, float16=True)
    for found in (avx512, frozenset({"avx2"}), frozenset()):
        t = _from_features(found, "x86_64")
        assert t.tile_rows * t.tile_vectors + t.tile_vectors + 1 <= t.registers
