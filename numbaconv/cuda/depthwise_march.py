"""The march down a column of cells that depthwise kernels share: a thread's results, taps and source cells in registers.

A thread owns ``rows`` x ``columns`` results along h and w (of ``lanes`` channels).  It reads a row of source cells once, multiplies it with
whatever it meets, and goes to the next: into its results, or, for a gradient of the weight, into sums of the taps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numba import cuda
from numba.cuda.types import int32, int64, uint32, uint64

from ..padding import source_index
from . import ptx
from .elements import element

THREADS = 128
UNROLLED = 40
"""Multiply-adds in one loop over rows: the compiler unrolls so many in every form, and keeps the sums of longer loops in local memory."""
REGISTERS = 65536
FAR = 2**31


@dataclass(frozen=True)
class Form:
    """What a kernel is compiled for; pairs are (h, w).

    transposed : an input gradient; sums_taps : a weight gradient
    rows, columns, lanes : results of a thread along h, w and the channels, each with a source channel of its own
    outputs : result channels of a thread that share their source channels
    by_channel : whether neighbouring threads have neighbouring channels, as in channels-last arrays, or neighbouring columns
    vector, shift : source cells of one load along w, and how many of the first one lie before a thread's first cell; 0 where source
        cells are not contiguous
    stores : whether a thread's columns are written by one store
    mapped : whether padded cells read the source (a padding mode other than zeros)
    grouped : whether a group has more than one source channel and one result channel
    ragged : whether the last threads along h have fewer rows, which a weight gradient must not multiply
    far : whether two cells next to each other along h or w are FAR bytes apart, or more
    """

    dtype: str
    transposed: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    rows: int
    columns: int
    lanes: int = 1
    outputs: int = 1
    by_channel: bool = False
    vector: int = 0
    shift: int = 0
    stores: bool = False
    mapped: bool = False
    grouped: bool = False
    sums_taps: bool = False
    ragged: bool = False
    far: bool = False

    @property
    def name(self) -> str:
        flags = (self.transposed, self.by_channel, self.stores, self.mapped, self.grouped, self.sums_taps, self.ragged, self.far)
        sizes = "_".join(f"{a}x{b}" for a, b in (self.kernel, self.stride, self.dilation, (self.rows, self.columns)))
        numbers = "_".join(map(str, (self.lanes, self.outputs, self.vector, self.shift)))
        return f"depthwise_{self.dtype}_{sizes}_{numbers}_{''.join('01'[flag] for flag in flags)}"

    def reach(self, axis: int) -> tuple[int, int]:
        """Lowest source cell that a thread meets, from that of its first result and tap 0, and how many cells it spans."""
        last, tail, step = (self.rows, self.columns)[axis] - 1, (self.kernel[axis] - 1) * self.dilation[axis], self.stride[axis]
        return (-(tail // step), last // step + tail // step + 1) if self.transposed else (0, last * step + tail + 1)

    @property
    def loads(self) -> int:
        """Of a row of source cells."""
        return -(-(self.reach(1)[1] + self.shift) // max(1, self.vector))

    @property
    def values(self) -> int:
        """Of the source that a thread holds."""
        return self.loads * max(1, self.vector) * self.lanes

    @property
    def blocks(self) -> int:
        """On one multiprocessor: those for which about as many registers are left as a thread's values need."""
        taps, results = (n * self.lanes * self.outputs for n in (self.kernel[0] * self.kernel[1], self.rows * self.columns))
        needed = (taps * 5 // 4 + results + 2 * self.values) * (2 if self.dtype == "float64" else 1) + 28
        return max(1, min(12, REGISTERS // (THREADS * -(-needed // 8) * 8)))


def far(*arrays: tuple[Sequence[int], Sequence[int]]) -> bool:
    """Whether steps along h or w of arrays, as (shape, strides in bytes), do not fit 32 bits."""
    return any(n > 1 and abs(step) >= FAR for shape, strides in arrays for n, step in zip(shape[3:], strides[3:]))


def divisor(size: int) -> tuple[int, int]:
    """(magic, shift) with ``n // size == n * magic >> shift`` for 0 <= n < 2**31.

    Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994.
    """
    shift = 31 + max(0, size - 1).bit_length()
    return -(-(1 << shift) // size), shift


@cuda.jit(device=True, forceinline=True)
def divide(number, size, magic, shift):  # type: ignore[no-untyped-def]
    """Quotient and remainder by a :func:`divisor`."""
    above = uint32(uint64(uint64(number) * uint64(magic)) >> uint64(shift))
    return above, int32(number - uint32(above * size))


def march_of(form: Form) -> Any:
    """``march(acc, taps, values, cells, start, exists, from_h, from_w, last, g)``: all rows of source cells.

    acc, taps, values : the results (of a weight gradient: output gradients, ``last`` of whose rows exist), the taps, a row of cells
    cells : source cells along w, where they are mapped; start : address of the first row's first load, or of cell (0, 0) where mapped
    exists : whether the plane does; from_h, from_w : the first source cell; g : ``source_h``, ``source_w``, strides ``from_h``, ``from_w``
    """
    (_, span), rows, step = form.reach(0), _rows_of(form), _rows_in_one(form)
    march = _nothing
    for first in reversed(range(0, span, step)):
        march = _then(rows, first, march)
    return march


def _rows_in_one(form: Form) -> int:
    """Rows of one loop that the compiler unrolls."""
    return max(1, UNROLLED // (form.kernel[0] * form.kernel[1] * form.columns * form.lanes * form.outputs))


def _then(rows: Any, first: int, rest: Any) -> Any:
    """The rows from ``first`` on and then the rest: once it is inlined, ``first`` is a constant, which no loop variable would be."""

    @cuda.jit(device=True, forceinline=True)
    def march(acc, taps, values, cells, start, exists, from_h, from_w, last, g):  # type: ignore[no-untyped-def]
        start = rows(acc, taps, values, cells, start, exists, from_h, from_w, last, g, int64(first))
        rest(acc, taps, values, cells, start, exists, from_h, from_w, last, g)

    return march


def _rows_of(form: Form) -> Any:
    """``rows(..., first)``: some rows from ``first`` on; returns the address of the next, or ``start`` where cells are mapped."""
    (KH, KW), (SH, SW), (DH, DW) = form.kernel, form.stride, form.dilation
    ROWS, COLUMNS, LANES, SIZE = form.rows, form.columns, form.lanes, element(form.dtype).bytes
    EACH = form.lanes * form.outputs
    MAPPED, TRANSPOSED, SUMS_TAPS, RAGGED = form.mapped, form.transposed, form.sums_taps, form.ragged
    VECTOR, SHIFT, LOADS = form.vector, form.shift, form.loads
    UNIT = max(1, VECTOR)
    WIDTH = UNIT * LANES
    (LOW_H, SPAN), (LOW_W, _), COUNT = form.reach(0), form.reach(1), _rows_in_one(form)
    load, mapped = load_lanes(form.dtype, WIDTH), cuda.jit(device=True, forceinline=True)(source_index)
    fma_where, opaque = ptx.fma_where(element(form.dtype).accumulator), ptx.opaque

    @cuda.jit(device=True, forceinline=True)
    def rows(acc, taps, values, cells, start, exists, from_h, from_w, last, g, first):  # type: ignore[no-untyped-def]
        row = start
        for r in range(first, min(first + COUNT, SPAN)):
            cell = int32(from_h + int32(r))
            if MAPPED:
                cell = int32(mapped(cell, g.source_h, g.mode))
                row = uint64(start + uint64(int64(int64(cell) * int64(g.from_h))))
            row = opaque(row)
            taken = exists and uint32(cell) < uint32(g.source_h)
            for u in range(LOADS):
                at = cells[u] if MAPPED else int32(u * UNIT - SHIFT)
                offset = uint64(u * WIDTH * SIZE) if VECTOR != 0 else uint64(int64(at) * int64(g.from_w))
                cell = at if MAPPED else int32(from_w + at)
                loaded = load(uint64(row + offset), taken and uint32(cell) < uint32(g.source_w))
                for v in range(WIDTH):
                    values[u * WIDTH + v] = loaded[v]
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
                                    c += SHIFT - LOW_W
                                    there = taken and uint32(int32(from_w + int32(c // UNIT * UNIT - SHIFT))) < uint32(g.source_w)
                                    for e in range(EACH):
                                        at = ((e // LANES * ROWS + i) * COLUMNS + j) * LANES + e % LANES
                                        tap = taps[(kh * KW + kw) * EACH + e]
                                        acc[at] = fma_where(values[c * LANES + e % LANES], tap, acc[at], there)
                            else:
                                c = j * SW + kw * DW + SHIFT
                                for e in range(EACH):
                                    at = ((e // LANES * ROWS + i) * COLUMNS + j) * LANES + e % LANES
                                    value, k = values[c * LANES + e % LANES], (kh * KW + kw) * EACH + e
                                    if RAGGED:
                                        taps[k] = fma_where(value, acc[at], taps[k], int32(i) < last)
                                    elif SUMS_TAPS:
                                        taps[k] += value * acc[at]
                                    else:
                                        acc[at] += value * taps[k]
            if not MAPPED:
                row = uint64(row + uint64(int64(g.from_h)))
        return start if MAPPED else row

    return rows


@cuda.jit(device=True, forceinline=True)
def _nothing(acc, taps, values, cells, start, exists, from_h, from_w, last, g):  # type: ignore[no-untyped-def]
    pass


@functools.cache
def load_lanes(dtype: str, lanes: int) -> Any:
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
def store_lanes(dtype: str, lanes: int) -> Any:
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
