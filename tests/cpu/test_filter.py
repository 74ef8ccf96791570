"""Filters: every tile, way of reading rows and shape of a task; bits that nothing but the kernel and the channels may change."""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import replace

import numpy as np
import pytest

from numbaconv import Problem, reference
from numbaconv.cpu import filter_forward, threads
from numbaconv.cpu.filter import MOST_PARTS, Filter
from numbaconv.cpu.filter_forward import FilterSetup
from numbaconv.cpu.filter_kernel import NARROW, SEVERAL, WIDE
from numbaconv.cpu.filter_layout import MOST_SCRATCH, Layout, layout_of

from ..cases import call, case, integer_arrays, normal_arrays
from ..checks import always_parallel, assert_same, check_exact
from ..layouts import channels_last, read_only, repeated, with_axes_in_order, with_steps

LIMITS = {"zeros": 7, "reflect": 4, "replicate": 7, "circular": 5}  # padding of an axis of 5 cells


# ---- values ------------------------------------------------------------------------------------------------------------
WIDTHS = [case("fwd", (3, n), (3, 3), g=2, ic=2, oc=2, p=1, b=1) for n in range(1, 71)]
HEIGHTS = [
    case("fwd", (size, 19), (k, 3), ic=ic, oc=oc, g=g, p=((k // 2, (k - 1) // 2), 1))
    for k in (*range(1, 16), 31)
    for size, ic, oc, g in ((5, 1, 1, 1), (40, 1, 1, 1), (9, 4, 8, 2))
]
CHANNELS = [
    case("fwd", (9, 21), (3, 3), g=g, ic=ic * g, oc=oc * g, p=1, b=1, s=s)
    for g in (1, 3)
    for ic in (1, 2, 5, 8)
    for oc in (1, 2, 3, 4, 5, 9)
    for s in (1, 2)
] + [
    case("fwd", (9, 21), (3, 3), ic=200, oc=oc, p=1, b=1, s=s, mode=mode)
    for oc, s, mode in ((1, 1, "zeros"), (3, 1, "reflect"), (5, 2, "zeros"))
]
STEPS = [
    case("fwd", (17, 40), (3, 4), g=2, ic=2, oc=oc, s=s, d=d, p=p)
    for oc in (2, 8)
    for s in (1, 2, 3, (1, 2), (2, 1), (4, 1))
    for d in (1, 2, (3, 1), (1, 3), 4)
    for p in (0, ((6, 1), (2, 7)))
]
MODES = [
    case("fwd", (5, 5), (3, 3), g=2, ic=2, oc=2, s=s, d=d, p=((most, 1), (0, most)), mode=mode, t=t)
    for mode, most in LIMITS.items()
    for s in (1, 2, (2, 3))
    for d in (1, 2)
    for t in ("f32", "f64")
]
RANKS = [
    *(
        case("fwd", (n,), (k,), g=3, ic=3, oc=3, s=s, p=k // 2, b=1)
        for n in (1, 15, 16, 17, 111, 112, 113, 3000)
        for k in (1, 5)
        for s in (1, 2, 3)
    ),
    *(case("fwd", (n,), (k,), ic=2, oc=9, s=s, p=k - 1) for n in (33, 500) for k in (1, 8, 64) for s in (1, 2, 5)),
    *(
        case("fwd", (4, 8, n), (k, k, k), g=g, ic=2, oc=2, p=k // 2, t=t)
        for n in (7, 34)
        for k in (2, 3, 5)
        for g in (1, 2)
        for t in ("f32", "f64")
    ),
    *(case("fwd", (6, 9, 18), (3, 2, 3), ic=1, oc=6, s=s, d=d, p=(2, 0, 1)) for s in (1, 2, (3, 1, 2)) for d in (1, (2, 1, 2))),
    case("fwd", (8, 8, 8), (7, 7, 7), ic=1, oc=1, p=3),
    case("fwd", (3, 1, 50), (2, 1, 5), g=2, ic=4, oc=2, p=(1, 0, 2)),
]  # fmt: skip
TASKS = [
    # several tasks along every axis, the last one cut short; several groups and images a task
    case("fwd", (70, 1100), (3, 3), ic=1, oc=1, p=1, b=1),
    case("fwd", (70, 1100), (9, 9), ic=1, oc=2, p=4, t="f64"),
    case("fwd", (70, 600), (3, 3), ic=2, oc=5, s=2, p=1, b=1),
    case("fwd", (75, 530), (5, 5), ic=1, oc=1, s=2, p=2, mode="reflect"),
    case("fwd", (14, 14), (3, 3), g=150, ic=150, oc=150, p=1, b=1, mb=2),
    case("fwd", (7, 7), (5, 5), g=100, ic=100, oc=200, p=2, s=2, mb=3),
    case("fwd", (60, 40), (3, 3), g=2, ic=2, oc=2, p=12, d=12, mode="circular"),
    case("fwd", (40, 45), (31, 29), ic=2, oc=3, p=((3, 5), (6, 6)), b=1),
    case("fwd", (9000,), (9,), g=2, ic=4, oc=2, mb=2, p=4, b=1),
    case("fwd", (60, 3), (2, 2), ic=1, oc=1, s=(29, 1)),
]

GRADIENTS = [
    *(
        case("igrad", (6, 20), (k, 4), g=2, ic=ic, oc=oc, s=s, d=d, p=p, b=1)
        for ic, oc in ((2, 2), (8, 6))
        for k in (1, 3)
        for s, p in ((1, 0), (1, ((0, 3), (4, 1))), (2, 1), ((3, 2), ((0, 2), (3, 0))))
        for d in (1, 2, (3, 2))
    ),
    case("igrad", (8, 9), (3, 3), ic=3, oc=1, p=2, t="f64"),
    case("igrad", (5, 6, 7), (3, 3, 3), g=2, ic=2, oc=4, s=2, p=1, op=1, mb=2),
    case("igrad", (40,), (9,), g=3, ic=3, oc=3, p=8),
    case("igrad", (3, 3), (1, 1), ic=2, oc=2, s=3, op=2, b=1),  # cells that no tap meets
    case("igrad", (2, 3), (2, 2), ic=1, oc=2, d=7, s=3, p=1, b=1),
]
DTYPES = [
    case(*rest, b=1, t=t, **more)
    for t in ("f16", "bf16", "s8", "u8-s32", "s16", "s32", "s64")
    for *rest, more in (
        ("fwd", (9, 50), (5, 3), {"g": 3, "ic": 3, "oc": 3, "p": 2}),
        ("fwd", (9, 50), (5, 3), {"g": 2, "ic": 4, "oc": 10, "p": 1, "s": 2}),
        ("fwd", (9, 50), (2, 3), {"g": 2, "ic": 4, "oc": 2, "p": 1, "s": 3, "mode": "circular"}),
        ("fwd", (300,), (9,), {"g": 2, "ic": 2, "oc": 2, "p": 4}),
        ("igrad", (9, 11), (3, 3), {"g": 3, "ic": 6, "oc": 6, "s": 2, "p": 1, "op": 1}),
        ("igrad", (3, 3), (1, 1), {"ic": 2, "oc": 2, "s": 3, "op": 2}),
    )
]


@pytest.mark.parametrize("text", [*WIDTHS, *HEIGHTS, *CHANNELS, *STEPS, *MODES, *RANKS, *TASKS, *GRADIENTS, *DTYPES])
def test_exact(text: str) -> None:
    check_exact(Problem.parse(text), "filter")


def apply(monkeypatch: pytest.MonkeyPatch, layout: Layout, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """The result by this very layout."""
    p = layout.problem
    monkeypatch.setattr(filter_forward, "layout_of", lambda problem, contiguous=True: layout)
    setup, result = FilterSetup(p), np.full(p.result_shape, np.nan, p.dtype)
    axes = (slice(None), slice(None)) + (None,) * (3 - p.rank)
    setup.run(x[axes], setup.pack(w[axes], b), result[axes])
    return result


@pytest.mark.parametrize("tile", [NARROW, WIDE, SEVERAL], ids=["narrow", "wide", "several"])
@pytest.mark.parametrize("text", [*HEIGHTS[::5], *CHANNELS[::4], *STEPS[::7], *MODES[::6], *RANKS[::5], *TASKS[:6]])
def test_every_tile_can_do_everything(monkeypatch: pytest.MonkeyPatch, text: str, tile: object) -> None:
    p = Problem.parse(text)
    x, w, b = integer_arrays(p)
    expected = reference.convolve(p, x, w, b)
    for straight in {layout_of(p).straight, False}:
        assert_same(apply(monkeypatch, replace(layout_of(p), tile=tile, straight=straight), x, w, b), expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_stride_beyond_everything(axis: int, mode: str) -> None:
    """One result along the axis: the rows meet a few lines; the columns would be too long a line."""
    steps = [1, 1]
    steps[axis] = 2**61
    p = Problem.parse(case("fwd", (8, 20), (3, 3), ic=3, oc=4, p=1, s=steps, mode=mode))
    if axis == 1:
        assert "a block of source rows takes" in str(Filter().supports(p))
    else:
        x, w, _ = integer_arrays(p)
        assert_same(call(p, with_steps(x, (1, 1, 7, 9)), w, None, algorithm="filter"), reference.convolve(p, x, w))


# ---- layouts -----------------------------------------------------------------------------------------------------------
LAYOUTS = {
    "channels last": channels_last,
    "Fortran order": lambda a: with_axes_in_order(a, range(a.ndim)[::-1]),
    "every second column": lambda a: with_steps(a, (1, 1, 1, 2)),
    "every third column backwards": lambda a: with_steps(a, (1, 2, -1, -3)),
    "rows backwards": lambda a: with_steps(a, (-1, -1, -3, 1)),
    "read-only": read_only,
}
STRIDED = [
    case("fwd", (20, 51), (3, 3), mb=2, ic=6, oc=oc, g=g, s=s, p=1, b=1, mode=mode)
    for oc, g in ((6, 6), (16, 2))
    for s, mode in ((1, "zeros"), (2, "zeros"), (1, "reflect"))
] + [case("fwd", (20, 51), (3, 3), mb=2, ic=6, oc=6, g=6, s=s, p=1, b=1, t=t) for s, t in ((1, "f16"), (2, "bf16"))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", STRIDED)
def test_layouts_of_the_input_do_not_change_a_bit(text: str, layout: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    expected = call(p, x, w, b, algorithm="filter")
    assert call(p, LAYOUTS[layout](x), LAYOUTS[layout](w), b, algorithm="filter").tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
@pytest.mark.parametrize("text", [*STRIDED, case("fwd", (3, 1, 300), (2, 1, 5), mb=2, g=2, ic=2, oc=6, p=(1, 0, 2))])
def test_layouts_of_the_result_do_not_change_a_bit(text: str, layout: str) -> None:
    p = Problem.parse(text)
    if p.rank == 3 and layout not in ("channels last", "Fortran order"):
        pytest.skip("steps for four axes")
    x, w, b = normal_arrays(p)
    expected = call(p, x, w, b, algorithm="filter")
    out = LAYOUTS[layout](np.full_like(expected, np.nan))
    untouched = around(out).copy()
    call(p, x, w, b, algorithm="filter", out=out)
    assert out.tobytes() == expected.tobytes()
    out[...] = np.nan
    assert around(out).tobytes() == untouched.tobytes(), "cells between those of out were written"


def around(view: np.ndarray) -> np.ndarray:
    """The whole memory that a view was made of, as bytes."""
    while view.base is not None:
        view = view.base
    return np.lib.stride_tricks.as_strided(view, (view.size,), (view.itemsize,)).view(np.uint8)


def test_strides_of_zero() -> None:
    p = Problem.parse(case("fwd", (6, 20), (3, 3), mb=3, g=2, ic=4, oc=2, p=1))
    x, w, b = integer_arrays(p)
    for axes in ((0,), (1,), (2, 3), (0, 1, 2, 3)):
        same = repeated(x, axes)
        assert_same(call(p, same, w, b, algorithm="filter"), reference.convolve(p, same, w, b))


@pytest.mark.parametrize("s", [1, 2])
def test_memory_outside_the_input_is_not_used(s: int) -> None:
    """NaN on both sides of every row shows nowhere."""
    p = Problem.parse(case("fwd", (9, 40), (5, 5), g=2, ic=2, oc=2, s=s, p=2))
    x, w, b = integer_arrays(p)
    buffer = np.full((1, 2, 13, 60), np.nan, np.float32)
    buffer[:, :, 2:-2, 10:-10] = x
    assert_same(call(p, buffer[:, :, 2:-2, 10:-10], w, b, algorithm="filter"), reference.convolve(p, x, w, b))


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page by Linux's mprotect")
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "rows reversed"])
@pytest.mark.parametrize("width", [5, 20, 56])
def test_nothing_is_read_beyond_the_last_element(width: int, reverse: bool) -> None:
    """The input ends where a page begins that no one may read; the process would be killed."""
    p = Problem.parse(case("fwd", (9, width), (3, 3), g=3, ic=3, oc=3, p=1))
    x, w, b = integer_arrays(p)
    page = mmap.PAGESIZE
    size = -(-x.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    whole = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(whole.ctypes.data + size, page, 0) == 0
    own = whole[size - x.nbytes : size].view(x.dtype).reshape(x.shape)
    own = own[:, ::-1, ::-1] if reverse else own
    own[...] = x
    found = call(p, own, w, b, algorithm="filter")
    assert protect(whole.ctypes.data + size, page, 3) == 0
    assert_same(found, reference.convolve(p, x, w, b))


# ---- bits --------------------------------------------------------------------------------------------------------------
BITS = [
    case("fwd", (33, 75), (7, 7), mb=3, g=5, ic=5, oc=5, p=3, b=1),
    case("fwd", (30, 31), (3, 3), mb=3, g=3, ic=12, oc=12, s=2, p=1),
    case("fwd", (6, 20, 31), (3, 3, 3), mb=3, ic=1, oc=7, p=1, t="f64", b=1),
    case("fwd", (2500,), (9,), mb=3, g=2, ic=2, oc=2, p=4),
    case("fwd", (33, 75), (5, 5), mb=3, g=5, ic=5, oc=5, p=2, b=1, t="bf16"),
    case("igrad", (20, 31), (5, 5), mb=3, g=3, ic=3, oc=3, s=2, p=2, op=1, b=1),
]


@pytest.mark.parametrize("text", BITS)
def test_bits_do_not_depend_on_the_batch_or_the_threads(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    together = call(p, x, w, b, algorithm="filter")
    alone = [call(replace(p, batch=1), x[i : i + 1], w, b, algorithm="filter") for i in range(p.batch)]
    assert together.tobytes() == np.concatenate(alone).tobytes()
    with always_parallel():
        assert together.tobytes() == call(p, x, w, b, algorithm="filter").tobytes()


@pytest.mark.parametrize("text", BITS[:-2])
def test_bits_do_not_depend_on_the_tile_or_on_copies(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    best = layout_of(p)
    tiles = [SEVERAL] if best.tile == SEVERAL else [NARROW, WIDE]
    found = {apply(monkeypatch, replace(best, tile=t, straight=s), x, w, b).tobytes() for t in tiles for s in {best.straight, False}}
    assert len(found) == 1


@pytest.mark.parametrize("size", [1, 9])
@pytest.mark.parametrize("dilation", [1, 3])
def test_bits_do_not_depend_on_the_place_of_a_block(dilation: int, size: int) -> None:
    """A crop computed alone, with its halo, has the bits of the whole."""
    halo = 2 * dilation
    p = Problem.parse(case("fwd", (40, 80), (5, 5), g=2, ic=4, oc=4, p=halo, d=dilation))
    x, w, b = normal_arrays(p)
    whole = call(p, x, w, b, algorithm="filter")
    crop = Problem.parse(case("fwd", (size + 2 * halo, 11 + 2 * halo), (5, 5), g=2, ic=4, oc=4, d=dilation))
    padded = np.pad(x, ((0, 0), (0, 0), (halo, halo), (halo, halo)))
    for row, column in ((0, 0), (3, 5), (31, 69), (10, 27)):
        block = padded[:, :, row : row + size + 2 * halo, column : column + 11 + 2 * halo]
        part = call(crop, block, w, b, algorithm="filter")
        np.testing.assert_array_equal(part, whole[:, :, row : row + size, column : column + 11])


def test_an_infinite_weight_shows_at_the_border_alone() -> None:
    p = Problem.parse(case("fwd", (4, 30, 60), (3, 3, 3), g=3, ic=3, oc=3, p=1))
    x, w, _ = integer_arrays(p)
    x, w[1, 0, 0, 1, 2] = np.abs(x) + 1, np.inf
    y = call(p, x, w, None, algorithm="filter")
    border = np.zeros((4, 30, 60), bool)
    border[0], border[..., -1] = True, True
    assert np.isnan(y[0, 1][border]).all() and np.isposinf(y[0, 1][~border]).all()
    assert np.isfinite(y[0, ::2]).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_multiplies_no_zeros(value: float) -> None:
    """A weight that is not finite shows where it meets a source cell alone: neither between the cells of a stride nor beyond the border."""
    p = Problem.parse(case("igrad", (5, 7), (3, 3), g=2, ic=2, oc=2, s=2, p=1, b=1))
    x, w, b = integer_arrays(p)
    w[1, 0, 0, 2] = value
    assert_same(call(p, x, w, b, algorithm="filter"), reference.convolve(p, x, w, b))


# ---- integers and halves -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("t, value", [("s8", -128), ("u8-s32", 255), ("s16", -(2**15)), ("s32", -(2**31)), ("s64", -(2**63))])
def test_integers_wrap_at_their_extremes(t: str, value: int) -> None:
    p = Problem.parse(case("fwd", (9, 40), (5, 5), g=2, ic=8, oc=2, p=2, t=t))
    x, w, _ = integer_arrays(p)
    x[...], w[...] = value, value
    assert_same(call(p, x, w, None, algorithm="filter"), reference.convolve(p, x, w))


@pytest.mark.parametrize("t", ["f16", "bf16"])
def test_every_half_converts(t: str) -> None:
    """All 65,536 bit patterns through a kernel of one weight, 1: widened, rounded back."""
    p = Problem.parse(case("fwd", (256, 256), (1, 1), ic=1, oc=1, t=t))
    _, w, _ = integer_arrays(p)
    x = np.arange(2**16, dtype=np.uint16).view(w.dtype).reshape(1, 1, 256, 256)
    with np.errstate(invalid="ignore"):
        assert_same(call(p, x, np.ones_like(w), None, algorithm="filter"), x)


# ---- what it says about itself -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [HEIGHTS[8], *CHANNELS[5:7], *STEPS[::20], *RANKS[::9], *TASKS, *GRADIENTS[::5], *DTYPES[::4]])
def test_sizes_are_as_stated(text: str) -> None:
    p = Problem.parse(text)
    _, w, b = integer_arrays(p)
    setup = Filter().setup(p)
    axes = (slice(None), slice(None)) + (None,) * (3 - p.rank)
    assert sum(part.nbytes for part in setup.pack(w[axes], b)) == setup.packed_bytes
    assert 0 < setup.workspace <= threads.most_threads() * MOST_SCRATCH


def test_workspace_does_not_grow_with_the_image() -> None:
    small, large = (FilterSetup(Problem.parse(case("fwd", (n, n, n), (3, 3, 3), ic=1, oc=8, p=1))) for n in (1024, 65536))
    assert large.workspace == small.workspace


REASONS = {
    case("fwd", (9,), (3,), t="c64"): "complex64",
    case("fwd", (9,), (3,)).replace("fwd", "wgrad"): "not of the weight",
    case("igrad", (9, 9), (3, 3), s=9): f"more than {MOST_PARTS} convolutions",
    case("fwd", (9,), (3,), ic=0): "no channels",
    case("fwd", (600, 600), (600, 600), ic=2): "a block of source rows takes",
}


@pytest.mark.parametrize("text", REASONS)
def test_declines_with_a_reason(text: str) -> None:
    reason = Filter().supports(Problem.parse(text))
    assert reason is not None and REASONS[text] in reason


def test_declines_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem.parse(case("fwd", (9,), (3,), ic=1))
    assert Filter().supports(p) is None
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", True)
    assert "NUMBA_DISABLE_JIT" in str(Filter().supports(p))
