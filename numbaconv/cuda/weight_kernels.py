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
import math
from dataclasses import dataclass
from typing import Any

from numba import cuda
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
"""Numbers of the first kernel.

rows, columns : output channels of a group, and its (channel, tap) pairs; by_tap : whether neighbouring columns are taps of one channel
chunk : cells of a chunk, a multiple of DEPTH; cells, total : of one image, of all images
jump_* : DEPTH cells as a step of (images, d, h, w), each digit below its axis
grad_*, cell_* : strides of the output gradient and of the input, in elements, from image to image in bytes
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
    ROWS, COLUMNS, EACH, GRAD_LANES, CELL_LANES = tile.rows, tile.columns, tile.each, tile.grad_lanes, tile.cell_lanes
    SIZE, WIDE = element(dtype).bytes, element(sums).bytes
    LANES = 16 // WIDE  # of one load from shared memory
    ROW_PITCH, COLUMN_PITCH = (ROWS + LANES) * WIDE, (COLUMNS + LANES) * WIDE  # so that 8 cells x 4 rows of a warp's copies meet 32 banks
    ROW_STEP, COLUMN_STEP = DEPTH * ROW_PITCH, DEPTH * COLUMN_PITCH
    ROW_SHARED, COLUMN_SHARED, TABLE = STAGES * ROW_STEP // WIDE, STAGES * COLUMN_STEP // WIDE, ROWS + COLUMNS * 4
    ACROSS, RESULTS, SUMS, ZERO = COLUMNS // EACH, EACH**2, getattr(types, sums), element(sums).zero
    tabulate, multiply, write = _tabulate(tile), _multiply(sums, tile), _write(sums, tile)
    fetch_cells, fetch_grads = _fetch_cells(dtype, sums, tile), _fetch_grads(dtype, sums, tile)
    shared_address, opaque, commit, wait = ptx.shared_address, ptx.opaque, ptx.commit_async, ptx.wait_async(STAGES - 2)

    def kernel(grad, source, workspace, g):  # type: ignore[no-untyped-def]
        row_steps = cuda.shared.array(ROW_SHARED, SUMS, alignment=16)
        column_steps = cuda.shared.array(COLUMN_SHARED, SUMS, alignment=16)
        table = cuda.shared.array(TABLE, int32, alignment=16)
        row_base, column_base, table_base = shared_address(row_steps), shared_address(column_steps), shared_address(table)
        acc = cuda.local.array(RESULTS, SUMS)
        for i in range(RESULTS):
            acc[i] = ZERO

        thread = int32(cuda.threadIdx.x)
        tiles, column_tile = _divide(int32(cuda.blockIdx.x), g.column_tiles)
        group, row_tile = _divide(tiles, g.row_tiles)
        first_row, first_column = int32(row_tile * int32(ROWS)), int32(column_tile * int32(COLUMNS))
        tabulate(table_base, first_row, first_column, thread, g)

        # This thread's cell of a step, and the first of its rows and columns.
        lane, own = int32(thread % int32(DEPTH)), int32(thread // int32(DEPTH))
        start = int64(int64(cuda.blockIdx.y) * int64(g.chunk))
        left = int32(int32(min(int64(g.chunk), int64(g.total - start))) - lane)  # of the chunk, from this cell on
        first_image = int64(int64(start + int64(lane)) // g.cells)
        rest, w = _divide(int32(int64(start + int64(lane)) - int64(first_image * g.cells)), g.out_w)
        d, h = _divide(rest, g.out_h)
        image = uint32(0)
        at = int64(int64(int64(group) * int64(g.rows)) * int64(g.grad_channel))
        grad = opaque(uint64(grad + uint64(int64(first_image * g.grad_image) + int64(at * int64(SIZE)))))
        at = int64(int64(int64(group) * int64(g.channels)) * int64(g.cell_channel))
        source = opaque(uint64(source + uint64(int64(first_image * g.cell_image) + int64(at * int64(SIZE)))))
        row_lane = uint32(row_base + uint32(uint32(lane) * uint32(ROW_PITCH) + uint32(own) * uint32(GRAD_LANES * WIDE)))
        column_lane = uint32(column_base + uint32(uint32(lane) * uint32(COLUMN_PITCH) + uint32(own) * uint32(CELL_LANES * WIDE)))
        table_row = uint32(table_base + uint32(uint32(own) * uint32(GRAD_LANES * 4)))
        table_column = uint32(table_base + uint32(ROWS * 4 + uint32(own) * uint32(CELL_LANES * 16)))
        row_own = uint32(row_base + uint32(uint32(thread // int32(ACROSS)) * uint32(16)))
        column_own = uint32(column_base + uint32(uint32(thread % int32(ACROSS)) * uint32(16)))
        cuda.syncthreads()

        steps = int32(int32(int32(left + lane) + int32(DEPTH - 1)) // int32(DEPTH))
        arriving, used = uint32(0), uint32(0)
        for step in range(int32(steps + int32(STAGES - 1))):
            step = int32(step)
            if step >= int32(STAGES - 1):
                wait()
                cuda.syncthreads()
            if step < steps:
                exists = left > int32(0)
                left = int32(left - int32(DEPTH))
                at = uint64(source + uint64(uint64(image) * uint64(g.cell_image)))
                fetch_cells(uint32(column_lane + uint32(arriving * uint32(COLUMN_STEP))), table_column, at, d, h, w, exists, g)
                at = uint64(grad + uint64(uint64(image) * uint64(g.grad_image)))
                fetch_grads(uint32(row_lane + uint32(arriving * uint32(ROW_STEP))), table_row, at, d, h, w, exists, g)
                # The next step's cell: an addition digit by digit, with carries.
                w, carry = _add(w, g.jump_w, int32(0), g.out_w)
                h, carry = _add(h, g.jump_h, carry, g.out_h)
                d, carry = _add(d, g.jump_d, carry, g.out_d)
                image = uint32(image + uint32(int32(g.jump_image + carry)))
                arriving = uint32(0) if arriving == uint32(STAGES - 1) else uint32(arriving + uint32(1))
            commit()
            if step >= int32(STAGES - 1):
                row_at = uint32(row_own + uint32(used * uint32(ROW_STEP)))
                column_at = uint32(column_own + uint32(used * uint32(COLUMN_STEP)))
                for _ in range(0, DEPTH, 2):  # two in one turn, so that loads from shared memory overlap products
                    multiply(acc, row_at, column_at)
                    multiply(acc, uint32(row_at + uint32(ROW_PITCH)), uint32(column_at + uint32(COLUMN_PITCH)))
                    row_at, column_at = uint32(row_at + uint32(2 * ROW_PITCH)), uint32(column_at + uint32(2 * COLUMN_PITCH))
                used = uint32(0) if used == uint32(STAGES - 1) else uint32(used + uint32(1))
        write(workspace, acc, group, first_row, first_column, thread, g)

    return kernel


@cuda.jit(device=True, forceinline=True)
def _divide(number, size):  # type: ignore[no-untyped-def]
    """Quotient and remainder of numbers that are not negative."""
    above = int32(uint32(number) // uint32(size))
    return above, int32(number - int32(above * size))


@cuda.jit(device=True, forceinline=True)
def _add(digit, jump, carry, size):  # type: ignore[no-untyped-def]
    """A digit and its carry after an addition."""
    total = int32(int32(digit + jump) + carry)
    over = total >= size
    return (int32(total - size), int32(1)) if over else (total, int32(0))


def _fetch_cells(dtype: str, sums: str, tile: Tile) -> Any:
    """Start the copies of this thread's input cells of a step: those that the taps of its columns meet from its output cell."""
    LANES, MAPPED, SIZE, WIDE = tile.cell_lanes, tile.mapped, element(dtype).bytes, element(sums).bytes
    STEP, COPIES = tile.threads // DEPTH * tile.cell_lanes, tile.columns * DEPTH // (tile.threads * tile.cell_lanes)
    BATCH = math.gcd(COPIES, 4)  # copies whose addresses are worked out together
    copy, load, opaque = _copy(dtype, sums, LANES), ptx.load_shared("int32", 4), ptx.opaque
    mapped = cuda.jit(device=True, forceinline=True)(source_index)

    @cuda.jit(device=True, forceinline=True)
    def fetch(to, table, image, d, h, w, exists, g):  # type: ignore[no-untyped-def]
        offsets = cuda.local.array(BATCH, int32)
        inside = cuda.local.array(BATCH, types.boolean)
        image = opaque(image)
        from_d, from_h, from_w = int32(d * g.stride_d), int32(h * g.stride_h), int32(w * g.stride_w)
        place = int32(int32(int32(from_d * g.cell_d) + int32(from_h * g.cell_h)) + int32(from_w * g.cell_w))
        for first in range(0, COPIES, BATCH):
            for i in range(BATCH):
                offset, tap_d, tap_h, tap_w = load(uint32(table + uint32((first + i) * STEP * 16)))
                tap_d, tap_h, tap_w = int32(from_d + tap_d), int32(from_h + tap_h), int32(from_w + tap_w)
                if MAPPED:
                    tap_d = int32(mapped(tap_d, g.in_d, g.mode))
                    tap_h = int32(mapped(tap_h, g.in_h, g.mode))
                    tap_w = int32(mapped(tap_w, g.in_w, g.mode))
                    place = int32(int32(int32(tap_d * g.cell_d) + int32(tap_h * g.cell_h)) + int32(tap_w * g.cell_w))
                offsets[i] = int32(offset + place)
                there = (uint32(tap_d) < uint32(g.in_d)) & (uint32(tap_h) < uint32(g.in_h)) & (uint32(tap_w) < uint32(g.in_w))
                inside[i] = exists & there
            for i in range(BATCH):
                address = uint64(image + uint64(int64(offsets[i]) * int64(SIZE)))
                copy(uint32(to + uint32((first + i) * STEP * WIDE)), address, inside[i])

    return fetch


