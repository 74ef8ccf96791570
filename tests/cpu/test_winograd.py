"""Winograd convolution: its matrices, its rounding errors against implicit GEMM's, the edges of tiles and tasks, bits, values that are
not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import numbaconv
from numbaconv import Problem, reference
from numbaconv.cpu import threads, winograd
from numbaconv.cpu.winograd import CHAINS, Winograd, WinogradSetup
from numbaconv.cpu.winograd_factors import FACTORS, MOST_WEIGHTS, axis_factors
from numbaconv.cpu.winograd_matrices import IDENTITY, Factor

from ..cases import call, case, integer_arrays, normal_arrays
from ..checks import always_parallel, assert_same, check_rounding, poisoned
from ..layouts import channels_last, read_only, repeated, with_axes_in_order, with_steps

AUTO, FAST = Winograd("winograd", "transform"), Winograd("winograd_fast", "loose")


def run(p: Problem, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray | None = None) -> np.ndarray:
    """The problem by whichever of the two takes it."""
    algorithm = "winograd" if AUTO.supports(p) is None else "winograd_fast"
    return call(p, x, w, b, algorithm=algorithm, precision=None if algorithm == "winograd" else "fast", out=out)


# ---- matrices ------------------------------------------------------------------------------------------------------------
USED = sorted({factor for factors in FACTORS.values() for factor in factors if factor != IDENTITY})


@pytest.mark.parametrize("factor", USED)
def test_one_axis_is_a_correlation(factor: Factor) -> None:
    """Exactly, in fractions; and the coefficients of input and output are exact in float32."""
    d = [Fraction(3 * i % 7 - 2, 3) for i in range(factor.cells)]
    w = [Fraction(5 * k % 11 - 4, 7) for k in range(factor.taps)]
    products = [sum(a * x for a, x in zip(row, w)) * sum(a * x for a, x in zip(line, d)) for row, line in zip(factor.weight, factor.input)]
    results = [sum(a * x for a, x in zip(row, products)) for row in factor.output]
    assert results == [sum(w[k] * d[i + k] for k in range(factor.taps)) for i in range(factor.outputs)]
    assert all(Fraction(float(np.float32(a))) == a for matrix in (factor.input, factor.output) for row in matrix for a in row)


# ---- right everywhere ----------------------------------------------------------------------------------------------------
EDGES = [
    # ragged tiles on every side, one to three tiles and many; rows of filters that are not whole; one channel more than a chain
    *(case("fwd", (h, w), (3, 3), ic=16, oc=17, p=1, b=1) for h, w in ((7, 8), (8, 9), (9, 70), (10, 11), (13, 4), (40, 41))),
    case("fwd", (11, 10), (3, 3), ic=CHAINS[2] + 1, oc=30, p=1, mb=3),
    case("fwd", (23, 14), (3, 3), ic=40, oc=70, g=2, p=1, mb=2, b=1),
    # padding of any kind and none
    case("fwd", (19, 22), (3, 3), ic=16, oc=16),
    case("fwd", (9, 14), (3, 3), ic=16, oc=16, p=((0, 4), (5, 1)), b=1),
    *(case("fwd", (9, 14), (3, 3), ic=16, oc=16, p=((1, 2), (2, 0)), mode=mode) for mode in ("reflect", "replicate", "circular")),
    # three axes, and those that are not transformed
    *(case("fwd", size, (3, 3, 3), ic=16, oc=20, p=1, b=1) for size in ((5, 6, 7), (2, 9, 18), (9, 5, 5))),
    case("fwd", (7, 8, 9), (3, 3, 3), ic=33, oc=16, p=((2, 0), (1, 1), (0, 2)), mb=2),
    case("fwd", (5, 6, 9), (3, 3, 3), ic=16, oc=16, p=1, mode="reflect"),
    case("fwd", (29, 6, 7), (3, 3, 3), ic=16, oc=17, p=1, b=1),  # fewer stacks of tiles than a vector has lanes, and many tiles in each
    case("fwd", (4, 9, 10), (1, 3, 3), ic=16, oc=16, p=(0, 1, 1), mb=2, b=1),
    case("fwd", (11, 4, 5), (3, 1, 1), ic=16, oc=16, p=(1, 0, 0), mb=2),
    case("fwd", (90,), (3,), ic=16, oc=19, p=1, mb=3, b=1),
    case("fwd", (13, 15), (5, 5), ic=16, oc=16, p=2, b=1),
    case("fwd", (75,), (7,), ic=16, oc=16, p=3),
    # gradients of the input
    case("igrad", (12, 17), (3, 3), ic=30, oc=16, p=1, mb=2, b=1),
    case("igrad", (6, 7, 8), (3, 3, 3), ic=16, oc=18, p=(0, 1, 2)),
    # float64
    case("fwd", (11, 18), (3, 3), ic=16, oc=17, p=1, b=1, t="f64"),
    case("fwd", (9, 10, 11), (3, 3, 3), ic=16, oc=16, p=1, t="f64"),
    # halves: rows converted in vectors, and one by one
    *(case("fwd", (11, 18), (3, 3), ic=16, oc=17, p=1, b=1, t=t) for t in ("f16", "bf16")),
    case("fwd", (9, 14), (3, 3), ic=16, oc=16, p=((1, 2), (2, 0)), mode="reflect", t="bf16"),
    case("fwd", (5, 6, 7), (3, 3, 3), ic=16, oc=20, p=1, b=1, t="f16"),
    case("igrad", (12, 17), (3, 3), ic=30, oc=16, p=1, mb=2, b=1, t="bf16"),
]


@pytest.mark.parametrize("text", EDGES)
def test_rounding_errors(text: str) -> None:
    check_rounding(Problem.parse(text), "winograd")


@pytest.mark.parametrize("text", EDGES)
def test_writes_the_result_alone(text: str) -> None:
    """On all threads, into a poisoned ``out`` whose surroundings survive: the same bits as in a fresh result on one thread."""
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    buffer, out = poisoned(p.result_shape, x.dtype)
    untouched = buffer.copy()
    with always_parallel():
        assert run(p, x, w, b, out) is out
    assert out.tobytes() == run(p, x, w, b).tobytes()
    inside = (slice(1, -1),) * out.ndim
    buffer[inside] = untouched[inside]
    assert buffer.tobytes() == untouched.tobytes(), "cells around out were written"


@pytest.mark.parametrize("size, t", [((16, 20), "f64"), ((8, 9), "f64"), ((12, 20), "f32")])
def test_channels_of_every_remainder(size: tuple[int, ...], t: str) -> None:
    """One to three vectors of tiles a task, of whatever width: transformed cells of one product must not reach into the next one's."""
    for channels in range(16, 24):
        check_rounding(Problem.parse(case("fwd", size, (3, 3), ic=channels, oc=16, p=1, t=t)), "winograd")


