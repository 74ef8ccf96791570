"""Implicit GEMM with the weight of a single call: read where it lies, or packed in strips, with the bits of one that is packed ahead."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from numbaconv import Problem, reference
from numbaconv.arrays import ELEMENTS, five, storage_view
from numbaconv.cpu import implicit_gemm
from numbaconv.cpu.gemm import TILE_ROWS
from numbaconv.cpu.gemm_costs import DEPTH
from numbaconv.cpu.implicit_gemm import ImplicitGemmSetup, Lent
from numbaconv.cpu.target import target

from ..cases import CASES, case, normal_arrays
from ..checks import always_parallel
from ..layouts import channels_last, with_steps
from .test_implicit_gemm import BITS, BLOCKS, CUT, STRIDED
from .test_turned import takes

IN_PLACE, IN_STRIPS = "in place", "in strips"
FOREVER = 1e15  # cycles
TILES = 3 * TILE_ROWS
ONE_TAP = [
    case("fwd", (13, 17), (1, 1), ic=2 * DEPTH + 1, oc=TILES, b=1),
    case("fwd", (13, 17), (1, 1), ic=10, oc=2 * TILES, g=2, s=2, p=1, mb=2, b=1),
    case("fwd", (3, 5, 7), (1, 1, 1), ic=7, oc=TILES, t="f64"),
    case("fwd", (40,), (1,), ic=9, oc=TILES, p=3, mode="circular", t="s32"),
    case("igrad", (13, 17), (1, 1), ic=TILES, oc=DEPTH + 1, b=1),
    case("igrad", (6, 7), (1, 1), ic=2 * TILES, oc=8, g=2, s=2, op=1, mb=2, b=1),
    case("igrad", (5, 6, 7), (2, 2, 2), ic=TILES, oc=11, s=2, b=1),
    case("igrad", (5, 6), (2, 3), ic=TILES, oc=11, s=(3, 4), t="f64"),
]
LYING: list[Callable[[np.ndarray], np.ndarray]] = [np.array, channels_last, lambda a: with_steps(a, (1, 2, *[-1] * (a.ndim - 2)))]


def lend(monkeypatch: pytest.MonkeyPatch, way: str, setup: ImplicitGemmSetup, weight: np.ndarray, bias: np.ndarray | None) -> Lent:
    """A weight that will be used this way; skips where that cannot be."""
    monkeypatch.setattr(implicit_gemm, "PACK_CYCLES", FOREVER)
    monkeypatch.setattr(implicit_gemm, "SMALL_WEIGHT", 0)
    for name in ("READ_CYCLES", "READ_FAR_CYCLES") if way == IN_STRIPS else ("STRIP_CYCLES", "STRIP_COPY_CYCLES"):
        monkeypatch.setattr(implicit_gemm, name, FOREVER / 1000)
    lent = setup.pack_once(weight, bias)
    used = setup._lend(lent, 1)
    if len(used) < 4 or used[5] != (way == IN_STRIPS):
        pytest.skip("tiles of this processor are no whole vectors, or no whole rows of these")
    return lent


def computed(
    p: Problem, way: str | None, monkeypatch: pytest.MonkeyPatch, lying: Callable[[np.ndarray], np.ndarray] = np.array, poison: float = 0
) -> np.ndarray:
    x, w, b = normal_arrays(p)
    if poison:
        w[-1, 0] = poison
    weight, bias = storage_view(five(lying(w), p.rank)), None if b is None else b.astype(ELEMENTS[p.dtype].accumulator)
    setup, result = ImplicitGemmSetup(p), np.ones((p.batch, p.result_channels, *p.result_size), x.dtype)
    packed = lend(monkeypatch, way, setup, weight, bias) if way else setup.pack(weight, bias)
    setup.run(storage_view(five(x, p.rank)), packed, result)
    return result


def exists(text: str, way: str) -> bool:
    p = Problem.parse(text)
    if not takes(text) or p.dtype in ("float16", "bfloat16") or not p.groups * p.taps:
        return False
    setup = ImplicitGemmSetup(p)
    return setup.turnable if way == IN_STRIPS else setup.in_place and setup.rows % TILE_ROWS == 0


@pytest.mark.parametrize(
    "text, way",
    [
        (text, way)
        for text, way in itertools.product(dict.fromkeys([*ONE_TAP, *BITS, *BLOCKS, *CUT, *CASES]), (IN_PLACE, IN_STRIPS))
        if exists(text, way)
    ],
)
def test_the_bits_are_those_of_a_weight_packed_ahead(text: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem.parse(text)
    expected = computed(p, None, monkeypatch).tobytes()
    assert computed(p, way, monkeypatch).tobytes() == expected
    if text in BITS or text in ONE_TAP:
        with always_parallel():
            assert computed(p, way, monkeypatch).tobytes() == expected


def test_every_way_is_taken_here() -> None:
    assert all(exists(text, IN_PLACE) for text in ONE_TAP)
    assert exists(STRIDED[0], IN_STRIPS) == (target().lanes("float32") % TILE_ROWS == 0)


@pytest.mark.parametrize("lying", LYING[1:])
@pytest.mark.parametrize("way", [IN_PLACE, IN_STRIPS])
@pytest.mark.parametrize("text", [*ONE_TAP, STRIDED[0], case("igrad", (5, 26), (3, 3), mb=2, ic=25, oc=31, s=2, p=1)])
def test_layouts_of_the_weight_do_not_change_a_bit(
    text: str, way: str, lying: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = Problem.parse(text)
    if not exists(text, way):
        pytest.skip("needs one tap, and whole vectors")
    assert computed(p, way, monkeypatch, lying).tobytes() == computed(p, None, monkeypatch).tobytes()


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("way", [IN_PLACE, IN_STRIPS])
@pytest.mark.parametrize(
    "text",
    [
        case("fwd", (9, 10), (1, 1), ic=5, oc=TILES, p=1),
        case("fwd", (9, 10), (3, 3), ic=5, oc=TILES, p=1, b=1),
        case("fwd", (7, 9), (5, 5), ic=60, oc=TILES, p=9, d=3),
        case("igrad", (9, 10), (1, 1), ic=TILES, oc=5, s=2, op=1, b=1),
        case("igrad", (9, 10), (1, 1), ic=TILES, oc=5, s=2, d=5, op=4, b=1),
        case("igrad", (9, 10), (3, 3), ic=TILES, oc=5, s=2, p=1, op=1, b=1),
    ],
)
def test_what_is_not_finite_stays_where_the_definition_puts_it(
    text: str, way: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    p = Problem.parse(text)
    if not exists(text, way):
        pytest.skip("needs one tap, and whole vectors")
    x, w, b = normal_arrays(p)
    w[-1, 0] = value
    with np.errstate(invalid="ignore"):
        expected = reference.convolve(p, x, w, b)
    y = computed(p, way, monkeypatch, poison=value).reshape(expected.shape)
    finite = np.isfinite(expected)
    assert (~finite).any() and finite.any()
    np.testing.assert_array_equal(np.where(finite, 0, y), np.where(finite, 0, expected))
    np.testing.assert_allclose(y[finite], expected[finite], rtol=1e-4, atol=1e-4)
