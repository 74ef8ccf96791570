"""Depthwise convolution and its input gradient: a thread marches down a column of results of one channel, or of a few neighbouring ones.

A thread owns ``rows`` x ``columns`` results along h and w (of ``lanes`` channels): it reads a row of source cells once, adds to every
result that it meets, and goes to the next.  The taps of a plane of the kernel stay in registers; those along d are a loop.  Nothing is
staged in shared memory: neighbouring threads' cells come from the first-level cache.

Bytes from memory for a result with stride 1 are those of one source cell and of the result.  Source cells that are loaded for a
result, with ``rows`` = 8, ``columns`` = 1 and 3x3 taps: 10 * 3 / 8 = 3.75; with ``columns`` = 2 and 7x7: 14 * 8 / 16 = 7.

Order of a result's sum: d, then source rows, then w, whatever the tile and the layout.
"""

from __future__ import annotations

import functools
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

THREADS = 128
UNROLLED = 250
"""Multiply-adds in one loop over rows: the compiler unrolls so many, and keeps the sums of longer loops in memory."""
REGISTERS = 65536

_AXES = ("d", "h", "w")
_COUNTS = (
    "batch", "mode", "has_bias", "multiplier", "kernel_d", "stride_d", "dilation_d",
    *(f"{name}_{axis}" for name in ("source", "result", "pad") for axis in _AXES), "first_h", "first_w", "from_h", "from_w", "to_h", "to_w",
)  # fmt: skip
_UNSIGNED = ("threads", "size_0", "size_1", "size_2", "magic_0", "magic_1", "magic_2", "shift_0", "shift_1", "shift_2")
_LONG = ("taps_pitch", *(f"{name}_{axis}" for name in ("from", "to") for axis in ("n", "c", "d")))
Geometry: Any = named("Geometry", _COUNTS + _UNSIGNED + _LONG)
"""Numbers of the kernel.

threads : of one image; size_*, magic_*, shift_* : the digits of a thread's number, see :func:`divisor`
first_h, first_w : results before the first that a thread's column starts with, so that strides meet it as they do others
taps_pitch : elements between two taps of the packed weight (taps, channels); from_*, to_* : bytes between cells
"""
GEOMETRY = types.NamedTuple((int32,) * len(_COUNTS) + (uint32,) * len(_UNSIGNED) + (int64,) * len(_LONG), Geometry)