@pytest.mark.parametrize("kernel", [(3, 3), (3, 3, 3)])
def test_transformed_cells_lie_apart(kernel: tuple[int, ...]) -> None:
    for channels in range(16, 80):
        p = Problem.parse(case("fwd", (12,) * len(kernel), kernel, ic=channels, oc=16, p=1))
        setup = WinogradSetup(p, axis_factors(p, "transform"))
        for width in range(2, 50, 2):  # any number of lanes, in vectors of any width
            step, row, size = setup._cells(width)
            inner, outer = sorted([(step, setup.products), (row, channels)])
            assert inner[0] >= width and outer[0] >= inner[0] * inner[1] and size >= outer[0] * outer[1]


# Each class of layers: few and many channels, every kernel that there is a transform for.
CLASSES = [
    *(case("fwd", (28, 28), (3, 3), ic=n, oc=32, p=1) for n in (16, 64, 256, 512)),
    *(case("fwd", (12, 20, 24), (3, 3, 3), ic=n, oc=16, p=1) for n in (16, 64, 192, 512)),
    case("fwd", (8, 14, 14), (3, 3, 3), ic=256, oc=16, p=1),  # much of it border, where implicit GEMM's errors are small
    *(case("fwd", (40, 40), (5, 5), ic=n, oc=16, p=2) for n in (16, 128)),
    case("fwd", (6, 20, 20), (1, 3, 3), ic=64, oc=16, p=(0, 1, 1)),
    case("fwd", (16, 9, 9), (3, 1, 1), ic=64, oc=16, p=(1, 0, 0)),
    case("fwd", (900,), (3,), ic=64, oc=16, p=1),
    case("fwd", (900,), (5,), ic=64, oc=16, p=2),
    case("fwd", (900,), (7,), ic=64, oc=16, p=3),
    case("igrad", (28, 28), (3, 3), ic=32, oc=64, p=1),
]


