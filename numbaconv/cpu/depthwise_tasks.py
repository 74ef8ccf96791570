"""The tasks of the depthwise algorithm: a box of source cells is copied in, summed, and its results copied out."""

from __future__ import annotations

import numpy as np

from ..padding import PADDING, source_index
from .compile import kernel
from .depthwise_kernel import PIXELS, clear_cells, copy_cell, gather_channels, pixel_sums, scatter_channels
from .simd import address_of, borrowed, lanes_of, load_element, store_element
from .threads import next_task

ALIGNMENT = 64

# Fields of the geometry, an int64 array.  Steps count bytes, of image, channel and the axes; BOXES has two fields, what follows it three.
CHANNELS, MODE, SKIPPING, DEEP, SOURCE_BYTES, RESULT_BYTES, TASKS, SOURCE_STEP = range(8)
RESULT_STEP, BOXES = SOURCE_STEP + 5, SOURCE_STEP + 10
BOX, EXTENT, RESULTS, STEP, STRIDE, ORIGIN, SIZE, RESULT_SIZE, LOW, HIGH, FIELDS = range(BOXES + 2, BOXES + 35, 3)

_source_index = kernel()(source_index)


@kernel(forceinline=True)
def _index_at(g, axis, position):  # type: ignore[no-untyped-def]
    """Source index of a position along an axis; PADDING for a zero and for what no result meets."""
    if position < -g[LOW + axis] or position >= g[SIZE + axis] + g[HIGH + axis]:
        return PADDING
    return _source_index(position, g[SIZE + axis], g[MODE])


@kernel(forceinline=True)
def _copy_row(like, g, source, channels, target):  # type: ignore[no-untyped-def]
    """The cells of one row of a box, whose source row is at the address ``source``."""
    lanes, item, step = lanes_of(like), like.itemsize, g[SOURCE_STEP + 4]
    cell, origin = lanes * item, g[ORIGIN + 2]
    first = min(max(0, -origin), g[EXTENT + 2])
    last = max(first, min(g[EXTENT + 2], g[SIZE + 2] - origin))
    if step == item:
        for i in range(first, last, lanes):
            at = source + (origin + i) * item
            gather_channels(like, at, g[SOURCE_STEP + 1], channels, min(lanes, last - i), target + i * cell)
    else:
        for i in range(first, last):
            for channel in range(lanes):
                at, value = source + (origin + i) * step + channel * g[SOURCE_STEP + 1], like.dtype.type(0)
                if channel < channels:
                    value = load_element(at, like)
                store_element(target + i * cell + channel * item, value)
    if g[MODE] != 0:
        for i in range(g[EXTENT + 2]):
            index = _index_at(g, 2, origin + i)
            if (i < first or i >= last) and index != PADDING:
                copy_cell(like, target + (index - origin) * cell, target + i * cell)


@kernel()
def _copy_box(like, g, source, channels, down, across, box):  # type: ignore[no-untyped-def]
    """The cells of a box from the place (down, across) of depth and height on, of the channels from the address ``source`` on.

    Zeros at the ends of rows are there from the first: nothing else is ever written to those cells.  So are rows of zeros where boxes do
    not differ.
    """
    cell, row, several = lanes_of(like) * like.itemsize, g[EXTENT + 2], g[BOXES] * g[BOXES + 1] > 1
    for i in range(g[EXTENT]):
        plane = _index_at(g, 0, down * g[STEP] + g[ORIGIN] + i)
        for j in range(g[EXTENT + 1]):
            line, target = _index_at(g, 1, across * g[STEP + 1] + g[ORIGIN + 1] + j), box + (i * g[EXTENT + 1] + j) * row * cell
            if plane == PADDING or line == PADDING:
                if several:
                    clear_cells(like, target, row)
            else:
                _copy_row(like, g, source + plane * g[SOURCE_STEP + 2] + line * g[SOURCE_STEP + 3], channels, target)


@kernel(forceinline=True)
def _met(g, taps, start, count, each, axis, place):  # type: ignore[no-untyped-def]
    """Which of ``count`` taps from ``start`` on, in groups of ``each`` that meet one plane or row, are left without the first and the last
    groups that meet padding."""
    first, last = 0, count
    while first < last and not 0 <= place + taps[3 * (start + first) + 2] < g[SIZE + axis]:
        first += each
    while first < last and not 0 <= place + taps[3 * (start + last - 1) + 2] < g[SIZE + axis]:
        last -= each
    return first, last


