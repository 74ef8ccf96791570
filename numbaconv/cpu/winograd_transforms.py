"""The code of Winograd's transforms, generated for any factors along depth, height and width.

A *group* is one vector of tiles.  Its lanes are filled by *segments*: one for each result of a tile along the last axis, each a vector of
neighbouring cells of one row, so that the segments' vectors hold exactly one vector of tiles.  Segments may lie in different rows,
and are shortened where a row ends: the shuffles that separate the phases of a tile then pick the lanes in use, which stand first.

Along width and height cells go from memory to memory in registers.  Along depth, transformed planes wait in a ring, so that the planes
that two tiles share are transformed once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..arrays import AnyArray
from .elements import converted, each_loaded, each_stored
from .simd import I64, Vectors, data_pointer, int64, outlined
from .winograd_matrices import IDENTITY, Factor
from .winograd_vectors import multiply, phases_of, segments_of

NOTHING = -(1 << 63)
"""The offset of a row that is not there."""


# ---- factors as compile-time constants ---------------------------------------------------------------------------------
@functools.cache
def shape_of(factors: tuple[Factor, ...]) -> AnyArray:
    """The factors of depth, height and width in a form that Numba compiles kernels for: the shapes of the fields of an empty array."""
    return np.zeros(0, [(name, np.int8, factor) for name, factor in zip(("depth", "height", "width"), factors)])


def factors_of(shape: Any) -> list[Factor]:
    """The factors from the Numba type of what :func:`shape_of` returns."""
    return [Factor(*field.type.shape) for field in shape.dtype.fields.values()]


class Fields(NamedTuple):
    """Where the entries of one group start in its row of the table, an int64 array."""

    at: int  # lanes of the groups before this one
    used: int  # lanes in use
    stored: int  # number of the dtype of its rows (``elements``)
    staged: int  # whether its rows are copied to a line of their own before they are read
    tile: int  # (segment,): number of its first tile
    run: int  # (segment,): number of its tiles
    rows_in: int  # (row of cells, segment): byte offset of the first cell, or NOTHING
    masks_in: int  # (segment, load): cells that exist, each load ``outputs`` cells further on
    rows_out: int  # (row of results, segment): byte offset of the first result, or NOTHING
    masks_out: int  # (segment,): results that exist
    size: int


def table_fields(height: Factor, width: Factor) -> Fields:
    """Fields for the factors of the two last axes."""
    segments = width.outputs
    lengths = (1, 1, 1, 1, segments, segments, segments * height.cells, segments * loads(width), segments * height.outputs, segments)
    return Fields(*itertools.accumulate(lengths, initial=0))


def loads(width: Factor) -> int:
    """Loads that fetch the cells of all tiles of one segment."""
    return -(-width.cells // width.outputs)


# ---- transforms --------------------------------------------------------------------------------------------------------
class _Group:
    """One group of tiles as emitted code sees it: its row of the table and its picked lanes.

    nothing : byte address that stands for rows that are not there.  ahead : bytes from a row to that of the next channel, which
    is prefetched.
    """

    def __init__(self, v: Vectors, factors: Sequence[Factor], table: Any, lanes: Any, ring: Any, nothing: Any, ahead: Any) -> None:
        self.v, self.table, self.nothing, self.ahead = v, table, nothing, ahead
        self.ring = v.pointer(ring)
        self.depth, self.height, self.width = factors
        self.fields = table_fields(self.height, self.width)
        self.lanes = lanes if v.picks else None
        self.at, self.count, self.stored = (self.entry(field) for field in (self.fields.at, self.fields.used, self.fields.stored))

    @property
    def products(self) -> int:
        """Products of one plane of a tile."""
        return self.height.cells * self.width.cells

    def entry(self, index: int) -> Any:
        return self.v.builder.load(self.v.builder.gep(self.table, [int64(index)]))

    def mask(self, index: int) -> Any:
        return self.v.mask_of(self.entry(index))

    def row(self, field: int, number: Any, segment: int, base: Any, prefetch: Callable[[Any], None]) -> Any:
        """Address of a segment's row ``number`` of those whose offsets are a field of the table."""
        b = self.v.builder
        index = b.add(b.mul(number, int64(self.width.outputs)), int64(field + segment))
        offset = b.load(b.gep(self.table, [index]))
        address = b.select(_absent(b, offset), self.nothing, b.add(base, offset))
        prefetch(self.v.pointer(b.add(address, self.ahead)))
        return address

    def plane(self, number: Any) -> Any:
        """Pointer to a plane of products, one vector each, in the ring; the one before the first is scratch."""
        return self.v.at(self.ring, self.v.builder.mul(self.v.builder.add(number, int64(1)), int64(self.products * self.v.lanes)))

    @property
    def scratch(self) -> Any:
        return self.ring

    def keep(self, plane: Any, first: Any, step: int, values: Sequence[Any]) -> None:
        """Store vectors as products first, first + step, ... of a plane."""
        b, v = self.v.builder, self.v
        for i, value in enumerate(values):
            v.store(value, v.at(plane, b.mul(b.add(first, int64(i * step)), int64(v.lanes))))

    def kept(self, plane: Any, first: Any, step: int, count: int) -> list[Any]:
        b, v = self.v.builder, self.v
        return [v.load(v.at(plane, b.mul(b.add(first, int64(i * step)), int64(v.lanes)))) for i in range(count)]


