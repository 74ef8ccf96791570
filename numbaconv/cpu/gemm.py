"""The register-blocked microkernel of a matrix product, as an intrinsic.

A tile of TILE_ROWS x TILE_VECTORS vectors of accumulators stays in registers while the product runs along k; one operand is
broadcast element by element, the other is loaded as vectors.  The scheme is that of K. Goto and R. van de Geijn, "Anatomy of
high-performance matrix multiplication" (2008), and of BLIS.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from .simd import I64, Vectors, data_pointer, int64, odd_multiples
from .target import target

TILE_ROWS = target().tile_rows
TILE_VECTORS = target().tile_vectors
ROWS = (TILE_ROWS, TILE_ROWS // 2, 1)  # numbers of rows with code of their own, for what whole tiles leave over
LINE_BYTES = 64  # of a cache
ROW_TURNS = 1 << (TILE_ROWS - 1).bit_length()
SPREAD = TILE_ROWS * TILE_VECTORS * target().vector_bytes > 16 * LINE_BYTES  # a tile has more lines than can be asked for at once
LINE_TURNS = 1 << (-(-TILE_VECTORS * target().vector_bytes // LINE_BYTES)).bit_length()  # one more, where rows begin inside a line


@intrinsic
def multiply_tile(  # type: ignore[no-untyped-def]
    typingctx, runs, run_count, factors, factor_row, factor_step, panel, result, row_step, rows, columns, accumulate, bias, bias_offset,
    ahead, ahead_step,
):  # fmt: skip
    """Add one tile of a product to the result, or store it there.

    result[r * row_step + l] = start + sum over products of factor(r, k) * panel[j * W + l]

    where factor(r, k) is the element at the byte address factors + r * factor_row + k * factor_step, for r < rows, l < columns,
    W = TILE_VECTORS * lanes (rows >= TILE_ROWS and columns >= W mean the full tile); ``start`` is the result itself where ``accumulate`` is
    not 0, else bias[bias_offset + r].  Each sum is one chain of multiply-adds along k, which is added to ``start`` at the end.

    runs : int64 array of pairs (first k, number of products > 0), of which the first ``run_count`` are taken; k jumps from run to run,
        j counts the products.
    factors : int64 byte address of the factors, steps in bytes.
    panel, bias : one-dimensional contiguous arrays of one dtype: float32, float64, int32, int64, or uint32 for pairs of int16 whose
        products are summed in 32 bits.  Lanes beyond ``columns``, and rows beyond ``rows``, are read too: up to whole vectors, and to the
        next number of ROWS.
    ahead : int64 byte address that is asked for before it is needed, ``ahead_step`` bytes further with each product; any is allowed.
    result : int64 byte address.  All other arguments are int64 numbers, of elements where they are offsets or steps.
    """
    n = types.int64
    return types.void(runs, n, n, n, n, panel, n, n, n, n, n, bias, n, n, n), _emit_tile


def _emit_tile(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    def element(position: int, offset: Any) -> Any:
        return builder.gep(data_pointer(context, builder, signature.args[position], arguments[position]), [offset])

    tile = Tile(builder, signature.args[5].dtype)
    tile.runs, tile.run_count = element(0, int64(0)), arguments[1]
    tile.factors, tile.factor_row, tile.factor_step = arguments[2:5]
    tile.panel, tile.result = element(5, int64(0)), tile.v.pointer(arguments[6])
    tile.row_step, tile.rows, tile.columns = arguments[7:10]
    tile.accumulate = builder.icmp_signed("!=", arguments[10], int64(0))
    tile.bias = element(11, arguments[12])
    tile.ahead, tile.ahead_step = arguments[13:15]
    tile.emit()
    return context.get_dummy_value()


class Tile:
    """Code of :func:`multiply_tile`: one variant for each number of vectors that the columns fill, and of ROWS."""

    runs: Any
    run_count: Any
    factors: Any
    factor_row: Any
    factor_step: Any
    panel: Any
    result: Any
    row_step: Any
    rows: Any
    columns: Any
    accumulate: Any
    bias: Any
    ahead: Any
    ahead_step: Any

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.builder = builder
        self.v = Vectors(builder, dtype)

    def emit(self) -> None:
        b = self.builder
        end, full = b.append_basic_block("tile.end"), b.append_basic_block("tile.full")
        kind: Any = int64(0)
        for rows in ROWS[1:]:
            kind = b.add(kind, b.zext(b.icmp_signed("<=", self.rows, int64(rows)), I64))
        vectors, most = b.sdiv(b.sub(self.columns, int64(1)), int64(self.v.lanes)), int64(TILE_VECTORS - 1)
        vectors = b.select(b.icmp_signed("<", vectors, most), vectors, most)
        switch = b.switch(b.add(b.mul(kind, int64(TILE_VECTORS)), vectors), full)
        for number, rows in enumerate(ROWS):
            for vectors in range(1, TILE_VECTORS + 1):
                block = full if (rows, vectors) == (TILE_ROWS, TILE_VECTORS) else b.append_basic_block(f"tile.{rows}x{vectors}")
                if block is not full:
                    switch.add_case(int64(number * TILE_VECTORS + vectors - 1), block)
                b.position_at_end(block)
                if not SPREAD:
                    self._prefetch_all(rows)
                self._store(self._products(rows, vectors))
                b.branch(end)
        b.position_at_end(end)

    def _prefetch(self, left: Any) -> None:
        """Ask for one line of the result, by turns, in each step of the products: all at once would keep the loads waiting.

        left : counts the steps.
        """
        b, v = self.builder, self.v
        row, number = b.and_(left, int64(ROW_TURNS - 1)), b.and_(b.lshr(left, int64(ROW_TURNS.bit_length() - 1)), int64(LINE_TURNS - 1))
        place = b.add(b.mul(row, self.row_step), b.mul(number, int64(LINE_BYTES // v.bytes)))
        v.prefetch_for_writing(v.at(self.result, place))

    def _prefetch_all(self, rows: int) -> None:
        """Ask for the first and last line of each of the result's rows."""
        b, v = self.builder, self.v
        for r in range(rows):
            for place in (0, TILE_VECTORS * v.lanes - 1):
                v.prefetch_for_writing(v.at(self.result, b.add(b.mul(self.row_step, int64(r)), int64(place))))

    # ---- the sums ------------------------------------------------------------------------------------------------
    def _products(self, rows: int, vectors: int) -> list[list[Any]]:
        """Accumulators [row][vector] after all runs."""
        b, v = self.builder, self.v
        before = b.block
        head, setup, latch, done = (b.append_basic_block("tile." + name) for name in ("run", "setup", "next", "sums"))
        b.branch(head)
        b.position_at_end(head)
        run, made, ahead = b.phi(I64), b.phi(I64), b.phi(I64)  # made: products of the runs before
        sums = [[b.phi(v.vector) for _ in range(vectors)] for _ in range(rows)]
        b.cbranch(b.icmp_signed("<", run, self.run_count), setup, done)
        b.position_at_end(setup)
        first, count = (b.load(b.gep(self.runs, [b.add(b.mul(run, int64(2)), int64(field))])) for field in (0, 1))
        factor = b.add(self.factors, b.mul(first, self.factor_step))
        panel = v.at(self.panel, b.mul(made, int64(TILE_VECTORS * v.lanes)))
        ahead_after, sums_after = self._product_loop(setup, latch, count, factor, panel, ahead, sums)
        b.position_at_end(latch)
        _join(run, (int64(0), before), (b.add(run, int64(1)), latch))
        _join(made, (int64(0), before), (b.add(made, count), latch))
        _join(ahead, (self.ahead, before), (ahead_after, latch))
        b.branch(head)
        for phi, after in zip(_flat(sums), _flat(sums_after)):
            _join(phi, (v.zero, before), (after, latch))
        b.position_at_end(done)
        return sums

    def _product_loop(
        self, before: Any, after: Any, count: Any, factors: Any, panel: Any, ahead: Any, sums: list[list[Any]]
    ) -> tuple[Any, list[list[Any]]]:
        """Multiply-adds of one run, from block ``before`` to block ``after``: the address ahead and the accumulators at its end."""
        b, v = self.builder, self.v
        loop, rows = b.append_basic_block("tile.products"), odd_multiples(b, self.factor_row, len(sums))
        b.branch(loop)
        b.position_at_end(loop)
        left, f, p, a = b.phi(I64), b.phi(I64), b.phi(panel.type), b.phi(I64)
        running = [[b.phi(v.vector) for _ in row] for row in sums]
        if SPREAD:
            self._prefetch(left)
            v.prefetch_for_reading(v.pointer(a), level=2)
        columns = [v.load(v.at(p, j * v.lanes)) for j in range(len(sums[0]))]
        new = []
        for r, row in enumerate(running):
            factor = v.broadcast(v.nth(f, rows, r))
            new.append([v.multiply_add(factor, column, total) for column, total in zip(columns, row)])
        left_after, f_after, p_after = b.sub(left, int64(1)), b.add(f, self.factor_step), v.at(p, TILE_VECTORS * v.lanes)
        a_after = b.add(a, self.ahead_step)
        b.cbranch(b.icmp_signed(">", left_after, int64(0)), loop, after)
        for phi, start, end in [(left, count, left_after), (f, factors, f_after), (p, panel, p_after), (a, ahead, a_after)]:
            _join(phi, (start, before), (end, loop))
        for phi, start, end in zip(_flat(running), _flat(sums), _flat(new)):
            _join(phi, (start, before), (end, loop))
        return a_after, new

    # ---- the result ----------------------------------------------------------------------------------------------
    def _store(self, sums: list[list[Any]]) -> None:
        b, lanes, vectors = self.builder, self.v.lanes, len(sums[0])
        whole = b.and_(b.icmp_signed(">=", self.rows, int64(len(sums))), b.icmp_signed(">=", self.columns, int64(vectors * lanes)))
        with b.if_else(whole, likely=True) as (all_lanes, some_lanes):
            with all_lanes, b.if_else(self.accumulate) as (add, start):
                with add:
                    for r, row in enumerate(sums):
                        self._store_row(r, row, None, [])
                with start:
                    for r, row in enumerate(sums):
                        self._store_row(r, row, None, [self.v.broadcast(self.v.at(self.bias, r))] * vectors)
            with some_lanes:
                masks = [self.v.first(self.columns, j * lanes) for j in range(vectors)]
                for r, row in enumerate(sums):
                    with b.if_then(b.icmp_signed("<", int64(r), self.rows)):
                        self._store_row(r, row, masks, [self.v.broadcast(self.v.at(self.bias, r))] * vectors)

    def _store_row(self, r: int, row: list[Any], masks: list[Any] | None, start: list[Any]) -> None:
        """Write one row of a tile: whole vectors without ``masks``; added to the result without ``start``, or where asked with masks."""
        b, v = self.builder, self.v
        target_row, start = v.at(self.result, b.mul(self.row_step, int64(r))), start or [None] * len(row)
        for j, total in enumerate(row):
            pointer = v.at(target_row, j * v.lanes)
            if masks is None:
                v.store(v.add(v.load(pointer) if start[j] is None else start[j], total), pointer)
            else:
                old = b.select(self.accumulate, v.masked_load(pointer, masks[j]), start[j])
                v.masked_store(v.add(old, total), pointer, masks[j])


def _join(phi: Any, *incoming: tuple[Any, Any]) -> None:
    for value, block in incoming:
        phi.add_incoming(value, block)


def _flat(rows: list[list[Any]]) -> list[Any]:
    return [value for row in rows for value in row]
