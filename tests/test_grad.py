"""numbaconv.grad: adjoint identities, the reference, torch's recorded gradients, finite differences, threads, arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbaconv import Problem, grad
from numbaconv.choose import choose

from . import layouts
from .cases import BFLOAT16, FLOAT_NAMES, PROBLEMS, call, case, dtype_of, integer_arrays, normal_arrays
from .checks import DEFINITION, ROUNDOFF, SMALLEST, always_parallel, assert_same, magnitude, poisoned, wide
from .conftest import Python
from .gradients import call_input, call_weight, expected_input, expected_weight, formula_arrays
from .test_properties import laid_out, problems, steady

RECORDED = json.loads((Path(__file__).parent / "data" / "torch_gradients.json").read_text("utf-8"))["cases"]
EXACT = {"float32": "float64", "float16": "float64", "bfloat16": "float64", "complex64": "complex128"}
# The gradients take what the functions take, all but out_dtype.
DOUBLE = tuple(dict.fromkeys(replace(p, dtype=d, out_dtype=d) for p in PROBLEMS for d in [EXACT.get(p.dtype, p.dtype)]))
OWN = tuple(dict.fromkeys(replace(p, out_dtype=p.dtype, bias=False) for p in PROBLEMS))


def integers(p: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, weight and output gradient, such that every sum is exact."""
    x, w, _ = integer_arrays(p)
    return x, w, integer_arrays(gradient_source(p))[0]


