"""The microkernels of weight gradients, as intrinsics: register tiles that sum over pixels.

Two roles for a vector's lanes.  In :func:`add_channel_tile` lanes are output channels: the output gradient comes transposed in a
panel (pixels, output channels), and input cells are broadcast.  In :func:`dot_tile` lanes are neighbouring pixels of a row, and neither
operand is rearranged; their sums over the lanes are taken at the end.  Both sum one chain of multiply-adds along the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from .gemm import TILE_ROWS, TILE_VECTORS
from .simd import I64, Vectors, counted, data_pointer, int64
from .target import target

DOT_TILES = ((1, 9), (4, 6) if target().registers >= 32 else (2, 5))
"""Output gradients x input cells of a tile whose lanes are pixels: for one output channel a group, and for more."""

Multiply = Callable[[Any, Any, Any, list[Any]], list[Any]]

AHEAD = 8  # rows whose cells are asked for, each one's once in as many pixels: they are half a line of float32


# ---- lanes are output channels -----------------------------------------------------------------------------------------
@intrinsic
def add_channel_tile(  # type: ignore[no-untyped-def]
    typingctx, source, offsets, first, ahead, starts, row, row_count, column, columns, step, panel, vectors, sums, at, sums_step, accumulate
):
    """Store one tile of a weight gradient, or add it where ``accumulate`` is true.

    sums[at + r * sums_step + l] (+)= sum over rows row <= j < row + row_count, columns column <= q < column + columns of
        source[offsets[first + r] + starts[2 * j] + q * step] * panel[(starts[2 * j + 1] + q) * W + l]

    for r < TILE_ROWS and l < W = vectors * lanes, 1 <= vectors <= TILE_VECTORS.  Meanwhile the cells of AHEAD rows from ``ahead`` on are
    asked for: those of the next tile, or the tile's own where they lie in a near cache.

    source : int64 byte address; offsets, starts : int64 arrays, in elements; panel, sums : one-dimensional contiguous arrays of the
    dtype of the sums, which is that of all.  All other numbers are int64, of elements; row_count and columns are at least 1.
    """
    n = types.int64
    return types.void(n, offsets, n, n, starts, n, n, n, n, n, panel, n, sums, n, n, types.boolean), _emit_channel_tile


def _emit_channel_tile(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b = builder
    source, _, first, ahead, _, row, row_count, column, columns, step, _, vectors, _, at, sums_step, accumulate = arguments
    v = Vectors(b, signature.args[10].dtype)

    def element(argument: int, offset: Any) -> Any:
        return b.gep(data_pointer(context, b, signature.args[argument], arguments[argument]), [offset])

    cells = [v.at(v.pointer(source), b.load(b.gep(element(1, first), [int64(r)]))) for r in range(TILE_ROWS)]
    rows_ahead = element(1, ahead)
    starts, panel, sums = element(4, b.mul(row, int64(2))), element(10, int64(0)), element(12, at)
    skipped = b.mul(column, step)
    end = b.append_basic_block("tile.end")
    blocks = [b.append_basic_block(f"tile.{count}") for count in range(1, TILE_VECTORS + 1)]
    switch = b.switch(vectors, blocks[-1])
    for count, block in enumerate(blocks, start=1):
        if count < TILE_VECTORS:
            switch.add_case(int64(count), block)
        b.position_at_end(block)

        def multiply(number: Any, cell: Any, place: Any, totals: list[Any], count: int = count) -> list[Any]:
            if count > 1:  # a tile of one vector loads as much as the processor can
                row = b.load(b.gep(rows_ahead, [b.and_(number, int64(AHEAD - 1))]))
                v.prefetch_for_reading(v.at(v.pointer(source), b.add(row, cell)), 2)
            columns = [v.load(v.at(place, j * v.lanes)) for j in range(count)]
            new = []
            for r in range(TILE_ROWS):
                factor = v.broadcast(v.at(cells[r], cell))
                new += [v.multiply_add(factor, column, total) for column, total in zip(columns, totals[r * count : (r + 1) * count])]
            return new

        width = count * v.lanes
        place = v.at(panel, b.mul(column, int64(width)))
        totals = pixel_loops(v, starts, row_count, skipped, columns, step, place, width, TILE_ROWS * count, multiply)
        with b.if_else(accumulate) as (add, start):
            for branch, added in ((add, True), (start, False)):
                with branch:
                    for i, total in enumerate(totals):
                        place = v.at(v.at(sums, b.mul(sums_step, int64(i // count))), i % count * v.lanes)
                        v.store(v.add(v.load(place), total) if added else total, place)
        b.branch(end)
    b.position_at_end(end)
    return context.get_dummy_value()


def pixel_loops(
    v: Vectors, starts: Any, row_count: Any, skipped: Any, columns: Any, step: Any, panel: Any, width: int, number: int, multiply: Multiply
) -> list[Any]:
    """The loops over rows and columns around ``multiply(pixel's number, cell index, panel pointer, totals)``: the totals at their end.

    starts : of each row its first cell, to which ``skipped`` is added, and its first pixel in the panel; width : elements of the panel a
    pixel; number : of totals
    """
    b = v.builder
    before = b.block
    row, pixel, latch, done = (b.append_basic_block("tile." + name) for name in ("row", "pixel", "next", "sums"))
    b.branch(row)
    b.position_at_end(row)
    j, row_pixel, row_totals = b.phi(I64), b.phi(I64), [b.phi(v.vector) for _ in range(number)]
    start, first_pixel = (b.load(b.gep(starts, [b.add(b.mul(j, int64(2)), int64(field))])) for field in (0, 1))
    start, row_place = b.add(start, skipped), v.at(panel, b.mul(first_pixel, int64(width)))
    end = v.at(row_place, b.mul(columns, int64(width)))  # not the last cell: a step may be 0
    b.branch(pixel)
    b.position_at_end(pixel)
    q, cell, place, totals = b.phi(I64), b.phi(I64), b.phi(panel.type), [b.phi(v.vector) for _ in range(number)]
    new = multiply(q, cell, place, totals)
    q_after, cell_after, place_after = b.add(q, int64(1)), b.add(cell, step), v.at(place, width)
    b.cbranch(b.icmp_unsigned("!=", place_after, end), pixel, latch)
    b.position_at_end(latch)
    j_after = b.add(j, int64(1))
    b.cbranch(b.icmp_signed("<", j_after, row_count), row, done)
    join(row_pixel, (int64(0), before), (q_after, latch))
    join(q, (row_pixel, row), (q_after, pixel))
    join(cell, (start, row), (cell_after, pixel))
    join(place, (row_place, row), (place_after, pixel))
    join(j, (int64(0), before), (j_after, latch))
    for outer, inner, total in zip(row_totals, totals, new):
        join(outer, (v.zero, before), (total, latch))
        join(inner, (outer, row), (total, pixel))
    b.position_at_end(done)
    return new


@intrinsic
def are_finite(typingctx, numbers, vectors):  # type: ignore[no-untyped-def]
    """Whether so many vectors of a one-dimensional contiguous array have neither infinities nor NaN."""
    return types.boolean(numbers, types.int64), _emit_are_finite


def _emit_are_finite(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b, v, numbers = builder, Vectors(builder, signature.args[0].dtype), data_pointer(context, builder, signature.args[0], arguments[0])
    if not v.floating:
        return context.get_constant(types.boolean, True)

    def products(first: Any, i: Any, totals: list[Any]) -> list[Any]:
        """Zeros, but for products of zero and what is not finite."""
        at = b.add(first, b.mul(i, int64(len(totals))))
        places = [v.at(numbers, b.mul(b.add(at, int64(j)), int64(v.lanes))) for j in range(len(totals))]
        return [v.fma(v.load(place), v.zero, total) for place, total in zip(places, totals)]

    fours = b.sdiv(arguments[1], int64(4))
    done = b.mul(fours, int64(4))
    totals = counted(b, fours, [v.zero] * 4, lambda i, totals: products(int64(0), i, totals))
    (last,) = counted(b, b.sub(arguments[1], done), [v.zero], lambda i, totals: products(done, i, totals))
    for total in totals:
        last = v.add(last, total)
    wrong = v.bits_of(b.fcmp_unordered("uno", last, last))
    return b.zext(b.icmp_unsigned("==", wrong, wrong.type(0)), context.get_value_type(types.boolean))


# ---- lanes are pixels --------------------------------------------------------------------------------------------------
@intrinsic
def dot_tile(  # type: ignore[no-untyped-def]
    typingctx,
    kind,
    grad,
    grad_offsets,
    first_grad,
    source,
    source_offsets,
    first_source,
    starts,
    row_count,
    columns,
    sums,
    at,
    sums_step,
    accumulate,
):
    """Store one tile of a weight gradient, or add it where ``accumulate`` is true.

    sums[at + r * sums_step + t] (+)= sum over rows j < row_count, columns q < columns of
        grad[grad_offsets[first_grad + r] + starts[2 * j] + q] * source[source_offsets[first_source + t] + starts[2 * j + 1] + q]

    for r < R and t < T, (R, T) = DOT_TILES[kind]: lane by lane along the rows, then the lanes.

    grad, source : int64 byte addresses; grad_offsets, source_offsets, starts : int64 arrays, in elements; sums : one-dimensional
    contiguous array, whose dtype is that of all.  All other numbers are int64, of elements.
    """
    n = types.int64
    return types.void(n, n, grad_offsets, n, n, source_offsets, n, starts, n, n, sums, n, n, types.boolean), _emit_dot_tile


def _emit_dot_tile(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    b = builder
    kind, grad, _, first_grad, source, _, first_source, _, row_count, columns, _, at, sums_step, accumulate = arguments
    v = Vectors(b, signature.args[10].dtype)

    def element(argument: int, offset: Any) -> Any:
        return b.gep(data_pointer(context, b, signature.args[argument], arguments[argument]), [offset])

    starts, sums = element(7, int64(0)), element(10, at)
    end = b.append_basic_block("dot.end")
    blocks = [b.append_basic_block(f"dot.{number}") for number in range(len(DOT_TILES))]
    switch = b.switch(kind, blocks[-1])
    for number, (block, (grads, cells)) in enumerate(zip(blocks, DOT_TILES)):
        if number < len(DOT_TILES) - 1:
            switch.add_case(int64(number), block)
        b.position_at_end(block)
        rows = [v.at(v.pointer(grad), b.load(b.gep(element(2, first_grad), [int64(r)]))) for r in range(grads)]
        taps = [v.at(v.pointer(source), b.load(b.gep(element(5, first_source), [int64(t)]))) for t in range(cells)]

        def multiply(grad_start: Any, start: Any, totals: list[Any], mask: Any, rows: Any = rows, taps: Any = taps) -> list[Any]:
            def read(pointer: Any, index: Any) -> Any:
                return v.load(v.at(pointer, index)) if mask is None else v.masked_load(v.at(pointer, index), mask)

            factors = [read(row, grad_start) for row in rows]
            new = []
            for t, tap in enumerate(taps):
                cell = read(tap, start)
                new += [v.multiply_add(factor, cell, total) for factor, total in zip(factors, totals[t * len(rows) : (t + 1) * len(rows)])]
            return new

        totals = _dot_loops(v, starts, row_count, columns, grads * cells, multiply)
        for r in range(grads):
            put_lane_sums(v, [totals[t * grads + r] for t in range(cells)], v.at(sums, b.mul(sums_step, int64(r))), accumulate)
        b.branch(end)
    b.position_at_end(end)
    return context.get_dummy_value()


def _dot_loops(v: Vectors, starts: Any, row_count: Any, columns: Any, number: int, multiply: Callable[..., list[Any]]) -> list[Any]:
    """The loops over rows and whole vectors, then the rest of a row, around ``multiply(grad index, cell index, totals, mask)``."""
    b = v.builder
    whole = b.and_(columns, int64(-v.lanes))
    rest = b.sub(columns, whole)
    mask = v.first(rest)
    before = b.block
    names = ("row", "vector", "whole", "rest", "next", "sums")
    row, vector, after, partial, latch, done = (b.append_basic_block("dot." + name) for name in names)
    b.branch(row)
    b.position_at_end(row)
    j, row_totals = b.phi(I64), [b.phi(v.vector) for _ in range(number)]
    grad, cell = (b.load(b.gep(starts, [b.add(b.mul(j, int64(2)), int64(field))])) for field in (0, 1))
    b.cbranch(b.icmp_signed(">", whole, int64(0)), vector, after)
    b.position_at_end(vector)
    q, totals = b.phi(I64), [b.phi(v.vector) for _ in range(number)]
    new = multiply(b.add(grad, q), b.add(cell, q), totals, None)
    q_after = b.add(q, int64(v.lanes))
    b.cbranch(b.icmp_signed("<", q_after, whole), vector, after)
    b.position_at_end(after)
    whole_totals = [b.phi(v.vector) for _ in range(number)]
    b.cbranch(b.icmp_signed(">", rest, int64(0)), partial, latch)
    b.position_at_end(partial)
    rest_totals = multiply(b.add(grad, whole), b.add(cell, whole), whole_totals, mask)
    b.branch(latch)
    b.position_at_end(latch)
    all_totals = [b.phi(v.vector) for _ in range(number)]
    j_after = b.add(j, int64(1))
    b.cbranch(b.icmp_signed("<", j_after, row_count), row, done)
    join(j, (int64(0), before), (j_after, latch))
    join(q, (int64(0), row), (q_after, vector))
    for i in range(number):
        join(row_totals[i], (v.zero, before), (all_totals[i], latch))
        join(totals[i], (row_totals[i], row), (new[i], vector))
        join(whole_totals[i], (row_totals[i], row), (new[i], vector))
        join(all_totals[i], (whole_totals[i], after), (rest_totals[i], partial))
    b.position_at_end(done)
    return all_totals


def put_lane_sums(v: Vectors, totals: list[Any], place: Any, accumulate: Any) -> None:
    """place[t] (+)= the sum of the lanes of totals[t]: halves added pairwise, so that each vector ends up in one lane."""
    b = v.builder
    parts = totals + [v.zero] * (-len(totals) % v.lanes)
    for first in range(0, len(totals), v.lanes):
        level, width = parts[first : first + v.lanes], v.lanes
        while width > 1:
            width //= 2
            level = [_add_halves(v, level[i], level[i + len(level) // 2], width) for i in range(len(level) // 2)]
        mask = v.first(int64(len(totals)), first)
        target_place = v.at(place, first)
        old = v.masked_load(target_place, b.select(accumulate, mask, v.no_lane))
        v.masked_store(v.add(old, level[0]), target_place, mask)


def _add_halves(v: Vectors, a: Any, b: Any, width: int) -> Any:
    """In each stretch of 2 * width lanes: the sums of a's two halves of it, then of b's."""
    low, high = [], []
    for start in range(0, v.lanes, 2 * width):
        low += [start + i for i in range(width)] + [v.lanes + start + i for i in range(width)]
        high += [start + width + i for i in range(width)] + [v.lanes + start + width + i for i in range(width)]
    return v.add(v.shuffle(a, b, low), v.shuffle(a, b, high))


def join(phi: Any, *incoming: tuple[Any, Any]) -> None:
    for value, block in incoming:
        phi.add_incoming(value, block)
