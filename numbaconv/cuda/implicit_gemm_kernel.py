"""The kernel of implicit GEMM in float32: a product of packed weights and source cells that are gathered as they are needed.

The view as a matrix product: its rows are the result channels of a group, its columns the result cells of all images one after the
other, and it sums over k, which runs through the taps and for each of them through the channels, padded to a multiple of four.  Every
result is one chain of fused multiply-adds in that order from zero on, the bias added last: its bits depend on nothing else.

A block of threads computes a tile of rows and cells.  Each thread gathers the source of one cell, quad by quad: a quad is four channels of
one tap.  Cells of the padding are zeros in shared memory and are multiplied.  Several tiles of some steps of k are in shared memory: while
one is multiplied, the next ones are copied.

The layout of a warp's threads, four by eight interleaved, is that of CUTLASS's SIMT kernels: any sixteen lanes read 128 different bytes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.cuda import float32, int32, int64, types, uint32, uint64

from .. import padding
from . import launch, ptx

EIGHT = 8
"""Steps of k that one call of ``multiply`` takes."""
QUAD = 4
"""Channels of one tap that are gathered at once."""


class Tile(NamedTuple):
    """How a block is made: warps along rows and along cells; a thread has 8 rows and ``quads`` times 4 cells.

    depth : steps of k, 8 or 16; stages : tiles in shared memory, of which one is multiplied
    """

    row_warps: int
    cell_warps: int
    quads: int
    depth: int
    stages: int

    @property
    def rows(self) -> int:
        return 32 * self.row_warps

    @property
    def cells(self) -> int:
        return 32 * self.quads * self.cell_warps

    @property
    def threads(self) -> int:
        return 32 * self.row_warps * self.cell_warps

    @property
    def blocks(self) -> int:
        """Blocks on one multiprocessor: 512 threads with up to 128 registers, or 640 with up to 96."""
        return (512 if self.quads == 2 else 640) // self.threads

    def __str__(self) -> str:
        return f"{self.rows}x{self.cells}-{self.threads}-{self.depth}-{self.stages}"


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


_GEOMETRY = types.NamedTuple((types.int32,) * 26 + (types.int64,) * 10, Geometry)
_SIGNATURE = (types.uint64,) * 5 + (_GEOMETRY,)

_copy4, _copy16 = ptx.copy_async(4), ptx.copy_async(16)
_load, _load4 = ptx.load("float32"), ptx.load("float32", 4)
_store = ptx.store("float32")
_shared, _shared4 = ptx.load_shared("float32"), ptx.load_shared("float32", 4)
_put, _put4 = ptx.store_shared("float32"), ptx.store_shared("float32", 4)
_flag = ptx.load("int32")
_offset = ptx.load_shared("int64")
_put_offset = ptx.store_shared("int64")
_NOWHERE = -(2**63)  # the offset of no cell
_PITCH = 36  # floats from the 32 channels of one cell to those of the next, which then lie in different banks


def _device(function: Any) -> Any:
    return cuda.jit(device=True)(function)


_source_index = _device(padding.source_index)


@_device
def _lane_row(lane):  # type: ignore[no-untyped-def]
    """Of a warp's four by eight threads, where this one stands."""
    return int32((lane & 1) + ((lane >> 4) << 1))


@_device
def _lane_cell(lane):  # type: ignore[no-untyped-def]
    return int32((lane >> 1) & 7)


