"""The kernels of implicit GEMM with the roles of the operands turned: pixels are broadcast, the rows of the weight are lanes.

A task computes a block of result pixels.  For each block of K it copies the source cells that these meet into a *box*, once, however many
taps meet them: padding is filled in, elements are converted, strides of the source straightened.  The microkernel then reads each tap's
cells in the box.  Sums stay in memory of their own until the last block of K.
"""

from __future__ import annotations

import numpy as np

from ..padding import PADDING, source_index
from .compile import kernel
from .copies import copy_lines
from .elements import load_stored, store_sums_turned_as
from .gemm import LINE_BYTES, TILE_ROWS, TILE_VECTORS
from .pack_weight import is_finite, order_of, pack_rows
from .simd import address_of, lanes_of
from .threads import next_task
from .turned_tile import multiply_turned_tile

# Fields of a part's geometry, an int64 array: first three axes each, then single numbers.  Strides and steps count elements.
SOURCE_SIZE, SOURCE_STRIDE, RESULT_SIZE, RESULT_STRIDE, STEP, TAPS, LOW, REACH, BLOCK, BLOCKS, SPAN = range(0, 33, 3)
(
    MODE, IMAGES, GROUPS, CHANNELS, ROWS, KERNEL, SOURCE_IMAGE, SOURCE_CHANNEL, SOURCE_ITEM, RESULT, RESULT_IMAGE, RESULT_CHANNEL,
    RESULT_ITEM, CHANNELS_AT_ONCE, TAPS_AT_ONCE, CELLS, STAGED_ROW, WEIGHT, SPLITS, LAST_TASK, SHIFTS, LOADED, STORED, FIELDS,
) = range(33, 57)  # fmt: skip

TAP_OFFSETS = 4  # where they begin in an order

_source_index = kernel(forceinline=True)(source_index)


@kernel()
def work_turned(source, result, parts, shifts, weight, bias, finite, place, orders, counter):  # type: ignore[no-untyped-def]
    """Tasks of any part until none is left: each a block of pixels of one image and group, and a share of the rows.

    parts : int64 array, a row of fields each; shifts : int64 array, those of all parts.
    weight, bias : arrays of the dtype of the sums; source, result : int64 byte addresses.
    finite : int64 array: whether the weight is, so that taps that read nothing but padding may be left out.
    place, orders : int64 byte address and array: 0 and empty, or where the weight lies as the user keeps it: at ``place``, and from WEIGHT
        of each part on 0, the strides of a group, a row and a channel, and the offsets of the taps (elements).  Strips are then packed
        where they are used, and finite[0] becomes 0 where one is not finite.
    """
    box_size = stage_size = products = lines = pieces = taps = 0
    lanes = lanes_of(weight)
    for part in range(len(parts)):
        g = parts[part]
        rows = g[SPAN] * g[SPAN + 1]
        box_size, products = max(box_size, rows * g[CHANNELS_AT_ONCE] * g[CELLS]), max(products, g[CHANNELS_AT_ONCE] * g[TAPS_AT_ONCE])
        lines, pieces = max(lines, g[BLOCK] * g[BLOCK + 1]), max(pieces, rows * g[CHANNELS_AT_ONCE])
        stage_size, taps = max(stage_size, g[BLOCK] * g[BLOCK + 1] * g[BLOCK + 2] * g[STAGED_ROW]), max(taps, g[TAPS_AT_ONCE])
    spare = LINE_BYTES // weight.itemsize
    box, staged = _aligned(np.empty(box_size + spare, weight.dtype)), _aligned(np.empty(stage_size + spare, weight.dtype))
    offsets, copies = np.empty(products, np.int64), np.empty((pieces, 3), np.int64)
    runs, run_counts = np.empty(2 + lines * (taps + 2), np.int64), np.empty(lines, np.int64)
    strip = _aligned(np.empty((TILE_VECTORS * products * lanes if orders.size else 0) + spare, weight.dtype))
    tabled = np.full(3, -1)
    part = 0
    while True:
        task = next_task(counter)
        if task >= parts[len(parts) - 1, LAST_TASK]:
            break
        while task >= parts[part, LAST_TASK]:
            part += 1
        if tabled[0] != part:
            tabled[0], tabled[1] = part, -1
        g = parts[part]
        task -= parts[part - 1, LAST_TASK] if part > 0 else 0
        order = orders[g[WEIGHT] if orders.size else 0 :]
        _compute(
            g, shifts[g[SHIFTS] :], weight, bias, source, result + g[RESULT], finite, place, order, task,
            box, staged, strip, offsets, copies, runs, run_counts, tabled,
        )  # fmt: skip


