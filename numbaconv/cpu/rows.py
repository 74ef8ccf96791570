"""Rows of an array as kernels in plain Numba see them: what they share about geometry, padding and strides.

A kernel reads through :func:`gather`, which turns the cells that the taps of one row read (padding by index, any strides, halves
widened) into a short contiguous *line*.
"""

from __future__ import annotations

import itertools

import numpy as np

from ..arguments import PADDING_MODES
from ..arrays import AnyArray
from ..padding import PADDING, source_index
from ..problem import Problem
from . import halves
from .compile import kernel

NOTHING = -2  # no source cell: outside a gradient, or between the steps of its stride

# Fields of the geometry, an int64 array.  First three axes each, then single numbers.
SOURCE, RESULT, KERNEL, STRIDE, DILATION, PAD, PAD_HIGH = range(0, 21, 3)
(
    GROUPS, SOURCES, RESULTS, MODE, TRANSPOSED, IN_KIND, OUT_KIND, COLUMNS, BLOCK, ROWS,
    LINE, FINITE, FOLDS, WIDTH, IMAGES, LINES,
) = range(21, 37)  # fmt: skip
# Of a call: offset of the first element and five strides, in elements, of source and result (and a third array).
SOURCE_BASE, SOURCE_STEP, RESULT_BASE, RESULT_STEP, OTHER_BASE, OTHER_STEP, FIELDS = 37, 38, 43, 44, 49, 50, 55

index_of = kernel()(source_index)


def range_inside(first: int, stride: int, count: int, size: int) -> tuple[int, int]:
    """Range [low, high) of those out of ``count`` cells, ``stride`` apart from ``first`` on, that lie inside a row of so many."""
    low = min(count, max(0, -(first // stride)))
    return low, max(low, min(count, (size - 1 - first) // stride + 1))


inside = kernel()(range_inside)


@kernel()
def meets(geometry, axis, position, tap):  # type: ignore[no-untyped-def]
    """Source index along an axis that a tap of a result position meets; PADDING for a padded zero, NOTHING for no cell."""
    offset = tap * geometry[DILATION + axis] - geometry[PAD + axis]
    stride, size = geometry[STRIDE + axis], geometry[SOURCE + axis]
    if not geometry[TRANSPOSED]:
        return index_of(position * stride + offset, size, geometry[MODE])
    reach = position - offset
    if reach < 0 or reach % stride or reach // stride >= size:
        return NOTHING
    return reach // stride


@kernel()
def gather(source, base, geometry, start, trimmed, segments, missing, line):  # type: ignore[no-untyped-def]
    """Fill the line with the cells of one source row (its first element at ``base``) that the tile's taps read.

    segments[s] = first position, place in the line, length for a full tile, of which ``trimmed`` are left out.
    """
    size, step, kind = geometry[SOURCE + 2], geometry[SOURCE_STEP + 4], geometry[IN_KIND]
    transposed = geometry[TRANSPOSED]
    stride = 1 if transposed else geometry[STRIDE + 2]
    origin = 0 if transposed else start * stride - geometry[PAD + 2]
    for s in range(segments.shape[0]):
        first, length = origin + segments[s, 0], segments[s, 2] - trimmed
        part = line[segments[s, 1] : segments[s, 1] + length]
        low, high = inside(first, stride, length, size)
        if missing:
            low = high = length
        if step * stride == 1:
            there, target = source[base + first + low : base + first + high], part[low:high]
            for q in range(high - low):
                target[q] = halves.widen(there[q], kind)
        else:
            for q in range(low, high):
                part[q] = halves.widen(source[base + (first + q * stride) * step], kind)
        for begin, end in ((0, low), (high, length)):
            for q in range(begin, end):
                index = PADDING if missing else index_of(first + q * stride, size, geometry[MODE])
                if index == PADDING:
                    part[q] = 0
                else:
                    part[q] = halves.widen(source[base + index * step], kind)


def geometry_of(p: Problem) -> AnyArray:
    """The fields that a problem alone decides; the others are zero."""
    geometry = np.zeros(FIELDS, np.int64)
    axes = {
        SOURCE: p.source_size, RESULT: p.result_size, KERNEL: p.kernel, STRIDE: p.stride, DILATION: p.dilation,
        PAD: [lo for lo, _ in p.padding], PAD_HIGH: [hi for _, hi in p.padding],
    }  # fmt: skip
    for field, values in axes.items():
        geometry[field : field + 3] = values
    geometry[GROUPS], geometry[SOURCES], geometry[RESULTS] = p.groups, p.source_channels // p.groups, p.result_channels // p.groups
    geometry[MODE], geometry[TRANSPOSED] = PADDING_MODES.index(p.padding_mode), p.transposed
    geometry[IN_KIND], geometry[OUT_KIND] = halves.KIND.get(p.dtype, 0), halves.KIND.get(p.out_dtype, 0)
    return geometry


def forward_columns(p: Problem, tile: int) -> tuple[AnyArray, AnyArray]:
    """What a row of ``tile`` result columns gathers, and where in the line its taps read.

    segments[s] = first position from the tile's first tap, place in the line, length: positions ``stride`` apart lie side by
    side, and taps share a segment where their cells overlap.  taps[k] = place in the line, first column, columns.
    (A transposed convolution works these out for each tile; here it only learns how much the line must hold.)
    """
    taps = np.zeros((p.kernel[2], 3), np.int64)
    if p.transposed:
        reach = (tile - 1 + (p.kernel[2] - 1) * p.dilation[2]) // p.stride[2] + 1
        return np.array([[0, 0, min(reach, p.source_size[2])]], np.int64), taps
    segments, places = axis_segments(p.kernel[2], p.stride[2], p.dilation[2], tile)
    taps[:, 0], taps[:, 2] = places, tile
    return np.array(segments, np.int64), taps


def axis_segments(kernel: int, stride: int, dilation: int, tile: int) -> tuple[list[list[int]], list[int]]:
    """The segments of ``tile`` neighbouring result cells along one axis, and the place where each tap's first cell lies."""
    segments: list[list[int]] = []
    latest: dict[int, int] = {}  # the last segment of each phase of the stride
    members = []
    for k in range(kernel):
        position = k * dilation
        phase = position % stride
        found = latest.get(phase)
        if found is None or position > segments[found][0] + segments[found][2] * stride:
            found = latest[phase] = len(segments)
            segments.append([position, 0, 0])
        cell = (position - segments[found][0]) // stride
        segments[found][2] = cell + tile
        members.append((found, cell))
    for before, after in itertools.pairwise(segments):
        after[1] = before[1] + before[2]
    return segments, [segments[found][1] + cell for found, cell in members]
