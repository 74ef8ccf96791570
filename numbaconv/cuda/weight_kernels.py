"""The weight gradient as an implicit GEMM in two kernels: products over a chunk of the cells, and the sum of the chunks.

``dW[o, c, tap] = sum over images n and cells y of grad[n, o, y] * input[n, c, y * stride + tap * dilation - padding]``: the rows of the
product are the output channels of a group, its columns the (channel, tap) pairs, and its long sum runs over the output cells of all images
in memory order.  The sum is cut into chunks, one a block of threads; a block computes a tile of ``rows`` x ``columns`` results for one
chunk and writes it to the workspace, from where the second kernel adds up the chunks.

Order of the sums, which neither layouts nor the number of multiprocessors change: within a chunk the products of a result form one chain
of multiply-adds, cell after cell, in the accumulator's dtype; chunks of the same number modulo 8 are added in ascending order, then
the eight sums, both in float64.

Source of the tiling: https://github.com/NVIDIA/cutlass/blob/main/media/docs/cpp/efficient_gemm.md
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from numba import cuda, njit
from numba.cuda import types
from numba.cuda.types import int32, int64, uint32, uint64

from ..padding import source_index
from . import ptx
from .elements import element
from .geometry import named
from .launch import Kernel

DEPTH = 8
"""Cells in one step of a tile."""
STAGES = 3
"""Steps in shared memory: one is used while the others arrive."""
SLICES = 8
"""Threads that share the chunks of one result."""
FOLDED = 32
"""Results of one block of the second kernel."""

_AXES = ("d", "h", "w")
_COUNTS = (
    "rows", "columns", "channels", "taps", "row_tiles", "column_tiles", "groups", "mode", "by_tap", "chunk",
    *(f"{name}_{axis}" for name in ("out", "in", "kernel", "stride", "pad", "dilation", "jump", "grad", "cell") for axis in _AXES),
    "jump_image", "grad_channel", "cell_channel",
)  # fmt: skip
_LONG = ("grad_image", "cell_image", "cells", "total")
Geometry: Any = named("Geometry", _COUNTS + _LONG)
"""Numbers of the first kernel: strides are in elements.

