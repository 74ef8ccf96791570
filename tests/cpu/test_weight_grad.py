"""The fast weight gradient: exact where sums are exact, for both kinds of lanes and wherever its blocks end; bits that nothing changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbaconv import Problem, reference
from numbaconv.arrays import storage_view
from numbaconv.choose import choose
from numbaconv.cpu import weight_blocking, weight_grad
from numbaconv.cpu.weight_blocking import blocking, cut, kinds
from numbaconv.cpu.weight_fields import CHANNEL_LANES, GROUP_LANES, ROW_BANDS
from numbaconv.cpu.weight_grad import WeightGemm, WeightGemmSetup, spacing
from numbaconv.cpu.weight_kernels import RUN

from .. import layouts
from ..cases import CASES, case, dtype_of, integer_arrays, normal_arrays
from ..checks import ROUNDOFF, always_parallel, assert_same, poisoned

KINDS = ("channels", "apart", "pixels", "bands", "groups")


def weight_problem(text: str) -> Problem:
    """The weight gradient of a forward case, without bias."""
    return replace(Problem.parse(text), direction="weight_grad", bias=False)


SMALL = tuple(dict.fromkeys(weight_problem(text) for text in CASES if text.startswith(("f32_fwd", "f64_fwd")) and "_ic0" not in text))

# Several strips along every axis, blocks of channels, filters and groups, and all edges of tiles and vectors.
LARGE = [
    weight_problem(text)
    for text in (
        case("fwd", (600,), (3,), ic=5, oc=20, p=1, mb=2),
        case("fwd", (5000,), (2,), ic=3, oc=2, d=256, t="f64"),
        case("fwd", (30, 31), (3, 3), ic=40, oc=150, p=1),
        case("fwd", (30, 31), (3, 3), ic=100, oc=35, s=2, p=1),
        case("fwd", (19, 300), (3, 5), ic=4, oc=33, p=(1, 2), mb=2),
        case("fwd", (7, 7), (1, 1), ic=700, oc=260),
        case("fwd", (20, 23), (1, 1), ic=35, oc=131, mb=2),
        case("fwd", (20, 21), (1, 1), ic=70, oc=49, s=2, t="f64"),
        case("fwd", (33, 33), (3, 3), ic=6, oc=20, p=12, d=12),
        case("fwd", (64, 65), (3, 3), ic=3, oc=3, g=3, p=1, mb=3),
        case("fwd", (24, 26), (7, 7), ic=70, oc=70, g=70, p=3),
        case("fwd", (31, 40), (3, 3), ic=3, oc=3, g=3, p=13, d=12, mb=2),
        case("fwd", (40, 35), (11, 5), ic=4, oc=2, g=2, s=(3, 1), d=(2, 1), p=(7, 2)),
        case("fwd", (7, 13, 21), (4, 4, 3), ic=5, oc=5, g=5, s=(2, 3, 1), p=(3, 2, 1)),
        case("fwd", (24, 26), (3, 3), ic=64, oc=64, g=16, p=1),
        case("fwd", (13, 75), (3, 3), ic=37, oc=37, g=37, s=2, p=1, mb=2),
        case("fwd", (23, 12), (2, 4), ic=22, oc=44, g=11, s=(3, 1), d=(1, 3), p=(1, 5)),
        case("fwd", (5, 9, 8), (2, 3, 3), ic=18, oc=18, g=18, s=(1, 2, 3), p=(1, 1, 4), t="f64"),
        case("fwd", (14, 14), (3, 3), ic=128, oc=128, g=4, p=1),
        case("fwd", (6, 20, 18), (3, 3, 3), ic=20, oc=40, p=1),
        case("fwd", (4, 4, 4), (3, 3, 3), ic=20, oc=17, p=1, mb=3, t="f64"),
        case("fwd", (20, 20, 21), (7, 7, 7), ic=1, oc=1, p=3),
        case("fwd", (9, 30, 31), (3, 3, 3), ic=1, oc=20, s=(1, 2, 1), p=1, mode="reflect"),
        case("fwd", (9, 30, 31), (3, 1, 1), ic=5, oc=4, p=(1, 0, 0), mode="circular"),
        case("fwd", (40, 41), (4, 4), ic=5, oc=18, s=3, d=2, p=4, mode="replicate"),
    )
]

OTHERS = ("bfloat16", "complex64", "float16", "int8", "complex128", "int64", "uint8", "int32", "int16")
CONVERTED = [replace(p, dtype=t, out_dtype=t) for p, t in zip(LARGE, itertools.cycle(OTHERS))]
CONVERTED += [replace(p, dtype=t, out_dtype=t) for p, t in zip(SMALL[::3], itertools.cycle(OTHERS))]
"""The same in dtypes that copies convert, and of two components."""


def setup_of(p: Problem, kind: str = "") -> WeightGemmSetup:
    """The setup of a problem: as chosen, or with the given lanes."""
    setup = WeightGemmSetup(p.per_image)
    if kind:
        number = {"pixels": min(setup.cut.out_per_group, 2) - 1, "bands": ROW_BANDS, "groups": GROUP_LANES}.get(kind, CHANNEL_LANES)
        if (number, kind == "apart") not in kinds(setup.cut):
            pytest.skip("taps are apart if there is padding; bands are for one output channel a group, lanes of groups for many groups")
        setup.__dict__["blocking"] = blocking(setup.cut, number, kind == "apart")
    return setup


def compute(setup: WeightGemmSetup, x: np.ndarray, g: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    p = setup.problem
    result = np.full(p.weight_shape, 85 if x.dtype.kind in "iu" else np.nan, dtype_of(p.out_dtype)) if out is None else out
    unit = (slice(None), slice(None)) + (None,) * (3 - p.rank)
    source, grad, stored = (storage_view(a)[unit] for a in (x, g, result))
    setup.run(source, (grad,), stored)
    return result


def integers(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    return integer_arrays(replace(p, direction="forward"))[0], integer_arrays(replace(p, direction="input_grad"))[0]


def normals(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    return normal_arrays(replace(p, direction="forward"))[0], normal_arrays(replace(p, direction="input_grad"))[0]


# ---- values ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_small_problems_exactly(problem: Problem, kind: str) -> None:
    check_exact(setup_of(problem, kind), problem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", LARGE + CONVERTED, ids=str)
def test_blocks_exactly(problem: Problem, kind: str) -> None:
    check_exact(setup_of(problem, kind), problem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", LARGE + CONVERTED[: len(LARGE)] + list(SMALL[::7]), ids=str)
def test_many_small_blocks_and_shares_exactly(problem: Problem, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("CHANNEL_PIXELS", 40),
        ("PIXEL_PIXELS", 70),
        ("BAND_PIXELS", 70),
        ("GROUP_PIXELS", 70),
        ("SUMS_BYTES", 20_000),
        ("SCRATCH_BYTES", 9_000),
    ):
        monkeypatch.setattr(weight_blocking, name, value)
    monkeypatch.setattr(weight_grad, "TASK_SECONDS", 1e-9)
    check_exact(setup_of(problem, kind), problem)


def check_exact(setup: WeightGemmSetup, p: Problem) -> None:
    """Equal to the reference in whole numbers, in a poisoned ``out`` whose surroundings survive, on one thread and on all."""
    x, g = integers(p)
    expected = reference.weight_grad(p, x, g)
    assert_same(compute(setup, x, g), expected)
    buffer, out = poisoned(expected.shape, expected.dtype)
    untouched = buffer.copy()
    with always_parallel():
        assert_same(compute(setup, x, g, out), expected)
    inside = (slice(1, -1),) * out.ndim
    buffer[inside] = untouched[inside]
    assert buffer.tobytes() == untouched.tobytes(), "cells around out were written"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_error_is_that_of_summation_in_blocks(problem: Problem, kind: str) -> None:
    """No chain of additions is longer than a strip's products, RUN strips, and the runs; K products in one chain may err far more."""
    x, g = normals(problem)
    exact = reference.weight_grad(problem, x, g, rounded=False)
    setup = setup_of(problem, kind)
    b = setup.blocking
    strips = problem.batch * int(np.prod(b.strips))
    chain = int(np.prod(b.box)) + min(RUN, strips) + -(-strips // RUN) + weight_blocking.TASKS
    total = reference.weight_grad(replace(problem, dtype="float64", out_dtype="float64"), abs(x).astype("f8"), abs(g).astype("f8"))
    error = abs(compute(setup, x, g).astype("f8") - exact)
    assert (error <= chain * (ROUNDOFF[problem.dtype] + ROUNDOFF["float64"]) * total).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "c64"])
