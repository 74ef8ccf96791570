"""Convolution by Fourier transforms: tile edges, padding, what is not finite, and what must not change a bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numbaconv import Problem, choose, reference
from numbaconv.cpu import fft_layout, threads
from numbaconv.cpu.fft import Fft, FftSetup
from numbaconv.cpu.fft_kernel import passes_of
from numbaconv.cpu.fft_layout import LENGTHS, Layout, layout_of
from numbaconv.cpu.target import target

from ..cases import call, case, integer_arrays, normal_arrays
from ..checks import always_parallel, assert_same
from ..layouts import channels_last, read_only, with_steps

MODES = {"zeros": 9, "reflect": 19, "replicate": 25, "circular": 20}  # padding of an axis of 20 cells
TWO = [
    *(case("fwd", (n, 30), (5, 5), ic=1, oc=1, p=2, b=1) for n in (5, 11, 12, 13, 24, 25)),
    *(case("fwd", (20, n), (3, 7), ic=2, oc=3, p=((3, 0), (0, 5))) for n in (7, 15, 16, 17, 70)),
    *(case("fwd", (40, 90), (k, k), g=2, ic=2, oc=4, p=k // 2, b=1) for k in (2, 9, 17, 31, 40)),
    *(case("fwd", (40, 40), (3, 5), ic=1, oc=2, d=d, p=4) for d in (2, (5, 1), (1, 7))),
    *(case("fwd", (20, 20), (7, 5), g=2, ic=2, oc=2, p=((most, 1), (2, most)), mode=mode, b=1) for mode, most in MODES.items()),
    case("fwd", (300, 200), (33, 21), ic=1, oc=1, p=16, t="f64"),
    case("fwd", (30, 30), (9, 9), ic=3, oc=2, p=4, mb=3, b=1),
    case("fwd", (6, 6), (2, 2), p=40),  # whole tiles of padding
]
THREE = [
    *(case("fwd", (n, 20, 33), (5, 3, 7), ic=1, oc=1, p=(2, 1, 3), b=1) for n in (5, 12, 13, 30)),
    *(
        case("fwd", (9, 10, 20), (3, 3, 3), g=2, ic=2, oc=2, p=((8, 1), 1, (2, 8)), mode=mode, t=t)
        for mode in MODES
        for t in ("f32", "f64")
    ),
    case("fwd", (20, 21, 22), (9, 9, 9), ic=2, oc=2, p=4, d=(1, 2, 1)),
    case("fwd", (5, 20, 21), (1, 7, 7), ic=1, oc=2, s=1, p=(2, 3, 3), mb=2),
]  # fmt: skip
GRADIENTS = [
    *(case("igrad", (20, 40), (7, 5), g=g, ic=2, oc=4, p=p, d=d, b=1) for g in (1, 2) for p in (0, ((1, 6), (9, 0))) for d in (1, 2)),
    case("igrad", (12, 13, 20), (5, 5, 5), ic=1, oc=1, p=2, t="f64"),
]
ALL = [*TWO, *THREE, *GRADIENTS]


def check(p: Problem, found: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> None:
    """Errors within a few units of rounding of what a tile's sums can be: those of its largest cells with every tap."""
    exact = reference.convolve(p, x, w, b, rounded=False)
    assert found.shape == exact.shape and found.dtype == p.dtype
    unit = {"float32": 2.0**-24, "float64": 2.0**-53}[p.dtype]
    bound = 20 * unit * np.linalg.norm(w.reshape(-1)) * np.linalg.norm(x.reshape(-1))
    assert np.abs(found - exact).max() <= bound


