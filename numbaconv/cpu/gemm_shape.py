"""An implicit GEMM's sizes: how a problem falls into parts and blocks, and what it costs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..arrays import ELEMENTS
from ..axes import Axis, Part, axis_parts, cut_where_taps_change, pixel_count, tap_count, taps_that_meet
from ..problem import Problem
from . import turned_shape
from .elements import Kind, kind_of
from .gemm import LINE_BYTES, ROWS, TILE_ROWS, TILE_VECTORS
from .gemm_costs import (
    COPY_CYCLES,
    COPY_START_CYCLES,
    CYCLES_A_SECOND,
    FAR_CYCLES,
    GROUP_CYCLES,
    LINE_CYCLES,
    PACKING_CYCLES,
    PANEL_CYCLES,
    PART_CYCLES,
    PRODUCT_CYCLES,
    ROW_CYCLES,
    SCATTER_CYCLES,
    TABLE_CYCLES,
    blocking,
    tile_cycles,
)
from .target import target

MOST_PANELS = 16  # of a task
STAGED_BYTES = 256 << 10  # of results that are staged, unless one panel needs more
FAR_BYTES = 1 << 20  # of a group's weight, from which on it does not stay near
MOST_PARTS = 64  # of a transposed convolution
MOST_PIECES, SHORTEST_PIECE = 5, 6  # of an axis that is cut; cells of one, on average
WORTH_CUTTING = 0.9  # share of the time that must be left


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
        if len(everything) > 1 or p.padding_mode != "zeros":
            return everything
        options = []
        for (axis,), size in zip(whole, p.source_size):
            cut = cut_where_taps_change(axis, size)
            options.append([[axis], cut] if 1 < len(cut) <= min(MOST_PIECES, axis.size // SHORTEST_PIECE) else [[axis]])
        if all(len(option) == 1 for option in options):
            return everything
        best = min((_products(axes) for axes in itertools.product(*options)), key=self._fewest_cycles)
        return best if self._fewest_cycles(best) < WORTH_CUTTING * self._fewest_cycles(everything) else everything

    def _fewest_cycles(self, parts: list[Part]) -> float:
        """In either form."""
        turned = sum(map(self._turned_cycles, parts)) if self.turnable else math.inf
        return min(self.cycles(parts), turned)

    @property
    def has_remainders(self) -> bool:
        """Whether parts have taps, and so a packed weight, of their own."""
        return self.problem.transposed and max(self.problem.stride) > 1

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
        return self.lanes if self.turned else TILE_ROWS

    @cached_property
    def stage(self) -> int:
        """Bytes of a panel's results that are staged."""
        return (self.rows + TILE_ROWS) * TILE_VECTORS * self.lanes * self.kind.sums.itemsize

    @cached_property
    def staged_panels(self) -> int:
        """Panels of a task whose results are staged."""
        return max(1, min(STAGED_BYTES // self.stage, MOST_PANELS))

    @cached_property
    def narrows(self) -> bool:
        """Whether results are not stored as the sums are."""
        return ELEMENTS[self.problem.out_dtype].storage.itemsize != self.kind.sums.itemsize

    @property
    def turned_bytes(self) -> int:
        """Upper bound of what a thread allocates where roles are turned."""
        p, most = self.problem, 0
        for part in self.parts:
            at_once, taps = blocking(self.channels, tap_count(part), self.kind)
            lines = turned_shape.lines_of(part, p.source_size, (1, 1, 1), (1, 1, 1))
            most = max(most, turned_shape.workspace(lines, taps, at_once, self.rows, self.lanes, self.kind.sums.itemsize))
        return most

    @cached_property
    def turned(self) -> bool:
        """Whether pixels are broadcast and the rows of the weight are lanes: where few pixels would leave lanes empty, or their copies in
        the order of the products would take long.

        The order of every sum stays the same, and so do its bits.
        """
        return self.turnable and self.turned_cycles < self.panel_cycles

    @property
    def plain(self) -> bool:
        """Whether an element is one real number of a product of its own."""
        return self.kind.components == self.kind.together == 1

    @property
    def turnable(self) -> bool:
        return self.plain and self.lanes % TILE_ROWS == 0

    @cached_property
    def in_place(self) -> bool:
        """Whether kernels can read a weight where the user keeps it: each part has one tap, and multiplies no zeros that are not there."""
        p = self.problem
        if any(tap_count(part) > 1 for part in self.parts):
            return False
        axes = [pair for part in self.parts if tap_count(part) for pair in zip(part, p.source_size)]
        return not p.transposed or all(taps_that_meet(axis, size) == 1 for axis, size in axes)

    @cached_property
    def panel_cycles(self) -> float:
        """With panels."""
        return self.cycles(self.parts)

    @cached_property
    def turned_cycles(self) -> float:
        """With turned roles."""
        return sum(self._turned_cycles(part) for part in self.parts)

    @cached_property
    def turned_tasks(self) -> float:
        """Tasks of an image that use an element of the weight, on average."""
        sizes = [tap_count(part) * math.prod(self._turned_blocks(part)[0].counts) for part in self.parts]
        return sum(sizes) / max(1, sum(map(tap_count, self.parts)))

    def _turned_cycles(self, part: Part) -> float:
        return self._turned_blocks(part)[1] * self._share_met(part)

    def _turned_blocks(self, part: Part) -> tuple[turned_shape.Blocks, float]:
        """On one thread, in contiguous arrays."""
        p = self.problem
        strides = [math.prod(p.source_size[axis + 1 :]) for axis in range(3)], [math.prod(p.result_size[axis + 1 :]) for axis in range(3)]
        return self.turned_blocks(turned_shape.lines_of(part, p.source_size, *strides), p.groups, 1)

    def turned_blocks(self, lines: turned_shape.Lines, members: int, threads: int) -> tuple[turned_shape.Blocks, float]:
        at_once = blocking(self.channels, math.prod(len(line.shifts) for line in lines), self.kind)[0]
        return turned_shape.blocks(lines, self.channels, at_once, self.rows, self.lanes, members, threads)

    @cached_property
    def weight_starts(self) -> list[int]:
        """Where each part's weight starts in the packed one; the last is the end.  Parts with all taps share one."""
        row = self.problem.groups * self.row_blocks * self.block * self.kind.products(self.channels)
        if not self.has_remainders:
            return [0] * len(self.parts) + [row * tap_count(self.parts[0])]
        return [0, *itertools.accumulate(row * tap_count(part) for part in self.parts)]

    @cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        return (self.turned_cycles if self.turned else self.panel_cycles) / CYCLES_A_SECOND

    def cycles(self, parts: list[Part]) -> float:
        """With panels."""
        cycles = 0.0
        for part in parts:
            taps, pixels = tap_count(part), pixel_count(part)
            vectors = -(-pixels // self.lanes)
            panels, products = -(-vectors // TILE_VECTORS), self.kind.products(self.channels) * taps
            channels, at_once = blocking(self.channels, taps, self.kind)
            blocks = -(-self.channels // channels)
            tables = panels * taps * (blocks if at_once < taps else 1)  # made again for each block where one does not hold all taps
            copies, step = vectors * taps * self.channels * self.kind.components, min(part[2].step, 3)
            rows = 0.0 if part[2].size == self.problem.source_size[2] and len(part[2].taps) == 1 else (self.lanes - 1) / part[2].size
            copy = panels * taps * blocks * COPY_START_CYCLES + copies * (COPY_CYCLES[step] + min(rows, self.lanes - 1) * ROW_CYCLES[step])
            tiles = self._tiles(self.rows, pixels)
            multiply = products * sum(tile_cycles(high, wide, PRODUCT_CYCLES[self.kind.sums.name]) * count for high, wide, count in tiles)
            if products * self.rows * self.kind.sums.itemsize > FAR_BYTES:
                together = self.staged_panels if len(parts) > 1 or self.narrows else MOST_PANELS
                multiply += products * self.rows * FAR_CYCLES * -(-panels // together)
            each = GROUP_CYCLES + panels * PANEL_CYCLES + self._share_met(part) * (copy + multiply) + self._store_cycles(pixels)
            cycles += PART_CYCLES + self.problem.groups * each + tables * TABLE_CYCLES * self._tabled(part)
        return cycles

    def _store_cycles(self, pixels: int) -> float:
        """To write the results of a group."""
        results, between = self.rows * pixels, self.problem.transposed and self.problem.stride[2] > 1
        return results * (self.kind.sums.itemsize / LINE_BYTES * LINE_CYCLES + between * SCATTER_CYCLES)

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


class Division(NamedTuple):
    """How a part is cut into tasks: runs of panels, of which the first ``short`` have one panel less than ``panels``, times ``splits``
    shares of the rows, which all pack their run's panels."""

    panels: int
    short: int
    runs: int
    splits: int


@functools.cache
def division(pixels: int, rows: int, lanes: int, channels: int, members: int, most: int, repeat: int, near: int, threads: int) -> Division:
    """The division with which threads are done soonest, for so many pixels of each of ``members`` images and groups.

    most : panels of a run; repeat : of as many panels the tables serve again; near : tiles of a task whose sums stay near.
    """
    width = TILE_VECTORS * lanes
    panels, units = -(-pixels // width), -(-rows // TILE_ROWS)
    fewest = -(-panels // most)

    def least(panels: int) -> int:
        return max(1, min(units, -(-panels * units // near)))

    whole = _even(panels, fewest, least(-(-panels // fewest))) if most % repeat else Division(most, 0, fewest, least(most))
    options = [whole]
    for runs in range(fewest, min(panels, 8 * threads // members) + 1 if threads > 1 else 0):
        first = least(-(-panels // runs))
        options += [_even(panels, runs, splits) for splits in range(first, min(units, max(first, 8 * threads // (members * runs))) + 1)]

    def time(d: Division) -> float:
        """Cycles a product until the last thread is done."""
        alone = d.runs - d.short == 1  # the last run is the longest, and lacks pixels
        longest = max(width * (d.panels - 1), pixels - width * (panels - d.panels)) if alone else width * d.panels
        vectors = -(-longest // lanes)
        tiles = -(-units // d.splits) * _across(vectors)
        tables = 0.0 if d is whole and d.panels % repeat == 0 else d.panels * TABLE_CYCLES / channels
        far = -(-units // d.splits) * TILE_ROWS * FAR_CYCLES
        return -(-members * d.runs * d.splits // threads) * (tiles + vectors * PACKING_CYCLES + tables + far)

    return min(options, key=time)


def _even(panels: int, runs: int, splits: int) -> Division:
    most = -(-panels // runs)
    return Division(most, most * runs - panels, runs, splits)


def _across(vectors: int) -> float:
    """Cycles a product of a row of tiles that covers so many vectors."""
    cycles = 0.0
    while vectors > 0:
        cycles += tile_cycles(TILE_ROWS, min(vectors, TILE_VECTORS), PRODUCT_CYCLES["float32"])
        vectors -= TILE_VECTORS
    return cycles
