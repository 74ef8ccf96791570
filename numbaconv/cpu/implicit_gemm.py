"""Implicit GEMM: a convolution as a matrix product whose second operand, im2col, exists one cache-sized block at a time.

The result of one image and group is (filters, pixels) = weight (filters, K) times im2col (K, pixels) with K = channels * taps.  A task
packs a few panels of pixels for one block of K, multiplies them with every row block of the weight, and goes on to the next block
of K.  The order of the sum over K depends on channels, kernel and dilation alone: neither the batch, the threads, the layout nor
the place of a pixel change the bits of a result.

A gradient of the input with stride s is s convolutions an axis: the result pixels of one remainder modulo s meet the same taps, at
consecutive source cells.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import prange
from numba.core import config
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import AnyArray
from ..choose import Accuracy
from ..problem import Problem
from . import pack
from .axes import Line, Part, axis_parts, is_contiguous, merged, pixel_count, tap_count
from .compile import kernel
from .direct import Direct
from .gemm import TILE_ROWS, TILE_VECTORS, multiply_tile
from .pack import fill_table, pack_panel
from .simd import lanes_of, load_element, store_element
from .target import target
from .threads import launch, most_threads, next_task, team_size

DEPTH = 640  # products of one K block: a row block of the weight then stays in the first-level cache
BLOCK_BYTES = 440_000  # panels of one task, in the second-level cache
MOST_PANELS = 8
MOST_PARTS = 64  # of a transposed convolution
ALIGNMENT = 64

# The cost model, in cycles: of copying a vector with lanes 1, 2 or more cells apart, of storing a tile, of starting a block.
COPY_CYCLES = {1: 2.0, 2: 4.0, 3: 26.0}
STORE_CYCLES = 60.0
TASK_CYCLES = 1000.0
CYCLES_A_SECOND = 2.5e9

# Fields of the geometry beyond those of the panels.
(
    IMAGES, GROUPS, CHANNELS, FILTERS, PIXELS, KERNEL, SOURCE, SOURCE_IMAGE, RESULT, RESULT_IMAGE, RESULT_CHANNEL, SCATTERED,
    CHANNELS_AT_ONCE, TAPS_AT_ONCE, PANELS, RUNS, SPLITS, TASKS, WEIGHT, FIELDS,
) = range(pack.FIELDS, pack.FIELDS + 20)  # fmt: skip


# ---- kernels -----------------------------------------------------------------------------------------------------------
@kernel()
def _worker(geometry, shifts, weight, bias, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each a block of panels of one image and group, and a share of its row blocks."""
    g = geometry
    width = TILE_VECTORS * lanes_of(weight)
    spare = ALIGNMENT // weight.itemsize
    panels = np.empty(g[PANELS] * g[CHANNELS_AT_ONCE] * g[TAPS_AT_ONCE] * width + spare, weight.dtype)
    panels = panels[-panels.ctypes.data // weight.itemsize % spare :]
    table = np.empty(g[PANELS] * g[TAPS_AT_ONCE] * TILE_VECTORS * g[pack.SLOTS] * 2, np.int64)
    counts = np.empty(g[PANELS] * g[TAPS_AT_ONCE], np.int64)
    runs, run_counts = np.empty(g[PANELS] * g[RUNS] * 2, np.int64), np.empty(g[PANELS], np.int64)
    segments, tile = np.empty((width, 6), np.int64), np.empty(TILE_ROWS * width, weight.dtype)
    row_blocks = -(-g[FILTERS] // TILE_ROWS)
    tabled_panel = tabled_tap = -1
    while True:
        task = next_task(counter)
        if task >= g[TASKS]:
            break
        split, member = task % g[SPLITS], task // g[SPLITS]
        first, member = member // (g[IMAGES] * g[GROUPS]) * g[PANELS], member % (g[IMAGES] * g[GROUPS])
        image, group = member // g[GROUPS], member % g[GROUPS]
        last = min(first + g[PANELS], -(-g[PIXELS] // width))
        source = g[SOURCE] + (image * g[SOURCE_IMAGE] + group * g[CHANNELS] * g[pack.SOURCE_CHANNEL]) * weight.itemsize
        result = g[RESULT] + (image * g[RESULT_IMAGE] + group * g[FILTERS] * g[RESULT_CHANNEL]) * weight.itemsize
        for channel in range(0, g[CHANNELS], g[CHANNELS_AT_ONCE]):
            channels = min(g[CHANNELS_AT_ONCE], g[CHANNELS] - channel)
            for tap in range(0, max(g[KERNEL], 1), g[TAPS_AT_ONCE]):
                taps = min(g[TAPS_AT_ONCE], g[KERNEL] - tap)
                if first != tabled_panel or tap != tabled_tap:
                    _fill_tables(g, shifts, first, last, tap, taps, width, segments, table, counts)
                    tabled_panel, tabled_tap = first, tap
                at = source + channel * g[pack.SOURCE_CHANNEL] * weight.itemsize
                _pack_panels(g, table, counts, taps, at, channels, first, last, panels, runs, run_counts, width)
                k = channel * g[KERNEL] + tap
                for row in range(row_blocks * split // g[SPLITS], row_blocks * (split + 1) // g[SPLITS]):
                    _multiply_row(g, weight, bias, group * row_blocks + row, k, row, result, first, last, panels, runs, run_counts, tile)


@kernel(parallel=True)
def _team(threads, geometry, shifts, weight, bias, counter):  # type: ignore[no-untyped-def]
    for _ in prange(threads):
        _worker(geometry, shifts, weight, bias, counter)


@kernel()
def _fill_tables(g, shifts, first, last, tap, taps, width, segments, table, counts):  # type: ignore[no-untyped-def]
    """Tables of the panels [first, last) for ``taps`` taps from ``tap`` on."""
    entries = g[TAPS_AT_ONCE] * TILE_VECTORS * g[pack.SLOTS] * 2
    for panel in range(first, last):
        own_table = table[(panel - first) * entries : (panel - first + 1) * entries]
        own_counts = counts[(panel - first) * g[TAPS_AT_ONCE] : (panel - first + 1) * g[TAPS_AT_ONCE]]
        pixels = min(width, g[PIXELS] - panel * width)
        fill_table(g, shifts, panel * width, pixels, tap, tap + taps, width // TILE_VECTORS, segments, own_table, own_counts)


@kernel()
def _pack_panels(g, table, counts, taps, source, channels, first, last, panels, runs, run_counts, width):  # type: ignore[no-untyped-def]
    """Panels [first, last) for some channels, the first of them at ``source``."""
    entries, size = g[TAPS_AT_ONCE] * TILE_VECTORS * g[pack.SLOTS], g[CHANNELS_AT_ONCE] * g[TAPS_AT_ONCE] * width
    for j in range(last - first):
        own_counts = counts[j * g[TAPS_AT_ONCE] : j * g[TAPS_AT_ONCE] + taps]
        own_runs = runs[2 * j * g[RUNS] : 2 * (j + 1) * g[RUNS]]
        run_counts[j] = pack_panel(g, table, j * entries, own_counts, source, channels, panels, j * size, own_runs, width)


@kernel()
def _multiply_row(g, weight, bias, block, k, row, result, first, last, panels, runs, run_counts, tile):  # type: ignore[no-untyped-def]
    """One row block of the weight, from product ``k`` on, times the panels [first, last), into result rows from row * TILE_ROWS on.

    ``block`` counts row blocks over all groups; ``result`` is the byte address of the group's first row.
    """
    width = TILE_VECTORS * lanes_of(weight)
    size = g[CHANNELS_AT_ONCE] * g[TAPS_AT_ONCE] * width
    offset = g[WEIGHT] + (block * g[CHANNELS] * g[KERNEL] + k) * TILE_ROWS
    rows = min(TILE_ROWS, g[FILTERS] - row * TILE_ROWS)
    row_start = result + row * TILE_ROWS * g[RESULT_CHANNEL] * weight.itemsize
    for panel in range(first, last):
        columns = min(width, g[PIXELS] - panel * width)
        address, step, j = row_start + panel * width * weight.itemsize, g[RESULT_CHANNEL], panel - first
        if g[SCATTERED]:
            address, step = tile.ctypes.data, width
            if k > 0:
                _exchange(g, tile, row_start, panel * width, rows, columns, width, False)
        multiply_tile(
            runs, j * g[RUNS], run_counts[j], weight, offset, panels, j * size, address, step, rows, columns, k, bias, block * TILE_ROWS
        )
        if g[SCATTERED]:
            _exchange(g, tile, row_start, panel * width, rows, columns, width, True)


@kernel()
def _exchange(g, tile, result, pixel, rows, columns, width, out):  # type: ignore[no-untyped-def]
    """Copy a tile to result pixels that are not contiguous (``out``), or from them."""
    across, deep = g[pack.RESULT_SIZE + 2], g[pack.RESULT_SIZE + 1]
    for r in range(rows):
        for column in range(columns):
            w, h, d = (pixel + column) % across, (pixel + column) // across % deep, (pixel + column) // across // deep
            offset = d * g[pack.RESULT_STRIDE] + h * g[pack.RESULT_STRIDE + 1] + w * g[pack.RESULT_STRIDE + 2]
            address = result + (r * g[RESULT_CHANNEL] + offset) * tile.itemsize
            if out:
                store_element(address, tile[r * width + column])
            else:
                tile[r * width + column] = load_element(address, tile)


@kernel()
def _pack_weight(numbers, taps, packed, at):  # type: ignore[no-untyped-def]
    """Write one part's weight as (groups, row blocks, K, TILE_ROWS) from packed[at] on: K in the order of ``pack_panel``, zero rows last.

    numbers : int64 array: byte address, strides (elements) of a group, a filter and a channel, then groups, filters, channels and
        the channel block; taps : int64 offsets of the part's taps.
    """
    address, of_group, of_filter, of_channel, groups, filters, channels, block = numbers
    for group in range(groups):
        for row in range(0, filters, TILE_ROWS):
            for first in range(0, channels, block):
                for tap in taps:
                    for channel in range(first, min(first + block, channels)):
                        for r in range(TILE_ROWS):
                            offset = group * of_group + (row + r) * of_filter + channel * of_channel + tap
                            inside = row + r < filters
                            packed[at + r] = load_element(address + offset * packed.itemsize, packed) if inside else 0
                        at += TILE_ROWS


# ---- the algorithm -----------------------------------------------------------------------------------------------------
class ImplicitGemm:
    """The algorithm for dense problems of float32 and float64."""

    name = "implicit_gemm"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        if problem.dtype not in ("float32", "float64"):
            return f"it computes float32 and float64, not {problem.dtype}"
        if config.DISABLE_JIT:
            return "it is made of LLVM intrinsics, which need the compiler (NUMBA_DISABLE_JIT is set)"
        if problem.direction == "weight_grad":
            return "it computes results and gradients of the input, not of the weight"
        if problem.transposed and problem.padding_mode != "zeros":
            return f"gradients of {problem.padding_mode} padding fold back onto the cells that were copied"
        if problem.source_channels == 0:
            return "there are no channels to sum over"
        if problem.transposed and math.prod(min(s, i) for s, i in zip(problem.stride, problem.in_size)) > MOST_PARTS:
            return f"transposed with strides {problem.stride} it falls into more than {MOST_PARTS} convolutions"
        return None

    def cost(self, problem: Problem) -> float:
        return self.setup(problem).seconds

    def setup(self, problem: Problem) -> ImplicitGemmSetup:
        return ImplicitGemmSetup(problem)


@dataclass(frozen=True)
class ImplicitGemmSetup:
    """Implicit GEMM set up for one problem.

    ``pack`` returns an int64 flag (is the weight finite?), then the padded weight and bias.  A transposed convolution with a weight that is
    not finite is left to ``direct``, whose packing then follows the flag: panels hold zeros where the source has no cell, and a
    transposed convolution multiplies no zeros.
    """

    problem: Problem

    # ---- what depends on the problem alone -----------------------------------------------------------------------
    @cached_property
    def parts(self) -> list[Part]:
        depth, height, width = (axis_parts(self.problem, axis) for axis in range(3))
        return list(itertools.product(depth, height, width))

    @property
    def channels(self) -> int:
        """Source channels of one group."""
        return self.problem.source_channels // self.problem.groups

    @property
    def filters(self) -> int:
        """Result channels of one group."""
        return self.problem.result_channels // self.problem.groups

    @property
    def row_blocks(self) -> int:
        return -(-self.filters // TILE_ROWS)

    @cached_property
    def weight_starts(self) -> list[int]:
        """Where each part's weight starts in the packed one; the last is the end."""
        row = self.problem.groups * self.row_blocks * TILE_ROWS * self.channels
        return [0, *itertools.accumulate(row * tap_count(part) for part in self.parts)]

    @cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        width = TILE_VECTORS * target().lanes(self.problem.dtype)
        cycles = 0.0
        for part in self.parts:
            copy = TILE_VECTORS * COPY_CYCLES[min(part[2].step, 3)]
            multiply = self.row_blocks * TILE_ROWS * TILE_VECTORS / 2
            block = self.channels * tap_count(part) * (copy + multiply) + self.row_blocks * STORE_CYCLES
            cycles += -(-pixel_count(part) // width) * block + TASK_CYCLES
        return self.problem.groups * cycles / CYCLES_A_SECOND

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates: of each thread its panels, their tables and a tile."""
        width = TILE_VECTORS * target().lanes(self.problem.dtype)
        item, most = np.dtype(self.problem.dtype).itemsize, 0
        for part in self.parts:
            g = self._geometry(part, 0, 0)
            taps, panels = int(g[TAPS_AT_ONCE]), int(g[PANELS])
            entries = taps * TILE_VECTORS * self._slots(part[2].size)
            each = int(g[CHANNELS_AT_ONCE]) * taps * width * item + (2 * entries + taps + 2 * int(g[RUNS]) + 1) * 8
            most = max(most, panels * each + width * (6 * 8 + TILE_ROWS * item) + ALIGNMENT)
        own = most_threads() * most + FIELDS * 8
        return max(own, Direct().setup(self.problem).workspace) if self.problem.transposed else own

    @property
    def packed_bytes(self) -> int:
        elements = self.weight_starts[-1] + self.problem.groups * self.row_blocks * TILE_ROWS
        return elements * np.dtype(self.problem.dtype).itemsize + 8

    def _slots(self, columns: int) -> int:
        """Entries that one vector of one tap may need where a row has so many pixels."""
        lanes = target().lanes(self.problem.dtype)
        if self.problem.padding_mode != "zeros":
            return lanes
        rows = min(lanes, (lanes - 2) // columns + 2)
        return 4 if rows == 3 else rows

    def _geometry(self, part: Part, finite: int, start: int) -> NDArray[np.int64]:
        """Geometry of one part without the fields that the arrays decide."""
        p, g, taps = self.problem, np.zeros(FIELDS, np.int64), tap_count(part)
        block, at_once, taps_at_once = blocking(p, self.channels, taps)
        width = TILE_VECTORS * target().lanes(p.dtype)
        pixels = pixel_count(part)
        panel_bytes = at_once * taps_at_once * width * np.dtype(p.dtype).itemsize
        g[pack.TAPS : pack.TAPS + 3] = [len(axis.taps) for axis in part]
        g[pack.MODE] = PADDING_MODES.index(p.padding_mode)
        g[pack.CHANNEL_BLOCK], g[CHANNELS_AT_ONCE], g[TAPS_AT_ONCE] = block, at_once, taps_at_once
        g[pack.SKIPPING] = finite
        g[GROUPS], g[CHANNELS], g[FILTERS], g[PIXELS], g[KERNEL] = p.groups, self.channels, self.filters, pixels, taps
        g[PANELS] = max(1, min(MOST_PANELS, -(-pixels // width), BLOCK_BYTES // panel_bytes))
        g[RUNS] = -(-at_once // block) * (taps_at_once // 2 + 1)
        g[WEIGHT] = start
        return g

    # ---- arrays --------------------------------------------------------------------------------------------------
    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p = self.problem
        finite = np.array([np.isfinite(weight).all()], np.int64)
        if p.transposed and not finite[0]:
            return finite, *Direct().setup(p).pack(weight, bias)
        packed = np.empty(self.weight_starts[-1], weight.dtype)
        steps = [step // weight.itemsize for step in weight.strides]
        of_filter, of_channel = (steps[1], steps[0]) if p.transposed else (steps[0], steps[1])
        numbers = [_address(weight), steps[0] * p.out_per_group, of_filter, of_channel, p.groups, self.filters, self.channels]
        for part, start in zip(self.parts, self.weight_starts):
            block = blocking(p, self.channels, tap_count(part))[0]
            offsets = [sum(k * step for k, step in zip(tap, steps[2:])) for tap in itertools.product(*(axis.taps for axis in part))]
            _pack_weight(np.array([*numbers, block], np.int64), np.array(offsets, np.int64), packed, start)
        padded = np.zeros((p.groups, self.row_blocks * TILE_ROWS), weight.dtype)
        if bias is not None:
            padded[:, : self.filters] = bias.reshape(p.groups, -1)
        return finite, packed, padded.reshape(-1)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        finite, weight, bias, *_ = packed
        if self.problem.transposed and not finite[0]:
            Direct().setup(self.problem).run(source, packed[1:], result)
            return
        for part, start in zip(self.parts, self.weight_starts):
            g = self._geometry(part, int(finite[0]), start)
            shifts = self._place(g, part, source, result)
            seconds = self.seconds * source.shape[0] / len(self.parts)
            self._share(g, seconds)
            launch(_worker, _team, (g, shifts, weight, bias), int(g[TASKS]), seconds)

    def _place(self, g: NDArray[np.int64], part: Part, source: AnyArray, result: AnyArray) -> NDArray[np.int64]:
        """Fill in the fields of the two layouts; the shifts of all taps, axis after axis."""
        item = source.itemsize
        lines = merged([
            Line(n, s // item, axis.size, t // item * axis.stride, axis.step, axis.shifts)
            for axis, n, s, t in zip(part, source.shape[2:], source.strides[2:], result.strides[2:])
        ])  # fmt: skip
        for i, line in enumerate(lines):
            g[pack.SOURCE_SIZE + i], g[pack.SOURCE_STRIDE + i], g[pack.RESULT_SIZE + i], g[pack.RESULT_STRIDE + i], g[pack.STEP + i] = line[
                :5
            ]
            g[pack.TAPS + i] = len(line.shifts)
        lane_step = lines[2].step * lines[2].source_stride
        g[pack.LANE_STEP], g[pack.SPACING] = lane_step, {1: pack.UNIT, 2: pack.EVEN}.get(lane_step, pack.SPREAD)
        g[pack.SLOTS] = self._slots(lines[2].size)
        g[IMAGES], g[SCATTERED] = source.shape[0], not is_contiguous(lines)
        g[SOURCE], g[SOURCE_IMAGE], g[pack.SOURCE_CHANNEL] = _address(source), source.strides[0] // item, source.strides[1] // item
        g[RESULT] = _address(result) + sum(axis.first * step for axis, step in zip(part, result.strides[2:]))
        g[RESULT_IMAGE], g[RESULT_CHANNEL] = result.strides[0] // item, result.strides[1] // item
        return np.array([shift for line in lines for shift in line.shifts], np.int64)

    def _share(self, g: NDArray[np.int64], seconds: float) -> None:
        """Cut the work into tasks: where blocks of panels are fewer than the threads need, into shares of row blocks as well."""
        width = TILE_VECTORS * target().lanes(self.problem.dtype)
        blocks = -(-int(g[PIXELS]) // (width * int(g[PANELS]))) * int(g[IMAGES] * g[GROUPS])
        threads = team_size(seconds)
        g[SPLITS] = 1 if threads == 1 else min(self.row_blocks, -(-4 * threads // blocks))
        g[TASKS] = blocks * g[SPLITS]


def blocking(p: Problem, channels: int, kernel: int) -> tuple[int, int, int]:
    """Channels that a tap takes in one go, channels of a K block, taps of a K block; never from the size of the image."""
    taps = max(kernel, 1)
    wide = taps == 1 or max(d * (k - 1) for d, k in zip(p.dilation, p.kernel)) > 8
    block = max(1, min(64 if wide else 8, channels, DEPTH // taps))
    most = max(1, DEPTH // (taps * block)) * block
    evenly = -(-channels // -(-channels // most))
    return block, min(most, -(-evenly // block) * block), -(-taps // -(-taps // DEPTH))


def _address(array: AnyArray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
