"""The kernels of implicit GEMM: tasks that pack a panel of im2col, multiply all rows of the weight with it, and write what they sum."""

from __future__ import annotations

import numpy as np

from . import pack
from .compile import kernel
from .elements import store_sums, store_sums_turned
from .gemm import LINE_BYTES, TILE_ROWS, TILE_VECTORS, multiply_tile
from .pack import fill_tables, pack_panel, products_of
from .simd import address_of, lanes_of
from .threads import next_task

ALIGNMENT = 64
NEVER = 1 << 62

# Fields of the geometry beyond those of the panels.
(
    IMAGES, GROUPS, CHANNELS, ROWS, PIXELS, KERNEL, SOURCE, SOURCE_IMAGE, RESULT, RESULT_IMAGE, RESULT_CHANNEL, SCATTERED,
    STAGED, CHANNELS_AT_ONCE, PANELS, SPLITS, TASKS, WEIGHT, TURNED, BLOCK, STAGED_ROW, FIELDS,
) = range(pack.FIELDS, pack.FIELDS + 22)  # fmt: skip


@kernel()
def work(geometry, shifts, weight, bias, source_like, result_like, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each some panels of one image and group, and a share of the row blocks.

    weight, bias : arrays of the dtype of the sums, or of uint32 where the weight is of pairs; source_like, result_like : empty arrays that
        tell the dtypes behind the addresses in ``geometry``.
    """
    g = geometry
    lanes, spare = lanes_of(weight), ALIGNMENT // weight.itemsize
    width = TILE_VECTORS * lanes
    each = products_of(g, g[CHANNELS_AT_ONCE]) * g[pack.TAPS_AT_ONCE] * width  # elements of a panel
    panel = np.empty((g[PANELS] if g[TURNED] else 1) * each + spare, weight.dtype)
    panel = panel[-panel.ctypes.data // weight.itemsize % spare :]
    stage = g[STAGED_ROW] * (width if g[TURNED] else g[ROWS] + TILE_ROWS)  # elements of a panel's
    staged = np.empty(g[STAGED] * g[PANELS] * stage, weight.dtype)
    table = np.empty((g[PANELS] * g[pack.TAPS_AT_ONCE] * TILE_VECTORS * g[pack.SLOTS], 2), np.int64)
    apart = (stage if g[STAGED] else width) * weight.itemsize
    counts, runs = np.empty(g[PANELS] * g[pack.TAPS_AT_ONCE], np.int64), np.empty(g[PANELS] * (g[pack.TAPS_AT_ONCE] + 2), np.int64)
    origins, run_counts = np.full((g[PANELS], 5), pack.NOWHERE), np.zeros(g[PANELS], np.int64)
    row_blocks = -(-g[ROWS] // g[BLOCK])
    tabled_panel = tabled_tap = -1
    while True:
        task = next_task(counter)
        if task >= g[TASKS]:
            break
        split, member = task % g[SPLITS], task // g[SPLITS]
        first, member = member // (g[IMAGES] * g[GROUPS]) * g[PANELS], member % (g[IMAGES] * g[GROUPS])
        image, group = member // g[GROUPS], member % g[GROUPS]
        last = min(first + g[PANELS], -(-g[PIXELS] // width))
        first_row, last_row = row_blocks * split // g[SPLITS], row_blocks * (split + 1) // g[SPLITS]
        source = g[SOURCE] + (image * g[SOURCE_IMAGE] + group * g[CHANNELS] * g[pack.SOURCE_CHANNEL]) * source_like.itemsize
        result = g[RESULT] + (image * g[RESULT_IMAGE] + group * g[ROWS] // g[pack.COMPONENTS] * g[RESULT_CHANNEL]) * result_like.itemsize
        for channel in range(0, g[CHANNELS], g[CHANNELS_AT_ONCE]):
            channels, at = min(g[CHANNELS_AT_ONCE], g[CHANNELS] - channel), source + channel * g[pack.SOURCE_CHANNEL] * source_like.itemsize
            for tap in range(0, max(g[KERNEL], 1), g[pack.TAPS_AT_ONCE]):
                taps = min(g[pack.TAPS_AT_ONCE], g[KERNEL] - tap)
                k = products_of(g, channel) * g[KERNEL] + tap * g[pack.COMPONENTS]
                if first != tabled_panel or tap != tabled_tap:
                    fill_tables(g, shifts, first, last, g[PIXELS], tap, taps, lanes, table, counts, origins)
                    tabled_panel, tabled_tap = first, tap
                into = address_of(staged) if g[STAGED] else result + first * apart
                for number in range(first, last):
                    i = number - first
                    start, run = (i * each, i * (taps // 2 + 1)) if g[TURNED] else (0, 0)
                    run_counts[i] = pack_panel(g, table, counts, origins, i, taps, at, channels, source_like, panel, start, runs, run)
                    if not g[TURNED]:
                        _multiply_panel(g, weight, bias, group, k, first_row, last_row, into, number, panel, runs, run_counts[i])
                    into += apart
                if g[TURNED]:
                    next_k, runs_each = k + taps * products_of(g, channels), taps // 2 + 1
                    _multiply_turned(
                        g, weight, bias, group, k, next_k, first_row, last_row, address_of(staged), first, last, panel, each,
                        runs, runs_each, run_counts, result + first * width * result_like.itemsize, result_like.itemsize,
                    )  # fmt: skip
        if g[STAGED]:
            _unstage(g, staged, stage, first_row * g[BLOCK], min(last_row * g[BLOCK], g[ROWS]), result, first, last, result_like)


@kernel(forceinline=True)
def _multiply_panel(g, weight, bias, group, k, first_row, last_row, into, number, panel, runs, run_count):  # type: ignore[no-untyped-def]
    """Row blocks [first_row, last_row) of a group's weight, from product ``k`` on, times a panel, into the result or the staged copy.

    ``into`` is the byte address of the panel's first pixel there.
    """
    width = TILE_VECTORS * lanes_of(weight)
    columns = min(width, g[PIXELS] - number * width)
    step, products = g[STAGED_ROW] if g[STAGED] else g[RESULT_CHANNEL], products_of(g, g[CHANNELS]) * g[KERNEL]
    for row in range(first_row, last_row):
        block = group * -(-g[ROWS] // TILE_ROWS) + row
        offset = g[WEIGHT] + (block * products + k) * TILE_ROWS
        address, rows = into + row * TILE_ROWS * step * weight.itemsize, min(TILE_ROWS, g[ROWS] - row * TILE_ROWS)
        multiply_tile(
            runs, 0, run_count, weight, offset, TILE_ROWS, panel, 0, 0, address, step, rows, columns, k, bias, block * TILE_ROWS, address, 0
        )  # fmt: skip


@kernel(forceinline=True)
def _multiply_turned(  # type: ignore[no-untyped-def]
    g,
    weight,
    bias,
    group,
    k,
    next_k,
    first_row,
    last_row,
    staged,
    first,
    last,
    panel,
    each,
    runs,
    runs_each,
    run_counts,
    result,
    result_item,
):
    """Row blocks times the panels [first, last) with the roles of the two turned: pixels are broadcast, rows of the weight are lanes.

    Each block of the weight is read from far away while the one before is multiplied.
    """
    width = TILE_VECTORS * lanes_of(weight)
    products, blocks = products_of(g, g[CHANNELS]) * g[KERNEL], -(-g[ROWS] // width)
    for row in range(first_row, last_row):
        block, columns = group * blocks + row, min(width, g[ROWS] - row * width)
        offset = g[WEIGHT] + (block * products + k) * width
        ahead = offset + products * width if row + 1 < last_row else g[WEIGHT] + ((group * blocks + first_row) * products + next_k) * width
        ahead, ahead_step = address_of(weight) + ahead * weight.itemsize, LINE_BYTES
        ahead_end = ahead + (next_k - k) * width * weight.itemsize
        for number in range(first, last):
            i, pixels = number - first, min(width, g[PIXELS] - number * width)
            for pixel in range(0, pixels, TILE_ROWS):
                address = staged + ((i * width + pixel) * g[STAGED_ROW] + row * width) * weight.itemsize
                multiply_tile(
                    runs, i * runs_each, run_counts[i], panel, i * each + pixel, width, weight, offset, 1, address, g[STAGED_ROW],
                    min(TILE_ROWS, pixels - pixel), columns, k, bias, block * width, ahead, ahead_step,
                )  # fmt: skip
                ahead += (next_k - k) * ahead_step
                if ahead >= ahead_end and next_k == products:  # the weight is there: now the lines that _unstage will write
                    ahead, ahead_end = result + row * width * g[RESULT_CHANNEL] * result_item, NEVER


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
        if g[TURNED]:
            length = min(length, lanes_of(staged))
        offset = d * g[pack.RESULT_STRIDE] + h * g[pack.RESULT_STRIDE + 1] + w * stride
        if g[TURNED]:
            for row in range(first_row, last_row, lanes_of(staged)):
                address, rows = result + (row * g[RESULT_CHANNEL] + offset) * like.itemsize, min(lanes_of(staged), last_row - row)
                at = start + done * g[STAGED_ROW] + row
                store_sums_turned(staged, at, g[STAGED_ROW], length, rows, address, g[RESULT_CHANNEL], stride, like)
        for row in range(last_row if g[TURNED] else first_row, last_row, g[pack.COMPONENTS]):
            address = result + (row // g[pack.COMPONENTS] * g[RESULT_CHANNEL] + offset) * like.itemsize
            store_sums(staged, start + row * width + done, width, length, address, stride, like)
        done, w = done + length, w + length
        if w == across:
            w, h = 0, h + 1
        if h == deep:
            h, d = 0, d + 1
