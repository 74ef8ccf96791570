"""The kernels of the depthwise algorithm, as intrinsics: channels change places with pixels, and sums of a few pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from .simd import I64, Vectors, counted, int64

PIXELS = 7
"""Of one tile, with one vector of sums each: as many as nearly keep two multiply-add units busy, and fit the planes of most networks."""

AHEAD = 256
"""Bytes by which the rows of many channels are asked for: more rows than the processor foresees by itself."""


@intrinsic
def gather_channels(typingctx, like, source, step, channels, pixels, target):  # type: ignore[no-untyped-def]
    """Cells, vectors of one pixel's channels, from ``pixels`` elements side by side of ``channels`` rows, ``step`` bytes apart.

    Writes as many cells as there are lanes; what is beyond is not read and becomes zero.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, signature.args[0].dtype)
        source, step, channels, pixels, target = arguments[1:]

        def gather(masks: list[Any]) -> None:
            places = [v.pointer(builder.add(source, builder.mul(step, int64(c)))) for c in range(v.lanes)]
            for place in places:
                v.prefetch_for_reading(v.at(place, AHEAD // v.bytes))
            rows = [v.masked_load(place, mask) for place, mask in zip(places, masks)]
            for i, cell in enumerate(v.transposed(rows)):
                v.store(cell, v.at(v.pointer(target), i * v.lanes))

        _with_masks(v, channels, pixels, gather)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 5), codegen


@intrinsic
def scatter_channels(typingctx, like, source, target, step, channels, pixels):  # type: ignore[no-untyped-def]
    """The opposite of :func:`gather_channels`: the first ``pixels`` of as many cells as there are lanes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, signature.args[0].dtype)
        source, target, step, channels, pixels = arguments[1:]

        def scatter(masks: list[Any]) -> None:
            cells = [v.load(v.at(v.pointer(source), i * v.lanes)) for i in range(v.lanes)]
            for c, (row, mask) in enumerate(zip(v.transposed(cells), masks)):
                v.masked_store(row, v.pointer(builder.add(target, builder.mul(step, int64(c)))), mask)

        _with_masks(v, channels, pixels, scatter)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 5), codegen


def _with_masks(v: Vectors, channels: Any, pixels: Any, emit: Callable[[list[Any]], None]) -> None:
    """Code for the lanes of pixels in each channel's row: the same in all, or none in those of channels that do not exist."""
    b, inside = v.builder, v.first(pixels)
    with b.if_else(b.icmp_signed(">=", channels, int64(v.lanes))) as (then, otherwise):
        with then:
            emit([inside] * v.lanes)
        with otherwise:
            emit([b.and_(inside, v.splat(b.icmp_signed("<", int64(c), channels))) for c in range(v.lanes)])


@intrinsic
def pixel_sums(typingctx, like, source, source_step, taps, count, weight, bias, target, target_step, pixels):  # type: ignore[no-untyped-def]
    """Cells of sums for up to PIXELS ``pixels``: bias + sum over taps t of weight[t] * the cell at source + i * source_step + shift[t].

    taps : of int64 (shift, place of the weights after ``weight``, another that is not read), in bytes; bias : a cell.  All arguments but
    the array ``like``, which gives the dtype, are int64; addresses and steps count bytes.  Cells of pixels beyond the last are read, but
    nothing is written for them.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        b, v = builder, Vectors(builder, signature.args[0].dtype)
        source, source_step, taps, count, weight, bias, target, target_step, pixels = arguments[1:]
        table = b.inttoptr(taps, I64.as_pointer())
        starts = [b.add(source, b.mul(source_step, int64(i))) for i in range(PIXELS)]

        def add_tap(t: Any, sums: list[Any]) -> list[Any]:
            shift, place = (b.load(b.gep(table, [b.add(b.mul(t, int64(3)), int64(i))])) for i in range(2))
            weights = v.load(v.pointer(b.add(weight, place)))
            return [v.fma(weights, v.load(v.pointer(b.add(start, shift))), value) for start, value in zip(starts, sums)]

        sums = counted(b, count, [v.load(v.pointer(bias))] * PIXELS, add_tap)
        places = [v.pointer(b.add(target, b.mul(target_step, int64(i)))) for i in range(PIXELS)]
        with b.if_else(b.icmp_signed(">=", pixels, int64(PIXELS))) as (then, otherwise):
            with then:
                for value, place in zip(sums, places):
                    v.store(value, place)
            with otherwise:
                for i, (value, place) in enumerate(zip(sums[:-1], places)):
                    with b.if_then(b.icmp_signed("<", int64(i), pixels)):
                        v.store(value, place)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 9), codegen


@intrinsic
def copy_cell(typingctx, like, source, target):  # type: ignore[no-untyped-def]
    """A vector from one address to another."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, signature.args[0].dtype)
        v.store(v.load(v.pointer(arguments[1])), v.pointer(arguments[2]))
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 2), codegen


@intrinsic
def clear_cells(typingctx, like, target, count):  # type: ignore[no-untyped-def]
    """``count`` vectors of zeros."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, signature.args[0].dtype)
        target, count = v.pointer(arguments[1]), arguments[2]

        def clear(i: Any, carried: list[Any]) -> list[Any]:
            v.store(v.zero, v.at(target, builder.mul(i, int64(v.lanes))))
            return []

        counted(builder, count, [], clear)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 2), codegen
