"""numbaconv's convolutions for JAX arrays on the CPU: differentiable any number of times in reverse mode, under ``jit`` and ``vmap`` too.

``conv1d`` … ``conv_transpose3d`` have torch's channels-first layout and arguments, and every ``padding`` and ``padding_mode`` of
numbaconv's.  Inside a compiled function each convolution, and each of its gradients, is a call back to the host
(``jax.pure_callback``); ``vmap`` makes one call for each element.  Gradients follow JAX's convention: complex factors are not conjugated.

Imported only on demand; needs jax (``pip install "numbaconv[jax]"``).
Source: https://docs.jax.dev/en/latest/notebooks/Custom_derivative_rules_for_Python_code.html
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import functional, grad
from .arguments import check_padding_mode
from .arrays import ELEMENTS, AnyArray
from .problem import Problem, forward_problem, transposed_problem

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError('numbaconv.jax needs the package jax: pip install "numbaconv[jax]"') from error


class _Geometry(NamedTuple):
    """The arguments of a convolution beside its arrays, hashable; ``rank`` axes, ``padding`` as pairs."""

    rank: int
    transposed: bool
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    padding_mode: str


# ---- functions -------------------------------------------------------------------------------------------------------
def conv1d(
    input: jax.Array, weight: jax.Array, bias: jax.Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros",
) -> jax.Array:  # fmt: skip
    """:func:`numbaconv.conv1d` of JAX arrays; see :func:`conv3d`."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv2d(
    input: jax.Array, weight: jax.Array, bias: jax.Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros",
) -> jax.Array:  # fmt: skip
    """:func:`numbaconv.conv2d` of JAX arrays; see :func:`conv3d`."""
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv3d(
    input: jax.Array, weight: jax.Array, bias: jax.Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros",
) -> jax.Array:  # fmt: skip
    """:func:`numbaconv.conv3d` of JAX arrays: the same arguments, shapes, dtypes and errors.

    input : array (N, C, D, H, W) or (C, D, H, W); weight : (out_channels, C / groups, kd, kh, kw); bias : (out_channels,) or None
    stride, padding, dilation, groups, padding_mode : as there; static under ``jit``

    Raises ValueError and TypeError, naming the argument, when it is traced.
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv_transpose1d(
    input: jax.Array, weight: jax.Array, bias: jax.Array | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> jax.Array:  # fmt: skip
    """:func:`numbaconv.conv_transpose1d` of JAX arrays; see :func:`conv3d`."""
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: jax.Array, weight: jax.Array, bias: jax.Array | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> jax.Array:  # fmt: skip
    """:func:`numbaconv.conv_transpose2d` of JAX arrays; see :func:`conv3d`."""
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: jax.Array, weight: jax.Array, bias: jax.Array | None = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> jax.Array:  # fmt: skip
    """:func:`numbaconv.conv_transpose3d` of JAX arrays; see :func:`conv3d`."""
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _conv(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any
) -> jax.Array:  # fmt: skip
    x, w, b = _arrays(input, weight, bias)
    problem = forward_problem(
        rank, x.shape, w.shape, None if b is None else b.shape, stride, padding, dilation, groups,
        padding_mode=check_padding_mode(padding_mode), dtype=x.dtype.name,
    )  # fmt: skip
    return _convolution(x, w, b, _geometry(problem))


def _conv_transpose(
    rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> jax.Array:  # fmt: skip
    x, w, b = _arrays(input, weight, bias)
    problem = transposed_problem(
        rank, x.shape, w.shape, None if b is None else b.shape, stride, padding, output_padding, groups, dilation, dtype=x.dtype.name
    )  # fmt: skip
    return _convolution(x, w, b, _geometry(problem))


def _arrays(input: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    given = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, value in given.items():
        if not isinstance(value, (jax.Array, np.ndarray)):
            raise TypeError(f"{name} must be a jax.Array or a numpy.ndarray, got {type(value).__name__}")
    arrays = {name: jnp.asarray(value) for name, value in given.items()}
    for name, array in arrays.items():
        if array.dtype.name not in ELEMENTS:
            raise TypeError(f"{name} must have one of the dtypes {', '.join(ELEMENTS)}, got {array.dtype.name}")
        if array.dtype != arrays["input"].dtype:
            raise TypeError(f"{name} must have the dtype of input, got input {arrays['input'].dtype.name} and {name} {array.dtype.name}")
    return arrays["input"], arrays["weight"], arrays.get("bias")


def _geometry(p: Problem) -> _Geometry:
    first = 3 - p.rank
    axes = p.stride[first:], p.padding[first:], p.dilation[first:], p.output_padding[first:]
    return _Geometry(p.rank, p.transposed, *axes, p.groups, p.padding_mode)


# ---- the three operations and their derivatives ----------------------------------------------------------------------
# With y = convolution(x, w), sum(y * g) is linear in each of x, w and g: the derivative of each operation with respect to each of its
# arrays is one of the three operations, with the incoming gradient in the output's place.
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _convolution(x: jax.Array, w: jax.Array, b: jax.Array | None, geometry: _Geometry) -> jax.Array:
    function = getattr(functional, _name(geometry))
    shape = _result_shape(x.shape, w.shape, geometry)
    return _call_back(partial(function, **_arguments(geometry)), shape, x, w, *(() if b is None else (b,)))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_grad(w: jax.Array, g: jax.Array, shape: tuple[int, ...], geometry: _Geometry) -> jax.Array:
    function = getattr(grad, _name(geometry) + "_input")

    def compute(weight: AnyArray, grad_output: AnyArray) -> AnyArray:
        result: AnyArray = function(shape, _conjugate(weight), grad_output, **_arguments(geometry))
        return result

    return _call_back(compute, shape, w, g)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _weight_grad(x: jax.Array, g: jax.Array, shape: tuple[int, ...], geometry: _Geometry) -> jax.Array:
    function = getattr(grad, _name(geometry) + "_weight")

    def compute(input: AnyArray, grad_output: AnyArray) -> AnyArray:
        result: AnyArray = function(_conjugate(input), shape, grad_output, **_arguments(geometry))
        return result

    return _call_back(compute, shape, x, g)


def _convolution_forward(x: jax.Array, w: jax.Array, b: jax.Array | None, geometry: _Geometry) -> tuple[jax.Array, Any]:
    return _convolution(x, w, b, geometry), (x, w, b)


def _convolution_backward(geometry: _Geometry, saved: Any, g: jax.Array) -> tuple[Any, ...]:
    x, w, b = saved
    channel = g.ndim - geometry.rank - 1
    bias_grad = None if b is None else g.sum(tuple(axis for axis in range(g.ndim) if axis != channel))
    return _input_grad(w, g, x.shape, geometry), _weight_grad(x, g, w.shape, geometry), bias_grad


def _input_grad_forward(w: jax.Array, g: jax.Array, shape: tuple[int, ...], geometry: _Geometry) -> tuple[jax.Array, Any]:
    return _input_grad(w, g, shape, geometry), (w, g)


def _input_grad_backward(shape: tuple[int, ...], geometry: _Geometry, saved: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    w, g = saved
    return _weight_grad(x, g, w.shape, geometry), _convolution(x, w, None, geometry)


def _weight_grad_forward(x: jax.Array, g: jax.Array, shape: tuple[int, ...], geometry: _Geometry) -> tuple[jax.Array, Any]:
    return _weight_grad(x, g, shape, geometry), (x, g)


def _weight_grad_backward(shape: tuple[int, ...], geometry: _Geometry, saved: Any, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, g = saved
    return _input_grad(w, g, x.shape, geometry), _convolution(x, w, None, geometry)


_convolution.defvjp(_convolution_forward, _convolution_backward)
_input_grad.defvjp(_input_grad_forward, _input_grad_backward)
_weight_grad.defvjp(_weight_grad_forward, _weight_grad_backward)


# ---- parts -----------------------------------------------------------------------------------------------------------
def _call_back(function: Any, shape: Sequence[int], *arrays: jax.Array) -> jax.Array:
    """``function`` of NumPy arrays as an operation on JAX arrays, whose result has this shape and the arrays' dtype."""

    def on_host(*values: Any) -> AnyArray:
        result: AnyArray = function(*map(np.asarray, values))
        return result

    return jax.pure_callback(on_host, jax.ShapeDtypeStruct(tuple(shape), arrays[0].dtype), *arrays, vmap_method="sequential")


def _name(geometry: _Geometry) -> str:
    return f"conv{'_transpose' * geometry.transposed}{geometry.rank}d"


def _arguments(geometry: _Geometry) -> dict[str, Any]:
    """The keyword arguments of numbaconv's functions."""
    own = ("output_padding",) if geometry.transposed else ("padding_mode",)
    return {name: getattr(geometry, name) for name in ("stride", "padding", "dilation", "groups", *own)}


def _result_shape(input_shape: Sequence[int], weight_shape: Sequence[int], geometry: _Geometry) -> tuple[int, ...]:
    make = transposed_problem if geometry.transposed else forward_problem
    problem = make(geometry.rank, input_shape, weight_shape, None, **_arguments(geometry))
    return problem.result_shape[geometry.rank + 2 - len(input_shape) :]


def _conjugate(array: AnyArray) -> AnyArray:
    # numbaconv.grad conjugates this factor, as PyTorch does.
    return np.conjugate(array) if array.dtype.kind == "c" else array
