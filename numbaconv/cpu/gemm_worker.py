"""The kernels of implicit GEMM: tasks that pack a panel of im2col, multiply all rows of the weight with it, and write what they sum."""

from __future__ import annotations

import numpy as np

from . import pack
from .compile import kernel
from .elements import store_sums
from .gemm import TILE_ROWS, TILE_VECTORS, multiply_tile
from .pack import fill_tables, line_of, lines_of, pack_panel, products_of
from .simd import address_of, lanes_of
from .threads import next_task

ALIGNMENT = 64
NEVER, NOTHING = 1 << 62, -1

# Fields of a part's geometry beyond those of the panels.
(
    IMAGES, GROUPS, CHANNELS, ROWS, PIXELS, KERNEL, SOURCE_IMAGE, RESULT, RESULT_IMAGE, RESULT_CHANNEL, SCATTERED, STAGED, CHANNELS_AT_ONCE,
    PANELS, SHORT, RUNS, SPLITS, LAST_TASK, SHIFTS, WEIGHT, FIELDS,
) = range(pack.FIELDS, pack.FIELDS + 21)  # fmt: skip


@kernel()
def work(source, result, parts, shifts, weight, bias, skipping, place, orders, source_like, result_like, counter):  # type: ignore[no-untyped-def]
    """Tasks of any part until none is left: each some panels of one image and group, and a share of the rows.

    parts : int64 array, a row of fields each; shifts : int64 array, those of all parts.
    weight, bias : arrays of the dtype of the sums, or of uint32 where the weight is of pairs; source, result : int64 byte addresses;
        source_like, result_like : empty arrays that tell the dtypes there.
    skipping : whether taps that read nothing but padding may be left out.
    place, orders : int64 byte address and array: 0 and empty, or where a weight of one tap is read as the user keeps it: at ``place``, and
        from WEIGHT of each part on where its tap begins, and the strides of a group, a row and a channel (elements).
    """
    width, spare = TILE_VECTORS * lanes_of(weight), ALIGNMENT // weight.itemsize
    panel_size = stage_size = table_size = tables = panels = 0
    for part in range(len(parts)):
        g = parts[part]
        taps = g[PANELS] * g[pack.TAPS_AT_ONCE]
        panel_size = max(panel_size, _panel_size(g, width))
        stage_size = max(stage_size, g[STAGED] * g[PANELS] * _stage_size(g, width))
        table_size, tables, panels = max(table_size, taps * TILE_VECTORS * g[pack.SLOTS]), max(tables, taps), max(panels, g[PANELS])
    panel = np.empty(panel_size + spare, weight.dtype)
    panel = panel[-panel.ctypes.data // weight.itemsize % spare :]
    staged, table, counts = np.empty(stage_size, weight.dtype), np.empty((table_size, 2), np.int64), np.empty(tables, np.int64)
    runs = np.empty(tables + 2, np.int64)
    origins, tabled = np.empty((panels, 5), np.int64), np.empty(3, np.int64)
    tabled[0], part = -1, 0
    while True:
        task = next_task(counter)
        if task >= parts[len(parts) - 1, LAST_TASK]:
            break
        while task >= parts[part, LAST_TASK]:
            part += 1
        if tabled[0] != part:
            tabled[0], tabled[1] = part, -1
            origins[:, 0] = pack.NOWHERE
        g = parts[part]
        task -= parts[part - 1, LAST_TASK] if part > 0 else 0
        _compute(
            g, shifts[g[SHIFTS] :], weight, bias, source, result + g[RESULT], skipping, place, orders[g[WEIGHT] if orders.size else 0 :],
            source_like, result_like, task, panel, staged, table, counts, runs, origins, tabled,
        )  # fmt: skip


@kernel(forceinline=True)
def _panel_size(g, width):  # type: ignore[no-untyped-def]
    return products_of(g, g[CHANNELS_AT_ONCE]) * g[pack.TAPS_AT_ONCE] * width


@kernel(forceinline=True)
def _stage_size(g, width):  # type: ignore[no-untyped-def]
    """Elements of the staged results of one panel."""
    return width * (g[ROWS] + TILE_ROWS)


@kernel(forceinline=True)
def _compute(  # type: ignore[no-untyped-def]
    g, shifts, weight, bias, source, result, skipping, place, order, source_like, result_like,
    task, panel, staged, table, counts, runs, origins, tabled,
):  # fmt: skip
    """One task of a part, in the memory of its thread.

    tabled : int64 array: the part, the first panel and the first tap that the tables are of.
    """
    lanes = lanes_of(weight)
    width = TILE_VECTORS * lanes
    stage, units = _stage_size(g, width), -(-g[ROWS] // TILE_ROWS)
    split, member = task % g[SPLITS], task // g[SPLITS]
    run, member = g[RUNS] - 1 - member // (g[IMAGES] * g[GROUPS]), member % (g[IMAGES] * g[GROUPS])  # the longest first
    image, group = member // g[GROUPS], member % g[GROUPS]
    first = run * g[PANELS] - min(run, g[SHORT])
    last = min(first + g[PANELS] - (1 if run < g[SHORT] else 0), -(-g[PIXELS] // width))
    first_row, last_row = units * split // g[SPLITS], units * (split + 1) // g[SPLITS]
    source += (image * g[SOURCE_IMAGE] + group * g[CHANNELS] * g[pack.SOURCE_CHANNEL]) * source_like.itemsize
    result += (image * g[RESULT_IMAGE] + group * g[ROWS] // g[pack.COMPONENTS] * g[RESULT_CHANNEL]) * result_like.itemsize
    apart = (stage if g[STAGED] else width) * weight.itemsize
    for channel in range(0, g[CHANNELS], g[CHANNELS_AT_ONCE]):
        channels, at = min(g[CHANNELS_AT_ONCE], g[CHANNELS] - channel), source + channel * g[pack.SOURCE_CHANNEL] * source_like.itemsize
        for tap in range(0, max(g[KERNEL], 1), g[pack.TAPS_AT_ONCE]):
            taps = min(g[pack.TAPS_AT_ONCE], g[KERNEL] - tap)
            k = products_of(g, channel) * g[KERNEL] + tap * g[pack.COMPONENTS]
            if first != tabled[1] or tap != tabled[2]:
                fill_tables(g, shifts, first, last, g[PIXELS], tap, taps, lanes, table, counts, origins)
                tabled[1], tabled[2] = first, tap
            into = address_of(staged) if g[STAGED] else result + first * apart
            for number in range(first, last):
                i = number - first
                run_count = pack_panel(g, table, counts, origins, i, taps, at, channels, skipping, source_like, panel, runs)
                next_i = i + 1 if number + 1 < last else 0
                next_at = at if next_i else at + channels * g[pack.SOURCE_CHANNEL] * source_like.itemsize
                _multiply_panel(
                    g, weight, bias, place, order, group, k, first_row, last_row, into, number, panel, runs, run_count,
                    table, counts, origins, next_i if taps == 1 else NOTHING, next_at, channels, i == 0, source_like,
                )  # fmt: skip
                into += apart
    if g[STAGED]:
        _unstage(g, staged, stage, first_row * TILE_ROWS, min(last_row * TILE_ROWS, g[ROWS]), result, first, last, result_like)


@kernel(forceinline=True)
def _multiply_panel(  # type: ignore[no-untyped-def]
    g, weight, bias, place, order, group, k, first_row, last_row, into, number, panel, runs, run_count,
    table, counts, origins, next_i, next_at, channels, fresh, like,
):  # fmt: skip
    """Row blocks [first_row, last_row) of a group's weight, from product ``k`` on, times a panel, into the result or the staged copy.

    into : byte address of the panel's first pixel there.
    next_i, next_at : which table the panel that is packed next has, or NOTHING, and the address of its first channel: of its lines one
        after the other is asked for, in all channels, in the time of one tile each.
    fresh : whether the panel is the first to take this K block.
    """
    width, between = TILE_VECTORS * lanes_of(weight), g[pack.SOURCE_CHANNEL] * like.itemsize
    columns = min(width, g[PIXELS] - number * width)
    step, products = width if g[STAGED] else g[RESULT_CHANNEL], products_of(g, g[CHANNELS]) * g[KERNEL]
    row_blocks, factor_row, factor_step, of_block = -(-g[ROWS] // TILE_ROWS), 1, TILE_ROWS, products * TILE_ROWS
    factors = address_of(weight) + (g[WEIGHT] + group * row_blocks * of_block) * weight.itemsize
    if order.size:
        factor_row, factor_step, of_block = order[2], order[3], order[2] * TILE_ROWS
        factors = place + (order[0] + group * order[1]) * weight.itemsize
    factor_row, factor_step, of_block = factor_row * weight.itemsize, factor_step * weight.itemsize, of_block * weight.itemsize
    factors += k * factor_step
    for row in range(first_row, last_row):
        address, rows = into + row * TILE_ROWS * step * weight.itemsize, min(TILE_ROWS, g[ROWS] - row * TILE_ROWS)
        ahead, ahead_step = address, 0
        if order.size and fresh:  # memory that no cache foresees, if it is that of a transposed weight
            ahead, ahead_step = factors + (row + 2) * of_block, factor_step
        elif next_i != NOTHING and row - first_row < lines_of(g, counts, next_i):
            ahead, ahead_step = next_at + line_of(g, table, counts, origins, next_i, row - first_row, like), between
        multiply_tile(
            runs, run_count, factors + row * of_block, factor_row, factor_step, panel, address, step, rows, columns,
            k, bias, (group * row_blocks + row) * TILE_ROWS, ahead, ahead_step,
        )  # fmt: skip


@kernel(forceinline=True)
def _unstage(g, staged, stage, first_row, last_row, result, first, last, like):  # type: ignore[no-untyped-def]
    """Round or truncate the staged panels [first, last), each (rows, width), into the result; one panel takes ``stage`` elements."""
    for number in range(first, last):
        _unstage_panel(g, staged, (number - first) * stage, first_row, last_row, result, number, like)


@kernel(forceinline=True)
def _unstage_panel(g, staged, start, first_row, last_row, result, number, like):  # type: ignore[no-untyped-def]
    width = TILE_VECTORS * lanes_of(staged)
    pixel = number * width
    across, deep, stride = g[pack.RESULT_SIZE + 2], g[pack.RESULT_SIZE + 1], g[pack.RESULT_STRIDE + 2]
    if not g[SCATTERED]:
        across, deep, stride = g[PIXELS], 1, 1
    d, h, w = pixel // across // deep, pixel // across % deep, pixel % across
    done, pixels = 0, min(width, g[PIXELS] - pixel)
    while done < pixels:
        length = min(across - w, pixels - done)
        offset = d * g[pack.RESULT_STRIDE] + h * g[pack.RESULT_STRIDE + 1] + w * stride
        for row in range(first_row, last_row, g[pack.COMPONENTS]):
            address = result + (row // g[pack.COMPONENTS] * g[RESULT_CHANNEL] + offset) * like.itemsize
            store_sums(staged, start + row * width + done, width, length, address, stride, like)
        done, w = done + length, w + length
        if w == across:
            w, h = 0, h + 1
        if h == deep:
            h, d = 0, d + 1
