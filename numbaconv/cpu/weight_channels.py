"""Products of a strip whose lanes are output channels: the panel of output gradients, tiles, and the padding that they leave out.

See ``weight_grad``.
"""

from __future__ import annotations

from .compile import kernel
from .copies import transpose
from .gemm import TILE_ROWS, TILE_VECTORS
from .rows import inside
from .simd import address_of, lanes_of

# isort: off
from .weight_fields import DILATION, GRAD, GRAD_MERGES, IN, IN_PLACE, ITEM, KERNEL, LOADED, PAD, SOURCE, STRIDE, SUMS_STEP, TAPS_APART

# isort: on
from .weight_stores import store_until
from .weight_tiles import AHEAD, add_channel_tile, are_finite

SPARE = TILE_ROWS + AHEAD  # offsets that are repeated after the last: more than the sides of dot tiles


@kernel(forceinline=True)
def add_channel_lanes(g, grad, negated, filters, planes, rows, columns, source, taps, at, accumulate, result, work):  # type: ignore[no-untyped-def]
    """Add a strip's products to sums[at:], (taps, filters): the taps of some channels are rows of tiles, filters their lanes.

    Where taps are apart, channels are a tile's rows, and pixels that a tap meets outside the input are left out: their products are added
    only if the output gradients in the panel are not all finite.  Where ``result`` is the address of the block in dW and not 0, the sums
    are written there, between the products: memory is slow.
    """
    panel, sums, apart = work.panel, work.sums, g[TAPS_APART]
    lanes, kw, levels = lanes_of(sums), g[KERNEL + 2], g[KERNEL] * g[KERNEL + 1]
    step = g[STRIDE + 2] * g[SOURCE + 5] if g[IN_PLACE] else 1
    vectors = -(-filters // lanes)
    panels = -(-vectors // TILE_VECTORS)
    for p in range(panels):
        first, last = vectors * p // panels, vectors * (p + 1) // panels
        width = (last - first) * lanes
        for vector in range(first, last):
            some = min(lanes, filters - vector * lanes)
            address = grad + vector * lanes * g[GRAD + 2] * g[ITEM]
            pack_vector(g, address, g[GRAD + 2], some, planes, rows, columns, panel, (vector - first) * lanes, width)
        if negated:
            negate(panel, planes * rows * columns * width)
        finite = apart == 1 or are_finite(panel, planes * rows * columns * (last - first))
        stored, row, row_count, column, column_count = 0, 0, planes * rows, 0, columns
        for r in range(0, taps // apart, TILE_ROWS):
            for tap in range(apart):
                cell, place = tap * (taps // apart + SPARE) + r, at + (r * apart + tap) * g[SUMS_STEP] + first * lanes
                if apart > 1:
                    row, row_count = work.met[tap // kw, 0], work.met[tap // kw, 1]
                    column, column_count = work.met[levels + tap % kw, 0], work.met[levels + tap % kw, 1]
                ahead = cell + TILE_ROWS if p == 0 and g[IN_PLACE] else cell
                if row_count * column_count > 0:
                    add_channel_tile(
                        source, work.cells, cell, ahead, work.starts, row, row_count, column, column_count, step, panel, last - first, sums,
                        place, apart * g[SUMS_STEP], accumulate,
                    )  # fmt: skip
                elif not accumulate:
                    _clear_tile(sums, place, apart * g[SUMS_STEP], width)
                if result != 0:
                    done = ((r - TILE_ROWS) * apart + (tap + 1) * TILE_ROWS) // lanes * lanes  # rows that are, where taps are apart, too
                    stored = store_until(g, sums, at, stored, done, first * lanes, min(last * lanes, filters), result)
            if not finite:
                last_row = min((r + TILE_ROWS) * apart, taps)
                _add_padding(g, panel, width, planes * rows, columns, r * apart, last_row, at + first * lanes, work)
        if result != 0:
            store_until(g, sums, at, stored, taps, first * lanes, min(last * lanes, filters), result)


@kernel()
def pack_vector(g, grad, step, filters, planes, rows, columns, panel, lane, width):  # type: ignore[no-untyped-def]
    """Write the output gradients of one vector of filters, ``step`` elements apart, as panel[pixel * width + lane + filter]."""
    item, across, lanes = g[ITEM], g[GRAD + 5], lanes_of(panel)
    if g[GRAD_MERGES]:
        planes, rows, columns = 1, 1, planes * rows * columns
    for d in range(planes):
        for h in range(rows):
            row = grad + (d * g[GRAD + 3] + h * g[GRAD + 4]) * item
            pixel = (d * rows + h) * columns
            for q in range(0, columns, lanes):
                source, target = row + q * across * item, address_of(panel) + ((pixel + q) * width + lane) * panel.itemsize
                transpose(source, g[LOADED], step, across, filters, min(lanes, columns - q), target, width, panel)


@kernel()
def negate(panel, count):  # type: ignore[no-untyped-def]
    for i in range(count):
        panel[i] = -panel[i]


# ---- padding -----------------------------------------------------------------------------------------------------------
@kernel()
def find_met(g, corner, planes, rows, columns, work):  # type: ignore[no-untyped-def]
    """Which rows of output pixels a kernel plane and row meets inside the input, and which columns a kernel column."""
    kd, kh, kw = g[KERNEL], g[KERNEL + 1], g[KERNEL + 2]
    starts, met, found = work.starts, work.met, planes * rows
    for i in range(kd):
        first_plane, last_plane = _met(g, 0, i, corner[0], planes)
        for j in range(kh):
            first_row, last_row = _met(g, 1, j, corner[1], rows)
            met[i * kh + j, 0], met[i * kh + j, 1] = found, (last_plane - first_plane) * (last_row - first_row)
            for d in range(first_plane, last_plane):
                for h in range(first_row, last_row):
                    starts[2 * found], starts[2 * found + 1] = starts[2 * (d * rows + h)], starts[2 * (d * rows + h) + 1]
                    found += 1
    for k in range(kw):
        first, last = _met(g, 2, k, corner[2], columns)
        met[kd * kh + k, 0], met[kd * kh + k, 1] = first, last - first


@kernel()
def _met(g, axis, tap, start, count):  # type: ignore[no-untyped-def]
    """The range of ``count`` outputs from ``start`` on whose cell at a tap lies inside the input along an axis."""
    first = start * g[STRIDE + axis] - g[PAD + axis] + tap * g[DILATION + axis]
    return inside(first, g[STRIDE + axis], count, g[IN + axis])


@kernel()
def _clear_tile(sums, at, step, width):  # type: ignore[no-untyped-def]
    for r in range(TILE_ROWS):
        sums[at + r * step : at + r * step + width] = 0


@kernel()
def _add_padding(g, panel, width, rows, columns, first, last, at, work):  # type: ignore[no-untyped-def]
    """Add the products of padded zeros to the sums of rows [first, last) of products, and of the panel's filters."""
    sums, met, kw, levels = work.sums, work.met, g[KERNEL + 2], g[KERNEL] * g[KERNEL + 1]
    for tap in range(g[TAPS_APART]):
        row, column = met[tap // kw, 0], met[levels + tap % kw, 0]
        last_row, last_column = row + met[tap // kw, 1], column + met[levels + tap % kw, 1]
        for j in range(rows):
            inside_rows = False
            for i in range(row, last_row):
                inside_rows = inside_rows or work.starts[2 * i + 1] == j * columns
            for q in range(columns):
                if not (inside_rows and column <= q < last_column):
                    for lane in range(width):
                        zero = panel[(j * columns + q) * width + lane] * 0
                        if zero != 0:
                            for r in range(first + tap, last, g[TAPS_APART]):
                                sums[at + r * g[SUMS_STEP] + lane] += zero
