"""Gradients of the convolutions, with torch.nn.grad's names, argument order and checks.

``conv*_input`` and ``conv*_weight`` are the exact transposes of ``conv*``: with L(x, w) = <conv(x, w), g>, the input gradient is dL/dx and
the weight gradient dL/dw.  Complex gradients follow PyTorch's autograd: the other factor is conjugated, so that
``vdot(conv_input(...), x) == vdot(g, conv(x, w))``.

Every function takes what torch's takes, and beyond it: every form of ``padding`` of the forward function, the four padding modes
(whose copies fold back), and ``out=``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from .arguments import integer, shown_shape
from .arrays import check_alike, check_array, device_of, name_of
from .choose import decide
from .memory import memory_of
from .plans import execute, execute_weight_grad
from .problem import Problem, forward_problem, transposed_problem

Array = TypeVar("Array")


def conv1d_input(
    input_size: Sequence[int], weight: Array, grad_output: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv1d with respect to its input: :func:`conv3d_input` for one axis."""
    return _input(1, input_size, weight, grad_output, stride, padding, dilation, groups, padding_mode, out, stream)


def conv2d_input(
    input_size: Sequence[int], weight: Array, grad_output: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv2d with respect to its input: :func:`conv3d_input` for two axes."""
    return _input(2, input_size, weight, grad_output, stride, padding, dilation, groups, padding_mode, out, stream)


def conv3d_input(
    input_size: Sequence[int], weight: Array, grad_output: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv3d with respect to its input.

    input_size : shape of the input, (N, C, D, H, W) or (C, D, H, W)
    weight : array (out_channels, C / groups, kd, kh, kw)
    grad_output : array of the convolution's output shape and the weight's dtype
    stride, padding, dilation, groups, padding_mode : those of the convolution

    Returns an array of shape ``input_size``.  Raises ValueError and TypeError as the convolution does.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.grad.conv3d_input.html
    """
    return _input(3, input_size, weight, grad_output, stride, padding, dilation, groups, padding_mode, out, stream)


def conv1d_weight(
    input: Array, weight_size: Sequence[int], grad_output: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv1d with respect to its weight: :func:`conv3d_weight` for one axis."""
    return _weight(1, input, weight_size, grad_output, stride, padding, dilation, groups, padding_mode, out, stream)


def conv2d_weight(
    input: Array, weight_size: Sequence[int], grad_output: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv2d with respect to its weight: :func:`conv3d_weight` for two axes."""
    return _weight(2, input, weight_size, grad_output, stride, padding, dilation, groups, padding_mode, out, stream)


def conv3d_weight(
    input: Array, weight_size: Sequence[int], grad_output: Array, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, *, padding_mode: str = "zeros", out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv3d with respect to its weight.

    input : array (N, C, D, H, W) or (C, D, H, W)
    weight_size : shape of the weight, (out_channels, C / groups, kd, kh, kw)
    grad_output : array of the convolution's output shape and the input's dtype
    stride, padding, dilation, groups, padding_mode : those of the convolution

    Returns an array of shape ``weight_size``, summed over batch and space in one fixed order (images, then rows): bitwise the same for any
    number of threads, and the one result of the library that depends on how the batch is cut.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.grad.conv3d_weight.html
    """
    return _weight(3, input, weight_size, grad_output, stride, padding, dilation, groups, padding_mode, out, stream)


def conv_transpose1d_input(
    input_size: Sequence[int], weight: Array, grad_output: Array, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv_transpose1d with respect to its input: :func:`conv_transpose3d_input` for one axis."""
    return _transpose_input(1, input_size, weight, grad_output, stride, padding, output_padding, groups, dilation, out, stream)


def conv_transpose2d_input(
    input_size: Sequence[int], weight: Array, grad_output: Array, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv_transpose2d with respect to its input: :func:`conv_transpose3d_input` for two axes."""
    return _transpose_input(2, input_size, weight, grad_output, stride, padding, output_padding, groups, dilation, out, stream)


def conv_transpose3d_input(
    input_size: Sequence[int], weight: Array, grad_output: Array, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv_transpose3d with respect to its input.

    input_size : shape of the transposed convolution's input, (N, C, D, H, W) or (C, D, H, W)
    weight : array (C, out_channels / groups, kd, kh, kw)
    grad_output : array of the transposed convolution's output shape and the weight's dtype
    stride, padding, output_padding, groups, dilation : those of the transposed convolution

    Returns an array of shape ``input_size``: the forward convolution of ``grad_output``.
    """
    return _transpose_input(3, input_size, weight, grad_output, stride, padding, output_padding, groups, dilation, out, stream)


def conv_transpose1d_weight(
    input: Array, weight_size: Sequence[int], grad_output: Array, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv_transpose1d with respect to its weight: :func:`conv_transpose3d_weight` for one axis."""
    return _transpose_weight(1, input, weight_size, grad_output, stride, padding, output_padding, groups, dilation, out, stream)


def conv_transpose2d_weight(
    input: Array, weight_size: Sequence[int], grad_output: Array, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv_transpose2d with respect to its weight: :func:`conv_transpose3d_weight` for two axes."""
    return _transpose_weight(2, input, weight_size, grad_output, stride, padding, output_padding, groups, dilation, out, stream)


def conv_transpose3d_weight(
    input: Array, weight_size: Sequence[int], grad_output: Array, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, out: Array | None = None, stream: Any = None,
) -> Array:  # fmt: skip
    """Gradient of conv_transpose3d with respect to its weight.

    input : array (N, C, D, H, W) or (C, D, H, W)
    weight_size : shape of the weight, (C, out_channels / groups, kd, kh, kw)
    grad_output : array of the transposed convolution's output shape and the input's dtype
    stride, padding, output_padding, groups, dilation : those of the transposed convolution

    Returns an array of shape ``weight_size``; the order of its sums is that of :func:`conv3d_weight`.
    """
    return _transpose_weight(3, input, weight_size, grad_output, stride, padding, output_padding, groups, dilation, out, stream)


def conv_bias(grad_output: Array, *, stream: Any = None) -> Array:
    """Gradient of any (transposed) convolution with respect to its bias: the sum of grad_output (N, C, *size) over batch and space.

    Returns an array (C,) of the same dtype; floats are summed in float64 (complex128), one image after the other.
    """
    grad = check_array("grad_output", grad_output)
    if grad.ndim not in (3, 4, 5):
        raise ValueError(f"grad_output must have 3, 4 or 5 dimensions (N, C, *size), got shape {shown_shape(grad.shape)}")
    memory = memory_of(grad)
    result: Array = memory.channel_sums(memory.begin({"grad_output": grad}, stream)["grad_output"])
    return result


# ---- the four kinds ----------------------------------------------------------------------------------------------
def _input(
    rank: int,
    input_size: Any,
    weight: Array,
    grad_output: Array,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    out: Any,
    stream: Any,
) -> Array:
    w, g = _pair("weight", weight, grad_output)
    size = _size("input_size", input_size)
    given, options = (rank, "input_grad", name_of(w), size, w.shape), (stride, padding, dilation, groups, padding_mode)
    problem, choice = decide(_forward, given, options, None, "auto", device_of(g))
    _check_output("grad_output", g, problem.source_shape, len(size) == rank + 2)
    result: Array = execute(problem, choice, g, w, None, out, stream, gradient=True)
    return result


def _weight(
    rank: int,
    input: Array,
    weight_size: Any,
    grad_output: Array,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    out: Any,
    stream: Any,
) -> Array:
    x, g = _pair("input", input, grad_output)
    given = (rank, "weight_grad", name_of(x), x.shape, _size("weight_size", weight_size))
    problem, choice = decide(_forward, given, (stride, padding, dilation, groups, padding_mode), None, "auto", device_of(g))
    _check_output("grad_output", g, (problem.batch, problem.out_channels, *problem.out_size[3 - rank :]), x.ndim == rank + 2)
    result: Array = execute_weight_grad(problem, choice, x, g, out, stream)
    return result


def _transpose_input(
    rank: int,
    input_size: Any,
    weight: Array,
    grad_output: Array,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    out: Any,
    stream: Any,
) -> Array:
    w, g = _pair("weight", weight, grad_output)
    size = _size("input_size", input_size)
    given, options = (rank, "forward", name_of(w), size, w.shape), (stride, padding, output_padding, groups, dilation)
    problem, choice = decide(_transposed, given, options, None, "auto", device_of(g))
    _check_output("grad_output", g, problem.source_shape, len(size) == rank + 2)
    result: Array = execute(problem, choice, g, w, None, out, stream, gradient=True)
    return result


def _transpose_weight(
    rank: int,
    input: Array,
    weight_size: Any,
    grad_output: Array,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    out: Any,
    stream: Any,
) -> Array:
    x, g = _pair("input", input, grad_output)
    given = (rank, "weight_grad", name_of(x), x.shape, _size("weight_size", weight_size))
    problem, choice = decide(_transposed, given, (stride, padding, output_padding, groups, dilation), None, "auto", device_of(g))
    _check_output("grad_output", g, problem.source_shape, x.ndim == rank + 2)
    # The kernel conjugates what the forward convolution reads, which here is the output gradient.
    result: Array = execute_weight_grad(problem, choice, g, x, out, stream, ("grad_output", "input"), conjugated=True)
    return result


def _forward(
    rank: int,
    direction: Any,
    dtype: str,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    mode: Any,
) -> Problem:
    """The problem of a convolution's gradient."""
    forward = forward_problem(rank, input, weight, None, stride, padding, dilation, groups, padding_mode=mode, dtype=dtype)
    return forward.gradient(direction)


def _transposed(rank: int, direction: Any, dtype: str, input: Any, weight: Any, *geometry: Any) -> Problem:
    """The problem of a transposed convolution's gradient."""
    return replace(transposed_problem(rank, input, weight, None, *geometry, dtype=dtype), direction=direction)


def _pair(name: str, value: Any, grad_output: Any) -> tuple[Any, Any]:
    array, grad = check_array(name, value), check_array("grad_output", grad_output)
    check_alike(name, array, "grad_output", grad)
    return array, grad


def _size(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple or list of integers, got {type(value).__name__}")
    if set(map(type, value)) == {int} and min(value) >= 0:  # in a fifth of the time
        return tuple(value)
    return tuple(integer(f"{name}[{i}]", n, 0) for i, n in enumerate(value))


def _check_output(name: str, array: Any, batched: tuple[int, ...], is_batched: bool) -> None:
    expected = batched if is_batched else batched[1:]
    if array.shape != expected:
        raise ValueError(f"{name} must have the convolution's output shape {shown_shape(expected)}, got {shown_shape(array.shape)}")