def _fetch_grads(dtype: str, sums: str, tile: Tile) -> Any:
    """Start the copies of this thread's output gradients of a step."""
    SIZE, WIDE, STEP = element(dtype).bytes, element(sums).bytes, tile.threads // DEPTH * tile.grad_lanes
    COPIES = tile.rows * DEPTH // (tile.threads * tile.grad_lanes)
    copy, load, opaque = _copy(dtype, sums, tile.grad_lanes), ptx.load_shared("int32"), ptx.opaque

    @cuda.jit(device=True, forceinline=True)
    def fetch(to, table, image, d, h, w, exists, g):  # type: ignore[no-untyped-def]
        image = opaque(image)
        place = int32(int32(int32(d * g.grad_d) + int32(h * g.grad_h)) + int32(w * g.grad_w))
        for i in range(COPIES):
            offset = int32(place + load(uint32(table + uint32(i * STEP * 4))))
            copy(uint32(to + uint32(i * STEP * WIDE)), uint64(image + uint64(int64(offset) * int64(SIZE))), exists)

    return fetch


def _tabulate(tile: Tile) -> Any:
    """Write a block's table: offsets of the rows; of each column the offset of its cells, and the place of its tap along the axes.

    Rows and columns beyond the last are those at the end: they are read, and not stored.
    """
    ROWS, COLUMNS, THREADS, MAPPED = tile.rows, tile.columns, tile.threads, tile.mapped
    GRAD_LANES, CELL_LANES = tile.grad_lanes, tile.cell_lanes
    store_row, store_column = ptx.store_shared("int32"), ptx.store_shared("int32", 4)

    @cuda.jit(device=True, forceinline=True)
    def tabulate(table, first_row, first_column, thread, g):  # type: ignore[no-untyped-def]
        for i in range(thread, ROWS, THREADS):
            row = min(int32(first_row + int32(i)), int32(g.rows - int32(GRAD_LANES)))
            store_row(uint32(table + uint32(uint32(i) * uint32(4))), int32(row * g.grad_channel))
        for i in range(thread, COLUMNS, THREADS):
            column = min(int32(first_column + int32(i)), int32(g.columns - int32(CELL_LANES)))
            if g.by_tap != 0:
                channel, tap = _divide(column, g.taps)
            else:
                tap, channel = _divide(column, g.channels)
            line, w = _divide(tap, g.kernel_w)
            d, h = _divide(line, g.kernel_h)
            d = int32(int32(d * g.dilation_d) - g.pad_d)
            h = int32(int32(h * g.dilation_h) - g.pad_h)
            w = int32(int32(w * g.dilation_w) - g.pad_w)
            offset = int32(channel * g.cell_channel)
            if not MAPPED:
                offset = int32(offset + int32(int32(int32(d * g.cell_d) + int32(h * g.cell_h)) + int32(w * g.cell_w)))
            store_column(uint32(table + uint32(ROWS * 4) + uint32(uint32(i) * uint32(16))), (offset, d, h, w))

    return tabulate