@_device
def _place(cell, g):  # type: ignore[no-untyped-def]
    """Image and position of the result cell with this number."""
    across = uint32(cell // uint32(g.cells_w))
    down = uint32(across // uint32(g.cells_h))
    image = uint32(down // uint32(g.cells_d))
    w, h, d = cell - across * uint32(g.cells_w), across - down * uint32(g.cells_h), down - image * uint32(g.cells_d)
    return int32(image), int32(d), int32(h), int32(w)


@_device
def _source_offset(d, h, w, g):  # type: ignore[no-untyped-def]
    """Where in an image, in elements, the cell at this padded position gets its value, and whether it gets one."""
    z = int32(_source_index(d, g.size_d, g.mode))
    y = int32(_source_index(h, g.size_h, g.mode))
    x = int32(_source_index(w, g.size_w, g.mode))
    return int64(z) * g.source_d + int64(y) * g.source_h + int64(x) * g.source_w, int32(z | y | x) >= int32(0)


@_device
def _first_quad(member, team, origin, g):  # type: ignore[no-untyped-def]
    """The walk of a thread through taps and channels, before its first step."""
    channel = int32(int32((member - team) * int32(QUAD)) + g.padded_channels)
    return channel, int32(0), int32(0), int32(-1), origin, int32(0)


@_device
def _next_quad(walk, team, cell, origin, g):  # type: ignore[no-untyped-def]
    """A step of the walk: channel and tap, the quad's address, and the channels from which on it is nothing but zeros.

    cell : the padded position that the first tap meets, and whether there is a cell at all; origin : address of the cell's image and group
    """
    channel, tap_d, tap_h, tap_w, address, taken = walk
    d, h, w, exists = cell
    stride = int64(g.source_channel * 4)
    channel, address = int32(channel + team * int32(QUAD)), int64(address + stride * int64(team * int32(QUAD)))
    if channel >= g.padded_channels:
        while channel >= g.padded_channels:
            channel = int32(channel - g.padded_channels)
            tap_w = int32(tap_w + 1)
            if tap_w == g.taps_w:
                tap_w = int32(0)
                tap_h = int32(tap_h + 1)
                if tap_h == g.taps_h:
                    tap_h = int32(0)
                    tap_d = int32(tap_d + 1)
        z, y, x = int32(d + tap_d * g.spacing_d), int32(h + tap_h * g.spacing_h), int32(w + tap_w * g.spacing_w)
        offset, inside = _source_offset(z, y, x, g)
        taken = int32(g.channels if exists and inside and tap_d < g.taps_d else 0)
        address = int64(origin + offset * 4 + stride * int64(channel))
    return channel, tap_d, tap_h, tap_w, address, taken


@functools.cache
def _load_quads(count: int) -> Any:
    """``load(walk, team, cell, origin, g)``: so many steps of a walk with channels last; the walk then, and the values as one tuple."""

    @_device
    def load(walk, team, cell, origin, g):  # type: ignore[no-untyped-def]
        walk = _next_quad(walk, team, cell, origin, g)
        values = (float32(0), float32(0), float32(0), float32(0))
        if walk[0] < walk[5]:
            values = _load4(uint64(walk[4]))
        return walk, values

    if count == 1:
        return load
    rest = _load_quads(count - 1)

    @_device
    def load_all(walk, team, cell, origin, g):  # type: ignore[no-untyped-def]
        walk, values = load(walk, team, cell, origin, g)
        walk, more = rest(walk, team, cell, origin, g)
        return walk, values + more

    return load_all


@_device
def _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, k):  # type: ignore[no-untyped-def]
    """Add one step of k to the sums of a thread: 8 rows by ``4 * quads`` cells."""
    left, right = cuda.local.array(8, float32), cuda.local.array(8, float32)
    for half in range(2):
        found = _shared4(uint32(rows + uint32(k * row_bytes + half * 64)))
        for i in range(4):
            left[half * 4 + i] = found[i]
    for half in range(quads):
        found = _shared4(uint32(cells + uint32(k * cell_bytes + half * 128)))
        for i in range(4):
            right[half * 4 + i] = found[i]
    for i in range(8):
        for j in range(4 * quads):
            sums[i * 4 * quads + j] = cuda.fma(left[i], right[j], sums[i * 4 * quads + j])


@functools.cache
def _multiply(tile: Tile) -> Any:
    """``multiply(sums, rows, cells)``: add the products of a staged tile; the compiler unrolls no loop of this size."""
    row_bytes, cell_bytes, quads = tile.rows * 4, tile.cells * 4, tile.quads

    @_device
    def multiply(sums, rows, cells):  # type: ignore[no-untyped-def]
        _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, 0)
        _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, 1)
        _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, 2)
        _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, 3)
        _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, 4)
        _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, 5)
        _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, 6)
        _add_products(sums, rows, cells, row_bytes, cell_bytes, quads, 7)

    return multiply


