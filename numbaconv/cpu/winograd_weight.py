"""The weight of Winograd convolution: transformed in double precision, in the order in which the products read it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..arrays import AnyArray
from ..problem import Problem
from .compile import kernel
from .gemm import TILE_ROWS
from .layouts import address
from .pack_weight import pack_weight
from .simd import I64, Vectors, data_pointer, int64, outlined
from .threads import next_task
from .winograd_matrices import IDENTITY, Factor
from .winograd_tables import odd_lines
from .winograd_transforms import factors_of
from .winograd_vectors import multiply

TOGETHER = 16  # channels whose numbers of one tap lie side by side, before the transform

_odd_lines = kernel()(odd_lines)


class Raw(NamedTuple):
    """A weight as the user keeps it, and where to read it: what :func:`pack_rows` packs.

    numbers : int64 array, as :func:`pack_weight` takes it for all filters; taps : int64 offsets (elements).
    """

    weight: AnyArray
    numbers: AnyArray
    taps: AnyArray


PACKED = Raw(*(np.empty(0, np.int64) for _ in Raw._fields))
"""None: what the kernel gets beside a packed weight."""


def raw_weight(p: Problem, weight: AnyArray) -> Raw:
    """The weight (out_channels, in_per_group, kd, kh, kw), already of the dtype of the sums."""
    steps = [step // weight.itemsize for step in weight.strides]
    of_filter, of_channel = (steps[1], steps[0]) if p.transposed else (steps[0], steps[1])
    counts = (p.groups, p.result_channels // p.groups, p.source_channels // p.groups)
    numbers = [address(weight), steps[0] * p.out_per_group, of_filter, of_channel, *counts, TOGETHER, 1, TILE_ROWS]
    taps = [sum(k * step for k, step in zip(tap, steps[2:])) for tap in itertools.product(*map(range, p.kernel))]
    return Raw(weight, np.array(numbers, np.int64), np.array(taps[::-1] if p.transposed else taps, np.int64))


@kernel()
def pack_all(shape, numbers, taps, rows, products, filters, packed, counter):  # type: ignore[no-untyped-def]
    """Pack and transform a whole weight, row blocks as tasks.

    shape : the factors; numbers, taps : see Raw; rows : row blocks of one pass.
    filters : groups, row blocks, channels by blocks of TOGETHER, taps, channels of the block, TILE_ROWS.
    packed : groups, passes, then for each product row blocks of the pass, channels, TILE_ROWS, and what fills :func:`odd_lines`.
    """
    row_blocks, each = -(-numbers[5] // TILE_ROWS), numbers[6] * TILE_ROWS
    while True:
        task = next_task(counter)
        if task >= numbers[4] * row_blocks:
            break
        group, row = task // row_blocks, task % row_blocks
        first = row // rows * rows
        at, step = pass_start(group, first, row_blocks, rows, each, products)
        pack_rows(shape, numbers, taps, group, row, filters, task * len(taps) * each, packed, at + (row - first) * each, step)


@kernel()
def pass_start(group, row, row_blocks, rows, each, products):  # type: ignore[no-untyped-def]
    """Where the transformed weight of the pass that begins with a row block starts, and elements from product to product.

    each : elements of one row block and product.
    """
    step, last = _odd_lines(rows * each), (row_blocks - 1) // rows
    of_group = (last * step + _odd_lines((row_blocks - last * rows) * each)) * products
    return group * of_group + row // rows * step * products, _odd_lines(min(rows, row_blocks - row) * each)


@kernel()
def pack_rows(shape, numbers, taps, group, row, filters, start, packed, at, step):  # type: ignore[no-untyped-def]
    """Pack one row block of filters to filters[start] and on; transformed, its products are ``step`` apart in packed[at] and on."""
    own = numbers.copy()
    own[0] += (group * numbers[1] + row * TILE_ROWS * numbers[2]) * filters.itemsize
    own[4], own[5] = 1, min(TILE_ROWS, numbers[5] - row * TILE_ROWS)
    pack_weight(own[0], own[1:], taps, filters, start)
    channels = numbers[6]
    for first in range(0, channels, TOGETHER):
        count = min(TOGETHER, channels - first)
        transform_rows(
            shape, filters, start + first * len(taps) * TILE_ROWS, count, packed, at + first * TILE_ROWS, step
        )  # fmt: skip


@intrinsic
def transform_rows(typingctx, shape, filters, start, channels, packed, at, step):  # type: ignore[no-untyped-def]
    """Write packed[at + p * step + c * R + r] = product p of the transformed taps filters[start + (tap * channels + c) * R + r].

    For c < channels and r < R = TILE_ROWS.  All numbers are int64, of elements; the arrays one-dimensional, contiguous, of one dtype.
    """
    n = types.int64
    return types.void(shape, filters, n, n, packed, n, n), _emit_rows


def _emit_rows(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    factors = factors_of(signature.args[0])
    dtype = signature.args[1].dtype

    def emit(b: Any, filters: Any, channels: Any, packed: Any, step: Any) -> None:
        def channel_start(array: Any, channel: Any) -> Any:
            return b.gep(array, [b.mul(channel, int64(TILE_ROWS))])

        pairs, tap = b.and_(channels, int64(-2)), b.mul(channels, int64(TILE_ROWS))  # whole lines of memory are written then
        with cgutils.for_range_slice(b, int64(0), pairs, int64(2), I64) as (channel, _):
            _emit_channels(b, dtype, factors, 2, channel_start(filters, channel), tap, channel_start(packed, channel), step)
        with b.if_then(b.icmp_signed("<", pairs, channels)):
            _emit_channels(b, dtype, factors, 1, channel_start(filters, pairs), tap, channel_start(packed, pairs), step)

    def element(position: int) -> Any:
        return builder.gep(data_pointer(context, builder, signature.args[position], arguments[position]), [arguments[position + 1]])

    name = "_".join(["transform_rows", dtype.name, *(f"{factor.outputs}x{factor.taps}" for factor in factors)])
    outlined(builder, name, None, [element(1), arguments[3], element(4), arguments[6]], emit)
    return context.get_dummy_value()


def _emit_channels(b: Any, dtype: Any, factors: Sequence[Factor], count: int, filters: Any, tap_step: Any, packed: Any, step: Any) -> None:
    """Transform ``count`` channels, side by side in one vector of float64: along width, then height, then depth."""
    depth, height, width = factors
    v, narrow = (Vectors(b, kind, count * TILE_ROWS) for kind in (types.float64, dtype))
    size = height.cells * width.cells
    across, down = (
        b.bitcast(cgutils.alloca_once(b, ir.ArrayType(v.vector, number)), v.element.as_pointer())
        for number in (depth.taps * height.taps * width.cells, depth.taps * size)
    )

    def loaded(tap: Any) -> Any:
        value = narrow.load(narrow.at(filters, b.mul(tap, tap_step)))
        return value if narrow.bits == 64 else b.fpext(value, v.vector)

    def kept(numbers: Any, first: Any, steps: int, number: int) -> list[Any]:
        return [v.load(v.at(numbers, b.mul(b.add(first, int64(i * steps)), int64(v.lanes)))) for i in range(number)]

    def keep(numbers: Any, first: Any, steps: int, values: Sequence[Any]) -> None:
        for i, value in enumerate(values):
            v.store(value, v.at(numbers, b.mul(b.add(first, int64(i * steps)), int64(v.lanes))))

    def finish(first: Any, steps: int, values: Sequence[Any]) -> None:
        for i, value in enumerate(values):
            place = narrow.at(packed, b.mul(step, b.add(first, int64(i * steps))))
            narrow.store(value if narrow.bits == 64 else b.fptrunc(value, narrow.vector), place)

    with cgutils.for_range(b, int64(depth.taps * height.taps)) as row:
        first = b.mul(row.index, int64(width.taps))
        cells = [loaded(b.add(first, int64(k))) for k in range(width.taps)]
        keep(across, b.mul(row.index, int64(width.cells)), 1, multiply(v, width.weight, cells))
    with cgutils.for_range(b, int64(depth.taps)) as plane, cgutils.for_range(b, int64(width.cells)) as column:
        first = b.add(b.mul(plane.index, int64(height.taps * width.cells)), column.index)
        values = multiply(v, height.weight, kept(across, first, width.cells, height.taps))
        if depth == IDENTITY:
            finish(column.index, width.cells, values)
        else:
            keep(down, b.add(b.mul(plane.index, int64(size)), column.index), width.cells, values)
    if depth != IDENTITY:
        with cgutils.for_range(b, int64(size)) as product:
            finish(product.index, size, multiply(v, depth.weight, kept(down, product.index, size, depth.taps)))
