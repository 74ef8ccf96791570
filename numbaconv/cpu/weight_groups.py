"""Weight gradients of many groups of few channels: lanes are groups, so that nothing is summed over lanes and padding costs nothing.

Input cells and output gradients of as many groups as a vector has lanes are transposed, a vector a pixel; a tile multiplies the output
gradient of each pixel with the cells of GROUP_TILE taps.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from .compile import kernel
from .copies import spread
from .rows import inside
from .simd import Vectors, data_pointer, int64, lanes_of

# isort: off
from .weight_fields import (
    BOX, CHANNEL, CHANNELS, DILATION, IN, ITEM, KERNEL, LOADED, PAD, PLANE, ROW, SEGMENTS, SOURCE, STRIDE,
)  # fmt: skip

# isort: on
from .weight_tiles import pixel_loops

GROUP_TILE = 9  # taps: a tile's sums, and an address each


@intrinsic
def group_tile(typingctx, cells, offsets, first, starts, row_count, columns, panel, sums, at, accumulate):  # type: ignore[no-untyped-def]
    """Store one tile of a weight gradient, or add it where ``accumulate`` is true.

    sums[at + t * lanes + l] (+)= sum over rows j < row_count, columns q < columns of
        cells[offsets[first + t] + starts[2 * j] + q * lanes + l] * panel[(starts[2 * j + 1] + q) * lanes + l]

    for t < GROUP_TILE and l < lanes.  cells, panel, sums : one-dimensional contiguous arrays of one dtype; offsets, starts : int64 arrays.
    """
    n = types.int64
    return types.void(cells, offsets, n, starts, n, n, panel, sums, n, types.boolean), _emit_group_tile


def _emit_group_tile(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b, (_, _, first, _, row_count, columns, _, _, at, accumulate) = builder, arguments
    v = Vectors(b, signature.args[0].dtype)

    def element(argument: int, offset: Any) -> Any:
        return b.gep(data_pointer(context, b, signature.args[argument], arguments[argument]), [offset])

    taps = [element(0, b.load(element(1, b.add(first, int64(t))))) for t in range(GROUP_TILE)]

    def multiply(number: Any, cell: Any, place: Any, totals: list[Any]) -> list[Any]:
        grad = v.load(place)
        return [v.multiply_add(grad, v.load(v.at(tap, cell)), total) for tap, total in zip(taps, totals)]

    panel, sums = element(6, int64(0)), element(7, at)
    totals = pixel_loops(v, element(3, int64(0)), row_count, int64(0), columns, int64(v.lanes), panel, v.lanes, GROUP_TILE, multiply)
    places = [v.at(sums, t * v.lanes) for t in range(GROUP_TILE)]
    with b.if_else(accumulate) as (add, start):
        with add:
            for total, place in zip(totals, places):
                v.store(v.add(v.load(place), total), place)
        with start:
            for total, place in zip(totals, places):
                v.store(total, place)
    return context.get_dummy_value()


@kernel()
def clear_padding(g, segments, w0, columns, lines, found, scratch):  # type: ignore[no-untyped-def]
    """Zero the cells of a strip's scratch that lie outside the input; all others are written for every vector of groups."""
    lanes = lanes_of(scratch)
    for s in range(g[SEGMENTS + 2], len(segments)):
        _, low, high, length = _stretch(g, 2, segments, s, w0, columns)
        for c in range(g[CHANNELS]):
            for i in range(found):
                place = c * g[CHANNEL] + lines[i, 1] + segments[s, 1] * lanes
                scratch[place : place + (length if lines[i, 2] else low) * lanes] = 0
                if not lines[i, 2]:
                    scratch[place + high * lanes : place + length * lanes] = 0


@kernel()
def place_window(g, segments, h0, w0, rows, columns, window, placed, like):  # type: ignore[no-untyped-def]
    """Fill ``window`` with the places, in a plane of the scratch, of the input cells from the first to the last that a strip's taps read,
    row after row.  Returns its first row, number of rows, first column, and number of columns.  A cell that no tap reads goes behind the
    plane's lines, where there is room for one.

    placed : the corner of the strip whose places ``window`` has, -1 at first
    """
    lanes = lanes_of(like)
    top, height = _span(g, 1, h0, rows)
    left, width = _span(g, 2, w0, columns)
    if placed[0] == h0 and placed[1] == w0:
        return top, height, left, width
    placed[0], placed[1] = h0, w0
    spare, row = g[PLANE] - lanes, window[height * width : (height + 1) * width]
    row[:] = -1
    for s in range(g[SEGMENTS + 2], len(segments)):
        column, low, high, _ = _stretch(g, 2, segments, s, w0, columns)
        for q in range(low, high):
            row[column + q * g[STRIDE + 2] - left] = (segments[s, 1] + q) * lanes
    window[: height * width] = spare
    for t in range(g[SEGMENTS + 1], g[SEGMENTS + 2]):
        first, low, high, _ = _stretch(g, 1, segments, t, h0, rows)
        for j in range(low, high):
            start, line = (first + j * g[STRIDE + 1] - top) * width, (segments[t, 1] + j) * g[ROW]
            for i in range(width):
                window[start + i] = line + row[i] if row[i] >= 0 else spare
    return top, height, left, width


@kernel()
def _stretch(g, axis, segments, s, start, count):  # type: ignore[no-untyped-def]
    """Of a segment's cells for ``count`` outputs from ``start`` on: input index of the first, the range inside the input, all."""
    stride = g[STRIDE + axis]
    first, length = start * stride - g[PAD + axis] + segments[s, 0], segments[s, 2] - g[BOX + axis] + count
    low, high = inside(first, stride, length, g[IN + axis])
    return first, low, high, length


@kernel()
def _span(g, axis, start, count):  # type: ignore[no-untyped-def]
    """The first input cell that ``count`` outputs from ``start`` on read, and how many there are to the last."""
    first = start * g[STRIDE + axis] - g[PAD + axis]
    last = first + (count - 1) * g[STRIDE + axis] + (g[KERNEL + axis] - 1) * g[DILATION + axis]
    return max(first, 0), max(0, min(last, g[IN + axis] - 1) - max(first, 0) + 1)


@kernel(forceinline=True)
def copy_groups(g, segments, source, groups, d0, planes, top, height, left, width, window, scratch):  # type: ignore[no-untyped-def]
    """Fill the scratch, but for padding, with the cells of a vector of groups; ``source`` is the byte address of the first's channel."""
    lanes, item, across = lanes_of(scratch), g[ITEM], g[SOURCE + 5]
    runs, cells = height, width
    if g[SOURCE + 4] == width * across:
        runs, cells = 1, height * width
    for s in range(g[SEGMENTS], g[SEGMENTS + 1]):
        depth, low, high, _ = _stretch(g, 0, segments, s, d0, planes)
        for i in range(low, high):
            for c in range(g[CHANNELS]):
                offset = c * g[SOURCE + 2] + (depth + i * g[STRIDE]) * g[SOURCE + 3] + top * g[SOURCE + 4] + left * across
                place = c * g[CHANNEL] + (segments[s, 1] + i) * g[PLANE]
                for r in range(runs):
                    start = source + (offset + r * g[SOURCE + 4]) * item
                    for q in range(0, cells, lanes):
                        some = min(lanes, cells - q)
                        spread(
                            start + q * across * item, g[LOADED], g[CHANNELS] * g[SOURCE + 2], across, groups, some, window, r * cells + q,
                            scratch, place,
                        )  # fmt: skip
