"""The weight of Winograd convolution: transformed in double precision, in the order in which the products read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compile import kernel
from .gemm import TILE_ROWS
from .simd import I64, Vectors, data_pointer, int64, outlined
from .winograd_matrices import Factor
from .winograd_transforms import factors_of
from .winograd_vectors import multiply


@kernel()
def pack_transformed(shape, numbers, filters, packed):  # type: ignore[no-untyped-def]
    """Transform filters (groups, row blocks, channels, taps, TILE_ROWS).

    shape : the factors; numbers : int64 array: groups, row blocks, channels, taps, products, row blocks of one pass.
    packed : groups, passes, products, row blocks of the pass, channels, TILE_ROWS.
    """
    groups, row_blocks, channels, taps, products, rows = numbers
    for group in range(groups):
        for row in range(row_blocks):
            start = row // rows * rows
            together, source = min(rows, row_blocks - start), (group * row_blocks + row) * channels * taps * TILE_ROWS
            at = ((group * row_blocks + start) * products + row - start) * channels * TILE_ROWS
            transform_rows(shape, filters, source, channels, packed, at, together * channels * TILE_ROWS)


@intrinsic
def transform_rows(typingctx, shape, filters, start, channels, packed, at, step):  # type: ignore[no-untyped-def]
    """Write packed[at + p * step + c * R + r] = product p of the transformed taps filters[start + (c * taps + tap) * R + r].

    For c < channels and r < R = TILE_ROWS.  All numbers are int64, of elements; the arrays one-dimensional, contiguous, of one dtype.
    """
    n = types.int64
    return types.void(shape, filters, n, n, packed, n, n), _emit_rows


def _emit_rows(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    depth, height, width = factors = factors_of(signature.args[0])
    dtype, taps = signature.args[1].dtype, depth.taps * height.taps * width.taps

    def emit(b: Any, filters: Any, channels: Any, packed: Any, step: Any) -> None:
        def channel_start(array: Any, channel: Any, each: int) -> Any:
            return b.gep(array, [b.mul(channel, int64(each * TILE_ROWS))])

        pairs = b.and_(channels, int64(-2))  # whole lines of memory are written then
        with cgutils.for_range_slice(b, int64(0), pairs, int64(2), I64) as (channel, _):
            _emit_channels(b, dtype, factors, 2, channel_start(filters, channel, taps), channel_start(packed, channel, 1), step)
        with b.if_then(b.icmp_signed("<", pairs, channels)):
            _emit_channels(b, dtype, factors, 1, channel_start(filters, pairs, taps), channel_start(packed, pairs, 1), step)

    def element(position: int) -> Any:
        return builder.gep(data_pointer(context, builder, signature.args[position], arguments[position]), [arguments[position + 1]])

    name = "_".join(["transform_rows", dtype.name, *(f"{factor.outputs}x{factor.taps}" for factor in factors)])
    outlined(builder, name, None, [element(1), arguments[3], element(4), arguments[6]], emit)
    return context.get_dummy_value()


def _emit_channels(b: Any, dtype: Any, factors: Sequence[Factor], count: int, filters: Any, packed: Any, step: Any) -> None:
    """Transform ``count`` channels, side by side in one vector of float64: along width, then height, then depth."""
    depth, height, width = factors
    v, narrow = (Vectors(b, kind, count * TILE_ROWS) for kind in (types.float64, dtype))
    one, taps, size = Vectors(b, dtype, TILE_ROWS), depth.taps * height.taps * width.taps, height.cells * width.cells
    across, down = (
        b.bitcast(cgutils.alloca_once(b, ir.ArrayType(v.vector, number)), v.element.as_pointer())
        for number in (depth.taps * height.taps * width.cells, depth.taps * size)
    )

    def loaded(first: Any) -> Any:
        channels = [one.load(one.at(filters, b.add(first, int64(i * taps * TILE_ROWS)))) for i in range(count)]
        value = channels[0] if count == 1 else one.shuffle(channels[0], channels[1], range(2 * TILE_ROWS))
        return value if narrow.bits == 64 else b.fpext(value, v.vector)

    def kept(numbers: Any, first: Any, steps: int, number: int) -> list[Any]:
        return [v.load(v.at(numbers, b.mul(b.add(first, int64(i * steps)), int64(v.lanes)))) for i in range(number)]

    def keep(numbers: Any, first: Any, steps: int, values: Sequence[Any]) -> None:
        for i, value in enumerate(values):
            v.store(value, v.at(numbers, b.mul(b.add(first, int64(i * steps)), int64(v.lanes))))

    with cgutils.for_range(b, int64(depth.taps * height.taps)) as row:
        first = b.mul(row.index, int64(width.taps * TILE_ROWS))
        cells = [loaded(b.add(first, int64(k * TILE_ROWS))) for k in range(width.taps)]
        keep(across, b.mul(row.index, int64(width.cells)), 1, multiply(v, width.weight, cells))
    with cgutils.for_range(b, int64(depth.taps)) as plane, cgutils.for_range(b, int64(width.cells)) as column:
        first = b.add(b.mul(plane.index, int64(height.taps * width.cells)), column.index)
        values = multiply(v, height.weight, kept(across, first, width.cells, height.taps))
        keep(down, b.add(b.mul(plane.index, int64(size)), column.index), width.cells, values)
    with cgutils.for_range(b, int64(size)) as product:
        for i, value in enumerate(multiply(v, depth.weight, kept(down, product.index, size, depth.taps))):
            place = narrow.at(packed, b.mul(step, b.add(product.index, int64(i * size))))
            narrow.store(value if narrow.bits == 64 else b.fptrunc(value, narrow.vector), place)
