"""The convolutions as functions of NumPy arrays, with torch's documented semantics."""

from __future__ import annotations

from typing import Any, TypeVar

from .arrays import check_out_dtype, device_of, name_of
from .choose import decide
from .plans import check_arguments, execute
from .problem import Problem, forward_problem, transposed_problem

Array = TypeVar("Array")  # NumPy's, CuPy's, torch's or Numba's: a result has the type of the input


def conv1d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
    stream: Any = None,
) -> Array:
    """1-D convolution: :func:`conv3d` for input (N, C, W) or (C, W) and weight (out_channels, C / groups, kw)."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, padding_mode, out, out_dtype, precision, algorithm, stream)


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
    stream: Any = None,
) -> Array:
    """2-D convolution: :func:`conv3d` for input (N, C, H, W) or (C, H, W) and weight (out_channels, C / groups, kh, kw)."""
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, padding_mode, out, out_dtype, precision, algorithm, stream)


def conv3d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
    stream: Any = None,
) -> Array:
    """3-D cross-correlation of many channels: what torch.nn.functional.conv3d documents.

    ``out[n, o] = bias[o] + sum over c of weight[o, c] ⋆ input[n, c]``, with output size along each axis
    ``floor((size + padding - dilation * (kernel - 1) - 1) / stride) + 1``, where padding counts both sides.

    Parameters
    ----------
    input : array (N, C, D, H, W) or (C, D, H, W)
        float64, float32, float16, bfloat16 (ml_dtypes), complex64, complex128, int8, int16, int32, int64 or uint8; any strides.
        Never changed.  A byte-swapped or unaligned array costs one native copy; no other layout is copied.
    weight : array (out_channels, C / groups, kd, kh, kw) of the same dtype
    bias : array (out_channels,) of the same dtype, or None
    stride, dilation : int or 3 ints, at least 1
    padding : int, 3 ints, 3 pairs (low, high), "valid", "same" (stride 1), "same_upper" or "same_lower" (any stride)
    groups : int
        Divides C and out_channels; output channels of group g see input channels of group g only.
    padding_mode : "zeros", "reflect" (padding < size), "replicate" or "circular" (padding <= size)
        The padded cells are read by index: no padded copy is made.
    out : array of the result's shape and dtype, any strides, or None
        Refused when read-only, self-overlapping or sharing memory with an argument.
    out_dtype : numpy.int32 for int8, int16 and uint8 arguments, or None (the arguments' dtype)
    precision : None, "ieee", "fast" or "tf32"
        None: any algorithm whose rms error is at most 3 times that of plain summation; "ieee": only algorithms that form every
        product of the definition; "fast": looser transforms too; "tf32": as "ieee" on the CPU.
    algorithm : "auto", or the name of one (see :func:`explain`)

    Returns
    -------
    array (N, out_channels, D', H', W'), or without N for unbatched input
        A fresh C-contiguous array in native byte order, or ``out``.  float16 and bfloat16 are accumulated in float32 and rounded
        once; integers are exact modulo 2**bits.

    Raises
    ------
    ValueError for shapes, ranges and values, TypeError for types; nothing is computed or written then.
    MemoryError when result and workspace pass the physical memory.

    Memory: the result, the packed weight, and a workspace that :func:`explain` states (never an im2col of the input).
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv3d.html
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, padding_mode, out, out_dtype, precision, algorithm, stream)


def conv_transpose1d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
    stream: Any = None,
) -> Array:
    """1-D transposed convolution: :func:`conv_transpose3d` for input (N, C, W) or (C, W) and weight (C, out_channels / groups, kw)."""
    return _conv_transpose(
        1, input, weight, bias, stride, padding, output_padding, groups, dilation, out, out_dtype, precision, algorithm, stream
    )


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
    stream: Any = None,
) -> Array:
    """2-D transposed convolution: :func:`conv_transpose3d` for input (N, C, H, W) and weight (C, out_channels / groups, kh, kw)."""
    return _conv_transpose(
        2, input, weight, bias, stride, padding, output_padding, groups, dilation, out, out_dtype, precision, algorithm, stream
    )


def conv_transpose3d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str | None = None,
    algorithm: str = "auto",
    stream: Any = None,
) -> Array:
    """3-D transposed convolution: what torch.nn.functional.conv_transpose3d documents, the input gradient of a convolution.

    Output size along each axis: ``(size - 1) * stride - padding + dilation * (kernel - 1) + output_padding + 1``, where padding
    counts both sides.  No zeros are inserted, so none is multiplied.

    Parameters
    ----------
    input : array (N, C, D, H, W) or (C, D, H, W), of any dtype that :func:`conv3d` takes
    weight : array (C, out_channels / groups, kd, kh, kw) of the same dtype
    bias : array (out_channels,) of the same dtype, or None
    stride, dilation : int or 3 ints, at least 1
    padding : int, 3 ints or 3 pairs (low, high)
        Crops the result: the padding of the forward convolution whose input gradient this is.
    output_padding : int or 3 ints, smaller than stride or dilation
        Extra cells at the end of the result.
    groups, out, out_dtype, precision, algorithm : as for :func:`conv3d`

    Returns and raises as :func:`conv3d`.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose3d.html
    """
    return _conv_transpose(
        3, input, weight, bias, stride, padding, output_padding, groups, dilation, out, out_dtype, precision, algorithm, stream
    )


def _conv(
    rank: int, input: Array, weight: Array, bias: Array | None, stride: Any, padding: Any, dilation: Any, groups: Any,
    padding_mode: Any, out: Any, out_dtype: Any, precision: Any, algorithm: Any, stream: Any,
) -> Array:  # fmt: skip
    x, w, b = check_arguments(input, weight, bias)
    dtype = name_of(x)
    given = (rank, dtype, check_out_dtype(out_dtype, dtype), x.shape, w.shape, None if b is None else b.shape)
    problem, choice = decide(_forward, given, (stride, padding, dilation, groups, padding_mode), precision, algorithm, device_of(x))
    result: Array = execute(problem, choice, x, w, b, out, stream)
    return result


def _conv_transpose(
    rank: int, input: Array, weight: Array, bias: Array | None, stride: Any, padding: Any, output_padding: Any, groups: Any,
    dilation: Any, out: Any, out_dtype: Any, precision: Any, algorithm: Any, stream: Any,
) -> Array:  # fmt: skip
    x, w, b = check_arguments(input, weight, bias)
    dtype = name_of(x)
    given = (rank, dtype, check_out_dtype(out_dtype, dtype), x.shape, w.shape, None if b is None else b.shape)
    problem, choice = decide(_transposed, given, (stride, padding, output_padding, groups, dilation), precision, algorithm, device_of(x))
    result: Array = execute(problem, choice, x, w, b, out, stream)
    return result


def _forward(
    rank: int,
    dtype: str,
    out_dtype: str,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    mode: Any,
) -> Problem:
    return forward_problem(
        rank, input, weight, bias, stride, padding, dilation, groups, padding_mode=mode, dtype=dtype, out_dtype=out_dtype
    )  # fmt: skip


def _transposed(rank: int, dtype: str, out_dtype: str, *geometry: Any) -> Problem:
    return transposed_problem(rank, *geometry, dtype=dtype, out_dtype=out_dtype)
