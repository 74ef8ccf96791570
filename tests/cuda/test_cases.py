"""The table of cases on a device, every algorithm against the reference: the whole of it on a GPU, a spread of it emulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, reference

from ..cases import FLOAT_NAMES, PROBLEMS, arguments, integer_arrays, normal_arrays
from ..checks import assert_same, rounding_bound, wide
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv.choose import registry

from .device import get, put

Pair = tuple[str, Problem]
PAIRS: list[Pair] = [(a.name, p) for a in registry("cuda") for p in PROBLEMS if a.supports(p) is None]


def spread() -> list[Pair]:
    """For each algorithm the first case of each dtype, direction, padding mode and rank, and every twentieth beside them."""
    kinds: dict[tuple[Any, ...], Pair] = {}
    for name, p in PAIRS:
        kinds.setdefault((name, p.dtype, p.out_dtype, p.direction, p.padding_mode), (name, p))
        kinds.setdefault((name, p.dtype == "float32", p.direction, p.rank, p.groups > 1, p.stride != (1, 1, 1)), (name, p))
    return list(dict.fromkeys([*kinds.values(), *PAIRS[::20]]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pair" in metafunc.fixturenames:
        pairs = PAIRS if metafunc.config.getoption("--gpu", default=False) else spread()
        metafunc.parametrize("pair", pairs, ids=[f"{name}-{p}" for name, p in pairs])


def call(device: Any, p: Problem, arrays: Any, **options: Any) -> Any:
    """The public function for the problem, with its arrays put on the device."""
    function = getattr(numbaconv, f"conv{'_transpose' if p.transposed else ''}{p.rank}d")
    given = [None if a is None else put(device, a) for a in arrays]
    return function(*given, **arguments(p), **({"out_dtype": p.out_dtype} if p.out_dtype != p.dtype else {}), **options)


def test_exact(pair: Pair, device: Any) -> None:
    """Whole numbers: equal to the reference."""
    algorithm, p = pair
    arrays = integer_arrays(p)
    result = call(device, p, arrays, algorithm=algorithm)
    assert_same(get(device, result), reference.convolve(p, *arrays))


def test_rounding_errors(pair: Pair, device: Any) -> None:
    """Normally distributed inputs: within the rounding errors of summation in any order, and the same bits in any batch."""
    algorithm, p = pair
    if p.dtype not in FLOAT_NAMES or not p.batch:
        pytest.skip("integers are exact, and an empty batch is empty")
    x, w, b = normal_arrays(p)
    exact = reference.convolve(p, x, w, b, rounded=False)
    result = get(device, call(device, p, (x, w, b), algorithm=algorithm))
    assert (np.abs(wide(result) - exact) <= rounding_bound(p, x, w, b, exact)).all()
    twice = get(device, call(device, p, (np.concatenate([x, x]), w, b), algorithm=algorithm))
    assert twice[-p.batch :].tobytes() == result.tobytes()
