"""How an implicit GEMM's results leave the registers of a warp on a device: 32 rows (channels) of its cells."""

from __future__ import annotations

import functools
from typing import Any

from numba import cuda
from numba.cuda import int32, int64, uint32, uint64

from . import ptx

NOWHERE = -(2**63)
"""The offset of no cell."""
PITCH = 36  # floats from the 32 channels of one cell to those of the next, which then lie in different banks

_store, _store4 = ptx.store("float32"), ptx.store("float32", 4)
_load, _put4 = ptx.load_shared("float32"), ptx.store_shared("float32", 4)
_offset = ptx.load_shared("int64")


@cuda.jit(device=True)
def lane_row(lane):  # type: ignore[no-untyped-def]
    """Of a warp's four by eight threads, where this one stands."""
    return int32((lane & 1) + ((lane >> 4) << 1))


@cuda.jit(device=True)
def lane_cell(lane):  # type: ignore[no-untyped-def]
    return int32((lane >> 1) & 7)


def stage_bytes(quads: int, form: str) -> int:
    """Of shared memory, that a warp needs to write."""
    return {"cells": 4 * 4 * 32 * quads, "channels": 4 * 8 * PITCH}.get(form, 0)


@functools.cache
def write(quads: int, form: str) -> Any:
    """``write(sums, stage, offsets, lane, result, step, rows)``: a warp writes its 32 rows, of which ``rows`` exist.

    A thread has 8 rows and ``4 * quads`` cells: its numbers of rows are those of the quads at 4 * lane_row and 16 further on, of cells
    those at 4 * lane_cell and 32 further on.

    stage : of this warp, in shared memory
    offsets : in shared memory, of the warp's cells within the result, in bytes
    result : address of the warp's first row; step : from one row to the next, in bytes

    Parameters
    ----------
    form : "quads of cells" and "quads of channels" where every four cells or channels from a multiple of four on follow one another, at
        addresses of a multiple of 16: threads write what they have.  Otherwise, for any strides, "cells" and "channels": results are turned
        round in shared memory, so that neighbouring threads write neighbouring cells or channels.
    """
    SIDE, WIDTH = 4 * quads, 32 * quads

    @cuda.jit(device=True)
    def write_cells(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        at = uint32(stage + uint32((lane_row(lane) * int32(WIDTH) + lane_cell(lane) * int32(4)) * 4))
        for i in range(8):
            for half in range(quads):
                k = i * SIDE + half * 4
                _put4(uint32(at + uint32(half * 128)), (sums[k], sums[k + 1], sums[k + 2], sums[k + 3]))
            cuda.syncwarp()
            for half in range(quads):
                offset = _offset(uint32(offsets + uint32(lane * 8) + uint32(half * 256)))
                for line in range(4):
                    row = line * 4 + (i if i < 4 else i + 12)
                    value = _load(uint32(stage + uint32(lane * 4) + uint32((line * WIDTH + half * 32) * 4)))
                    if int32(row) < rows and offset != int64(NOWHERE):
                        _store(uint64(result + offset + step * row), value)
            cuda.syncwarp()

    @cuda.jit(device=True)
    def write_channels(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        at = uint32(stage + uint32((lane_cell(lane) * int32(PITCH) + lane_row(lane) * int32(4)) * 4))
        own = int64(result + step * int64(lane))
        for j in range(SIDE):
            for half in range(2):
                k = half * 4 * SIDE + j
                _put4(uint32(at + uint32(half * 64)), (sums[k], sums[k + SIDE], sums[k + 2 * SIDE], sums[k + 3 * SIDE]))
            cuda.syncwarp()
            for i in range(8):
                offset = _offset(uint32(offsets + uint32((i * 4 + (j & 3) + (j >> 2) * 32) * 8)))
                value = _load(uint32(stage + uint32(lane * 4) + uint32(i * PITCH * 4)))
                if lane < rows and offset != int64(NOWHERE):
                    _store(uint64(own + offset), value)
            cuda.syncwarp()

    @cuda.jit(device=True)
    def write_quads_of_cells(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        own = int64(result + step * int64(lane_row(lane) * 4))
        left = int32(rows - lane_row(lane) * 4)
        for half in range(quads):
            offset = _offset(uint32(offsets + uint32(lane_cell(lane) * 32) + uint32(half * 256)))
            for i in range(8):
                row = i if i < 4 else i + 12
                k = i * SIDE + half * 4
                if int32(row) < left and offset != int64(NOWHERE):
                    _store4(uint64(own + offset + step * row), (sums[k], sums[k + 1], sums[k + 2], sums[k + 3]))

    @cuda.jit(device=True)
    def write_quads_of_channels(sums, stage, offsets, lane, result, step, rows):  # type: ignore[no-untyped-def]
        own = int64(result + int64(lane_row(lane) * 16))
        left = int32(rows - lane_row(lane) * 4)
        for j in range(SIDE):
            offset = _offset(uint32(offsets + uint32(lane_cell(lane) * 32) + uint32(((j & 3) + (j >> 2) * 32) * 8)))
            for half in range(2):
                k = half * 4 * SIDE + j
                if int32(half * 16) < left and offset != int64(NOWHERE):
                    _store4(uint64(own + offset + half * 64), (sums[k], sums[k + SIDE], sums[k + 2 * SIDE], sums[k + 3 * SIDE]))

    kinds = {
        "cells": write_cells, "channels": write_channels,
        "quads of cells": write_quads_of_cells, "quads of channels": write_quads_of_channels,
    }  # fmt: skip
    return kinds[form]
