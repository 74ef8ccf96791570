"""Implicit GEMM: a convolution as a matrix product whose second operand, im2col, exists one cache-sized panel at a time.

The result of one image and group is (filters, pixels) = weight (filters, K) times im2col (K, pixels) with K = channels * taps.  A task
takes a few panels of pixels through the blocks of K, one after the other: it packs a panel for the block, multiplies all rows of
the weight with it, and packs the next into the same memory.  The order of the sum over K depends on channels and kernel alone:
neither the batch, the threads, the layout nor the place of a pixel change the bits of a result.

A gradient of the input with stride s is s convolutions an axis: the result pixels of one remainder modulo s meet the same taps, at
consecutive source cells.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

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
from .layouts import Layouts
from .pack import fill_tables, pack_panel
from .simd import lanes_of, load_element, store_element
from .target import target
from .threads import launch, most_threads, next_task, team_size

DEPTH = 192  # products of one K block: a panel then stays in the first-level cache
PANELS_A_TASK = 8  # about; while they pass, one K block of the weight stays in the second-level cache
MOST_PANELS = 16
MOST_PARTS = 64  # of a transposed convolution
ALIGNMENT = 64

# The cost model, in cycles: to table a tap of a panel, to begin to copy it, to copy a vector with its lanes 1, 2 or more cells
# apart, to store a tile.
TABLE_CYCLES = 50.0
COPY_START_CYCLES = 20.0
COPY_CYCLES = {1: 2.5, 2: 4.0, 3: 26.0}
STORE_CYCLES = 100.0
CYCLES_A_SECOND = 2.5e9

# Fields of the geometry beyond those of the panels.
(
    IMAGES, GROUPS, CHANNELS, FILTERS, PIXELS, KERNEL, SOURCE, SOURCE_IMAGE, RESULT, RESULT_IMAGE, RESULT_CHANNEL, SCATTERED,
    CHANNELS_AT_ONCE, PANELS, SPLITS, TASKS, WEIGHT, FIELDS,
) = range(pack.FIELDS, pack.FIELDS + 18)  # fmt: skip


# ---- kernels -----------------------------------------------------------------------------------------------------------
@kernel()
def _worker(geometry, shifts, weight, bias, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each some panels of one image and group, and a share of the row blocks."""
    g = geometry
    lanes, spare = lanes_of(weight), ALIGNMENT // weight.itemsize
    width = TILE_VECTORS * lanes
    panel = np.empty(g[CHANNELS_AT_ONCE] * g[pack.TAPS_AT_ONCE] * width + spare, weight.dtype)
    panel = panel[-panel.ctypes.data // weight.itemsize % spare :]
    staged = np.empty(g[SCATTERED] * (g[FILTERS] + TILE_ROWS) * width, weight.dtype)
    table = np.empty((g[PANELS] * g[pack.TAPS_AT_ONCE] * TILE_VECTORS * g[pack.SLOTS], 2), np.int64)
    counts, runs = np.empty(g[PANELS] * g[pack.TAPS_AT_ONCE], np.int64), np.empty(g[pack.TAPS_AT_ONCE] + 2, np.int64)
    origins = np.full((g[PANELS], 5), pack.NOWHERE)
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
        first_row, last_row = row_blocks * split // g[SPLITS], row_blocks * (split + 1) // g[SPLITS]
        source = g[SOURCE] + (image * g[SOURCE_IMAGE] + group * g[CHANNELS] * g[pack.SOURCE_CHANNEL]) * weight.itemsize
        result = g[RESULT] + (image * g[RESULT_IMAGE] + group * g[FILTERS] * g[RESULT_CHANNEL]) * weight.itemsize
        for channel in range(0, g[CHANNELS], g[CHANNELS_AT_ONCE]):
            channels, at = min(g[CHANNELS_AT_ONCE], g[CHANNELS] - channel), source + channel * g[pack.SOURCE_CHANNEL] * weight.itemsize
            for tap in range(0, max(g[KERNEL], 1), g[pack.TAPS_AT_ONCE]):
                taps, k = min(g[pack.TAPS_AT_ONCE], g[KERNEL] - tap), channel * g[KERNEL] + tap
                if first != tabled_panel or tap != tabled_tap:
                    fill_tables(g, shifts, first, last, g[PIXELS], tap, taps, lanes, table, counts, origins)
                    tabled_panel, tabled_tap = first, tap
                for number in range(first, last):
                    run_count = pack_panel(g, table, counts, origins, number - first, taps, at, channels, panel, runs)
                    _multiply_panel(g, weight, bias, group, k, first_row, last_row, result, number, panel, runs, run_count, staged)
        if g[SCATTERED]:
            _scatter(g, staged, first_row * TILE_ROWS, min(last_row * TILE_ROWS, g[FILTERS]), result, first * width, width)


@kernel(parallel=True)
def _team(threads, geometry, shifts, weight, bias, counter):  # type: ignore[no-untyped-def]
    for _ in prange(threads):
        _worker(geometry, shifts, weight, bias, counter)


@kernel(forceinline=True)
def _multiply_panel(g, weight, bias, group, k, first_row, last_row, result, number, panel, runs, run_count, staged):  # type: ignore[no-untyped-def]
    """Row blocks [first_row, last_row) of a group's weight, from product ``k`` on, times a panel, into the result or the staged copy.

    ``result`` is the byte address of the group's first pixel.
    """
    width = TILE_VECTORS * lanes_of(weight)
    columns = min(width, g[PIXELS] - number * width)
    step = width if g[SCATTERED] else g[RESULT_CHANNEL]
    start = staged.ctypes.data if g[SCATTERED] else result + number * width * weight.itemsize
    for row in range(first_row, last_row):
        block = group * -(-g[FILTERS] // TILE_ROWS) + row
        offset = g[WEIGHT] + (block * g[CHANNELS] * g[KERNEL] + k) * TILE_ROWS
        address, rows = start + row * TILE_ROWS * step * weight.itemsize, min(TILE_ROWS, g[FILTERS] - row * TILE_ROWS)
        multiply_tile(runs, 0, run_count, weight, offset, panel, 0, address, step, rows, columns, k, bias, block * TILE_ROWS)


@kernel(forceinline=True)
def _scatter(g, staged, first_row, last_row, result, pixel, width):  # type: ignore[no-untyped-def]
    """Copy a staged panel (filters, width) to the result pixels from number ``pixel`` on, which do not follow one another."""
    across, deep, stride = g[pack.RESULT_SIZE + 2], g[pack.RESULT_SIZE + 1], g[pack.RESULT_STRIDE + 2]
    d, h, w = pixel // across // deep, pixel // across % deep, pixel % across
    done, pixels = 0, min(width, g[PIXELS] - pixel)
    while done < pixels:
        length = min(across - w, pixels - done)
        offset = d * g[pack.RESULT_STRIDE] + h * g[pack.RESULT_STRIDE + 1] + w * stride
        for row in range(first_row, last_row):
            address = result + (row * g[RESULT_CHANNEL] + offset) * staged.itemsize
            for i in range(length):
                store_element(address + i * stride * staged.itemsize, staged[row * width + done + i])
        done, w, h = done + length, 0, h + 1
        if h == deep:
            h, d = 0, d + 1


@kernel()
def _pack_weight(numbers, taps, packed, at):  # type: ignore[no-untyped-def]
    """Write one part's weight as (groups, row blocks, K, TILE_ROWS) from packed[at] on: K in the order of the panels, missing rows zero.

    numbers : int64 array: byte address, strides (elements) of a group, a filter and a channel, groups, filters, channels, and the
        channels of a K block; taps : int64 offsets of the part's taps.
    """
    address, of_group, of_filter, of_channel, groups, filters, channels, at_once = numbers
    for group in range(groups):
        for row in range(0, filters, TILE_ROWS):
            rows = min(TILE_ROWS, filters - row)
            for first in range(0, channels, at_once):
                for tap in taps:
                    for channel in range(first, min(first + at_once, channels)):
                        start = address + (group * of_group + row * of_filter + channel * of_channel + tap) * packed.itemsize
                        for r in range(rows):
                            packed[at + r] = load_element(start + r * of_filter * packed.itemsize, packed)
                        for r in range(rows, TILE_ROWS):
                            packed[at + r] = 0
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


class Placed(NamedTuple):
    """A part of the problem in given layouts: geometry without addresses, shifts, and the byte offset of its first result pixel."""

    geometry: NDArray[np.int64]
    shifts: NDArray[np.int64]
    first: int


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

    @cached_property
    def lanes(self) -> int:
        return target().lanes(self.problem.dtype)

    @cached_property
    def channels(self) -> int:
        """Source channels of one group."""
        return self.problem.source_channels // self.problem.groups

    @cached_property
    def filters(self) -> int:
        """Result channels of one group."""
        return self.problem.result_channels // self.problem.groups

    @cached_property
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
        cycles = 0.0
        for part in self.parts:
            taps, panels = tap_count(part), -(-pixel_count(part) // (TILE_VECTORS * self.lanes))
            blocks = -(-self.channels // blocking(self.channels, taps)[0])  # of channels
            copy = taps * (blocks * COPY_START_CYCLES + self.channels * TILE_VECTORS * COPY_CYCLES[min(part[2].step, 3)])
            multiply = self.row_blocks * (self.channels * taps * TILE_ROWS * TILE_VECTORS / 2 + blocks * STORE_CYCLES)
            cycles += panels * (self.problem.groups * (copy + multiply) + taps * TABLE_CYCLES)
        return cycles / CYCLES_A_SECOND

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates: of each thread a panel, tables, and a copy of a panel's results."""
        width, item, most = TILE_VECTORS * self.lanes, np.dtype(self.problem.dtype).itemsize, 0
        for part in self.parts:
            channels, taps = blocking(self.channels, tap_count(part))
            tables = MOST_PANELS * (taps * (2 * TILE_VECTORS * self._slots(part[2].size) + 1) + 5)
            pieces = 4 * (width + 1) * min(len(part[2].taps), taps)
            numbers = tables + pieces + 6 * width + taps + TILE_VECTORS + 2
            most = max(most, (channels * taps + self.filters + TILE_ROWS) * width * item + ALIGNMENT + numbers * 8)
        own = most_threads() * most + FIELDS * 8
        return max(own, Direct().setup(self.problem).workspace) if self.problem.transposed else own

    @property
    def packed_bytes(self) -> int:
        elements = self.weight_starts[-1] + self.problem.groups * self.row_blocks * TILE_ROWS
        return elements * np.dtype(self.problem.dtype).itemsize + 8

    def _slots(self, columns: int) -> int:
        """Entries that one vector of one tap may need where a row has so many pixels."""
        if self.problem.padding_mode != "zeros":
            return self.lanes
        rows = min(self.lanes, (self.lanes - 2) // columns + 2)
        return 4 if rows == 3 else rows

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
            at_once, _ = blocking(self.channels, tap_count(part))
            offsets = [sum(k * step for k, step in zip(tap, steps[2:])) for tap in itertools.product(*(axis.taps for axis in part))]
            _pack_weight(np.array([*numbers, at_once], np.int64), np.array(offsets, np.int64), packed, start)
        padded = np.zeros((p.groups, self.row_blocks * TILE_ROWS), weight.dtype)
        if bias is not None:
            padded[:, : self.filters] = bias.reshape(p.groups, -1)
        return finite, packed, padded.reshape(-1)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        finite, weight, bias, *_ = packed
        if self.problem.transposed and not finite[0]:
            Direct().setup(self.problem).run(source, packed[1:], result)
            return
        seconds = self.seconds * source.shape[0] / len(self.parts)
        threads = team_size(seconds)
        for placed in self._layouts(source, result):
            g = placed.geometry.copy()
            g[SOURCE], g[RESULT], g[pack.SKIPPING] = _address(source), _address(result) + placed.first, finite[0]
            blocks = int(g[TASKS])
            g[SPLITS] = 1 if threads == 1 else min(self.row_blocks, -(-4 * threads // blocks))
            g[TASKS] = blocks * g[SPLITS]
            launch(_worker, _team, (g, placed.shifts, weight, bias), int(g[TASKS]), seconds)

    @cached_property
    def _layouts(self) -> Layouts[list[Placed]]:
        def place(source: AnyArray, result: AnyArray) -> list[Placed]:
            return [
                self._place(part, start, len(source), source.strides, result.strides) for part, start in zip(self.parts, self.weight_starts)
            ]

        return Layouts(place)

    def _place(self, part: Part, start: int, batch: int, source: tuple[int, ...], result: tuple[int, ...]) -> Placed:
        p, g, item = self.problem, np.zeros(FIELDS, np.int64), np.dtype(self.problem.dtype).itemsize
        lines = merged([
            Line(n, s // item, axis.size, t // item * axis.stride, axis.step, axis.shifts)
            for axis, n, s, t in zip(part, p.source_size, source[2:], result[2:])
        ])  # fmt: skip
        for i, line in enumerate(lines):
            g[i : pack.MODE : 3] = [*line[:5], len(line.shifts)]
        step = lines[2].step * lines[2].source_stride
        g[pack.MODE], g[pack.SLOTS] = PADDING_MODES.index(p.padding_mode), self._slots(lines[2].size)
        g[pack.LANE_STEP], g[pack.SPACING] = step, {1: pack.UNIT, 2: pack.EVEN}.get(step, pack.SPREAD)
        g[IMAGES], g[GROUPS], g[CHANNELS], g[FILTERS] = batch, p.groups, self.channels, self.filters
        g[PIXELS], g[KERNEL], g[WEIGHT] = pixel_count(part), tap_count(part), start
        g[CHANNELS_AT_ONCE], g[pack.TAPS_AT_ONCE] = blocking(self.channels, tap_count(part))
        g[SOURCE_IMAGE], g[pack.SOURCE_CHANNEL], g[RESULT_IMAGE], g[RESULT_CHANNEL] = (s // item for s in (*source[:2], *result[:2]))
        g[SCATTERED] = not is_contiguous(lines)
        panels = -(-pixel_count(part) // (TILE_VECTORS * self.lanes))
        repeat = lines[2].size // math.gcd(lines[2].size, TILE_VECTORS * self.lanes)  # panels until one begins in the first one's column
        g[PANELS] = 1 if g[SCATTERED] else min(max(1, PANELS_A_TASK // repeat) * repeat, MOST_PANELS, panels)
        g[TASKS] = -(-panels // int(g[PANELS])) * batch * p.groups
        shifts = np.array([shift for line in lines for shift in line.shifts], np.int64)
        return Placed(g, shifts, sum(axis.first * step for axis, step in zip(part, result[2:])))


def blocking(channels: int, kernel: int) -> tuple[int, int]:
    """Channels and taps of one K block, as even as they can be; more than one block of taps only for one channel."""
    taps = max(kernel, 1)
    most = max(1, DEPTH // taps)
    return -(-channels // -(-channels // most)), -(-taps // -(-taps // DEPTH))


def _address(array: AnyArray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
