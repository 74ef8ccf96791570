"""Winograd convolution: fewer products for stride 1, by transforming tiles of the source, multiplying, and transforming back.

A task takes a block of tiles of all images: it transforms the tiles' cells channel by channel, multiplies them, for each product of a
tile on its own, as matrices (filters, channels) x (channels, tiles), and transforms the sums back, a few filters at a time.  Neither the
transformed source nor the transformed result ever exists as a whole.  ``winograd_matrices`` has the method.

The tile grid starts at the first result cell of the problem, and the order of all sums depends on the channels alone: neither the
batch, the threads, the layout nor the blocks change the bits of a result.

A NaN or an infinity spreads over its tile, and products can overflow where the definition's do not: results that are not finite are
computed again by the definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba.core import config
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import ELEMENTS, AnyArray
from ..axes import Line, axis_parts, merged
from ..choose import Accuracy
from ..layouts import Layouts
from ..problem import Problem
from . import winograd_tables as tables
from .calls import Call
from .elements import NUMBERS
from .gemm import TILE_ROWS, TILE_VECTORS
from .layouts import address
from .target import target
from .threads import most_threads, share, team_size
from .winograd_factors import FACTORS, Factors, axis_factors
from .winograd_kernels import worker
from .winograd_matrices import IDENTITY, Factor
from .winograd_transforms import loads, shape_of, table_fields
from .winograd_weight import PACKED, Raw, pack_all, raw_weight

CHAINS = {1: 32, 2: 32, 3: 16}
"""Channels in one chain of multiply-adds, by the number of axes that are transformed: short ones make smaller errors."""

FEWEST_CHANNELS = 16
FEWEST_RESULTS = 50

PICKS = target().vector_bytes == 64
"""Whether segments may be shorter than whole: see ``Vectors.pick``."""

CELL_BYTES = 1_200_000
"""Transformed cells of a task that stay in the second-level cache."""

SUM_BYTES = 160_000
MOST_ROWS = 8

SWEEP_BYTES = 1_000_000
"""What a sweep along a row of tiles reads and writes and that still is in that cache when the next row's comes."""

# The cost model, in cycles a vector and product of a tile: of transforming a channel, or a filter's sums; of one multiply-add, and of
# reading its weight, once a task, which takes up to five times as long where the weight is large.
INPUT_CYCLES = 14.0
OUTPUT_CYCLES = 8.0
PRODUCT_CYCLES = 0.52
WEIGHT_CYCLES = 0.03
LARGE_WEIGHT = 4 << 20
PACK_CYCLES = 0.5  # of transforming the weight, for each element
CYCLES_A_SECOND = 2.7e9


class Winograd:
    """The algorithm for floating-point problems of stride 1, with accuracy "transform" or "loose"."""

    def __init__(self, name: str, accuracy: Accuracy) -> None:
        self.name, self.accuracy = name, accuracy

    def supports(self, problem: Problem) -> str | None:
        p = problem
        sums = ELEMENTS[p.dtype].accumulator
        if sums.kind != "f":
            return f"it computes with floating-point numbers, not {p.dtype}"
        if target().lanes(sums.name) < 4:
            return f"it computes with vectors of at least 4, not {target().lanes(sums.name)} of {sums.name}"
        if p.dtype == "float16" and not target().float16:
            return "the processor does not convert float16"
        if config.DISABLE_JIT:
            return "it is made of LLVM intrinsics, which need the compiler (NUMBA_DISABLE_JIT is set)"
        if p.direction == "weight_grad":
            return "it computes results and gradients of the input, not of the weight"
        if p.transposed and p.padding_mode != "zeros":
            return f"gradients of {p.padding_mode} padding fold back onto the cells that were copied"
        if max(p.stride) > 1 or max(p.dilation) > 1:
            return "tiles share their cells only where stride and dilation are 1"
        if min(p.source_channels, p.result_channels) // p.groups < FEWEST_CHANNELS:
            return f"with fewer than {FEWEST_CHANNELS} channels in a group the transforms cost more than they save"
        if math.prod(p.result_size) < FEWEST_RESULTS:
            return f"fewer than {FEWEST_RESULTS} results of a channel leave its tiles too empty"
        if max(p.kernel) == 1 or any(k not in FACTORS for k in p.kernel):
            return f"it has transforms for kernels of 3, 5 and 7 along an axis, beside 1, not for {p.kernel[3 - p.rank :]}"
        found = axis_factors(p, self.accuracy)
        if found is None:
            return "its transforms would make rounding errors or the weight grow too much"
        if self.accuracy == "loose" and found == axis_factors(p, "transform"):
            return "transforms with larger errors would save no products"
        return None

    def cost(self, problem: Problem) -> float:
        return self.setup(problem).seconds

    def setup(self, problem: Problem) -> WinogradSetup:
        factors = axis_factors(problem, self.accuracy)
        assert factors is not None
        return WinogradSetup(problem, factors)


