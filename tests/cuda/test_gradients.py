"""Gradients and columns on a device, against the reference and the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numbaconv import Problem

from ..cases import PROBLEMS, arguments, case, dtype_of, integer_arrays
from ..checks import assert_same
from ..gradients import expected_input, expected_weight, formula_arrays, function_name
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv import grad

from .device import get, put


def _spread(problems: list[Problem]) -> list[Problem]:
    kinds: dict[tuple[Any, ...], Problem] = {}
    for p in problems:
        kinds.setdefault((p.dtype, p.direction, p.padding_mode), p)
        kinds.setdefault((p.dtype == "float32", p.direction, p.rank, p.groups > 1, p.stride != (1, 1, 1)), p)
    return list(dict.fromkeys([*kinds.values(), *problems[::25]]))


OWN = [p for p in PROBLEMS if p.out_dtype == p.dtype and p.batch]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "problem" in metafunc.fixturenames:
        problems = OWN if metafunc.config.getoption("--gpu", default=False) else _spread(OWN)
        metafunc.parametrize("problem", problems, ids=[str(p) for p in problems])


def test_exact(problem: Problem, device: Any) -> None:
    """Whole numbers: gradients with respect to input, weight and bias equal the reference's."""
    x, w, _, g = formula_arrays(problem)
    on_device = [put(device, a) for a in (x, w, g)]
    name = function_name(problem)
    input_grad = getattr(grad, f"{name}_input")(x.shape, on_device[1], on_device[2], **arguments(problem))
    assert_same(get(device, input_grad), expected_input(problem, w, g))
    weight_grad = getattr(grad, f"{name}_weight")(on_device[0], w.shape, on_device[2], **arguments(problem))
    assert_same(get(device, weight_grad), expected_weight(problem, x, g))
    assert_same(get(device, grad.conv_bias(on_device[2])), grad.conv_bias(g))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64", "int8", "int64", "uint8"])
@pytest.mark.parametrize(
    "text",
    [case("fwd", (11,), (3,), p=1, s=2), case("fwd", (6, 7), (3, 2), p=((2, 0), (0, 1)), d=2, mb=2), case("fwd", (4, 5, 6), (2, 3, 2))],
)
def test_columns(text: str, dtype: str, device: Any) -> None:
    p = Problem.parse(text)
    x = integer_arrays(p)[0].astype(dtype_of(dtype))
    options = arguments(p)
    given = {name: options[name] for name in ("dilation", "padding", "stride")}
    kernel, size = p.kernel[3 - p.rank :], p.in_size[3 - p.rank :]
    unfold, fold = (getattr(numbaconv, f"{name}{p.rank}d") for name in ("unfold", "fold"))
    columns = unfold(x, kernel, **given)
    assert_same(get(device, unfold(put(device, x), kernel, **given)), columns)
    assert_same(get(device, unfold(put(device, x[0]), kernel, **given)), columns[0])
    assert_same(get(device, fold(put(device, columns), size, kernel, **given)), fold(columns, size, kernel, **given))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex128", "int8"])
def test_bias_of_any_layout(dtype: str, device: Any) -> None:
    g = np.random.default_rng(0).integers(-9, 9, (3, 5, 4, 600)).astype(dtype_of(dtype))
    for view in (g, g.transpose(0, 1, 3, 2), g[:, ::2, ::-1], g[:0]):
        np.testing.assert_array_equal(get(device, grad.conv_bias(put(device, view))), grad.conv_bias(view))