rows, columns : output channels of a group, and its (channel, tap) pairs; by_tap : whether neighbouring columns are taps of one channel
chunk : cells of a chunk, a multiple of DEPTH; cells, total : of one image, of all images
jump_* : DEPTH cells as a step of (images, d, h, w), each digit below its axis
grad_*, cell_* : strides of the output gradient and of the input
"""
GEOMETRY = types.NamedTuple((int32,) * len(_COUNTS) + (int64,) * len(_LONG), Geometry)


@dataclass(frozen=True)
class Tile:
    """Results of a block and of a thread, and how operands are read.

    rows, columns : of a block, multiples of 16; each : results of a thread along each axis
    grad_lanes, cell_lanes : neighbouring channels that one copy moves (4 where they are contiguous and aligned, else 1)
    mapped : whether padded cells read the input (a padding mode other than zeros)
    """

    rows: int
    columns: int
    each: int = 8
    grad_lanes: int = 1
    cell_lanes: int = 1
    mapped: bool = False

    @property
    def threads(self) -> int:
        return self.rows * self.columns // self.each**2


@functools.cache
def products(dtype: str, tile: Tile) -> Kernel:
    """``(grad, input, workspace, geometry)``: grid (groups * tiles, chunks), workspace (chunks, groups, rows, columns)."""
    sums = element(dtype).accumulator
    signature = (uint64, uint64, uint64, GEOMETRY)
    name = f"weight_{dtype}_{tile.rows}x{tile.columns}_{tile.grad_lanes}{tile.cell_lanes}" + "_mapped" * tile.mapped
    blocks = max(1, 512 // tile.threads) if sums == "float32" else 1
    return Kernel(name, _products(dtype, sums, tile), signature, tile.threads, blocks)


def _products(dtype: str, sums: str, tile: Tile) -> Any:
    ROWS, COLUMNS, EACH, THREADS = tile.rows, tile.columns, tile.each, tile.threads
    MAPPED, GRAD_LANES, CELL_LANES = tile.mapped, tile.grad_lanes, tile.cell_lanes
    SIZE, WIDE = element(dtype).bytes, element(sums).bytes
    LANES = 16 // WIDE  # of one load from shared memory
    PIECES = EACH // LANES
    THREAD_COLUMNS = COLUMNS // EACH
    ROW_PITCH, COLUMN_PITCH = ROWS + LANES, COLUMNS + LANES  # so that 8 cells x 4 rows of a warp's copies meet 32 banks
    ROW_SHARED, COLUMN_SHARED, TABLE, RESULTS = STAGES * DEPTH * ROW_PITCH, STAGES * DEPTH * COLUMN_PITCH, COLUMNS * 4, EACH**2
    STEP = THREADS // DEPTH
    GRAD_COPIES, CELL_COPIES = ROWS * DEPTH // (THREADS * GRAD_LANES), COLUMNS * DEPTH // (THREADS * CELL_LANES)
    SUMS, ZERO = getattr(types, sums), element(sums).zero
    copy_grad, copy_cells = _copy(dtype, sums, GRAD_LANES), _copy(dtype, sums, CELL_LANES)
    load_piece, load_column, store_column = ptx.load_shared(sums, LANES), ptx.load_shared("int32", 4), ptx.store_shared("int32", 4)
    store_piece, mapped = ptx.store(sums), njit(inline="always")(source_index)
    commit, wait, shared_address = ptx.commit_async, ptx.wait_async(STAGES - 2), ptx.shared_address

    def kernel(grad, source, workspace, g):  # type: ignore[no-untyped-def]
        row_steps = cuda.shared.array(ROW_SHARED, SUMS, alignment=16)
        column_steps = cuda.shared.array(COLUMN_SHARED, SUMS, alignment=16)
        table = cuda.shared.array(TABLE, int32, alignment=16)  # of each column: offset in the input, place of its tap along the axes
        row_base, column_base, table_base = shared_address(row_steps), shared_address(column_steps), shared_address(table)
        acc = cuda.local.array(RESULTS, SUMS)
        left = cuda.local.array(EACH, SUMS)
        right = cuda.local.array(EACH, SUMS)
        for i in range(EACH * EACH):
            acc[i] = ZERO

        thread = int32(cuda.threadIdx.x)
        block = int32(cuda.blockIdx.x)
        column_tile, block = int32(block % g.column_tiles), int32(block // g.column_tiles)
        row_tile, group = int32(block % g.row_tiles), int32(block // g.row_tiles)
        first_row, first_column = int32(row_tile * int32(ROWS)), int32(column_tile * int32(COLUMNS))
        for i in range(thread, COLUMNS, THREADS):
            column = min(int32(first_column + int32(i)), int32(g.columns - int32(CELL_LANES)))  # those beyond the last are not stored
            if g.by_tap != 0:
                channel, tap = int32(column // g.taps), int32(column % g.taps)
            else:
                tap, channel = int32(column // g.channels), int32(column % g.channels)
            line, w = int32(tap // g.kernel_w), int32(tap % g.kernel_w)
            d, h = int32(line // g.kernel_h), int32(line % g.kernel_h)
            d = int32(int32(d * g.dilation_d) - g.pad_d)
            h = int32(int32(h * g.dilation_h) - g.pad_h)
            w = int32(int32(w * g.dilation_w) - g.pad_w)
            offset = int32(channel * g.cell_channel)
            if not MAPPED:
                offset = int32(offset + int32(int32(int32(d * g.cell_d) + int32(h * g.cell_h)) + int32(w * g.cell_w)))
            store_column(uint32(table_base + uint32(uint32(i) * uint32(16))), (offset, d, h, w))

        # This thread's cell of a step, and the first of its rows and columns.
        lane, own = int32(thread % int32(DEPTH)), int32(thread // int32(DEPTH))
        start = int64(int64(cuda.blockIdx.y) * int64(g.chunk))
        count = int32(min(int64(g.chunk), int64(g.total - start)))
        image = int64(int64(start + int64(lane)) // g.cells)
        rest = int32(int64(start + int64(lane)) - int64(image * g.cells))
        line, w = int32(rest // g.out_w), int32(rest % g.out_w)
        d, h = int32(line // g.out_h), int32(line % g.out_h)
        grad = uint64(grad + uint64(int64(int64(group) * int64(g.rows)) * int64(g.grad_channel)) * uint64(SIZE))
        source = uint64(source + uint64(int64(int64(group) * int64(g.channels)) * int64(g.cell_channel)) * uint64(SIZE))
        row_lane = uint32(row_base + uint32(uint32(lane * int32(ROW_PITCH)) * uint32(WIDE)))
        column_lane = uint32(column_base + uint32(uint32(lane * int32(COLUMN_PITCH)) * uint32(WIDE)))
        thread_row = uint32(uint32(thread // int32(THREAD_COLUMNS)) * uint32(LANES * WIDE))
        thread_column = uint32(uint32(thread % int32(THREAD_COLUMNS)) * uint32(LANES * WIDE))
        cuda.syncthreads()

        steps = int32(int32(count + int32(DEPTH - 1)) // int32(DEPTH))
        arriving, used = uint32(0), uint32(0)
        for step in range(int32(steps + int32(STAGES - 1))):
            step = int32(step)
            if step >= int32(STAGES - 1):
                wait()
                cuda.syncthreads()
            if step < steps:
                inside = lane < int32(count - int32(step * int32(DEPTH)))
                place = int32(int32(int32(d * g.grad_d) + int32(h * g.grad_h)) + int32(w * g.grad_w))
                image_base = uint64(grad + uint64(int64(image * g.grad_image)) * uint64(SIZE))
                for i in range(GRAD_COPIES):
                    at = int32(int32(own + int32(i * STEP)) * int32(GRAD_LANES))
                    row = min(int32(first_row + at), int32(g.rows - int32(GRAD_LANES)))
                    offset = int32(place + int32(row * g.grad_channel))
                    copy_grad(
                        uint32(uint32(row_lane + uint32(arriving * uint32(DEPTH * ROW_PITCH * WIDE))) + uint32(uint32(at) * uint32(WIDE))),
                        uint64(image_base + uint64(int64(offset)) * uint64(SIZE)),
                        inside,
                    )
                from_d, from_h, from_w = int32(d * g.stride_d), int32(h * g.stride_h), int32(w * g.stride_w)
                place = int32(int32(int32(from_d * g.cell_d) + int32(from_h * g.cell_h)) + int32(from_w * g.cell_w))
                image_base = uint64(source + uint64(int64(image * g.cell_image)) * uint64(SIZE))
                for i in range(CELL_COPIES):
                    at = int32(int32(own + int32(i * STEP)) * int32(CELL_LANES))
                    offset, tap_d, tap_h, tap_w = load_column(uint32(table_base + uint32(uint32(at) * uint32(16))))
                    tap_d, tap_h, tap_w = int32(from_d + tap_d), int32(from_h + tap_h), int32(from_w + tap_w)
                    if MAPPED:
                        tap_d = int32(mapped(tap_d, g.in_d, g.mode))
                        tap_h = int32(mapped(tap_h, g.in_h, g.mode))
                        tap_w = int32(mapped(tap_w, g.in_w, g.mode))
                        offset = int32(offset + int32(int32(int32(tap_d * g.cell_d) + int32(tap_h * g.cell_h)) + int32(tap_w * g.cell_w)))
                    else:
                        offset = int32(offset + place)
                    copy_cells(
                        uint32(
                            uint32(column_lane + uint32(arriving * uint32(DEPTH * COLUMN_PITCH * WIDE))) + uint32(uint32(at) * uint32(WIDE))
                        ),
                        uint64(image_base + uint64(int64(offset)) * uint64(SIZE)),
                        inside and uint32(tap_d) < uint32(g.in_d) and uint32(tap_h) < uint32(g.in_h) and uint32(tap_w) < uint32(g.in_w),
                    )
                # The next step's cell: an addition digit by digit, with carries.
                w = int32(w + g.jump_w)
                carry = w >= g.out_w
                w = int32(w - g.out_w) if carry else w
                h = int32(int32(h + g.jump_h) + int32(carry))
                carry = h >= g.out_h
                h = int32(h - g.out_h) if carry else h
                d = int32(int32(d + g.jump_d) + int32(carry))
                carry = d >= g.out_d
                d = int32(d - g.out_d) if carry else d
                image = int64(image + int64(int32(g.jump_image + int32(carry))))
                arriving = uint32(0) if arriving == uint32(STAGES - 1) else uint32(arriving + uint32(1))
            commit()
            if step >= int32(STAGES - 1):
                row_at = uint32(uint32(row_base + uint32(used * uint32(DEPTH * ROW_PITCH * WIDE))) + thread_row)
                column_at = uint32(uint32(column_base + uint32(used * uint32(DEPTH * COLUMN_PITCH * WIDE))) + thread_column)
                for k in range(DEPTH):
                    for p in range(PIECES):
                        piece = load_piece(uint32(row_at + uint32((k * ROW_PITCH + p * (ROWS // PIECES)) * WIDE)))
                        other = load_piece(uint32(column_at + uint32((k * COLUMN_PITCH + p * (COLUMNS // PIECES)) * WIDE)))
                        for j in range(LANES):
                            left[p * LANES + j] = piece[j]
                            right[p * LANES + j] = other[j]
                    for i in range(EACH):
                        for j in range(EACH):
                            acc[i * EACH + j] += left[i] * right[j]
                used = uint32(0) if used == uint32(STAGES - 1) else uint32(used + uint32(1))

        at = int64(int64(int64(cuda.blockIdx.y) * int64(g.groups) + int64(group)) * int64(g.rows))
        for i in range(EACH):
            row = int32(first_row + int32(i // LANES * (ROWS // PIECES) + i % LANES))
            row = int32(row + int32(int32(thread // int32(THREAD_COLUMNS)) * int32(LANES)))
            for j in range(EACH):
                column = int32(first_column + int32(j // LANES * (COLUMNS // PIECES) + j % LANES))
                column = int32(column + int32(int32(thread % int32(THREAD_COLUMNS)) * int32(LANES)))
                if row < g.rows and column < g.columns:
                    place64 = int64(int64(int64(at + int64(row)) * int64(g.columns)) + int64(column))
                    store_piece(uint64(workspace + uint64(place64) * uint64(WIDE)), acc[i * EACH + j])

    return kernel


@functools.cache
def _copy(dtype: str, sums: str, lanes: int) -> Any:
    """``copy(shared, address, taken)``: elements, or zeros, as the accumulator's dtype; asynchronous where nothing widens."""
    if dtype == sums:
        size = element(dtype).bytes * lanes
        copy_async = ptx.copy_async(size)

        @njit(inline="always")
        def copy(shared, address, taken):  # type: ignore[no-untyped-def]
            copy_async(shared, address, uint32(size) if taken else uint32(0))

        return copy
    load, store, step, wide, zero = (
        element(dtype).load,
        ptx.store_shared(sums),
        element(dtype).bytes,
        element(sums).bytes,
        element(sums).zero,
    )

    @njit(inline="always")
    def widen(shared, address, taken):  # type: ignore[no-untyped-def]
        for i in range(lanes):
            value = zero
            if taken:
                value = load(uint64(address + uint64(i * step)))
            store(uint32(shared + uint32(i * wide)), value)

    return widen