@pytest.mark.parametrize("text", ALL)
def test_values(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    check(p, call(p, x, w, b, algorithm="fft"), x, w, b)
    with always_parallel():
        check(p, call(p, x, w, b, algorithm="fft"), x, w, b)


def apply(monkeypatch: pytest.MonkeyPatch, layout: Layout, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """The result by this very layout."""
    p = layout.problem
    monkeypatch.setattr(FftSetup, "layout", layout)
    setup, result = FftSetup(p), np.full(p.result_shape, np.nan, p.dtype)
    axes = (slice(None), slice(None)) + (None,) * (3 - p.rank)
    setup.run(x[axes], setup.pack(w[axes], b), result[axes])
    return result


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("t", ["f32", "f64"])
def test_every_length(monkeypatch: pytest.MonkeyPatch, length: int, axis: int, t: str) -> None:
    p = Problem.parse(case("fwd", (length + 40, 50) if axis == 1 else (50, length + 40), (5, 6), ic=1, oc=2, p=3, b=1, t=t))
    x, w, b = normal_arrays(p)
    lengths = (1, length, 32) if axis == 1 else (1, 16, length)
    check(p, apply(monkeypatch, Layout(p, lengths), x, w, b), x, w, b)


@pytest.mark.parametrize("n", LENGTHS)
def test_passes_make_up_a_transform(n: int) -> None:
    assert np.prod([one.radix for one in passes_of(n)]) == n and passes_of(n)[-1].distance == 1


def test_errors_are_those_of_a_transform() -> None:
    """The root mean square error stays within three times that of the definition in float32."""
    for text in (
        case("fwd", (200, 200), (31, 31), ic=1, oc=1, p=15),
        case("fwd", (100, 100), (11, 11), ic=1, oc=1, p=5),
        case("fwd", (40, 40, 40), (9, 9, 9), ic=1, oc=1, p=4),
        case("fwd", (60, 60), (13, 13), ic=4, oc=4, p=6),
    ):
        p = Problem.parse(text)
        x, w, _ = normal_arrays(p)
        exact = reference.convolve(p, x, w, rounded=False)
        errors = [float(np.sqrt(np.mean((call(p, x, w, None, algorithm=name) - exact) ** 2))) for name in ("fft", "implicit_gemm")]
        assert errors[0] <= 3 * errors[1], errors


# ---- what is not finite ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [TWO[0], TWO[13], TWO[-2], *(TWO[i] for i in (14, 15, 16)), THREE[2], GRADIENTS[2]])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_where_it_is(text: str, value: float) -> None:
    p = Problem.parse(text)
    x, w, b = integer_arrays(p)
    x.reshape(-1)[[3, x.size // 2]] = value, -value
    with np.errstate(all="ignore"):
        expected = reference.convolve(p, x, w, b)
    found = call(p, x, w, b, algorithm="fft")
    same = np.isfinite(expected)
    assert (np.isfinite(found) == same).all()
    np.testing.assert_array_equal(found[~same], expected[~same])


@pytest.mark.parametrize("text", [TWO[0], TWO[13], GRADIENTS[3]])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite(text: str, value: float) -> None:
    p = Problem.parse(text)
    x, w, b = integer_arrays(p)
    w.reshape(-1)[1] = value
    assert_same(call(p, x, w, b, algorithm="fft"), reference.convolve(p, x, w, b))


# ---- bits and layouts --------------------------------------------------------------------------------------------------
BITS = [
    case("fwd", (50, 75), (9, 9), mb=3, g=2, ic=2, oc=4, p=4, b=1),
    case("fwd", (20, 20, 31), (5, 5, 5), mb=3, ic=2, oc=1, p=2, t="f64", b=1),
]


@pytest.mark.parametrize("text", BITS)
def test_bits_do_not_depend_on_the_batch_or_the_threads(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    together = call(p, x, w, b, algorithm="fft")
    alone = [call(replace(p, batch=1), x[i : i + 1], w, b, algorithm="fft") for i in range(p.batch)]
    assert together.tobytes() == np.concatenate(alone).tobytes()
    with always_parallel():
        assert together.tobytes() == call(p, x, w, b, algorithm="fft").tobytes()


def test_bits_do_not_depend_on_what_other_tiles_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of whole pairs of tiles, with its halo, has the bits of the whole on the same tile grid."""
    p = Problem.parse(case("fwd", (16 + 3 * 12, 4 * 12 + 4), (5, 5), ic=1, oc=1))
    x, w, b = normal_arrays(p)
    whole = apply(monkeypatch, Layout(p, (1, 16, 16)), x, w, b)
    block = replace(p, in_size=(1, 16 + 12, 28))
    for row in (0, 12, 24):
        part = apply(monkeypatch, Layout(block, (1, 16, 16)), np.ascontiguousarray(x[:, :, row : row + 28, 24:]), w, b)
        np.testing.assert_array_equal(part, whole[:, :, row : row + 24, 24:])


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_layouts_do_not_change_a_bit(mode: str) -> None:
    p = Problem.parse(case("fwd", (30, 51), (7, 7), mb=2, ic=3, oc=2, p=3, b=1, mode=mode))
    x, w, b = normal_arrays(p)
    expected = call(p, x, w, b, algorithm="fft")
    for view in (channels_last, read_only, lambda a: with_steps(a, (1, 2, -1, -3))):
        assert call(p, view(x), view(w), b, algorithm="fft").tobytes() == expected.tobytes()
        if view is not read_only:
            out = view(np.full_like(expected, np.nan))
            assert call(p, x, w, b, algorithm="fft", out=out).tobytes() == expected.tobytes()


# ---- what it says about itself -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ALL[::4])
def test_sizes_are_as_stated(text: str) -> None:
    p = Problem.parse(text)
    _, w, b = integer_arrays(p)
    setup = Fft().setup(p)
    axes = (slice(None), slice(None)) + (None,) * (3 - p.rank)
    assert sum(part.nbytes for part in setup.pack(w[axes], b)) == setup.packed_bytes <= 8 * (w.nbytes + p.result_channels * w.itemsize + 1)
    layout = setup.layout
    assert layout.tile_bytes <= fft_layout.MOST_TILES and layout.spectra_bytes <= fft_layout.MOST_SPECTRA
    assert setup.workspace >= layout.spectra_bytes + threads.most_threads() * layout.tile_bytes


def test_workspace_does_not_grow_with_the_image() -> None:
    small, large = (FftSetup(Problem.parse(case("fwd", (n, n), (31, 31), ic=1, oc=1, p=15))) for n in (16384, 65536))
    assert large.workspace - small.workspace <= 2 * large.layout.pairs


@pytest.mark.skipif(target().vector_bytes != 64, reason="the cost models cross elsewhere with other vectors")
def test_taken_for_large_filters_alone() -> None:
    def taken(size: tuple[int, ...], k: int) -> str:
        return choose.choose(Problem.parse(case("fwd", size, (k,) * len(size), ic=1, oc=1, p=k // 2))).name

    assert taken((2048, 2048), 31) == taken((512, 512), 15) == taken((96, 96, 96), 11) == "fft"
    assert taken((2048, 2048), 3) == taken((512, 512), 7) == taken((96, 96, 96), 3) == "filter"
    assert choose.choose(Problem.parse(case("fwd", (2048, 2048), (31, 31), ic=1, oc=1)), precision="ieee").name == "filter"


REASONS = {
    case("fwd", (9, 9), (3, 3), t="f16"): "float16",
    case("fwd", (9, 9), (3, 3)).replace("fwd", "wgrad"): "not of the weight",
    case("fwd", (9, 9), (3, 3), s=2): "a stride leaves",
    case("fwd", (9,), (3,)): "extend along rows and columns",
    case("fwd", (9, 9), (1, 3)): "extend along rows and columns",
    case("fwd", (9, 9), (3, 3), ic=0): "no channels",
    case("fwd", (600, 600), (600, 600), ic=2): "its tiles would take",
    case("fwd", (64, 64), (17, 17), ic=64, oc=64): "the transformed weight",
}


@pytest.mark.parametrize("text", REASONS)
def test_declines_with_a_reason(text: str) -> None:
    reason = Fft().supports(Problem.parse(text))
    assert reason is not None and REASONS[text] in reason


def test_declines_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem.parse(case("fwd", (9, 9), (3, 3), ic=1))
    assert Fft().supports(p) is None and layout_of(p) is not None
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", True)
    assert "NUMBA_DISABLE_JIT" in str(Fft().supports(p))
