"""The register-blocked microkernel of a matrix product, as an intrinsic.

A tile of TILE_ROWS x TILE_VECTORS vectors of accumulators stays in registers while the product runs along k; one operand is
broadcast element by element, the other is loaded as vectors.  The scheme is that of K. Goto and R. van de Geijn, "Anatomy of
high-performance matrix multiplication" (2008), and of BLIS.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from .simd import I64, Vectors, data_pointer, int64
from .target import target

TILE_ROWS = target().tile_rows
TILE_VECTORS = target().tile_vectors
LINE_BYTES = 64  # of a cache
ROW_TURNS = 1 << (TILE_ROWS - 1).bit_length()
LINE_TURNS = 1 << (-(-TILE_VECTORS * target().vector_bytes // LINE_BYTES)).bit_length()  # one more, where rows begin inside a line


@intrinsic
def multiply_tile(  # type: ignore[no-untyped-def]
    typingctx, runs, first_run, run_count, weight, weight_offset, panel, panel_offset,
    result, row_step, rows, columns, accumulate, bias, bias_offset,
):  # fmt: skip
    """Add one tile of a product to the result, or store it there.

    result[r * row_step + l] = start + sum over products of weight[weight_offset + k * TILE_ROWS + r] * panel[panel_offset + j * W + l]

    for r < rows, l < columns, W = TILE_VECTORS * lanes (rows >= TILE_ROWS and columns >= W mean the full tile); ``start`` is the
    result itself where ``accumulate`` is not 0, else bias[bias_offset + r].  Each sum is one chain of multiply-adds along k,
    which is added to ``start`` at the end.

    runs : int64 array of pairs (first k, number of products > 0), of which the ``run_count`` from pair ``first_run`` on are taken; k
        jumps from run to run, j counts the products.
    weight, panel, bias : one-dimensional contiguous arrays of one dtype: float32, float64, int32, int64, or uint32 for pairs of int16 whose
        products are summed in 32 bits.
    result : int64 byte address.  All other arguments are int64 numbers, of elements where they are offsets or steps.
    """
    n = types.int64
    return types.void(runs, n, n, weight, n, panel, n, n, n, n, n, n, bias, n), _emit_tile


def _emit_tile(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    def element(position: int, offset: Any) -> Any:
        return builder.gep(data_pointer(context, builder, signature.args[position], arguments[position]), [offset])

    tile = _Tile(builder, signature.args[3].dtype)
    tile.runs, tile.run_count = element(0, builder.mul(arguments[1], int64(2))), arguments[2]
    tile.weight, tile.panel = element(3, arguments[4]), element(5, arguments[6])
    tile.result = tile.v.pointer(arguments[7])
    tile.row_step, tile.rows, tile.columns = arguments[8:11]
    tile.accumulate = builder.icmp_signed("!=", arguments[11], int64(0))
    tile.bias = element(12, arguments[13])
    tile.emit()
    return context.get_dummy_value()


class _Tile:
    """Code of :func:`multiply_tile`: one variant for each number of vectors that the columns fill."""

    runs: Any
    run_count: Any
    weight: Any
    panel: Any
    result: Any
    row_step: Any
    rows: Any
    columns: Any
    accumulate: Any
    bias: Any

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.builder = builder
        self.v = Vectors(builder, dtype)

    def emit(self) -> None:
        b = self.builder
        end, full = b.append_basic_block("tile.end"), b.append_basic_block("tile.full")
        switch = b.switch(b.sdiv(b.sub(self.columns, int64(1)), int64(self.v.lanes)), full)
        for vectors in range(1, TILE_VECTORS + 1):
            block = full if vectors == TILE_VECTORS else b.append_basic_block(f"tile.{vectors}")
            if vectors < TILE_VECTORS:
                switch.add_case(int64(vectors - 1), block)
            b.position_at_end(block)
            self._store(self._products(vectors))
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

    # ---- the sums ------------------------------------------------------------------------------------------------
    def _products(self, vectors: int) -> list[list[Any]]:
        """Accumulators [row][vector] after all runs."""
        b, v = self.builder, self.v
        before = b.block
        head, setup, latch, done = (b.append_basic_block("tile." + name) for name in ("run", "setup", "next", "sums"))
        b.branch(head)
        b.position_at_end(head)
        run, panel = b.phi(I64), b.phi(self.panel.type)
        sums = [[b.phi(v.vector) for _ in range(vectors)] for _ in range(TILE_ROWS)]
        b.cbranch(b.icmp_signed("<", run, self.run_count), setup, done)
        b.position_at_end(setup)
        first, count = (b.load(b.gep(self.runs, [b.add(b.mul(run, int64(2)), int64(field))])) for field in (0, 1))
        weight = v.at(self.weight, b.mul(first, int64(TILE_ROWS)))
        panel_after, sums_after = self._product_loop(setup, latch, count, weight, panel, sums)
        b.position_at_end(latch)
        _join(run, (int64(0), before), (b.add(run, int64(1)), latch))
        b.branch(head)
        _join(panel, (self.panel, before), (panel_after, latch))
        for phi, after in zip(_flat(sums), _flat(sums_after)):
            _join(phi, (v.zero, before), (after, latch))
        b.position_at_end(done)
        return sums

    def _product_loop(
        self, before: Any, after: Any, count: Any, weight: Any, panel: Any, sums: list[list[Any]]
    ) -> tuple[Any, list[list[Any]]]:
        """Multiply-adds of one run, from block ``before`` to block ``after``: the panel pointer and the accumulators at its end."""
        b, v = self.builder, self.v
        loop = b.append_basic_block("tile.products")
        b.branch(loop)
        b.position_at_end(loop)
        left, w, p = b.phi(I64), b.phi(weight.type), b.phi(panel.type)
        running = [[b.phi(v.vector) for _ in row] for row in sums]
        self._prefetch(left)
        columns = [v.load(v.at(p, j * v.lanes)) for j in range(len(sums[0]))]
        new = []
        for r, row in enumerate(running):
            factor = v.broadcast(v.at(w, r))
            new.append([v.multiply_add(factor, column, total) for column, total in zip(columns, row)])
        left_after, w_after, p_after = b.sub(left, int64(1)), v.at(w, TILE_ROWS), v.at(p, TILE_VECTORS * v.lanes)
        b.cbranch(b.icmp_signed(">", left_after, int64(0)), loop, after)
        for phi, start, end in [(left, count, left_after), (w, weight, w_after), (p, panel, p_after)]:
            _join(phi, (start, before), (end, loop))
        for phi, start, end in zip(_flat(running), _flat(sums), _flat(new)):
            _join(phi, (start, before), (end, loop))
        return p_after, new

    # ---- the result ----------------------------------------------------------------------------------------------
    def _store(self, sums: list[list[Any]]) -> None:
        b, lanes, vectors = self.builder, self.v.lanes, len(sums[0])
        whole = b.and_(b.icmp_signed(">=", self.rows, int64(TILE_ROWS)), b.icmp_signed(">=", self.columns, int64(vectors * lanes)))
        with b.if_else(whole, likely=True) as (all_lanes, some_lanes):
            with all_lanes, b.if_else(self.accumulate) as (add, start):
                with add:
                    for r, row in enumerate(sums):
                        self._store_row(r, row, None, None)
                with start:
                    for r, row in enumerate(sums):
                        self._store_row(r, row, None, self.v.broadcast(self.v.at(self.bias, r)))
            with some_lanes:
                masks = [self.v.first(self.columns, j * lanes) for j in range(vectors)]
                for r, row in enumerate(sums):
                    with b.if_then(b.icmp_signed("<", int64(r), self.rows)):
                        self._store_row(r, row, masks, self.v.broadcast(self.v.at(self.bias, r)))

    def _store_row(self, r: int, row: list[Any], masks: list[Any] | None, start: Any) -> None:
        """Write one row of a tile: whole vectors without ``masks``; added to the result without ``start``, or where asked with masks."""
        b, v = self.builder, self.v
        target_row = v.at(self.result, b.mul(self.row_step, int64(r)))
        for j, total in enumerate(row):
            pointer = v.at(target_row, j * v.lanes)
            if masks is None:
                v.store(v.add(v.load(pointer) if start is None else start, total), pointer)
            else:
                old = b.select(self.accumulate, v.masked_load(pointer, masks[j]), start)
                v.masked_store(v.add(old, total), pointer, masks[j])


def _join(phi: Any, *incoming: tuple[Any, Any]) -> None:
    for value, block in incoming:
        phi.add_incoming(value, block)


def _flat(rows: list[list[Any]]) -> list[Any]:
    return [value for row in rows for value in row]
