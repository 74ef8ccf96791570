"""The reference itself: against scalar loops written from the formulas, and against torch's recorded outcomes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import numbaconv
from numbaconv import Problem, reference

from . import recorded
from .cases import case, integer_arrays
from .checks import assert_same

NUMPY_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def forward_loops(p: Problem, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """out[n, o] = bias[o] + sum over c, k of weight[o, c, k] * padded[n, c, at * stride + k * dilation], a scalar at a time."""
    first = 3 - p.rank
    padded = np.pad(x, [(0, 0), (0, 0), *p.padding[first:]], NUMPY_PAD[p.padding_mode])
    y = np.zeros(p.result_shape, w.dtype)
    for n, o in np.ndindex(p.batch, p.out_channels):
        group = o // p.out_per_group
        for at in np.ndindex(*p.result_shape[2:]):
            total = w.dtype.type(0 if b is None else b[o])
            for c, *k in np.ndindex(p.in_per_group, *p.kernel[first:]):
                cell = [i * s + tap * d for i, s, tap, d in zip(at, p.stride[first:], k, p.dilation[first:])]
                total = total + w[(o, c, *k)] * padded[(n, group * p.in_per_group + c, *cell)]
            y[(n, o, *at)] = total
    return y


def transposed_loops(p: Problem, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """Every input cell adds weight * value at its stride * at + dilation * k - padding, where the result has such a cell."""
    first = 3 - p.rank
    y = np.zeros(p.result_shape, w.dtype)
    if b is not None:
        y += b.reshape(1, -1, *[1] * p.rank)
    for n, o in np.ndindex(p.batch, p.out_channels):
        group = o // p.out_per_group
        for c, *k in np.ndindex(p.in_per_group, *p.kernel[first:]):
            for at in np.ndindex(*x.shape[2:]):
                cell = [
                    i * s + tap * d - lo for i, s, tap, d, (lo, _) in zip(at, p.stride[first:], k, p.dilation[first:], p.padding[first:])
                ]
                if all(0 <= i < size for i, size in zip(cell, p.result_shape[2:])):
                    y[(n, group * p.in_per_group + c, *cell)] += w[(o, c, *k)] * x[(n, o, *at)]
    return y


def weight_loops(p: Problem, x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Every output cell adds g * conj(padded input) to the weights that it was computed with."""
    first = 3 - p.rank
    padded = np.pad(x, [(0, 0), (0, 0), *p.padding[first:]], NUMPY_PAD[p.padding_mode]).conj()
    dw = np.zeros(p.weight_shape, x.dtype)
    for n, o, *at in np.ndindex(*g.shape):
        group = o // p.out_per_group
        for c, *k in np.ndindex(p.in_per_group, *p.kernel[first:]):
            cell = [i * s + tap * d for i, s, tap, d in zip(at, p.stride[first:], k, p.dilation[first:])]
            dw[(o, c, *k)] += g[(n, o, *at)] * padded[(n, group * p.in_per_group + c, *cell)]
    return dw


TYPES = ("f64", "c128", "s64")
FORWARD = [
    *(case("fwd", (7,), (3,), s=2, p=((2, 1),), d=2, b=1, mb=2, t=t) for t in TYPES),
    *(case("fwd", (4, 5), (2, 3), g=2, ic=4, oc=6, s=(1, 2), p=(1, 2), b=1, t=t) for t in TYPES),
    case("fwd", (3, 4, 3), (2, 1, 3), p=(1, 0, 2), d=(1, 2, 1), t="f64"),
    *(case("fwd", (4, 5), (3, 2), p=((3, 1), (2, 3)), s=(2, 1), mode=mode, t="f64") for mode in NUMPY_PAD),
    *(case("fwd", (3, 2, 4), (2, 2, 2), p=(2, 1, 3), mode=mode, t="f64") for mode in ("zeros", "reflect", "replicate")),
    case("fwd", (3, 2, 4), (2, 2, 2), p=(3, 2, 4), mode="circular", t="f64"),
    case("fwd", (1, 2), (3, 5), p=4, mode="replicate", t="f64"),
    case("fwd", (5,), (2,), ic=0, b=1, t="f64"),
]
TRANSPOSED = [
    *(case("igrad", (4,), (3,), s=2, p=((2, 1),), d=2, op=1, b=1, mb=2, t=t) for t in TYPES),
    *(case("igrad", (3, 4), (2, 3), g=2, ic=4, oc=6, s=(1, 3), p=(0, 1), op=(0, 2), b=1, t=t) for t in TYPES),
    case("igrad", (2, 3, 2), (2, 1, 3), s=(1, 2, 1), p=((1, 0), 0, 1), d=(1, 2, 3), op=(0, 1, 2), t="f64"),
    case("igrad", (3,), (2,), s=4, op=3, b=1, t="f64"),
]