@kernel(forceinline=True)
def _aligned(memory):  # type: ignore[no-untyped-def]
    return memory[-memory.ctypes.data // memory.itemsize % (LINE_BYTES // memory.itemsize) :]


@kernel(forceinline=True)
def _compute(  # type: ignore[no-untyped-def]
    g, shifts, weight, bias, source, result, finite, place, order, task, box, staged, strip, offsets, copies, runs, run_counts, tabled
):  # fmt: skip
    """One task of a part, in the memory of its thread.

    tabled : int64 array: the part, the first tap and the channels that ``offsets`` are of.
    """
    lanes, vectors = lanes_of(weight), -(-g[ROWS] // lanes_of(weight))
    split, rest = task % g[SPLITS], task // g[SPLITS]
    w, rest = rest % g[BLOCKS + 2] * g[BLOCK + 2], rest // g[BLOCKS + 2]
    h, rest = rest % g[BLOCKS + 1] * g[BLOCK + 1], rest // g[BLOCKS + 1]
    d, member = rest % g[BLOCKS] * g[BLOCK], rest // g[BLOCKS]
    image, group = member // g[GROUPS], member % g[GROUPS]
    depth, height, width = (
        min(g[BLOCK], g[RESULT_SIZE] - d),
        min(g[BLOCK + 1], g[RESULT_SIZE + 1] - h),
        min(g[BLOCK + 2], g[RESULT_SIZE + 2] - w),
    )
    first, last = vectors * split // g[SPLITS], vectors * (split + 1) // g[SPLITS]
    source += (image * g[SOURCE_IMAGE] + group * g[CHANNELS] * g[SOURCE_CHANNEL]) * g[SOURCE_ITEM]
    result += (image * g[RESULT_IMAGE] + (group * g[ROWS] + first * lanes) * g[RESULT_CHANNEL]) * g[RESULT_ITEM]
    result += (d * g[RESULT_STRIDE] + h * g[RESULT_STRIDE + 1] + w * g[RESULT_STRIDE + 2]) * g[RESULT_ITEM]
    found, lying = 0, order_of(order[:0], 0, 0, 0, lanes, lanes)
    for channel in range(0, g[CHANNELS], g[CHANNELS_AT_ONCE]):
        channels = min(g[CHANNELS_AT_ONCE], g[CHANNELS] - channel)
        for tap in range(0, max(g[KERNEL], 1), g[TAPS_AT_ONCE]):
            taps = min(g[TAPS_AT_ONCE], g[KERNEL] - tap)
            if tabled[1] != tap or tabled[2] != channels:
                tabled[1], tabled[2], found = tap, channels, 0
                _set_offsets(g, shifts, tap, taps, channels, weight.itemsize, offsets)
            if found == 0:
                found = 1
                skipping = order.size > 0 or finite[0] != 0
                _find_runs(g, shifts, d, h, w, depth, height, width, tap, taps, channels, skipping, runs, run_counts)
                if order.size:
                    lying = order_of(order[TAP_OFFSETS + tap : TAP_OFFSETS + tap + taps], order[2], order[3], channels, lanes, lanes)
            if tap == 0:
                at = source + channel * g[SOURCE_CHANNEL] * g[SOURCE_ITEM]
                _fill_box(g, shifts, at, d, h, w, depth, height, width, channels, box, copies)
            _multiply(
                g, weight, bias, place, order, lying, finite, group, first, last, channel, channels, tap, taps,
                depth, height, width, box, staged, strip, offsets, runs, run_counts, result,
            )  # fmt: skip


@kernel(forceinline=True)
def _set_offsets(g, shifts, tap, taps, channels, item, offsets):  # type: ignore[no-untyped-def]
    """offsets[k] : bytes in the box from a pixel's first cell to the one that the product k of ``taps`` taps from ``tap`` on takes."""
    high, wide = g[TAPS + 1], g[TAPS + 2]
    for t in range(taps):
        kw, kh, kd = (tap + t) % wide, (tap + t) // wide % high, (tap + t) // wide // high
        plane, row, column = shifts[kd] - g[LOW], shifts[g[TAPS] + kh] - g[LOW + 1], shifts[g[TAPS] + high + kw] - g[LOW + 2]
        for channel in range(channels):
            offsets[t * channels + channel] = (((plane * g[SPAN + 1] + row) * channels + channel) * g[CELLS] + column) * item


@kernel(forceinline=True)
def _find_runs(g, shifts, d, h, w, depth, height, width, tap, taps, channels, skipping, runs, run_counts):  # type: ignore[no-untyped-def]
    """Which products each line of a block takes: pairs (first k, number of products), TAPS_AT_ONCE // 2 + 1 a line, after one of all."""
    high, wide, each = g[TAPS + 1], g[TAPS + 2], g[TAPS_AT_ONCE] // 2 + 1
    runs[0], runs[1] = 0, taps * channels
    missing = False  # whether a column of taps reads nothing but padding
    for kw in range(wide):
        missing |= not _is_column_met(g, shifts, w, width, kw)
    for line in range(depth * height):
        plane, row = (d + line // height) * g[STEP], (h + line % height) * g[STEP + 1]
        far = plane + g[REACH] > g[SOURCE_SIZE] or row + g[REACH + 1] > g[SOURCE_SIZE + 1]
        start = 1 + line * each
        run_counts[line], runs[2 * start], runs[2 * start + 1] = min(taps, 1), 0, taps * channels
        if not skipping or g[MODE] != 0 or not (missing or far or plane + g[LOW] < 0 or row + g[LOW + 1] < 0):
            continue
        run_counts[line] = 0
        for t in range(taps):
            kw, kh, kd = (tap + t) % wide, (tap + t) // wide % high, (tap + t) // wide // high
            inside = 0 <= plane + shifts[kd] < g[SOURCE_SIZE] and 0 <= row + shifts[g[TAPS] + kh] < g[SOURCE_SIZE + 1]
            if inside and (not missing or _is_column_met(g, shifts, w, width, kw)):
                last = start + run_counts[line] - 1
                if run_counts[line] > 0 and runs[2 * last] + runs[2 * last + 1] == t * channels:
                    runs[2 * last + 1] += channels
                else:
                    runs[2 * last + 2], runs[2 * last + 3] = t * channels, channels
                    run_counts[line] += 1


@kernel(forceinline=True)
def _is_column_met(g, shifts, w, width, kw):  # type: ignore[no-untyped-def]
    """Whether one of the columns [w, w + width) meets the source with the tap ``kw`` of a row."""
    shift, step = shifts[g[TAPS] + g[TAPS + 1] + kw], g[STEP + 2]
    first = max(w, -(shift // step))
    return first < w + width and first * step + shift < g[SOURCE_SIZE + 2]


@kernel(forceinline=True)
def _is_met(g, shifts, axis, first_shift, position, cells):  # type: ignore[no-untyped-def]
    """Whether a box position along the depth or the rows is one that some tap of the block's ``cells`` cells meets."""
    for tap in range(g[TAPS + axis]):
        reach = position - (shifts[first_shift + tap] - g[LOW + axis])
        if reach % g[STEP + axis] == 0 and 0 <= reach // g[STEP + axis] < cells:
            return True
    return False


@kernel(forceinline=True)
def _fill_box(g, shifts, source, d, h, w, depth, height, width, channels, box, copies):  # type: ignore[no-untyped-def]
    """Copy what a block's taps meet of ``channels`` channels, the first of which starts at the address ``source``.

    The box is (planes, rows, channels, cells), SPAN planes and rows at most, CELLS apart in each channel.
    """
    origin, size, step, found, apart = w * g[STEP + 2] + g[LOW + 2], g[SOURCE_SIZE + 2], g[SOURCE_STRIDE + 2], 0, g[CELLS]
    cells = (width - g[BLOCK + 2]) * g[STEP + 2] + g[SPAN + 2]
    low = min(cells, max(0, -origin))
    after = max(low, min(cells, size - origin))
    for p in range((depth - g[BLOCK]) * g[STEP] + g[SPAN]):
        if not _is_met(g, shifts, 0, 0, p, depth):
            continue
        plane = _source_index(d * g[STEP] + g[LOW] + p, g[SOURCE_SIZE], g[MODE])
        for r in range((height - g[BLOCK + 1]) * g[STEP + 1] + g[SPAN + 1]):
            if not _is_met(g, shifts, 1, g[TAPS], r, height):
                continue
            row = _source_index(h * g[STEP + 1] + g[LOW + 1] + r, g[SOURCE_SIZE + 1], g[MODE])
            missing = plane == PADDING or row == PADDING
            place = 0 if missing else plane * g[SOURCE_STRIDE] + row * g[SOURCE_STRIDE + 1]
            to = (p * g[SPAN + 1] + r) * channels * apart
            for channel in range(channels):
                copies[found, 0], copies[found, 1], copies[found, 2] = place + channel * g[SOURCE_CHANNEL], to + channel * apart, missing
                found += 1
    copy_lines(source + origin * step * g[SOURCE_ITEM], g[LOADED], step, low, after, cells, copies, found, box, 0)
    if g[MODE] != 0:
        for i in range(found):
            for cell in range(cells):
                if cell < low or cell >= after:
                    index = copies[i, 0] + _source_index(origin + cell, size, g[MODE]) * step
                    box[copies[i, 1] + cell] = load_stored(source + index * g[SOURCE_ITEM], g[LOADED], box)


@kernel(forceinline=True)
def _pack_strip(place, order, lying, group, row, rows, channel, channels, tap, taps, strip):  # type: ignore[no-untyped-def]
    """Pack ``rows`` rows of one K block of a weight that lies as the user keeps it; whether they are finite.

    strip : vectors of rows, each (K, lanes).
    """
    lanes, size = lanes_of(strip), taps * channels
    for first in range(0, rows, lanes):
        source = place + (group * order[1] + (row + first) * order[2] + channel * order[3]) * strip.itemsize
        offsets = order[TAP_OFFSETS + tap : TAP_OFFSETS + tap + taps]
        pack_rows(source, order[2], order[3], min(lanes, rows - first), offsets, channels, lying, strip, first * size, lanes)
    return is_finite(strip[: -(-rows // lanes) * size * lanes])


@kernel(forceinline=True)
def _multiply(  # type: ignore[no-untyped-def]
    g, weight, bias, place, order, lying, finite, group, first, last, channel, channels, tap, taps,
    depth, height, width, box, staged, strip, offsets, runs, run_counts, result,
):  # fmt: skip
    """Add what a box gives for a group's vectors of rows [first, last) to the staged sums; write the last ones to the result.

    Each block of a packed weight is read from far away while the one before is multiplied.

    result : byte address of the block's first pixel in the first row.
    """
    item, lanes, products, across = weight.itemsize, lanes_of(weight), taps * channels, g[RESULT_STRIDE + 2]
    k, tiles, runs_each = channel * g[KERNEL] + tap, -(-width // TILE_ROWS), g[TAPS_AT_ONCE] // 2 + 1
    at_last = k + products == g[CHANNELS] * g[KERNEL]
    rows, row_bytes, turn = min(last * lanes, g[ROWS]) - first * lanes, g[RESULT_CHANNEL] * g[RESULT_ITEM], 0
    each, done, skipping = g[CHANNELS] * g[KERNEL] * lanes, 0, 1
    vector = group * -(-g[ROWS] // lanes) + first
    while done < last - first:
        some = _vectors_at_once(last - first - done)
        next_done, next_k = (done + some, k) if done + some < last - first else (0, k + products)
        if order.size == 0:
            start, stream = address_of(weight) + (g[WEIGHT] + (vector + done) * each + k * lanes) * item, each
            ahead, turns = start + ((next_done - done) * each + (next_k - k) * lanes) * item, _vectors_at_once(last - first - next_done)
        else:
            row, own = (first + done) * lanes, min(some * lanes, g[ROWS] - (first + done) * lanes)
            skipping = _pack_strip(place, order, lying, group, row, own, channel, channels, tap, taps, strip)
            if not skipping:
                finite[0] = 0
            start, stream, turns = address_of(strip), products * lanes, 1
            ahead = start
        for line in range(depth * height):
            plane, row = line // height, line % height
            at = address_of(box) + (plane * g[STEP] * g[SPAN + 1] + row * g[STEP + 1]) * channels * g[CELLS] * item
            to = address_of(staged) + (line * width * g[STAGED_ROW] + done * lanes) * item
            cell = plane * g[RESULT_STRIDE] + row * g[RESULT_STRIDE + 1]
            begin = 0  # of the pixels whose sums are not written yet
            first_run, run_count = (1 + line * runs_each, run_counts[line]) if skipping else (0, min(taps, 1))
            for tile in range(tiles):
                pixel, after = width * tile // tiles, width * (tile + 1) // tiles
                written = result + (cell + begin * across + done * lanes * g[RESULT_CHANNEL]) * g[RESULT_ITEM]
                turn = turn + 1 if turn + 1 < turns else 0
                multiply_turned_tile(
                    runs, first_run, run_count, at + pixel * g[STEP + 2] * item, offsets, g[STEP + 2] * item, after - pixel,
                    start, stream, some, to + pixel * g[STAGED_ROW] * item, g[STAGED_ROW], k, bias, (vector + done) * lanes,
                    ahead + turn * stream * item, written + LINE_BYTES, at_last * row_bytes,
                )  # fmt: skip
                if at_last and (tile + 1 == tiles or width * (tile + 2) // tiles - begin > lanes):
                    sums = (line * width + begin) * g[STAGED_ROW] + done * lanes
                    for i in range(0, min(some * lanes, rows - done * lanes), lanes):
                        store_sums_turned_as(
                            staged, sums + i, g[STAGED_ROW], after - begin, min(lanes, rows - done * lanes - i),
                            written + i * g[RESULT_CHANNEL] * g[RESULT_ITEM], g[RESULT_CHANNEL], across, g[STORED],
                        )  # fmt: skip
                    begin = after
        done += some


@kernel(forceinline=True)
def _vectors_at_once(left):  # type: ignore[no-untyped-def]
    """Of the weight that a tile takes: two where they can all be taken so, as their block of K leaves room in the cache."""
    return min(left, TILE_VECTORS if left % 2 else 2)
