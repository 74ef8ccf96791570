"""The kernels of weight gradients: tasks, strips, what they copy and multiply.  See ``weight_grad``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..padding import PADDING
from .compile import kernel
from .copies import copy_lines
from .elements import load_stored
from .rows import index_of, inside
from .simd import address_of, borrowed, lanes_of
from .threads import next_task
from .weight_bands import TABLE, add_bands

# isort: off
from .weight_fields import (
    BLOCKS, BOX, CHANNEL, CHANNELS, CHANNEL_BLOCK, CHANNEL_LANES, COMPONENTS, DILATION, FILTERS, FILTER_BLOCK, FILTER_BLOCKS, GRAD,
    GRAD_IN_PLACE, GRAD_ROW, GROUPS, GROUP_BLOCK, GROUP_LANES, GROUP_SUMS, IMAGES, IN, IN_PLACE, ITEM, KERNEL, KIND, LOADED,
    MODE, NEGATED, OUT, PAD, PANEL, PLANE, RESULT, RESULT_ITEM, RESULT_TAP, ROW, ROW_BANDS, SCRATCH, SEGMENTS, SHARES, SOURCE, STRIDE,
    STRIPS, SUMS_STEP, TAPS_APART, WINDOW,
)  # fmt: skip

# isort: on
from .weight_channels import SPARE, add_channel_lanes, find_met, negate, pack_vector
from .weight_groups import GROUP_TILE, clear_padding, copy_groups, group_tile, place_window
from .weight_stores import address_of_block, block_of, component_of, store_block
from .weight_tiles import DOT_TILES, dot_tile

RUN = 64  # strips
ALIGNMENT = 64


class Work(NamedTuple):
    """Workspace of one thread.

    scratch : cells of the input; panel : output gradients; sums : of a block of dW, (groups, taps, filters) or (groups, filters, taps)
    cells, grads : offsets of what a tile's rows read; lines, grad_lines : rows to be copied; starts : of the rows of output pixels, of all
    and then of those that each tap meets inside the input; met : first and number of those rows, and of columns
    table, found : of a band of kernel rows, and its sums; window : where input cells go if lanes are groups, for the strip ``placed``
    """

    scratch: Any
    panel: Any
    sums: Any
    cells: Any
    grads: Any
    lines: Any
    grad_lines: Any
    starts: Any
    met: Any
    table: Any
    found: Any
    window: Any
    placed: Any


# ---- the worker --------------------------------------------------------------------------------------------------------
@kernel()
def worker(geometry, segments, places, partial, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each a block of dW summed over a share of the strips."""
    g, taps = geometry, geometry[KERNEL] * geometry[KERNEL + 1] * geometry[KERNEL + 2]
    size = g[GROUP_BLOCK] * g[GROUP_SUMS]
    scratch, panel = _aligned(g[SCRATCH], partial), _aligned(g[PANEL], partial)
    sums, totals = _aligned(0 if g[SHARES] > 1 else size, partial), _aligned(size, partial)
    rows, levels = g[BOX] * g[BOX + 1], g[KERNEL] * g[KERNEL + 1] if g[TAPS_APART] > 1 else 0
    cells, grads = np.empty((g[CHANNEL_BLOCK] + SPARE) * taps, np.int64), np.empty(g[FILTER_BLOCK] + SPARE, np.int64)
    lines, grad_lines = np.empty((g[SCRATCH] // g[ROW] + 1, 3), np.int64), np.empty((rows, 3), np.int64)
    starts, met = np.empty((levels + 1) * rows * 2, np.int64), np.empty((levels + g[KERNEL + 2] + 2, 2), np.int64)
    window, placed = np.empty(g[WINDOW], np.int64), np.full(2, -1)
    table, found = np.empty(TABLE, np.int64), np.empty(ALIGNMENT, partial.dtype)
    if g[FILTERS] % (g[FILTER_BLOCKS] * lanes_of(panel)) != 0:
        panel[:] = 0  # lanes without a filter, which are multiplied: numbers as small as chance may leave there take long
    if g[KIND] == GROUP_LANES and g[GROUPS] % lanes_of(panel) != 0:
        scratch[:] = 0
    while True:
        task = next_task(counter)
        if task >= g[BLOCKS] * g[SHARES]:
            break
        own = partial[task * size : (task + 1) * size] if g[SHARES] > 1 else sums
        work = Work(
            borrowed(scratch), borrowed(panel), borrowed(own), borrowed(cells), borrowed(grads), borrowed(lines), borrowed(grad_lines),
            borrowed(starts), borrowed(met), borrowed(table), borrowed(found), borrowed(window),
            borrowed(placed),
        )  # fmt: skip
        _sum_block(borrowed(geometry), task, borrowed(segments), borrowed(places), work, borrowed(totals))


@kernel()
def _aligned(size, like):  # type: ignore[no-untyped-def]
    """Memory of so many elements, after which a vector more can be read."""
    spare = ALIGNMENT // like.itemsize
    memory = np.empty(size + 2 * spare, like.dtype)
    return memory[-memory.ctypes.data // like.itemsize % spare :][:size]


@kernel()
def _sum_block(g, task, segments, places, work, totals):  # type: ignore[no-untyped-def]
    """Sum a task's block of dW over its share of the strips, and write it where it is the only share."""
    number, block = task % g[SHARES], task // g[SHARES]
    strips = g[IMAGES] * g[COMPONENTS] * g[STRIPS] * g[STRIPS + 1] * g[STRIPS + 2]
    first, last = strips * number // g[SHARES], strips * (number + 1) // g[SHARES]
    if g[KIND] != ROW_BANDS:
        _place_cells(g, block, places, work.cells)
    at_once = g[SHARES] == 1 and 0 < last - first <= RUN and g[RESULT_TAP] != 0 and g[KIND] == CHANNEL_LANES
    if first == last:
        work.sums[:] = 0
    for start in range(first, last, RUN):
        for strip in range(start, min(start + RUN, last)):
            _add_strip(g, block, strip, strip > start, at_once and strip == last - 1, segments, places, work)
        if start > first:
            _add(totals, work.sums)
        elif last - first > RUN:
            totals[:] = work.sums
    if last - first > RUN:
        work.sums[:] = totals
    if g[SHARES] == 1 and not at_once:
        store_block(g, block, work.sums)


@kernel()
def add_shares(geometry, partial, counter):  # type: ignore[no-untyped-def]
    """Worker: each task adds up the shares of one block, in order, and writes it to dW."""
    g = geometry
    size = g[GROUP_BLOCK] * g[GROUP_SUMS]
    while True:
        block = next_task(counter)
        if block >= g[BLOCKS]:
            break
        start = block * g[SHARES] * size
        sums = partial[start : start + size]
        for i in range(1, g[SHARES]):
            _add(sums, partial[start + i * size :])
        store_block(borrowed(geometry), block, borrowed(sums))


@kernel()
def _add(totals, more):  # type: ignore[no-untyped-def]
    for i in range(len(totals)):  # an expression of arrays would test their lengths element by element
        totals[i] += more[i]


@kernel()
def _place_cells(g, block, places, cells):  # type: ignore[no-untyped-def]
    """Offsets (elements) of what the taps of a block's channels read for a strip's first pixel, one channel after the other, or one tap
    after the other where those are apart; the last one is repeated to fill tiles.
    """
    channels, apart = block_of(g, block)[5], g[TAPS_APART]
    kd, kh, kw = g[KERNEL], g[KERNEL + 1], g[KERNEL + 2]
    rows, r = channels * kd * kh * kw // apart, 0
    for c in range(channels):
        for i in range(kd):
            for j in range(kh):
                for k in range(kw):
                    if g[IN_PLACE]:
                        offset = c * g[SOURCE + 2] + i * g[DILATION] * g[SOURCE + 3]
                        offset += j * g[DILATION + 1] * g[SOURCE + 4] + k * g[DILATION + 2] * g[SOURCE + 5]
                    else:
                        offset = c * g[CHANNEL] + places[i] * g[PLANE] + places[kd + j] * g[ROW] + places[kd + kh + k]
                    cells[r % apart * (rows + SPARE) + r // apart] = offset
                    r += 1
    for tap in range(apart):
        end = tap * (rows + SPARE) + rows
        cells[end : end + SPARE] = cells[end - 1]


# ---- strips ------------------------------------------------------------------------------------------------------------
@kernel()
def _add_strip(g, block, strip, accumulate, final, segments, places, work):  # type: ignore[no-untyped-def]
    """Compute what one strip gives to a block of dW, and add it to the sums where asked; ``final`` sums are written to dW as they come."""
    first_group, last_group, filter, filters, channel, channels = block_of(g, block)
    component, item = component_of(g, block), g[ITEM]
    w, rest = strip % g[STRIPS + 2], strip // g[STRIPS + 2]
    h, rest = rest % g[STRIPS + 1], rest // g[STRIPS + 1]
    d, rest = rest % g[STRIPS], rest // g[STRIPS]
    part, image = rest % g[COMPONENTS], rest // g[COMPONENTS]
    d0, h0, w0 = g[OUT] * d // g[STRIPS], g[OUT + 1] * h // g[STRIPS + 1], g[OUT + 2] * w // g[STRIPS + 2]
    planes, rows = g[OUT] * (d + 1) // g[STRIPS] - d0, g[OUT + 1] * (h + 1) // g[STRIPS + 1] - h0
    columns = g[OUT + 2] * (w + 1) // g[STRIPS + 2] - w0
    found = 0 if g[IN_PLACE] else _find_lines(g, segments, d0, h0, planes, rows, work.lines)
    if g[KIND] != ROW_BANDS or not g[GRAD_IN_PLACE]:
        _find_starts(g, planes, rows, columns, work)
    if g[TAPS_APART] > 1:
        find_met(g, (d0, h0, w0), planes, rows, columns, work)
    grad_strip = image * g[GRAD + 1] + d0 * g[GRAD + 3] + h0 * g[GRAD + 4] + w0 * g[GRAD + 5] + (part ^ component)
    negated = component == 1 and part == g[NEGATED]
    result = address_of_block(g, block) if final else 0
    if g[KIND] == GROUP_LANES:
        source = g[SOURCE] + (image * g[SOURCE + 1] + part) * item
        grad = g[GRAD] + grad_strip * item
        clear_padding(g, segments, w0, columns, work.lines, found, work.scratch)
        _add_group_lanes(g, segments, first_group, last_group, grad, negated, (d0, h0, w0), planes, rows, columns, source, accumulate, work)
        return
    for group in range(first_group, last_group):
        source = g[SOURCE] + (image * g[SOURCE + 1] + (group * g[CHANNELS] + channel) * g[SOURCE + 2] + part) * item
        if g[IN_PLACE] and g[KIND] != ROW_BANDS:
            corner = (d0 * g[STRIDE] - g[PAD]) * g[SOURCE + 3] + (h0 * g[STRIDE + 1] - g[PAD + 1]) * g[SOURCE + 4]
            source += (corner + (w0 * g[STRIDE + 2] - g[PAD + 2]) * g[SOURCE + 5]) * item
        elif not g[IN_PLACE]:
            _copy_cells(g, segments, work.lines, found, source, channels, w0, columns, work.scratch)
            source = address_of(work.scratch)
        grad = g[GRAD] + (grad_strip + (group * g[FILTERS] + filter) * g[GRAD + 2]) * item
        at = (group - first_group) * g[GROUP_SUMS]
        taps = channels * g[KERNEL] * g[KERNEL + 1] * g[KERNEL + 2]
        if g[KIND] == CHANNEL_LANES:
            add_channel_lanes(g, grad, negated, filters, planes, rows, columns, source, taps, at, accumulate, result, work)
            if final:
                result += g[FILTERS] * g[RESULT + 1] * g[RESULT_ITEM]
        else:
            if not g[GRAD_IN_PLACE]:
                _copy_grads(g, grad, negated, filters, planes, rows, columns, work)
                grad = address_of(work.panel)
            if g[KIND] == ROW_BANDS:
                add_bands(g, grad, planes, rows, columns, (d0, h0, w0), source, places, channels, at, accumulate, work)
            else:
                _add_pixel_lanes(g, grad, filters, planes, rows, columns, source, taps, at, accumulate, work)


@kernel()
def _find_lines(g, segments, d0, h0, planes, rows, lines):  # type: ignore[no-untyped-def]
    """The rows of one channel's scratch: (offset of the source row, position in the scratch, whether all of it is padding)."""
    found = 0
    for s in range(g[SEGMENTS], g[SEGMENTS + 1]):
        for i in range(segments[s, 2] - g[BOX] + planes):
            depth = index_of(d0 * g[STRIDE] - g[PAD] + segments[s, 0] + i * g[STRIDE], g[IN], g[MODE])
            for t in range(g[SEGMENTS + 1], g[SEGMENTS + 2]):
                for j in range(segments[t, 2] - g[BOX + 1] + rows):
                    height = index_of(h0 * g[STRIDE + 1] - g[PAD + 1] + segments[t, 0] + j * g[STRIDE + 1], g[IN + 1], g[MODE])
                    lines[found, 0] = depth * g[SOURCE + 3] + height * g[SOURCE + 4]
                    lines[found, 1] = (segments[s, 1] + i) * g[PLANE] + (segments[t, 1] + j) * g[ROW]
                    lines[found, 2] = depth == PADDING or height == PADDING
                    found += 1
    return found


@kernel()
def _find_starts(g, planes, rows, columns, work):  # type: ignore[no-untyped-def]
    """Where each row of output pixels starts, relative to the strip's first: in the source or its scratch, or pairs of both operands."""
    j = 0
    for d in range(planes):
        for h in range(rows):
            if g[IN_PLACE]:
                source = d * g[STRIDE] * g[SOURCE + 3] + h * g[STRIDE + 1] * g[SOURCE + 4]
            else:
                source = d * g[PLANE] + h * g[ROW]
            if g[KIND] == CHANNEL_LANES or g[KIND] == GROUP_LANES:
                work.starts[2 * j], work.starts[2 * j + 1] = source, j * columns
            else:
                work.grad_lines[j, 0], work.grad_lines[j, 1], work.grad_lines[j, 2] = d * g[GRAD + 3] + h * g[GRAD + 4], j * g[GRAD_ROW], 0
                work.starts[2 * j] = work.grad_lines[j, 0 if g[GRAD_IN_PLACE] else 1]
                work.starts[2 * j + 1] = source
            j += 1


@kernel(forceinline=True)
def _copy_cells(g, segments, lines, found, source, channels, w0, columns, scratch):  # type: ignore[no-untyped-def]
    """Fill the scratch with the cells that the taps of some channels read; ``source`` is the byte address of the first channel."""
    across, step = g[SOURCE + 5], g[STRIDE + 2]
    for s in range(g[SEGMENTS + 2], len(segments)):
        first, length = w0 * step - g[PAD + 2] + segments[s, 0], segments[s, 2] - g[BOX + 2] + columns
        low, high = inside(first, step, length, g[IN + 2])
        for c in range(channels):
            start = source + (c * g[SOURCE + 2] + first * across) * g[ITEM]
            copy_lines(start, g[LOADED], step * across, low, high, length, lines, found, scratch, c * g[CHANNEL] + segments[s, 1])
            if g[MODE] != 0:
                _copy_edges(g, lines, found, start, first, low, high, length, scratch, c * g[CHANNEL] + segments[s, 1])


@kernel()
def _copy_edges(g, lines, found, start, first, low, high, length, scratch, position):  # type: ignore[no-untyped-def]
    """Fill in the cells outside [low, high) of all lines, which padding copies from inside."""
    for i in range(found):
        for begin, end in ((0, low), (high, length)):
            for q in range(begin, end):
                cell = index_of(first + q * g[STRIDE + 2], g[IN + 2], g[MODE])
                address = start + (lines[i, 0] + (cell - first) * g[SOURCE + 5]) * g[ITEM]
                scratch[position + lines[i, 1] + q] = load_stored(address, g[LOADED], scratch)


# ---- products of a strip -----------------------------------------------------------------------------------------------
@kernel(forceinline=True)
def _add_group_lanes(g, segments, first_group, last_group, grad, negated, corner, planes, rows, columns, source, accumulate, work):  # type: ignore[no-untyped-def]
    """Add a strip's products to the sums, (groups, filters, taps), of vectors of groups; grad and source are those of group 0."""
    lanes, pixels = lanes_of(work.sums), planes * rows * columns
    top, height, left, width = place_window(g, segments, corner[1], corner[2], rows, columns, work.window, work.placed, work.scratch)
    taps = g[CHANNELS] * g[KERNEL] * g[KERNEL + 1] * g[KERNEL + 2]
    for group in range(first_group, last_group, lanes):
        groups = min(lanes, last_group - group)
        start = source + group * g[CHANNELS] * g[SOURCE + 2] * g[ITEM]
        copy_groups(g, segments, start, groups, corner[0], planes, top, height, left, width, work.window, work.scratch)
        for o in range(g[FILTERS]):
            address = grad + (group * g[FILTERS] + o) * g[GRAD + 2] * g[ITEM]
            pack_vector(g, address, g[FILTERS] * g[GRAD + 2], groups, planes, rows, columns, work.panel, 0, lanes)
            if negated:
                negate(work.panel, pixels * lanes)
            at = (group - first_group) * g[GROUP_SUMS] + o * g[SUMS_STEP] * lanes
            for t in range(0, taps, GROUP_TILE):
                group_tile(
                    work.scratch, work.cells, t, work.starts, planes * rows, columns, work.panel, work.sums, at + t * lanes, accumulate
                )


@kernel(forceinline=True)
def _copy_grads(g, grad, negated, filters, planes, rows, columns, work):  # type: ignore[no-untyped-def]
    """Fill the panel with the output gradients of some filters, as rows."""
    filter_step = planes * rows * g[GRAD_ROW]
    for o in range(filters):
        start = grad + o * g[GRAD + 2] * g[ITEM]
        copy_lines(start, g[LOADED], g[GRAD + 5], 0, columns, columns, work.grad_lines, planes * rows, work.panel, o * filter_step)
    if negated:
        negate(work.panel, filters * filter_step)


@kernel(forceinline=True)
def _add_pixel_lanes(g, grad, filters, planes, rows, columns, source, taps, at, accumulate, work):  # type: ignore[no-untyped-def]
    """Add a strip's products to sums[at:], (filters, taps): output gradients, in place or copied to the panel, times their cells."""
    sums, grads = work.sums, work.grads
    across, down = DOT_TILES[0] if g[KIND] == 0 else DOT_TILES[1]
    filter_step = g[GRAD + 2] if g[GRAD_IN_PLACE] else planes * rows * g[GRAD_ROW]
    for o in range(filters + across):
        grads[o] = min(o, filters - 1) * filter_step
    for o in range(0, filters, across):
        for r in range(0, taps, down):
            place = at + o * g[SUMS_STEP] + r
            dot_tile(
                g[KIND], grad, grads, o, source, work.cells, r, work.starts, planes * rows, columns, sums, place, g[SUMS_STEP], accumulate
            )
