"""Elements that kernels load, sum up and store: conversions between vectors of them, and a name for those that Numba lacks.

Sums are made in float32, float64, int32 or int64.  float16 and bfloat16 widen to float32 on the way into a panel.  A complex number is
two real ones, its *components*, each a product of its own.  Integers of 8 and 16 bits go into panels in *pairs* of int16 (two channels)
in one 32-bit element, and a multiply-add makes the sum of two pairs' products: exact modulo 2**32, and so modulo 2**16 and 2**8.  Arrays
of pairs, and of their sums, are uint32, a dtype that no problem has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import from_dtype
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..arrays import ELEMENTS, NARROW_INTEGERS, AnyArray
from .simd import I32, Case, Vectors, data_pointer, int64, switch
from .target import target

PAIRS = np.dtype(np.uint32)


@functools.cache
def like(dtype: str) -> AnyArray:
    """An empty array whose type tells kernels the named dtype: a record of one field, as float16 and bfloat16 are both stored in uint16."""
    return np.empty(0, [(dtype, ELEMENTS[dtype].storage)])


class Kind(NamedTuple):
    """How sums over elements of one dtype are made.

    sums : dtype of the sums, and of what is multiplied
    together : source channels that one product takes: 2 where they go in pairs
    components : real numbers of an element, each a product of its own: 2 of complex ones
    """

    sums: np.dtype[Any]
    together: int = 1
    components: int = 1

    def products(self, channels: int) -> int:
        """Products of so many channels with one tap."""
        return -(-channels // self.together) * self.components


@functools.cache
def kind_of(dtype: str) -> Kind:
    if dtype in NARROW_INTEGERS:
        return Kind(PAIRS, together=2)
    accumulator = ELEMENTS[dtype].accumulator
    return Kind(accumulator.type(0).real.dtype, components=2) if accumulator.kind == "c" else Kind(accumulator)


NUMBERS = {dtype: number for number, dtype in enumerate(ELEMENTS)}
"""What kernels that are compiled for the dtype of the sums alone know those of elements by."""

UNSTORED = -1
"""Stands for the dtype of the sums."""


def each_stored(sums: Vectors, number: Any, emit: Callable[[Vectors], None]) -> None:
    """Emit code for vectors of each dtype that is summed up in that of ``sums``: ``number``, an LLVM int64, is that of :data:`NUMBERS`."""
    others = [dtype for dtype, element in ELEMENTS.items() if element.accumulator.name == sums.name != dtype]
    cases: list[Case] = [
        (NUMBERS[dtype], functools.partial(emit, Vectors(sums.builder, from_dtype(like(dtype).dtype), sums.lanes)))
        for dtype in others
        if dtype != "float16" or target().float16
    ]
    switch(sums.builder, number, cases, functools.partial(emit, sums))


def each_loaded(sums: Vectors, number: Any, emit: Callable[[Vectors], list[Any]]) -> list[Any]:
    """The values of :func:`each_stored`: what ``emit`` returned for the dtype that it is."""
    found: list[tuple[list[Any], Any]] = []

    def collect(kind: Vectors) -> None:
        values = emit(kind)
        found.append((values, sums.builder.block))

    each_stored(sums, number, collect)
    merged = [sums.builder.phi(value.type) for value in found[0][0]]
    for values, block in found:
        for phi, value in zip(merged, values):
            phi.add_incoming(value, block)
    return merged


def components_of(dtype: Any) -> tuple[int, Any]:
    """Components of an element of a Numba type (a record: what its field is), and the type of one."""
    field = dtype.typeof(next(iter(dtype.fields))) if isinstance(dtype, types.Record) else dtype
    return (2, field.underlying_float) if isinstance(field, types.Complex) else (1, dtype)


def converted(value: Any, source: Vectors, target: Vectors) -> Any:
    """A vector of ``source``'s elements as one of ``target``'s: floats rounded to nearest even, integers extended or truncated."""
    b = source.builder
    if source.name == target.name:
        return value
    if source.name == "float16":
        return b.fpext(b.bitcast(value, ir.VectorType(ir.HalfType(), source.lanes)), target.vector)
    if target.name == "float16":
        return b.bitcast(b.fptrunc(value, ir.VectorType(ir.HalfType(), target.lanes)), target.vector)
    if source.name == "bfloat16":
        return b.bitcast(b.shl(b.zext(value, _integers(target)), _constant(target, 16)), target.vector)
    if target.name == "bfloat16":
        return _bfloat16(value, source, target)
    if source.bits < target.bits:
        return (b.zext if source.name.startswith("u") else b.sext)(value, target.vector)
    return value if source.bits == target.bits else b.trunc(value, target.vector)


def _bfloat16(value: Any, source: Vectors, target: Vectors) -> Any:
    """In integer arithmetic: the instruction of AVX-512 BF16 takes subnormal numbers for zero."""
    b = source.builder
    bits = b.bitcast(value, _integers(source))
    high = b.lshr(bits, _constant(source, 16))
    odd = b.and_(high, _constant(source, 1))
    rounded = b.lshr(b.add(b.add(bits, _constant(source, 0x7FFF)), odd), _constant(source, 16))
    quiet = b.or_(high, _constant(source, 0x40))
    return b.trunc(b.select(b.fcmp_unordered("uno", value, value), quiet, rounded), target.vector)


def paired(low: Any, high: Any, there: Any, source: Vectors, target: Vectors) -> Any:
    """Vectors of two channels as pairs; the second channel counts as zero where the LLVM bit ``there`` is clear."""
    b = source.builder
    low, high = converted(low, source, target), converted(high, source, target)
    kept = target.splat(b.select(there, ir.Constant(I32, -65536), ir.Constant(I32, 0)))
    return b.or_(b.and_(low, _constant(target, 0xFFFF)), b.and_(b.shl(high, _constant(target, 16)), kept))


def _integers(v: Vectors) -> Any:
    return ir.VectorType(ir.IntType(v.bits), v.lanes)


def _constant(v: Vectors, value: int) -> Any:
    return ir.Constant(_integers(v), [value] * v.lanes)


# ---- results -----------------------------------------------------------------------------------------------------------
@intrinsic
def store_sums(typingctx, sums, position, apart, count, address, step, like):  # type: ignore[no-untyped-def]
    """Convert sums[position : position + count] to the elements of the array ``like`` and write them ``step`` elements apart.

    sums : one-dimensional contiguous array; a vector less one element beyond ``count`` is read too.
    apart : how much further on the second components are, where elements have two.
    address : int64 byte address of the first element written.
    """
    n = types.int64
    return types.void(sums, n, n, n, n, n, like), _emit_store


def _emit_store(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b, (sums, position, apart, count, address, step, _) = builder, arguments
    source = Vectors(b, signature.args[0].dtype)
    components, each = components_of(signature.args[6].dtype)
    start = b.gep(data_pointer(context, b, signature.args[0], sums), [position])
    target, elements = Vectors(b, each, source.lanes), Vectors(b, each, source.lanes * components)
    _store_row(start, source, count, address, step, target, elements, apart)
    return context.get_dummy_value()


@intrinsic
def store_sums_as(typingctx, sums, position, count, address, step, number):  # type: ignore[no-untyped-def]
    """:func:`store_sums` for real elements of the dtype that has this number of :data:`NUMBERS`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, position, count, address, step, number = arguments
        source = Vectors(builder, signature.args[0].dtype)
        start = builder.gep(data_pointer(context, builder, signature.args[0], sums), [position])
        each_stored(source, number, lambda kind: _store_row(start, source, count, address, step, kind, kind))
        return context.get_dummy_value()

    n = types.int64
    return types.void(sums, n, n, n, n, n), codegen


