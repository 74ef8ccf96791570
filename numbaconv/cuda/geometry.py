"""The numbers of a problem as kernels see them, and where a tap of a result cell reads."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from ..arguments import PADDING_MODES
from ..padding import source_index
from ..problem import Problem

NOTHING = -2
"""No source cell: outside a gradient, or between the steps of its stride."""

index_of = cuda.jit(device=True)(source_index)


class Axis(NamedTuple):
    """One axis of a problem, in cells; ``low`` and ``high`` are the paddings of the forward convolution."""

    source: int
    result: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int


AXIS = types.NamedUniTuple(types.int32, len(Axis._fields), Axis)


class Steps(NamedTuple):
    """Strides of a 5-D array in elements."""

    n: int
    c: int
    d: int
    h: int
    w: int


STEPS = types.NamedUniTuple(types.int64, len(Steps._fields), Steps)


def axes_of(p: Problem) -> tuple[Axis, Axis, Axis]:
    """Depth, height and width of the arrays that a kernel reads and writes."""
    a, b, c = (
        Axis(source, result, k, s, d, lo, hi)
        for source, result, k, s, d, (lo, hi) in zip(p.source_size, p.result_size, p.kernel, p.stride, p.dilation, p.padding)
    )
    return a, b, c


def mode_of(p: Problem) -> int:
    return PADDING_MODES.index(p.padding_mode)


def too_long(p: Problem) -> str | None:
    """Why no kernel can index the problem: positions along one axis and channel numbers are 32-bit, offsets of elements 64-bit."""
    reaches = [n + lo + hi for n, (lo, hi) in zip(p.in_size, p.padding)] + [d * k for d, k in zip(p.dilation, p.kernel)]
    if max(*reaches, *p.out_size, *p.stride, p.in_channels, p.out_channels) >= 2**31 - 1:
        return "an axis, padding, stride or dilation of 2**31 - 1 or more"
    return None


@cuda.jit(device=True)
def forward_meets(axis, position, tap, mode):  # type: ignore[no-untyped-def]
    """Source index that a tap of a result position meets in a forward convolution; PADDING for a padded zero."""
    return index_of(types.int32(types.int32(position * axis.stride) + types.int32(tap * axis.dilation) - axis.low), axis.source, mode)


@cuda.jit(device=True)
def transposed_meets(axis, position, tap, mode):  # type: ignore[no-untyped-def]
    """The same in an input gradient, whose ``position`` may lie in the padding; NOTHING where no source cell reaches it."""
    reach = types.int32(types.int32(position + axis.low) - types.int32(tap * axis.dilation))
    if reach < 0:
        return types.int32(NOTHING)
    if axis.stride == 1:
        return reach if reach < axis.source else types.int32(NOTHING)
    step = types.int32(types.uint32(reach) // types.uint32(axis.stride))
    return step if types.int32(step * axis.stride) == reach and step < axis.source else types.int32(NOTHING)


@cuda.jit(device=True)
def copies(axis, position, mode):  # type: ignore[no-untyped-def]
    """How many cells of the padded axis hold the value of the input cell ``position``: itself and its copies in the padding."""
    size = axis.result
    if mode == 1:
        return 1 + (1 <= position <= axis.low) + (size - 1 - axis.high <= position < size - 1)
    if mode == 2:
        return 1 + (axis.low if position == 0 else 0) + (axis.high if position == size - 1 else 0)
    if mode == 3:
        return 1 + (position >= size - axis.low) + (position < axis.high)
    return 1


@cuda.jit(device=True)
def copy_at(axis, position, mode, which):  # type: ignore[no-untyped-def]
    """The position of copy number ``which``, of which 0 is the cell itself; padded positions are negative or beyond the size."""
    if which == 0:
        return position
    size = axis.result
    if mode == 1:
        return types.int32(-position) if which == 1 and 1 <= position <= axis.low else types.int32(2 * (size - 1) - position)
    if mode == 2:
        if position == 0 and which <= axis.low:
            return types.int32(-which)
        return types.int32(size - 1 + which - (axis.low if position == 0 else 0))
    return types.int32(position - size) if which == 1 and position >= size - axis.low else types.int32(position + size)


def named(name: str, fields: Sequence[str]) -> Any:
    """A named tuple of numbers, whose fields are worked out."""
    return namedtuple(name, fields)


def numbers(parts: Sequence[Any]) -> list[int]:
    """Arguments in the order of a kernel's parameters: named tuples field by field."""
    flat: list[int] = []
    for part in parts:
        if isinstance(part, tuple):
            flat.extend(numbers(part))
        else:
            flat.append(int(part))
    return flat
