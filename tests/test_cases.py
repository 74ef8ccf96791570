"""Every algorithm on every case of the table that it supports, against the reference.

Algorithms that transform their input (accuracy other than "definition") have tests of their errors of their own.
"""

from __future__ import annotations

import numpy as np
import pytest

import numbaconv
from numbaconv import Problem, reference
from numbaconv.choose import registry

from .cases import CASES, FLOAT_NAMES, PROBLEMS, TOKENS, arguments, call, case, dtype_of, integer_arrays
from .checks import assert_same, check_exact, check_rounding, every


def test_the_table_is_long_and_wide() -> None:
    assert len(CASES) == len(set(CASES)) >= 300
    spread = {(p.rank, p.direction) for p in PROBLEMS}
    assert spread == {(rank, direction) for rank in (1, 2, 3) for direction in ("forward", "input_grad")}
    assert {text.split("_")[0].split("-")[0] for text in CASES} == set(TOKENS)


@pytest.mark.parametrize("text", CASES)
def test_the_public_arguments_describe_the_problem(text: str) -> None:
    p = Problem.parse(text)
    shapes = (p.source_shape, p.weight_shape, (p.result_channels,) if p.bias else None)
    described = numbaconv.explain(
        *shapes, transposed=p.transposed, dtype=dtype_of(p.dtype), out_dtype=dtype_of(p.out_dtype), **arguments(p)
    ).problem
    assert described == p and str(described) == text


def test_direct_supports_everything() -> None:
    last = registry("cpu")[-1]
    assert last.name == "direct" and last.accuracy == "definition"
    assert [str(p) for p in PROBLEMS if last.supports(p) is not None] == []


@every(PROBLEMS)
def test_exact(algorithm: str, problem: Problem) -> None:
    check_exact(problem, algorithm)


@every(p for p in PROBLEMS if p.dtype in FLOAT_NAMES)
def test_rounding_errors(algorithm: str, problem: Problem) -> None:
    check_rounding(problem, algorithm)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch == 1][::6], ids=str)
def test_unbatched_input_gives_unbatched_result(problem: Problem) -> None:
    x, w, b = integer_arrays(problem)
    assert_same(call(problem, x[0], w, b), call(problem, x, w, b)[0])


# ---- values that are not finite: a padded zero is multiplied, an inserted zero does not exist ----------------------------
NON_FINITE = [
    Problem.parse(text)
    for t in ("f32", "f64", "f16", "bf16")
    for text in (
        case("fwd", (9,), (3,), p=1, t=t),
        case("fwd", (5, 18), (3, 3), p=1, ic=3, oc=5, b=1, t=t),
        case("fwd", (5, 18), (3, 3), p=2, d=2, ic=4, oc=4, g=4, t=t),
        case("fwd", (6, 7), (3, 2), p=((2, 0), (0, 1)), s=2, t=t),
        case("fwd", (3, 4, 5), (3, 3, 3), p=1, t=t),
        case("fwd", (5, 6), (3, 3), p=1, mode="reflect", t=t),
        case("igrad", (5, 6), (3, 3), s=2, p=1, op=1, t=t),
        case("igrad", (3, 2, 5), (2, 3, 2), s=3, d=2, op=1, t=t),
    )
]


@every(NON_FINITE)
def test_infinite_weight(algorithm: str, problem: Problem) -> None:
    x, w, b = np.ones_like(integer_arrays(problem)[0]), *integer_arrays(problem)[1:]
    w[0] = np.inf
    y = call(problem, x, w, b, algorithm=algorithm)
    with np.errstate(invalid="ignore"):
        assert_same(y, reference.convolve(problem, x, w, b))
    meets_padding = problem.padding_mode == "zeros" and not problem.transposed
    assert np.isnan(y).any() == meets_padding and np.isinf(y).any()


@every(NON_FINITE)
def test_non_finite_input(algorithm: str, problem: Problem) -> None:
    x, w, b = integer_arrays(problem)
    flat = x.reshape(-1)
    flat[0], flat[2] = np.nan, np.inf
    w.reshape(-1)[1::3] = 0
    with np.errstate(invalid="ignore"):
        expected = reference.convolve(problem, x, w, b)
    assert np.isnan(expected).any()
    assert_same(call(problem, x, w, b, algorithm=algorithm), expected)