def test_only_what_the_definition_multiplies_is_multiplied(kind: str, padding: int, dtype: str) -> None:
    """Padded zeros are; nothing else is: lanes beyond a row, rows beyond a strip, neighbouring channels and filters."""
    channels = {"ic": 9, "oc": 9, "g": 9} if kind in ("bands", "groups") else {"ic": 3, "oc": 5}
    p = weight_problem(case("fwd", (21, 37), (3, 3), p=padding, s=(1, 2), t=dtype, **channels))
    x, g = integers(p)
    for array, value in ((g, np.inf), (g, np.nan), (x, np.inf), (x, np.nan)):
        for place in ((0, 0, 0, 0), (0, 1, 3, 5), (0, -1, -1, -1)):
            before, array[place] = array[place], value
            with np.errstate(invalid="ignore"):
                expected = reference.weight_grad(p, x, g)
            assert not np.isfinite(expected).all() or place[1] == -1
            assert_same(compute(setup_of(p, kind), x, g), expected)
            array[place] = before


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_give_zeros(kind: str) -> None:
    p = weight_problem(case("fwd", (5, 6), (3, 3), mb=0))
    result = compute(setup_of(p, kind), np.empty((0, 2, 5, 6), np.float32), np.empty((0, 3, 3, 4), np.float32))
    assert result.tobytes() == bytes(result.nbytes)


