"""How the fft algorithm cuts a problem into tiles, and what that is estimated to cost."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from ..problem import Problem, Triple
from .fft_kernel import passes_of
from .target import target

LENGTHS = (16, 32, 64, 128, 256, 512)
MOST_TILES = 4 << 20  # bytes of the tiles of one thread
MOST_SPECTRA = 16 << 20  # bytes
ALIGNMENT = 64

# The cost model, in cycles a cell: of loading or storing it, of a pass, of transposing it, of a product; where tiles stay in the
# second-level cache and where not.
MOVE_CYCLES = 6.0
PASS_CYCLES = 7.5
TRANSPOSE_CYCLES = 9.0
PRODUCT_CYCLES, FAR_PRODUCT_CYCLES = 5.0, 14.0
CACHED_BYTES = 256 << 10
FAR = 1.5
CYCLES_A_SECOND = 2.5e9


@dataclass(frozen=True)
class Layout:
    """Tiles of ``lengths`` source cells along depth, height and width for a forward problem of stride 1.

    A length of 1 is that of a depth along which the kernel has one tap, and nothing is transformed.
    """

    problem: Problem
    lengths: Triple

    @property
    def itemsize(self) -> int:
        return np.dtype(self.problem.dtype).itemsize

    @property
    def lanes(self) -> int:
        return target().lanes(self.problem.dtype)

    @cached_property
    def useful(self) -> Triple:
        """Result cells of one tile along each axis: those that the cyclic sums do not wrap around."""
        d, h, w = (n - (k - 1) * gap for n, k, gap in zip(self.lengths, self.problem.kernel, self.problem.dilation))
        return d, h, w

    @cached_property
    def tiles(self) -> Triple:
        """Tiles along each axis."""
        d, h, w = (-(-size // useful) for size, useful in zip(self.problem.out_size, self.useful))
        return d, h, w

    @cached_property
    def pairs(self) -> int:
        """Pairs of tiles in one image and group: the second is the imaginary part of the first."""
        return -(-math.prod(self.tiles) // 2)

    @property
    def rows(self) -> int:
        return self.lengths[0] * self.lengths[1]

    @property
    def row(self) -> int:
        """Elements of a tile's row: one cell more than it has, so that the cells of a column do not fall into one set of a cache."""
        return 2 * (self.lengths[2] + self.lanes)

    @property
    def channels(self) -> int:
        """Tiles that a task keeps."""
        return max(self.problem.in_per_group, self.problem.out_per_group)

    @property
    def buffer(self) -> int:
        """Elements of the cells of the longest column, for every source channel and one result channel."""
        return 2 * self.lanes * max(max(self.lengths), (self.problem.in_per_group + 1) * self.lengths[2])

    @property
    def tile_bytes(self) -> int:
        """Bytes of the tiles of one thread."""
        return self.channels * self.rows * self.row * self.itemsize

    @property
    def spectra_bytes(self) -> int:
        """Bytes of the transformed weight."""
        return self.problem.out_channels * self.problem.in_per_group * 2 * math.prod(self.lengths) * self.itemsize

    @cached_property
    def thread_bytes(self) -> int:
        return (
            self.tile_bytes + self.buffer * self.itemsize + ALIGNMENT + 8 * (2 * sum(self.lengths) + 3 * self.lengths[2] // self.lanes + 6)
        )

    @cached_property
    def _one_way(self) -> float:
        """Cycles of a tile's transform."""
        cells, passes = math.prod(self.lengths) / self.lanes, sum(len(passes_of(n)) for n in self.lengths if n > 1)
        far = FAR if self.tile_bytes > CACHED_BYTES else 1.0
        return cells * far * (MOVE_CYCLES + PASS_CYCLES * passes + TRANSPOSE_CYCLES)

    @cached_property
    def weight_seconds(self) -> float:
        """Estimated time of transforming the weight on one thread."""
        return self.problem.out_channels * self.problem.in_per_group * self._one_way / CYCLES_A_SECOND

    @cached_property
    def tile_seconds(self) -> float:
        """Estimated time of the tiles of one image on one thread."""
        p = self.problem
        products = p.out_per_group * p.in_per_group * math.prod(self.lengths) / self.lanes
        cycles = PRODUCT_CYCLES if self.spectra_bytes // p.groups <= CACHED_BYTES else FAR_PRODUCT_CYCLES
        return p.groups * self.pairs * ((p.in_per_group + p.out_per_group) * self._one_way + products * cycles) / CYCLES_A_SECOND

    @property
    def seconds(self) -> float:
        return self.weight_seconds + self.tile_seconds

    def first_cell(self, number: int) -> Triple:
        """The first result cell of a tile."""
        place = np.unravel_index(number, self.tiles)
        d, h, w = (int(i) * n for i, n in zip(place, self.useful))
        return d, h, w


@cache
def layout_of(p: Problem) -> Layout | None:
    """The layout of least cost for a forward problem of one image; None where no tile is large enough, or small enough."""
    lanes = target().lanes(p.dtype)
    choices = [
        [1] if k == 1 and axis == 0 else [n for n in LENGTHS if n > (k - 1) * gap and n >= lanes]
        for axis, (k, gap) in enumerate(zip(p.kernel, p.dilation))
    ]
    layouts = (Layout(p, (d, h, w)) for d, h, w in itertools.product(*choices))
    fitting = [layout for layout in layouts if layout.tile_bytes <= MOST_TILES and layout.spectra_bytes <= MOST_SPECTRA]
    return min(fitting, key=lambda layout: layout.seconds, default=None)
