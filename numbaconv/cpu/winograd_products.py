"""The products of Winograd convolution: one small matrix product for each product of a tile.

The microkernel is that of ``gemm`` for what these products are: panels as wide as the tiles need, no edges, no bias, and weights that
are read once a task, from the last-level cache, and so are prefetched.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from .gemm import TILE_ROWS, TILE_VECTORS
from .simd import I64, Vectors, data_pointer, int64, outlined

WEIGHT_AHEAD = 256
"""How many weights ahead they are prefetched."""


@intrinsic
def multiply_panel(  # type: ignore[no-untyped-def]
    typingctx, weight, weight_offset, row_blocks, cells, cells_offset, width, channels, chain, vectors, sums, sums_offset, row_step
):  # fmt: skip
    """Products of some row blocks of the weight with one panel of transformed cells.

    sums[sums_offset + (b * R + r) * row_step + l] =
        sum over c of weight[weight_offset + (b * channels + c) * R + r] * cells[cells_offset + c * width + l]

    for b < row_blocks, r < R = TILE_ROWS, l < vectors * lanes, ``vectors`` being at most TILE_VECTORS; offsets and steps count elements.
    Every ``chain`` channels are one chain of multiply-adds along c; the chains' sums are added up.
    """
    n = types.int64
    return types.void(weight, n, n, cells, n, n, n, n, n, sums, n, n), _emit_panel


def _emit_panel(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    def element(position: int) -> Any:
        return builder.gep(data_pointer(context, builder, signature.args[position], arguments[position]), [arguments[position + 1]])

    def emit(
        b: Any, weight: Any, row_blocks: Any, cells: Any, width: Any, channels: Any, chain: Any, vectors: Any, sums: Any, row_step: Any
    ) -> None:
        v = Vectors(b, dtype)
        end = b.append_basic_block("end")
        blocks = [b.append_basic_block(f"vectors{count}") for count in range(1, TILE_VECTORS + 1)]
        switch = b.switch(vectors, blocks[-1])
        for count, block in enumerate(blocks, start=1):
            if block is not blocks[-1]:
                switch.add_case(int64(count), block)
            b.position_at_end(block)
            with cgutils.for_range(b, row_blocks) as row, cgutils.for_range_slice(b, int64(0), channels, chain) as (first, _):
                start = b.add(b.mul(row.index, channels), first)
                left = b.sub(channels, first)
                length = b.select(b.icmp_signed("<", left, chain), left, chain)
                w, x = v.at(weight, b.mul(start, int64(TILE_ROWS))), v.at(cells, b.mul(first, width))
                to = v.at(sums, b.mul(row.index, b.mul(row_step, int64(TILE_ROWS))))
                _emit_stores(v, _emit_chain(v, w, x, width, length, count), to, row_step, b.icmp_signed("!=", first, int64(0)))
            b.branch(end)
        b.position_at_end(end)

    dtype = signature.args[0].dtype
    values = [element(0), arguments[2], element(3), *arguments[5:9], element(9), *arguments[11:]]
    outlined(builder, f"multiply_panel_{dtype.name}", None, values, emit)
    return context.get_dummy_value()


def _emit_chain(v: Vectors, weight: Any, cells: Any, width: Any, channels: Any, count: int) -> list[list[Any]]:
    """Sums [row][vector] over the channels, ``count`` vectors wide."""
    b = v.builder
    before, loop, after = b.block, b.append_basic_block("chain"), b.append_basic_block("chain.end")
    b.branch(loop)
    b.position_at_end(loop)
    left, w, x = b.phi(I64), b.phi(weight.type), b.phi(cells.type)
    sums = [[b.phi(v.vector) for _ in range(count)] for _ in range(TILE_ROWS)]
    columns = [v.load(v.at(x, j * v.lanes)) for j in range(count)]
    v.prefetch_for_reading(v.at(w, WEIGHT_AHEAD))
    totals = []
    for r, row in enumerate(sums):
        factor = v.broadcast(v.at(w, r))
        totals.append([v.fma(factor, column, total) for column, total in zip(columns, row)])
    left_after = b.sub(left, int64(1))
    phis = [(left, channels, left_after), (w, weight, v.at(w, TILE_ROWS)), (x, cells, v.at(x, width))]
    phis += [(phi, v.zero, total) for row, new in zip(sums, totals) for phi, total in zip(row, new)]
    b.cbranch(b.icmp_signed(">", left_after, int64(0)), loop, after)
    for phi, start, following in phis:
        phi.add_incoming(start, before)
        phi.add_incoming(following, loop)
    b.position_at_end(after)
    return totals


def _emit_stores(v: Vectors, totals: list[list[Any]], sums: Any, row_step: Any, accumulate: Any) -> None:
    with v.builder.if_else(accumulate) as (add, start):
        for block, adds in ((add, True), (start, False)):
            with block:
                for r, row in enumerate(totals):
                    for j, total in enumerate(row):
                        pointer = v.at(sums, v.builder.add(v.builder.mul(row_step, int64(r)), int64(j * v.lanes)))
                        v.store(v.builder.fadd(v.load(pointer), total) if adds else total, pointer)
