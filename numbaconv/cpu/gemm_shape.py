"""An implicit GEMM's sizes: how a problem falls into parts and blocks, and what it costs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..axes import Axis, Part, axis_parts, cut_where_taps_change, pixel_count, tap_count, taps_that_meet
from ..problem import Problem
from .elements import Kind, kind_of
from .gemm import ROWS, SPREAD, TILE_ROWS, TILE_VECTORS
from .target import target

DEPTH = 192  # products of one K block: a panel then stays in the first-level cache
MOST_PANELS = 16  # of a task
MOST_PARTS = 64  # of a transposed convolution
MOST_PIECES, SHORTEST_PIECE = 5, 6  # of an axis that is cut; cells of one, on average
WORTH_CUTTING, WORTH_TURNING = 0.9, 0.97  # share of the time that must be left
MOST_TURNED_BYTES = 1 << 20  # of the sums of a panel whose roles are turned

# The cost model, in cycles: to table a tap of a panel, to begin to copy it, to copy a vector of one channel with its lanes 1, 2 or
# more cells apart, to multiply a vector by one weight and add it, to load an operand, until a sum can be added to again, to store a tile,
# to turn a vector of sums.
TABLE_CYCLES = 50.0
COPY_START_CYCLES = 20.0
COPY_CYCLES = {1: 2.5, 2: 4.0, 3: 26.0}
PRODUCT_CYCLES = {"float32": 0.5, "float64": 0.5, "uint32": 0.5 if target().fused_pairs else 1.0, "int32": 1.4, "int64": 2.0}
LOAD_CYCLES, LATENCY_CYCLES = 0.5, 4.0
PREFETCHES = 2 if SPREAD else 0  # with each product
STORE_CYCLES = 60.0
TURN_CYCLES = 6.0
PACKING_CYCLES, FAR_CYCLES = 6.0, 0.25  # a product, in divisions: to pack a vector of pixels, to read a row's weight from far away
CYCLES_A_SECOND = 2.5e9


@dataclass(frozen=True)
class GemmShape:
    """What depends on the problem alone."""

    problem: Problem

    @cached_property
    def parts(self) -> list[Part]:
        """What is computed one after the other: of a gradient the remainders modulo its stride, else the whole result, or pieces of it.

        Where dilation keeps taps far apart, pieces that one of them reads nothing but padding for leave it out; panels of whole rows
        could not.
        """
        p = self.problem
        whole = [axis_parts(p, axis) for axis in range(3)]
        everything = _products(whole)
        if p.transposed or p.padding_mode != "zeros":
            return everything
        options = []
        for (axis,), size in zip(whole, p.source_size):
            cut = cut_where_taps_change(axis, size)
            options.append([[axis], cut] if 1 < len(cut) <= min(MOST_PIECES, axis.size // SHORTEST_PIECE) else [[axis]])
        best = min((_products(axes) for axes in itertools.product(*options)), key=self.cycles)
        return best if self.cycles(best) < WORTH_CUTTING * self.cycles(everything) else everything

    @property
    def kind(self) -> Kind:
        return kind_of(self.problem.dtype)

    @cached_property
    def lanes(self) -> int:
        return target().lanes(self.kind.sums.name)

    @cached_property
    def channels(self) -> int:
        """Source channels of one group."""
        return self.problem.source_channels // self.problem.groups

    @cached_property
    def rows(self) -> int:
        """Rows of one group's weight: the components of its result channels."""
        return self.problem.result_channels // self.problem.groups * self.kind.components

    @cached_property
    def row_blocks(self) -> int:
        return -(-self.rows // self.block)

    @property
    def block(self) -> int:
        """Rows of the weight that lie side by side."""
        return TILE_VECTORS * self.lanes if self.turned else TILE_ROWS

    @cached_property
    def turned(self) -> bool:
        """Whether pixels are broadcast and the rows of the weight are lanes: where few pixels would leave lanes empty.

        The order of every sum stays the same, and so do its bits.
        """
        width = TILE_VECTORS * self.lanes
        if self.kind.components > 1 or self.rows < width or width % TILE_ROWS:
            return False
        if width * (self.rows + width) * self.kind.sums.itemsize > MOST_TURNED_BYTES:
            return False
        return self.cycles(self.parts, True) < WORTH_TURNING * self.cycles(self.parts, False)

    @cached_property
    def weight_starts(self) -> list[int]:
        """Where each part's weight starts in the packed one; the last is the end.  Parts with all taps share one."""
        row = self.problem.groups * self.row_blocks * self.block * self.kind.products(self.channels)
        if not self.problem.transposed:
            return [0] * len(self.parts) + [row * tap_count(self.parts[0])]
        return [0, *itertools.accumulate(row * tap_count(part) for part in self.parts)]

    @cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        return self.cycles(self.parts, self.turned) / CYCLES_A_SECOND

    def cycles(self, parts: list[Part], turned: bool = False) -> float:
        cycles = 0.0
        for part in parts:
            taps, pixels = tap_count(part), pixel_count(part)
            vectors = -(-pixels // self.lanes)
            panels, products = -(-vectors // TILE_VECTORS), self.kind.products(self.channels) * taps
            blocks = -(-self.channels // blocking(self.channels, taps, self.kind)[0])  # of channels
            copies = vectors * taps * self.channels * self.kind.components
            copy = panels * taps * blocks * COPY_START_CYCLES + copies * COPY_CYCLES[min(part[2].step, 3)]
            tiles = self._tiles(pixels, self.rows) if turned else self._tiles(self.rows, pixels)
            multiply = products * sum(tile_cycles(high, wide, PRODUCT_CYCLES[self.kind.sums.name]) * count for high, wide, count in tiles)
            if turned:
                multiply += vectors * -(-self.rows // self.lanes) * self.lanes * TURN_CYCLES
            store, met = sum(count for *_, count in tiles) * blocks * STORE_CYCLES, self._share_met(part)
            cycles += self.problem.groups * met * (copy + multiply + store) + panels * taps * TABLE_CYCLES * self._tabled(part)
        return cycles

    def _tiles(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        """Rows, vectors and number of the tiles that a product of so many rows and columns takes."""
        vectors, left = -(-columns // self.lanes), rows % TILE_ROWS
        down = [(TILE_ROWS, rows // TILE_ROWS), (min(n for n in ROWS if n >= left), int(left > 0))]
        across = [(TILE_VECTORS, vectors // TILE_VECTORS), (vectors % TILE_VECTORS, int(vectors % TILE_VECTORS > 0))]
        return [(high, wide, n * m) for high, n in down for wide, m in across if n and m]

    def _share_met(self, part: Part) -> float:
        """Share of the taps that panels take: those that meet the source for one of their pixels."""
        if self.problem.padding_mode != "zeros" or not tap_count(part):
            return 1.0
        met = [taps_that_meet(axis, size) for axis, size in zip(part, self.problem.source_size)]
        if met[2] % 1 and part[2].size < MOST_PANELS * TILE_VECTORS * self.lanes:
            met[2] = len(part[2].taps)
        return math.prod(met) / tap_count(part)

    def _tabled(self, part: Part) -> float:
        """Share of the panels that need tables of their own: all, or those near the borders of depth and height."""
        if self.columns(part[2].size) > MOST_PANELS:
            return 1.0
        shared = 1.0
        for axis, size in zip(part[:2], self.problem.source_size):
            first = -min(0, *axis.shifts, 0) // axis.step
            last = min(axis.size - 1, (size - 1 - max(0, *axis.shifts, 0)) // axis.step)
            shared *= max(0, last - first + 1) / axis.size
        return 1.0 - shared

    def columns(self, across: int) -> int:
        """Panels until one begins in the first one's column, in rows of so many pixels."""
        return across // math.gcd(across, TILE_VECTORS * self.lanes)

    def slots(self, columns: int) -> int:
        """Entries that one vector of one tap may need where a row has so many pixels."""
        if self.problem.padding_mode != "zeros":
            return self.lanes
        rows = min(self.lanes, (self.lanes - 2) // columns + 2)
        return 4 if rows == 3 else rows


def _products(axes: Iterable[list[Axis]]) -> list[Part]:
    depth, height, width = axes
    return list(itertools.product(depth, height, width))


def blocking(channels: int, kernel: int, kind: Kind) -> tuple[int, int]:
    """Channels and taps of one K block, as even as they can be; more than one block of taps only for the channels of one product."""
    taps, units, depth = max(kernel, 1), -(-channels // kind.together), DEPTH // kind.components
    most = max(1, depth // taps)
    return -(-units // -(-units // most)) * kind.together, -(-taps // -(-taps // depth))


class Division(NamedTuple):
    """How a part is cut into tasks: runs of panels, of which the first ``short`` have one panel less than ``panels``, times ``splits``
    shares of the rows, which all pack their run's panels."""

    panels: int
    short: int
    runs: int
    splits: int


@functools.cache
def division(
    pixels: int, rows: int, lanes: int, turned: bool, channels: int, members: int, most: int, repeat: int, threads: int
) -> Division:
    """The division with which threads are done soonest, for so many pixels of each of ``members`` images and groups.

    most : panels of a run; repeat : of as many panels the tables serve again.
    """
    width, unit = TILE_VECTORS * lanes, lanes if turned else TILE_ROWS
    panels, units = -(-pixels // width), -(-rows // unit)
    fewest = -(-panels // most)
    whole = _even(panels, fewest, 1) if most % repeat else Division(most, 0, fewest, 1)
    options = [whole]
    for runs in range(fewest, min(panels, 8 * threads // members) + 1 if threads > 1 else 0):
        options += [_even(panels, runs, splits) for splits in range(1, min(units, 8 * threads // (members * runs)) + 1)]

    def time(d: Division) -> float:
        """Cycles a product until the last thread is done."""
        alone = d.runs - d.short == 1  # the last run is the longest, and lacks pixels
        longest = max(width * (d.panels - 1), pixels - width * (panels - d.panels)) if alone else width * d.panels
        vectors, shares = -(-longest // lanes), [(units * i // d.splits, units * (i + 1) // d.splits) for i in range(d.splits)]
        if turned:
            tiles = math.ceil(2 * longest / TILE_ROWS) / 2 * max(_across(*share) for share in shares)
        else:
            tiles = max(last - first for first, last in shares) * _across(0, vectors)
        tables = 0.0 if d is whole and d.panels % repeat == 0 else d.panels * TABLE_CYCLES / channels
        far = -(-units // d.splits) * unit * FAR_CYCLES
        return -(-members * d.runs * d.splits // threads) * (tiles + vectors * PACKING_CYCLES + tables + far)

    return min(options, key=time)


def _even(panels: int, runs: int, splits: int) -> Division:
    most = -(-panels // runs)
    return Division(most, most * runs - panels, runs, splits)


@functools.cache
def _across(first: int, last: int) -> float:
    """Cycles a product of a row of tiles that covers the vectors [first, last), with borders at multiples of TILE_VECTORS."""
    cycles = 0.0
    while first < last:
        after = min(last, first - first % TILE_VECTORS + TILE_VECTORS)
        cycles, first = cycles + tile_cycles(TILE_ROWS, after - first, PRODUCT_CYCLES["float32"]), after
    return cycles


def tile_cycles(rows: int, vectors: int, product: float) -> float:
    """Of one product of a tile: the multiply-adds, two loads or prefetches a cycle, or the latency of a short chain."""
    return max(rows * vectors * product, (rows + vectors + PREFETCHES) * LOAD_CYCLES, LATENCY_CYCLES)
