"""The tasks of the filter algorithm: they find a block's lines, copy them where that is needed, and have its tiles summed.

A *line* is what a tile reads of one source row: the row itself, or a copy with padding filled in, any strides straightened, and its cells
split by their remainder modulo the column stride.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np

from ..padding import PADDING, source_index
from . import filter_kernel as tiles
from .compile import kernel
from .elements import UNSTORED, load_stored, store_sums_as
from .filter_kernel import Tile, copy_lines, split_lines
from .filter_layout import ALIGNMENT
from .simd import address_of, borrowed, lanes_of, store_element
from .threads import next_task

Function = Callable[..., Any]

# Fields of the geometry, an int64 array.  Steps count bytes, COLUMN_STEP elements; SIZE, LOW and MET have two fields, for the depth and
# the rows; LOADED and STORED are the numbers of the dtypes of source and result; SOURCE_END is where the source's memory ends, counted
# from its first element.
(
    GROUPS, DEPTH, HEIGHT, WIDTH, SOURCES, RESULTS, BLOCKS, PLANES, TAPS, DEPTH_STRIDE, DEPTH_GAP, ROW_STRIDE, COLUMN_STRIDE, COLUMN_GAP,
    COLUMN_REACH, SOURCE_WIDTH, LEFT, MODE, TILE_CHANNELS, TILE_ROWS, TILE_COLUMNS, HEIGHTS, SPACING, UNIT, REMAINDERS, TURNS, TILES,
    COLUMNS, PHASE_CELLS, GROUPS_AT_ONCE, ENTRIES, COPIES, SCRATCH, MASKS, STRAIGHT, FOLDED, ROW_STEP, BLOCK_WEIGHTS, REMAINDER_TABLE,
    TAP_TABLE, BAND_TABLE, SKIPPING, VECTORS, TASKS, LOADED, STORED, COLUMN_STEP, SOURCE_END, SOURCE_STEP,
) = range(49)  # fmt: skip
RESULT_STEP, SIZE, LOW, MET, FIELDS = SOURCE_STEP + 5, SOURCE_STEP + 10, SOURCE_STEP + 12, SOURCE_STEP + 14, SOURCE_STEP + 16

_source_index = kernel()(source_index)


def _template(function: Function) -> Function:
    """Marks what is not compiled as it stands, but once for each tile shape: see :func:`worker`."""
    return function


_tile_sums = tiles.narrow_sums


@kernel()
def _index_at(g, axis, position):  # type: ignore[no-untyped-def]
    """Source index of a padded position along the depth (axis 0) or the rows (1); PADDING for a zero and for what no result meets."""
    if position < 0 or position >= g[MET + axis]:
        return PADDING
    return _source_index(position - g[LOW + axis], g[SIZE + axis], g[MODE])


# ---- lines -------------------------------------------------------------------------------------------------------------
@kernel()
def _lanes_inside(cell, low, high, lanes):  # type: ignore[no-untyped-def]
    """Mask of the lanes of a vector that starts at ``cell`` of which the cells lie in [low, high)."""
    first, last = min(max(low - cell, 0), lanes), min(max(high - cell, 0), lanes)
    return ((1 << last) - 1) & ~((1 << first) - 1)


@kernel()
def _set_masks(g, low, high, columns, lanes, masks, copied):  # type: ignore[no-untyped-def]
    """Masks of the cells [low, high) of a task's lines: for every tile, tap and vector, twice, and of a line that vectors copy.

    Lanes beyond ``columns``, which are summed but not stored, read nothing by the first set, whatever follows the line by the second.
    """
    vectors, set_ = g[TILE_COLUMNS] // lanes, g[MASKS] // 2
    for i in range(set_):
        vector, rest = i % vectors, i // vectors
        column = (rest // g[TAPS] * vectors + vector) * lanes
        cell = column + rest % g[TAPS] * g[COLUMN_GAP]
        every, inside, stored = (1 << lanes) - 1, _lanes_inside(cell, low, high, lanes), _lanes_inside(column, 0, columns, lanes)
        if not g[STRAIGHT]:
            inside = every
        masks[i] = -1 if inside == every else inside
        masks[set_ + i] = -1 if inside | ~stored & every == every else inside
    for i in range(len(copied)):
        copied[i] = _lanes_inside(i * lanes, low, high, lanes) if g[VECTORS] else 0


@kernel()
def _plan_copies(g, tables, d, down, scratch, lines, copies):  # type: ignore[no-untyped-def]
    """Find the source rows that a block of the result meets; the number of them that each group copies.

    lines[group, channel, plane, remainder, turn] = address of the copy, or of zeros for a padded row; copies[i] = (place of a row after
    its group's first channel, place of its copy after the group's scratch), in bytes.  The turns of a folded row are one copy's parts.
    """
    line_bytes, entry, slot, found = g[COLUMN_STRIDE] * g[PHASE_CELLS] * scratch.itemsize, 0, 0, 0
    for c in range(g[SOURCES]):
        for k in range(g[PLANES]):
            plane = _index_at(g, 0, d * g[DEPTH_STRIDE] + k * g[DEPTH_GAP])
            for remainder in range(g[REMAINDERS]):
                first = down * g[ROW_STRIDE] + tables[g[REMAINDER_TABLE] + remainder]
                for turn in range(g[TURNS]):
                    part = min(turn, g[TILES] * g[TILE_ROWS] - 1) if g[FOLDED] else 0
                    row = _index_at(g, 1, first + (0 if g[FOLDED] else turn) * g[UNIT])
                    padding = plane == PADDING or row == PADDING
                    if not padding and part == 0:
                        copies[2 * found] = c * g[SOURCE_STEP + 1] + plane * g[SOURCE_STEP + 2] + row * g[SOURCE_STEP + 3]
                        copies[2 * found + 1] = slot * line_bytes
                        found += 1
                    for group in range(g[GROUPS_AT_ONCE]):
                        place = g[GROUPS_AT_ONCE] * g[COPIES] if padding else group * g[COPIES] + slot
                        at = place * line_bytes + part * g[TILE_COLUMNS] * scratch.itemsize
                        lines[group * g[ENTRIES] + entry] = address_of(scratch) + at
                    entry += 1
                    if not g[FOLDED] or turn == g[TURNS] - 1:
                        slot += 1
    return found


@kernel()
def _copy_cells(g, source, origin, first, last, target, like):  # type: ignore[no-untyped-def]
    """Cells [first, last) of a line one by one; ``source`` is the address of the row's first element, ``origin`` the index of cell 0."""
    stride = g[COLUMN_STRIDE]
    for phase in range(min(stride, last)):
        skipped = max(0, -(-(first - phase) // stride))
        at = target + (phase * g[PHASE_CELLS] + skipped) * like.itemsize
        for cell in range(phase + skipped * stride, last, stride):
            index = _source_index(origin + cell, g[SOURCE_WIDTH], g[MODE])
            if index != PADDING:
                store_element(at, load_stored(source + index * g[SOURCE_STEP + 4], g[LOADED], like))
            at += like.itemsize


@kernel()
def _copy_rows(g, source, groups, origin, cells, low, high, copied, scratch, copies, found):  # type: ignore[no-untyped-def]
    """Copy the planned rows of every group, the first of which starts at the address ``source``.

    Cells that vectors do not copy are taken by index: all of a row, or the padding in modes other than zeros.
    """
    first, target = source + origin * g[SOURCE_STEP + 4], address_of(scratch)
    for _ in range(groups):
        if g[COLUMN_STRIDE] == 2:
            vectors = g[PHASE_CELLS] // lanes_of(scratch)
            split_lines(scratch, g[LOADED], first, target, address_of(copies), found, address_of(copied), vectors)
        else:
            copy_lines(scratch, g[LOADED], first, target, address_of(copies), found, address_of(copied), len(copied))
        if not g[VECTORS] or g[MODE] != 0:
            start = first - origin * g[SOURCE_STEP + 4]
            before, after = (low, high) if g[VECTORS] else (0, 0)
            for i in range(found):
                _copy_cells(g, start + copies[2 * i], origin, 0, before, target + copies[2 * i + 1], scratch)
                _copy_cells(g, start + copies[2 * i], origin, after, cells, target + copies[2 * i + 1], scratch)
        first += g[SOURCES] * g[SOURCE_STEP + 1]
        target += g[COPIES] * g[COLUMN_STRIDE] * g[PHASE_CELLS] * scratch.itemsize


@kernel()
def _point_lines(g, tables, source, groups, d, down, zeros, rows, lines):  # type: ignore[no-untyped-def]
    """lines[group, channel, plane, remainder, turn] = address of a source row's cell 0, or of zeros for a padded row.

    ``source`` is the address of cell 0 of the first row of the first group; ``rows`` is overwritten.  Returns the highest address.
    """
    each, lowest = g[REMAINDERS] * g[TURNS], -(1 << 62)
    farthest, highest = lowest, source
    for remainder in range(g[REMAINDERS]):
        position = down * g[ROW_STRIDE] + tables[g[REMAINDER_TABLE] + remainder]
        for i in range(remainder * g[TURNS], (remainder + 1) * g[TURNS]):
            row = _index_at(g, 1, position)
            rows[i] = lowest if row == PADDING else row * g[SOURCE_STEP + 3]
            farthest, position = max(farthest, rows[i]), position + g[UNIT]
    for k in range(g[PLANES]):
        plane, of_plane = _index_at(g, 0, d * g[DEPTH_STRIDE] + k * g[DEPTH_GAP]), lines[k * each : (k + 1) * each]
        if plane == PADDING:
            of_plane[:] = zeros
            continue
        start = source + plane * g[SOURCE_STEP + 2]
        highest = max(highest, start + farthest)
        for i in range(each):
            of_plane[i] = zeros if rows[i] == lowest else start + rows[i]
    entry, channel, more = g[PLANES] * each, g[SOURCE_STEP + 1], groups * g[SOURCES] - 1
    for i in range(more * entry):
        lines[entry + i] = zeros if lines[i] == zeros else lines[i] + channel
    return highest + max(0, more * channel)


# ---- sums --------------------------------------------------------------------------------------------------------------
@kernel()
def _set_bands(g, tables, d, itemsize, bands):  # type: ignore[no-untyped-def]
    """What ``tile_sums`` needs about the bands of kernel rows; kernel planes that meet only padding are left out where allowed."""
    first, last = 0, g[PLANES]
    if g[SKIPPING]:
        while first < last and _index_at(g, 0, d * g[DEPTH_STRIDE] + first * g[DEPTH_GAP]) == PADDING:
            first += 1
        while first < last and _index_at(g, 0, d * g[DEPTH_STRIDE] + (last - 1) * g[DEPTH_GAP]) == PADDING:
            last -= 1
    for i in range(g[HEIGHTS]):
        at = g[BAND_TABLE] + 4 * i
        place, count, weights, each = tables[at], tables[at + 1], tables[at + 2], tables[at + 3]
        bands[3 * i] = address_of(tables) + (place + first * count) * 8
        bands[3 * i + 1] = (last - first) * count
        bands[3 * i + 2] = (weights + first * count * each) * itemsize


@kernel()
def _move_tile(g, stage, result, rows, columns, channels):  # type: ignore[no-untyped-def]
    """Copy a tile to a result whose columns do not lie side by side."""
    for o in range(channels):
        for r in range(rows):
            at = result + o * g[RESULT_STEP + 1] + r * g[ROW_STEP]
            store_sums_as(stage, (o * g[TILE_ROWS] + r) * g[TILE_COLUMNS], columns, at, g[COLUMN_STEP], g[STORED])


@_template
def _sum_rows(g, tables, weight, weights, biases, result, rows, columns, channels, bands, masks, lines, stage):  # type: ignore[no-untyped-def]
    """Tiles of a block of result channels: ``rows`` rows, the first at the address ``result``, from the lines at the address ``lines``."""
    item, width, height, scattered = weight.itemsize, g[TILE_COLUMNS], g[TILE_ROWS], g[COLUMN_STEP] != 1
    step, tile_masks = g[ROW_STEP], width // lanes_of(weight) * g[TAPS] * 8
    band_address, tap_address, taps = address_of(bands), address_of(tables) + g[TAP_TABLE] * 8, g[TAPS]
    row = 0
    while row < rows:
        column, mask_address = 0, address_of(masks)
        while column < columns:
            some = min(width, columns - column)
            at, down, across, stored = result + column * g[RESULT_STEP + 4], step, g[RESULT_STEP + 1], g[STORED]
            if scattered:
                at, down, across, stored = address_of(stage), width * item, height * width * item, UNSTORED
            _tile_sums(
                weight, band_address, tap_address, mask_address, taps, lines, column * item, weights, biases,
                at, down, across, rows - row, channels, -1 if some == 64 else (1 << some) - 1, stored,
            )  # fmt: skip
            if scattered:
                _move_tile(g, stage, result + column * g[RESULT_STEP + 4], min(rows - row, height), some, channels)
            column, mask_address = column + width, mask_address + tile_masks
        row, lines, result = row + height, lines + height * 8, result + height * step


@_template
def _sum_groups(g, tables, weight, bias, first, groups, result, rows, columns, bands, masks, lines, stage):  # type: ignore[no-untyped-def]
    """A block of the result of ``groups`` groups from number ``first`` on, which starts at the address ``result``.

    It falls into parts: result rows that have a remainder modulo the spacing of a tile's rows, or the whole rows that a single row is
    folded into and what is left of it.
    """
    channels, item, width, spacing = g[TILE_CHANNELS], weight.itemsize, g[TILE_COLUMNS], g[SPACING]
    for group in range(groups):
        for block in range(g[BLOCKS]):
            number = (first + group) * g[BLOCKS] + block
            weights = address_of(weight) + number * g[BLOCK_WEIGHTS] * item
            biases = address_of(bias) + number * channels * item
            start = result + (group * g[RESULTS] + block * channels) * g[RESULT_STEP + 1]
            some = min(channels, g[RESULTS] - block * channels)
            for part in range(2 if g[FOLDED] else min(spacing, rows)):
                at, place = address_of(lines) + group * g[ENTRIES] * 8, start
                if g[FOLDED]:
                    whole = columns // width
                    at, place = at + part * whole * 8, place + part * whole * g[ROW_STEP]
                    count, long = (whole, width) if part == 0 else (1, columns - whole * width)
                else:
                    at, place = at + part * g[TURNS] * 8, place + part * g[RESULT_STEP + 3]
                    count, long = rows if spacing == 1 else (rows - part + spacing - 1) // spacing, columns
                _sum_rows(g, tables, weight, weights, biases, place, count, long, some, bands, masks, at, stage)


# ---- tasks -------------------------------------------------------------------------------------------------------------
@_template
def _worker(source, result, geometry, tables, weight, bias, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each a block of result rows and columns of one plane, for some groups of one image.

    source, result : int64 byte addresses; weight, bias : arrays of the dtype of the sums.
    """
    g, lanes, spare = borrowed(geometry), lanes_of(weight), ALIGNMENT // weight.itemsize
    memory = np.zeros(g[SCRATCH] + spare, weight.dtype)
    memory = memory[-address_of(memory) // weight.itemsize % spare :]
    lines_memory, copies_memory = np.empty(g[GROUPS_AT_ONCE] * g[ENTRIES], np.int64), np.empty(2 * g[COPIES], np.int64)
    masks_memory, bands_memory = np.empty(g[MASKS], np.int64), np.empty(3 * g[HEIGHTS], np.int64)
    row_memory = np.empty(g[REMAINDERS] * g[TURNS], np.int64)
    copied_memory = np.empty(g[COLUMN_STRIDE] * g[PHASE_CELLS] // lanes, np.int64)
    stage_memory = np.empty(g[TILE_CHANNELS] * g[TILE_ROWS] * g[TILE_COLUMNS], weight.dtype)
    height = g[TILES] * g[TILE_ROWS] * g[SPACING]
    downs, acrosses, shares = -(-g[HEIGHT] // height), -(-g[WIDTH] // g[COLUMNS]), -(-g[GROUPS] // g[GROUPS_AT_ONCE])
    planned, masked, found, low, high = -1, -1, 0, 0, 0
    while True:
        task = next_task(counter)
        if task >= g[TASKS]:
            break
        scratch, stage, table, lines = borrowed(memory), borrowed(stage_memory), borrowed(tables), borrowed(lines_memory)
        masks, bands, copies, copied = borrowed(masks_memory), borrowed(bands_memory), borrowed(copies_memory), borrowed(copied_memory)
        down, rest = task % downs * height, task // downs
        d, rest = rest % g[DEPTH], rest // g[DEPTH]
        first, rest = rest % shares * g[GROUPS_AT_ONCE], rest // shares
        across, image = rest % acrosses * g[COLUMNS], rest // acrosses
        groups, rows, columns = min(g[GROUPS_AT_ONCE], g[GROUPS] - first), min(height, g[HEIGHT] - down), min(g[COLUMNS], g[WIDTH] - across)
        origin, cells = across * g[COLUMN_STRIDE] - g[LEFT], (columns - 1) * g[COLUMN_STRIDE] + g[COLUMN_REACH]
        if across != masked:
            masked, low = across, min(cells, max(0, -origin))
            high = max(low, min(cells, g[SOURCE_WIDTH] - origin))
            _set_masks(g, low, high, columns, lanes, masks, copied)
        start = source + image * g[SOURCE_STEP] + first * g[SOURCES] * g[SOURCE_STEP + 1]
        if g[STRAIGHT]:
            highest = _point_lines(
                g, table, start + origin * weight.itemsize, groups, d, down, address_of(scratch), borrowed(row_memory), lines
            )
            # Lanes beyond the columns may read what follows a row, but not what follows the source.
            read = -(-columns // g[TILE_COLUMNS]) * g[TILE_COLUMNS] + g[COLUMN_REACH] - 1
            if highest + read * weight.itemsize <= source + g[SOURCE_END]:
                masks = masks[g[MASKS] // 2 :]
        if planned != d * g[HEIGHT] + down:
            planned = d * g[HEIGHT] + down
            _set_bands(g, table, d, weight.itemsize, bands)
            if not g[STRAIGHT]:
                found = _plan_copies(g, table, d, down, scratch, lines, copies)
        if not g[STRAIGHT]:
            _copy_rows(g, start, groups, origin, cells, low, high, copied, scratch, copies, found)
        start = result + image * g[RESULT_STEP] + first * g[RESULTS] * g[RESULT_STEP + 1]
        start += d * g[RESULT_STEP + 2] + down * g[RESULT_STEP + 3] + across * g[RESULT_STEP + 4]
        _sum_groups(g, table, borrowed(weight), borrowed(bias), first, groups, start, rows, columns, bands, masks, lines, stage)


@cache
def worker(tile: Tile) -> Function:
    """The worker for one tile shape: the functions above with its intrinsic."""
    name, sums = {
        tiles.NARROW: ("narrow", tiles.narrow_sums),
        tiles.WIDE: ("wide", tiles.wide_sums),
        tiles.SEVERAL: ("several", tiles.several_sums),
    }[tile]
    rows = kernel()(_instance(_sum_rows, name, _tile_sums=sums))
    groups = kernel()(_instance(_sum_groups, name, _sum_rows=rows))
    return kernel()(_instance(_worker, name, _sum_groups=groups))


def _instance(function: Function, name: str, **names: Any) -> Function:
    """The function with some of its global names bound anew: unlike with a closure, Numba's disk cache still knows it, by its name."""
    instance = FunctionType(function.__code__, function.__globals__ | names, f"{function.__name__}_{name}")
    instance.__qualname__ = instance.__name__
    return instance
