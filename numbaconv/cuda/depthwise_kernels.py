"""Depthwise convolution and its input gradient: a thread marches down a column of results; see ``depthwise_march``.

The taps of a plane of the kernel stay in registers; those along d are a loop.  Nothing is staged in shared memory: neighbouring threads'
cells come from the first-level cache.

Bytes from memory for a result with stride 1 are those of one source cell and of the result.  Source cells that are loaded for a
result of 3x3 taps, with 8 x 4 results a thread: 10 * 6 / 32 = 1.9, in 10 * 3 / 32 = 0.9 instructions of 16 bytes.

Order of a result's sum: source channels, then d, then source rows, then w, whatever the tile and the layout.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import cuda
from numba.cuda import types
from numba.cuda.types import int32, int64, uint32, uint64

from ..padding import source_index
from . import ptx
from .depthwise_march import THREADS, Form, divide, load_lanes, march_of, store_lanes
from .elements import element
from .geometry import named
from .launch import Kernel

_AXES = ("d", "h", "w")
_COUNTS = (
    "batch", "mode", "has_bias", "sources", "results", "kernel_d", "stride_d", "dilation_d",
    *(f"{name}_{axis}" for name in ("source", "result", "pad") for axis in _AXES), "first_h", "first_w",
)  # fmt: skip
_PITCHES = ("from_h", "from_w", "to_h", "to_w")
_UNSIGNED = ("threads", "size_0", "size_1", "size_2", "magic_0", "magic_1", "magic_2", "shift_0", "shift_1", "shift_2")
_LONG = ("taps_pitch", *(f"{name}_{axis}" for name in ("from", "to") for axis in ("n", "c", "d")))
Geometry: Any = named("Geometry", _COUNTS + _PITCHES + _UNSIGNED + _LONG)
"""Numbers of the kernel.