def normals(p: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, w, _ = normal_arrays(p)
    return x, w, normal_arrays(gradient_source(p))[0]


def gradient_source(p: Problem) -> Problem:
    """A problem whose source has the shape of ``p``'s result."""
    return replace(p, direction="forward" if p.transposed else "input_grad", bias=False)


# ---- the definition: adjoint identities ------------------------------------------------------------------------------
@pytest.mark.parametrize("problem", DOUBLE, ids=str)
def test_adjoint_identities_are_exact(problem: Problem) -> None:
    """<g, conv(x, w)> = <input_grad(g, w), x> = <weight_grad(x, g), w>, in whole numbers; of integers modulo 2**bits."""
    x, w, g = integers(problem)
    values = [inner(g, call(problem, x, w, None)), inner(call_input(problem, w, g), x), inner(call_weight(problem, x, g), w)]
    if x.dtype.kind in "iu":
        values = [value % 2 ** (8 * x.dtype.itemsize) for value in values]
    scale = 0.0 if by_definition(problem) else float(np.vdot(abs(g), call(problem, abs(x), abs(w), None)))
    assert max(abs(value - values[0]) for value in values) <= 1e-13 * scale


@pytest.mark.parametrize("problem", [p for p in DOUBLE if p.dtype == "float64"][::5], ids=str)
def test_adjoint_identities_hold_within_rounding(problem: Problem) -> None:
    x, w, g = normals(problem)
    scale = float(np.vdot(abs(g), call(problem, abs(x), abs(w), None)))
    terms = problem.flops // 2 + g.size + x.size + w.size  # a generous length of any one sum
    values = [inner(g, call(problem, x, w, None)), inner(call_input(problem, w, g), x), inner(call_weight(problem, x, g), w)]
    assert max(values) - min(values) <= terms * ROUNDOFF["float64"] * scale


def by_definition(p: Problem) -> bool:
    """Whether every product is formed of the function and of its input gradient, so that whole numbers give exact sums."""
    other = replace(p, direction="forward") if p.transposed else p.gradient("input_grad")
    return {choose(p).name, choose(other).name} <= {algorithm.name for algorithm in DEFINITION}


def inner(a: np.ndarray, b: np.ndarray) -> Any:
    """The inner product that conjugates ``a``; of integers exact in 64 bits."""
    return np.vdot(a, b).item() if a.dtype.kind in "fc" else np.vdot(a.astype(np.int64), b.astype(np.int64)).item()


# ---- the reference ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("problem", OWN, ids=str)
def test_exact(problem: Problem) -> None:
    """In a fresh result, and in a poisoned ``out`` whose surroundings survive, on all threads."""
    x, w, g = integers(problem)
    for compute, expected in (
        (lambda **o: call_input(problem, w, g, **o), expected_input(problem, w, g)),
        (lambda **o: call_weight(problem, x, g, **o), expected_weight(problem, x, g)),
    ):
        fresh = compute()
        assert fresh.flags.c_contiguous and fresh.flags.writeable and fresh.dtype == dtype_of(problem.dtype)
        if by_definition(problem):
            assert_same(fresh, expected)
        else:
            limit = (1e-5 if problem.dtype == "float32" else 1e-13) * abs(expected).max()
            np.testing.assert_allclose(fresh, expected, rtol=0, atol=limit)
            expected = fresh
        buffer, out = poisoned(expected.shape, expected.dtype)
        untouched = buffer.copy()
        with always_parallel():
            assert compute(out=out) is out
        assert_same(out, expected)
        inside = (slice(1, -1),) * out.ndim
        buffer[inside] = untouched[inside]
        assert buffer.tobytes() == untouched.tobytes(), "cells around out were written"


@pytest.mark.parametrize("problem", [p for p in OWN if p.dtype in FLOAT_NAMES][::2], ids=str)
def test_rounding_errors(problem: Problem) -> None:
    """float16 and bfloat16 are accumulated in float32 and rounded once: a sum in their own precision would err far more."""
    x, w, g = normals(problem)
    check_rounding(problem, call_input(problem, w, g), lambda *arrays, **o: expected_input(*arrays, **o), w, g)
    check_rounding(problem, call_weight(problem, x, g), lambda *arrays, **o: expected_weight(*arrays, **o), x, g)


def check_rounding(p: Problem, got: np.ndarray, expected: Callable[..., np.ndarray], a: np.ndarray, b: np.ndarray) -> None:
    """Within gamma(K) * sum |a||b|, K the number of products of the element, as ``checks.rounding_bound`` explains."""
    exact = expected(p, a, b, rounded=False)
    real = replace(p, dtype="float64", out_dtype="float64")
    terms = expected(real, np.ones(a.shape), np.ones(b.shape)) * (2 if a.dtype.kind == "c" else 1) + 2
    u = ROUNDOFF["float64" if p.dtype in ("float64", "complex128") else "float32"] + ROUNDOFF["float64"]
    bound = terms * u / (1 - terms * u) * expected(real, magnitude(a), magnitude(b))
    if p.dtype in ("float16", "bfloat16"):
        bound += ROUNDOFF[p.dtype] * (np.abs(exact) + bound) + SMALLEST[p.dtype]
    error = np.abs(wide(got) - exact)
    assert (error <= bound * (2**0.5 if a.dtype.kind == "c" else 1) + SMALLEST["float32"]).all()


@pytest.mark.parametrize("problem", [p for p in OWN if p.batch == 1][::9], ids=str)
def test_unbatched(problem: Problem) -> None:
    x, w, g = integers(problem)
    assert_same(call_input(problem, w, g[0], batched=False), call_input(problem, w, g)[0])
    assert_same(call_weight(problem, x[0], g[0]), call_weight(problem, x, g))


@pytest.mark.parametrize("text", [case("fwd", (5, 6), (3, 3), p=1, s=2), case("fwd", (5, 6), (3, 3), p=2, d=2, mode="circular")])
def test_padded_zeros_are_multiplied(text: str) -> None:
    problem = Problem.parse(text)
    x, w, g = integers(problem)
    g[0, 0, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        expected = expected_weight(problem, x, g)
    assert np.isnan(expected).any()
    assert_same(call_weight(problem, x, g), expected)
    with np.errstate(invalid="ignore"):
        assert_same(call_input(problem, w, g), expected_input(problem, w, g))


def test_every_form_of_padding() -> None:
    x, w = np.arange(2 * 7 * 8.0).reshape(1, 2, 7, 8) % 5, np.arange(3 * 2 * 4 * 3.0).reshape(3, 2, 4, 3) % 7 - 3
    for padding, stride, pairs in (
        ("valid", 2, ((0, 0), (0, 0))),
        ("same", 1, ((1, 2), (1, 1))),
        ("same_upper", 2, ((1, 2), (0, 1))),
        ("same_lower", 2, ((2, 1), (1, 0))),
        ([2, 1], 3, ((2, 2), (1, 1))),
        (2, 1, ((2, 2), (2, 2))),
        (((0, 3), (1, 2)), 2, ((0, 3), (1, 2))),
    ):
        padded = np.pad(x, ((0, 0), (0, 0), *pairs))
        g = np.arange(np.prod(shape := output_shape(padded, w, stride))).reshape(shape) * 7 % 11 - 5.0
        (top, _), (left, _) = pairs
        whole = grad.conv2d_input(padded.shape, w, g, stride)
        np.testing.assert_array_equal(
            grad.conv2d_input(x.shape, w, g, stride, padding), whole[..., top : top + 7, left : left + 8], err_msg=str(padding)
        )
        np.testing.assert_array_equal(grad.conv2d_weight(x, w.shape, g, stride, padding), grad.conv2d_weight(padded, w.shape, g, stride))


def output_shape(x: np.ndarray, w: np.ndarray, stride: int) -> tuple[int, ...]:
    return (1, w.shape[0], *((n - k) // stride + 1 for n, k in zip(x.shape[2:], w.shape[2:])))


# ---- torch -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["problem"])
def test_torchs_recorded_gradients(recorded: dict[str, Any]) -> None:
    problem = Problem.parse(recorded["problem"])
    x, w, _, g = formula_arrays(problem)
    for name, got in (("input", call_input(problem, w, g)), ("weight", call_weight(problem, x, g)), ("bias", grad.conv_bias(g))):
        if name != "bias" or problem.bias:
            assert got.dtype == x.dtype
            np.testing.assert_array_equal(got.reshape(-1).view(got.real.dtype), recorded[name], err_msg=name)


def test_the_recording_is_wide() -> None:
    found = [Problem.parse(recorded["problem"]) for recorded in RECORDED]
    assert {(p.rank, p.transposed) for p in found} == {(rank, transposed) for rank in (1, 2, 3) for transposed in (False, True)}
    assert {p.padding_mode for p in found} == {"zeros", "reflect", "replicate", "circular"}
    assert {p.dtype for p in found} == {"float64", "float32", "complex128"}
    assert any(p.groups > 1 for p in found) and any(any(recorded["input"]) for recorded in RECORDED)


# ---- finite differences ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        case("fwd", (7,), (3,), s=2, p=1, t="f64", mb=2),
        case("fwd", (5, 6), (3, 2), p=2, d=2, mode="reflect", t="f64"),
        case("fwd", (3, 4, 5), (2, 3, 3), g=2, ic=2, oc=4, p=1, mode="replicate", t="f64"),
        case("igrad", (4, 3), (3, 3), s=2, op=1, p=1, t="f64"),
        case("igrad", (2, 3, 2), (2, 2, 3), s=(1, 2, 3), d=(2, 1, 1), t="f64"),
    ],
)
def test_finite_differences_of_a_curved_loss(text: str) -> None:
    """sum(sin(conv(x, w))) along random directions, by central differences."""
    problem = Problem.parse(text)
    x, w, _ = normal_arrays(problem)
    g = np.cos(call(problem, x, w, None))
    rng, h = np.random.default_rng(0), 1e-5

    def loss(x: np.ndarray, w: np.ndarray) -> float:
        return float(np.sin(call(problem, x, w, None)).sum())

    for _ in range(3):
        dx, dw = rng.standard_normal(x.shape), rng.standard_normal(w.shape)
        numeric = (loss(x + h * dx, w) - loss(x - h * dx, w)) / (2 * h)
        assert np.vdot(call_input(problem, w, g), dx) == pytest.approx(numeric, rel=1e-7, abs=1e-7)
        numeric = (loss(x, w + h * dw) - loss(x, w - h * dw)) / (2 * h)
        assert np.vdot(call_weight(problem, x, g), dw) == pytest.approx(numeric, rel=1e-7, abs=1e-7)


def test_complex_finite_differences() -> None:
    """PyTorch's convention: along a complex direction d the real loss changes by real(vdot(gradient, d))."""
    problem = Problem.parse(case("fwd", (5, 6), (3, 2), p=1, t="c128"))
    x, w, _ = normal_arrays(problem)
    y = call(problem, x, w, None)  # of the loss sum |y|**2 / 2, y is the output gradient
    rng, h = np.random.default_rng(0), 1e-5
    dx, dw = (rng.standard_normal(a.shape) + 1j * rng.standard_normal(a.shape) for a in (x, w))

    def loss(x: np.ndarray, w: np.ndarray) -> float:
        return float((np.abs(call(problem, x, w, None)) ** 2).sum() / 2)

    numeric = (loss(x + h * dx, w) - loss(x - h * dx, w)) / (2 * h)
    assert np.vdot(call_input(problem, w, y), dx).real == pytest.approx(numeric, rel=1e-7)
    numeric = (loss(x, w + h * dw) - loss(x, w - h * dw)) / (2 * h)
    assert np.vdot(call_weight(problem, x, y), dw).real == pytest.approx(numeric, rel=1e-7)


# ---- bias ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int8", "int64", "uint8"])
@pytest.mark.parametrize("size", [(50,), (5, 10), (5, 2, 5)])
def test_bias(dtype: str, size: tuple[int, ...]) -> None:
    g = (np.arange(3 * 4 * 50).reshape(3, 4, *size) % 7).astype(dtype_of(dtype))
    got = grad.conv_bias(g)
    assert_same(got, g.astype(np.complex128 if g.dtype.kind == "c" else np.float64).sum(axis=(0, *range(2, g.ndim))).astype(g.dtype))
    assert_same(grad.conv_bias(layouts.channels_last(g)), got)
    assert_same(grad.conv_bias(g[:0]), np.zeros(4, g.dtype))


def test_bias_sums_wider_than_its_dtype() -> None:
    """16,777,217 ones are a float32 too many for a float32 sum; int8 wraps."""
    g = np.broadcast_to(np.float32(1), (1, 1, 1 << 12, (1 << 12) + 1))
    assert grad.conv_bias(g)[0] == np.float32((1 << 24) + (1 << 12))
    assert grad.conv_bias(np.full((2, 1, 100), 1, np.float16))[0] == 200
    assert grad.conv_bias(np.full((2, 1, 100), 3, np.int8))[0] == np.array(600).astype(np.int8)


# ---- the promises ----------------------------------------------------------------------------------------------------
BITS = """
import hashlib, numpy as np
from numbaconv import grad
from numbaconv.cpu import threads
threads.SERIAL_BELOW = 0.0
rng, bits = np.random.default_rng(0), hashlib.sha256()
for dtype in (np.float32, np.float64):
    x, w, g = (rng.standard_normal(shape).astype(dtype) for shape in ((3, 6, 9, 17, 19), (8, 3, 3, 3, 3), (3, 8, 5, 9, 10)))
    for again in range(2):
        bits.update(grad.conv3d_weight(x, w.shape, g, 2, 1, 1, 2).tobytes())
        bits.update(grad.conv3d_input(x.shape, w, g, 2, 1, 1, 2).tobytes())
    for mode in ("reflect", "circular"):
        bits.update(grad.conv3d_weight(x, w.shape, g, 2, 1, 1, 2, padding_mode=mode).tobytes())
        bits.update(grad.conv3d_input(x.shape, w, g, 2, 1, 1, 2, padding_mode=mode).tobytes())
    bits.update(grad.conv_transpose3d_weight(g, (8, 3, 3, 3, 3), x, 2, 1, 0, 2).tobytes())
    bits.update(grad.conv_bias(g).tobytes())
print(bits.hexdigest())
"""


def test_bits_do_not_depend_on_the_threads(python: Python) -> None:
    assert len({python(BITS, NUMBA_NUM_THREADS=threads) for threads in ("1", "2", "3")}) == 1


@settings(max_examples=100, **steady)
@given(st.data())
def test_any_problem_in_any_layout(data: st.DataObject) -> None:
    drawn = data.draw(problems().filter(lambda p: p.in_channels > 0))
    p = replace(drawn, out_dtype=drawn.dtype, bias=False)
    x, w, g = (data.draw(laid_out(array)) for array in integers(p))
    assert_same(call_input(p, w, g), expected_input(p, w, g))
    assert_same(call_weight(p, x, g), expected_weight(p, x, g))
    if g.size:
        assert_same(grad.conv_bias(g), grad.conv_bias(g.astype(g.dtype.newbyteorder("="), order="C")))


# ---- refusals --------------------------------------------------------------------------------------------------------
X, W, G = np.zeros((1, 4, 7, 8)), np.zeros((6, 2, 3, 3)), np.zeros((1, 6, 3, 3))
XT, WT, GT = np.zeros((1, 4, 3, 3)), np.zeros((4, 3, 3, 3)), np.zeros((1, 6, 8, 8))


def conv(**changes: Any) -> None:
    """Both gradients of one convolution; a change is made where the argument exists."""
    given = {"stride": 2, "groups": 2} | changes
    both(grad.conv2d_input, {"input_size": X.shape, "weight": W, "grad_output": G}, given)
    both(grad.conv2d_weight, {"input": X, "weight_size": W.shape, "grad_output": G}, given)


def transpose(**changes: Any) -> None:
    given = {"stride": 2, "groups": 2, "output_padding": 1} | changes
    both(grad.conv_transpose2d_input, {"input_size": XT.shape, "weight": WT, "grad_output": GT}, given)
    both(grad.conv_transpose2d_weight, {"input": XT, "weight_size": WT.shape, "grad_output": GT}, given)


def both(function: Callable[..., np.ndarray], arrays: dict[str, Any], given: dict[str, Any]) -> None:
    own = {name: value for name, value in given.items() if name not in ("input_size", "input", "weight", "weight_size") or name in arrays}
    function(**(arrays | own))


def test_the_calls_below_are_good_before_their_change() -> None:
    conv()
    transpose()


REFUSALS: list[tuple[Callable[..., None], dict[str, Any], type[Exception], str]] = [
    (conv, {"stride": 0}, ValueError, r"^stride must be at least 1"),
    (conv, {"stride": 2.0}, TypeError, r"^stride must be an integer"),
    (conv, {"stride": 1}, ValueError, r"^grad_output must have the convolution's output shape \(1, 6, 5, 6\), got \(1, 6, 3, 3\)"),
    (conv, {"padding": -1}, ValueError, r"^padding must be at least 0"),
    (conv, {"padding": 2}, ValueError, r"^grad_output must have the convolution's output shape"),
    (conv, {"padding": "same"}, ValueError, r"^padding='same' needs stride 1"),
    (conv, {"padding": 7, "padding_mode": "reflect"}, ValueError, r"^padding must be smaller than the input"),
    (conv, {"padding_mode": "edge"}, ValueError, r"^padding_mode must be one of"),
    (conv, {"dilation": 0}, ValueError, r"^dilation must be at least 1"),
    (conv, {"dilation": 4}, ValueError, r"^kernel extent .* must not exceed the padded input"),
    (conv, {"groups": 0}, ValueError, r"^groups must be at least 1"),
    (conv, {"groups": 4}, ValueError, r"^groups must divide weight.shape\[0\]"),
    (conv, {"groups": 1}, ValueError, r"^input must have weight.shape\[1\] \* groups = 2 channels, got 4"),
    (conv, {"input_size": None, "weight_size": None}, TypeError, r"^(input|weight)_size must be a tuple or list of integers, got NoneType"),
    (conv, {"input_size": (1, 4, 7, 8.0)}, TypeError, r"^input_size\[3\] must be an integer"),
    (conv, {"input_size": (1, 4, 7, -8)}, ValueError, r"^input_size\[3\] must be at least 0"),
    (conv, {"input_size": (7, 8)}, ValueError, r"^input must have 3 \(unbatched\) or 4 \(batched\) dimensions"),
    (conv, {"input_size": (4, 7, 8)}, ValueError, r"^grad_output must have the convolution's output shape \(6, 3, 3\), got \(1, 6, 3, 3\)"),
    (conv, {"input_size": (2, 4, 7, 8)}, ValueError, r"^grad_output must have the convolution's output shape \(2, 6, 3, 3\)"),
    (conv, {"weight_size": (6, 2, 3)}, ValueError, r"^weight must have 4 dimensions"),
    (conv, {"weight_size": [6, 2, 3, True]}, TypeError, r"^weight_size\[3\] must be an integer"),
    (conv, {"weight_size": (6, 2, 5, 3)}, ValueError, r"^grad_output must have the convolution's output shape"),
    (conv, {"weight": W.tolist()}, TypeError, r"^weight must be a numpy.ndarray, got list"),
    (conv, {"weight": W.astype(np.float32)}, TypeError, r"^grad_output must have the dtype of weight"),
    (conv, {"input": X.astype(bool)}, TypeError, r"^input must have one of the dtypes"),
    (conv, {"input": X.astype(np.int32)}, TypeError, r"^grad_output must have the dtype of input"),
    (conv, {"grad_output": None}, TypeError, r"^grad_output must be a numpy.ndarray"),
    (conv, {"grad_output": G.astype(np.float32)}, TypeError, r"^grad_output must have the dtype of weight"),
    (conv, {"grad_output": G[0]}, ValueError, r"^grad_output must have the convolution's output shape \(1, 6, 3, 3\), got \(6, 3, 3\)"),
    (conv, {"out": 3}, TypeError, r"^out must be a numpy.ndarray or None"),
    (transpose, {"stride": (2, 2, 2)}, ValueError, r"^stride must be an integer or a tuple"),
    (transpose, {"padding": 4}, ValueError, r"^padding must leave an output"),
    (transpose, {"padding": "same"}, TypeError, r"^padding must be integers"),
    (transpose, {"output_padding": 2}, ValueError, r"^output_padding must be smaller than stride or dilation"),
    (transpose, {"output_padding": 0}, ValueError, r"^grad_output must have the convolution's output shape \(1, 6, 7, 7\)"),
    (transpose, {"dilation": 1.5}, TypeError, r"^dilation must be an integer"),
    (transpose, {"groups": 3}, ValueError, r"^groups must divide weight.shape\[0\]"),
    (transpose, {"input_size": (1, 3, 3, 3), "input": XT[:, :3]}, ValueError, r"^input must have weight.shape\[0\] = 4 channels, got 3"),
    (transpose, {"weight": WT[None]}, ValueError, r"^weight must have 4 dimensions"),
    (transpose, {"grad_output": GT.astype(np.complex128)}, TypeError, r"^grad_output must have the dtype of weight"),
]


@pytest.mark.parametrize(("calls", "change", "error", "message"), REFUSALS)
def test_refusals_name_the_argument(calls: Callable[..., None], change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        calls(**change)
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_each_weight_gradient_refuses_too() -> None:
    """Where both gradients check an argument, the table sees the input gradient alone."""
    for function, x, w, g in ((grad.conv2d_weight, X, W, G), (grad.conv_transpose2d_weight, XT, WT, GT)):
        for change, error, message in (
            ({"stride": 0}, ValueError, r"^stride must be at least 1"),
            ({"padding": -1}, ValueError, r"^padding must be at least 0"),
            ({"groups": 7}, ValueError, r"^groups must divide weight.shape\[0\]"),
            ({"grad_output": g[..., 1:]}, ValueError, r"^grad_output must have the convolution's output shape"),
            ({"grad_output": g.astype(np.float32)}, TypeError, r"^grad_output must have the dtype of input"),
            ({"weight_size": None}, TypeError, r"^weight_size must be a tuple or list"),
            ({"input": None}, TypeError, r"^input must be a numpy.ndarray"),
        ):
            with pytest.raises(error, match=message):
                function(**({"input": x, "weight_size": w.shape, "grad_output": g, "stride": 2, "groups": 2} | change))


def test_bias_refusals() -> None:
    for g, error, message in (
        (None, TypeError, r"^grad_output must be a numpy.ndarray"),
        (np.zeros((3, 4)), ValueError, r"^grad_output must have 3, 4 or 5 dimensions"),
        (np.zeros((3, 4, 5), bool), TypeError, r"^grad_output must have one of the dtypes"),
    ):
        with pytest.raises(error, match=message):
            grad.conv_bias(g)


@pytest.mark.parametrize("dtype", [np.float64, np.complex64, BFLOAT16])
@pytest.mark.parametrize("transposed", [False, True])
def test_out_is_refused_untouched(dtype: Any, transposed: bool) -> None:
    problem = Problem.parse(case("igrad" if transposed else "fwd", (4, 5), (3, 3), mb=2, p=1))
    problem = replace(problem, dtype=np.dtype(dtype).name, out_dtype=np.dtype(dtype).name)
    x, w, g = integers(problem)
    for compute, shape, others in (
        (lambda **o: call_input(problem, w, g, **o), x.shape, {"weight": w, "grad_output": g}),
        (lambda **o: call_weight(problem, x, g, **o), w.shape, {"input": x, "grad_output": g}),
    ):
        fine = np.ones(shape, dtype)
        bad: list[tuple[Any, type[Exception], str]] = [
            (fine.tolist(), TypeError, r"^out must be a numpy.ndarray or None"),
            (np.ones(shape, np.float32), TypeError, r"^out must have dtype"),
            (np.ones((*shape, 1), dtype), ValueError, r"^out must have shape"),
            (layouts.read_only(fine), ValueError, r"^out must be writeable"),
            (layouts.unaligned(fine), ValueError, r"^out must be aligned"),
            (np.lib.stride_tricks.as_strided(np.ones(9, dtype), shape, (0,) * 4), ValueError, r"^out must not overlap itself"),
        ]
        for name, argument in others.items():
            memory = argument.reshape(-1).view(np.uint8)
            if memory.size >= fine.nbytes:
                bad.append((memory[-fine.nbytes :].view(dtype).reshape(shape), ValueError, rf"^out must not share memory with {name}"))
        for out, error, message in bad:
            kept = out.tobytes() if isinstance(out, np.ndarray) else None
            with pytest.raises(error, match=message):
                compute(out=out)
            assert kept is None or out.tobytes() == kept
        assert_same(compute(out=fine), compute())


@pytest.mark.parametrize("dtype", [np.float64, np.complex64, BFLOAT16])
@pytest.mark.parametrize("transposed", [False, True])
def test_out_shares_no_memory_with_an_argument(dtype: Any, transposed: bool) -> None:
    problem = Problem.parse(case("igrad" if transposed else "fwd", (4, 5), (3, 3), mb=2, p=1))
    problem = replace(problem, dtype=np.dtype(dtype).name, out_dtype=np.dtype(dtype).name)
    x, w, g = integers(problem)
    for name in ("input", "weight", "grad_output"):
        memory = np.ones(1000, dtype)
        inside = {"input": x, "weight": w, "grad_output": g}
        inside[name] = layouts.read_only(memory[: inside[name].size].reshape(inside[name].shape))
        if name != "input":
            with pytest.raises(ValueError, match=rf"^out must not share memory with {name}$"):
                call_input(problem, inside["weight"], inside["grad_output"], out=memory[: x.size].reshape(x.shape))
        if name != "weight":
            with pytest.raises(ValueError, match=rf"^out must not share memory with {name}$"):
                call_weight(problem, inside["input"], inside["grad_output"], out=memory[: w.size].reshape(w.shape))
        assert (memory == 1).all()
