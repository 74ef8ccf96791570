"""The filter algorithm set up for forward convolutions: the order of the packed weight, and the geometry and tables of its tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import AnyArray
from ..layouts import Layouts
from ..problem import Problem
from . import filter_tasks as tasks
from .calls import Call
from .elements import NUMBERS
from .filter_layout import Layout, layout_of
from .layouts import address
from .threads import most_threads


@dataclass(frozen=True)
class FilterSetup:
    """The algorithm set up for a forward convolution.

    ``pack`` returns weight and bias in blocks of ``tile.channels`` result channels, and whether the weight is finite (int64).
    """

    problem: Problem

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.problem)

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates."""
        return most_threads() * max(layout_of(self.problem, contiguous).workspace for contiguous in (True, False))

    @property
    def packed_bytes(self) -> int:
        p, t = self.problem, self.layout.tile
        channels = p.groups * self.layout.blocks * t.channels
        return channels * (p.in_per_group * p.taps + 1) * self.layout.itemsize + 8

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        finite = np.array([np.isfinite(weight).all()], np.int64)
        return self.pack_weight(weight, self._order), self.pack_bias(bias), finite

    def pack_weight(self, weight: AnyArray, order: NDArray[np.intp]) -> AnyArray:
        """The packed weight, from one whose elements of a group, as they follow one another, are taken in this ``order``."""
        layout, channels = self.layout, self.layout.tile.channels
        taken = weight.reshape(self.problem.groups, -1).take(order, axis=1).astype(layout.sums, copy=False)
        own = self.problem.out_per_group - (layout.blocks - 1) * channels
        if own < channels:
            taken.reshape(self.problem.groups, layout.blocks, -1, channels)[:, -1, :, own:] = 0
        return taken.reshape(-1)

    def pack_bias(self, bias: AnyArray | None) -> AnyArray:
        p, layout = self.problem, self.layout
        padded = np.zeros((p.groups, layout.blocks * layout.tile.channels), layout.sums)
        if bias is not None:
            padded[:, : p.out_per_group] = bias.reshape(p.groups, -1)
        return padded.reshape(-1)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        p = self.problem
        shape = p.out_per_group, p.in_per_group, *p.kernel
        return self.order(np.arange(math.prod(shape)).reshape(shape))

    def order(self, places: NDArray[np.intp]) -> NDArray[np.intp]:
        """A group's places (result channels, source channels, *kernel) as the packed weight has them: blocks of result channels, bands.

        Result channels that fill the last block repeat the last one.
        """
        layout, channels = self.layout, self.layout.tile.channels
        split = places[np.minimum(np.arange(layout.blocks * channels), len(places) - 1)].reshape(layout.blocks, channels, *places.shape[1:])
        parts = []
        for height, row, count in layout.bands:
            rows = split[..., row : row + height * count, :]
            rows = rows.reshape(*rows.shape[:4], count, height, places.shape[4])
            # plane, channel, band, column, row, result channel
            parts.append(rows.transpose(0, 3, 2, 4, 6, 5, 1).reshape(len(rows), math.prod(rows.shape[1:])))
        return np.concatenate(parts, axis=1).reshape(-1)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        self.call(source, packed, result).run(address(source), address(result))

    def call(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> Call:
        """``run``."""
        weight, bias, finite = packed
        layout, g, tables = self._layouts(source, result, bool(finite[0]))
        return Call(tasks.worker(layout.tile), (g, tables, weight, bias), int(g[tasks.TASKS]), len(source) * layout.seconds)

    @cached_property
    def _layouts(self) -> Layouts[Placed]:
        return Layouts(self._place)

    def _place(self, source: AnyArray, result: AnyArray, finite: bool) -> Placed:
        contiguous = source.strides[4] == source.itemsize
        layout = layout_of(self.problem, contiguous)
        g, tables = _tables(layout)
        g[tasks.SOURCE_STEP : tasks.SOURCE_STEP + 5], g[tasks.RESULT_STEP : tasks.RESULT_STEP + 5] = source.strides, result.strides
        g[tasks.COLUMN_STEP], g[tasks.STORED] = result.strides[4] // result.itemsize, NUMBERS[self.problem.out_dtype]
        g[tasks.ROW_STEP] = g[tasks.RESULT_STEP + 4] * layout.width if layout.folded else g[tasks.RESULT_STEP + 3] * layout.spacing
        g[tasks.SKIPPING], g[tasks.VECTORS] = finite, contiguous and self.problem.stride[2] <= 2
        g[tasks.SOURCE_END] = source.itemsize + sum((n - 1) * max(0, step) for n, step in zip(source.shape, source.strides))
        shares = -(-self.problem.groups // layout.groups_at_once)
        g[tasks.TASKS] = len(source) * shares * self.problem.out_size[0] * layout.downs * layout.acrosses
        return Placed(layout, g, tables)


class Placed(NamedTuple):
    """What a call with arrays of certain layouts needs: how it is cut, the geometry and the tables."""

    layout: Layout
    geometry: NDArray[np.int64]
    tables: NDArray[np.int64]


def _tables(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Geometry without the fields that the arrays decide, and the tables."""
    p, t, g = layout.problem, layout.tile, np.zeros(tasks.FIELDS, np.int64)
    g[tasks.LOADED] = NUMBERS[p.dtype]
    g[tasks.GROUPS], g[tasks.SOURCES], g[tasks.RESULTS], g[tasks.BLOCKS] = p.groups, p.in_per_group, p.out_per_group, layout.blocks
    g[tasks.DEPTH], g[tasks.HEIGHT], g[tasks.WIDTH] = p.out_size
    g[tasks.PLANES], _, g[tasks.TAPS] = p.kernel
    for axis in range(2):
        met = (p.out_size[axis] - 1) * p.stride[axis] + (p.kernel[axis] - 1) * p.dilation[axis] + 1
        g[tasks.SIZE + axis], g[tasks.LOW + axis], g[tasks.MET + axis] = p.in_size[axis], p.padding[axis][0], met
    g[tasks.DEPTH_STRIDE], g[tasks.ROW_STRIDE], g[tasks.COLUMN_STRIDE] = p.stride
    g[tasks.DEPTH_GAP], _, g[tasks.COLUMN_GAP] = p.dilation
    g[tasks.COLUMN_REACH], g[tasks.SOURCE_WIDTH], g[tasks.LEFT] = layout.reach, p.in_size[2], p.padding[2][0]
    g[tasks.MODE], g[tasks.STRAIGHT], g[tasks.FOLDED] = PADDING_MODES.index(p.padding_mode), layout.straight, layout.folded
    g[tasks.TILE_CHANNELS], g[tasks.TILE_ROWS], g[tasks.TILE_COLUMNS], g[tasks.HEIGHTS] = t.channels, t.rows, layout.width, len(t.heights)
    g[tasks.SPACING], g[tasks.UNIT], g[tasks.REMAINDERS], g[tasks.TURNS], g[tasks.TILES] = (
        layout.spacing,
        layout.unit,
        len(layout.remainders),
        layout.turns,
        layout.tiles,
    )
    g[tasks.COLUMNS], g[tasks.PHASE_CELLS], g[tasks.GROUPS_AT_ONCE] = layout.columns, layout.phase_cells, layout.groups_at_once
    g[tasks.ENTRIES], g[tasks.COPIES], g[tasks.SCRATCH], g[tasks.MASKS] = layout.entries, layout.copies, layout.scratch, layout.masks
    g[tasks.BLOCK_WEIGHTS] = p.in_per_group * p.taps * t.channels
    bands, places = _bands(layout)
    parts = [np.array(layout.remainders, np.int64), _taps(layout), bands, places]
    starts = np.cumsum([0] + [len(part) for part in parts])
    g[tasks.REMAINDER_TABLE], g[tasks.TAP_TABLE], g[tasks.BAND_TABLE] = starts[:3]
    bands[::4] += starts[3]
    return g, np.concatenate(parts)


def _bands(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first place, bands a kernel plane, first weight, weights a band) for each height; the places of all bands in the lines, in bytes."""
    p = layout.problem
    bands: list[int] = []
    places: list[int] = []
    for height, row, count in layout.bands:
        row_weights = p.kernel[0] * p.in_per_group * p.kernel[2] * layout.tile.channels
        bands += [len(places), p.in_per_group * count, row * row_weights, p.kernel[2] * height * layout.tile.channels]
        starts = [layout.place(row + i * height) for i in range(count)]
        for plane, channel in product(range(p.kernel[0]), range(p.in_per_group)):
            first = (channel * p.kernel[0] + plane) * len(layout.remainders) * layout.turns
            places += [8 * (first + start) for start in starts]
    return np.array(bands, np.int64), np.array(places, np.int64)


def _taps(layout: Layout) -> NDArray[np.int64]:
    """Byte shift of each column of the kernel."""
    cells, stride = np.arange(layout.problem.kernel[2], dtype=np.int64) * layout.problem.dilation[2], layout.problem.stride[2]
    return (cells % stride * layout.phase_cells + cells // stride) * layout.itemsize
