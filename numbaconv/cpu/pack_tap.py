"""Copying what one tap of a panel reads: the innermost loops of an implicit GEMM's packing, as one intrinsic.  See ``pack``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from .elements import components_of, converted, paired
from .gemm import TILE_VECTORS
from .simd import Case, Vectors, data_pointer, int64, switch

UNIT, EVEN, SPREAD = 0, 1, 2
"""How the cells of neighbouring lanes lie in memory: side by side, every second one, or further apart (gathered)."""

UNROLLED = (1, 2, 4)
"""Numbers of entries a vector for which the loop over channels is unrolled."""


@intrinsic
def copy_tap(  # type: ignore[no-untyped-def]
    typingctx, spacing, lane_step, source, channel_step, channels, table, first, slots, count, panel, position, like
):
    """Copy what one tap of ``channels`` channels reads into a panel; lanes in no mask become zero.

    panel[position + c * W + l] = source[c * channel_step + offset + l * lane_step] for every entry and lane l in its mask

    Where the panel is of pairs, panel[position + c * W + l] holds that of channel 2 c and, above it, that of channel 2 c + 1 (0 beyond
    the last); of complex numbers, panel[position + (2 c + i) * W + l] holds the component i.

    spacing : UNIT (lane_step 1), EVEN (lane_step 2; lane l has mask bit 2 l) or SPREAD (any lane_step).
    source : int64 byte address of the first channel.
    table : int64 array (…, 2) of pairs (offset, mask): TILE_VECTORS groups of ``slots`` pairs from pair ``first`` on, of which the first
        ``count`` hold entries.
    panel : one-dimensional array of the dtype of the sums, or uint32 for pairs; like : array of the source's dtype.
    All other arguments are int64 numbers, steps and offsets in elements.
    """
    n = types.int64
    return types.void(n, n, n, n, n, table, n, n, n, panel, n, like), _emit_copy


def _emit_copy(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    spacing, lane_step, source, channel_step, channels, table, first, slots, count, panel, position, _ = arguments
    copy = _Copy(builder, signature.args[9].dtype, signature.args[11].dtype)
    copy.source, copy.channels = copy.s.pointer(source), channels
    copy.lane_step, copy.channel_step = (builder.mul(step, int64(copy.components)) for step in (lane_step, channel_step))
    copy.table = builder.gep(data_pointer(context, builder, signature.args[5], table), [builder.mul(first, int64(2))])
    copy.slots, copy.count = slots, count
    copy.panel = builder.gep(data_pointer(context, builder, signature.args[9], panel), [position])
    cases: list[Case] = [(UNIT, partial(copy.spaced, 1)), (EVEN, partial(copy.spaced, 2))]
    switch(builder, spacing, cases, copy.gathered)
    return context.get_dummy_value()


class _Copy:
    """Code of :func:`copy_tap`: ``v`` are vectors of the panel, ``s`` of as many components of the source, ``cells`` of as many cells.

    Steps and offsets count components.
    """

    source: Any
    lane_step: Any
    channel_step: Any
    channels: Any
    table: Any
    slots: Any
    count: Any
    panel: Any

    def __init__(self, builder: Any, panel_dtype: Any, source_dtype: Any) -> None:
        self.builder = builder
        self.v = Vectors(builder, panel_dtype)
        self.components, each = components_of(source_dtype)
        self.s = Vectors(builder, each, self.v.lanes)
        self.cells = Vectors(builder, each, self.v.lanes * self.components)

    def _entry(self, vector: int, index: Any) -> tuple[Any, Any]:
        """Offset and mask of an entry of a vector."""
        b = self.builder
        pair = b.mul(b.add(b.mul(self.slots, int64(vector)), index), int64(2))
        offset, mask = (b.load(b.gep(self.table, [b.add(pair, int64(field))])) for field in (0, 1))
        return b.mul(offset, int64(self.components)), mask

    def _each_channel(self, values: Callable[[int, Any], list[Any]], vectors: list[int]) -> None:
        """Loop over channels or pairs of them: store values(j, pointer to the channel), one a component, converted, as vector j."""
        b, v, pairs = self.builder, self.v, self.v.name == "uint32"
        products = b.lshr(b.add(self.channels, int64(1)), int64(1)) if pairs else self.channels
        with cgutils.for_range(b, products) as loop:
            first = b.shl(loop.index, int64(1)) if pairs else loop.index
            second = b.add(first, int64(1))
            there = b.icmp_signed("<", second, self.channels)
            row = v.at(self.panel, b.mul(loop.index, int64(self.components * TILE_VECTORS * v.lanes)))
            for j in vectors:
                low = values(j, self._channel(first))
                if pairs:
                    high = values(j, self._channel(b.select(there, second, first)))
                    v.store(paired(low[0], high[0], there, self.s, v), v.at(row, j * v.lanes))
                else:
                    for i, component in enumerate(low):
                        v.store(converted(component, self.s, v), v.at(row, (i * TILE_VECTORS + j) * v.lanes))

    def _channel(self, number: Any) -> Any:
        return self.s.at(self.source, self.builder.mul(number, self.channel_step))

    # ---- masked loads --------------------------------------------------------------------------------------------
    def spaced(self, parts: int) -> None:
        """Cells ``parts`` apart (1 or 2): that many masked loads an entry, and a shuffle."""
        cases: list[Case] = [(count, partial(self._unrolled, count, parts)) for count in UNROLLED]
        switch(self.builder, self.count, cases, partial(self._general, parts))

    def _unrolled(self, count: int, parts: int) -> None:
        plan = []
        for j in range(TILE_VECTORS):
            entries = [self._entry(j, int64(s)) for s in range(count)]
            plan.append([(offset, self._part_masks(mask, parts)) for offset, mask in entries])

        def values(j: int, channel: Any) -> list[Any]:
            raw = [self.cells.zero] * parts
            for offset, masks in plan[j]:
                raw = self._merge(raw, channel, offset, masks)
            return self._split(raw)

        self._each_channel(values, list(range(TILE_VECTORS)))

    def _general(self, parts: int) -> None:
        b, v = self.builder, self.cells
        slots = [cgutils.alloca_once(b, v.vector) for _ in range(parts)]

        def values(j: int, channel: Any) -> list[Any]:
            for slot in slots:
                b.store(v.zero, slot)
            with cgutils.for_range(b, self.count) as loop:
                offset, mask = self._entry(j, loop.index)
                merged = self._merge([b.load(slot) for slot in slots], channel, offset, self._part_masks(mask, parts))
                for slot, raw in zip(slots, merged):
                    b.store(raw, slot)
            return self._split([b.load(slot) for slot in slots])

        self._each_channel(values, list(range(TILE_VECTORS)))

    def _part_masks(self, mask: Any, parts: int) -> list[Any]:
        masks = [self.v.mask_of(self.builder.lshr(mask, int64(part * self.v.lanes))) for part in range(parts)]
        return masks if self.components == 1 else [self.v.interleave(mask, mask) for mask in masks]

    def _merge(self, raw: list[Any], channel: Any, offset: Any, masks: list[Any]) -> list[Any]:
        v, start = self.cells, self.cells.at(channel, offset)
        return [v.masked_load(v.at(start, part * v.lanes), mask, old) for part, (mask, old) in enumerate(zip(masks, raw))]

    def _split(self, raw: list[Any]) -> list[Any]:
        """The components of every cell of one part, of every second cell of two."""
        step = self.components * len(raw)
        if step == 1:
            return raw
        return [self.s.shuffle(raw[0], raw[-1], range(first, step * self.s.lanes, step)) for first in range(self.components)]

    # ---- gathers -------------------------------------------------------------------------------------------------
    def gathered(self) -> None:
        """Any spacing: the entries of a vector become one vector of indices and one mask."""
        b, v = self.builder, self.s
        spread = b.mul(v.iota, v.splat(self.lane_step))
        for j in range(TILE_VECTORS):
            indices, mask = cgutils.alloca_once(b, v.indices), cgutils.alloca_once(b, v.mask)
            b.store(spread, indices)
            b.store(v.no_lane, mask)
            with cgutils.for_range(b, self.count) as loop:
                offset, bits = self._entry(j, loop.index)
                lanes = v.mask_of(bits)
                b.store(b.select(lanes, b.add(v.splat(offset), spread), b.load(indices)), indices)
                b.store(b.or_(lanes, b.load(mask)), mask)
            self._each_channel(partial(self._gather, b.load(indices), b.load(mask)), [j])

    def _gather(self, indices: Any, mask: Any, _: int, channel: Any) -> list[Any]:
        return [self.s.gather(self.s.at(channel, component), indices, mask) for component in range(self.components)]
