"""Depthwise convolution with channels in the lanes: boxes, remainders of a stride, padding, and what must not change a bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from numbaconv import Problem, choose, reference
from numbaconv.cpu import depthwise, threads
from numbaconv.cpu.depthwise import MOST_BYTES, Depthwise, DepthwiseSetup, Layout, layout_of
from numbaconv.cpu.target import target

from ..cases import call, case, integer_arrays, normal_arrays
from ..checks import always_parallel, assert_same, check_exact, check_rounding
from ..layouts import channels_last, read_only, with_steps

LIMITS = {"zeros": 7, "reflect": 4, "replicate": 7, "circular": 5}  # padding of an axis of 5 cells


def dw(direction: str, size: tuple[int, ...], kernel: tuple[int, ...], channels: int = 17, **options: object) -> str:
    return case(direction, size, kernel, g=channels, ic=channels, oc=channels, **options)


SHAPES = [
    *(dw("fwd", (5, 9), (3, 3), c, p=1, b=1) for c in (1, 4, 7, 8, 9, 15, 16, 31, 32, 33)),
    *(dw("fwd", (4, n), (2, 3), p=1, b=1) for n in (1, 2, 6, 7, 8, 13, 14, 15, 16, 17, 33, 50)),
    *(dw("fwd", (n,), (5,), p=2, s=s, d=d, b=1) for n in (9, 40, 300) for s in (1, 2, 5) for d in (1, 2)),
    *(
        dw("fwd", (11, 12), (3, 4), s=s, d=d, p=p)
        for s in (1, 2, 3, (1, 2))
        for d in (1, (3, 1), 2)
        for p in (0, ((6, 1), (2, 7)), ((0, 9), (9, 0)))
    ),
    *(dw("fwd", (5, 6, 7), (3, 2, 3), s=s, p=(2, 0, 1), b=1, t=t) for s in (1, 2, (3, 1, 2)) for t in ("f32", "f64")),
    *(
        dw("fwd", (5, 5), (3, 3), s=s, d=d, p=((most, 1), (0, most)), mode=mode)
        for mode, most in LIMITS.items()
        for s in (1, (2, 3))
        for d in (1, 2)
    ),
    dw("fwd", (3, 3), (7, 7), p=3, mb=3, b=1),
    dw("fwd", (2, 2), (3, 3), p=9),
    dw("fwd", (70, 90), (3, 3), 20, p=1, b=1),
    dw("fwd", (9, 30, 40), (3, 3, 3), 20, p=1, s=2),
]
GRADIENTS = [
    *(
        dw("igrad", (6, 9), (k, 4), s=s, d=d, p=p, b=1)
        for k in (1, 3)
        for s, p in ((1, 0), (1, ((0, 2), (4, 1))), (2, 1), ((3, 2), ((0, 2), (3, 0))))
        for d in (1, 2, (3, 2))
        if k == 3 or p != ((0, 2), (3, 0))
    ),
    dw("igrad", (5, 6, 7), (3, 3, 3), s=2, p=1, op=1, mb=2, t="f64"),
    dw("igrad", (40,), (9,), p=8),
    dw("igrad", (3, 3), (1, 1), s=3, op=2, b=1),  # cells that no tap meets
    dw("igrad", (35, 45), (3, 3), 20, s=2, p=1, op=1),
    dw("igrad", (2, 2), (5, 5), p=((1, 4), (4, 0))),
]
ALL = [*SHAPES, *GRADIENTS]


@pytest.mark.parametrize("text", ALL)
def test_exact(text: str) -> None:
    check_exact(Problem.parse(text), "depthwise")


@pytest.mark.parametrize("text", ALL[::6])
def test_rounding(text: str) -> None:
    check_rounding(Problem.parse(text), "depthwise")


def apply(monkeypatch: pytest.MonkeyPatch, layout: Layout, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """The result by this very layout."""
    p = layout.problem
    monkeypatch.setattr(depthwise, "layout_of", lambda problem: layout)
    setup, result = DepthwiseSetup(p), np.full(p.result_shape, np.nan, p.dtype)
    axes = (slice(None), slice(None)) + (None,) * (3 - p.rank)
    setup.run(x[axes], setup.pack(w[axes], b), result[axes])
    return result


@pytest.mark.parametrize("box", [(1, 1), (2, 3), (3, 2), (9, 9)])
@pytest.mark.parametrize("text", [*ALL[30::9], SHAPES[-1], GRADIENTS[-5]])
def test_bits_do_not_depend_on_the_box(monkeypatch: pytest.MonkeyPatch, text: str, box: tuple[int, int]) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    expected = call(p, x, w, b, algorithm="depthwise")
    best = layout_of(p.per_image)
    assert best is not None
    sizes = [parts[0].size for parts in best.axes]
    layout = Layout(p, (min(box[0], sizes[0]), min(box[1], sizes[1]), sizes[2]))
    assert apply(monkeypatch, layout, x, w, b).tobytes() == expected.tobytes()


@pytest.mark.parametrize("text", [SHAPES[-4], dw("fwd", (20, 21), (5, 5), s=2, mb=3, b=1), dw("igrad", (9, 9), (3, 3), s=2, p=1, mb=3)])
def test_bits_do_not_depend_on_the_batch_or_the_threads(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    together = call(p, x, w, b, algorithm="depthwise")
    alone = [call(replace(p, batch=1), x[i : i + 1], w, b, algorithm="depthwise") for i in range(p.batch)]
    assert together.tobytes() == np.concatenate(alone).tobytes()
    with always_parallel():
        assert together.tobytes() == call(p, x, w, b, algorithm="depthwise").tobytes()


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("s", [1, 2])
def test_layouts_do_not_change_a_bit(mode: str, s: int) -> None:
    p = Problem.parse(dw("fwd", (9, 21), (3, 3), mb=2, s=s, p=1, b=1, mode=mode))
    x, w, b = normal_arrays(p)
    expected = call(p, x, w, b, algorithm="depthwise")
    for view in (channels_last, read_only, lambda a: with_steps(a, (1, 2, -1, -3))):
        assert call(p, view(x), view(w), b, algorithm="depthwise").tobytes() == expected.tobytes()
        if view is not read_only:
            out = view(np.full_like(expected, np.nan))
            assert call(p, x, w, b, algorithm="depthwise", out=out).tobytes() == expected.tobytes()


# ---- what is not finite ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    "text", [dw("fwd", (7, 9), (3, 3), p=1, b=1), dw("fwd", (4, 5, 9), (3, 3, 3), p=1), dw("igrad", (5, 7), (3, 3), s=2, p=1)]
)
def test_what_is_not_finite_stays_where_it_is(text: str, value: float) -> None:
    """A weight meets the padded zeros of a convolution, and no zero of a gradient."""
    p = Problem.parse(text)
    x, w, b = integer_arrays(p)
    w[1, 0, 0, 1], x[0, 2, 1, 1] = value, value
    assert_same(call(p, x, w, b, algorithm="depthwise"), reference.convolve(p, x, w, b))


# ---- what it says about itself -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ALL[::5])
def test_sizes_are_as_stated(text: str) -> None:
    p = Problem.parse(text)
    _, w, b = integer_arrays(p)
    setup = Depthwise().setup(p)
    axes = (slice(None), slice(None)) + (None,) * (3 - p.rank)
    assert sum(part.nbytes for part in setup.pack(w[axes], b)) == setup.packed_bytes
    assert 0 < sum(setup.layout.bytes) <= MOST_BYTES
    assert setup.workspace >= threads.most_threads() * sum(setup.layout.bytes)


@pytest.mark.skipif(target().vector_bytes != 64, reason="the cost models cross elsewhere with other vectors")
def test_taken_for_small_planes_and_strides() -> None:
    assert choose.choose(Problem.parse(dw("fwd", (7, 7), (7, 7), 768, p=3))).name == "depthwise"
    assert choose.choose(Problem.parse(dw("igrad", (7, 7), (3, 3), 512, s=2, p=1, op=1))).name == "depthwise"
    assert choose.choose(Problem.parse(dw("fwd", (112, 112), (3, 3), 64, p=1))).name == "filter"


REASONS = {
    dw("fwd", (9,), (3,), t="f16"): "float16",
    dw("fwd", (9,), (3,)).replace("fwd", "wgrad"): "not of the weight",
    case("fwd", (9,), (3,), g=2, ic=2, oc=4): "one input and one output channel",
    case("fwd", (9,), (3,), g=2, ic=4, oc=2): "one input and one output channel",
    dw("igrad", (9, 9), (3, 3), s=9): "more than 64 convolutions",
    dw("fwd", (20, 9000), (9, 3)): "a box of few rows",
}


@pytest.mark.parametrize("text", REASONS)
def test_declines_with_a_reason(text: str) -> None:
    reason = Depthwise().supports(Problem.parse(text))
    assert reason is not None and REASONS[text] in reason


def test_declines_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem.parse(dw("fwd", (9,), (3,)))
    assert Depthwise().supports(p) is None
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", True)
    assert "NUMBA_DISABLE_JIT" in str(Depthwise().supports(p))
