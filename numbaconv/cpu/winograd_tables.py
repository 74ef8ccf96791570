"""The tables of Winograd convolution: the fields of its geometry, and where the tiles of a task lie in memory."""

from __future__ import annotations

from typing import NamedTuple

from ..padding import PADDING, source_index
from .compile import kernel
from .elements import UNSTORED
from .simd import lanes_of
from .winograd_transforms import NOTHING
from .winograd_vectors import cell_lane

GAP = 16  # elements between the products of a tile beyond their data: without it they share cache sets
ALIGNMENT = 64
LINE = 2  # vectors of a staged row

# Fields of the geometry, an int64 array.  First three axes each, then single numbers; addresses, steps and strides in bytes.
SOURCE_SIZE, SOURCE_STRIDE, RESULT_SIZE, RESULT_STRIDE, SHIFT, TAPS, OUTPUTS, CELLS, TILES = range(0, 27, 3)
(
    SOURCE, SOURCE_IMAGE, SOURCE_CHANNEL, RESULT, RESULT_IMAGE, RESULT_CHANNEL, MODE, TRANSPOSED, GATHERED, SCATTERED,
    STORED, GROUPS, CHANNELS, CHAIN, FILTERS, PRODUCTS, STACKS, BLOCK, DEPTHS, SWEEP, ROW_BLOCKS, SPLITS, TASKS,
    WIDTH, CELL_STEP, CELL_ROW, CELL_ELEMENTS, SUM_STEP, SUM_ROW, PLANES, MOST_GROUPS,
    TILE, RUN, STAGED, ROWS_IN, MASKS_IN, ROWS_OUT, MASKS_OUT, TABLE, LOADS, FIELDS,
) = range(27, 68)  # fmt: skip

find_source = kernel()(source_index)
_cell_lane = kernel()(cell_lane)