# ---- bits --------------------------------------------------------------------------------------------------------------
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "channels_last": layouts.channels_last,
    "reversed": lambda a: layouts.with_steps(a, (-1,) * a.ndim),
    "strided": lambda a: layouts.with_steps(a, (2, 3, -2, 2, 3)[: a.ndim]),
    "read_only": layouts.read_only,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", LARGE + CONVERTED[: len(LARGE)], ids=str)
def test_same_bits_for_threads_and_layouts(problem: Problem, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    monkeypatch.setattr(weight_grad, "TASK_SECONDS", 1e-6)
    x, g = integers(problem) if "int" in problem.dtype else normals(problem)
    setup = setup_of(problem, kind)
    expected = compute(setup, x, g)
    threads = numba.get_num_threads()
    with always_parallel():
        for count in {1, threads}:
            numba.set_num_threads(count)
            try:
                assert compute(setup, x, g).tobytes() == expected.tobytes()
            finally:
                numba.set_num_threads(threads)
    for name, layout in LAYOUTS.items():
        assert compute(setup, layout(x), layout(g)).tobytes() == expected.tobytes(), name
        if name != "read_only":
            out = layout(np.full_like(expected, 85 if expected.dtype.kind in "iu" else np.nan))
            assert compute(setup, x, g, out).tobytes() == expected.tobytes(), name
    repeated = compute(setup, layouts.repeated(x, [0, x.ndim - 1]), layouts.repeated(g, [1]))
    assert repeated.tobytes() == compute(setup, layouts.repeated(x, [0, x.ndim - 1]).copy(), layouts.repeated(g, [1]).copy()).tobytes()


# ---- the blocking and the algorithm ------------------------------------------------------------------------------------
@given(st.tuples(*[st.integers(1, 3000)] * 3), st.integers(1, 5000))
def test_strips_cover_the_output_and_respect_the_limit(size: tuple[int, int, int], most: int) -> None:
    strips, box = cut(size, most)
    assert np.prod(box) <= most
    for n, count, largest in zip(size, strips, box):
        lengths = {n * (i + 1) // count - n * i // count for i in range(count)}
        assert max(lengths) == largest and min(lengths) >= 1


def test_spacing() -> None:
    assert spacing([6, 2, 1], (4, 3, 2)) == 1 and spacing([7, 5, 9], (1, 3, 1)) == 5 and spacing([12, 4, 2], (4, 3, 2)) == 2
    assert spacing([6, 1, 2], (4, 3, 2)) == 0 and spacing([3, 0, 0], (1, 1, 1)) == 1 and spacing([-6, -2, -1], (4, 3, 2)) == -1


@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_workspace_is_bounded(problem: Problem) -> None:
    """Copies and sums of the threads, shares of small gradients: never an unrolled input."""
    setup = WeightGemmSetup(problem.per_image)
    shares = weight_blocking.TASKS * weight_blocking.SUMS_BYTES * 2
    largest = problem.taps * 8 * 8 * 128
    assert setup.workspace < 4 * (weight_blocking.SUMS_BYTES + weight_blocking.SCRATCH_BYTES + largest) * 2 + shares


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"direction": "forward"}, "it computes gradients of the weight"),
        ({"direction": "input_grad"}, "it computes gradients of the weight"),
        ({"in_channels": 0}, "there are no channels"),
    ],
)
def test_declines(change: dict[str, Any], reason: str) -> None:
    problem = replace(weight_problem(case("fwd", (5, 6), (3, 3))), **change)
    assert str(WeightGemm().supports(problem)).startswith(reason)


def test_is_chosen() -> None:
    for problem in LARGE:
        assert choose(problem).name == "weight_gemm"
