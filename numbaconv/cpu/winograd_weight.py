"""The weight of Winograd convolution: transformed in double precision, in the order in which the products read it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compile import kernel
from .gemm import TILE_ROWS
from .simd import Vectors, data_pointer, int64, outlined
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
        v = Vectors(b, types.float64, TILE_ROWS)
        narrow = Vectors(b, dtype, TILE_ROWS)
        across, down = (
            v.at(b.bitcast(cgutils.alloca_once(b, ir.ArrayType(v.vector, count)), v.element.as_pointer()), 0)
            for count in (depth.taps * height.taps * width.cells, depth.taps * height.cells * width.cells)
        )

        def kept(numbers: Any, first: Any, steps: int, count: int) -> list[Any]:
            return [v.load(v.at(numbers, b.mul(b.add(first, int64(i * steps)), int64(TILE_ROWS)))) for i in range(count)]

        def keep(numbers: Any, first: Any, steps: int, values: list[Any]) -> None:
            for i, value in enumerate(values):
                v.store(value, v.at(numbers, b.mul(b.add(first, int64(i * steps)), int64(TILE_ROWS))))

        with cgutils.for_range(b, channels) as channel:
            own = v.builder.gep(filters, [b.mul(channel.index, int64(taps * TILE_ROWS))])
            to = v.builder.gep(packed, [b.mul(channel.index, int64(TILE_ROWS))])
            with cgutils.for_range(b, int64(depth.taps * height.taps)) as row:
                first = b.mul(row.index, int64(width.taps * TILE_ROWS))
                loaded = [narrow.load(narrow.at(own, b.add(first, int64(k * TILE_ROWS)))) for k in range(width.taps)]
                wide = loaded if narrow.bits == 64 else [b.fpext(value, v.vector) for value in loaded]
                keep(across, b.mul(row.index, int64(width.cells)), 1, multiply(v, width.weight, wide))
            with cgutils.for_range(b, int64(depth.taps)) as plane, cgutils.for_range(b, int64(width.cells)) as column:
                first = b.add(b.mul(plane.index, int64(height.taps * width.cells)), column.index)
                values = multiply(v, height.weight, kept(across, first, width.cells, height.taps))
                keep(down, b.add(b.mul(plane.index, int64(height.cells * width.cells)), column.index), width.cells, values)
            size = height.cells * width.cells
            with cgutils.for_range(b, int64(size)) as product:
                for i, value in enumerate(multiply(v, depth.weight, kept(down, product.index, size, depth.taps))):
                    place = narrow.at(to, b.mul(step, b.add(product.index, int64(i * size))))
                    narrow.store(value if narrow.bits == 64 else b.fptrunc(value, narrow.vector), place)

    def element(position: int) -> Any:
        return builder.gep(data_pointer(context, builder, signature.args[position], arguments[position]), [arguments[position + 1]])

    name = "_".join(["transform_rows", dtype.name, *(f"{factor.outputs}x{factor.taps}" for factor in factors)])
    outlined(builder, name, None, [element(1), arguments[3], element(4), arguments[6]], emit)
    return context.get_dummy_value()