def errors(p: Problem, algorithm: str) -> np.ndarray:
    """Against the same numbers convolved in float64."""
    x, w, _ = normal_arrays(p)
    exact = call(replace(p, dtype="float64", out_dtype="float64"), x.astype(np.float64), w.astype(np.float64), None, precision="ieee")
    return call(p, x, w, None, algorithm=algorithm, precision="fast") - exact


@pytest.mark.parametrize("text", CLASSES)
def test_errors_stay_within_the_rule_of_auto(text: str) -> None:
    """rms at most three times that of implicit GEMM; "fast" at most twelve times."""
    p = Problem.parse(text)
    plain = np.sqrt(np.mean(errors(p, "implicit_gemm") ** 2))
    for algorithm, most in ((AUTO, 3), (FAST, 12)):
        if algorithm.supports(p) is None:
            assert np.sqrt(np.mean(errors(p, algorithm.name) ** 2)) <= most * plain, algorithm.name


def test_fast_takes_fewer_products() -> None:
    p = Problem.parse(case("fwd", (8, 28, 28), (3, 3, 3), ic=16, oc=16, p=1))
    assert [WinogradSetup(p, axis_factors(p, accuracy)).products for accuracy in ("transform", "loose")] == [4 * 36, 216]
    assert axis_factors(p, "transform") != axis_factors(p, "loose")
    check_rounding(p, "winograd")


def test_who_may_take_it() -> None:
    """auto and "fast" may, "ieee" and "tf32" may not; "fast" alone may take the looser one."""
    x, w = (1, 64, 8, 28, 28), (64, 64, 3, 3, 3)
    assert numbaconv.explain(x, w, padding=1).algorithm == "winograd"
    assert numbaconv.explain(x, w, padding=1, precision="ieee").algorithm == "implicit_gemm"
    assert numbaconv.explain(x, w, padding=1, precision="fast").algorithm in ("winograd", "winograd_fast")
    with pytest.raises(ValueError, match="every product of the definition"):
        numbaconv.explain(x, w, padding=1, precision="ieee", algorithm="winograd")
    with pytest.raises(ValueError, match="precision='fast'"):
        numbaconv.explain(x, w, padding=1, algorithm="winograd_fast")


