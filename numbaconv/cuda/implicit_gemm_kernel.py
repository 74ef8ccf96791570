"""The kernel of implicit GEMM in float32: a product of packed weights and source cells that are gathered as they are needed.

The view as a matrix product: its rows are the result channels of a group, its columns the result cells of all images one after the
other, and it sums over k, which runs through the taps and for each of them through the channels, padded to a multiple of four.  Every
result is one chain of fused multiply-adds in that order from zero on, the bias added last: its bits depend on nothing else.

A block of threads computes a tile of rows and cells.  Each thread gathers the source of one cell, quad by quad: a quad is four channels of
one tap.  Cells of the padding are zeros in shared memory and are multiplied.  Two tiles of some steps of k are in shared memory: while one
is multiplied, the next one is copied.

The layout of a warp's threads, four by eight interleaved, is that of CUTLASS's SIMT kernels: any sixteen lanes read 128 different bytes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import float32, int32, int64, types, uint32, uint64

from . import launch, ptx
from .implicit_gemm_gather import GEOMETRY, PLACE_BYTES, QUAD, first_quad, next_quad, put_cell, sum_defined
from .implicit_gemm_write import lane_cell, lane_row, stage_bytes, write

EIGHT = 8
"""Steps of k that one call of ``multiply`` takes."""


class Tile(NamedTuple):
    """How a block is made: warps along rows and along cells; a thread has 8 rows and ``quads`` times 4 cells.

    depth : steps of k, 8 or 16; high : threads of a warp along rows, 4 or 2
    """

    row_warps: int
    cell_warps: int
    quads: int
    depth: int
    high: int = 4

    @property
    def rows(self) -> int:
        return 8 * self.high * self.row_warps

    @property
    def cells(self) -> int:
        return 128 // self.high * self.quads * self.cell_warps

    @property
    def threads(self) -> int:
        return 32 * self.row_warps * self.cell_warps

    @property
    def blocks(self) -> int:
        """Blocks on one multiprocessor: 512 threads with up to 128 registers, or 640 with up to 96."""
        return (640 if self.quads == 1 and self.high == 4 else 512) // self.threads

    def __str__(self) -> str:
        return f"{self.rows}x{self.cells}-{self.threads}-{self.depth}"


_SIGNATURE = (types.uint64,) * 5 + (GEOMETRY,)

_copy4, _copy16, _copy_quad, _wait = ptx.copy_async(4), ptx.copy_async(16), ptx.copy_async(16, again=True), ptx.wait_async(0)
_load, _shared4, _put = ptx.load("float32"), ptx.load_shared("float32", 4), ptx.store_shared("float32")
_flag = ptx.load("int32")


def _device(function: Any) -> Any:
    return cuda.jit(device=True)(function)


@functools.cache
def _multiply(tile: Tile, turned: int) -> Any:
    """``multiply(sums, rows, cells)``: add the products of eight steps of k; the compiler unrolls no loop of this size.

    turned : in every other quad of k, the bytes by which pairs of cells have changed places
    """
    ROW_BYTES, CELL_BYTES, QUADS, SIDE = tile.rows * 4, tile.cells * 4, tile.quads, 4 * tile.quads
    BELOW, BESIDE = 16 * tile.high, 512 // tile.high  # bytes from a thread's first four rows and cells to its others

    @_device
    def add(sums, rows, cells, k):  # type: ignore[no-untyped-def]
        left, right = cuda.local.array(8, float32), cuda.local.array(8, float32)
        for half in range(2):
            found = _shared4(uint32(rows + uint32(k * ROW_BYTES + half * BELOW)))
            for i in range(4):
                left[half * 4 + i] = found[i]
        for half in range(QUADS):
            found = _shared4(uint32((cells ^ uint32(k // QUAD % 2 * turned)) + uint32(k * CELL_BYTES + half * BESIDE)))
            for i in range(4):
                right[half * 4 + i] = found[i]
        for i in range(8):
            for j in range(SIDE):
                sums[i * SIDE + j] = cuda.fma(left[i], right[j], sums[i * SIDE + j])

    @_device
    def multiply(sums, rows, cells):  # type: ignore[no-untyped-def]
        add(sums, rows, cells, 0)
        add(sums, rows, cells, 1)
        add(sums, rows, cells, 2)
        add(sums, rows, cells, 3)
        add(sums, rows, cells, 4)
        add(sums, rows, cells, 5)
        add(sums, rows, cells, 6)
        add(sums, rows, cells, 7)

    return multiply


@functools.cache
def kernel(tile: Tile, channels_last_source: bool, form: str, transposed: bool) -> launch.Kernel:
    """The kernel of a tile; its addresses are those of source, packed weight, packed bias, result, and of a flag.

    channels_last_source : the channels of the source follow one another and their count is a multiple of four at addresses of a multiple
        of 16 bytes: a quad is one copy, which its thread then transposes in shared memory.  Otherwise any strides, four copies a quad.
    form : how results are written, as :func:`.implicit_gemm_write.write` describes it.
    transposed : of an input gradient, where zeros that stand for no source cell are multiplied only while the weight is finite: where the
        flag, an int32, is not 0, each result is the sum of the products that the definition has.
    """
    ROWS, CELLS, THREADS, ROW_WARPS, DEPTH = tile.rows, tile.cells, tile.threads, tile.row_warps, tile.depth
    SUMS, ROW_TILE, CELL_TILE = 32 * tile.quads, 4 * DEPTH * ROWS, 4 * DEPTH * CELLS  # the staged tiles in bytes
    STAGED, WARP_ROWS, WARP_CELLS = 2 * DEPTH * (ROWS + CELLS), 8 * tile.high, 128 // tile.high * tile.quads
    # Channels last: two threads that load neighbouring quads of one cell are neighbours themselves.  They write 16 cells of one quad and
    # 16 of the other to different banks of shared memory, since every other quad has its cells turned by 16.
    PAIRED = channels_last_source and CELLS <= THREADS
    TURNED = 64 if PAIRED else 0  # bytes
    TEAM = 2 if PAIRED else max(1, THREADS // CELLS)  # threads that gather for one cell
    EACH = CELLS * TEAM // THREADS  # cells that each of them gathers for, one or two
    HALF = CELLS // 2  # from one of two to the other
    FETCHES = DEPTH // QUAD // TEAM  # quads of a tile and a cell
    PLACES, NEXT_PLACE = PLACE_BYTES // 4 * THREADS * EACH, PLACE_BYTES * THREADS
    PIECES = DEPTH * ROWS // 4  # of 16 bytes in a tile of the weight
    COPIES = -(-PIECES // THREADS)
    STAGE, BELOW = stage_bytes(tile.high, tile.quads, form), 4 * tile.high
    row_of, cell_of = lane_row(tile.high), lane_cell(tile.high)
    QUADS = 4 * THREADS * FETCHES * EACH if channels_last_source else 4  # floats in which they arrive
    multiply, write_results = _multiply(tile, TURNED), write(tile.high, tile.quads, form)

    @_device
    def copy(walk, to, stride):  # type: ignore[no-untyped-def]
        left = int32(walk[2] - walk[0])
        if channels_last_source:
            _copy_quad(to, uint64(walk[1]), uint32(16 if int32(0) < left else 0))
        else:
            for k in range(QUAD):
                _copy4(uint32(to + uint32(k * CELLS * 4)), uint64(walk[1] + stride * k), uint32(4 if int32(k) < left else 0))

    def implicit_gemm(source, weight, bias, result, flag, g):  # type: ignore[no-untyped-def]
        thread, block, group = int32(cuda.threadIdx.x), uint32(cuda.blockIdx.x), int32(cuda.blockIdx.y)
        cell_tile = uint32(block // uint32(g.row_tiles))
        first_row = int32((block - cell_tile * uint32(g.row_tiles)) * uint32(ROWS))
        if transposed and _flag(flag) != int32(0):
            sum_defined(source, weight, bias, result, group, first_row, uint32(cell_tile * uint32(CELLS)), ROWS, CELLS, DEPTH, g)
            return
        staged_rows = ptx.shared_address(cuda.shared.array(STAGED, float32, 128))
        staged_cells = uint32(staged_rows + uint32(2 * ROW_TILE))
        offsets = ptx.shared_address(cuda.shared.array(CELLS, int64))

        # The cell that this thread gathers for, or the two.
        if PAIRED:
            member, own = int32(thread & 1), int32(thread >> 1)
        else:
            member, own = int32(thread // int32(CELLS)), int32(thread % int32(CELLS))
        place = uint32(ptx.shared_address(cuda.shared.array(PLACES, int32, 16)) + uint32(thread * int32(PLACE_BYTES)))
        for i in range(EACH):
            number, offset = uint32(cell_tile * uint32(CELLS) + uint32(own + i * HALF)), uint32(offsets + uint32((own + i * HALF) * 8))
            put_cell(number, uint32(place + uint32(i * NEXT_PLACE)), offset, member == int32(0), source, group, g)
        gathered = uint32(staged_cells + uint32((member * int32(QUAD * CELLS) + (own ^ member * int32(TURNED // 4))) * 4))
        team, stride = int32(TEAM), int64(g.source_channel * 4)
        walk = first_quad(member, team, g)
        walk_on = walk
        arrived = uint32(ptx.shared_address(cuda.shared.array(QUADS, float32, 16)) + uint32(thread * 16))

        weight_row = int64(int64(group) * int64(g.tiles) * DEPTH + int64(thread // int32(ROWS // 4)))
        weight_at = int64(weight) + (weight_row * int64(g.padded_rows) + int64(first_row + thread % int32(ROWS // 4) * 4)) * 4
        weight_step = int64(g.padded_rows) * 4
        copied = uint32(staged_rows + uint32(thread * 16))

        warp, lane = int32(thread >> 5), int32(thread & 31)
        warp_row, warp_cell = int32(warp % int32(ROW_WARPS) * int32(WARP_ROWS)), int32(warp // int32(ROW_WARPS) * int32(WARP_CELLS))
        rows = uint32(staged_rows + uint32((warp_row + row_of(lane) * 4) * 4))
        cells = uint32(staged_cells + uint32((warp_cell + cell_of(lane) * 4) * 4))
        sums = cuda.local.array(SUMS, float32)
        for i in range(SUMS):
            sums[i] = float32(0)

        # Each round copies a tile into one half of the stage and multiplies the other half.
        turn, tile = uint32(0), int32(-1)
        while tile < g.tiles:
            if int32(tile + 1) < g.tiles:
                for i in range(COPIES):
                    if COPIES * THREADS == PIECES or thread < int32(PIECES):
                        to = uint32(copied + uint32(turn * uint32(ROW_TILE)) + uint32(i * THREADS * 16))
                        _copy16(to, uint64(weight_at + weight_step * (i * THREADS // (ROWS // 4))), uint32(16))
                weight_at = int64(weight_at + weight_step * DEPTH)
                for i in range(FETCHES):
                    to = uint32(gathered + uint32(turn * uint32(CELL_TILE)) + uint32(i * TEAM * QUAD * CELLS * 4))
                    walk = next_quad(walk, team, place, g)
                    copy(walk, uint32(arrived + uint32(i * THREADS * 16)) if channels_last_source else to, stride)
                    if EACH == 2:
                        walk_on = next_quad(walk_on, team, uint32(place + uint32(NEXT_PLACE)), g)
                        slot = uint32(arrived + uint32((FETCHES + i) * THREADS * 16))
                        copy(walk_on, slot if channels_last_source else uint32(to + uint32(HALF * 4)), stride)
            ptx.commit_async()
            if tile >= int32(0):
                other = uint32(turn ^ uint32(1))
                left, right = uint32(rows + other * uint32(ROW_TILE)), uint32(cells + other * uint32(CELL_TILE))
                multiply(sums, left, right)
                if DEPTH > EIGHT:
                    multiply(sums, uint32(left + uint32(EIGHT * ROWS * 4)), uint32(right + uint32(EIGHT * CELLS * 4)))
            _wait()
            if channels_last_source and int32(tile + 1) < g.tiles:
                for i in range(FETCHES * EACH):
                    quad = _shared4(uint32(arrived + uint32(i * THREADS * 16)))
                    to = uint32(gathered + uint32(turn * uint32(CELL_TILE)))
                    to = uint32(to + uint32(i % FETCHES * TEAM * QUAD * CELLS * 4 + i // FETCHES * HALF * 4))
                    for k in range(QUAD):
                        _put(uint32(to + uint32(k * CELLS * 4)), quad[k])
            cuda.syncthreads()
            turn, tile = uint32(turn ^ uint32(1)), int32(tile + 1)

        # The results.
        thread = ptx.thread_anew()
        warp, lane, block = int32(thread >> 5), int32(thread & 31), uint32(ptx.block_anew())
        warp_row, warp_cell = int32(warp % int32(ROW_WARPS) * int32(WARP_ROWS)), int32(warp // int32(ROW_WARPS) * int32(WARP_CELLS))
        row = int32(int32(block % uint32(g.row_tiles)) * int32(ROWS) + warp_row)
        bias_at = int64(bias) + (int64(group) * int64(g.padded_rows) + int64(row + row_of(lane) * 4)) * 4
        for i in range(8):
            more = _load(uint64(bias_at + (i if i < 4 else i - 4 + BELOW) * 4))
            for j in range(SUMS // 8):
                sums[i * (SUMS // 8) + j] = float32(sums[i * (SUMS // 8) + j] + more)
        step = int64(g.result_channel * 4)
        to = int64(result) + (int64(group) * int64(g.rows) + int64(row)) * step
        stage = uint32(staged_rows + uint32(warp * int32(STAGE)))
        write_results(sums, stage, uint32(offsets + uint32(warp_cell * 8)), lane, to, step, int32(g.rows - row))

    kinds = ("-from-last" * channels_last_source, f"-to-{form.replace(' ', '-')}", "-transposed" * transposed)
    name = f"implicit-gemm-{tile}{''.join(kinds)}"
    return launch.Kernel(name, implicit_gemm, _SIGNATURE, THREADS, tile.blocks)