@dataclass(frozen=True)
class Form:
    """What a kernel is compiled for; pairs are (h, w).

    rows, columns, lanes : results of a thread along h, w and the channels
    by_channel : whether neighbouring threads have neighbouring channels, as in channels-last arrays, or neighbouring columns
    unit : whether source cells are contiguous along w
    mapped : whether padded cells read the source (a padding mode other than zeros)
    multiplies : whether several results share a source channel
    """

    dtype: str
    transposed: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    rows: int
    columns: int
    lanes: int = 1
    by_channel: bool = False
    unit: bool = True
    mapped: bool = False
    multiplies: bool = False

    @property
    def name(self) -> str:
        flags = "".join("01"[flag] for flag in (self.transposed, self.by_channel, self.unit, self.mapped, self.multiplies))
        sizes = "_".join(f"{a}x{b}" for a, b in (self.kernel, self.stride, self.dilation, (self.rows, self.columns)))
        return f"depthwise_{self.dtype}_{sizes}_{self.lanes}_{flags}"

    def reach(self, axis: int) -> tuple[int, int]:
        """Lowest source cell that a thread meets, from that of its first result and tap 0, and how many cells it spans."""
        last, tail, step = (self.rows, self.columns)[axis] - 1, (self.kernel[axis] - 1) * self.dilation[axis], self.stride[axis]
        return (-(tail // step), last // step + tail // step + 1) if self.transposed else (0, last * step + tail + 1)

    @property
    def registers(self) -> int:
        """About as many as the values of a thread need."""
        taps, results = self.kernel[0] * self.kernel[1], self.rows * self.columns
        return 33 + (taps + results + 4 * self.reach(1)[1]) * self.lanes * (2 if self.dtype == "float64" else 1)


def divisor(size: int) -> tuple[int, int]:
    """(magic, shift) with ``n // size == n * magic >> shift`` for 0 <= n < 2**31.

    Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994.
    """
    shift = 31 + max(0, size - 1).bit_length()
    return -(-(1 << shift) // size), shift


@functools.cache
def kernel(form: Form) -> Kernel:
    """``(source, packed weight, bias, result, geometry)``: grid (threads of an image / THREADS, images)."""
    signature = (uint64, uint64, uint64, uint64, GEOMETRY)
    blocks = max(1, min(12, REGISTERS // (THREADS * -(-form.registers // 8) * 8)))
    return Kernel(form.name, _march(form), signature, THREADS, blocks)


@cuda.jit(device=True, forceinline=True)
def _divide(number, magic, shift):  # type: ignore[no-untyped-def]
    return uint32(uint64(uint64(number) * uint64(magic)) >> uint64(shift))


def _march(form: Form) -> Any:
    KH, KW = form.kernel
    SH, SW = form.stride
    ROWS, COLUMNS, LANES = form.rows, form.columns, form.lanes
    BY_CHANNEL, MAPPED, MULTIPLIES, TRANSPOSED = form.by_channel, form.mapped, form.multiplies, form.transposed
    (LOW_H, _), (LOW_W, CELLS) = form.reach(0), form.reach(1)
    one = element(form.dtype)
    SIZE, SUMS, ZERO, WIDE = one.bytes, one.sum_type, one.zero, element(one.accumulator).bytes
    RESULTS, TAPS, VALUES = ROWS * COLUMNS * LANES, KH * KW * LANES, CELLS * LANES
    load_weight, load_bias, store = _load(one.accumulator, LANES), _load(form.dtype, LANES), _store(form.dtype, LANES)
    mapped, march = cuda.jit(device=True, forceinline=True)(source_index), _rows(form, 0)

    def kernel(source, weight, bias, result, g):  # type: ignore[no-untyped-def]
        acc = cuda.local.array(RESULTS, SUMS)
        taps = cuda.local.array(TAPS, SUMS)
        values = cuda.local.array(VALUES, SUMS)
        cells = cuda.local.array(CELLS, int32)  # along w, where they are mapped

        number = uint32(uint32(cuda.blockIdx.x) * uint32(THREADS) + uint32(cuda.threadIdx.x))
        if number >= g.threads:
            return
        above = _divide(number, g.magic_0, g.shift_0)
        digit_0, number = int32(number - uint32(above * g.size_0)), above
        above = _divide(number, g.magic_1, g.shift_1)
        digit_1, number = int32(number - uint32(above * g.size_1)), above
        above = _divide(number, g.magic_2, g.shift_2)
        digit_2, digit_3 = int32(number - uint32(above * g.size_2)), int32(above)
        if BY_CHANNEL:
            channel, w, h, d = int32(digit_0 * int32(LANES)), digit_1, digit_2, digit_3
        else:
            channel, w, h, d = digit_3, digit_0, digit_1, digit_2
        first_h, first_w = int32(int32(h * int32(ROWS)) - g.first_h), int32(int32(w * int32(COLUMNS)) - g.first_w)
        if TRANSPOSED:
            from_h = int32(int32(int32(first_h + g.pad_h) // int32(SH)) + int32(LOW_H))
            from_w = int32(int32(int32(first_w + g.pad_w) // int32(SW)) + int32(LOW_W))
        else:
            from_h, from_w = int32(int32(first_h * int32(SH)) - g.pad_h), int32(int32(first_w * int32(SW)) - g.pad_w)
        if MAPPED:
            for c in range(CELLS):
                cells[c] = int32(mapped(int32(from_w + int32(c)), g.source_w, g.mode))
        read = int32(channel // g.multiplier) if MULTIPLIES else channel
        base = uint64(source + uint64(int64(int64(read) * g.from_c)))
        if not MAPPED:
            base = uint64(base + uint64(int64(int64(int64(from_h) * int64(g.from_h)) + int64(int64(from_w) * int64(g.from_w)))))
        target = int64(int64(int64(channel) * g.to_c) + int64(int64(d) * g.to_d))
        target = uint64(
            result + uint64(int64(target + int64(int64(int64(first_h) * int64(g.to_h)) + int64(int64(first_w) * int64(g.to_w)))))
        )

        for image in range(int32(cuda.blockIdx.y), g.batch, int32(cuda.gridDim.y)):
            for i in range(RESULTS):
                acc[i] = ZERO
            for tap_d in range(g.kernel_d):
                tap_d = int32(tap_d)
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
                at = int64(int64(int64(tap_d) * int64(KH * KW)) * g.taps_pitch)
                at_weight = uint64(weight + uint64(int64(at + int64(channel))) * uint64(WIDE))
                for i in range(KH * KW):
                    loaded = load_weight(uint64(at_weight + uint64(int64(int64(i) * g.taps_pitch)) * uint64(WIDE)), True)
                    for v in range(LANES):
                        taps[i * LANES + v] = loaded[v]
                start = uint64(base + uint64(int64(int64(int64(image) * g.from_n) + int64(int64(cell) * g.from_d))))
                march(acc, taps, values, cells, start, exists, from_h, from_w, g)
            row = uint64(target + uint64(int64(int64(image) * g.to_n)))
            added = load_bias(uint64(bias + uint64(uint32(channel)) * uint64(SIZE)), g.has_bias != int32(0))
            for i in range(ROWS):
                for j in range(COLUMNS):
                    h, w = int32(first_h + int32(i)), int32(first_w + int32(j))
                    if uint32(h) < uint32(g.result_h) and uint32(w) < uint32(g.result_w):
                        for v in range(LANES):
                            acc[(i * COLUMNS + j) * LANES + v] += added[v]
                        store(uint64(row + uint64(int64(int64(j) * int64(g.to_w)))), acc, (i * COLUMNS + j) * LANES)
                row = uint64(row + uint64(int64(g.to_h)))

    return kernel


def _rows(form: Form, first: int) -> Any:
    """The march from row ``first`` of a thread's source cells on, in loops that the compiler unrolls."""
    (KH, KW), (SH, SW), (DH, DW) = form.kernel, form.stride, form.dilation
    ROWS, COLUMNS, LANES, SIZE = form.rows, form.columns, form.lanes, element(form.dtype).bytes
    MAPPED, TRANSPOSED, UNIT = form.mapped, form.transposed, form.unit and not form.mapped
    (LOW_H, span), (LOW_W, CELLS) = form.reach(0), form.reach(1)
    FIRST, LAST = first, min(span, first + max(1, UNROLLED // (KH * KW * COLUMNS * LANES)))
    load, mapped = _load(form.dtype, LANES), cuda.jit(device=True, forceinline=True)(source_index)
    fma_where = ptx.fma_where(element(form.dtype).accumulator)
    opaque = ptx.opaque
    rest = _rows(form, LAST) if span > LAST else _nothing

    @cuda.jit(device=True, forceinline=True)
    def march(acc, taps, values, cells, start, exists, from_h, from_w, g):  # type: ignore[no-untyped-def]
        row = start
        for r in range(FIRST, LAST):
            cell = int32(from_h + int32(r))
            if MAPPED:
                cell = int32(mapped(cell, g.source_h, g.mode))
                row = uint64(start + uint64(int64(int64(cell) * int64(g.from_h))))
            row = opaque(row)
            taken = exists and uint32(cell) < uint32(g.source_h)
            for c in range(CELLS):
                at = cells[c] if MAPPED else int32(c)
                offset = uint64(c * SIZE) if UNIT else uint64(int64(at) * int64(g.from_w))
                cell = at if MAPPED else int32(from_w + at)
                loaded = load(uint64(row + offset), taken and uint32(cell) < uint32(g.source_w))
                for v in range(LANES):
                    values[c * LANES + v] = loaded[v]
            for kh in range(KH):
                if TRANSPOSED:
                    i = (r + LOW_H) * SH + kh * DH
                    meets = i >= 0 and i < ROWS
                else:
                    i = (r - kh * DH) // SH
                    meets = r >= kh * DH and i < ROWS and i * SH == r - kh * DH
                if meets:
                    for j in range(COLUMNS):
                        for kw in range(KW):
                            if TRANSPOSED:
                                c = (j - kw * DW) // SW
                                if c * SW == j - kw * DW:
                                    c -= LOW_W
                                    there = taken and uint32(int32(from_w + int32(c))) < uint32(g.source_w)
                                    for v in range(LANES):
                                        value, tap = values[c * LANES + v], taps[(kh * KW + kw) * LANES + v]
                                        at = (i * COLUMNS + j) * LANES + v
                                        acc[at] = fma_where(value, tap, acc[at], there)
                            else:
                                c = j * SW + kw * DW
                                for v in range(LANES):
                                    acc[(i * COLUMNS + j) * LANES + v] += values[c * LANES + v] * taps[(kh * KW + kw) * LANES + v]
            if not MAPPED:
                row = uint64(row + uint64(int64(g.from_h)))
        rest(acc, taps, values, cells, start if MAPPED else row, exists, from_h, from_w, g)

    return march


@cuda.jit(device=True, forceinline=True)
def _nothing(acc, taps, values, cells, start, exists, from_h, from_w, g):  # type: ignore[no-untyped-def]
    pass


@functools.cache
def _load(dtype: str, lanes: int) -> Any:
    """``load(address, taken)``: neighbours as a tuple of the accumulator's dtype, zeros where nothing is taken."""
    if dtype not in ("float16", "bfloat16"):
        return ptx.load_where(dtype, lanes)
    read, widen = ptx.load_where("uint16", lanes), ptx.half_to_float if dtype == "float16" else ptx.bfloat_to_float
    if lanes == 1:

        @cuda.jit(device=True, forceinline=True)
        def load(address, taken):  # type: ignore[no-untyped-def]
            return (widen(read(address, taken)[0]),)
    elif lanes == 2:

        @cuda.jit(device=True, forceinline=True)
        def load(address, taken):  # type: ignore[no-untyped-def]
            a, b = read(address, taken)
            return widen(a), widen(b)
    else:

        @cuda.jit(device=True, forceinline=True)
        def load(address, taken):  # type: ignore[no-untyped-def]
            a, b, c, d = read(address, taken)
            return widen(a), widen(b), widen(c), widen(d)

    return load


@functools.cache
def _store(dtype: str, lanes: int) -> Any:
    """``store(address, sums, first)`` writes ``lanes`` of the sums, rounded to the dtype, as neighbours."""
    half = dtype in ("float16", "bfloat16")
    write = ptx.store("uint16" if half else dtype, lanes)
    narrow = (ptx.float_to_half if dtype == "float16" else ptx.float_to_bfloat) if half else _same
    if lanes == 1:

        @cuda.jit(device=True, forceinline=True)
        def store(address, sums, first):  # type: ignore[no-untyped-def]
            write(address, narrow(sums[first]))
    elif lanes == 2:

        @cuda.jit(device=True, forceinline=True)
        def store(address, sums, first):  # type: ignore[no-untyped-def]
            write(address, (narrow(sums[first]), narrow(sums[first + 1])))
    else:

        @cuda.jit(device=True, forceinline=True)
        def store(address, sums, first):  # type: ignore[no-untyped-def]
            write(address, (narrow(sums[first]), narrow(sums[first + 1]), narrow(sums[first + 2]), narrow(sums[first + 3])))

    return store


@cuda.jit(device=True, forceinline=True)
def _same(value):  # type: ignore[no-untyped-def]
    return value
