"""im2col and its transpose: ``unfold`` lays the sliding blocks of an image out as columns, ``fold`` sums them back.

On the host plain NumPy, one strided copy (or addition) for each kernel tap; on a CUDA device one kernel.  No padded copy of the image is
made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from .arguments import per_axis, shown_shape
from .arrays import ELEMENTS, AnyArray, check_array, check_memory
from .device import DeviceArray
from .problem import Problem, forward_problem, split_shape

Array = TypeVar("Array")  # NumPy's, CuPy's, torch's or Numba's: a result has the type of the input


def unfold1d(input: Array, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Array:
    """The sliding blocks of a signal: :func:`unfold3d` for input (N, C, W) or (C, W)."""
    columns: Array = _unfold(1, input, kernel_size, dilation, padding, stride)
    return columns


def unfold2d(input: Array, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Array:
    """The sliding blocks of an image: :func:`unfold3d` for input (N, C, H, W) or (C, H, W); torch's ``unfold``."""
    columns: Array = _unfold(2, input, kernel_size, dilation, padding, stride)
    return columns


def unfold3d(input: Array, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Array:
    """The sliding blocks that a convolution of these arguments sees, one a column (im2col).

    Parameters
    ----------
    input : array (N, C, D, H, W) or (C, D, H, W), of any dtype that :func:`conv3d` takes, any strides; never changed
    kernel_size, dilation, stride : int, or a tuple or list of 1 or 3 ints, at least 1
    padding : every form that :func:`conv3d` takes; the padded cells are zeros

    Returns
    -------
    array (N, C * kd * kh * kw, L), or without N for unbatched input: fresh, C-contiguous, native byte order
        Row ``c * taps + tap`` of column ``l`` is what tap ``tap`` of block ``l`` reads in channel ``c``; taps and the L blocks are
        counted with the last axis fastest.  L is the number of output cells of the convolution.

    Raises
    ------
    ValueError for shapes and ranges, TypeError for types, MemoryError when the columns pass the physical memory.

    Memory: the columns, about ``taps / prod(stride)`` times the input.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Unfold.html
    """
    columns: Array = _unfold(3, input, kernel_size, dilation, padding, stride)
    return columns


def fold1d(
    input: Array, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Array:  # fmt: skip
    """The signal that sums these columns: :func:`fold3d` with output_size (W,) and result (N, C, W) or (C, W)."""
    image: Array = _fold(1, input, output_size, kernel_size, dilation, padding, stride)
    return image


def fold2d(
    input: Array, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Array:  # fmt: skip
    """The image that sums these columns: :func:`fold3d` with output_size (H, W) and result (N, C, H, W) or (C, H, W); torch's ``fold``."""
    image: Array = _fold(2, input, output_size, kernel_size, dilation, padding, stride)
    return image


def fold3d(
    input: Array, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Array:  # fmt: skip
    """Sum columns into the cells that :func:`unfold3d` read them from: its transpose, not its inverse (col2im).

    ``fold3d(unfold3d(x, k), x.shape[2:], k)`` is ``x`` times the number of blocks that each cell lies in.

    Parameters
    ----------
    input : array (N, C * kd * kh * kw, L) or (C * kd * kh * kw, L), as unfold3d returns it; never changed
    output_size : int, or a tuple or list of 1 or 3 ints: the size (D, H, W) of the result
    kernel_size, dilation, padding, stride : as for :func:`unfold3d`

    Returns
    -------
    array (N, C, D, H, W), or without N for unbatched input: fresh, C-contiguous, native byte order
        float16 and bfloat16 are summed in float32 and rounded once; integers are exact modulo 2**bits.

    Raises as unfold3d.  Memory: the result; for 8- and 16-bit dtypes also a 32-bit copy of it, in which the sums run.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Fold.html
    """
    image: Array = _fold(3, input, output_size, kernel_size, dilation, padding, stride)
    return image


unfold = unfold2d
fold = fold2d


def _unfold(rank: int, input: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    x = check_array("input", input)
    batch, channels, size = split_shape(f"unfold{rank}d", rank, x.shape)
    kernel = per_axis("kernel_size", kernel_size, rank, 1)
    problem = forward_problem(rank, (batch, channels, *size), (1, channels, *kernel), None, stride, padding, dilation)
    shape = (*x.shape[: -rank - 1], channels * problem.taps, math.prod(problem.out_size))
    if type(x) is DeviceArray:
        from .cuda.columns import unfold as unfold_there

        return unfold_there(x, problem, shape)
    image = x.reshape(batch, channels, *problem.in_size)
    columns = _zeros((batch, channels, *problem.kernel, *problem.out_size), x.dtype.newbyteorder("="))
    for blocks, cells in _reads(problem):
        columns[blocks] = image[cells]
    return columns.reshape(shape)


def _fold(rank: int, input: Any, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    x = check_array("input", input)
    if x.ndim not in (2, 3):
        raise ValueError(f"input must have 2 (unbatched) or 3 (batched) dimensions for fold{rank}d, got shape {shown_shape(x.shape)}")
    size, kernel = per_axis("output_size", output_size, rank, 1), per_axis("kernel_size", kernel_size, rank, 1)
    channels, rest = divmod(x.shape[-2], math.prod(kernel))
    if rest:
        raise ValueError(f"input must have a multiple of prod(kernel_size) = {math.prod(kernel)} rows, got shape {shown_shape(x.shape)}")
    batch = x.shape[0] if x.ndim == 3 else 1
    problem = forward_problem(rank, (batch, channels, *size), (1, channels, *kernel), None, stride, padding, dilation)
    blocks_along = problem.out_size[3 - rank :]
    if x.shape[-1] != math.prod(blocks_along):
        raise ValueError(
            f"input must have a column for each of {' * '.join(map(str, blocks_along))} = {math.prod(blocks_along)} blocks of an image "
            f"of size {size}, got shape {shown_shape(x.shape)}"
        )
    shape = (*x.shape[:-2], channels, *size)
    if type(x) is DeviceArray:
        from .cuda.columns import fold as fold_there

        return fold_there(x, problem, shape)
    columns = x.reshape(batch, channels, *problem.kernel, *problem.out_size)
    sums = _zeros((batch, channels, *problem.in_size), ELEMENTS[x.dtype.name].accumulator)
    with np.errstate(all="ignore"):
        for blocks, cells in _reads(problem):
            sums[cells] += columns[blocks]
        return sums.reshape(shape).astype(x.dtype.newbyteorder("="), copy=False)


def _reads(problem: Problem) -> Iterator[tuple[Any, Any]]:
    """For every kernel tap that meets the image: its place in the columns (N, C, *kernel, *blocks), and the image cells there.

    Only blocks whose cell lies inside the image are part of it; the others read padding.
    """
    sizes = zip(problem.kernel, problem.out_size, problem.in_size, problem.padding, problem.stride, problem.dilation)
    for axes in itertools.product(*(_reads_along(*axis) for axis in sizes)):
        taps, blocks, cells = zip(*axes)
        yield (slice(None), slice(None), *taps, *blocks), (..., *cells)


def _reads_along(
    kernel: int, count: int, size: int, padding: tuple[int, int], stride: int, dilation: int
) -> Iterator[tuple[int, slice, slice]]:
    """The taps along one axis that meet the image, with the range of blocks and the cells that these read."""
    for tap in range(kernel):
        start = tap * dilation - padding[0]  # where block 0 reads; negative in the padding
        first = max(0, -(start // stride))
        last = min(count, (size - 1 - start) // stride + 1)
        if first < last:
            yield tap, slice(first, last), slice(start + first * stride, start + last * stride, stride)


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    check_memory(math.prod(shape) * dtype.itemsize)
    return np.zeros(shape, dtype)
