"""How the filter algorithm cuts a problem into tiles and tasks, and what that is estimated to cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import ELEMENTS
from ..problem import Problem
from .filter_kernel import NARROW, SEVERAL, WIDE, Tile
from .target import target

MOST_SCRATCH = 1 << 20  # bytes
SCRATCH_BYTES = 32 << 10  # of a task, where the kernel lets it: it is then read from the first-level cache
ROW_BYTES = 2 << 10  # of result columns in one task
FOLDED_TILES = 8  # of a task
TASK_PRODUCTS = 1 << 17  # long against a task's scheduling, short against the whole
ALIGNMENT = 64

# The cost model, in cycles: of a task, of a tile, of each of its vectors, of a band, of a line, of copying a vector whose columns lie 1,
# 2 or more apart, of loading a vector that crosses cache lines, of a vector's multiply-add.  Memory beyond the caches is left out: every
# algorithm writes the same result.
TASK_CYCLES = 300.0
TILE_CYCLES = 30.0
STORE_CYCLES = 1.0
BAND_CYCLES = 4.0
LINE_CYCLES = 2.0
COPY_CYCLES = {1: 4.0, 2: 5.0, 3: 60.0}
LOAD_CYCLES = 1.7
PRODUCT_CYCLES = {"float32": 0.5, "float64": 0.5, "int32": 1.4, "int64": 2.0}
CYCLES_A_SECOND = 2.5e9


@dataclass(frozen=True)
class Layout:
    """A tile shape, and whether source rows are read in place, for one problem.

    Kernel rows are taken together in bands where the dilation along the rows is a multiple of the stride.  The lines that they read are
    then neighbours in the table of lines, where neighbours are ``unit`` source rows apart, and a tile's result rows are ``spacing``
    rows apart.  A result of a single row that one kernel row makes is *folded*: a tile's rows are then stretches of it that follow one
    another.  Neither reading in place nor folding changes the order of a sum.
    """

    problem: Problem
    tile: Tile
    straight: bool

    @property
    def folded(self) -> bool:
        return self.problem.out_size[1] == self.problem.kernel[1] == 1

    # ---- rows ------------------------------------------------------------------------------------------------------
    @cached_property
    def gap(self) -> int:
        """Dilation along the rows; that of a single kernel row does not matter."""
        return self.problem.dilation[1] if self.problem.kernel[1] > 1 else self.problem.stride[1]

    @property
    def together(self) -> bool:
        return self.gap % self.problem.stride[1] == 0

    @property
    def unit(self) -> int:
        return self.gap if self.together else self.problem.stride[1]

    @property
    def spacing(self) -> int:
        return self.gap // self.problem.stride[1] if self.together else 1

    @cached_property
    def bands(self) -> list[tuple[int, int, int]]:
        """(height, first kernel row, number of bands) for each height."""
        found, row = [], 0
        for height in self.tile.heights:
            count = (self.problem.kernel[1] - row) // height if self.together or height == 1 else 0
            found.append((height, row, count))
            row += height * count
        return found

    @cached_property
    def remainders(self) -> list[int]:
        """Remainders modulo ``unit`` of the source rows that taps meet."""
        if self.together:
            return [part * self.problem.stride[1] for part in range(self.spacing)]
        return sorted({row * self.gap % self.unit for row in range(self.problem.kernel[1])})

    def place(self, kernel_row: int) -> int:
        """Place, among the lines of one plane, of that which a block's first result row meets with this kernel row."""
        turn, remainder = divmod(kernel_row * self.gap, self.unit)
        return self.remainders.index(remainder) * self.turns + turn

    @cached_property
    def tiles(self) -> int:
        """Tile rows of a task."""
        p, step = self.problem, self.tile.rows * self.spacing
        if self.folded:
            return min(FOLDED_TILES, -(-p.out_size[2] // (self.tile.rows * self.width)))
        if self.straight:
            return _evenly(p.out_size[1], step, max(step, TASK_PRODUCTS // (p.in_per_group * p.out_per_group * p.taps * self.columns)))
        each = p.kernel[0] * p.in_per_group * self.line * self.itemsize  # bytes of one source row of every channel and kernel plane
        halo = (p.kernel[1] - 1) * self.gap
        fitting, fair = ((most // each - halo) // (step * p.stride[1]) for most in (SCRATCH_BYTES, MOST_SCRATCH // 2))
        return _evenly(p.out_size[1], step, max(1, fitting, min(fair, -(-halo // (step * p.stride[1])))) * step)

    @cached_property
    def turns(self) -> int:
        """Lines of one remainder."""
        beyond = self.tile.rows - 1 if self.folded else (self.problem.kernel[1] - 1) * self.gap // self.unit
        return self.tiles * self.tile.rows + beyond

    @cached_property
    def downs(self) -> int:
        """Tasks along the rows."""
        if self.folded:
            return 1
        return -(-self.problem.out_size[1] // (self.tiles * self.tile.rows * self.spacing))

    # ---- columns ---------------------------------------------------------------------------------------------------
    @property
    def sums(self) -> np.dtype[Any]:
        """Dtype of the sums, of lines that are copied and of the packed weight."""
        return ELEMENTS[self.problem.dtype].accumulator

    @property
    def itemsize(self) -> int:
        return self.sums.itemsize

    @property
    def lanes(self) -> int:
        return target().lanes(self.sums.name)

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return self.tile.vectors * self.lanes

    @property
    def reach(self) -> int:
        """Cells of a line that one result column meets, from the first to the last."""
        return (self.problem.kernel[2] - 1) * self.problem.dilation[2] + 1

    @cached_property
    def columns(self) -> int:
        """Result columns of a task: a multiple of the tile's, long against the columns that neighbours share."""
        if self.folded:
            return self.tiles * self.tile.rows * self.width
        most = max(ROW_BYTES // self.itemsize // self.problem.stride[2], 2 * self.reach, 1)
        return _evenly(self.problem.out_size[2], self.width, most) * self.width

    @cached_property
    def acrosses(self) -> int:
        """Tasks along the columns."""
        return -(-self.problem.out_size[2] // self.columns)

    @cached_property
    def phase_cells(self) -> int:
        """Cells of a line for each remainder of the column stride, rounded up to whole vectors."""
        p = self.problem
        cells = (min(self.columns, p.out_size[2]) - 1) * p.stride[2] + self.reach
        return -(-cells // (p.stride[2] * self.lanes)) * self.lanes

    @property
    def line(self) -> int:
        """Elements of a copied line."""
        return self.problem.stride[2] * self.phase_cells

    # ---- tasks -----------------------------------------------------------------------------------------------------
    @property
    def blocks(self) -> int:
        """Blocks of result channels in a group."""
        return -(-self.problem.out_per_group // self.tile.channels)

    @cached_property
    def entries(self) -> int:
        """Lines of one group in a task."""
        return self.problem.kernel[0] * self.problem.in_per_group * len(self.remainders) * self.turns

    @cached_property
    def groups_at_once(self) -> int:
        p = self.problem
        products = p.flops // 2 // max(1, p.batch * p.groups * p.out_size[0] * self.downs * self.acrosses)
        fitting = SCRATCH_BYTES // (8 * self.entries if self.straight else self.copies * self.line * self.itemsize)
        return max(1, min(p.groups, TASK_PRODUCTS // max(1, products), fitting))

    @property
    def copies(self) -> int:
        """Source rows that a task copies for one group, at most."""
        return 0 if self.straight else self.entries // self.turns if self.folded else self.entries

    @property
    def masks(self) -> int:
        """Masks of the lanes that each tap of each tile in a row reads, and of those that it may read."""
        return 2 * ((self.width if self.folded else self.columns) // self.lanes) * self.problem.kernel[2]

    @property
    def scratch(self) -> int:
        """Elements of the copies, of a line of zeros and of what a tile reads beyond it."""
        return (self.groups_at_once * self.copies + 1) * self.line + self.width

    @property
    def numbers(self) -> int:
        """Numbers of a task's tables: lines, rows, copies, masks of tiles and of a line to be copied, bands."""
        tables = self.groups_at_once * self.entries + len(self.remainders) * self.turns + 2 * self.copies + self.masks
        return tables + self.line // self.lanes + 3 * len(self.tile.heights)

    @cached_property
    def workspace(self) -> int:
        """Bytes of one thread."""
        stage = self.tile.channels * self.tile.rows * self.width
        return (self.scratch + stage) * self.itemsize + ALIGNMENT + 8 * self.numbers

    @cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        p, t = self.problem, self.tile
        met = self._share_met
        taps = 0.0
        for height, _, count in self.bands:
            loads, products = (t.rows + height - 1) * t.vectors, t.rows * t.vectors * t.channels * height
            # A masked load takes a multiply-add's place.
            cycles = max(loads * LOAD_CYCLES, products * PRODUCT_CYCLES[self.sums.name] + loads / 2)
            taps += count * p.kernel[0] * met * p.in_per_group * (BAND_CYCLES + p.kernel[2] * cycles)
        tile = TILE_CYCLES + t.channels * t.rows * t.vectors * STORE_CYCLES + taps
        planes = p.groups * p.out_size[0]
        tasks = planes * self.downs * self.acrosses
        copying = met * self.copies * self.line / self.lanes * COPY_CYCLES[min(p.stride[2], 3)]
        cycles = tasks * (TASK_CYCLES / self.groups_at_once + self.entries * LINE_CYCLES + copying)
        return (cycles + planes * self.blocks * self._plane_tiles * tile) / CYCLES_A_SECOND

    @property
    def _plane_tiles(self) -> int:
        """Tiles of a plane of one channel of the result."""
        if self.folded:
            return self.tiles * self.acrosses
        _, height, width = self.problem.out_size
        rows = (-(-(height - part) // self.spacing) for part in range(min(self.spacing, height)))
        return sum(-(-n // self.tile.rows) for n in rows) * -(-width // self.width)

    @property
    def _share_met(self) -> float:
        """Share of the kernel planes that meet the source, for one plane of the result: others are left out."""
        p = self.problem
        (low, _), size, out = p.padding[0], p.in_size[0], p.out_size[0]
        if p.padding_mode != "zeros":
            return 1.0
        starts = [k * p.dilation[0] - low for k in range(p.kernel[0])]
        met = (min(out, -(-(size - start) // p.stride[0])) - max(0, -(start // p.stride[0])) for start in starts)
        return sum(max(0, n) for n in met) / (p.kernel[0] * out)


def _evenly(size: int, tile: int, most: int) -> int:
    """Tiles of each of as many equal parts of ``size`` as there must be for none to pass ``most``."""
    tiles = -(-size // tile)
    parts = -(-tiles // max(1, most // tile))
    return -(-tiles // parts)


def layout_of(p: Problem, contiguous: bool = True) -> Layout:
    """The layout of least cost among those with one order of sums, for source rows that are contiguous or not.

    That order must not depend on the spatial size, so that a block of a volume has the bits of the whole.
    """
    in_place = p.stride[2] == 1 and (p.padding_mode == "zeros" or p.padding[2] == (0, 0))
    element = ELEMENTS[p.dtype]
    straight = contiguous and in_place and element.storage == element.accumulator and not p.out_size[1] == p.kernel[1] == 1
    several = p.out_per_group >= SEVERAL.channels and -(-p.out_per_group // SEVERAL.channels) * SEVERAL.channels <= 1.5 * p.out_per_group
    return min((Layout(p, tile, straight) for tile in ([SEVERAL] if several else [NARROW, WIDE])), key=lambda layout: layout.seconds)
