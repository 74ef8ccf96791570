"""Fourier transforms of many columns at once, one in each lane of a vector, as intrinsics.

A *cell* is one complex number of every lane: a vector of real parts, then one of imaginary parts.  A transform of n cells takes
log n / log 8 passes or so over them: the forward one leaves them in a scrambled order, which the inverse one undoes, and nothing between
the two asks for another (decimation in frequency, then in time; see Van Loan, Computational Frameworks for the Fast Fourier Transform,
1992, 1.9).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from .simd import I64, Vectors, counted, int64


# ---- passes ------------------------------------------------------------------------------------------------------------
class Pass(NamedTuple):
    """One pass of a transform: butterflies of ``radix`` cells that lie ``distance`` apart."""

    radix: int
    distance: int


def passes_of(n: int) -> list[Pass]:
    """The passes of a forward transform of n cells, a power of two from 16 on; of an inverse one in reverse."""
    eights = {16: 0, 32: 1, 64: 2, 128: 1, 256: 2, 512: 3}[n]
    radices = [8] * eights + [4] * ((n.bit_length() - 1 - 3 * eights) // 2)
    found = []
    for radix in radices:
        n //= radix
        found.append(Pass(radix, n))
    return found


def twiddles_of(one: Pass, dtype: str) -> NDArray[Any]:
    """(distance, radix - 1, 2): real and imaginary parts of the factors of cells 1, 2 ... of each butterfly."""
    exponents = np.outer(np.arange(one.distance), np.arange(1, one.radix))
    angles = -2 * math.pi * exponents / (one.radix * one.distance)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(dtype)


def _pass(radix: int, inverse: bool) -> Any:
    """The intrinsic of one pass.

    ``one(like, source, source_step, target, target_step, blocks, distance, twiddles)``: transforms each of ``blocks`` runs of radix *
    distance cells, from ``source`` to ``target``, which may be the same.  All arguments but the array ``like``, which gives the dtype, are
    int64; addresses and steps from cell to cell in bytes.  Where the distance is 1 there are no twiddles.
    """

    @intrinsic
    def one(typingctx, like, source, source_step, target, target_step, blocks, distance, twiddles):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit = _Pass(builder, signature.args[0].dtype, radix, inverse, arguments[1:])
            alone = builder.icmp_signed("==", arguments[6], int64(1))
            with builder.if_else(alone) as (then, otherwise):
                with then:
                    emit.loops(False)
                with otherwise:
                    emit.loops(True)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 7), codegen

    return one


Complex = tuple[Any, Any]


class _Pass:
    """Code of a pass.  The inverse one computes with real and imaginary parts swapped, which conjugates all factors."""

    def __init__(self, builder: Any, dtype: Any, radix: int, inverse: bool, arguments: Any) -> None:
        self.b, self.v, self.radix, self.inverse = builder, Vectors(builder, dtype), radix, inverse
        self.source, self.source_step, self.target, self.target_step, self.blocks, self.distance, self.twiddles = arguments

    def loops(self, twiddled: bool) -> None:
        b = self.b
        length = b.mul(self.distance, int64(self.radix))

        def each_place(j: Any, carried: list[Any]) -> list[Any]:
            factors = self.v.pointer(b.add(self.twiddles, b.mul(j, int64(2 * (self.radix - 1) * self.v.bytes))))

            def each_block(i: Any, carried: list[Any]) -> list[Any]:
                cell = b.add(b.mul(i, length), j)
                self._butterfly(cell, factors if twiddled else None)
                return []

            return counted(b, self.blocks, [], each_block)

        counted(b, self.distance, [], each_place)

    def _butterfly(self, first: Any, factors: Any) -> None:
        cells = [self._load(self._place(self.source, self.source_step, first, q)) for q in range(self.radix)]
        if factors is not None and self.inverse:
            cells = self._turned(cells, factors)
        cells = self._dft(cells)
        if factors is not None and not self.inverse:
            cells = self._turned(cells, factors)
        for q, cell in enumerate(cells):
            self._store(cell, self._place(self.target, self.target_step, first, q))

    def _place(self, base: Any, step: Any, first: Any, q: int) -> Any:
        cell = self.b.add(first, self.b.mul(self.distance, int64(q)))
        return self.v.pointer(self.b.add(base, self.b.mul(cell, step)))

    def _load(self, pointer: Any) -> Complex:
        real, imaginary = self.v.load(pointer), self.v.load(self.v.at(pointer, self.v.lanes))
        return (imaginary, real) if self.inverse else (real, imaginary)

    def _store(self, cell: Complex, pointer: Any) -> None:
        real, imaginary = cell[::-1] if self.inverse else cell
        self.v.store(real, pointer)
        self.v.store(imaginary, self.v.at(pointer, self.v.lanes))

    def _turned(self, cells: list[Complex], factors: Any) -> list[Complex]:
        """All cells but the first times their twiddles."""
        turned = cells[:1]
        for q, cell in enumerate(cells[1:]):
            c, s = (self.v.broadcast(self.v.at(factors, 2 * q + part)) for part in range(2))
            turned.append(times(self.v, cell, (c, s)))
        return turned

    def _dft(self, x: list[Complex]) -> list[Complex]:
        """The transform of a few cells, in their natural order."""
        n, half = len(x), len(x) // 2
        if n == 1:
            return x
        sums = [(self.b.fadd(a, c), self.b.fadd(b, d)) for (a, b), (c, d) in zip(x[:half], x[half:])]
        differences = [self._turned_difference(i, n, x[i], x[i + half]) for i in range(half)]
        even, odd = self._dft(sums), self._dft(differences)
        return [cell for pair in zip(even, odd) for cell in pair]

    def _turned_difference(self, i: int, n: int, x: Complex, y: Complex) -> Complex:
        """(x - y) exp(-2 pi i / n), for angles of multiples of 45 degrees."""
        b, (a, c), (d, e) = self.b, x, y
        eighth = 8 * i // n
        if eighth == 2:
            return b.fsub(c, e), b.fsub(d, a)
        real, imaginary = b.fsub(a, d), b.fsub(c, e)
        if eighth == 0:
            return real, imaginary
        root = self.v.constant(math.sqrt(0.5))
        if eighth == 1:
            return b.fmul(b.fadd(real, imaginary), root), b.fmul(b.fsub(imaginary, real), root)
        return b.fmul(b.fsub(imaginary, real), root), b.fmul(b.fadd(real, imaginary), self.v.constant(-math.sqrt(0.5)))


def times(v: Vectors, x: Complex, y: Complex) -> Complex:
    b, (a, c), (d, e) = v.builder, x, y
    return v.fma(a, d, b.fneg(b.fmul(c, e))), v.fma(a, e, b.fmul(c, d))


forward_4, forward_8, inverse_4, inverse_8 = _pass(4, False), _pass(8, False), _pass(4, True), _pass(8, True)


# ---- cells -------------------------------------------------------------------------------------------------------------
@intrinsic
def transpose_cells(typingctx, like, source, source_step, target, target_step):  # type: ignore[no-untyped-def]
    """As many cells as there are lanes, from one step apart to another step apart: lane l of cell i becomes lane i of cell l."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, signature.args[0].dtype)
        source, source_step, target, target_step = arguments[1:]
        for part in range(2):
            offset = int64(part * v.lanes * v.bytes)

            def place(base: Any, step: Any, i: int, offset: Any = offset) -> Any:
                return v.pointer(builder.add(builder.add(base, offset), builder.mul(step, int64(i))))

            rows = [v.load(place(source, source_step, i)) for i in range(v.lanes)]
            for i, column in enumerate(v.transposed(rows)):
                v.store(column, place(target, target_step, i))
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 4), codegen