def _absent(builder: Any, offset: Any) -> Any:
    return builder.icmp_signed("==", offset, int64(NOTHING))


class _Cells:
    """Where transformed cells go: element channel * row + product * step + lane."""

    def __init__(self, v: Vectors, cells: Any, row: Any, step: Any) -> None:
        self.v, self.cells, self.row, self.step = v, cells, row, step

    def place(self, first: Any, count: Any) -> None:
        """The lanes that follow are number ``first`` and the next ``count`` - 1."""
        self.first, self.used = first, self.v.first(count)

    def store(self, channel: Any, values: Sequence[Any], products: Sequence[Any]) -> None:
        b, v = self.v.builder, self.v
        row = v.at(self.cells, b.add(b.mul(channel, self.row), self.first))
        for value, p in zip(values, products):
            v.masked_store(value, v.at(row, b.mul(self.step, int64(p) if isinstance(p, int) else p)), self.used)


@intrinsic
def transform_group(  # type: ignore[no-untyped-def]
    typingctx, shape, cells, row, step, table, entry, lanes, first_lane,
    source, channel_step, channel, channels, planes, plane_count, tiles, ring, nothing,
):  # fmt: skip
    """Transform the cells of one group of tiles for ``channels`` channels from number ``channel`` on.

    cells : array to be filled: product p of channel c of lane l is element c * row + p * step + at + l.  A depth factor makes a stack of
        tiles, each ``tiles`` lanes further on.
    table : int64 array, the group's row at ``entry``; lanes : int32 array, the group's at ``first_lane``.
    source : byte address that the row offsets are relative to; channel_step : bytes from channel to channel.
    planes : int64 array of ``plane_count`` byte offsets of source planes, or NOTHING; not read without a depth factor.
    ring, nothing : byte addresses of workspace, (1 + depth.cells, products of a plane, lanes), and of a line of zeros.
    """
    n = types.int64
    return types.void(shape, cells, n, n, table, n, lanes, n, n, n, n, n, planes, n, n, n, n), _emit_transform


