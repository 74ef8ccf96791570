"""The spatial axes of a dense problem as a kernel walks them: forward and transposed alike, and merged where the memory allows."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from .problem import Problem


class Axis(NamedTuple):
    """One axis of a part of a problem: ``size`` result cells, ``stride`` apart from ``first`` on.

    Cell j of them meets tap i of ``taps`` (positions in the kernel) at source index j * step + shifts[i].
    """

    first: int
    stride: int
    size: int
    step: int
    taps: tuple[int, ...]
    shifts: tuple[int, ...]


Part = tuple[Axis, Axis, Axis]


class Line(NamedTuple):
    """One axis in memory; strides in elements."""

    source_size: int
    source_stride: int
    size: int
    result_stride: int
    step: int
    shifts: tuple[int, ...]


UNIT_LINE = Line(1, 1, 1, 1, 1, (0,))


def axis_parts(p: Problem, axis: int) -> list[Axis]:
    """The result cells of one axis by the taps they meet: all of them, or those of each remainder modulo a gradient's stride."""
    stride, dilation, low, kernel = p.stride[axis], p.dilation[axis], p.padding[axis][0], p.kernel[axis]
    if not p.transposed:
        return [Axis(0, 1, p.out_size[axis], stride, tuple(range(kernel)), tuple(k * dilation - low for k in range(kernel)))]
    size, parts = p.in_size[axis], []
    for first in range(min(stride, size)):
        taps = tuple(k for k in range(kernel) if (first + low - k * dilation) % stride == 0)
        shifts = tuple((first + low - k * dilation) // stride for k in taps)
        parts.append(Axis(first, stride, -(-(size - first) // stride), 1, taps, shifts))
    return parts


def cut_where_taps_change(axis: Axis, source_size: int) -> list[Axis]:
    """The cells of an axis cut so that within a piece every tap meets the source everywhere or nowhere: pieces of one step and shift."""
    bounds = {0, axis.size}
    for low, high in _met(axis, source_size):
        bounds |= {low, high} if low < high else set()
    ends = sorted(bounds)
    return [
        axis._replace(first=axis.first + low * axis.stride, size=high - low, shifts=tuple(low * axis.step + s for s in axis.shifts))
        for low, high in itertools.pairwise(ends)
    ]


def taps_that_meet(axis: Axis, source_size: int) -> float:
    """How many taps of an axis meet the source: the mean over its cells."""
    return sum(max(0, high - low) for low, high in _met(axis, source_size)) / axis.size


def _met(axis: Axis, source_size: int) -> list[tuple[int, int]]:
    """For each tap the cells [low, high) at which it meets the source."""
    step, last = axis.step, source_size - 1
    return [(min(max(0, -(s // step)), axis.size), max(0, min(axis.size, (last - s) // step + 1))) for s in axis.shifts]


def tap_count(part: Part) -> int:
    return math.prod(len(axis.taps) for axis in part)


def pixel_count(part: Part) -> int:
    return math.prod(axis.size for axis in part)


def merged(lines: list[Line]) -> list[Line]:
    """Three lines with the same pixels in the same order and the last one long: rows that follow one another in memory and meet one
    tap become one row, axes of one cell move to the front, and a stride that leads nowhere becomes 1."""
    found: list[Line] = []
    for line in lines:
        if line.source_size == line.size == 1 and line.shifts == (0,):
            continue
        if line.source_size == 1:
            line = line._replace(source_stride=1)
        if line.size == 1:
            line = line._replace(step=1)
        if found and _one_row(found[-1], line):
            size = found.pop().size * line.size
            line = line._replace(source_size=size, size=size)
        found.append(line)
    return [UNIT_LINE] * (3 - len(found)) + found


def _one_row(outer: Line, inner: Line) -> bool:
    if not all(line.shifts == (0,) and line.step == 1 and line.source_size == line.size for line in (outer, inner)):
        return False
    return outer.source_stride == inner.size * inner.source_stride and outer.result_stride == inner.size * inner.result_stride


def is_contiguous(lines: list[Line]) -> bool:
    """Whether the result pixels follow one another in memory."""
    expected = 1
    for line in reversed(lines):
        if line.size > 1 and line.result_stride != expected:
            return False
        expected *= line.size
    return True