# ---- the sum of the chunks -----------------------------------------------------------------------------------------------
_FOLD_COUNTS = ("rows", "columns", "channels", "taps", "by_tap", "chunks", "kernel_h", "kernel_w")
_FOLD_LONG = ("results", "to_row", "to_channel", "to_d", "to_h", "to_w")
FoldGeometry: Any = named("FoldGeometry", _FOLD_COUNTS + _FOLD_LONG)
"""Numbers of the second kernel: results : of all groups; to_* : strides of dW in elements, to_row that of its output channels."""
FOLD_GEOMETRY = types.NamedTuple((int32,) * len(_FOLD_COUNTS) + (int64,) * len(_FOLD_LONG), FoldGeometry)


@functools.cache
def fold(dtype: str) -> Kernel:
    """``(workspace, dW, geometry)``: grid (results / FOLDED); dW[o, c, tap] is the sum of the chunks, rounded once."""
    return Kernel(f"weight_fold_{dtype}", _fold(dtype), (uint64, uint64, FOLD_GEOMETRY), FOLDED * SLICES)


def _fold(dtype: str) -> Any:
    sums = element(dtype).accumulator
    load, store, SIZE, WIDE, SUMS = ptx.load(sums), element(dtype).store, element(dtype).bytes, element(sums).bytes, getattr(types, sums)
    SHARED = FOLDED * SLICES

    def kernel(workspace, weight, g):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(SHARED, types.float64)
        thread = int32(cuda.threadIdx.x)
        slice_, lane = int32(thread // int32(FOLDED)), int32(thread % int32(FOLDED))
        result = int64(int64(cuda.blockIdx.x) * int64(FOLDED) + int64(lane))
        total = types.float64(0)
        if result < g.results:
            for chunk in range(slice_, g.chunks, SLICES):
                at = int64(int64(chunk) * g.results + result)
                total += types.float64(load(uint64(workspace + uint64(at) * uint64(WIDE))))
        shared[thread] = total
        cuda.syncthreads()
        if slice_ == int32(0) and result < g.results:
            for i in range(1, SLICES):
                total += shared[i * FOLDED + lane]
            row = int64(result // int64(g.columns))
            column = int32(result - int64(row * int64(g.columns)))
            if g.by_tap != int32(0):
                channel, tap = int32(column // g.taps), int32(column % g.taps)
            else:
                tap, channel = int32(column // g.channels), int32(column % g.channels)
            line, w = int32(tap // g.kernel_w), int32(tap % g.kernel_w)
            d, h = int32(line // g.kernel_h), int32(line % g.kernel_h)
            at = int64(row * g.to_row) + int64(int64(channel) * g.to_channel)
            at = int64(at + int64(int64(d) * g.to_d) + int64(int64(h) * g.to_h) + int64(int64(w) * g.to_w))
            store(uint64(weight + uint64(at) * uint64(SIZE)), SUMS(total))

    return kernel