def _multiply(sums: str, tile: Tile) -> Any:
    """Add the products of one cell to a thread's results."""
    EACH, LANES = tile.each, 16 // element(sums).bytes
    PIECES = EACH // LANES
    ROW_PIECE, COLUMN_PIECE = tile.rows // PIECES * element(sums).bytes, tile.columns // PIECES * element(sums).bytes
    load, SUMS = ptx.load_shared(sums, LANES), getattr(types, sums)

    @cuda.jit(device=True, forceinline=True)
    def multiply(acc, row_at, column_at):  # type: ignore[no-untyped-def]
        left = cuda.local.array(EACH, SUMS)
        right = cuda.local.array(EACH, SUMS)
        for p in range(PIECES):
            piece = load(uint32(row_at + uint32(p * ROW_PIECE)))
            other = load(uint32(column_at + uint32(p * COLUMN_PIECE)))
            for j in range(LANES):
                left[p * LANES + j] = piece[j]
                right[p * LANES + j] = other[j]
        for i in range(EACH):
            for j in range(EACH):
                acc[i * EACH + j] += left[i] * right[j]

    return multiply


def _write(sums: str, tile: Tile) -> Any:
    """Store a thread's results of this chunk."""
    EACH, LANES, WIDE = tile.each, 16 // element(sums).bytes, element(sums).bytes
    ROW_PIECE, COLUMN_PIECE, ACROSS = tile.rows * LANES // EACH, tile.columns * LANES // EACH, tile.columns // EACH
    store, opaque = ptx.store(sums), ptx.opaque

    @cuda.jit(device=True, forceinline=True)
    def write(workspace, acc, group, first_row, first_column, thread, g):  # type: ignore[no-untyped-def]
        base = int64(int64(int64(cuda.blockIdx.y) * int64(g.groups) + int64(group)) * int64(g.rows))
        first_row = int32(first_row + int32(int32(thread // int32(ACROSS)) * int32(LANES)))
        first_column = int32(first_column + int32(int32(thread % int32(ACROSS)) * int32(LANES)))
        for i in range(EACH):
            row = int32(first_row + int32(i // LANES * ROW_PIECE + i % LANES))
            at = int64(int64(int64(base + int64(row)) * int64(g.columns)) + int64(first_column))
            place = opaque(uint64(workspace + uint64(at) * uint64(WIDE)))
            for j in range(EACH):
                column = int32(j // LANES * COLUMN_PIECE + j % LANES)
                if row < g.rows and int32(first_column + column) < g.columns:
                    store(uint64(place + uint64(int64(column)) * uint64(WIDE)), acc[i * EACH + j])

    return write


@functools.cache
def _copy(dtype: str, sums: str, lanes: int) -> Any:
    """``copy(shared, address, taken)``: elements, or zeros, as the accumulator's dtype; asynchronous where nothing widens."""
    if dtype == sums:
        size = element(dtype).bytes * lanes
        copy_async = ptx.copy_async(size)

        @cuda.jit(device=True, forceinline=True)
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

    @cuda.jit(device=True, forceinline=True)
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
