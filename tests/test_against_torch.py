"""Live comparison with torch, where it is installed.

``NUMBACONV_REQUIRE_TORCH=1`` turns a missing torch into a failure.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

import numbaconv
from numbaconv import Problem, reference

from .cases import PROBLEMS, arguments, call, dtype_of, integer_arrays, normal_arrays
from .checks import assert_same, rounding_bound, wide
from .test_properties import problems

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    if os.environ.get("NUMBACONV_REQUIRE_TORCH") == "1":
        raise
    pytest.skip(f"torch is not installed: {error}", allow_module_level=True)

FLOATS = ("float64", "float32", "complex64", "complex128")
PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def by_torch(p: Problem, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """torch's result for the problem; padding that its arguments cannot say is padded, or cropped, beside it."""
    x_, w_, b_ = (None if array is None else torch.from_numpy(array) for array in (x, w, b))
    options: dict[str, Any] = arguments(p)
    pairs, mode = options.pop("padding"), options.pop("padding_mode", "zeros")
    plain = mode == "zeros" and all(lo == hi for lo, hi in pairs)
    if p.transposed:
        function = getattr(F, f"conv_transpose{p.rank}d")
        if plain:
            return function(x_, w_, b_, padding=[lo for lo, _ in pairs], **options).numpy()
        extra = options.pop("output_padding")  # inside the crop there may be fewer cells at the end than torch's whole result has
        y = function(x_, w_, b_, output_padding=extra, **options).numpy()
        return y[(..., *(slice(lo, n - hi) for (lo, hi), n in zip(pairs, y.shape[2:])))]
    if plain:
        options["padding"] = [lo for lo, _ in pairs]
    else:
        x_ = F.pad(x_, [cells for pair in reversed(pairs) for cells in pair], PAD[mode])
    return getattr(F, f"conv{p.rank}d")(x_, w_, b_, **options).numpy()


def torch_computes(p: Problem) -> bool:
    """Floats with something to sum: torch loses results without input channels."""
    return p.out_dtype == p.dtype and min(p.batch, p.in_channels) > 0 and p.dtype in FLOATS


def check_against_torch(p: Problem) -> None:
    """Each within the rounding errors of a sum in any order, so within twice those of each other."""
    x, w, b = normal_arrays(p)
    ours, theirs = call(p, x, w, b), by_torch(p, x, w, b)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    exact = reference.convolve(p, x, w, b, rounded=False)
    assert (np.abs(wide(ours) - wide(theirs)) <= 2 * rounding_bound(p, x, w, b, exact)).all()


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if torch_computes(p)], ids=str)
def test_cases(problem: Problem) -> None:
    check_against_torch(problem)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(problems())
def test_random_problems(p: Problem) -> None:
    assume(torch_computes(p))
    check_against_torch(p)


def integer_case(p: Problem) -> bool:
    """torch has narrow integers neither transposed nor dilated."""
    narrow = p.dtype in ("int8", "int16", "int32", "uint8")
    in_torch = p.dtype == "int64" or (narrow and not p.transposed and p.dilation == (1, 1, 1))
    plain = p.padding_mode == "zeros" and all(lo == hi for lo, hi in p.padding)
    return in_torch and plain and p.out_dtype == p.dtype and min(p.batch, p.in_channels) > 0


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if integer_case(p)], ids=str)
def test_integers_are_equal(problem: Problem) -> None:
    arrays = integer_arrays(problem)
    assert_same(call(problem, *arrays), by_torch(problem, *arrays))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_halves_are_rounded_once(dtype: torch.dtype, rank: int) -> None:
    """Whole numbers whose sums are exact in float32: both round them once."""
    rng = np.random.default_rng(rank)
    for function, weight, channels in ((f"conv{rank}d", (7, 40), 7), (f"conv_transpose{rank}d", (40, 5), 5)):
        shapes = (2, 40, *(6,) * rank), (*weight, *(3,) * rank), (channels,)
        tensors = [torch.from_numpy(rng.integers(-4, 4, shape, endpoint=True)).to(dtype) for shape in shapes]
        arrays = [tensor.float().numpy().astype(dtype_of(str(dtype).removeprefix("torch."))) for tensor in tensors]
        theirs = getattr(F, function)(*tensors)
        np.testing.assert_array_equal(getattr(numbaconv, function)(*arrays).astype(np.float32), theirs.float().numpy())
