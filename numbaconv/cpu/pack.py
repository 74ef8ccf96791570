"""Panels of an implicit GEMM: cells of the source in the order in which the microkernel reads them, straight from the caller's layout.

A panel is TILE_VECTORS vectors of consecutive result pixels (all spatial axes, flattened) times the products of one K block.
Its *table* says, once for all channels, where each tap finds each vector: entries (offset of lane 0 in elements, mask of lanes),
one for each stretch of lanes whose cells are evenly spaced.  Padding, dilation, the wrap from one row of pixels to the next and
padding modes then cost nothing where a channel is copied.

Elements are converted on the way into the panel; one product takes one channel, two where they go in pairs, or one component of a
complex number (``elements``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..padding import PADDING, source_index
from .compile import kernel
from .gemm import LINE_BYTES, TILE_VECTORS
from .pack_tap import EVEN, SPREAD, copy_tap
from .simd import lanes_of

# Fields of the geometry, an int64 array: first three axes each, then single numbers.  Strides and steps count elements.
SOURCE_SIZE, SOURCE_STRIDE, RESULT_SIZE, RESULT_STRIDE, STEP, TAPS = range(0, 18, 3)
MODE, SPACING, LANE_STEP, SOURCE_CHANNEL, SLOTS, TAPS_AT_ONCE, TOGETHER, COMPONENTS, FIELDS = range(18, 27)

NOWHERE = -(1 << 62)

_source_index = kernel(forceinline=True)(source_index)


# ---- tables ------------------------------------------------------------------------------------------------------------
@kernel()
def fill_tables(geometry, shifts, first, last, pixels, first_tap, taps, lanes, table, counts, origins):  # type: ignore[no-untyped-def]
    """Tables of the panels [first, last) of an image of ``pixels`` pixels, for ``taps`` taps from ``first_tap`` on.

    shifts : int64 array; the source index along an axis is result index * STEP + shift, one shift a tap, axis after axis.
    table, counts : int64 arrays to be filled, TAPS_AT_ONCE * TILE_VECTORS * SLOTS rows of 2 and TAPS_AT_ONCE numbers a panel: the
        entries, and how many slots of each vector a tap uses; a count of 0 says that the tap reads nothing but padding.
    origins : int64 array of 5 numbers a panel, the first NOWHERE before: what its table was made for (column, depth and row of the
        first pixel; first tap), and how far from there the panel's cells are.  Away from the borders of depth and height a table
        serves every panel that begins in its column.
    """
    g = geometry
    high, wide, each, width = g[TAPS + 1], g[TAPS + 2], TILE_VECTORS * g[SLOTS], TILE_VECTORS * lanes
    segments, fills = np.empty((width, 6), np.int64), np.empty(TILE_VECTORS, np.int64)
    pieces = np.empty((min(wide, taps), width + 1, 4), np.int64)
    for number in range(first, last):
        panel = number - first
        if _is_known(g, shifts, number * width, min(width, pixels - number * width), width, first_tap, origins, panel):
            continue
        found = _row_segments(g, number * width, min(width, pixels - number * width), lanes, segments)
        kw, kh, kd = first_tap % wide, first_tap // wide % high, first_tap // wide // high
        for i in range(kw, kw + min(wide, taps)):
            _column_pieces(g, segments, found, shifts[g[TAPS] + high + i % wide], pieces, i - kw)
        column: Any = np.int64(0)  # a literal 0 would have its own version of _tap_entries compiled
        at = panel * g[TAPS_AT_ONCE]
        for tap in range(at, at + taps):
            if tap == at or kw == 0:
                _place_rows(g, segments, found, shifts[kd], shifts[g[TAPS] + kh])
            counts[tap] = _tap_entries(segments, pieces, column, table, tap * each, g[SLOTS], fills)
            column, kw = column + 1, kw + 1
            if column == wide:
                column = 0
            if kw == wide:
                kw, kh = 0, kh + 1
                if kh == high:
                    kh, kd = 0, kd + 1


@kernel(forceinline=True)
def _is_known(g, shifts, pixel, pixels, width, first_tap, origins, panel):  # type: ignore[no-untyped-def]
    """Whether the table that a panel has serves these pixels too: if so its distance is set, if not what the next one is made for."""
    high, across = g[RESULT_SIZE + 1], g[RESULT_SIZE + 2]
    d, h, w = pixel // across // high, pixel // across % high, pixel % across
    bottom = h + (w + pixels - 1) // across
    taps_d, taps_h = g[TAPS], g[TAPS + 1]
    inside = pixels == width and bottom < high and taps_d > 0 and taps_h > 0
    if inside:
        near, far = min(shifts[0], shifts[taps_d - 1]), max(shifts[0], shifts[taps_d - 1])
        inside = d * g[STEP] + near >= 0 and d * g[STEP] + far < g[SOURCE_SIZE]
        near, far = min(shifts[taps_d], shifts[taps_d + taps_h - 1]), max(shifts[taps_d], shifts[taps_d + taps_h - 1])
        inside = inside and h * g[STEP + 1] + near >= 0 and bottom * g[STEP + 1] + far < g[SOURCE_SIZE + 1]
    if inside and origins[panel, 0] == w and origins[panel, 3] == first_tap:
        down, deep = (h - origins[panel, 2]) * g[STEP + 1], (d - origins[panel, 1]) * g[STEP]
        origins[panel, 4] = deep * g[SOURCE_STRIDE] + down * g[SOURCE_STRIDE + 1]
        return True
    origins[panel, 0], origins[panel, 1], origins[panel, 2] = w if inside else NOWHERE, d, h
    origins[panel, 3], origins[panel, 4] = first_tap, 0
    return False


@kernel(forceinline=True)
def _row_segments(g, pixel, pixels, lanes, segments):  # type: ignore[no-untyped-def]
    """Stretches of lanes in one vector and one row of pixels: (vector, lane, length, source index of the first pixel before the shift)."""
    height, width = g[RESULT_SIZE + 1], g[RESULT_SIZE + 2]
    d, h, w = pixel // width // height, pixel // width % height, pixel % width
    done = found = 0
    while done < pixels:
        lane = done % lanes
        length = min(width - w, lanes - lane, pixels - done)
        segments[found, 0], segments[found, 1], segments[found, 2] = done // lanes, lane, length
        segments[found, 3], segments[found, 4], segments[found, 5] = d * g[STEP], h * g[STEP + 1], w * g[STEP + 2]
        found, done, w = found + 1, done + length, w + length
        if w == width:
            w, h = 0, h + 1
            if h == height:
                h, d = 0, d + 1
    return found


@kernel(forceinline=True)
def _column_pieces(g, segments, found, shift, pieces, which):  # type: ignore[no-untyped-def]
    """What the taps of one kernel column read of each segment's row: pieces (vector, segment, offset of lane 0 in the row, mask).

    pieces[which, 0, 0] is their number; those of zero padding have none.
    """
    step, size, stride, even, mode = g[STEP + 2], g[SOURCE_SIZE + 2], g[SOURCE_STRIDE + 2], g[SPACING] == EVEN, g[MODE]
    count = 0
    for s in range(found):
        lane, length, column = segments[s, 1], segments[s, 2], segments[s, 5] + shift
        low = 0 if column >= 0 else min(length, (-column + step - 1) // step)
        high = length if column + (length - 1) * step < size else max(low, (size - column + step - 1) // step)
        if low < high:
            count += 1
            pieces[which, count, 0], pieces[which, count, 1] = segments[s, 0], s
            pieces[which, count, 2], pieces[which, count, 3] = (column - lane * step) * stride, _lanes(lane + low, lane + high, even)
        if mode != 0:
            for i in range(length):
                if i < low or i >= high:
                    cell = _source_index(column + i * step, size, mode)
                    count += 1
                    pieces[which, count, 0], pieces[which, count, 1] = segments[s, 0], s
                    pieces[which, count, 2], pieces[which, count, 3] = (
                        (cell - (lane + i) * step) * stride,
                        _lanes(lane + i, lane + i + 1, even),
                    )
    pieces[which, 0, 0] = count


@kernel(forceinline=True)
def _lanes(first, last, even):  # type: ignore[no-untyped-def]
    """Mask of the lanes [first, last)."""
    if even:
        return ((1 << 2 * last) - (1 << 2 * first)) & 0x5555555555555555
    return (1 << last) - (1 << first)


@kernel(forceinline=True)
def _place_rows(g, segments, found, shift_d, shift_h):  # type: ignore[no-untyped-def]
    """segments[s, 5] = offset of the source row that the taps of one kernel row meet, or NOWHERE."""
    for s in range(found):
        d = _source_index(segments[s, 3] + shift_d, g[SOURCE_SIZE], g[MODE])
        h = _source_index(segments[s, 4] + shift_h, g[SOURCE_SIZE + 1], g[MODE])
        inside = d != PADDING and h != PADDING
        segments[s, 5] = d * g[SOURCE_STRIDE] + h * g[SOURCE_STRIDE + 1] if inside else NOWHERE


@kernel(forceinline=True)
def _tap_entries(segments, pieces, which, table, first, slots, fills):  # type: ignore[no-untyped-def]
    """Entries of one tap; how many of each vector are used.  Pieces at one offset are one entry: rows may follow one another in memory."""
    for vector in range(TILE_VECTORS):
        fills[vector] = 0
    for piece in range(1, pieces[which, 0, 0] + 1):
        row = segments[pieces[which, piece, 1], 5]
        if row != NOWHERE:
            vector, offset = pieces[which, piece, 0], row + pieces[which, piece, 2]
            at = first + vector * slots + fills[vector]
            if fills[vector] > 0 and table[at - 1, 0] == offset:
                table[at - 1, 1] |= pieces[which, piece, 3]
            else:
                table[at, 0], table[at, 1] = offset, pieces[which, piece, 3]
                fills[vector] += 1
    return _even_out(fills, slots, table, first)


@kernel(forceinline=True)
def _even_out(fills, slots, table, first):  # type: ignore[no-untyped-def]
    """Give every vector the same number of entries, one that has an unrolled loop where there is one: the number."""
    most = anchor = 0
    for vector in range(TILE_VECTORS):
        if fills[vector] > most:
            most, anchor = fills[vector], first + vector * slots
    if most == 3:
        most = 4
    for vector in range(TILE_VECTORS):
        for slot in range(fills[vector], most):
            at = first + vector * slots + slot
            table[at, 0], table[at, 1] = table[anchor, 0], 0  # reads nothing, from an address that is somebody's
    return most


# ---- panels ------------------------------------------------------------------------------------------------------------
@kernel(forceinline=True)
def products_of(g, channels):  # type: ignore[no-untyped-def]
    """Products of so many channels with one tap."""
    return -(-channels // g[TOGETHER]) * g[COMPONENTS]


@kernel(forceinline=True)
def pack_panel(geometry, table, counts, origins, number, taps, source, channels, skipping, like, panel, runs):  # type: ignore[no-untyped-def]
    """Fill a panel with what ``taps`` tabled taps of ``channels`` channels read, tap after tap; its table is the one at ``number``.

    source : byte address of the first channel, of elements as in the array ``like``.  Returns the number of runs (first k, number of
    products) written to ``runs``: one with everything, or more where taps are left out, with ``skipping``, because they read padding
    alone.
    """
    g = geometry
    width, first, products = TILE_VECTORS * lanes_of(panel), number * g[TAPS_AT_ONCE], products_of(g, channels)
    source += origins[number, 4] * like.itemsize
    found = position = 0
    going = False
    for tap in range(first, first + taps):
        if counts[tap] == 0 and skipping:
            going = False
            continue
        if not going:
            runs[2 * found], runs[2 * found + 1] = (tap - first) * products, 0
            found += 1
            going = True
        runs[2 * found - 1] += products
        entry = tap * TILE_VECTORS * g[SLOTS]
        copy_tap(g[SPACING], g[LANE_STEP], source, g[SOURCE_CHANNEL], channels, table, entry, g[SLOTS], counts[tap], panel, position, like)
        position += products * width
    return found


@kernel(forceinline=True)
def lines_of(g, counts, number):  # type: ignore[no-untyped-def]
    """How many cache lines the first tap of the panel at ``number`` begins to read in each channel; none where cells are gathered."""
    return 0 if g[SPACING] == SPREAD else (g[SPACING] + 1) * TILE_VECTORS * counts[number * g[TAPS_AT_ONCE]]


@kernel(forceinline=True)
def line_of(g, table, counts, origins, number, line, like):  # type: ignore[no-untyped-def]
    """Bytes from a channel's first cell to one of these lines."""
    tap, each = number * g[TAPS_AT_ONCE], g[SPACING] + 1
    entry, count = line // each, counts[tap]
    entry = (tap * TILE_VECTORS + entry // count) * g[SLOTS] + entry % count
    return (table[entry, 0] + origins[number, 4]) * like.itemsize + line % each * LINE_BYTES