@intrinsic
def multiply_cells(typingctx, like, cells, factors, sums, count, add):  # type: ignore[no-untyped-def]
    """sums[i] = cells[i] * factors[i] for ``count`` cells one after another, plus sums[i] before where ``add`` is not 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b, v = builder, Vectors(builder, signature.args[0].dtype)
        cells, factors, sums, count, add = arguments[1:]
        added = b.icmp_signed("!=", add, int64(0))

        def multiply(i: Any, carried: list[Any]) -> list[Any]:
            x, y, z = ([v.pointer(b.add(base, b.mul(i, int64(2 * v.lanes * v.bytes))))] for base in (cells, factors, sums))
            for pointers in (x, y, z):
                pointers.append(v.at(pointers[0], v.lanes))
            before = [b.select(added, v.load(pointer), v.zero) for pointer in z]
            (a, c), (d, e) = ([v.load(pointer) for pointer in pointers] for pointers in (x, y))
            v.store(v.fma(a, d, v.fma(b.fneg(c), e, before[0])), z[0])
            v.store(v.fma(a, e, v.fma(c, d, before[1])), z[1])
            return []

        counted(b, count, [], multiply)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 5), codegen


@intrinsic
def load_rows(typingctx, like, source, step, indices, rows, masks, vectors, target, target_step):  # type: ignore[no-untyped-def]
    """Rows of vectors into one part of rows of cells: that at ``source`` + indices[i] * step to ``target`` + i * target_step.

    Bit l of the int64 masks[j] names lane l of vector j; the others, and rows with a negative index (int64), are not read, and become zero.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b, v = builder, Vectors(builder, signature.args[0].dtype)
        source, step, indices, rows, masks, vectors, target, target_step = arguments[1:]
        numbers, masks = (b.inttoptr(address, I64.as_pointer()) for address in (indices, masks))

        def load_row(i: Any, carried: list[Any]) -> list[Any]:
            index = b.load(b.gep(numbers, [i]))
            outside = b.icmp_signed("<", index, int64(0))
            start = v.pointer(b.add(source, b.mul(b.select(outside, int64(0), index), step)))
            into = v.pointer(b.add(target, b.mul(i, target_step)))

            def load(j: Any, carried: list[Any]) -> list[Any]:
                mask = b.select(outside, int64(0), b.load(b.gep(masks, [j])))
                values = v.masked_load(v.at(start, b.mul(j, int64(v.lanes))), v.mask_of(mask))
                v.store(values, v.at(into, b.mul(j, int64(2 * v.lanes))))
                return []

            return counted(b, vectors, [], load)

        counted(b, rows, [], load_row)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 8), codegen


