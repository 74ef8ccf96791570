"""The register tile of the filter algorithm, and the copies of source rows that feed it, as intrinsics.

A tile of result rows times vectors of columns stays in registers over all taps.  Several kernel rows are taken together, so that each
source vector that is loaded is used by each of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .elements import converted, each_stored
from .simd import I64, Vectors, counted, int64
from .target import target

CHAINS = 8
"""Sums that keep the multiply-add units busy: two of them, for the four cycles of a multiply-add."""


@dataclass(frozen=True)
class Tile:
    """Shape of a register tile.

    channels : result channels, which share the loaded source vectors
    rows, vectors : result rows, and vectors in each of them (at most 64 lanes)
    heights : numbers of kernel rows that may be taken together, largest first, the last is 1
    """

    channels: int
    rows: int
    vectors: int
    heights: tuple[int, ...]


def tile_sums(tile: Tile) -> Any:
    """The intrinsic that computes one tile of the result.

    ``sums(like, bands, taps, masks, width, lines, column, weight, bias, result, row_step, channel_step, rows, channels, lanes, number)``
    writes, for r < rows and o < channels, the columns l whose bit of ``lanes`` is set, as the dtype with this ``number`` (``elements``):

        result[o, r, l] = bias[o] + sum over heights h, bands b of h, taps k, kernel rows j < h of
                          weight[h][b, k, j, o] * line(b, r + j)[column + shift(k) + l]

    in this order, one chain of multiply-adds; cells of a line that no mask names count as zero and are not read.  All arguments but the
    array ``like``, which gives the dtype, are int64; those that name memory are byte addresses and those that step through it bytes:

    bands : of int64 (address, count, offset) for each of ``tile.heights``: where the bands' places (bytes in ``lines``) are listed, how
        many they are, and where their weights, (count, width, h, tile.channels) elements, start after ``weight``
    taps : of ``width`` int64, the byte shift of each tap
    masks : of int64 (width, tile.vectors), bit l for the cell that lane l of a vector reads at a tap; -1 for all of them
    lines : of int64 addresses of source rows; a band reads tile.rows + h - 1 of them from its place on
    bias : of tile.channels elements
    """

    @intrinsic
    def sums(  # type: ignore[no-untyped-def]
        typingctx, like, bands, taps, masks, width, lines, column, weight, bias,
        result, row_step, channel_step, rows, channels, lanes, number,
    ):  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _Sums(tile, builder, signature.args[0].dtype, arguments[1:]).emit()
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 15), codegen

    return sums


class _Sums:
    """Code of one tile shape."""

    def __init__(self, tile: Tile, builder: Any, dtype: Any, arguments: Any) -> None:
        self.tile, self.builder, self.v = tile, builder, Vectors(builder, dtype)
        (self.bands, self.taps, self.masks, self.width, self.lines, self.column, self.weight, self.bias,
         self.result, self.row_step, self.channel_step, self.rows, self.channels, self.lanes, self.number) = arguments  # fmt: skip

    def emit(self) -> None:
        t, v = self.tile, self.v
        if t.channels > 1:  # more streams of stores than the processor foresees
            for o, row, i in itertools.product(range(t.channels), range(t.rows), range(t.vectors)):
                v.prefetch_for_writing(v.at(v.pointer(self._row(o, row)), i * v.lanes))
        biases = [v.broadcast(v.at(v.pointer(self.bias), o)) for o in range(t.channels)]
        sums = [bias for bias in biases for _ in range(t.rows * t.vectors)]
        for i, height in enumerate(t.heights):
            sums = self._add_bands(height, i, sums)
        each_stored(v, self.number, lambda stored: self._store(sums, stored))

    def _add_bands(self, height: int, index: int, sums: list[Any]) -> list[Any]:
        """The sums after all bands of one height."""
        b = self.builder
        places, count, offset = (self._int64(self.bands, int64(3 * index + field)) for field in range(3))
        step = int64(height * self.tile.channels * self.v.bytes)

        def add_band(i: Any, carried: list[Any]) -> list[Any]:
            lines = b.add(self.lines, self._int64(places, i))

            def add_tap(k: Any, carried: list[Any]) -> list[Any]:
                weight, *before = carried
                return [b.add(weight, step), *self._tap_sums(height, k, lines, weight, before)]

            return counted(b, self.width, carried, add_tap)

        return counted(b, count, [b.add(self.weight, offset), *sums], add_band)[1:]

    def _tap_sums(self, height: int, k: Any, lines: Any, weight: Any, sums: list[Any]) -> list[Any]:
        """The sums after one tap of ``height`` kernel rows, without masks where those name every lane."""
        b, v, t = self.builder, self.v, self.tile
        factors = [[v.broadcast(v.at(v.pointer(weight), j * t.channels + o)) for o in range(t.channels)] for j in range(height)]
        shift = b.add(self._int64(self.taps, k), self.column)
        bits = [self._int64(self.masks, b.add(b.mul(k, int64(t.vectors)), int64(i))) for i in range(t.vectors)]
        every = b.icmp_signed("==", functools.reduce(b.and_, bits), int64(-1))
        masks, found = [v.mask_of(one) for one in bits], []
        with b.if_else(every, likely=True) as branches:
            for branch, taken in zip(branches, (None, masks)):
                with branch:
                    new = self._row_sums(height, factors, lines, shift, taken, sums)
                    found.append((new, b.block))
        merged = [b.phi(v.vector) for _ in sums]
        for new, block in found:
            for phi, value in zip(merged, new):
                phi.add_incoming(value, block)
        return merged

    def _row_sums(
        self, height: int, factors: list[list[Any]], lines: Any, shift: Any, masks: list[Any] | None, sums: list[Any]
    ) -> list[Any]:
        """The sums after multiplication with the factors of each kernel row; every source vector is loaded once.

        A kernel row follows the one before ``lag`` result rows behind, far enough for a sum not to wait for its last product.
        """
        b, v, t = self.builder, self.v, self.tile
        new, cells, lag = list(sums), dict[int, list[Any]](), -(-CHAINS // (t.vectors * t.channels * min(height, t.rows)))
        for step in range(t.rows + lag * (height - 1)):
            _fence(b)
            for j, row in ((j, step - lag * j) for j in range(height)):
                if not 0 <= row < t.rows:
                    continue
                if row + j not in cells:
                    start = v.pointer(b.add(self._int64(lines, int64(row + j)), shift))
                    places = [v.at(start, i * v.lanes) for i in range(t.vectors)]
                    cells[row + j] = [v.masked_load(p, m) for p, m in zip(places, masks)] if masks else [v.load(p) for p in places]
                for i, o in itertools.product(range(t.vectors), range(t.channels)):
                    n = (o * t.rows + row) * t.vectors + i
                    new[n] = v.multiply_add(factors[j][o], cells[row + j][i], new[n])
        return new

    def _store(self, sums: list[Any], stored: Vectors) -> None:
        b, v, t = self.builder, self.v, self.tile
        masks = [v.mask_of(b.lshr(self.lanes, int64(i * v.lanes))) for i in range(t.vectors)]
        for o in range(t.channels):
            with b.if_then(b.icmp_signed("<", int64(o), self.channels)):
                for row in range(t.rows):
                    with b.if_then(b.icmp_signed("<", int64(row), self.rows)):
                        start = stored.pointer(self._row(o, row))
                        for i, mask in enumerate(masks):
                            value = converted(sums[(o * t.rows + row) * t.vectors + i], v, stored)
                            stored.masked_store(value, stored.at(start, i * v.lanes), mask)

    def _row(self, channel: int, row: int) -> Any:
        """Address of the first element of one row of the result."""
        b = self.builder
        place = b.add(b.mul(self.channel_step, int64(channel)), b.mul(self.row_step, int64(row)))
        return b.add(self.result, place)

    def _int64(self, address: Any, index: Any) -> Any:
        return _int64_at(self.builder, address, index)


@intrinsic
def copy_lines(typingctx, like, number, source, target, copies, count, masks, vectors):  # type: ignore[no-untyped-def]
    """Copy ``count`` rows of ``vectors`` vectors, elements of the dtype with this number (``elements``), to the dtype of ``like``.

    copies[i] = (place of row i after ``source``, place of its copy after ``target``), int64 bytes.  Bit l of the int64 masks[j] names
    lane l of vector j; the other lanes are not read, their copies become zero.  All arguments but ``like`` are int64, addresses in bytes.
    """
    return types.void(like, *[types.int64] * 7), _copying(1)


@intrinsic
def split_lines(typingctx, like, number, source, target, copies, count, masks, vectors):  # type: ignore[no-untyped-def]
    """As ``copy_lines`` from twice as many vectors: ``vectors`` vectors of even elements, then those of odd elements."""
    return types.void(like, *[types.int64] * 7), _copying(2)


def _copying(phases: int) -> Callable[[Any, Any, Any, Any], Any]:
    """Code that copies rows, in phases of every second element or at once."""

    def codegen(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(b, signature.args[0].dtype)
        number, source, target, copies, count, masks, vectors = arguments[1:]
        each_stored(v, number, lambda stored: copy_rows(v, stored, source, target, copies, count, masks, vectors))
        return context.get_dummy_value()

    def copy_rows(v: Vectors, stored: Vectors, source: Any, target: Any, copies: Any, count: Any, masks: Any, vectors: Any) -> None:
        b = v.builder

        def copy_row(i: Any, carried: list[Any]) -> list[Any]:
            ends = [_int64_at(b, copies, b.add(b.mul(i, int64(2)), int64(end))) for end in range(2)]
            start, place = stored.pointer(b.add(source, ends[0])), v.pointer(b.add(target, ends[1]))

            def copy_vectors(j: Any, carried: list[Any]) -> list[Any]:
                cells = []
                for part in range(phases):
                    n = b.add(b.mul(j, int64(phases)), int64(part))
                    cells.append(stored.masked_load(stored.at(start, b.mul(n, int64(v.lanes))), v.mask_of(_int64_at(b, masks, n))))
                for phase in range(phases):
                    part = stored.shuffle(cells[0], cells[1], range(phase, 2 * v.lanes, 2)) if phases == 2 else cells[0]
                    v.store(converted(part, stored, v), v.at(place, b.mul(b.add(j, b.mul(vectors, int64(phase))), int64(v.lanes))))
                return []

            return counted(b, vectors, [], copy_vectors)

        counted(b, count, [], copy_row)

    return codegen


def _int64_at(builder: Any, address: Any, index: Any) -> Any:
    return builder.load(builder.gep(builder.inttoptr(address, I64.as_pointer()), [index]))


def _fence(builder: Any) -> None:
    """No load moves across: LLVM's scheduler would load the lines of a whole tap at first, and spill the sums for want of registers."""
    builder.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True), [])


if target().registers >= 32:
    NARROW, WIDE, SEVERAL = Tile(1, 7, 1, (7, 5, 3, 2, 1)), Tile(1, 7, 2, (7, 5, 3, 2, 1)), Tile(4, 4, 1, (3, 2, 1))
else:
    NARROW, WIDE, SEVERAL = Tile(1, 7, 1, (3, 2, 1)), Tile(1, 4, 2, (3, 2, 1)), Tile(4, 2, 1, (1,))

narrow_sums, wide_sums, several_sums = tile_sums(NARROW), tile_sums(WIDE), tile_sums(SEVERAL)
