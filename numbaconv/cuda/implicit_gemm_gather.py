"""Which source cells an implicit GEMM meets on a device: its cells, taps and channels, in order, as device functions.

A quad is four channels of one tap, or fewer where the channels end: what is gathered at once.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import cuda
from numba.cuda import float32, int32, int64, types, uint32, uint64

from .. import padding
from . import ptx
from .implicit_gemm_write import NOWHERE

QUAD = 4


class Geometry(NamedTuple):
    """One launch; strides in elements.  Cell j of an axis meets tap t at source index j * step + shift + t * spacing."""

    images: int
    rows: int
    padded_rows: int
    row_tiles: int
    channels: int
    padded_channels: int
    tiles: int
    mode: int
    cells_d: int
    cells_h: int
    cells_w: int
    step_d: int
    step_h: int
    step_w: int
    shift_d: int
    shift_h: int
    shift_w: int
    spacing_d: int
    spacing_h: int
    spacing_w: int
    taps_d: int
    taps_h: int
    taps_w: int
    size_d: int
    size_h: int
    size_w: int
    source_image: int
    source_channel: int
    source_d: int
    source_h: int
    source_w: int
    result_image: int
    result_channel: int
    result_d: int
    result_h: int
    result_w: int


GEOMETRY = types.NamedTuple((types.int32,) * 26 + (types.int64,) * 10, Geometry)

_load, _store = ptx.load("float32"), ptx.store("float32")
_load_numbers, _load_address = ptx.load_shared("int32", 4), ptx.load_shared("int64")
_put_numbers, _put_address = ptx.store_shared("int32", 4), ptx.store_shared("int64")
_source_index = cuda.jit(device=True)(padding.source_index)

PLACE_BYTES = 48
"""Of shared memory, in which a thread keeps its cell and the tap that it is at: they are seldom needed, and registers are scarce."""


@cuda.jit(device=True)
def place_of(cell, g):  # type: ignore[no-untyped-def]
    """Image and position of the result cell with this number."""
    across = uint32(cell // uint32(g.cells_w))
    down = uint32(across // uint32(g.cells_h))
    image = uint32(down // uint32(g.cells_d))
    w, h, d = cell - across * uint32(g.cells_w), across - down * uint32(g.cells_h), down - image * uint32(g.cells_d)
    return int32(image), int32(d), int32(h), int32(w)


@cuda.jit(device=True)
def put_cell(cell, place, offset, chosen, source, group, g):  # type: ignore[no-untyped-def]
    """Describe the cell with this number in shared memory: at ``place`` for who gathers it, at ``offset`` for who writes its results.

    place : the padded position that the first tap meets, and whether there is a cell at all; the tap before the first one; the address of
        the cell's image and group
    offset : of its results, in bytes, or NOWHERE; put there by the chosen one of the threads that gather it
    """
    image, d, h, w = place_of(cell, g)
    exists = image < g.images
    if chosen:
        at = int64(image) * g.result_image + int64(d) * g.result_d + int64(h) * g.result_h + int64(w) * g.result_w
        _put_address(offset, int64(at * 4) if exists else int64(NOWHERE))
    first = int32(d * g.step_d + g.shift_d), int32(h * g.step_h + g.shift_h), int32(w * g.step_w + g.shift_w)
    _put_numbers(place, (first[0], first[1], first[2], int32(exists)))
    _put_numbers(uint32(place + uint32(16)), (int32(0), int32(0), int32(-1), int32(0)))
    _put_address(
        uint32(place + uint32(32)),
        int64(source) + (int64(image) * g.source_image + int64(group) * int64(g.channels) * g.source_channel) * 4,
    )


@cuda.jit(device=True)
def _source_offset(d, h, w, g):  # type: ignore[no-untyped-def]
    """Where in an image, in elements, the cell at this padded position gets its value, and whether it gets one."""
    z = int32(_source_index(d, g.size_d, g.mode))
    y = int32(_source_index(h, g.size_h, g.mode))
    x = int32(_source_index(w, g.size_w, g.mode))
    return int64(z) * g.source_d + int64(y) * g.source_h + int64(x) * g.source_w, int32(z | y | x) >= int32(0)


@cuda.jit(device=True)
def first_quad(member, team, g):  # type: ignore[no-untyped-def]
    """The walk of a thread through taps and channels, before its first step."""
    return int32(int32((member - team) * int32(QUAD)) + g.padded_channels), int64(0), int32(0)


@cuda.jit(device=True)
def next_quad(walk, team, place, g):  # type: ignore[no-untyped-def]
    """A step of the walk: the quad's channel and address, and the channel from which on this tap has nothing but zeros.

    place : where ``put_cell`` has described the cell
    """
    channel, address, end = walk
    stride = int64(g.source_channel * 4)
    channel, address = int32(channel + team * int32(QUAD)), int64(address + stride * int64(team * int32(QUAD)))
    if channel >= g.padded_channels:
        tap_d, tap_h, tap_w, _ = _load_numbers(uint32(place + uint32(16)))
        while channel >= g.padded_channels:
            channel = int32(channel - g.padded_channels)
            tap_w = int32(tap_w + 1)
            if tap_w == g.taps_w:
                tap_w = int32(0)
                tap_h = int32(tap_h + 1)
                if tap_h == g.taps_h:
                    tap_h = int32(0)
                    tap_d = int32(tap_d + 1)
        _put_numbers(uint32(place + uint32(16)), (tap_d, tap_h, tap_w, int32(0)))
        d, h, w, exists = _load_numbers(place)
        z, y, x = int32(d + tap_d * g.spacing_d), int32(h + tap_h * g.spacing_h), int32(w + tap_w * g.spacing_w)
        offset, inside = _source_offset(z, y, x, g)
        end = int32(g.channels if exists != int32(0) and inside and tap_d < g.taps_d else 0)
        address = int64(_load_address(uint32(place + uint32(32))) + offset * 4 + stride * int64(channel))
    return channel, address, end


@cuda.jit(device=True)
def sum_defined(source, weight, bias, result, group, first_row, first_cell, tile_rows, tile_cells, depth, g):  # type: ignore[no-untyped-def]
    """A block's results one by one, without the products that no source cell has a part in: slow, for weights that are not finite."""
    at = int32(cuda.threadIdx.x)
    while at < int32(tile_rows * tile_cells):
        row = int32(first_row + at // int32(tile_cells))
        image, d, h, w = place_of(uint32(first_cell + uint32(at % int32(tile_cells))), g)
        if row < g.rows and image < g.images:
            origin = int64(image) * g.source_image + int64(group) * int64(g.channels) * g.source_channel
            weights = int64(weight) + (int64(group) * int64(g.tiles) * int64(depth) * int64(g.padded_rows) + int64(row)) * 4
            total = float32(0)
            for i in range(g.taps_d):
                for j in range(g.taps_h):
                    for k in range(g.taps_w):
                        z = int32(d * g.step_d + g.shift_d + int32(i) * g.spacing_d)
                        y = int32(h * g.step_h + g.shift_h + int32(j) * g.spacing_h)
                        offset, inside = _source_offset(z, y, int32(w * g.step_w + g.shift_w + int32(k) * g.spacing_w), g)
                        if inside:
                            for c in range(g.channels):
                                value = _load(uint64(int64(source) + (origin + offset + int64(c) * g.source_channel) * 4))
                                total = cuda.fma(_load(uint64(weights + int64(c) * int64(g.padded_rows) * 4)), value, total)
                        weights += int64(g.padded_channels) * int64(g.padded_rows) * 4
            to = int64(image) * g.result_image + int64(d) * g.result_d + int64(h) * g.result_h + int64(w) * g.result_w
            to += (int64(group) * int64(g.rows) + int64(row)) * g.result_channel
            more = _load(uint64(int64(bias) + (int64(group) * int64(g.padded_rows) + int64(row)) * 4))
            _store(uint64(int64(result) + to * 4), float32(total + more))
        at += int32(cuda.blockDim.x)
