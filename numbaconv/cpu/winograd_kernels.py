"""The kernels of Winograd convolution: tasks, the three steps of a task, and the repair of what is not finite."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..arrays import AnyArray
from ..padding import PADDING
from .compile import kernel
from .elements import load_stored, store_stored
from .gemm import TILE_ROWS
from .simd import lanes_of
from .threads import next_task
from .winograd_products import multiply_panel
from .winograd_tables import (
    ALIGNMENT,
    BLOCK,
    CELL_ELEMENTS,
    CELL_ROW,
    CELL_STEP,
    CELLS,
    CHAIN,
    CHANNELS,
    DEPTHS,
    FILTERS,
    LINE,
    MODE,
    MOST_GROUPS,
    OUTPUTS,
    PLANES,
    PRODUCTS,
    RESULT,
    RESULT_CHANNEL,
    RESULT_IMAGE,
    RESULT_SIZE,
    RESULT_STRIDE,
    ROW_BLOCKS,
    ROWS_IN,
    ROWS_OUT,
    RUN,
    SCATTERED,
    SHIFT,
    SOURCE,
    SOURCE_CHANNEL,
    SOURCE_IMAGE,
    SOURCE_SIZE,
    SOURCE_STRIDE,
    SPLITS,
    STACKS,
    STAGED,
    STORED,
    SUM_ROW,
    SUM_STEP,
    SWEEP,
    TABLE,
    TAPS,
    TASKS,
    TILE,
    TILES,
    TRANSPOSED,
    Task,
    columns_of,
    fill_line_entry,
    find_source,
    list_groups,
    place_of,
)  # fmt: skip
from .winograd_transforms import NOTHING, restore_group, transform_group
from .winograd_weight import TOGETHER, pack_rows, pass_start


class Workspace(NamedTuple):
    """Memory of one thread."""

    cells: AnyArray  # transformed cells of a task's tiles: see transform_group
    sums: AnyArray  # sums of some filters: see restore_group
    ring: AnyArray  # planes of products
    lines: AnyArray  # rows of cells or results that are not side by side in memory
    nothing: AnyArray  # zeros to read, then a place to write, for rows that are not there
    table: AnyArray  # int64, one entry for each group, and one for rows in ``lines``
    numbers: AnyArray  # int32 (group, 3, lane): the groups' lane numbers
    bad: AnyArray  # int64, whether a group has results that are not finite
    total: AnyArray  # one pixel of some filters


# ---- tasks -------------------------------------------------------------------------------------------------------------
@kernel()
def worker(source, result, shape, geometry, numbers, taps, weight, filters, bias, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each a block of tiles, some tiles deep, and a share of the filters.

    source, result : int64 byte addresses; shape : the factors; bias : all.
    weight, filters : packed, see winograd_weight, or empty: then each pass packs its own, by ``numbers`` and ``taps``.
    """
    g = geometry.copy()
    g[SOURCE], g[RESULT] = source, result
    row_blocks, each, products = -(-g[FILTERS] // TILE_ROWS), g[CHANNELS] * TILE_ROWS, g[PRODUCTS]
    passes, own, block = -(-row_blocks // g[ROW_BLOCKS]), len(weight) == 0, each * g[TAPS] * g[TAPS + 1] * g[TAPS + 2]
    work = _workspace(g, weight)
    if own:
        _, step = pass_start(0, 0, row_blocks, g[ROW_BLOCKS], each, products)
        weight, filters = _aligned(products * step, bias), _aligned(g[ROW_BLOCKS] * block, bias)
    listed = cleared = -1
    while True:
        number = next_task(counter)
        if number >= g[TASKS]:
            break
        split, task = number % g[SPLITS], _task(g, number // g[SPLITS])
        if task.tile != listed:
            groups = list_groups(g, task, work, weight.itemsize)
            listed = task.tile
        task = Task(task.group, task.tile, task.tiles, task.depth, task.depths, groups)
        used = task.tiles * task.depths
        if used != cleared:
            _clear_tail(g, used, work)
            cleared = used
        _transform(shape, g, task, work)
        for step in range(passes * split // g[SPLITS], passes * (split + 1) // g[SPLITS]):
            row = step * g[ROW_BLOCKS]
            rows = min(g[ROW_BLOCKS], row_blocks - row)
            at, step = pass_start(task.group, row, row_blocks, g[ROW_BLOCKS], each, products)
            start = (task.group * row_blocks + row) * block
            if own:
                at = start = 0
                for i in range(rows):
                    pack_rows(shape, numbers, taps, task.group, row + i, filters, i * block, weight, i * each, step)
            _multiply(g, weight, at, step, rows, used, work)
            first, count = row * TILE_ROWS, min(rows * TILE_ROWS, g[FILTERS] - row * TILE_ROWS)
            if _restore(shape, g, task, first, count, bias, work):
                _repair(g, task, first, count, filters[start:], bias, work)


@kernel()
def _workspace(g, like):  # type: ignore[no-untyped-def]
    lanes = lanes_of(like)
    planes = (1 + max(g[CELLS], g[OUTPUTS])) * g[CELLS + 1] * g[CELLS + 2]
    lines = np.zeros(g[PLANES] * g[OUTPUTS + 2] * g[CELLS + 1] * LINE * lanes, like.dtype)
    table = np.empty((g[MOST_GROUPS] + 1) * g[TABLE], np.int64)
    work = Workspace(
        _aligned(g[CELL_ELEMENTS], like), _aligned(g[PRODUCTS] * g[SUM_STEP], like), _aligned(planes * lanes, like), lines,
        np.zeros(2 * LINE * lanes, like.dtype), table, np.zeros(g[MOST_GROUPS] * 3 * lanes, np.int32),
        np.zeros(g[MOST_GROUPS], np.int64), np.empty(g[ROW_BLOCKS] * TILE_ROWS, like.dtype),
    )  # fmt: skip
    fill_line_entry(g, table[g[MOST_GROUPS] * g[TABLE] :], lanes, like.itemsize)
    return work


@kernel()
def _aligned(size, like):  # type: ignore[no-untyped-def]
    spare = ALIGNMENT // like.itemsize
    memory = np.empty(size + spare, like.dtype)
    return memory[-memory.ctypes.data // like.itemsize % spare :]


@kernel()
def _task(g, number):  # type: ignore[no-untyped-def]
    """The order: stacks, as deep as a sweep, so that a block's table serves all of them, then blocks of tiles, sweeps and groups."""
    chunks, blocks = -(-g[TILES] // g[DEPTHS]), -(-g[STACKS] // g[BLOCK])
    group, number = number // (chunks * blocks), number % (chunks * blocks)
    first = number // (g[SWEEP] * blocks) * g[SWEEP]
    count, number = min(g[SWEEP], chunks - first), number - first * blocks
    depth, tile = (first + number % count) * g[DEPTHS], number // count * g[BLOCK]
    return Task(group, tile, min(g[BLOCK], g[STACKS] - tile), depth, min(g[DEPTHS], g[TILES] - depth), 0)


@kernel()
def _clear_tail(g, used, work):  # type: ignore[no-untyped-def]
    """Zero the vector of cells that ``used`` lanes fill in part, and the vector of sums behind: what lies there may be slow to add up."""
    lanes = lanes_of(work.cells)
    end = -(-used // lanes) * lanes
    for p in range(g[PRODUCTS]):
        for channel in range(g[CHANNELS] if used < end else 0):
            start = channel * g[CELL_ROW] + p * g[CELL_STEP] + end - lanes
            work.cells[start : start + lanes] = 0
        for f in range(g[ROW_BLOCKS] * TILE_ROWS):
            start = p * g[SUM_STEP] + f * g[SUM_ROW] + end
            work.sums[start : start + lanes] = 0


# ---- the steps of a task -----------------------------------------------------------------------------------------------
@kernel()
def _transform(shape, g, task, work):  # type: ignore[no-untyped-def]
    """Transformed cells of all channels."""
    lanes, item = lanes_of(work.cells), work.cells.itemsize
    source = g[SOURCE] + task.group * g[CHANNELS] * g[SOURCE_CHANNEL]
    count, size = (task.depths - 1) * g[OUTPUTS] + g[CELLS], len(work.lines) // g[PLANES]
    planes, line_planes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for k in range(count if g[CELLS] > 1 else 0):
        d = find_source(task.depth * g[OUTPUTS] + k + g[SHIFT], g[SOURCE_SIZE], g[MODE])
        planes[k] = NOTHING if d == PADDING else d * g[SOURCE_STRIDE]
        line_planes[k] = NOTHING if d == PADDING else k * size * item
    ring, nothing, lines = work.ring.ctypes.data, work.nothing.ctypes.data, work.lines.ctypes.data
    for i in range(task.groups):
        entry, in_lines, first_lane = i * g[TABLE], g[MOST_GROUPS] * g[TABLE], i * 3 * lanes
        own = work.table[entry : entry + g[TABLE]]
        if not own[g[STAGED]]:
            transform_group(
                shape, work.cells, g[CELL_ROW], g[CELL_STEP], work.table, entry, work.numbers, first_lane,
                source, g[SOURCE_CHANNEL], 0, g[CHANNELS], planes, count, task.tiles, ring, nothing,
            )  # fmt: skip
        else:
            work.table[in_lines], work.table[in_lines + 1] = own[0], own[1]
            for channel in range(g[CHANNELS]):
                for k in range(count):
                    if planes[k] != NOTHING:
                        base = source + channel * g[SOURCE_CHANNEL] + planes[k]
                        _gather(g, own, base, work.lines[k * size : (k + 1) * size])
                transform_group(
                    shape, work.cells, g[CELL_ROW], g[CELL_STEP], work.table, in_lines, work.numbers, first_lane,
                    lines, 0, channel, 1, line_planes, count, task.tiles, ring, nothing,
                )  # fmt: skip


@kernel()
def _gather(g, entry, base, lines):  # type: ignore[no-untyped-def]
    """Copy a group's rows of cells to lines: any stride, any padding mode."""
    length, down, stride = LINE * lanes_of(lines), g[CELLS + 1], g[SOURCE_STRIDE + 2]
    for s in range(g[OUTPUTS + 2]):
        column = place_of(g, entry[g[TILE] + s])[3] + g[SHIFT + 2]
        cells = (entry[g[RUN] + s] - 1) * g[OUTPUTS + 2] + g[CELLS + 2] if entry[g[RUN] + s] > 0 else 0
        for r in range(down):
            line = lines[(s * down + r) * length : (s * down + r + 1) * length]
            offset = entry[g[ROWS_IN] + r * g[OUTPUTS + 2] + s]
            for q in range(cells):
                w = find_source(column + q, g[SOURCE_SIZE + 2], g[MODE])
                line[q] = 0 if offset == NOTHING or w == PADDING else load_stored(base + offset + w * stride, g[STORED], lines)


@kernel()
def _multiply(g, weight, at, step, rows, used, work):  # type: ignore[no-untyped-def]
    """Sums over the channels, for ``rows`` row blocks of filters, whose weights start at ``at``, and ``used`` lanes."""
    vectors = -(-used // lanes_of(weight))
    for p in range(g[PRODUCTS]):
        multiply_panel(
            weight, at + p * step, rows, work.cells, p * g[CELL_STEP], g[CELL_ROW], g[CHANNELS], g[CHAIN], vectors,
            work.sums, p * g[SUM_STEP], g[SUM_ROW],
        )  # fmt: skip


@kernel()
def _restore(shape, g, task, first, count, bias, work):  # type: ignore[no-untyped-def]
    """Results of ``count`` filters of the group from number ``first`` on; whether some are not finite, ``bad`` telling where."""
    lanes, item, size = lanes_of(bias), bias.itemsize, len(work.lines) // g[PLANES]
    ring, nothing, lines = work.ring.ctypes.data, work.nothing.ctypes.data + LINE * lanes * item, work.lines.ctypes.data
    filter = task.group * g[FILTERS] + first
    for i in range(task.groups):
        entry, in_lines, first_lane = i * g[TABLE], g[MOST_GROUPS] * g[TABLE], (i * 3 + 1) * lanes
        work.table[in_lines], work.table[in_lines + 1] = work.table[entry], work.table[entry + 1]
        work.bad[i] = 0
        for j in range(task.depths):
            at, planes = j * task.tiles + work.table[entry], 1
            base = g[RESULT] + filter * g[RESULT_CHANNEL]
            if g[CELLS] > 1:
                plane = (task.depth + j) * g[OUTPUTS]
                planes, base = min(g[OUTPUTS], g[RESULT_SIZE] - plane), base + plane * g[RESULT_STRIDE]
            if not g[SCATTERED]:
                work.bad[i] |= restore_group(
                    shape, work.sums, at, g[SUM_STEP], g[SUM_ROW], work.table, entry, work.numbers, first_lane,
                    base, g[RESULT_CHANNEL], count, bias, filter, g[RESULT_STRIDE], planes, ring, nothing,
                )  # fmt: skip
            else:
                for f in range(count):
                    work.bad[i] |= restore_group(
                        shape, work.sums, at + f * g[SUM_ROW], g[SUM_STEP], 0, work.table, in_lines, work.numbers, first_lane,
                        lines, 0, 1, bias, filter + f, size * item, planes, ring, nothing,
                    )  # fmt: skip
                    for d in range(planes):
                        to = base + f * g[RESULT_CHANNEL] + d * g[RESULT_STRIDE]
                        _scatter(g, work.table[entry : entry + g[TABLE]], to, work.lines[d * size : (d + 1) * size])
    return work.bad[: task.groups].any()


@kernel()
def _scatter(g, entry, base, lines):  # type: ignore[no-untyped-def]
    """Copy rows of results from their lines to where they belong."""
    length, up = LINE * lanes_of(lines), g[OUTPUTS + 1]
    for s in range(g[OUTPUTS + 2]):
        columns = columns_of(g, place_of(g, entry[g[TILE] + s])[3], entry[g[RUN] + s])
        for i in range(up):
            offset = entry[g[ROWS_OUT] + i * g[OUTPUTS + 2] + s]
            if offset != NOTHING:
                for q in range(columns):
                    store_stored(base + offset + q * g[RESULT_STRIDE + 2], lines[(s * up + i) * length + q], g[STORED])


# ---- results that are not finite ---------------------------------------------------------------------------------------
@kernel()
def _repair(g, task, first, count, filters, bias, work):  # type: ignore[no-untyped-def]
    """Compute by the definition what is not finite in the results of ``count`` filters of the group from number ``first`` on.

    filters : packed, from these on.
    """
    result = g[RESULT] + (task.group * g[FILTERS] + first) * g[RESULT_CHANNEL]
    last = min(g[RESULT_SIZE], (task.depth + task.depths) * g[OUTPUTS])
    for i in range(task.groups):
        entry = work.table[i * g[TABLE] : (i + 1) * g[TABLE]]
        for s in range(g[OUTPUTS + 2] if work.bad[i] else 0):
            image, plane, height, width = place_of(g, entry[g[TILE] + s])
            columns = columns_of(g, width, entry[g[RUN] + s])
            for d in range(plane, plane + 1) if g[CELLS] == 1 else range(task.depth * g[OUTPUTS], last):
                for h in range(height, min(height + g[OUTPUTS + 1], g[RESULT_SIZE + 1])):
                    for w in range(width, width + columns):
                        at = result + image * g[RESULT_IMAGE] + d * g[RESULT_STRIDE]
                        at += h * g[RESULT_STRIDE + 1] + w * g[RESULT_STRIDE + 2]
                        if not _finite(g, at, count, bias):
                            _define(g, task.group, image, d, h, w, first, filters, bias, work.total[:count])
                            _replace(g, at, work.total[:count])


@kernel()
def _finite(g, address, count, like):  # type: ignore[no-untyped-def]
    finite = True
    for f in range(count):
        finite &= np.isfinite(load_stored(address + f * g[RESULT_CHANNEL], g[STORED], like))
    return finite


@kernel()
def _replace(g, address, total):  # type: ignore[no-untyped-def]
    """Store the sums where the result is not finite: what is finite is kept, so that no bit depends on its neighbours."""
    for f in range(len(total)):
        place = address + f * g[RESULT_CHANNEL]
        if not np.isfinite(load_stored(place, g[STORED], total)):
            store_stored(place, total[f], g[STORED])


@kernel()
def _define(g, group, image, d, h, w, first, filters, bias, total):  # type: ignore[no-untyped-def]
    """The sums of one pixel: bias, then channels, then taps.  Padding is a value; beyond a gradient's source there is none."""
    for f in range(len(total)):  # assigning a slice of another array compiles the message of an error for seconds
        total[f] = bias[group * g[FILTERS] + first + f]
    taps = g[TAPS] * g[TAPS + 1] * g[TAPS + 2]
    for channel in range(g[CHANNELS]):
        source = g[SOURCE] + image * g[SOURCE_IMAGE] + (group * g[CHANNELS] + channel) * g[SOURCE_CHANNEL]
        place = channel % TOGETHER
        at, step = ((channel - place) * taps + place) * TILE_ROWS, min(TOGETHER, g[CHANNELS] - channel + place) * TILE_ROWS
        for kd in range(g[TAPS]):
            sd = find_source(d + kd + g[SHIFT], g[SOURCE_SIZE], g[MODE])
            for kh in range(g[TAPS + 1]):
                sh = find_source(h + kh + g[SHIFT + 1], g[SOURCE_SIZE + 1], g[MODE])
                for kw in range(g[TAPS + 2]):
                    sw = find_source(w + kw + g[SHIFT + 2], g[SOURCE_SIZE + 2], g[MODE])
                    there = sd != PADDING and sh != PADDING and sw != PADDING
                    if there or not g[TRANSPOSED]:
                        place = sd * g[SOURCE_STRIDE] + sh * g[SOURCE_STRIDE + 1] + sw * g[SOURCE_STRIDE + 2]
                        x = load_stored(source + place, g[STORED], total) if there else total.dtype.type(0)
                        for f in range(len(total)):
                            total[f] += x * filters[at + f // TILE_ROWS * g[CHANNELS] * taps * TILE_ROWS + f % TILE_ROWS]
                    at += step