def _store_row(
    start: Any, source: Vectors, count: Any, address: Any, step: Any, target: Vectors, elements: Vectors, apart: Any = None
) -> None:
    """Code of :func:`store_sums` from ``start`` on; ``target`` are vectors of so many components, ``elements`` of so many elements."""
    b, end, components = source.builder, target.pointer(address), elements.lanes // target.lanes
    vectors, wider = b.sdiv(b.add(count, int64(source.lanes - 1)), int64(source.lanes)), b.mul(step, int64(components))
    with cgutils.for_range(b, vectors) as loop:
        done = b.mul(loop.index, int64(source.lanes))
        left, place = b.sub(count, done), target.at(end, b.mul(done, wider))
        values = [source.load(source.at(start, b.add(done, b.mul(apart, int64(i))) if i else done)) for i in range(components)]
        values = [converted(value, source, target) for value in values]
        together = values[0] if components == 1 else target.interleave(*values)
        with b.if_else(b.icmp_signed("==", step, int64(1))) as (side_by_side, scattered):
            with side_by_side, b.if_else(b.icmp_signed(">=", left, int64(source.lanes)), likely=True) as (whole, some):
                with whole:
                    elements.store(together, place)
                with some:
                    elements.masked_store(together, place, elements.first(b.mul(left, int64(components))))
            with scattered:
                for i, value in enumerate(values):
                    _store_apart(target, value, target.at(place, i), wider, target.first(left))


