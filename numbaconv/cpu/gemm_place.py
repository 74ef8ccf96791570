"""The geometry that an implicit GEMM's kernels are given: where a part of a problem lies in arrays of some strides, cut into tasks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import ELEMENTS
from ..axes import Line, Part, is_contiguous, pixel_count, tap_count
from . import gemm_worker as panels
from . import pack
from . import turned_worker as turned
from .elements import NUMBERS
from .gemm import TILE_ROWS, TILE_VECTORS
from .gemm_costs import DEPTH, blocking
from .gemm_shape import MOST_PANELS, GemmShape, division
from .pack_tap import EVEN, SPREAD, UNIT
from .target import target
from .turned_shape import lines_of

NEAR_BYTES = 1 << 20  # of a task's sums, to which each K block adds
PANELS_A_TASK = 8  # about; while they pass, one K block of the weight stays in the second-level cache


class PlacedPart(NamedTuple):
    """A part's geometry without addresses, its shifts, its tasks, and the work of one in any unit."""

    geometry: NDArray[np.int64]
    shifts: list[int]
    kernel: int
    tasks: int
    work: float


def _lines(shape: GemmShape, part: Part, source: tuple[int, ...], result: tuple[int, ...]) -> list[Line]:
    """A part's lines in arrays with these strides in bytes."""
    p = shape.problem
    item, result_item = (ELEMENTS[dtype].storage.itemsize for dtype in (p.dtype, p.out_dtype))
    strides = [s // item for s in source[2:]], [t // result_item for t in result[2:]]
    return list(lines_of(part, p.source_size, *strides))


def place_panels(
    shape: GemmShape, part: Part, start: int, batch: int, source: tuple[int, ...], result: tuple[int, ...], threads: int
) -> PlacedPart:
    """For ``gemm_worker``: the part whose weight begins at ``start``, for ``batch`` images; strides in bytes."""
    p, g, kernel = shape.problem, np.zeros(panels.FIELDS, np.int64), tap_count(part)
    item, result_item = (ELEMENTS[dtype].storage.itemsize for dtype in (p.dtype, p.out_dtype))
    lines = _lines(shape, part, source, result)
    for i, line in enumerate(lines):
        g[i : pack.MODE : 3] = [*line[:5], len(line.shifts)]
    step = lines[2].step * lines[2].source_stride
    g[pack.MODE], g[pack.SLOTS] = PADDING_MODES.index(p.padding_mode), shape.slots(lines[2].size)
    g[pack.LANE_STEP], g[pack.SPACING] = step, {1: UNIT, 2: EVEN}.get(step, SPREAD)
    g[panels.IMAGES], g[panels.GROUPS], g[panels.CHANNELS], g[panels.ROWS] = batch, p.groups, shape.channels, shape.rows
    g[panels.PIXELS], g[panels.KERNEL], g[panels.WEIGHT] = pixel_count(part), kernel, start
    g[panels.CHANNELS_AT_ONCE], g[pack.TAPS_AT_ONCE] = blocking(shape.channels, kernel, shape.kind)
    g[panels.SOURCE_IMAGE], g[pack.SOURCE_CHANNEL] = (s // item for s in source[:2])
    g[panels.RESULT_IMAGE], g[panels.RESULT_CHANNEL] = (s // result_item for s in result[:2])
    g[panels.SCATTERED], g[pack.TOGETHER], g[pack.COMPONENTS] = not is_contiguous(lines), shape.kind.together, shape.kind.components
    g[panels.STAGED] = g[panels.SCATTERED] or shape.narrows
    g[panels.RESULT] = sum(axis.first * step for axis, step in zip(part, result[2:]))
    count, repeat = -(-pixel_count(part) // (TILE_VECTORS * shape.lanes)), shape.columns(lines[2].size)
    most = min(max(1, PANELS_A_TASK // repeat) * repeat, shape.staged_panels if g[panels.STAGED] else MOST_PANELS, count)
    added_to = kernel * shape.channels > DEPTH  # by more than one K block
    near = NEAR_BYTES // (TILE_ROWS * TILE_VECTORS * target().vector_bytes) if added_to else max(1, shape.rows) * MOST_PANELS
    cut = division(pixel_count(part), shape.rows, shape.lanes, shape.channels, batch * p.groups, most, repeat, near, threads)
    g[panels.PANELS], g[panels.SHORT], g[panels.RUNS], g[panels.SPLITS] = cut
    tasks = cut.runs * cut.splits * batch * p.groups
    return PlacedPart(g, [shift for line in lines for shift in line.shifts], kernel, tasks, kernel * cut.panels / cut.splits)


def place_turned(
    shape: GemmShape, part: Part, start: int, batch: int, source: tuple[int, ...], result: tuple[int, ...], threads: int
) -> PlacedPart:
    """For ``turned_worker``."""
    p, g, kernel = shape.problem, np.zeros(turned.FIELDS, np.int64), tap_count(part)
    item, result_item = (ELEMENTS[dtype].storage.itemsize for dtype in (p.dtype, p.out_dtype))
    lines = _lines(shape, part, source, result)
    cut, _ = shape.turned_blocks(tuple(lines), batch * p.groups, threads)
    for i, line in enumerate(lines):
        low, reach = min(line.shifts, default=0), max(line.shifts, default=0) + 1
        numbers = *line[:5], len(line.shifts), low, reach, cut.size[i], cut.counts[i], cut.spans[i]
        g[i : turned.MODE : 3] = numbers
    g[turned.MODE], g[turned.LOADED], g[turned.STORED] = PADDING_MODES.index(p.padding_mode), NUMBERS[p.dtype], NUMBERS[p.out_dtype]
    g[turned.IMAGES], g[turned.GROUPS], g[turned.CHANNELS], g[turned.ROWS] = batch, p.groups, shape.channels, shape.rows
    g[turned.KERNEL], g[turned.WEIGHT], g[turned.CELLS], g[turned.SPLITS] = kernel, start, cut.cells, cut.splits
    g[turned.CHANNELS_AT_ONCE], g[turned.TAPS_AT_ONCE] = blocking(shape.channels, kernel, shape.kind)
    g[turned.SOURCE_IMAGE], g[turned.SOURCE_CHANNEL] = (s // item for s in source[:2])
    g[turned.RESULT_IMAGE], g[turned.RESULT_CHANNEL] = (s // result_item for s in result[:2])
    g[turned.SOURCE_ITEM], g[turned.RESULT_ITEM] = item, result_item
    g[turned.RESULT] = sum(axis.first * step for axis, step in zip(part, result[2:]))
    share = math.ceil(-(-shape.rows // shape.lanes) / cut.splits)
    g[turned.STAGED_ROW] = (share | 1) * shape.lanes  # off one cache set
    tasks = math.prod(cut.counts) * cut.splits * batch * p.groups
    return PlacedPart(g, [shift for line in lines for shift in line.shifts], kernel, tasks, kernel * cut.pixels / cut.splits)