# ---- layouts -------------------------------------------------------------------------------------------------------------
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "channels last": channels_last,
    "Fortran order": lambda a: with_axes_in_order(a, range(a.ndim)[::-1]),
    "every third column backwards": lambda a: with_steps(a, (1, 2, *(-1,) * (a.ndim - 3), -3)),
    "images backwards": lambda a: with_steps(a, (-1, -1, *(2,) * (a.ndim - 3), 1)),
    "read-only": read_only,
}
STRIDED = [
    case("fwd", (11, 18), (3, 3), mb=2, ic=16, oc=19, p=1, b=1),
    case("fwd", (11, 18), (3, 3), mb=2, ic=16, oc=19, p=1, b=1, mode="reflect"),
    case("fwd", (5, 7, 9), (3, 3, 3), mb=2, ic=16, oc=17, p=1),
    case("fwd", (90,), (3,), mb=2, ic=16, oc=19, p=1),
    case("fwd", (11, 18), (3, 3), mb=2, ic=16, oc=19, p=1, b=1, t="f16"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", STRIDED)
def test_layouts_do_not_change_a_bit(text: str, layout: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    expected, laid = run(p, x, w, b), LAYOUTS[layout]
    assert run(p, laid(x), laid(w), b).tobytes() == expected.tobytes()
    if layout != "read-only":
        out = laid(np.full_like(expected, np.nan))
        around = memory(out).copy()
        run(p, x, w, b, out)
        assert out.tobytes() == expected.tobytes()
        out[...] = np.nan
        assert memory(out).tobytes() == around.tobytes(), "cells between those of out were written"


def memory(view: np.ndarray) -> np.ndarray:
    """The whole memory that a view was made of."""
    while view.base is not None:
        view = view.base
    return view


def test_strides_of_zero() -> None:
    p = Problem.parse(STRIDED[0])
    x, w, b = normal_arrays(p)
    for axes in ((0,), (1,), (2, 3)):
        same = repeated(x, axes)
        assert run(p, same, w, b).tobytes() == run(p, np.ascontiguousarray(same), w, b).tobytes()


# ---- bits ----------------------------------------------------------------------------------------------------------------
BITS = [
    case("fwd", (12, 31), (3, 3), mb=7, ic=100, oc=40, p=1, b=1),
    case("fwd", (29, 30), (3, 3), mb=3, ic=32, oc=34, g=2, p=1),
    case("fwd", (17, 22, 15), (3, 3, 3), mb=3, ic=20, oc=24, p=1, b=1),
    case("igrad", (12, 13), (3, 3), mb=3, ic=20, oc=24, p=1),
    case("fwd", (200,), (3,), mb=3, ic=20, oc=24, p=1),
    case("fwd", (12, 31), (3, 3), mb=3, ic=20, oc=24, p=1, t="f64"),
    case("fwd", (12, 31), (3, 3), mb=7, ic=100, oc=40, p=1, b=1, t="bf16"),
]


@pytest.mark.parametrize("text", BITS)
def test_bits_do_not_depend_on_the_batch_or_the_threads(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    together = run(p, x, w, b)
    alone = [run(replace(p, batch=1), x[i : i + 1], w, b) for i in range(p.batch)]
    assert together.tobytes() == np.concatenate(alone).tobytes()
    with always_parallel():
        assert together.tobytes() == run(p, x, w, b).tobytes()


def test_bits_do_not_depend_on_the_order_of_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of one task along a stack, of some, the last one being shorter, and of all."""
    p = Problem.parse(case("fwd", (57, 22, 75), (3, 3, 3), ic=40, oc=36, g=2, p=1))
    x, w, _ = normal_arrays(p)
    expected, sweeps = run(p, x, w, None), []
    for size in (0, 1_000_000, 1 << 40):
        monkeypatch.setattr(winograd, "SWEEP_BYTES", size)
        setup, result = WinogradSetup(p, axis_factors(p, "transform")), np.full_like(expected, np.nan)
        setup.run(x, setup.pack(w, None), result)
        assert result.tobytes() == expected.tobytes()
        sweeps.append(int(setup._place(x, result, 1)[0][winograd.tables.SWEEP]))
    assert sweeps[0] == 1 < sweeps[1] < sweeps[2] and sweeps[2] % sweeps[1]


@pytest.mark.parametrize("value", [1.0, np.nan])
@pytest.mark.parametrize(
    "text",
    [
        case("fwd", (14, 15), (3, 3), mb=1, ic=40, oc=75, p=1, b=1),  # one task, which packs the weight pass by pass
        case("fwd", (14, 15), (3, 3), mb=1, ic=40, oc=150, g=2, p=1, b=1),
        case("fwd", (40, 41), (3, 3), mb=2, ic=20, oc=35, p=1, b=1),  # many, for which it is packed before
        case("fwd", (9, 10, 11), (3, 3, 3), mb=1, ic=35, oc=150, p=1, b=1),
        case("fwd", (90,), (5,), mb=2, ic=17, oc=16, p=1, b=1),
        case("fwd", (14, 15), (3, 3), mb=1, ic=40, oc=75, p=1, b=1, t="bf16"),
    ],
)
def test_a_function_has_the_bits_of_a_plan(text: str, value: float) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    x.reshape(-1)[[0, x.size // 3]] = value
    name = "winograd" if AUTO.supports(p) is None else "winograd_fast"
    plan = numbaconv.plan(x, w, b, padding=1, groups=p.groups, algorithm=name, precision="fast")
    expected = plan(x)
    assert run(p, x, w, b).tobytes() == expected.tobytes()
    with always_parallel():
        assert run(p, x, channels_last(w), b).tobytes() == expected.tobytes()


@pytest.mark.parametrize("text", [case("fwd", (28, 28), (3, 3), ic=64, oc=64, p=1), case("fwd", (8, 14, 14), (3, 3, 3), ic=64, oc=64, p=1)])
def test_costs_are_those_of_all_tiles(text: str) -> None:
    """Twice the image costs about twice the time, whichever way it grows; and nothing is free."""
    p = Problem.parse(text)
    once = AUTO.cost(p)
    for axis in range(3 - p.rank, 3):
        size = tuple(2 * n if i == axis else n for i, n in enumerate(p.in_size))
        assert 1.5 * once < AUTO.cost(replace(p, in_size=size)) < 2.3 * once


@pytest.mark.parametrize("text", [BITS[0], BITS[2]])
def test_bits_do_not_depend_on_the_place_of_a_block(text: str) -> None:
    """A block on the tile grid, computed alone with its halo, has the bits of the whole."""
    p = replace(Problem.parse(text), batch=1)
    x, w, b = normal_arrays(p)
    whole = run(p, x, w, b)
    setup = WinogradSetup(p, axis_factors(p, "transform"))
    starts = [2 * factor.outputs if n > 1 else 0 for factor, n in zip(setup.factors, p.in_size)][3 - p.rank :]
    padded = np.pad(x, ((0, 0), (0, 0), *((1, 1),) * p.rank))
    block = padded[(slice(None), slice(None), *(slice(start, None) for start in starts))]
    inside = replace(p, in_size=(1,) * (3 - p.rank) + block.shape[2:], padding=((0, 0),) * 3)
    assert axis_factors(inside, "transform") == setup.factors
    expected = whole[(slice(None), slice(None), *(slice(start, None) for start in starts))]
    assert run(inside, block, w, b).tobytes() == expected.tobytes()


# ---- values that are not finite ------------------------------------------------------------------------------------------
NON_FINITE = [
    case("fwd", (13, 22), (3, 3), mb=2, ic=17, oc=18, p=1, b=1),
    case("fwd", (13, 22), (3, 3), ic=16, oc=18, p=1, mode="circular"),
    case("fwd", (6, 9, 10), (3, 3, 3), ic=16, oc=17, p=1),
    case("fwd", (5, 9, 10), (1, 3, 3), ic=16, oc=17, p=(0, 1, 1)),
    case("fwd", (90,), (3,), ic=16, oc=19, p=1),
    case("igrad", (13, 14), (3, 3), ic=20, oc=16, p=1),
]


@pytest.mark.parametrize("text", NON_FINITE)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_they_stay_where_the_definition_puts_them(text: str, value: float) -> None:
    """In the input: one here and there.  Their neighbours keep the bits that they have without them, where they lie in other tiles."""
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    clean = run(p, x, w, b)
    flat = x.reshape(-1)
    flat[[0, flat.size // 3, flat.size - 1]] = value
    y = run(p, x, w, b)
    with np.errstate(invalid="ignore"):
        expected = reference.convolve(p, x, w, b)
    not_finite = ~np.isfinite(expected)
    assert not_finite.any() and not not_finite.all()
    np.testing.assert_array_equal(y[not_finite], expected[not_finite])
    np.testing.assert_allclose(y[~not_finite], clean[~not_finite], rtol=0, atol=1e-4 * np.abs(clean).max())


@pytest.mark.parametrize("text", NON_FINITE)
def test_an_infinite_weight_makes_nan_of_padded_zeros(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = normal_arrays(p)
    x, w[3, 2, ..., 0] = np.abs(x) + 1, np.inf
    with np.errstate(invalid="ignore"):
        expected = reference.convolve(p, x, w, b)
    y = run(p, x, w, b)
    not_finite = ~np.isfinite(expected)
    assert np.isinf(expected).any()
    assert np.isnan(expected).any() == (p.padding_mode == "zeros" and not p.transposed)
    np.testing.assert_array_equal(y[not_finite], expected[not_finite])
    assert np.isfinite(y[~not_finite]).all()


@pytest.mark.parametrize("t", ["f16", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_halves_that_are_not_finite(t: str, value: float) -> None:
    """In the input, and sums beyond the largest float16: infinite as by the definition."""
    p = Problem.parse(case("fwd", (13, 22), (3, 3), ic=16, oc=18, p=1, t=t))
    x, w, _ = integer_arrays(p)
    x.reshape(-1)[[0, 999]], x[..., -3:, -5:], w[5] = value, 30000, np.abs(w[5]) + 1
    y = run(p, x, w, None)
    with np.errstate(all="ignore"):
        expected = reference.convolve(p, x, w)
        not_finite = ~np.isfinite(expected)
        assert np.isinf(expected[0, 5, -3:, -5:]).any() == (t == "f16") and not not_finite.all()
        assert_same(y[not_finite], expected[not_finite])
        assert np.isfinite(y[~not_finite]).all()


def test_a_transform_that_overflows_is_computed_by_the_definition() -> None:
    """Cells near the largest number: their sums in the transforms overflow, those of the definition do not."""
    p = Problem.parse(case("fwd", (13, 22), (3, 3), ic=16, oc=17, p=1))
    x, w, _ = integer_arrays(p)
    x[:, 0] = 3e38 * np.sign(x[:, 0])
    x[:, 1:], w[:, 0], w[:, 0, 1, 1] = 1, 0, 1
    y = run(p, x, w, None)
    with np.errstate(all="ignore"):
        assert np.isfinite(y).all()
        assert_same(y, reference.convolve(p, x, w))


# ---- what it says about itself -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", EDGES)
def test_sizes_are_as_stated(text: str) -> None:
    p = Problem.parse(text)
    _, w, b = normal_arrays(p)
    setup = WinogradSetup(p, axis_factors(p, "transform"))
    assert sum(part.nbytes for part in setup.pack(w[(slice(None), slice(None)) + (None,) * (3 - p.rank)], b)) == setup.packed_bytes
    assert 0 < setup.workspace < threads.most_threads() * (16 << 20)
    assert math.prod(factor.cells for factor in setup.factors) <= MOST_WEIGHTS * p.taps


def test_workspace_does_not_grow_with_the_image() -> None:
    small, large = (Problem.parse(case("fwd", (n, n, n), (3, 3, 3), ic=32, oc=64, p=1)) for n in (64, 2048))
    assert AUTO.setup(large).workspace == AUTO.setup(small).workspace


REASONS = {
    case("fwd", (20, 20), (3, 3), ic=16, oc=16, t="s8"): "int8",
    case("fwd", (20, 20), (3, 3), ic=15, oc=16): "channels",
    case("fwd", (20, 20), (3, 3), ic=64, oc=64, g=8): "group",
    case("fwd", (20, 20), (3, 3), ic=16, oc=16, s=2): "stride",
    case("fwd", (20, 20), (3, 3), ic=16, oc=16, d=2): "dilation",
    case("fwd", (8, 8), (3, 3), ic=16, oc=16): "results",
    case("fwd", (20, 20), (4, 3), ic=16, oc=16): "(4, 3)",
    case("fwd", (20, 20), (1, 1), ic=16, oc=16): "(1, 1)",
}


@pytest.mark.parametrize("text", REASONS)
def test_declines_with_a_reason(text: str) -> None:
    reason = AUTO.supports(Problem.parse(text))
    assert reason is not None and REASONS[text] in reason


def test_declines_gradients_that_fold_back_and_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem.parse(case("fwd", (20, 20), (3, 3), ic=16, oc=16, p=1, mode="reflect"))
    assert AUTO.supports(p) is None and "fold back" in str(AUTO.supports(replace(p, direction="input_grad")))
    assert "weight" in str(AUTO.supports(replace(p, direction="weight_grad")))
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", True)
    assert "NUMBA_DISABLE_JIT" in str(AUTO.supports(p))