@dataclass(frozen=True)
class WinogradSetup:
    """Winograd convolution set up for one problem.

    ``pack`` returns the transformed weight, the weight as (groups, row blocks, channels, taps, TILE_ROWS) for what the definition must
    compute, and the bias.
    """

    problem: Problem
    factors: Factors

    @property
    def channels(self) -> int:
        """Source channels of one group."""
        return self.problem.source_channels // self.problem.groups

    @property
    def chain(self) -> int:
        """Channels in one chain of multiply-adds; the chains' sums are added up."""
        return CHAINS[sum(factor != IDENTITY for factor in self.factors)]

    @property
    def filters(self) -> int:
        """Result channels of one group."""
        return self.problem.result_channels // self.problem.groups

    @property
    def sums(self) -> np.dtype[Any]:
        """Dtype of all that is computed with."""
        return ELEMENTS[self.problem.dtype].accumulator

    @property
    def lanes(self) -> int:
        return target().lanes(self.sums.name)

    @property
    def products(self) -> int:
        """Products of one tile."""
        return math.prod(factor.cells for factor in self.factors)

    @property
    def row_blocks(self) -> int:
        return -(-self.filters // TILE_ROWS)

    @property
    def vectors(self) -> int:
        """Vectors of tiles of a task: as many as a row of the register tile if their cells stay in the second-level cache."""
        each = self.products * self.channels * target().vector_bytes
        fitting = CELL_BYTES // each
        return min(TILE_VECTORS, fitting) if fitting else TILE_VECTORS

    @property
    def rows(self) -> int:
        """Row blocks of filters of a pass: few, so that their sums stay in that cache, too, unless the cells must be read again from
        beyond it in every pass."""
        if self.products * self.channels * target().vector_bytes * self.vectors > CELL_BYTES:
            return min(MOST_ROWS, self.row_blocks)
        sums = self.products * TILE_ROWS * target().vector_bytes * (self.vectors + 1)
        return max(1, min(SUM_BYTES // sums, MOST_ROWS, self.row_blocks))

    @cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        stacks, high, across = self._tiles
        depths = self._depths(stacks, high)
        block = self._block(stacks, across, self.factors[2].outputs, depths)
        each = self._cycles(block, stacks, across, self.factors[2].outputs, depths)
        return self.problem.groups * -(-high // depths) * each / CYCLES_A_SECOND

    @cached_property
    def _tiles(self) -> tuple[int, int, int]:
        """Of one image: stacks of tiles, tiles of a stack, and tiles across."""
        high, down, across = (-(-n // factor.outputs) for n, factor in zip(self.problem.result_size, self.factors))
        across = self._whole_segments(across, self.factors[2])
        return (high * down * across, 1, across) if self.factors[0] == IDENTITY else (down * across, high, across)

    def _whole_segments(self, across: int, factor: Factor) -> int:
        """Tiles of a row, with those that fill its last segment where segments cannot be shorter."""
        each = 1 if PICKS else self.lanes // factor.outputs
        return -(-across // each) * each

    def _depths(self, stacks: int, high: int) -> int:
        """Tiles of a stack that a task takes, of ``high``."""
        return -(-high // -(-high // self._most_depths(stacks)))

    def _most_depths(self, stacks: int) -> int:
        """Each adds a vector, or less where all stacks together are less."""
        return self.vectors * self.lanes // stacks if PICKS and stacks < self.lanes else self.vectors

    def _block(self, stacks: int, across: int, segments: int, depths: int) -> int:
        """Stacks of tiles of a task: what fits the cache, or fewer whole rows of ``across`` tiles where they fill the groups better."""
        lanes = self.lanes
        most = max(1, self.vectors // depths) * lanes
        even = min(stacks, -(-stacks // (-(-stacks // most) * lanes)) * lanes)
        rows = min(most // across * across, stacks)
        if not rows or not PICKS:
            return even
        rows = -(-stacks // across // -(-stacks // rows)) * across
        return min((even, rows), key=lambda block: self._cycles(block, stacks, across, segments, depths))

    def _cycles(self, block: int, stacks: int, across: int, segments: int, depths: int) -> float:
        """Estimated cycles of all blocks of stacks of ``depths`` tiles, from the first few."""
        lanes, filters, cycles, shown = self.lanes, self.row_blocks * TILE_ROWS, 0.0, min(stacks, 6 * block)
        transform = self.channels * INPUT_CYCLES + filters * OUTPUT_CYCLES
        weight = WEIGHT_CYCLES * (1 + min(4.0, self.packed_bytes / LARGE_WEIGHT))
        for first in range(0, shown, block):
            tile, last, groups = first, min(first + block, shown), 0
            while tile < last:
                for _ in range(segments):
                    tile += min(lanes // segments, across - tile % across, last - tile)
                groups += 1
            vectors = -(-(last - first) * depths // lanes)
            cycles += groups * depths * transform + filters * self.channels * (vectors * PRODUCT_CYCLES + weight)
        return cycles * self.products * stacks / shown

    def _cells(self, width: int) -> tuple[int, int, int]:
        """Elements from product to product, from channel to channel, and of all transformed cells of ``width`` lanes.

        A transform writes all products of one channel, a matrix product reads all channels of one product, once for each row block: where
        there are far fewer channels, they lie further apart, so that a transform walks through few pages of memory.  An odd number of
        lines apart, they share no cache sets.
        """
        if 4 * self.channels < self.products:
            row = tables.odd_lines(self.products * width)
            return width, row, self.channels * row
        step = tables.odd_lines(self.channels * width)
        return step, width, self.products * step

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates, for any batch and layout."""
        k, lanes, cells = tables, self.lanes, max(factor.cells for factor in self.factors)
        panel = self.vectors * lanes
        sums = self.rows * TILE_ROWS * (panel + lanes)
        planes = self._most_depths(self._tiles[0]) * 4 + cells
        elements = self._cells(panel)[2] + self.products * (sums + k.GAP)
        elements += self.products * self._last_pass[1] + self._last_pass[0] * TILE_ROWS * self.channels * self.problem.taps
        elements += cells**3 * lanes + planes * 4 * cells * k.LINE * lanes + 2 * k.LINE * lanes + self.rows * TILE_ROWS
        wide = Factor(4, cells)
        numbers = (panel + 2) * (table_fields(wide, wide).size + 3 * lanes + 1) + 2 * planes
        each = elements * self.sums.itemsize + numbers * 8 + 3 * k.ALIGNMENT
        return most_threads() * (each + k.FIELDS * 8)

    @property
    def packed_bytes(self) -> int:
        """At most: what a function's call packs pass by pass is less."""
        p, item = self.problem, self.sums.itemsize
        return p.groups * (self._transformed + self._filters) * item + p.result_channels * item

    @cached_property
    def _transformed(self) -> int:
        """Elements of a group's transformed weight."""
        passes = -(-self.row_blocks // self.rows)
        return self.products * (passes * tables.odd_lines(self.rows * self.channels * TILE_ROWS) - self._last_pass[1])

    @cached_property
    def _last_pass(self) -> tuple[int, int]:
        """By how many row blocks, and elements of a product's weight, the last pass is shorter than the others."""
        each, missing = self.channels * TILE_ROWS, -self.row_blocks % self.rows
        return missing, tables.odd_lines(self.rows * each) - tables.odd_lines((self.rows - missing) * each)

    @property
    def _filters(self) -> int:
        """Elements of a group's weight in row blocks."""
        return self.row_blocks * TILE_ROWS * self.channels * self.problem.taps

    # ---- arrays --------------------------------------------------------------------------------------------------
    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        return self._pack(*self.pack_once(weight, bias))

    def pack_once(self, weight: AnyArray, bias: AnyArray | None) -> tuple[Raw, AnyArray]:
        """What ``run`` takes instead for a single call: it packs, or transforms each part of the weight where that is read."""
        raw = raw_weight(self.problem, weight.astype(self.sums, copy=False))
        return raw, np.zeros(self.problem.result_channels, self.sums) if bias is None else bias.astype(self.sums)

    def _pack(self, raw: Raw, bias: AnyArray) -> tuple[AnyArray, ...]:
        groups, blocks = self.problem.groups, self.problem.groups * self.row_blocks
        packed, filters = np.empty(groups * self._transformed, self.sums), np.empty(groups * self._filters, self.sums)
        seconds = blocks * TILE_ROWS * self.channels * self.products * PACK_CYCLES / CYCLES_A_SECOND
        numbers = (shape_of(self.factors), raw.numbers, raw.taps, self.rows, self.products)
        share(pack_all, (*numbers, filters, packed), blocks, seconds)
        return packed, filters, bias

    def run(self, source: AnyArray, packed: tuple[Any, ...], result: AnyArray) -> None:
        self.call(source, packed, result).run(address(source), address(result))

    def call(self, source: AnyArray, packed: tuple[Any, ...], result: AnyArray) -> Call:
        """``run``, but for packing what has not been packed."""
        seconds, raw = self.seconds * len(source), PACKED
        g, factors = self._layouts(source, result, team_size(seconds))
        if isinstance(packed[0], Raw):
            raw, bias = packed
            if g[tables.TASKS] == g[tables.GROUPS] * g[tables.SPLITS]:  # one task takes all tiles: each weight is read once
                packed = np.empty(0, self.sums), np.empty(0, self.sums), bias
            else:
                packed = self._pack(raw, bias)
        return Call(worker, (shape_of(factors), g, raw.numbers, raw.taps, *packed), int(g[tables.TASKS]), seconds)

    @cached_property
    def _layouts(self) -> Layouts[tuple[NDArray[np.int64], tuple[Factor, ...]]]:
        return Layouts(self._place)

    def _place(self, source: AnyArray, result: AnyArray, threads: int) -> tuple[NDArray[np.int64], tuple[Factor, ...]]:
        """Geometry and factors for arrays of these layouts."""
        lines, factors = self._lines(source, result)
        g, k = np.zeros(tables.FIELDS, np.int64), tables
        for i, (line, factor) in enumerate(zip(lines, factors)):
            g[i : k.TILES : 3] = (
                line.source_size, line.source_stride * source.itemsize, line.size, line.result_stride * source.itemsize,
                min(line.shifts), factor.taps, factor.outputs, factor.cells,
            )  # fmt: skip
            g[k.TILES + i] = -(-line.size // factor.outputs)
        if factors[0] == IDENTITY:
            g[k.TILES] = 1
        g[k.TILES + 2] = self._whole_segments(int(g[k.TILES + 2]), factors[2])
        g[k.SOURCE_IMAGE], g[k.SOURCE_CHANNEL], g[k.RESULT_IMAGE], g[k.RESULT_CHANNEL] = *source.strides[:2], *result.strides[:2]
        g[k.GATHERED], g[k.SCATTERED] = lines[2].source_stride != 1, lines[2].result_stride != 1
        g[k.STACKS] = g[k.TILES + 1] * g[k.TILES + 2] * len(source) * (lines[0].size if factors[0] == IDENTITY else 1)
        self._share(g, threads)
        fields = table_fields(factors[1], factors[2])
        g[k.TILE : k.LOADS] = fields.tile, fields.run, fields.staged, *fields[6:]
        g[k.LOADS] = loads(factors[2])
        return g, factors

    def _lines(self, source: AnyArray, result: AnyArray) -> tuple[list[Line], tuple[Factor, ...]]:
        """The axes as they lie in memory, and their factors: a lone transformed depth takes the place of the height."""
        p, item = self.problem, source.itemsize
        lines = merged([
            Line(n, s // item, axis.size, t // item, 1, axis.shifts)
            for axis, n, s, t in zip((axis_parts(p, i)[0] for i in range(3)), source.shape[2:], source.strides[2:], result.strides[2:])
        ])  # fmt: skip
        left = iter([factor for factor in self.factors if factor != IDENTITY])
        factors = [IDENTITY if len(line.shifts) == 1 else next(left) for line in lines]
        if factors[1] == IDENTITY:
            lines[:2], factors[:2] = lines[1::-1], factors[1::-1]
        return lines, tuple(factors)

    def _share(self, g: NDArray[np.int64], threads: int) -> None:
        """Cut the work into tasks, and the sizes of their workspace."""
        p, k, lanes = self.problem, tables, self.lanes
        g[k.STORED] = NUMBERS[p.dtype]
        g[k.MODE], g[k.TRANSPOSED] = PADDING_MODES.index(p.padding_mode), p.transposed
        g[k.GROUPS], g[k.CHANNELS], g[k.CHAIN] = p.groups, self.channels, self.chain
        g[k.FILTERS], g[k.PRODUCTS] = self.filters, self.products
        stacks, high = int(g[k.STACKS]), int(g[k.TILES])
        g[k.DEPTHS] = self._depths(stacks, high)
        chunks = -(-high // int(g[k.DEPTHS]))
        g[k.BLOCK] = self._block(stacks, int(g[k.TILES + 2]), int(g[k.OUTPUTS + 2]), int(g[k.DEPTHS]))
        g[k.SWEEP] = self._sweep(g)
        tasks, passes = p.groups * -(-stacks // int(g[k.BLOCK])) * chunks, -(-self.row_blocks // self.rows)
        g[k.ROW_BLOCKS], g[k.SPLITS] = self.rows, min(range(1, passes + 1), key=lambda n: -(-tasks * n // threads) * (1 + 4 / n))
        g[k.TASKS] = tasks * g[k.SPLITS]
        g[k.WIDTH] = -(-int(g[k.BLOCK] * g[k.DEPTHS]) // lanes) * lanes
        g[k.CELL_STEP], g[k.CELL_ROW], g[k.CELL_ELEMENTS] = self._cells(int(g[k.WIDTH]))
        g[k.SUM_ROW] = g[k.WIDTH] + lanes
        g[k.SUM_STEP] = g[k.ROW_BLOCKS] * TILE_ROWS * g[k.SUM_ROW] + k.GAP
        g[k.PLANES] = (g[k.DEPTHS] - 1) * g[k.OUTPUTS] + g[k.CELLS]
        g[k.MOST_GROUPS] = -(-int(g[k.BLOCK]) // int(g[k.OUTPUTS + 2])) + 1

    def _sweep(self, g: NDArray[np.int64]) -> int:
        """Tasks along a stack before those of the next block of tiles: few where rows are long, so that the next row of tiles finds in
        the cache what it shares with this one, and else many, as the tiles of a stack share, too."""
        k = tables
        width = int(g[k.TILES + 2] * g[k.OUTPUTS + 2]) * ELEMENTS[self.problem.dtype].storage.itemsize
        source, result = width * self.channels * int(g[k.CELLS + 1]), width * self.filters * int(g[k.OUTPUTS + 1])
        planes = (SWEEP_BYTES - int(g[k.CELLS] - g[k.OUTPUTS]) * source) // (source + result)
        return max(1, min(planes // int(g[k.DEPTHS] * g[k.OUTPUTS]), -(-int(g[k.TILES]) // int(g[k.DEPTHS]))))
