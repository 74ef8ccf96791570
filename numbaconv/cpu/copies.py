"""Copies of rows that change their order, as intrinsics: what feeds the microkernels of weight gradients, and packs weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .elements import NUMBERS, converted, each_stored, square
from .gemm import TILE_ROWS
from .simd import I64, Vectors, data_pointer, int64, switch


@intrinsic
def copy_lines(typingctx, source, number, step, low, high, length, lines, count, target, position):  # type: ignore[no-untyped-def]
    """Copy stretches of rows, zeros where they lie outside the source.

    target[position + lines[i, 1] + q] = source[lines[i, 0] + q * step] for low <= q < high, else 0, for i < count and q < length

    (and whatever fills the last vector of each, which the target must have room for); a line with lines[i, 2] != 0 is all zeros.

    source : int64 byte address of cell 0, which need not exist, of elements of the dtype with this number (``elements``); lines : int64
    array (any, 3), C-contiguous, in the order of their targets; target : one-dimensional contiguous array of the dtype of the sums.  All
    other arguments are int64 numbers, of elements.
    """
    n = types.int64
    return types.void(n, n, n, n, n, n, lines, n, target, n), _emit_copy_lines


def _emit_copy_lines(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    source, number, step, low, high, length, _, count, _, position = arguments
    v = Vectors(builder, signature.args[8].dtype)
    lines = data_pointer(context, builder, signature.args[6], arguments[6])
    to = builder.gep(data_pointer(context, builder, signature.args[8], arguments[8]), [position])
    each_stored(v, number, lambda stored: _copy_stretches(v, stored, source, step, low, high, length, lines, count, to))
    return context.get_dummy_value()


def _copy_stretches(
    v: Vectors, stored: Vectors, source: Any, step: Any, low: Any, high: Any, length: Any, lines: Any, count: Any, to: Any
) -> None:
    """Code of :func:`copy_lines` for elements of ``stored``."""
    b, cells = v.builder, stored.pointer(source)

    def place(line: Any, q: Any) -> Any:
        return stored.at(cells, b.add(line, b.mul(q, step)))

    end, far = b.append_basic_block("copy.end"), b.append_basic_block("copy.far")
    switch = b.switch(step, far)
    for parts in (1, 2):  # cells side by side, or every second one
        near = b.append_basic_block(f"copy.near{parts}")
        switch.add_case(int64(parts), near)
        b.position_at_end(near)

        def masks(q: Any, parts: int = parts) -> list[Any]:
            """Of ``parts`` vectors of neighbouring cells: those from the first wanted one to the last."""
            first = b.mul(b.sub(low, q), int64(parts))
            last = b.add(b.mul(b.sub(b.sub(high, q), int64(1)), int64(parts)), int64(1))
            return [b.and_(v.first(last, i * v.lanes), b.not_(v.first(first, i * v.lanes))) for i in range(parts)]

        def read(pointer: Any, wanted: list[Any], parts: int = parts) -> Any:
            raw = [stored.masked_load(stored.at(pointer, i * v.lanes), mask) for i, mask in enumerate(wanted)]
            return converted(raw[0] if parts == 1 else stored.shuffle(raw[0], raw[1], range(0, 2 * v.lanes, 2)), stored, v)

        _copy_loops(v, lines, count, length, place, masks, read, to)
        b.branch(end)
    b.position_at_end(far)
    indices = b.mul(v.iota, v.splat(step))
    _copy_loops(
        v, lines, count, length, place,
        lambda q: [b.and_(v.first(b.sub(high, q)), b.not_(v.first(b.sub(low, q))))],
        lambda pointer, wanted: converted(stored.gather(pointer, indices, wanted[0]), stored, v), to,
    )  # fmt: skip
    b.branch(end)
    b.position_at_end(end)


def _copy_loops(
    v: Vectors, lines: Any, count: Any, length: Any, place: Callable[..., Any], masks: Callable[..., Any], read: Callable[..., Any], to: Any
) -> None:
    """Loops over the vectors of a line and, inside, over the lines, for which the masks are the same."""
    b = v.builder
    with cgutils.for_range_slice(b, int64(0), length, int64(v.lanes), I64) as (q, _):
        wanted = masks(q)
        with cgutils.for_range(b, count) as loop:
            entry = b.gep(lines, [b.mul(loop.index, int64(3))])
            line, at, missing = (b.load(b.gep(entry, [int64(field)])) for field in range(3))
            exists = b.icmp_signed("==", missing, int64(0))
            value = read(place(line, q), [b.select(exists, mask, v.no_lane) for mask in wanted])
            v.store(value, v.at(to, b.add(at, q)))


@intrinsic
def transpose(typingctx, source, number, row_step, column_step, rows, columns, target_address, target_step, like):  # type: ignore[no-untyped-def]
    """target[q * target_step + r] = source[r * row_step + q * column_step] for r < rows, q < columns, each at most a vector's lanes.

    source : int64 byte address of elements of the dtype with this number (``elements``); target_address : of elements of the dtype of
    the array ``like``, that of the sums.  All other arguments are int64 numbers, of elements.
    """
    n = types.int64
    return types.void(n, n, n, n, n, n, n, n, like), _emit_transpose


def _emit_transpose(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    source, number, row_step, column_step, rows, columns, target_address, target_step, _ = arguments
    v = Vectors(builder, signature.args[8].dtype)
    places = [v.at(v.pointer(target_address), builder.mul(target_step, int64(q))) for q in range(v.lanes)]
    _store_turned(v, source, number, row_step, column_step, rows, columns, lambda q: places[q])
    return context.get_dummy_value()


@intrinsic
def spread(typingctx, source, number, row_step, column_step, rows, columns, places, first, target, at):  # type: ignore[no-untyped-def]
    """:func:`transpose` to places from a table: target[at + places[first + q] + r] = source[r * row_step + q * column_step].

    places : int64 array; target : one-dimensional contiguous array of the dtype of the sums.
    """
    n = types.int64
    return types.void(n, n, n, n, n, n, places, n, target, n), _emit_spread


def _emit_spread(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    source, number, row_step, column_step, rows, columns, _, first, _, at = arguments
    v = Vectors(builder, signature.args[8].dtype)
    table, target = (data_pointer(context, builder, signature.args[i], arguments[i]) for i in (6, 8))
    table, target = v.at(table, first), v.at(target, at)
    _store_turned(v, source, number, row_step, column_step, rows, columns, lambda q: v.at(target, builder.load(v.at(table, q))))
    return context.get_dummy_value()


def _store_turned(
    v: Vectors, source: Any, number: Any, row_step: Any, column_step: Any, rows: Any, columns: Any, place: Callable[[int], Any]
) -> None:
    """Code of :func:`transpose`: column q goes to the pointer ``place(q)``, whose code is emitted where it is used."""
    b = v.builder
    side_by_side, as_stored = b.icmp_signed("==", column_step, int64(1)), b.icmp_signed("==", number, int64(NUMBERS[v.name]))
    whole = b.and_(b.icmp_signed("==", b.and_(rows, columns), int64(v.lanes)), b.and_(side_by_side, as_stored))
    across, down, indices = v.first(columns), v.first(rows), b.mul(v.iota, v.splat(column_step))
    kept = square(v)

    def load(stored: Vectors) -> None:
        with cgutils.for_range(b, rows) as loop:
            row, to = stored.at(stored.pointer(source), b.mul(row_step, loop.index)), v.at(kept, b.mul(loop.index, int64(v.lanes)))
            with b.if_else(side_by_side, likely=True) as (near, far):
                with near:
                    v.store(converted(stored.masked_load(row, across), stored, v), to)
                with far:
                    v.store(converted(stored.gather(row, indices, across), stored, v), to)

    with b.if_then(b.not_(whole)):
        each_stored(v, number, load)
    start, step = b.select(whole, v.pointer(source), kept), b.select(whole, row_step, int64(v.lanes))
    turned = v.transposed([v.load(v.at(start, b.mul(step, int64(r)))) for r in range(v.lanes)])
    with b.if_else(whole) as (all_lanes, some_lanes):
        with all_lanes:
            for q, column in enumerate(turned):
                v.store(column, place(q))
        with some_lanes:
            for q, column in enumerate(turned):
                with b.if_then(b.icmp_signed("<", int64(q), columns)):
                    v.masked_store(column, place(q), down)


@intrinsic
def pack_columns(typingctx, source, row_step, rows, columns, places, target, at, width):  # type: ignore[no-untyped-def]
    """Write neighbouring elements of ``width`` rows side by side, zeros for missing rows.

    target[at + places[q] + r] = source[r * row_step + q] if r < rows, else 0, for r < width, q < columns with places[q] >= 0

    source : int64 byte address; places : int64 array, -1 up to a whole vector; target : one-dimensional contiguous array, whose dtype is
    that of all; width : TILE_ROWS or the lanes of a vector.  All other arguments are int64 numbers, of elements.
    """
    n = types.int64
    return types.void(n, n, n, n, places, target, n, n), _emit_pack_columns


def _emit_pack_columns(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    source, row_step, rows, columns, _, _, at, width = arguments
    v = Vectors(builder, signature.args[5].dtype)
    cells, places = v.pointer(source), data_pointer(context, builder, signature.args[4], arguments[4])
    to = builder.gep(data_pointer(context, builder, signature.args[5], arguments[5]), [at])
    _each_width(v, width, lambda width: _write_columns(v, cells, row_step, rows, columns, places, to, width))
    return context.get_dummy_value()


def _each_width(v: Vectors, width: Any, emit: Callable[[int], None]) -> None:
    """Emit code for each of the widths of rows that lie side by side in packed weights."""
    switch(v.builder, width, [(TILE_ROWS, lambda: emit(TILE_ROWS))] if v.lanes != TILE_ROWS else [], lambda: emit(v.lanes))


def _write_columns(v: Vectors, cells: Any, row_step: Any, rows: Any, columns: Any, places: Any, to: Any, width: int) -> None:
    """Code of :func:`pack_columns`."""
    b, absent = v.builder, ir.Constant(v.vector, ir.Undefined)
    with cgutils.for_range_slice(b, int64(0), columns, int64(v.lanes), I64) as (q, _):
        wanted = v.first(b.sub(columns, q))
        for first in range(0, width, v.lanes):
            count = min(v.lanes, width - first)
            kept = ir.Constant(v.mask, [lane < count for lane in range(v.lanes)])
            vectors = []
            for r in range(first, first + count):
                mask = b.select(b.icmp_signed("<", int64(r), rows), wanted, v.no_lane)
                vectors.append(v.masked_load(v.at(cells, b.add(b.mul(row_step, int64(r)), q)), mask))
            for i, column in enumerate(v.transposed(vectors + [absent] * (v.lanes - count))):
                place = b.load(b.gep(places, [b.add(q, int64(i))]))
                with b.if_then(b.icmp_signed(">=", place, int64(0))):
                    v.masked_store(column, v.at(to, b.add(place, int64(first))), kept)


@intrinsic
def pack_each(typingctx, source, row_step, rows, step, count, target, at, width):  # type: ignore[no-untyped-def]
    """Columns of :func:`pack_columns` that are not neighbours, one after the other.

    target[at + i * width + r] = source[r * row_step + i * step] if r < rows, else 0, for r < width, i < count
    """
    n = types.int64
    return types.void(n, n, n, n, n, target, n, n), _emit_pack_each


def _emit_pack_each(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    source, row_step, rows, step, count, _, at, width = arguments
    v = Vectors(builder, signature.args[5].dtype)
    cells, to = v.pointer(source), builder.gep(data_pointer(context, builder, signature.args[5], arguments[5]), [at])
    _each_width(v, width, lambda width: _write_each(v, cells, row_step, rows, step, count, to, width))
    return context.get_dummy_value()


def _write_each(v: Vectors, cells: Any, row_step: Any, rows: Any, step: Any, count: Any, to: Any, width: int) -> None:
    """Code of :func:`pack_each`."""
    b = v.builder
    with b.if_else(b.icmp_signed("==", row_step, int64(1))) as (near, far):
        for block, is_near in ((near, True), (far, False)):
            with block, cgutils.for_range(b, count) as loop:
                start, end = v.at(cells, b.mul(loop.index, step)), v.at(to, b.mul(loop.index, int64(width)))
                for first in range(0, width, v.lanes):
                    place, there = v.at(start, b.mul(row_step, int64(first))), v.first(b.sub(rows, int64(first)))
                    indices = b.mul(v.iota, v.splat(row_step))
                    column = v.masked_load(place, there) if is_near else v.gather(place, indices, there)
                    mask = ir.Constant(v.mask, [lane < width - first for lane in range(v.lanes)])
                    v.masked_store(column, v.at(end, first), mask)