@functools.cache
def _write(tile: Tile, channels_last: bool) -> Any:
    """``write(sums, stage, offsets, lane, result, step, rows)``: a warp writes its 32 rows, of which ``rows`` exist.

    stage : of this warp, in shared memory, in which results are turned round so that its threads write neighbours
    offsets : in shared memory, of the warp's cells within the result, in bytes
    result : address of the warp's first row; step : from one row to the next, in bytes
    """
    QUADS, SIDE, WIDTH = tile.quads, 4 * tile.quads, 32 * tile.quads

    @_device
    def write_cells(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        at = uint32(stage + uint32((_lane_row(lane) * int32(WIDTH) + _lane_cell(lane) * int32(4)) * 4))
        for i in range(8):
            for half in range(QUADS):
                k = i * SIDE + half * 4
                _put4(uint32(at + uint32(half * 128)), (sums[k], sums[k + 1], sums[k + 2], sums[k + 3]))
            cuda.syncwarp()
            for half in range(QUADS):
                offset = _offset(uint32(offsets + uint32(lane * 8) + uint32(half * 256)))
                for line in range(4):
                    row = line * 4 + (i if i < 4 else i + 12)
                    value = _shared(uint32(stage + uint32(lane * 4) + uint32((line * WIDTH + half * 32) * 4)))
                    if int32(row) < rows and offset != int64(_NOWHERE):
                        _store(uint64(result + offset + step * row), value)
            cuda.syncwarp()

    @_device
    def write_channels(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        at = uint32(stage + uint32((_lane_cell(lane) * int32(_PITCH) + _lane_row(lane) * int32(4)) * 4))
        own = int64(result + step * int64(lane))
        for j in range(SIDE):
            for half in range(2):
                k = half * 4 * SIDE + j
                _put4(uint32(at + uint32(half * 64)), (sums[k], sums[k + SIDE], sums[k + 2 * SIDE], sums[k + 3 * SIDE]))
            cuda.syncwarp()
            for i in range(8):
                offset = _offset(uint32(offsets + uint32((i * 4 + (j & 3) + (j >> 2) * 32) * 8)))
                value = _shared(uint32(stage + uint32(lane * 4) + uint32(i * _PITCH * 4)))
                if lane < rows and offset != int64(_NOWHERE):
                    _store(uint64(own + offset), value)
            cuda.syncwarp()

    return write_channels if channels_last else write_cells


@_device
def _sum_defined(source, weight, bias, result, group, first_row, first_cell, tile_rows, tile_cells, depth, g):  # type: ignore[no-untyped-def]
    """A block's results one by one, without the products that no source cell has a part in: slow, for weights that are not finite."""
    at = int32(cuda.threadIdx.x)
    while at < int32(tile_rows * tile_cells):
        row = int32(first_row + at // int32(tile_cells))
        image, d, h, w = _place(uint32(first_cell + uint32(at % int32(tile_cells))), g)
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


@functools.cache
def kernel(tile: Tile, channels_last_source: bool, channels_last_result: bool, transposed: bool) -> launch.Kernel:
    """The kernel of a tile; its addresses are those of source, packed weight, packed bias, result, and of a flag.

    channels_last_source : the channels of the source follow one another and their count is a multiple of four at addresses of a multiple
        of 16 bytes: a quad is one load, and is transposed on its way into shared memory.  Otherwise any strides, four copies a quad.
    channels_last_result : neighbouring threads write neighbouring channels, otherwise neighbouring cells; right for any strides.
    transposed : of an input gradient, where zeros that stand for no source cell are multiplied only while the weight is finite: where the
        flag, an int32, is not 0, each result is the sum of the products that the definition has.
    """
    ROWS, CELLS, THREADS, ROW_WARPS, DEPTH, STAGES = tile.rows, tile.cells, tile.threads, tile.row_warps, tile.depth, tile.stages
    SUMS, ROW_TILE, CELL_TILE = 32 * tile.quads, 4 * DEPTH * ROWS, 4 * DEPTH * CELLS  # the staged tiles in bytes
    STAGED, WARP_CELLS = STAGES * DEPTH * (ROWS + CELLS), 32 * tile.quads
    TEAM = THREADS // CELLS  # threads that gather for one cell
    FETCHES = DEPTH // QUAD // TEAM  # quads of a tile that each of them gathers
    ZEROS = (np.float32(0),) * (QUAD * FETCHES)
    PIECES = DEPTH * ROWS // 4  # of 16 bytes in a tile of the weight
    COPIES = -(-PIECES // THREADS)
    STAGE = 4 * 8 * _PITCH if channels_last_result else 4 * 4 * WARP_CELLS  # bytes
    wait, load_quads = ptx.wait_async(STAGES - 2), _load_quads(FETCHES)
    multiply, write = _multiply(tile), _write(tile, channels_last_result)

    def implicit_gemm(source, weight, bias, result, flag, g):  # type: ignore[no-untyped-def]
        thread, block, group = int32(cuda.threadIdx.x), uint32(cuda.blockIdx.x), int32(cuda.blockIdx.y)
        cell_tile = uint32(block // uint32(g.row_tiles))
        first_row = int32((block - cell_tile * uint32(g.row_tiles)) * uint32(ROWS))
        if transposed and _flag(flag) != int32(0):
            _sum_defined(source, weight, bias, result, group, first_row, uint32(cell_tile * uint32(CELLS)), ROWS, CELLS, DEPTH, g)
            return
        staged_rows = ptx.shared_address(cuda.shared.array(STAGED, float32, 16))
        staged_cells = uint32(staged_rows + uint32(STAGES * ROW_TILE))
        offsets = ptx.shared_address(cuda.shared.array(CELLS, int64))

        # The cell that this thread gathers, and where its results go.
        member, own = int32(thread // int32(CELLS)), int32(thread % int32(CELLS))
        image, d, h, w = _place(uint32(cell_tile * uint32(CELLS) + uint32(own)), g)
        exists = image < g.images
        if thread < int32(CELLS):
            at = int64(image) * g.result_image + int64(d) * g.result_d + int64(h) * g.result_h + int64(w) * g.result_w
            _put_offset(uint32(offsets + uint32(own * 8)), int64(at * 4) if exists else int64(_NOWHERE))
        cell = int32(d * g.step_d + g.shift_d), int32(h * g.step_h + g.shift_h), int32(w * g.step_w + g.shift_w), exists
        stride = int64(g.source_channel * 4)
        origin = int64(source) + int64(image) * g.source_image * 4 + int64(group) * int64(g.channels) * stride
        gathered = uint32(staged_cells + uint32((member * int32(QUAD * CELLS) + own) * 4))
        team = int32(TEAM)
        walk = _first_quad(member, team, origin, g)
        values = ZEROS

        weight_row = int64(int64(group) * int64(g.tiles) * DEPTH + int64(thread // int32(ROWS // 4)))
        weight_at = int64(weight) + (weight_row * int64(g.padded_rows) + int64(first_row + thread % int32(ROWS // 4) * 4)) * 4
        weight_step = int64(g.padded_rows) * 4
        copied = uint32(staged_rows + uint32(thread * 16))

        warp, lane = int32(thread >> 5), int32(thread & 31)
        warp_row, warp_cell = int32(warp % int32(ROW_WARPS) * 32), int32(warp // int32(ROW_WARPS) * int32(WARP_CELLS))
        rows = uint32(staged_rows + uint32((warp_row + _lane_row(lane) * 4) * 4))
        cells = uint32(staged_cells + uint32((warp_cell + _lane_cell(lane) * 4) * 4))
        sums = cuda.local.array(SUMS, float32)
        for i in range(SUMS):
            sums[i] = float32(0)

        # Each round copies a tile into one stage and multiplies the one of the next stage, which was copied STAGES - 1 rounds ago.
        turn, tile = uint32(0), int32(1 - STAGES)
        while tile < g.tiles:
            if int32(tile + int32(STAGES - 1)) < g.tiles:
                for i in range(COPIES):
                    if COPIES * THREADS == PIECES or thread < int32(PIECES):
                        to = uint32(copied + uint32(turn * uint32(ROW_TILE)) + uint32(i * THREADS * 16))
                        _copy16(to, uint64(weight_at + weight_step * (i * THREADS // (ROWS // 4))), uint32(16))
                weight_at = int64(weight_at + weight_step * DEPTH)
                if channels_last_source:
                    walk, values = load_quads(walk, team, cell, origin, g)
                else:
                    for i in range(FETCHES):
                        walk = _next_quad(walk, team, cell, origin, g)
                        left = int32(walk[5] - walk[0])
                        for k in range(QUAD):
                            to = uint32(gathered + uint32(turn * uint32(CELL_TILE)) + uint32((i * TEAM * QUAD + k) * CELLS * 4))
                            _copy4(to, uint64(walk[4] + stride * k), uint32(4 if int32(k) < left else 0))
            ptx.commit_async()
            if tile >= int32(0):
                other = uint32(turn + uint32(1)) if turn < uint32(STAGES - 1) else uint32(0)
                left, right = uint32(rows + other * uint32(ROW_TILE)), uint32(cells + other * uint32(CELL_TILE))
                multiply(sums, left, right)
                if DEPTH > EIGHT:
                    multiply(sums, uint32(left + uint32(EIGHT * ROWS * 4)), uint32(right + uint32(EIGHT * CELLS * 4)))
            if channels_last_source and int32(tile + int32(STAGES - 1)) < g.tiles:
                for i in range(FETCHES):
                    for k in range(QUAD):
                        to = uint32(gathered + uint32(turn * uint32(CELL_TILE)) + uint32((i * TEAM * QUAD + k) * CELLS * 4))
                        _put(to, values[i * QUAD + k])
            wait()
            cuda.syncthreads()
            turn, tile = uint32(turn + uint32(1)) if turn < uint32(STAGES - 1) else uint32(0), int32(tile + 1)

        row = int32(first_row + warp_row)
        bias_at = int64(bias) + (int64(group) * int64(g.padded_rows) + int64(row + _lane_row(lane) * 4)) * 4
        for i in range(8):
            more = _load(uint64(bias_at + (i if i < 4 else i + 12) * 4))
            for j in range(SUMS // 8):
                sums[i * (SUMS // 8) + j] = float32(sums[i * (SUMS // 8) + j] + more)
        step = int64(g.result_channel * 4)
        to = int64(result) + (int64(group) * int64(g.rows) + int64(row)) * step
        stage = uint32(staged_rows + uint32(warp * int32(STAGE)))
        write(sums, stage, uint32(offsets + uint32(warp_cell * 8)), lane, to, step, int32(g.rows - row))

    kinds = ("-from-last" * channels_last_source, "-to-last" * channels_last_result, "-transposed" * transposed)
    name = f"implicit-gemm-{tile}{''.join(kinds)}"
    return launch.Kernel(name, implicit_gemm, _SIGNATURE, THREADS, tile.blocks)
