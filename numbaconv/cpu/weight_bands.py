"""Weight gradients of one output channel a group: a tile's rows are kernel rows that meet the same lines of the input.

Lanes are neighbouring pixels.  Each *line*, a row of the input or of its copy, is read once for a band of kernel rows, and multiplied
with the output gradients of as many rows.  Where lanes can read the input's own rows, side by side or every second cell, masks and tests
of the lines' numbers stand for its padding, whose zeros are multiplied like every other cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from ..problem import Problem
from .compile import kernel
from .simd import Vectors, counted, data_pointer, int64, switch
from .target import target
from .weight_fields import BANDS, CHANNEL, DILATION, GRAD, GRAD_IN_PLACE, GRAD_ROW, IN, IN_PLACE, KERNEL, PAD, PLANE, ROW, SOURCE, STRIDE
from .weight_tiles import put_lane_sums

BAND_TILES = ((1, 3), (2, 3), (3, 3), (4, 4)) if target().registers >= 32 else ((1, 3), (2, 3), (3, 3))
"""Kernel rows x columns of a tile, by the rows."""

# Fields of a band's table.  Steps count elements; a plane is there if its index is one of PLANE_SIZE, lines [FIRST, LAST) are.
(
    ADDRESS, PLANE_STEP, LINE_STEP, PLANE_INDEX, PLANE_STRIDE, PLANE_SIZE, FIRST, LAST, ROW_SIZE, LAG,
    GRAD_ADDRESS, GRAD_PLANE_STEP, GRAD_ROW_STEP, PLANES, ROWS, COLUMNS, CELLS,
) = range(17)  # fmt: skip
TABLE = CELLS + max(columns for _, columns in BAND_TILES)
APART = 8  # added to a band's rows where cells are two apart


def bands(p: Problem, lines: int) -> list[tuple[int, int, int, int]]:
    """The bands of a kernel's rows: (first row, how far the next is, their number, how many lines later each meets a line).

    Rows share lines where their remainders modulo the stride are equal, and a strip has enough lines.
    """
    rows, stride, dilation = p.kernel[1], p.stride[1], p.dilation[1]
    step = next(n for n in range(1, stride + 1) if n * dilation % stride == 0)
    lag = step * dilation // stride
    most, found = len(BAND_TILES) if lag <= lines else 1, []
    for first in range(min(step, rows)):
        own = range(first, rows, step)
        parts = -(-len(own) // most)
        for i in range(parts):
            part = own[len(own) * i // parts : len(own) * (i + 1) // parts]
            found.append((part[0], step, len(part), lag))
    return found


@kernel(forceinline=True)
def add_bands(g, grad, planes, rows, columns, corner, source, places, channels, at, accumulate, work):  # type: ignore[no-untyped-def]
    """Add a strip's products to sums[at:], (channels, taps), of one filter.

    grad, source : int64 byte addresses; corner : the strip's first output pixel; source is that of the first channel
    """
    f, sums, found = work.table, work.sums, work.found
    kd, kh, kw, copied = g[KERNEL], g[KERNEL + 1], g[KERNEL + 2], not g[IN_PLACE]
    f[GRAD_ADDRESS], f[PLANES], f[ROWS], f[COLUMNS] = grad, planes, rows, columns
    f[GRAD_PLANE_STEP], f[GRAD_ROW_STEP] = (g[GRAD + 3], g[GRAD + 4]) if g[GRAD_IN_PLACE] else (rows * g[GRAD_ROW], g[GRAD_ROW])
    f[PLANE_STEP], f[PLANE_INDEX], f[PLANE_STRIDE], f[PLANE_SIZE] = g[PLANE], 0, 0, 1
    f[LINE_STEP], f[FIRST], f[LAST], f[ROW_SIZE], step = g[ROW], 0, len(work.lines), g[ROW], 1
    if not copied:
        f[PLANE_STEP], f[PLANE_STRIDE], f[PLANE_SIZE] = g[STRIDE] * g[SOURCE + 3], g[STRIDE], g[IN]
        f[LINE_STEP], f[ROW_SIZE], step = g[STRIDE + 1] * g[SOURCE + 4], g[IN + 2], g[STRIDE + 2]
    for c in range(channels):
        for i in range(kd):
            if copied:
                plane = c * g[CHANNEL] + places[i] * g[PLANE]
            else:
                f[PLANE_INDEX] = corner[0] * g[STRIDE] - g[PAD] + i * g[DILATION]
                plane = c * g[SOURCE + 2] + f[PLANE_INDEX] * g[SOURCE + 3]
            for band in range(g[BANDS], len(places), 4):
                first, apart, count, f[LAG] = places[band], places[band + 1], places[band + 2], places[band + 3]
                if copied:
                    line = plane + places[kd + first] * g[ROW]
                else:
                    index = corner[1] * g[STRIDE + 1] - g[PAD + 1] + first * g[DILATION + 1]
                    f[FIRST], f[LAST] = -(index // g[STRIDE + 1]), -((index - g[IN + 1]) // g[STRIDE + 1])
                    line = plane + index * g[SOURCE + 4]
                f[ADDRESS] = source + line * sums.itemsize
                width = max(count, 3)
                for k in range(0, kw, width):
                    for j in range(width):
                        tap = min(k + j, kw - 1)
                        f[CELLS + j] = places[kd + kh + tap] if copied else corner[2] * step - g[PAD + 2] + tap * g[DILATION + 2]
                    band_tile(f, count if step == 1 else count + APART, found)
                    for r in range(count):
                        tap = at + ((c * kd + i) * kh + first + r * apart) * kw + k
                        for j in range(min(width, kw - k)):
                            sums[tap + j] = sums[tap + j] + found[r * width + j] if accumulate else found[r * width + j]


@intrinsic
def band_tile(typingctx, table, number, sums):  # type: ignore[no-untyped-def]
    """Store the sums of one band: sums[i * W + k], for i < rows, k < W with (rows, W) in BAND_TILES, is the sum over the planes d,
    the vectors of columns, and the lines r = j + i * LAG of a row j of output gradients, and then over lanes, of

        gradient[d, j, column] * (the cell CELLS[k] + column * step of line r in plane d)

    table : int64 array; sums : one-dimensional contiguous array, whose dtype is that of all.
    number : the rows where the step is 1, APART more where it is 2
    """
    return types.void(table, types.int64, sums), _emit_band_tile


def _emit_band_tile(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    table, place = (data_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2))
    v = Vectors(builder, signature.args[2].dtype)
    accumulate = builder.icmp_signed("!=", int64(0), int64(0))

    def case(rows: int, columns: int, step: int) -> Callable[[], None]:
        return lambda: put_lane_sums(v, _Band(v, table, rows, columns, step).sums(), place, accumulate)

    cases = [(rows + more, case(rows, columns, step)) for step, more in ((1, 0), (2, APART)) for rows, columns in BAND_TILES]
    switch(builder, arguments[1], cases[:-1], cases[-1][1])
    return context.get_dummy_value()


class _Band:
    """Code of the sums of a band of so many kernel rows and columns, whose cells are ``step`` apart."""

    def __init__(self, v: Vectors, table: Any, rows: int, columns: int, step: int) -> None:
        self.v, self.rows, self.columns, self.step = v, rows, columns, step
        self.f = [v.builder.load(v.builder.gep(table, [int64(i)])) for i in range(CELLS + columns)]

    def sums(self) -> list[Any]:
        b, v, f = self.v.builder, self.v, self.f
        vectors = b.sdiv(b.add(f[COLUMNS], int64(v.lanes - 1)), int64(v.lanes))

        def plane(d: Any, sums: list[Any]) -> list[Any]:
            there = b.icmp_unsigned("<", b.add(f[PLANE_INDEX], b.mul(d, f[PLANE_STRIDE])), f[PLANE_SIZE])
            cells = v.at(v.pointer(f[ADDRESS]), b.mul(d, f[PLANE_STEP]))
            grads = v.at(v.pointer(f[GRAD_ADDRESS]), b.mul(d, f[GRAD_PLANE_STEP]))
            return counted(b, vectors, sums, lambda n, sums: self._column(b.mul(n, int64(v.lanes)), there, cells, grads, sums))

        return counted(b, f[PLANES], [v.zero] * (self.rows * self.columns), plane)

    def _column(self, start: Any, there: Any, cells: Any, grads: Any, sums: list[Any]) -> list[Any]:
        """The sums after one vector of columns of a plane, from ``start`` on.

        Lines that are there, and that every kernel row of the band multiplies, need no tests: those before and after them do.
        """
        b, v, f = self.v.builder, self.v, self.f
        left, step = b.sub(f[COLUMNS], start), int64(self.step)
        kept, last = v.mask_of(self._first(left)), b.sub(b.mul(left, step), int64(self.step - 1))
        places = [b.add(b.mul(start, step), cell) for cell in f[CELLS:]]
        bits = [b.and_(self._first(self._smallest(b.sub(f[ROW_SIZE], at), last)), b.not_(self._first(b.neg(at)))) for at in places]
        inside = [v.mask_of(b.lshr(word, int64(i * v.lanes))) for word in bits for i in range(self.step)]
        lags = [b.mul(f[LAG], int64(i)) for i in range(self.rows)]
        behind = [b.sub(start, b.mul(lag, f[GRAD_ROW_STEP])) for lag in lags]
        end = b.add(f[ROWS], lags[-1])
        low = self._within(b.select(there, self._largest(f[FIRST], lags[-1]), int64(0)), int64(0), end)
        high = self._within(b.select(there, self._smallest(f[LAST], f[ROWS]), int64(0)), low, end)
        carried = [cells, grads, *sums]

        def lines(first: Any, last: Any, whole: bool, carried: list[Any]) -> list[Any]:
            def line(i: Any, carried: list[Any]) -> list[Any]:
                cells, grads, *sums = carried
                if whole:
                    new = self._products(cells, grads, places, behind, inside, [kept] * self.rows, sums)
                else:
                    r = b.add(first, i)
                    met = v.splat(b.and_(there, b.and_(b.icmp_signed(">=", r, f[FIRST]), b.icmp_signed("<", r, f[LAST]))))
                    alive = [v.splat(b.icmp_unsigned("<", b.sub(r, lag), f[ROWS])) for lag in lags]
                    masks = [b.and_(kept, one) for one in alive]
                    new = self._products(cells, grads, places, behind, [b.and_(mask, met) for mask in inside], masks, sums)
                    multiplied = [mask for mask in masks for _ in range(self.columns)]
                    new = [b.select(mask, after, before) for mask, after, before in zip(multiplied, new, sums)]
                return [v.at(cells, f[LINE_STEP]), v.at(grads, f[GRAD_ROW_STEP]), *new]

            return counted(b, b.sub(last, first), carried, line)

        carried = lines(int64(0), low, False, carried)
        carried = lines(low, high, True, carried)
        return lines(high, end, False, carried)[2:]

    def _products(
        self, cells: Any, grads: Any, places: list[Any], behind: list[Any], inside: list[Any], kept: list[Any], sums: list[Any]
    ) -> list[Any]:
        """The sums after one line; ``places`` and ``behind`` are those of its cells and its output gradients."""
        v, new = self.v, []
        halves = [(place, i * v.lanes) for place in places for i in range(self.step)]
        line = [v.masked_load(v.at(v.at(cells, place), more), mask) for (place, more), mask in zip(halves, inside)]
        if self.step == 2:
            line = [v.shuffle(low, high, range(0, 2 * v.lanes, 2)) for low, high in zip(line[::2], line[1::2])]
        for i, (place, mask) in enumerate(zip(behind, kept)):
            factor = v.masked_load(v.at(grads, place), mask)
            new += [v.multiply_add(factor, cell, total) for cell, total in zip(line, sums[i * self.columns : (i + 1) * self.columns])]
        return new

    def _first(self, count: Any) -> Any:
        """Bits of the first ``count`` cells of a vector of columns."""
        b, one = self.v.builder, int64(1)
        return b.sub(b.shl(one, self._within(count, int64(0), int64(self.step * self.v.lanes))), one)

    def _largest(self, a: Any, b: Any) -> Any:
        return self.v.builder.select(self.v.builder.icmp_signed(">", a, b), a, b)

    def _smallest(self, a: Any, b: Any) -> Any:
        return self.v.builder.select(self.v.builder.icmp_signed("<", a, b), a, b)

    def _within(self, value: Any, low: Any, high: Any) -> Any:
        return self._smallest(self._largest(value, low), high)
