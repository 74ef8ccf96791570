"""The tasks of the fft algorithm: the weight's spectra, and pairs of tiles that are transformed, multiplied and transformed back.

A tile is an array of rows of cells (see ``fft_kernel``); its real and its imaginary parts are two tiles of the source, which a real
weight never mixes.  Columns along the outer and the inner axis are transformed where they lie, with one place along the width in each
lane; rows after a transposition of blocks, with one row in each lane, and are multiplied and transformed back before they are
transposed again.
"""

from __future__ import annotations

import numpy as np

from ..padding import PADDING, source_index
from .compile import kernel
from .fft_kernel import forward_4, forward_8, inverse_4, inverse_8, load_rows, multiply_cells, store_rows, transpose_cells
from .fft_layout import ALIGNMENT
from .simd import address_of, borrowed, lanes_of, load_element, store_element
from .threads import next_task

# Fields of the geometry, an int64 array.  Steps count bytes.  Fields with an axis have three: the outer, the inner, the width.
(
    GROUPS, SOURCES, RESULTS, PAIRS, MODE, ROW, TILE, COLUMN, BUFFER, TASKS, SOURCE_IMAGE, SOURCE_CHANNEL, RESULT_IMAGE,
    RESULT_CHANNEL, ITEM, LENGTH,
) = range(16)  # fmt: skip
USEFUL, TILES, SIZE, LOW, MET, RESULT_SIZE, SOURCE_STEP, RESULT_STEP, TAPS, GAP, FIELDS = range(LENGTH + 3, LENGTH + 34, 3)
MOST_PASSES = 4
PASS_FIELDS = 1 + 3 * MOST_PASSES  # how many; radix, distance and the place of the twiddles in bytes of each

_source_index = kernel()(source_index)


