"""Filters: forward convolutions with few channels a group, one register tile of the result at a time.

A task finds the source rows, the *lines*, that a block of result rows meets, and puts their addresses into a table: result rows whose
taps meet the same lines are neighbours there, so that one kernel serves every row stride, dilation and padding.  Lines are rows of the
source itself, read under masks, or copies with padding filled in, any strides straightened, and columns split by their remainder modulo
the stride.  A tile stays in registers over all taps, see ``filter_kernel``.

The order of an element's sum depends on the kernel, the stride and dilation along the rows, and the tile: bias, then bands of kernel
rows, tallest first; for each height kernel planes, source channels, bands, kernel columns, rows of the band.  The tile depends on the
spatial size; neither the batch, the threads, the layout in memory nor the place of an element change its bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from types import FunctionType
from typing import Any

import numpy as np
from numba import from_dtype, prange, types
from numba.core import config
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import AnyArray
from ..choose import Accuracy
from ..padding import PADDING, index_map, source_index
from ..problem import Problem
from . import filter_kernel as tiles
from .compile import kernel, specialise
from .filter_kernel import Tile, copy_lines, split_lines
from .filter_layout import ALIGNMENT, MOST_SCRATCH, Layout, layout_of
from .layouts import Layouts, memory_of, place_and_steps
from .simd import address_of, borrowed, lanes_of, load_element, store_element
from .threads import launch, most_threads, next_task, team_size

Function = Callable[..., Any]

MOST_CHANNELS = 16  # source channels of a group

# Fields of the geometry, an int64 array.  Steps count bytes.
(
    GROUPS, DEPTH, HEIGHT, WIDTH, SOURCES, RESULTS, BLOCKS, PLANES, TAPS, DEPTH_STRIDE, DEPTH_GAP, ROW_STRIDE, COLUMN_STRIDE, COLUMN_GAP,
    COLUMN_REACH, SOURCE_WIDTH, LEFT, MODE, TILE_CHANNELS, TILE_ROWS, TILE_COLUMNS, HEIGHTS, SPACING, UNIT, TURNS, TILES, COLUMNS,
    PHASE_CELLS, GROUPS_AT_ONCE, ENTRIES, COPIES, SCRATCH, MASKS, STRAIGHT, FOLDED, ROW_STEP, BLOCK_WEIGHTS, PLANE_TABLE, ROW_TABLE,
    TAP_TABLE, BAND_TABLE, SKIPPING, VECTORS, TASKS, SOURCE, RESULT, SOURCE_STEP,
) = range(47)  # fmt: skip
RESULT_STEP, FIELDS = SOURCE_STEP + 5, SOURCE_STEP + 10

_source_index = kernel()(source_index)
_tile_sums = tiles.narrow_sums


# ---- lines -------------------------------------------------------------------------------------------------------------
@kernel()
def _lanes_inside(cell, low, high, lanes):  # type: ignore[no-untyped-def]
    """Mask of the lanes of a vector that starts at ``cell`` of which the cells lie in [low, high)."""
    first, last = min(max(low - cell, 0), lanes), min(max(high - cell, 0), lanes)
    return ((1 << last) - 1) & ~((1 << first) - 1)


@kernel()
def _set_masks(g, low, high, lanes, masks, copied):  # type: ignore[no-untyped-def]
    """Masks of the cells [low, high) of a task's lines: for every tile, tap and vector, and of a line that vectors copy."""
    vectors = g[TILE_COLUMNS] // lanes
    for i in range(len(masks)):
        vector, rest = i % vectors, i // vectors
        cell = (rest // g[TAPS] * vectors + vector) * lanes + rest % g[TAPS] * g[COLUMN_GAP]
        masks[i] = _lanes_inside(cell, low, high, lanes) if g[STRAIGHT] else -1
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
            plane = tables[g[PLANE_TABLE] + d * g[DEPTH_STRIDE] + k * g[DEPTH_GAP]]
            for remainder in range(g[UNIT]):
                for turn in range(g[TURNS]):
                    part = min(turn, g[TILES] * g[TILE_ROWS] - 1) if g[FOLDED] else 0
                    row = tables[g[ROW_TABLE] + down * g[ROW_STRIDE] + (0 if g[FOLDED] else turn) * g[UNIT] + remainder]
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
                store_element(at, load_element(source + index * g[SOURCE_STEP + 4], like))
            at += like.itemsize


@kernel()
def _copy_rows(g, source, groups, origin, cells, low, high, copied, scratch, copies, found):  # type: ignore[no-untyped-def]
    """Copy the planned rows of every group, the first of which starts at the address ``source``.

    Cells that vectors do not copy are taken by index: all of a row, or the padding in modes other than zeros.
    """
    first, target = source + origin * g[SOURCE_STEP + 4], address_of(scratch)
    for _ in range(groups):
        if g[COLUMN_STRIDE] == 2:
            split_lines(scratch, first, target, address_of(copies), found, address_of(copied), g[PHASE_CELLS] // lanes_of(scratch))
        else:
            copy_lines(scratch, first, target, address_of(copies), found, address_of(copied), len(copied))
        if not g[VECTORS] or g[MODE] != 0:
            start = first - origin * g[SOURCE_STEP + 4]
            before, after = (low, high) if g[VECTORS] else (0, 0)
            for i in range(found):
                _copy_cells(g, start + copies[2 * i], origin, 0, before, target + copies[2 * i + 1], scratch)
                _copy_cells(g, start + copies[2 * i], origin, after, cells, target + copies[2 * i + 1], scratch)
        first += g[SOURCES] * g[SOURCE_STEP + 1]
        target += g[COPIES] * g[COLUMN_STRIDE] * g[PHASE_CELLS] * scratch.itemsize


@kernel()
def _point_lines(g, tables, source, groups, d, down, zeros, lines):  # type: ignore[no-untyped-def]
    """lines[group, channel, plane, remainder, turn] = address of a source row's cell 0, or of zeros for a padded row.

    ``source`` is the address of cell 0 of the first row of the first group.
    """
    entry, unit, turns, step, first = 0, g[UNIT], g[TURNS], g[SOURCE_STEP + 3], g[ROW_TABLE] + down * g[ROW_STRIDE]
    for c in range(groups * g[SOURCES]):
        for k in range(g[PLANES]):
            plane = tables[g[PLANE_TABLE] + d * g[DEPTH_STRIDE] + k * g[DEPTH_GAP]]
            start = source + c * g[SOURCE_STEP + 1] + plane * g[SOURCE_STEP + 2]
            for remainder in range(unit):
                for turn in range(turns):
                    row = tables[first + turn * unit + remainder]
                    lines[entry + turn] = zeros if plane == PADDING or row == PADDING else start + row * step
                entry += turns


# ---- sums --------------------------------------------------------------------------------------------------------------
@kernel()
def _set_bands(g, tables, d, itemsize, bands):  # type: ignore[no-untyped-def]
    """What ``tile_sums`` needs about the bands of kernel rows; kernel planes that meet only padding are left out where allowed."""
    first, last = 0, g[PLANES]
    if g[SKIPPING]:
        at = g[PLANE_TABLE] + d * g[DEPTH_STRIDE]
        while first < last and tables[at + first * g[DEPTH_GAP]] == PADDING:
            first += 1
        while first < last and tables[at + (last - 1) * g[DEPTH_GAP]] == PADDING:
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
            for column in range(columns):
                store_element(at + column * g[RESULT_STEP + 4], stage[(o * g[TILE_ROWS] + r) * g[TILE_COLUMNS] + column])


def _sum_rows(g, tables, weight, weights, biases, result, rows, columns, channels, bands, masks, lines, stage):  # type: ignore[no-untyped-def]
    """Tiles of a block of result channels: ``rows`` rows, the first at the address ``result``, from the lines at the address ``lines``."""
    item, width, height, scattered = weight.itemsize, g[TILE_COLUMNS], g[TILE_ROWS], g[RESULT_STEP + 4] != weight.itemsize
    step, tile_masks = g[ROW_STEP], width // lanes_of(weight) * g[TAPS] * 8
    band_address, tap_address, taps = address_of(bands), address_of(tables) + g[TAP_TABLE] * 8, g[TAPS]
    row = 0
    while row < rows:
        column, mask_address = 0, address_of(masks)
        while column < columns:
            some = min(width, columns - column)
            at, down, across = result + column * item, step, g[RESULT_STEP + 1]
            if scattered:
                at, down, across = address_of(stage), width * item, height * width * item
            _tile_sums(
                weight, band_address, tap_address, mask_address, taps, lines, column * item, weights, biases,
                at, down, across, rows - row, channels, -1 if some == 64 else (1 << some) - 1,
            )  # fmt: skip
            if scattered:
                _move_tile(g, stage, result + column * g[RESULT_STEP + 4], min(rows - row, height), some, channels)
            column, mask_address = column + width, mask_address + tile_masks
        row, lines, result = row + height, lines + height * 8, result + height * step


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
                    at, place = at + part * g[ROW_STRIDE] * g[TURNS] * 8, place + part * g[RESULT_STEP + 3]
                    count, long = rows if spacing == 1 else (rows - part + spacing - 1) // spacing, columns
                _sum_rows(g, tables, weight, weights, biases, place, count, long, some, bands, masks, at, stage)  # type: ignore[no-untyped-call]


# ---- tasks -------------------------------------------------------------------------------------------------------------
def _worker(geometry, tables, source, weight, bias, result, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each a block of result rows and columns of one plane, for some groups of one image."""
    g, lanes, spare = borrowed(geometry), lanes_of(weight), ALIGNMENT // weight.itemsize
    memory = np.zeros(g[SCRATCH] + spare, weight.dtype)
    memory = memory[-address_of(memory) // weight.itemsize % spare :]
    lines_memory, copies_memory = np.empty(g[GROUPS_AT_ONCE] * g[ENTRIES], np.int64), np.empty(2 * g[COPIES], np.int64)
    masks_memory, bands_memory = np.empty(g[MASKS], np.int64), np.empty(3 * g[HEIGHTS], np.int64)
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
            _set_masks(g, low, high, lanes, masks, copied)
        start = address_of(source) + g[SOURCE] + image * g[SOURCE_STEP] + first * g[SOURCES] * g[SOURCE_STEP + 1]
        if g[STRAIGHT]:
            _point_lines(g, table, start + origin * weight.itemsize, groups, d, down, address_of(scratch), lines)
        if planned != d * g[HEIGHT] + down:
            planned = d * g[HEIGHT] + down
            _set_bands(g, table, d, weight.itemsize, bands)
            if not g[STRAIGHT]:
                found = _plan_copies(g, table, d, down, scratch, lines, copies)
        if not g[STRAIGHT]:
            _copy_rows(g, start, groups, origin, cells, low, high, copied, scratch, copies, found)
        start = address_of(result) + g[RESULT] + image * g[RESULT_STEP] + first * g[RESULTS] * g[RESULT_STEP + 1]
        start += d * g[RESULT_STEP + 2] + down * g[RESULT_STEP + 3] + across * g[RESULT_STEP + 4]
        _sum_groups(  # type: ignore[no-untyped-call]
            g, table, borrowed(weight), borrowed(bias), first, groups, start, rows, columns, bands, masks, lines, stage
        )


def _team(threads, geometry, tables, source, weight, bias, result, counter):  # type: ignore[no-untyped-def]
    for _ in prange(threads):
        _worker(geometry, tables, source, weight, bias, result, counter)  # type: ignore[no-untyped-call]


@cache
def _kernels(tile: Tile) -> tuple[Function, Function]:
    """Worker and team for one tile shape: the functions above with its intrinsic."""
    name, sums = {
        tiles.NARROW: ("narrow", tiles.narrow_sums),
        tiles.WIDE: ("wide", tiles.wide_sums),
        tiles.SEVERAL: ("several", tiles.several_sums),
    }[tile]
    rows = kernel()(_instance(_sum_rows, name, _tile_sums=sums))
    groups = kernel()(_instance(_sum_groups, name, _sum_rows=rows))
    worker = kernel()(_instance(_worker, name, _sum_groups=groups))
    return worker, kernel(parallel=True)(_instance(_team, name, _worker=worker))


def _instance(function: Function, name: str, **names: Any) -> Function:
    """The function with some of its global names bound anew: unlike with a closure, Numba's disk cache still knows it, by its name."""
    instance = FunctionType(function.__code__, function.__globals__ | names, f"{function.__name__}_{name}")
    instance.__qualname__ = instance.__name__
    return instance


@cache
def _compiled(tile: Tile, dtype: str, parallel: bool) -> tuple[Function, Function]:
    """Worker and team, one of them compiled: read-only and writeable sources share it."""
    numbers, elements = types.int64[::1], types.Array(from_dtype(np.dtype(dtype)), 1, "C")
    arguments = (numbers, numbers, elements.copy(readonly=True), elements, elements, elements, numbers)
    worker, team = _kernels(tile)
    specialise(*((team, (types.int64, *arguments)) if parallel else (worker, arguments)))
    return worker, team


# ---- the algorithm -----------------------------------------------------------------------------------------------------
class Filter:
    """The algorithm for few channels a group: depthwise, single-channel and RGB filters, small groups."""

    name = "filter"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        if problem.dtype not in ("float32", "float64"):
            return f"it computes float32 and float64, not {problem.dtype}"
        if config.DISABLE_JIT:
            return "it is made of LLVM intrinsics, which need the compiler (NUMBA_DISABLE_JIT is set)"
        if problem.direction != "forward":
            return "it computes forward convolutions only"
        if not 0 < problem.in_per_group <= MOST_CHANNELS:
            return f"it is for 1 to {MOST_CHANNELS} input channels a group, not {problem.in_per_group}"
        needed = layout_of(problem.per_image, contiguous=False).workspace
        if needed > MOST_SCRATCH:
            return f"a block of source rows takes {needed:,} bytes, more than {MOST_SCRATCH:,}"
        return None

    def cost(self, problem: Problem) -> float:
        return layout_of(problem).seconds

    def setup(self, problem: Problem) -> FilterSetup:
        return FilterSetup(problem)


@dataclass(frozen=True)
class FilterSetup:
    """The algorithm set up for one problem.

    ``pack`` returns weight and bias in blocks of ``tile.channels`` result channels, and whether the weight is finite (int64).
    """

    problem: Problem

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.problem)

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates."""
        return most_threads() * max(layout_of(self.problem, contiguous).workspace for contiguous in (True, False))

    @property
    def packed_bytes(self) -> int:
        p, t = self.problem, self.layout.tile
        channels = p.groups * self.layout.blocks * t.channels
        return channels * (p.in_per_group * p.taps + 1) * np.dtype(p.dtype).itemsize + 8

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p, blocks, channels = self.problem, self.layout.blocks, self.layout.tile.channels
        split = np.zeros((p.groups, blocks * channels, p.in_per_group, *p.kernel), weight.dtype)
        split[:, : p.out_per_group] = weight.reshape(p.groups, p.out_per_group, p.in_per_group, *p.kernel)
        split = split.reshape(p.groups * blocks, channels, p.in_per_group, *p.kernel)
        parts = []
        for height, row, count in self.layout.bands:
            rows = split[..., row : row + height * count, :]
            rows = rows.reshape(*rows.shape[:4], count, height, p.kernel[2])
            parts.append(rows.transpose(0, 3, 2, 4, 6, 5, 1).reshape(len(rows), -1))  # plane, channel, band, column, row, result channel
        padded = np.zeros((p.groups, blocks * channels), weight.dtype)
        if bias is not None:
            padded[:, : p.out_per_group] = bias.reshape(p.groups, -1)
        finite = np.array([np.isfinite(weight).all()], np.int64)
        return np.concatenate(parts, axis=1).reshape(-1), padded.reshape(-1), finite

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        weight, bias, finite = packed
        call = self._calls(source, result, bool(finite[0]))
        seconds = len(source) * call.layout.seconds
        worker, team = _compiled(call.layout.tile, self.problem.dtype, team_size(seconds) > 1)
        arguments = (call.geometry, call.tables, memory_of(source), weight, bias, memory_of(result))
        launch(worker, team, arguments, int(call.geometry[TASKS]), seconds)

    @cached_property
    def _calls(self) -> Layouts[Call]:
        return Layouts(self._call)

    def _call(self, source: AnyArray, result: AnyArray, finite: bool) -> Call:
        contiguous = source.strides[4] == source.itemsize
        layout = layout_of(self.problem, contiguous)
        g, tables = _tables(layout)
        g[SOURCE], *g[SOURCE_STEP : SOURCE_STEP + 5] = (n * source.itemsize for n in place_and_steps(source))
        g[RESULT], *g[RESULT_STEP : RESULT_STEP + 5] = (n * result.itemsize for n in place_and_steps(result))
        g[ROW_STEP] = g[RESULT_STEP + 4] * layout.width if layout.folded else g[RESULT_STEP + 3] * layout.spacing
        g[SKIPPING], g[VECTORS] = finite, contiguous and self.problem.stride[2] <= 2
        shares = -(-self.problem.groups // layout.groups_at_once)
        g[TASKS] = len(source) * shares * self.problem.out_size[0] * layout.downs * layout.acrosses
        return Call(layout, g, tables)


@dataclass(frozen=True)
class Call:
    """What a call with arrays of certain layouts needs: how it is cut, the geometry and the tables."""

    layout: Layout
    geometry: NDArray[np.int64]
    tables: NDArray[np.int64]


def _tables(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Geometry without the fields that the arrays decide, and the tables."""
    p, t, g = layout.problem, layout.tile, np.zeros(FIELDS, np.int64)
    g[GROUPS], g[SOURCES], g[RESULTS], g[BLOCKS] = p.groups, p.in_per_group, p.out_per_group, layout.blocks
    g[DEPTH], g[HEIGHT], g[WIDTH] = p.out_size
    g[PLANES], _, g[TAPS] = p.kernel
    g[DEPTH_STRIDE], g[ROW_STRIDE], g[COLUMN_STRIDE] = p.stride
    g[DEPTH_GAP], _, g[COLUMN_GAP] = p.dilation
    g[COLUMN_REACH], g[SOURCE_WIDTH], g[LEFT] = layout.reach, p.in_size[2], p.padding[2][0]
    g[MODE], g[STRAIGHT], g[FOLDED] = PADDING_MODES.index(p.padding_mode), layout.straight, layout.folded
    g[TILE_CHANNELS], g[TILE_ROWS], g[TILE_COLUMNS], g[HEIGHTS] = t.channels, t.rows, layout.width, len(t.heights)
    g[SPACING], g[UNIT], g[TURNS], g[TILES] = layout.spacing, layout.unit, layout.turns, layout.tiles
    g[COLUMNS], g[PHASE_CELLS], g[GROUPS_AT_ONCE] = layout.columns, layout.phase_cells, layout.groups_at_once
    g[ENTRIES], g[COPIES], g[SCRATCH], g[MASKS] = layout.entries, layout.copies, layout.scratch, layout.masks
    g[BLOCK_WEIGHTS] = p.in_per_group * p.taps * t.channels
    bands, places = _bands(layout)
    last = layout.downs * layout.tiles * t.rows * layout.spacing * p.stride[1] + layout.unit * layout.turns
    parts = [_padded(p, 0, 0), _padded(p, 1, last), _taps(layout), bands, places]
    starts = np.cumsum([0] + [len(part) for part in parts])
    g[PLANE_TABLE], g[ROW_TABLE], g[TAP_TABLE], g[BAND_TABLE] = starts[:4]
    bands[::4] += starts[4]
    return g, np.concatenate(parts)


def _bands(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first place, bands a kernel plane, first weight, weights a band) for each height; the places of all bands in the lines, in bytes."""
    p = layout.problem
    bands: list[int] = []
    places: list[int] = []
    for height, row, count in layout.bands:
        row_weights = p.kernel[0] * p.in_per_group * p.kernel[2] * layout.tile.channels
        bands += [len(places), p.in_per_group * count, row * row_weights, p.kernel[2] * height * layout.tile.channels]
        starts = [layout.place(row + i * height) for i in range(count)]
        for plane, channel in product(range(p.kernel[0]), range(p.in_per_group)):
            first = (channel * p.kernel[0] + plane) * layout.unit
            places += [8 * ((first + remainder) * layout.turns + turn) for remainder, turn in starts]
    return np.array(bands, np.int64), np.array(places, np.int64)


def _taps(layout: Layout) -> NDArray[np.int64]:
    """Byte shift of each column of the kernel."""
    cells, stride = np.arange(layout.problem.kernel[2], dtype=np.int64) * layout.problem.dilation[2], layout.problem.stride[2]
    return (cells % stride * layout.phase_cells + cells // stride) * layout.itemsize


def _padded(p: Problem, axis: int, length: int) -> NDArray[np.int64]:
    """Source index of each padded position that a tap meets along an axis; PADDING for zeros and for positions beyond, up to ``length``."""
    low, high = p.padding[axis]
    met = (p.out_size[axis] - 1) * p.stride[axis] + (p.kernel[axis] - 1) * p.dilation[axis] + 1
    indices = index_map(p.in_size[axis], low, high, PADDING_MODES.index(p.padding_mode))[:met]
    return np.concatenate([indices, np.full(max(0, length - met), PADDING, np.int64)])