@intrinsic
def store_sums_turned_as(typingctx, sums, position, row_step, rows, columns, address, column_step, step, number):  # type: ignore[no-untyped-def]
    """Write rows of sums as columns: of up to as many pixels, and rows of the weight, as a vector has lanes.

    element(address, column * column_step + row * step) = sums[position + row * row_step + column] for row < rows, column < columns

    converted to real elements of the dtype that has this number of :data:`NUMBERS`.

    sums : one-dimensional contiguous array; whole vectors are read.
    address : int64 byte address; ``rows`` and ``columns`` are at most the lanes of a vector of sums.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b, (sums, position, row_step, rows, columns, address, column_step, step, number) = builder, arguments
        source = Vectors(b, signature.args[0].dtype)
        values = _turned(b.gep(data_pointer(context, b, signature.args[0], sums), [position]), source, row_step, rows)
        alike = b.and_(b.icmp_signed("==", number, int64(NUMBERS[source.name])), b.icmp_signed("==", step, int64(1)))
        whole = b.and_(alike, b.icmp_signed("==", b.and_(rows, columns), int64(source.lanes)))
        with b.if_else(whole) as (at_once, in_turn):
            with at_once:
                for column, value in enumerate(values):
                    source.store(value, source.at(source.pointer(address), b.mul(column_step, int64(column))))
            with in_turn:
                kept = _kept(source, values)
                each_stored(source, number, lambda kind: _store_columns(kept, source, kind, rows, columns, address, column_step, step))
        return context.get_dummy_value()

    n = types.int64
    return types.void(sums, n, n, n, n, n, n, n, n), codegen


def _turned(start: Any, source: Vectors, row_step: Any, rows: Any) -> list[Any]:
    """The columns of ``rows`` vectors ``row_step`` elements apart from ``start`` on."""
    b, last = source.builder, source.builder.sub(rows, int64(1))
    values = []
    for row in range(source.lanes):
        there = b.select(b.icmp_signed("<", int64(row), rows), int64(row), last)
        values.append(source.load(source.at(start, b.mul(there, row_step))))
    return source.transposed(values)


def _kept(v: Vectors, values: list[Any]) -> Any:
    """Pointer to the vectors, one after the other."""
    kept = square(v)
    for i, value in enumerate(values):
        v.store(value, v.at(kept, i * v.lanes))
    return kept


def _store_columns(
    turned: Any, source: Vectors, target: Vectors, rows: Any, columns: Any, address: Any, column_step: Any, step: Any
) -> None:
    """Write ``columns`` vectors of ``rows`` sums each, as :func:`store_sums_turned_as` does."""
    b, mask = source.builder, target.first(rows)
    with cgutils.for_range(b, columns) as loop:
        value = converted(source.load(source.at(turned, b.mul(loop.index, int64(source.lanes)))), source, target)
        place = target.at(target.pointer(address), b.mul(column_step, loop.index))
        with b.if_else(b.icmp_signed("==", step, int64(1)), likely=True) as (side_by_side, scattered):
            with side_by_side:
                target.masked_store(value, place, mask)
            with scattered:
                _store_apart(target, value, place, step, mask)


def _store_apart(v: Vectors, value: Any, place: Any, step: Any, mask: Any) -> None:
    """Write the lanes of a vector ``step`` elements apart: two vectors with gaps where that is 2, as a scatter takes much longer."""
    b, undefined = v.builder, ir.Constant(v.vector, ir.Undefined)
    with b.if_else(b.icmp_signed("==", step, int64(2))) as (every_second, far):
        with every_second:
            for half in range(2):
                lanes = [half * v.lanes // 2 + lane // 2 for lane in range(v.lanes)]
                wanted = b.and_(b.shuffle_vector(mask, mask, ir.Constant(ir.VectorType(I32, v.lanes), lanes)), v.every_second)
                v.masked_store(v.shuffle(value, undefined, lanes), v.at(place, half * v.lanes), wanted)
        with far:
            v.scatter(value, place, b.mul(v.iota, v.splat(step)), mask)


def square(v: Vectors) -> Any:
    """Pointer to memory of as many vectors as one has lanes: what is transposed passes through it in loops, which are less code."""
    return v.builder.bitcast(cgutils.alloca_once(v.builder, ir.ArrayType(v.vector, v.lanes)), v.element.as_pointer())


# ---- single elements ---------------------------------------------------------------------------------------------------
@intrinsic
def load_stored(typingctx, address, number, sums):  # type: ignore[no-untyped-def]
    """The real element of the dtype with this number at an int64 byte address, as one of the array ``sums``."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, number, _ = arguments
        one = Vectors(builder, signature.args[2].dtype, 1)
        values = each_loaded(one, number, lambda kind: [converted(kind.load(kind.pointer(address)), kind, one)])
        return builder.extract_element(values[0], ir.Constant(I32, 0))

    return sums.dtype(types.int64, types.int64, sums), codegen


@intrinsic
def store_stored(typingctx, address, value, number):  # type: ignore[no-untyped-def]
    """Write a real number to an int64 byte address, as the dtype with this number."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, value, number = arguments
        one = Vectors(builder, signature.args[1], 1)
        total = one.splat(value)
        each_stored(one, number, lambda kind: kind.store(converted(total, one, kind), kind.pointer(address)))
        return context.get_dummy_value()

    return types.void(types.int64, value, types.int64), codegen