threads : of one image; size_*, magic_*, shift_* : the digits of a thread's number, see :func:`depthwise_march.divisor`
first_h, first_w : results before the first that a thread's column starts with, so that strides meet it as they do others
sources, results : channels of a group
taps_pitch : elements between two taps of the packed weight (source channel, taps, result channels); from_*, to_* : bytes between cells
"""


def _geometry_type(far: bool) -> Any:
    kinds = (int32,) * len(_COUNTS) + (int64 if far else int32,) * len(_PITCHES) + (uint32,) * len(_UNSIGNED) + (int64,) * len(_LONG)
    return types.NamedTuple(kinds, Geometry)


@functools.cache
def kernel(form: Form) -> Kernel:
    """``(source, packed weight, bias, result, geometry)``: grid (threads of an image / THREADS, images)."""
    signature = (uint64, uint64, uint64, uint64, _geometry_type(form.far))
    return Kernel(form.name, _convolve(form), signature, THREADS, form.blocks)


def _convolve(form: Form) -> Any:
    (KH, KW), (SH, SW) = form.kernel, form.stride
    ROWS, COLUMNS, LANES, OUTPUTS, VALUES, SHIFT = form.rows, form.columns, form.lanes, form.outputs, form.values, form.shift
    BY_CHANNEL, MAPPED, GROUPED, TRANSPOSED = form.by_channel, form.mapped, form.grouped, form.transposed
    (LOW_H, _), (LOW_W, CELLS) = form.reach(0), form.reach(1)
    one = element(form.dtype)
    SIZE, SUMS, ZERO, WIDE = one.bytes, one.sum_type, one.zero, element(one.accumulator).bytes
    CHANNELS = LANES * OUTPUTS
    RESULTS, TAPS = ROWS * COLUMNS * CHANNELS, KH * KW * CHANNELS
    load_taps, load_bias = load_lanes(one.accumulator, CHANNELS), load_lanes(form.dtype, CHANNELS)
    mapped, march, write = cuda.jit(device=True, forceinline=True)(source_index), march_of(form), _write(form)

    def convolve(source, weight, bias, result, g):  # type: ignore[no-untyped-def]
        acc = cuda.local.array(RESULTS, SUMS)
        taps = cuda.local.array(TAPS, SUMS)
        values = cuda.local.array(VALUES, SUMS)
        cells = cuda.local.array(CELLS, int32)

        number = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if number >= g.threads:
            return
        number, digit_0 = divide(number, g.size_0, g.magic_0, g.shift_0)
        number, digit_1 = divide(number, g.size_1, g.magic_1, g.shift_1)
        number, digit_2 = divide(number, g.size_2, g.magic_2, g.shift_2)
        if BY_CHANNEL:
            channel, w, h, d = int32(digit_0 * int32(CHANNELS)), digit_1, digit_2, int32(number)
        else:
            channel, w, h, d = int32(digit_2 * int32(CHANNELS)), digit_0, digit_1, int32(number)
        first_h, first_w = int32(int32(h * int32(ROWS)) - g.first_h), int32(int32(w * int32(COLUMNS)) - g.first_w)
        if TRANSPOSED:
            from_h = int32(int32(int32(first_h + g.pad_h) // int32(SH)) + int32(LOW_H))
            from_w = int32(int32(int32(first_w + g.pad_w) // int32(SW)) + int32(LOW_W))
        else:
            from_h, from_w = int32(int32(first_h * int32(SH)) - g.pad_h), int32(int32(first_w * int32(SW)) - g.pad_w)
        read = int32(int32(channel // g.results) * g.sources) if GROUPED else channel
        base = uint64(source + uint64(int64(int64(read) * g.from_c)))
        if MAPPED:
            for c in range(CELLS):
                cells[c] = int32(mapped(int32(from_w + int32(c)), g.source_w, g.mode))
        else:
            at = int64(int64(from_h) * int64(g.from_h)) + int64(int64(int32(from_w - int32(SHIFT))) * int64(g.from_w))
            base = uint64(base + uint64(at))

        for image in range(int32(cuda.blockIdx.y), g.batch, int32(cuda.gridDim.y)):
            for i in range(RESULTS):
                acc[i] = ZERO
            for product in range(int32(g.sources * g.kernel_d) if GROUPED else g.kernel_d):
                from_c = int32(int32(product) // g.kernel_d) if GROUPED else int32(0)
                tap_d = int32(int32(product) - int32(from_c * g.kernel_d))
                if TRANSPOSED:
                    meets = int32(int32(d + g.pad_d) - int32(tap_d * g.dilation_d))
                    cell = int32(meets // g.stride_d)
                    if meets < int32(0) or int32(cell * g.stride_d) != meets or cell >= g.source_d:
                        continue  # no product
                else:
                    cell = int32(int32(int32(d * g.stride_d) + int32(tap_d * g.dilation_d)) - g.pad_d)
                    if MAPPED:
                        cell = int32(mapped(cell, g.source_d, g.mode))
                exists = uint32(cell) < uint32(g.source_d)
                at = int64(int64(int64(product) * int64(KH * KW)) * g.taps_pitch)
                at_weight = uint64(weight + uint64(int64(at + int64(channel))) * uint64(WIDE))
                for i in range(KH * KW):
                    loaded = load_taps(uint64(at_weight + uint64(int64(int64(i) * g.taps_pitch)) * uint64(WIDE)), True)
                    for v in range(CHANNELS):
                        taps[i * CHANNELS + v] = loaded[v]
                start = uint64(base + uint64(int64(int64(int64(image) * g.from_n) + int64(int64(cell) * g.from_d))))
                if GROUPED:
                    start = uint64(start + uint64(int64(int64(from_c) * g.from_c)))
                march(acc, taps, values, cells, start, exists, from_h, from_w, int32(0), g)
            added = load_bias(uint64(bias + uint64(uint32(channel)) * uint64(SIZE)), g.has_bias != int32(0))
            at = int64(int64(int64(image) * g.to_n) + int64(int64(channel) * g.to_c)) + int64(int64(d) * g.to_d)
            write(uint64(result + uint64(at)), acc, added, first_h, first_w, g)

    return convolve


def _write(form: Form, output: int = 0) -> Any:
    """Add the bias to a thread's results from channel ``output`` on and store those that exist; ``plane`` is the address of cell (0, 0)."""
    ROWS, COLUMNS, LANES, STORES, OUTPUT = form.rows, form.columns, form.lanes, form.stores, output
    ONE, FIRST = ROWS * COLUMNS * LANES, output * ROWS * COLUMNS
    store, opaque = store_lanes(form.dtype, COLUMNS if STORES else LANES), ptx.opaque
    rest = _write(form, output + 1) if output + 1 < form.outputs else _written

    @cuda.jit(device=True, forceinline=True)
    def write(plane, acc, added, first_h, first_w, g):  # type: ignore[no-untyped-def]
        for i in range(ONE):
            acc[FIRST + i] += added[OUTPUT + i % LANES]
        row = uint64(plane + uint64(int64(int64(first_h) * int64(g.to_h)) + int64(int64(first_w) * int64(g.to_w))))
        for i in range(ROWS):
            row = opaque(row)
            if uint32(int32(first_h + int32(i))) < uint32(g.result_h):
                if STORES:
                    store(row, acc, FIRST + i * COLUMNS)
                else:
                    for j in range(COLUMNS):
                        if uint32(int32(first_w + int32(j))) < uint32(g.result_w):
                            store(uint64(row + uint64(int64(int64(j) * int64(g.to_w)))), acc, FIRST + (i * COLUMNS + j) * LANES)
            row = uint64(row + uint64(int64(g.to_h)))
        rest(uint64(plane + uint64(g.to_c)), acc, added, first_h, first_w, g)

    return write


@cuda.jit(device=True, forceinline=True)
def _written(plane, acc, added, first_h, first_w, g):  # type: ignore[no-untyped-def]
    pass
