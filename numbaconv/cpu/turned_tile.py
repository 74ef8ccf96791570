"""The microkernel of :mod:`gemm` with the roles of the operands turned: pixels are broadcast, the rows of the weight are lanes.

Pixels are read where they lie: of each product a table says how far from a tile's first pixel its factors begin.  No copy of them in the
order of the products is needed, and a tile has as many pixels as fit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from .gemm import LINE_BYTES, TILE_ROWS, TILE_VECTORS
from .simd import I64, Case, Vectors, data_pointer, int64, odd_multiples, switch


@intrinsic
def multiply_turned_tile(  # type: ignore[no-untyped-def]
    typingctx, runs, first_run, run_count, factors, offsets, pixel_step, pixels, weight, stream, vectors,
    result, row_step, accumulate, bias, bias_offset,
    ahead, written, written_step,
):  # fmt: skip
    """Add one tile of a product to the staged sums, or store it there.

    result[p * row_step + l] = start[l] + sum over k of factor(p, k) * weight[l // lanes * stream + k * lanes + l % lanes]

    for p < pixels <= TILE_ROWS, l < vectors * lanes, vectors <= TILE_VECTORS, where factor(p, k) is the element at the byte address
    factors + offsets[k] + p * pixel_step; ``start`` is the result itself where ``accumulate`` is not 0, else bias[bias_offset:].  Each
    sum is one chain of multiply-adds along k, which is added to ``start`` at the end.

    runs : int64 array of pairs (first k, number of products > 0), of which the ``run_count`` from pair ``first_run`` on are taken.
    offsets : int64 array, in bytes; bias : one-dimensional contiguous array of the dtype of all.
    weight, result : int64 byte addresses, the result's of vectors.
    ahead : int64 byte address that is asked for before it is needed, a line further with each product; written, written_step : lines that
        will be written, one for each row, and the bytes from one to the next.  Any addresses are allowed.
    """
    n = types.int64
    return types.void(runs, n, n, n, offsets, n, n, n, n, n, n, n, n, bias, n, n, n, n), _emit


def _emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    def element(position: int, offset: Any) -> Any:
        return builder.gep(data_pointer(context, builder, signature.args[position], arguments[position]), [offset])

    tile = _Tile(builder, signature.args[13].dtype)
    tile.runs, tile.run_count = element(0, builder.mul(arguments[1], int64(2))), arguments[2]
    tile.factors, tile.offsets, tile.pixel_step = arguments[3], element(4, int64(0)), arguments[5]
    tile.weight, tile.stream = tile.v.pointer(arguments[7]), arguments[8]
    tile.result, tile.row_step = tile.v.pointer(arguments[10]), arguments[11]
    tile.accumulate = builder.icmp_signed("!=", arguments[12], int64(0))
    tile.bias = element(13, arguments[14])
    tile.ahead, tile.written, tile.written_step = arguments[15:18]
    pixels, vectors = arguments[6], arguments[9]
    cases: list[Case] = [
        ((p - 1) * TILE_VECTORS + n - 1, partial(tile.emit, p, n)) for p in range(1, TILE_ROWS + 1) for n in range(1, TILE_VECTORS + 1)
    ]
    number = builder.add(builder.mul(builder.sub(pixels, int64(1)), int64(TILE_VECTORS)), builder.sub(vectors, int64(1)))
    switch(builder, number, cases[:-1], cases[-1][1])
    return context.get_dummy_value()


class _Tile:
    """Code of :func:`multiply_turned_tile`."""

    runs: Any
    run_count: Any
    factors: Any
    offsets: Any
    pixel_step: Any
    weight: Any
    stream: Any
    result: Any
    row_step: Any
    accumulate: Any
    bias: Any
    ahead: Any
    written: Any
    written_step: Any

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.builder, self.v = builder, Vectors(builder, dtype)

    def emit(self, pixels: int, vectors: int) -> None:
        """Code for tiles of one size."""
        b, v = self.builder, self.v
        before = b.block
        head, setup, loop, latch, done = (b.append_basic_block("turned." + name) for name in ("run", "setup", "products", "next", "sums"))
        steps = odd_multiples(b, self.pixel_step, pixels)
        streams = [b.mul(self.stream, int64(j)) for j in range(vectors)]
        b.branch(head)
        b.position_at_end(head)
        run, ahead = b.phi(I64), b.phi(I64)
        sums = [[b.phi(v.vector) for _ in range(vectors)] for _ in range(pixels)]
        b.cbranch(b.icmp_signed("<", run, self.run_count), setup, done)
        b.position_at_end(setup)
        first, count = (b.load(b.gep(self.runs, [b.add(b.mul(run, int64(2)), int64(field))])) for field in (0, 1))
        end = b.add(first, count)
        b.branch(loop)
        b.position_at_end(loop)
        k, a = b.phi(I64), b.phi(I64)
        running = [[b.phi(v.vector) for _ in row] for row in sums]
        factors = b.add(self.factors, b.load(b.gep(self.offsets, [k])))
        v.prefetch_for_reading(v.pointer(a), level=2)
        turn = b.and_(k, int64((1 << (vectors * v.lanes - 1).bit_length()) - 1))
        v.prefetch_for_writing(v.pointer(b.add(self.written, b.mul(turn, self.written_step))))
        row = v.at(self.weight, b.mul(k, int64(v.lanes)))
        columns = [v.load(v.at(row, stream)) for stream in streams]
        new = []
        for p in range(pixels):
            factor = v.broadcast(v.nth(factors, steps, p))
            new.append([v.multiply_add(factor, column, total) for column, total in zip(columns, running[p])])
        k_after, a_after = b.add(k, int64(1)), b.add(a, int64(LINE_BYTES))
        b.cbranch(b.icmp_signed("<", k_after, end), loop, latch)
        _join(k, (first, setup), (k_after, loop))
        _join(a, (ahead, setup), (a_after, loop))
        b.position_at_end(latch)
        _join(run, (int64(0), before), (b.add(run, int64(1)), latch))
        _join(ahead, (self.ahead, before), (a_after, latch))
        b.branch(head)
        for outer, inner, after in zip(_flat(sums), _flat(running), _flat(new)):
            _join(inner, (outer, setup), (after, loop))
            _join(outer, (v.zero, before), (after, latch))
        b.position_at_end(done)
        self._store(sums)

    def _store(self, sums: list[list[Any]]) -> None:
        b, v = self.builder, self.v
        places = [
            [v.at(self.result, b.add(b.mul(self.row_step, int64(p)), int64(j * v.lanes))) for j in range(len(row))]
            for p, row in enumerate(sums)
        ]
        with b.if_else(self.accumulate) as (add, start):
            with add:
                for place, total in zip(_flat(places), _flat(sums)):
                    v.store(v.add(v.load(place), total), place)
            with start:
                starts = [v.load(v.at(self.bias, j * v.lanes)) for j in range(len(sums[0]))]
                for row, totals in zip(places, sums):
                    for place, first, total in zip(row, starts, totals):
                        v.store(v.add(first, total), place)


def _join(phi: Any, *incoming: tuple[Any, Any]) -> None:
    for value, block in incoming:
        phi.add_incoming(value, block)


def _flat(rows: list[list[Any]]) -> list[Any]:
    return [value for row in rows for value in row]