def _emit_transform(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    dtype, factors = signature.args[1].dtype, factors_of(signature.args[0])

    def emit(
        b: Any, cells: Any, row: Any, step: Any, table: Any, entry: Any, lanes: Any, first_lane: Any,
        source: Any, channel_step: Any, channel: Any, channels: Any, planes: Any, plane_count: Any, tiles: Any, ring: Any, nothing: Any,
    ) -> None:  # fmt: skip
        v = Vectors(b, dtype)
        group = _Group(v, factors, b.gep(table, [entry]), b.gep(lanes, [first_lane]), ring, nothing, channel_step)
        transformed = _Cells(v, cells, row, step)
        if group.depth == IDENTITY:
            transformed.place(group.at, group.count)
        with cgutils.for_range(b, channels) as loop:
            base, number = b.add(source, b.mul(loop.index, channel_step)), b.add(channel, loop.index)
            if group.depth == IDENTITY:
                _emit_plane(group, base, functools.partial(transformed.store, number))
            else:
                _emit_stack(group, base, transformed, number, planes, plane_count, tiles)

    outlined(builder, _name("transform_group", dtype, factors), None, _pointers(context, builder, signature, arguments), emit)
    return context.get_dummy_value()


def _pointers(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """The arguments of an intrinsic, arrays as pointers to their elements, without the factors."""
    pairs = zip(signature.args[1:], arguments[1:])
    return [data_pointer(context, builder, kind, value) if isinstance(kind, types.Array) else value for kind, value in pairs]


def _name(what: str, dtype: Any, factors: Sequence[Factor]) -> str:
    return "_".join([what, dtype.name, *(f"{factor.outputs}x{factor.taps}" for factor in factors)])


def _emit_plane(group: _Group, base: Any, store: Callable[[Sequence[Any], Sequence[Any]], None]) -> None:
    """Transform the cells of one channel and plane: row by row along width, then column by column along height."""
    v, height, width, fields, b = group.v, group.height, group.width, group.fields, group.v.builder
    segments, count = range(width.outputs), loads(width)
    masks = [[group.mask(fields.masks_in + s * count + k) for s in segments] for k in range(count)]
    with cgutils.for_range(b, int64(height.cells)) as loop:
        rows = [group.row(fields.rows_in, loop.index, s, base, v.prefetch_for_reading) for s in segments]
        loaded, cells = each_loaded(v, group.stored, functools.partial(_load_rows, v, rows, masks, width.outputs)), []
        for k in range(count):
            vectors = loaded[k * width.outputs : (k + 1) * width.outputs]
            cells += phases_of(v, vectors, min(width.outputs, width.cells - k * width.outputs), group.lanes)
        group.keep(group.scratch, b.mul(loop.index, int64(width.cells)), 1, multiply(v, width.input, cells))
    with cgutils.for_range(b, int64(width.cells)) as loop:
        column = multiply(v, height.input, group.kept(group.scratch, loop.index, width.cells, height.cells))
        store(column, [b.add(loop.index, int64(r * width.cells)) for r in range(height.cells)])


def _load_rows(v: Vectors, rows: list[Any], masks: list[list[Any]], step: int, stored: Vectors) -> list[Any]:
    """Cells of the rows at these addresses, for each of ``masks`` a vector from each, ``step`` cells further on every time."""
    starts = [stored.pointer(row) for row in rows]
    loads = ((stored.at(start, k * step), mask) for k, each in enumerate(masks) for start, mask in zip(starts, each))
    return [converted(stored.masked_load(pointer, mask), stored, v) for pointer, mask in loads]


def _emit_stack(group: _Group, base: Any, transformed: _Cells, channel: Any, planes: Any, count: Any, tiles: Any) -> None:
    """Transform a stack of tiles of one channel, plane by plane; the last depth.cells planes are kept in a ring."""
    v, depth, b = group.v, group.depth, group.v.builder
    with cgutils.for_range(b, count) as loop:
        slot = group.plane(b.srem(loop.index, int64(depth.cells)))
        offset = b.load(b.gep(planes, [loop.index]))
        with b.if_else(_absent(b, offset), likely=False) as (padding, there):
            with padding, cgutils.for_range(b, int64(group.products)) as product:
                v.store(v.zero, v.at(slot, b.mul(product.index, int64(v.lanes))))
            with there:
                _emit_plane(group, b.add(base, offset), lambda values, products: group.keep(slot, products[0], group.width.cells, values))
        done = b.sub(loop.index, int64(depth.cells - 1))
        whole = b.icmp_signed("==", b.srem(done, int64(depth.outputs)), int64(0))
        with b.if_then(b.and_(b.icmp_signed(">=", done, int64(0)), whole)):
            transformed.place(b.add(group.at, b.mul(b.sdiv(done, int64(depth.outputs)), tiles)), group.count)
            slots = [group.plane(b.srem(b.add(done, int64(k)), int64(depth.cells))) for k in range(depth.cells)]
            with cgutils.for_range(b, int64(group.products)) as product:
                values = multiply(v, depth.input, [v.load(v.at(slot, b.mul(product.index, int64(v.lanes)))) for slot in slots])
                transformed.store(channel, values, [b.add(product.index, int64(k * group.products)) for k in range(depth.cells)])


@intrinsic
def restore_group(  # type: ignore[no-untyped-def]
    typingctx, shape, sums, first, step, row_step, table, entry, lanes, first_lane,
    result, channel_step, filters, bias, first_bias, depth_step, depths, ring, nothing,
):  # fmt: skip
    """The opposite of :func:`transform_group`: results of one group of tiles for ``filters`` filters.

    sums : array; product p of filter f of lane l is element first + p * step + f * row_step + l.
    table : int64 array, the group's row at ``entry``; lanes : int32 array, the group's at ``first_lane``.
    result : byte address that the row offsets are relative to; channel_step : bytes from filter to filter.
    bias : array of the dtype, that of filter 0 at ``first_bias``.
    depth_step, depths : bytes from plane to plane and number of planes that exist; not read without a depth factor.
    ring, nothing : byte addresses of workspace, (1 + depth.outputs, products of a plane, lanes), and of a line where rows may go that are
        not there.

    Returns 1 where some result is not finite, else 0.
    """
    n = types.int64
    return types.int64(shape, sums, n, n, n, table, n, lanes, n, n, n, n, bias, n, n, n, n, n), _emit_restore


def _emit_restore(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    dtype, factors = signature.args[1].dtype, factors_of(signature.args[0])

    def emit(
        b: Any, sums: Any, first: Any, step: Any, row_step: Any, table: Any, entry: Any, lanes: Any, first_lane: Any,
        result: Any, channel_step: Any, filters: Any, bias: Any, first_bias: Any, depth_step: Any, depths: Any, ring: Any, nothing: Any,
    ) -> Any:  # fmt: skip
        v = Vectors(b, dtype)
        group = _Group(v, factors, b.gep(table, [entry]), b.gep(lanes, [first_lane]), ring, nothing, channel_step)
        bad = cgutils.alloca_once_value(b, v.no_lane)
        with cgutils.for_range(b, filters) as loop:
            base = b.add(result, b.mul(loop.index, channel_step))
            start = v.at(sums, b.add(first, b.mul(loop.index, row_step)))
            added = v.broadcast(v.at(bias, b.add(first_bias, loop.index)))
            if group.depth == IDENTITY:
                _emit_results(group, base, start, step, added, bad)
            else:
                _emit_depths(group, start, step)
                with cgutils.for_range(b, depths) as plane:
                    row = b.add(base, b.mul(plane.index, depth_step))
                    _emit_results(group, row, group.plane(plane.index), int64(v.lanes), added, bad)
        bits = v.bits_of(b.and_(b.load(bad), v.first(group.count)))
        return b.zext(b.icmp_unsigned("!=", bits, bits.type(0)), I64)

    return outlined(builder, _name("restore_group", dtype, factors), I64, _pointers(context, builder, signature, arguments), emit)


def _emit_depths(group: _Group, sums: Any, step: Any) -> None:
    """Sums of the products of each plane of results from those of a stack."""
    v, depth, b = group.v, group.depth, group.v.builder
    with cgutils.for_range(b, int64(group.products)) as loop:
        numbers = [b.add(loop.index, int64(k * group.products)) for k in range(depth.cells)]
        values = multiply(v, depth.output, [v.load(v.at(sums, b.mul(step, p))) for p in numbers])
        group.keep(group.plane(int64(0)), loop.index, group.products, values)


def _emit_results(group: _Group, base: Any, sums: Any, step: Any, bias: Any, bad: Any) -> None:
    """Store the results of one filter and plane; the mask at ``bad`` gets the lanes where some are not finite."""
    v, height, width, fields, b = group.v, group.height, group.width, group.fields, group.v.builder
    masks = [group.mask(fields.masks_out + s) for s in range(width.outputs)]
    with cgutils.for_range(b, int64(width.cells)) as loop:
        products = [b.mul(step, b.add(loop.index, int64(r * width.cells))) for r in range(height.cells)]
        column = multiply(v, height.output, [v.load(v.at(sums, p)) for p in products])
        group.keep(group.scratch, loop.index, width.cells, column)
    with cgutils.for_range(b, int64(height.outputs)) as loop:
        row = group.kept(group.scratch, b.mul(loop.index, int64(width.cells)), 1, width.cells)
        results = [b.fadd(value, bias) for value in multiply(v, width.output, row)]
        total = functools.reduce(b.fadd, results)  # an infinity stays, or turns NaN
        b.store(b.or_(b.load(bad), b.fcmp_unordered("uno", b.fsub(total, total), v.zero)), bad)
        segments = segments_of(v, results, group.lanes)
        rows = [group.row(fields.rows_out, loop.index, s, base, v.prefetch_for_writing) for s in range(width.outputs)]
        each_stored(v, group.stored, functools.partial(_store_rows, v, segments, rows, masks))


def _store_rows(v: Vectors, segments: list[Any], rows: list[Any], masks: list[Any], stored: Vectors) -> None:
    for segment, row, mask in zip(segments, rows, masks):
        stored.masked_store(converted(segment, v, stored), stored.pointer(row), mask)