@pytest.mark.parametrize("text", FORWARD)
def test_forward_is_the_formula(text: str) -> None:
    p = Problem.parse(text)
    arrays = integer_arrays(p)
    with np.errstate(over="ignore"):
        assert_same(reference.convolve(p, *arrays), forward_loops(p, *arrays))


@pytest.mark.parametrize("text", TRANSPOSED)
def test_transposed_is_the_formula(text: str) -> None:
    p = Problem.parse(text)
    arrays = integer_arrays(p)
    with np.errstate(over="ignore"):
        assert_same(reference.convolve(p, *arrays), transposed_loops(p, *arrays))


@pytest.mark.parametrize("text", [text for text in FORWARD if "ic0" not in text])
def test_weight_gradient_is_the_formula(text: str) -> None:
    p = Problem.parse(text.replace("_fwd_", "_wgrad_").replace("_b1", "_b0"))
    x = integer_arrays(p)[0]
    g = integer_arrays(replace(p, direction="input_grad"))[0]
    with np.errstate(over="ignore"):
        assert_same(reference.weight_grad(p, x, g), weight_loops(p, x, g))


@pytest.mark.parametrize("text", [FORWARD[0], TRANSPOSED[0]])
def test_infinite_weights(text: str) -> None:
    p = Problem.parse(text)
    x, w, b = integer_arrays(p)
    w[0, 0] = np.inf
    loops = transposed_loops if p.transposed else forward_loops
    with np.errstate(invalid="ignore"):
        assert_same(reference.convolve(p, x, w, b), loops(p, x, w, b))


@pytest.mark.parametrize("text", [FORWARD[3], TRANSPOSED[3]])
def test_the_transposed_is_the_adjoint_of_the_forward(text: str) -> None:
    """<conv(x), g> = <x, conv_transpose(g)> for the same weight: the two directions of one description."""
    p = Problem.parse(text)
    forward, transposed = (replace(p, direction=direction, bias=False) for direction in ("forward", "input_grad"))
    x, w, _ = integer_arrays(forward)
    g = integer_arrays(transposed)[0]
    assert np.vdot(reference.convolve(forward, x, w), g) == np.vdot(x, reference.convolve(transposed, g, w))


# ---- torch's recorded outcomes ---------------------------------------------------------------------------------------
def by_reference(rank: int, transposed: bool) -> Any:
    """conv{rank}d (or conv_transpose{rank}d) computed by the reference: numbaconv's validation, none of its kernels."""
    last = ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
    names = ["input", "weight", "bias", "stride", "padding", *last]

    def convolution(*positional: Any, **options: Any) -> np.ndarray:
        options |= dict(zip(names, positional))
        x, w, b = options.pop("input"), options.pop("weight"), options.pop("bias", None)
        p = numbaconv.explain(x, w, b, transposed=transposed, **options).problem
        y = reference.convolve(p, x, w, b)
        return y if x.ndim == rank + 2 else y[0]

    return convolution


FUNCTIONS = {
    f"conv{'_transpose' * transposed}{rank}d": by_reference(rank, transposed)
    for rank, transposed in itertools.product((1, 2, 3), (False, True))
}


@pytest.mark.parametrize("case_id", [i for i in recorded.ids("reproduced") if recorded.calls_only_functions(i)])
def test_recorded(case_id: str) -> None:
    recorded.check_outcome(case_id, recorded.run(case_id, FUNCTIONS))