@intrinsic
def store_rows(typingctx, like, source, source_step, bias, target, step, rows, columns):  # type: ignore[no-untyped-def]
    """``rows`` of one part of cells, ``columns`` elements of each plus the element at ``bias``, to rows of elements side by side.

    Returns whether any is not finite.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b, v = builder, Vectors(builder, signature.args[0].dtype)
        source, source_step, bias, target, step, rows, columns = arguments[1:]
        added = v.broadcast(v.pointer(bias))
        vectors = b.sdiv(b.add(columns, int64(v.lanes - 1)), int64(v.lanes))

        def store_row(i: Any, carried: list[Any]) -> list[Any]:
            start, into = (v.pointer(b.add(base, b.mul(i, step))) for base, step in ((source, source_step), (target, step)))

            def store(j: Any, carried: list[Any]) -> list[Any]:
                values = b.fadd(v.load(v.at(start, b.mul(j, int64(2 * v.lanes)))), added)
                mask = v.first(b.sub(columns, b.mul(j, int64(v.lanes))))
                v.masked_store(values, v.at(into, b.mul(j, int64(v.lanes))), mask)
                wrong = b.fcmp_unordered("uno", b.fsub(values, values), v.zero)
                return [b.or_(carried[0], b.and_(wrong, mask))]

            return counted(b, vectors, carried, store)

        (wrong,) = counted(b, rows, [v.no_lane], store_row)
        bits = v.bits_of(wrong)
        return b.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(like, *[types.int64] * 7), codegen
