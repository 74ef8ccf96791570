"""How an implicit GEMM's results leave the registers of a warp on a device: its rows (channels) of its cells."""

from __future__ import annotations

import functools
from typing import Any

from numba import cuda
from numba.cuda import int32, int64, uint32, uint64

from . import ptx

NOWHERE = -(2**63)
"""The offset of no cell."""
_store, _store4 = ptx.store("float32"), ptx.store("float32", 4)
_load, _put4 = ptx.load_shared("float32"), ptx.store_shared("float32", 4)
_offset = ptx.load_shared("int64")


@functools.cache
def lane_row(high: int) -> Any:
    """``lane_row(lane)``, where a thread stands in a warp of ``high`` (4 or 2) by 32 / high threads: of any 16, eight stand in one row."""

    @cuda.jit(device=True)
    def of_four(lane):  # type: ignore[no-untyped-def]
        return int32((lane & 1) + ((lane >> 4) << 1))

    @cuda.jit(device=True)
    def of_two(lane):  # type: ignore[no-untyped-def]
        return int32(lane & 1)

    return of_four if high == 4 else of_two


@functools.cache
def lane_cell(high: int) -> Any:
    """``lane_cell(lane)``, the same along cells."""
    most = 32 // high - 1

    @cuda.jit(device=True)
    def column(lane):  # type: ignore[no-untyped-def]
        return int32((lane >> 1) & most)

    return column


def pitch(high: int) -> int:
    """Floats from the channels of one cell to those of the next, in shared memory, where they lie in different banks."""
    return 8 * high + 4


def stage_bytes(high: int, quads: int, form: str) -> int:
    """Of shared memory, that a warp needs to write."""
    return {"cells": 4 * 128 * quads, "channels": 4 * (32 // high) * pitch(high)}.get(form, 0)


@functools.cache
def write(high: int, quads: int, form: str) -> Any:
    """``write(sums, stage, offsets, lane, result, step, rows)``: a warp writes its ``8 * high`` rows, of which ``rows`` exist.

    A thread has 8 rows and ``4 * quads`` cells: four rows from 4 * lane_row on, and four beyond the first ones of all its warp's threads;
    cells alike.

    stage : of this warp, in shared memory
    offsets : in shared memory, of the warp's cells within the result, in bytes
    result : address of the warp's first row; step : from one row to the next, in bytes

    Parameters
    ----------
    form : "quads of cells" and "quads of channels" where every four cells or channels from a multiple of four on follow one another, at
        addresses of a multiple of 16: threads write what they have.  Otherwise, for any strides, "cells" and "channels": results are turned
        round in shared memory, so that neighbouring threads write neighbouring cells or channels.
    """
    SIDE, BELOW, BESIDE = 4 * quads, 4 * high, 4 * (32 // high)  # BELOW, BESIDE: from a thread's first four rows and cells to its others
    WIDTH, ROWS, PITCH = BESIDE * quads, 8 * high, pitch(high)
    row_of, cell_of = lane_row(high), lane_cell(high)

    @cuda.jit(device=True)
    def write_cells(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        at = uint32(stage + uint32((row_of(lane) * int32(WIDTH) + cell_of(lane) * int32(4)) * 4))
        for i in range(8):
            for half in range(quads):
                k = i * SIDE + half * 4
                _put4(uint32(at + uint32(half * BESIDE * 4)), (sums[k], sums[k + 1], sums[k + 2], sums[k + 3]))
            cuda.syncwarp()
            for part in range(WIDTH // 32):
                offset = _offset(uint32(offsets + uint32(lane * 8) + uint32(part * 256)))
                for line in range(high):
                    row = line * 4 + (i if i < 4 else i - 4 + BELOW)
                    value = _load(uint32(stage + uint32(lane * 4) + uint32((line * WIDTH + part * 32) * 4)))
                    if int32(row) < rows and offset != int64(NOWHERE):
                        _store(uint64(result + offset + step * row), value)
            cuda.syncwarp()

    @cuda.jit(device=True)
    def write_channels(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        at = uint32(stage + uint32((cell_of(lane) * int32(PITCH) + row_of(lane) * int32(4)) * 4))
        row, cell = int32(lane & (ROWS - 1)), int32(lane // int32(ROWS))  # with 16 rows a warp writes two cells at once
        own, given = int64(result + step * int64(row)), uint32(stage + uint32((cell * int32(PITCH) + row) * 4))
        for j in range(SIDE):
            for half in range(2):
                k = half * 4 * SIDE + j
                _put4(uint32(at + uint32(half * BELOW * 4)), (sums[k], sums[k + SIDE], sums[k + 2 * SIDE], sums[k + 3 * SIDE]))
            cuda.syncwarp()
            for i in range(8):
                first = i * (32 // ROWS)
                offset = _offset(uint32(offsets + uint32(cell * 32) + uint32((first * 4 + (j & 3) + (j >> 2) * BESIDE) * 8)))
                value = _load(uint32(given + uint32(first * PITCH * 4)))
                if row < rows and offset != int64(NOWHERE):
                    _store(uint64(own + offset), value)
            cuda.syncwarp()

    @cuda.jit(device=True)
    def write_quads_of_cells(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        own = int64(result + step * int64(row_of(lane) * 4))
        left = int32(rows - row_of(lane) * 4)
        for half in range(quads):
            offset = _offset(uint32(offsets + uint32(cell_of(lane) * 32) + uint32(half * BESIDE * 8)))
            for i in range(8):
                row = i if i < 4 else i - 4 + BELOW
                k = i * SIDE + half * 4
                if int32(row) < left and offset != int64(NOWHERE):
                    _store4(uint64(own + offset + step * row), (sums[k], sums[k + 1], sums[k + 2], sums[k + 3]))

    @cuda.jit(device=True)
    def write_quads_of_channels(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        own = int64(result + int64(row_of(lane) * 16))
        left = int32(rows - row_of(lane) * 4)
        for j in range(SIDE):
            offset = _offset(uint32(offsets + uint32(cell_of(lane) * 32) + uint32(((j & 3) + (j >> 2) * BESIDE) * 8)))
            for half in range(2):
                k = half * 4 * SIDE + j
                if int32(half * BELOW) < left and offset != int64(NOWHERE):
                    _store4(uint64(own + offset + half * BELOW * 4), (sums[k], sums[k + SIDE], sums[k + 2 * SIDE], sums[k + 3 * SIDE]))

    kinds = {
        "cells": write_cells, "channels": write_channels,
        "quads of cells": write_quads_of_cells, "quads of channels": write_quads_of_channels,
    }  # fmt: skip
    return kinds[form]