def odd_lines(elements: int) -> int:
    """At least so many elements: an odd number of times GAP."""
    return (-(-elements // GAP) | 1) * GAP


class Task(NamedTuple):
    """A block of tiles, some tiles deep, of one group of channels, in so many groups of lanes."""

    group: int
    tile: int
    tiles: int
    depth: int
    depths: int
    groups: int


@kernel()
def list_groups(g, task, work, item):  # type: ignore[no-untyped-def]
    """Fill the table and the lane numbers for the tiles of a task; the number of groups."""
    lanes = lanes_of(work.cells)
    segments, across = g[OUTPUTS + 2], g[TILES + 2]
    each, tile, last = lanes // segments, task.tile, task.tile + task.tiles
    groups = at = 0
    while tile < last:
        entry = work.table[groups * g[TABLE] : (groups + 1) * g[TABLE]]
        numbers = work.numbers[groups * 3 * lanes : (groups + 1) * 3 * lanes]
        staged, count = g[GATHERED], 0
        for s in range(segments):
            run = max(0, min(each, across - tile % across, last - tile))
            column = tile % across * segments + g[SHIFT + 2]
            outside = column < 0 or column + (run - 1) * segments + g[CELLS + 2] > g[SOURCE_SIZE + 2]
            if run > 0 and outside and g[MODE] != 0:
                staged = 1
            entry[g[TILE] + s], entry[g[RUN] + s] = tile, run
            _number_lanes(s, run, count, segments, lanes, numbers)
            tile, count = tile + run, count + run
        entry[0], entry[1], entry[2], entry[g[STAGED]] = at, count, g[STORED], staged
        for s in range(segments):
            _fill_segment(g, entry, s, lanes)
        groups, at = groups + 1, at + count
    return groups


@kernel()
def _number_lanes(segment, run, count, segments, lanes, numbers):  # type: ignore[no-untyped-def]
    """Lanes of the shuffles for the ``run`` tiles of a segment: ``count`` lanes are in use before them."""
    each, half = lanes // segments, lanes // 2
    for i in range(run):
        tile = segment * each + i
        numbers[count + i] = _cell_lane(tile, segments, lanes)
        place = (1 + tile // half) * lanes + 2 * (tile % half)
        numbers[place], numbers[place + 1] = count + i, lanes + count + i


@kernel()
def _fill_segment(g, entry, s, lanes):  # type: ignore[no-untyped-def]
    """Offsets and masks of one segment of a group."""
    tile, run = entry[g[TILE] + s], entry[g[RUN] + s]
    image, depth, height, width = place_of(g, tile)
    plane, down, up = 0, g[CELLS + 1], g[OUTPUTS + 1]
    result = image * g[RESULT_IMAGE] + width * g[RESULT_STRIDE + 2]
    if g[CELLS] == 1:  # the depth is no transformed axis: every plane has tiles of its own
        plane = find_source(depth + g[SHIFT], g[SOURCE_SIZE], g[MODE])
        result += depth * g[RESULT_STRIDE]
    column = width + g[SHIFT + 2]
    source = image * g[SOURCE_IMAGE] + plane * g[SOURCE_STRIDE] + (0 if entry[g[STAGED]] else column * g[SOURCE_STRIDE + 2])
    for r in range(down):
        h = find_source(height + r + g[SHIFT + 1], g[SOURCE_SIZE + 1], g[MODE])
        there = run > 0 and plane != PADDING and h != PADDING
        entry[g[ROWS_IN] + r * g[OUTPUTS + 2] + s] = source + h * g[SOURCE_STRIDE + 1] if there else NOTHING
    for k in range(g[LOADS]):
        start = column + k * g[OUTPUTS + 2]
        low, high = min(lanes, max(0, -start)), min(lanes, max(0, g[SOURCE_SIZE + 2] - start))
        entry[g[MASKS_IN] + s * g[LOADS] + k] = ((1 << high) - 1) & ~((1 << low) - 1)
    for i in range(up):
        there = run > 0 and height + i < g[RESULT_SIZE + 1]
        entry[g[ROWS_OUT] + i * g[OUTPUTS + 2] + s] = result + (height + i) * g[RESULT_STRIDE + 1] if there else NOTHING
    entry[g[MASKS_OUT] + s] = (1 << columns_of(g, width, run)) - 1


@kernel()
def fill_line_entry(g, entry, lanes, item):  # type: ignore[no-untyped-def]
    """The table's entry for rows that lie in ``lines``."""
    entry[2] = UNSTORED
    for s in range(g[OUTPUTS + 2]):
        for r in range(g[CELLS + 1]):
            entry[g[ROWS_IN] + r * g[OUTPUTS + 2] + s] = (s * g[CELLS + 1] + r) * LINE * lanes * item
        for i in range(g[OUTPUTS + 1]):
            entry[g[ROWS_OUT] + i * g[OUTPUTS + 2] + s] = (s * g[OUTPUTS + 1] + i) * LINE * lanes * item
        entry[g[MASKS_OUT] + s] = (1 << lanes) - 1
        for k in range(g[LOADS]):
            entry[g[MASKS_IN] + s * g[LOADS] + k] = (1 << lanes) - 1


@kernel()
def place_of(g, tile):  # type: ignore[no-untyped-def]
    """Image, depth, height and width of a tile's first result; the depth is 0 where it is a transformed axis."""
    width, rest = tile % g[TILES + 2] * g[OUTPUTS + 2], tile // g[TILES + 2]
    height, rest = rest % g[TILES + 1] * g[OUTPUTS + 1], rest // g[TILES + 1]
    if g[CELLS] == 1:
        return rest // g[RESULT_SIZE], rest % g[RESULT_SIZE], height, width
    return rest, 0, height, width


@kernel()
def columns_of(g, width, run):  # type: ignore[no-untyped-def]
    """Results in one row of a segment that starts at column ``width``."""
    return max(0, min(run * g[OUTPUTS + 2], g[RESULT_SIZE + 2] - width))