# ---- transforms --------------------------------------------------------------------------------------------------------
@kernel()
def _forward(like, passes, axis, twiddles, length, source, source_step, buffer, target, target_step):  # type: ignore[no-untyped-def]
    """Transform ``length`` cells, ``source_step`` bytes apart, into others; between passes they are in ``buffer``, side by side."""
    first, step = axis * PASS_FIELDS, 2 * lanes_of(like) * like.itemsize
    for i in range(passes[first]):
        at = first + 3 * i
        radix, distance, factors = passes[at + 1], passes[at + 2], twiddles + passes[at + 3]
        start, apart = (source, source_step) if i == 0 else (buffer, step)
        into, spread = (target, target_step) if i == passes[first] - 1 else (buffer, step)
        if radix == 8:
            forward_8(like, start, apart, into, spread, length // (8 * distance), distance, factors)
        else:
            forward_4(like, start, apart, into, spread, length // (4 * distance), distance, factors)


@kernel()
def _inverse(like, passes, axis, twiddles, length, source, source_step, buffer, target, target_step):  # type: ignore[no-untyped-def]
    """Undo :func:`_forward`, but for a factor ``length``."""
    first, step = axis * PASS_FIELDS, 2 * lanes_of(like) * like.itemsize
    for i in range(passes[first] - 1, -1, -1):
        at = first + 3 * i
        radix, distance, factors = passes[at + 1], passes[at + 2], twiddles + passes[at + 3]
        start, apart = (source, source_step) if i == passes[first] - 1 else (buffer, step)
        into, spread = (target, target_step) if i == 0 else (buffer, step)
        if radix == 8:
            inverse_8(like, start, apart, into, spread, length // (8 * distance), distance, factors)
        else:
            inverse_4(like, start, apart, into, spread, length // (4 * distance), distance, factors)


@kernel()
def _transform_planes(like, g, passes, twiddles, tile, buffer):  # type: ignore[no-untyped-def]
    """Transform the columns along the outer axis, that is from plane to plane."""
    cell, step, outers = 2 * lanes_of(like) * like.itemsize, g[LENGTH + 1] * g[ROW], g[LENGTH]
    if outers > 1:
        for inner in range(g[LENGTH + 1]):
            for at in range(tile + inner * g[ROW], tile + (inner + 1) * g[ROW] - cell, cell):
                _forward(like, passes, 0, twiddles, outers, at, step, buffer, at, step)


@kernel()
def _transform_plane(like, g, passes, twiddles, plane, buffer):  # type: ignore[no-untyped-def]
    """Transform the columns along the inner axis of the plane at the address ``plane``."""
    for at in range(plane, plane + g[ROW] - 2 * lanes_of(like) * like.itemsize, 2 * lanes_of(like) * like.itemsize):
        _forward(like, passes, 1, twiddles, g[LENGTH + 1], at, g[ROW], buffer, at, g[ROW])


@kernel()
def _transform_rows(like, g, passes, twiddles, tile, row, target):  # type: ignore[no-untyped-def]
    """Transform as many rows as there are lanes, from number ``row`` on, into ``target``."""
    lanes = lanes_of(like)
    cell, width = 2 * lanes * like.itemsize, g[LENGTH + 2]
    for block in range(width // lanes):
        transpose_cells(like, tile + row * g[ROW] + block * cell, g[ROW], target + block * lanes * cell, cell)
    _forward(like, passes, 2, twiddles, width, target, cell, target, target, cell)


# ---- the weight --------------------------------------------------------------------------------------------------------
@kernel()
def weight_worker(geometry, passes, twiddles, weight, spectra, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each the spectrum of one channel of one filter."""
    g, lanes, item = geometry, lanes_of(spectra), spectra.itemsize
    cell, spare, scale = 2 * lanes * item, ALIGNMENT // item, 1.0 / (g[LENGTH] * g[LENGTH + 1] * g[LENGTH + 2])
    memory, cells = np.empty(g[TILE] // item + spare, spectra.dtype), np.empty(g[COLUMN] // item, spectra.dtype)
    while True:
        task = next_task(counter)
        if task >= g[RESULTS] * g[GROUPS] * g[SOURCES]:
            break
        memory[:] = 0
        tile = address_of(memory) + -address_of(memory) % ALIGNMENT
        buffer, factors = address_of(cells), address_of(twiddles)
        taps = weight[task]
        for i in range(g[TAPS]):
            for j in range(g[TAPS + 1]):
                row = -i * g[GAP] % g[LENGTH] * g[LENGTH + 1] + -j * g[GAP + 1] % g[LENGTH + 1]
                for k in range(g[TAPS + 2]):
                    column = -k * g[GAP + 2] % g[LENGTH + 2]
                    at = tile + row * g[ROW] + column // lanes * cell + column % lanes * item
                    store_element(at, taps[(i * g[TAPS + 1] + j) * g[TAPS + 2] + k] * spectra.dtype.type(scale))
        for outer in range(g[LENGTH]):
            _transform_plane(spectra, g, passes, factors, tile + outer * g[LENGTH + 1] * g[ROW], buffer)
        _transform_planes(spectra, g, passes, factors, tile, buffer)
        rows, each = g[LENGTH] * g[LENGTH + 1], g[LENGTH + 2] * cell
        for row in range(0, rows, lanes):
            into = address_of(spectra) + (task * rows + row) // lanes * each
            _transform_rows(spectra, g, passes, factors, tile, row, into)


# ---- tiles -------------------------------------------------------------------------------------------------------------
@kernel()
def _find_cells(g, pair, lanes, origins, maps, masks):  # type: ignore[no-untyped-def]
    """Of both tiles of a pair: the first result cell along each axis, the source index of each place along it, and which lanes of a row's
    vectors are source columns; masks[2] stays zero."""
    for part in range(2):
        number, at = 2 * pair + part, 0
        exists = number < g[TILES] * g[TILES + 1] * g[TILES + 2]
        for axis in range(2, -1, -1):
            origins[part, axis] = number % g[TILES + axis] * g[USEFUL + axis] if exists else g[RESULT_SIZE + axis]
            number //= g[TILES + axis]
        for axis in range(3):
            for i in range(g[LENGTH + axis]):
                position = origins[part, axis] + i
                inside = exists and position < g[MET + axis]
                maps[part, at + i] = _source_index(position - g[LOW + axis], g[SIZE + axis], g[MODE]) if inside else PADDING
            at += g[LENGTH + axis]
        for block in range(len(masks[part])):
            start = origins[part, 2] - g[LOW + 2] + block * lanes
            first, last = min(max(-start, 0), lanes), min(max(g[SIZE + 2] - start, 0), lanes)
            masks[part, block] = ((1 << last) - 1) & ~((1 << first) - 1) if g[SOURCE_STEP + 2] == g[ITEM] else 0


@kernel()
def _load_plane(like, g, source, part, origins, maps, masks, plane):  # type: ignore[no-untyped-def]
    """The rows of a plane of a tile, whose source plane is at the address ``source``, into one part of the cells at ``plane``."""
    lanes, item, blocks, outers, inners = lanes_of(like), like.itemsize, g[LENGTH + 2] // lanes_of(like), g[LENGTH], g[LENGTH + 1]
    start, place = origins[part, 2] - g[LOW + 2], outers + inners
    indices = address_of(maps) + (part * (place + g[LENGTH + 2]) + outers) * 8
    at = address_of(masks) + part * blocks * 8
    load_rows(like, source + start * item, g[SOURCE_STEP + 1], indices, inners, at, blocks, plane, g[ROW])
    if g[MODE] == 0 and g[SOURCE_STEP + 2] == item:
        return
    for i in range(g[LENGTH + 2]):
        column = maps[part, place + i]
        if column != PADDING and not masks[part, i // lanes] >> i % lanes & 1:
            for inner in range(inners):
                row = maps[part, outers + inner]
                if row != PADDING:
                    value = load_element(source + row * g[SOURCE_STEP + 1] + column * g[SOURCE_STEP + 2], like)
                    store_element(plane + inner * g[ROW] + (i // lanes * 2 * lanes + i % lanes) * item, value)


@kernel()
def _load_tile(like, g, passes, twiddles, source, origins, maps, masks, tile, buffer):  # type: ignore[no-untyped-def]
    """Load a pair of tiles of the channel at the address ``source``, and transform them along the outer and the inner axis."""
    half, blocks = lanes_of(like) * like.itemsize, g[LENGTH + 2] // lanes_of(like)
    for outer in range(g[LENGTH]):
        plane = tile + outer * g[LENGTH + 1] * g[ROW]
        for part in range(2):
            at = plane + part * half
            if maps[part, outer] == PADDING:
                no_lane = address_of(masks) + 2 * blocks * 8
                load_rows(like, source, 0, address_of(maps), g[LENGTH + 1], no_lane, blocks, at, g[ROW])
            else:
                _load_plane(like, g, source + maps[part, outer] * g[SOURCE_STEP], part, origins, maps, masks, at)
        _transform_plane(like, g, passes, twiddles, plane, buffer)
    _transform_planes(like, g, passes, twiddles, tile, buffer)


@kernel()
def _multiply_tiles(like, g, passes, twiddles, spectra, tile, buffer):  # type: ignore[no-untyped-def]
    """The rows of all source channels, transformed, times the spectra of a group, summed, and transformed back into rows."""
    lanes = lanes_of(like)
    cell, width, rows = 2 * lanes * like.itemsize, g[LENGTH + 2], g[LENGTH] * g[LENGTH + 1]
    sums = buffer + g[SOURCES] * width * cell
    for row in range(0, rows, lanes):
        for channel in range(g[SOURCES]):
            _transform_rows(like, g, passes, twiddles, tile + channel * g[TILE], row, buffer + channel * width * cell)
        for number in range(g[RESULTS]):
            for channel in range(g[SOURCES]):
                factors = spectra + ((number * g[SOURCES] + channel) * rows + row) // lanes * width * cell
                multiply_cells(like, buffer + channel * width * cell, factors, sums, width, channel)
            _inverse(like, passes, 2, twiddles, width, sums, cell, sums, sums, cell)
            for block in range(width // lanes):
                at = tile + number * g[TILE] + row * g[ROW] + block * cell
                transpose_cells(like, sums + block * lanes * cell, cell, at, g[ROW])


@kernel()
def _store_plane(like, g, source, bias, target, rows, columns):  # type: ignore[no-untyped-def]
    """Store one part of the cells of a plane, plus a bias; whether any is not finite."""
    lanes, item = lanes_of(like), like.itemsize
    if g[RESULT_STEP + 2] == item:
        return store_rows(like, source, g[ROW], bias, target, g[RESULT_STEP + 1], rows, columns)
    wrong = False
    for inner in range(rows):
        for i in range(columns):
            value = load_element(source + inner * g[ROW] + (i // lanes * 2 * lanes + i % lanes) * item, like) + load_element(bias, like)
            store_element(target + inner * g[RESULT_STEP + 1] + i * g[RESULT_STEP + 2], value)
            wrong = wrong or not np.isfinite(value)
    return wrong


@kernel()
def _store_tile(like, g, passes, twiddles, bias, result, origins, tile, buffer, wrong):  # type: ignore[no-untyped-def]
    """Transform a pair of tiles back along the outer and the inner axis and store the results of a channel at the address ``result``.

    wrong[part] is set where one of them is not finite.
    """
    half, outers, inners = lanes_of(like) * like.itemsize, g[LENGTH], g[LENGTH + 1]
    used = -(-g[USEFUL + 2] // lanes_of(like)) * 2 * half
    if outers > 1:
        for inner in range(inners):
            for at in range(tile + inner * g[ROW], tile + inner * g[ROW] + used, 2 * half):
                _inverse(like, passes, 0, twiddles, outers, at, inners * g[ROW], buffer, at, inners * g[ROW])
    for outer in range(g[USEFUL]):
        plane = tile + outer * inners * g[ROW]
        for at in range(plane, plane + used, 2 * half):
            _inverse(like, passes, 1, twiddles, inners, at, g[ROW], buffer, at, g[ROW])
        for part in range(2):
            first, second, third = origins[part, 0] + outer, origins[part, 1], origins[part, 2]
            columns = min(g[USEFUL + 2], g[RESULT_SIZE + 2] - third)
            if first < g[RESULT_SIZE] and columns > 0:
                target = result + first * g[RESULT_STEP] + second * g[RESULT_STEP + 1] + third * g[RESULT_STEP + 2]
                rows = min(g[USEFUL + 1], g[RESULT_SIZE + 1] - second)
                if _store_plane(like, g, plane + part * half, bias, target, rows, columns):
                    wrong[part] = True


@kernel()
def tile_worker(source, result, geometry, passes, twiddles, spectra, bias, wrong, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each a pair of tiles of one image and group.

    source, result : int64 byte addresses; wrong[image, group, tile] is set where a result is not finite.
    """
    g, item = borrowed(geometry), spectra.itemsize
    memory = np.empty((max(g[SOURCES], g[RESULTS]) * g[TILE] + g[BUFFER] + ALIGNMENT) // item, spectra.dtype)
    masks_memory = np.zeros((3, g[LENGTH + 2] // lanes_of(spectra)), np.int64)
    maps_memory, origins_memory = np.empty((2, g[LENGTH] + g[LENGTH + 1] + g[LENGTH + 2]), np.int64), np.empty((2, 3), np.int64)
    each = g[LENGTH] * g[LENGTH + 1] * g[LENGTH + 2] * 2 * item
    while True:
        task = next_task(counter)
        if task >= g[TASKS]:
            break
        like, table, maps, origins = borrowed(spectra), borrowed(passes), borrowed(maps_memory), borrowed(origins_memory)
        pair, member = task % g[PAIRS], task // g[PAIRS]
        image, group = member // g[GROUPS], member % g[GROUPS]
        tile = address_of(memory) + -address_of(memory) % ALIGNMENT
        buffer, factors = tile + max(g[SOURCES], g[RESULTS]) * g[TILE], address_of(twiddles)
        masks = borrowed(masks_memory)
        _find_cells(g, pair, lanes_of(spectra), origins, maps, masks)
        for channel in range(g[SOURCES]):
            own = source + image * g[SOURCE_IMAGE] + (group * g[SOURCES] + channel) * g[SOURCE_CHANNEL]
            _load_tile(like, g, table, factors, own, origins, maps, masks, tile + channel * g[TILE], buffer)
        _multiply_tiles(like, g, table, factors, address_of(spectra) + group * g[RESULTS] * g[SOURCES] * each, tile, buffer)
        for number in range(g[RESULTS]):
            channel = group * g[RESULTS] + number
            to = result + image * g[RESULT_IMAGE] + channel * g[RESULT_CHANNEL]
            at, flags = tile + number * g[TILE], borrowed(wrong)[image, group, 2 * pair :]
            _store_tile(like, g, table, factors, address_of(bias) + channel * item, to, origins, at, buffer, flags)