@kernel()
def _sum_box(like, g, parts, taps, weight, bias, down, across, box, sums):  # type: ignore[no-untyped-def]
    """The results of a box, as cells."""
    cell = lanes_of(like) * like.itemsize
    for part in range(len(parts)):
        start, width, count = parts[part, 6], parts[part, 5], parts[part, 7]
        axis = 0 if g[DEEP] else 1
        for i in range(min(g[BOX], parts[part, 3] - down)):
            for j in range(min(g[BOX + 1], parts[part, 4] - across)):
                source = box + (i * g[STEP] * g[EXTENT + 1] + j * g[STEP + 1]) * g[EXTENT + 2] * cell
                row = (i * g[STRIDE] + parts[part, 0]) * g[RESULTS + 1] + j * g[STRIDE + 1] + parts[part, 1]
                target = sums + (row * g[RESULTS + 2] + parts[part, 2]) * cell
                first, last = 0, count
                if g[SKIPPING]:
                    place = (down + i) * g[STEP] if g[DEEP] else (across + j) * g[STEP + 1]
                    first, last = _met(g, taps, start, count, parts[part, 8], axis, place)
                table = address_of(taps) + (start + first) * 24
                for k in range(0, width, PIXELS):
                    pixel_sums(
                        like, source + k * g[STEP + 2] * cell, g[STEP + 2] * cell, table, last - first, weight, bias,
                        target + k * g[STRIDE + 2] * cell, g[STRIDE + 2] * cell, min(PIXELS, width - k),
                    )  # fmt: skip


@kernel()
def _store_box(like, g, sums, channels, first, second, result):  # type: ignore[no-untyped-def]
    """Copy the results of a box, whose first is in plane ``first`` and row ``second``, to the channels from the address ``result`` on."""
    lanes, item, step = lanes_of(like), like.itemsize, g[RESULT_STEP + 4]
    cell, rows, columns = lanes * item, min(g[RESULTS + 1], g[RESULT_SIZE + 1] - second), g[RESULTS + 2]
    if g[RESULT_STEP + 3] == columns * item and step == item:
        rows, columns = 1, rows * columns  # rows that follow one another are one
    for i in range(min(g[RESULTS], g[RESULT_SIZE] - first)):
        for j in range(rows):
            source = sums + (i * g[RESULTS + 1] + j) * g[RESULTS + 2] * cell
            target = result + (first + i) * g[RESULT_STEP + 2] + (second + j) * g[RESULT_STEP + 3]
            if step == item:
                k, count = 0, lanes - target // item % lanes  # whole lines of memory from then on, in planes of whole lines
                while k < columns:
                    count = min(count, columns - k)
                    scatter_channels(like, source + k * cell, target + k * item, g[RESULT_STEP + 1], channels, count)
                    k, count = k + count, lanes
            else:
                for k in range(columns):
                    for channel in range(channels):
                        value = load_element(source + k * cell + channel * item, like)
                        store_element(target + k * step + channel * g[RESULT_STEP + 1], value)


@kernel()
def worker(source, result, geometry, parts, taps, weight, bias, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each a box of as many channels of one image as a vector has lanes.

    source, result : int64 byte addresses.
    """
    g, lanes, item = borrowed(geometry), lanes_of(weight), weight.itemsize
    memory = np.zeros((g[SOURCE_BYTES] + g[RESULT_BYTES] + ALIGNMENT) // item, weight.dtype)
    blocks, each = -(-g[CHANNELS] // lanes), len(weight) // len(bias) * lanes * item
    while True:
        task = next_task(counter)
        if task >= g[TASKS]:
            break
        like, table, shifts = borrowed(weight), borrowed(parts), borrowed(taps)
        box = address_of(memory) + -address_of(memory) % ALIGNMENT
        sums = box + g[SOURCE_BYTES]
        across, rest = task % g[BOXES + 1] * g[BOX + 1], task // g[BOXES + 1]
        down, rest = rest % g[BOXES] * g[BOX], rest // g[BOXES]
        block, image = rest % blocks, rest // blocks
        channels = min(lanes, g[CHANNELS] - block * lanes)
        own = source + image * g[SOURCE_STEP] + block * lanes * g[SOURCE_STEP + 1]
        to = result + image * g[RESULT_STEP] + block * lanes * g[RESULT_STEP + 1]
        _copy_box(like, g, own, channels, down, across, box)
        weights, biases = address_of(weight) + block * each, address_of(bias) + block * lanes * item
        _sum_box(like, g, table, shifts, weights, biases, down, across, box, sums)
        _store_box(like, g, sums, channels, down * g[STRIDE], across * g[STRIDE + 1], to)
