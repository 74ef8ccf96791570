"""Copies of rows that change their order, as intrinsics: what feeds the microkernels of weight gradients, and packs weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .gemm import TILE_ROWS
from .simd import I64, Vectors, data_pointer, int64


@intrinsic
def copy_lines(typingctx, source, step, low, high, length, lines, count, target, position):  # type: ignore[no-untyped-def]
    """Copy stretches of rows, zeros where they lie outside the source.

    target[position + lines[i, 1] + q] = source[lines[i, 0] + q * step] for low <= q < high, else 0, for i < count and q < length

    (and whatever fills the last vector of each, which the target must have room for); a line with lines[i, 2] != 0 is all zeros.

    source : int64 byte address of cell 0, which need not exist; lines : int64 array (any, 3), C-contiguous, in the order of their targets;
    target : one-dimensional contiguous array, float32 or float64.  All other arguments are int64 numbers, of elements.
    """
    n = types.int64
    return types.void(n, n, n, n, n, lines, n, target, n), _emit_copy_lines


def _emit_copy_lines(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b = builder
    source, step, low, high, length, _, count, _, position = arguments
    v = Vectors(b, signature.args[7].dtype)
    cells, lines = v.pointer(source), data_pointer(context, b, signature.args[5], arguments[5])
    to = b.gep(data_pointer(context, b, signature.args[7], arguments[7]), [position])
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
            raw = [v.masked_load(v.at(pointer, i * v.lanes), mask) for i, mask in enumerate(wanted)]
            return raw[0] if parts == 1 else v.shuffle(raw[0], raw[1], range(0, 2 * v.lanes, 2))

        _copy_loops(v, lines, count, length, lambda line, q: v.at(cells, b.add(line, b.mul(q, step))), masks, read, to)
        b.branch(end)
    b.position_at_end(far)
    indices = b.mul(v.iota, v.splat(step))
    _copy_loops(
        v, lines, count, length, lambda line, q: v.at(cells, b.add(line, b.mul(q, step))),
        lambda q: [b.and_(v.first(b.sub(high, q)), b.not_(v.first(b.sub(low, q))))],
        lambda pointer, wanted: v.gather(pointer, indices, wanted[0]), to,
    )  # fmt: skip
    b.branch(end)
    b.position_at_end(end)
    return context.get_dummy_value()


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
def store_row(typingctx, row, position, count, address):  # type: ignore[no-untyped-def]
    """Write row[position + q] for q < count to the int64 byte address: ``row`` one-dimensional and contiguous, float32 or float64."""
    n = types.int64
    return types.void(row, n, n, n), _emit_store_row


def _emit_store_row(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b = builder
    _, position, count, address = arguments
    v = Vectors(b, signature.args[0].dtype)
    row, to = b.gep(data_pointer(context, b, signature.args[0], arguments[0]), [position]), v.pointer(address)
    with cgutils.for_range_slice(b, int64(0), count, int64(v.lanes), I64) as (q, _):
        mask = v.first(b.sub(count, q))
        v.masked_store(v.masked_load(v.at(row, q), mask), v.at(to, q), mask)
    return context.get_dummy_value()


@intrinsic
def transpose(typingctx, source, row_step, column_step, rows, columns, target_address, target_step, like):  # type: ignore[no-untyped-def]
    """target[q * target_step + r] = source[r * row_step + q * column_step] for r < rows, q < columns, each at most a vector's lanes.

    source, target_address : int64 byte addresses of elements of the dtype of the array ``like``.  All other arguments are int64
    numbers, of elements.
    """
    n = types.int64
    return types.void(n, n, n, n, n, n, n, like), _emit_transpose


def _emit_transpose(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b = builder
    source, row_step, column_step, rows, columns, target_address, target_step, _ = arguments
    v = Vectors(b, signature.args[7].dtype)
    cells, to = v.pointer(source), v.pointer(target_address)
    whole, part, end = (b.append_basic_block("transpose." + name) for name in ("whole", "part", "end"))
    square = b.icmp_signed("==", b.and_(rows, columns), int64(v.lanes))
    b.cbranch(b.and_(square, b.icmp_signed("==", column_step, int64(1))), whole, part)
    b.position_at_end(whole)
    vectors = [v.load(v.at(cells, b.mul(row_step, int64(r)))) for r in range(v.lanes)]
    for q, column in enumerate(v.transposed(vectors)):
        v.store(column, v.at(to, b.mul(target_step, int64(q))))
    b.branch(end)
    b.position_at_end(part)
    vectors = _rows(v, cells, row_step, column_step, rows, v.first(columns))
    down = v.first(rows)
    for q, column in enumerate(v.transposed(vectors)):
        with b.if_then(b.icmp_signed("<", int64(q), columns)):
            v.masked_store(column, v.at(to, b.mul(target_step, int64(q))), down)
    b.branch(end)
    b.position_at_end(end)
    return context.get_dummy_value()


def _rows(v: Vectors, cells: Any, row_step: Any, column_step: Any, rows: Any, mask: Any) -> list[Any]:
    """A vector of each of ``rows`` rows (the others read the first row), at any distance of the columns."""
    b = v.builder
    indices = b.mul(v.iota, v.splat(column_step))
    near, far, end = (b.append_basic_block("rows." + name) for name in ("near", "far", "end"))
    b.cbranch(b.icmp_signed("==", column_step, int64(1)), near, far)
    loaded = []
    for block in (near, far):
        b.position_at_end(block)
        vectors = []
        for r in range(v.lanes):
            row = v.at(cells, b.select(b.icmp_signed("<", int64(r), rows), b.mul(row_step, int64(r)), int64(0)))
            vectors.append(v.masked_load(row, mask) if block is near else v.gather(row, indices, mask))
        loaded.append(vectors)
        b.branch(end)
    b.position_at_end(end)
    joined = [b.phi(v.vector) for _ in range(v.lanes)]
    for phi, one, other in zip(joined, *loaded):
        phi.add_incoming(one, near)
        phi.add_incoming(other, far)
    return joined


@intrinsic
def pack_columns(typingctx, source, row_step, rows, columns, places, target, at):  # type: ignore[no-untyped-def]
    """Write neighbouring elements of TILE_ROWS rows side by side, zeros for missing rows.

    target[at + places[q] + r] = source[r * row_step + q] if r < rows, else 0, for r < TILE_ROWS, q < columns with places[q] >= 0

    source : int64 byte address; places : int64 array, -1 up to a whole vector; target : one-dimensional contiguous array, whose dtype is
    that of all.  All other arguments are int64 numbers, of elements.
    """
    n = types.int64
    return types.void(n, n, n, n, places, target, n), _emit_pack_columns


def _emit_pack_columns(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b = builder
    source, row_step, rows, columns, _, _, at = arguments
    v = Vectors(b, signature.args[5].dtype)
    cells, places = v.pointer(source), data_pointer(context, b, signature.args[4], arguments[4])
    to = b.gep(data_pointer(context, b, signature.args[5], arguments[5]), [at])
    absent = ir.Constant(v.vector, ir.Undefined)
    with cgutils.for_range_slice(b, int64(0), columns, int64(v.lanes), I64) as (q, _):
        wanted = v.first(b.sub(columns, q))
        for first in range(0, TILE_ROWS, v.lanes):
            count = min(v.lanes, TILE_ROWS - first)
            kept = ir.Constant(v.mask, [lane < count for lane in range(v.lanes)])
            vectors = []
            for r in range(first, first + count):
                mask = b.select(b.icmp_signed("<", int64(r), rows), wanted, v.no_lane)
                vectors.append(v.masked_load(v.at(cells, b.add(b.mul(row_step, int64(r)), q)), mask))
            for i, column in enumerate(v.transposed(vectors + [absent] * (v.lanes - count))):
                place = b.load(b.gep(places, [b.add(q, int64(i))]))
                with b.if_then(b.icmp_signed(">=", place, int64(0))):
                    v.masked_store(column, v.at(to, b.add(place, int64(first))), kept)
    return context.get_dummy_value()


@intrinsic
def pack_column(typingctx, source, row_step, rows, target, at):  # type: ignore[no-untyped-def]
    """One column of :func:`pack_columns`: target[at + r] = source[r * row_step] if r < rows, else 0, for r < TILE_ROWS."""
    n = types.int64
    return types.void(n, n, n, target, n), _emit_pack_column


def _emit_pack_column(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b = builder
    source, row_step, rows, _, at = arguments
    v = Vectors(b, signature.args[3].dtype)
    cells, to = v.pointer(source), b.gep(data_pointer(context, b, signature.args[3], arguments[3]), [at])
    with b.if_else(b.icmp_signed("==", row_step, int64(1))) as (near, far):
        for block, is_near in ((near, True), (far, False)):
            with block:
                for first in range(0, TILE_ROWS, v.lanes):
                    start, there = v.at(cells, b.mul(row_step, int64(first))), v.first(b.sub(rows, int64(first)))
                    indices = b.mul(v.iota, v.splat(row_step))
                    column = v.masked_load(start, there) if is_near else v.gather(start, indices, there)
                    mask = ir.Constant(v.mask, [lane < TILE_ROWS - first for lane in range(v.lanes)])
                    v.masked_store(column, v.at(to, first), mask)
    return context.get_dummy_value()
