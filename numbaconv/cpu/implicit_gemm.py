"""Implicit GEMM: a convolution as a matrix product whose second operand, im2col, exists one cache-sized panel at a time.

The result of one image and group is (filters, pixels) = weight (filters, K) times im2col (K, pixels) with K = channels * taps.  A task
takes a few panels of pixels through the blocks of K, one after the other: it packs a panel for the block, multiplies all rows of
the weight with it, and packs the next into the same memory.  The order of the sum over K depends on channels and kernel alone:
neither the batch, the threads, the layout nor the place of a pixel change the bits of a result.

A complex convolution is a real one of the components: two rows of the weight a filter, two products a channel (``pack_weight.as_real``).

Results whose dtype is not that of the sums, or whose pixels do not follow one another in memory, are staged: the sums of a task's
panels stay in memory of their own through all blocks of K, and are rounded or truncated once.

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
from numba.core import config
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import ELEMENTS, AnyArray
from ..choose import Accuracy
from ..problem import Problem
from . import pack
from .axes import Line, Part, axis_parts, is_contiguous, merged, pixel_count, tap_count
from .compile import kernel
from .direct import Direct
from .elements import Kind, kind_of, like, store_sums
from .gemm import TILE_ROWS, TILE_VECTORS, multiply_tile
from .layouts import Layouts
from .pack import fill_tables, pack_panel, products_of
from .pack_weight import as_real, pack_weight
from .simd import address_of, lanes_of
from .target import target
from .threads import most_threads, next_task, share, team_size

DEPTH = 192  # products of one K block: a panel then stays in the first-level cache
PANELS_A_TASK = 8  # about; while they pass, one K block of the weight stays in the second-level cache
MOST_PANELS = 16
STAGED_BYTES = 256 << 10  # of results that are staged, unless one panel needs more
MOST_PARTS = 64  # of a transposed convolution
ALIGNMENT = 64

# The cost model, in cycles: to table a tap of a panel, to begin to copy it, to copy a vector of one channel with its lanes 1, 2 or
# more cells apart, to multiply a vector by one weight and add it, to store a tile.
TABLE_CYCLES = 50.0
COPY_START_CYCLES = 20.0
COPY_CYCLES = {1: 2.5, 2: 4.0, 3: 26.0}
PRODUCT_CYCLES = {"float32": 0.5, "float64": 0.5, "uint32": 0.5 if target().fused_pairs else 1.0, "int32": 1.4, "int64": 2.0}
STORE_CYCLES = 100.0
CYCLES_A_SECOND = 2.5e9

# Fields of the geometry beyond those of the panels.
(
    IMAGES, GROUPS, CHANNELS, ROWS, PIXELS, KERNEL, SOURCE, SOURCE_IMAGE, RESULT, RESULT_IMAGE, RESULT_CHANNEL, SCATTERED,
    STAGED, CHANNELS_AT_ONCE, PANELS, SPLITS, TASKS, WEIGHT, FIELDS,
) = range(pack.FIELDS, pack.FIELDS + 19)  # fmt: skip


# ---- kernels -----------------------------------------------------------------------------------------------------------
@kernel()
def _worker(geometry, shifts, weight, bias, source_like, result_like, counter):  # type: ignore[no-untyped-def]
    """Tasks until none is left: each some panels of one image and group, and a share of the row blocks.

    weight, bias : arrays of the dtype of the sums, or of uint32 where the weight is of pairs; source_like, result_like : empty arrays that
        tell the dtypes behind the addresses in ``geometry``.
    """
    g = geometry
    lanes, spare = lanes_of(weight), ALIGNMENT // weight.itemsize
    width = TILE_VECTORS * lanes
    panel = np.empty(products_of(g, g[CHANNELS_AT_ONCE]) * g[pack.TAPS_AT_ONCE] * width + spare, weight.dtype)
    panel = panel[-panel.ctypes.data // weight.itemsize % spare :]
    stage = (g[ROWS] + TILE_ROWS) * width  # of one panel
    staged = np.empty(g[STAGED] * g[PANELS] * stage, weight.dtype)
    table = np.empty((g[PANELS] * g[pack.TAPS_AT_ONCE] * TILE_VECTORS * g[pack.SLOTS], 2), np.int64)
    apart = (stage if g[STAGED] else width) * weight.itemsize
    counts, runs = np.empty(g[PANELS] * g[pack.TAPS_AT_ONCE], np.int64), np.empty(g[pack.TAPS_AT_ONCE] + 2, np.int64)
    origins = np.full((g[PANELS], 5), pack.NOWHERE)
    row_blocks = -(-g[ROWS] // TILE_ROWS)
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
        source = g[SOURCE] + (image * g[SOURCE_IMAGE] + group * g[CHANNELS] * g[pack.SOURCE_CHANNEL]) * source_like.itemsize
        result = g[RESULT] + (image * g[RESULT_IMAGE] + group * g[ROWS] // g[pack.COMPONENTS] * g[RESULT_CHANNEL]) * result_like.itemsize
        for channel in range(0, g[CHANNELS], g[CHANNELS_AT_ONCE]):
            channels, at = min(g[CHANNELS_AT_ONCE], g[CHANNELS] - channel), source + channel * g[pack.SOURCE_CHANNEL] * source_like.itemsize
            for tap in range(0, max(g[KERNEL], 1), g[pack.TAPS_AT_ONCE]):
                taps = min(g[pack.TAPS_AT_ONCE], g[KERNEL] - tap)
                k = products_of(g, channel) * g[KERNEL] + tap * g[pack.COMPONENTS]
                if first != tabled_panel or tap != tabled_tap:
                    fill_tables(g, shifts, first, last, g[PIXELS], tap, taps, lanes, table, counts, origins)
                    tabled_panel, tabled_tap = first, tap
                into = address_of(staged) if g[STAGED] else result + first * apart
                for number in range(first, last):
                    run_count = pack_panel(g, table, counts, origins, number - first, taps, at, channels, source_like, panel, runs)
                    _multiply_panel(g, weight, bias, group, k, first_row, last_row, into, number, panel, runs, run_count)
                    into += apart
        if g[STAGED]:
            _unstage(g, staged, stage, first_row * TILE_ROWS, min(last_row * TILE_ROWS, g[ROWS]), result, first, last, result_like)


@kernel(forceinline=True)
def _multiply_panel(g, weight, bias, group, k, first_row, last_row, into, number, panel, runs, run_count):  # type: ignore[no-untyped-def]
    """Row blocks [first_row, last_row) of a group's weight, from product ``k`` on, times a panel, into the result or the staged copy.

    ``into`` is the byte address of the panel's first pixel there.
    """
    width = TILE_VECTORS * lanes_of(weight)
    columns = min(width, g[PIXELS] - number * width)
    step, products = width if g[STAGED] else g[RESULT_CHANNEL], products_of(g, g[CHANNELS]) * g[KERNEL]
    for row in range(first_row, last_row):
        block = group * -(-g[ROWS] // TILE_ROWS) + row
        offset = g[WEIGHT] + (block * products + k) * TILE_ROWS
        address, rows = into + row * TILE_ROWS * step * weight.itemsize, min(TILE_ROWS, g[ROWS] - row * TILE_ROWS)
        multiply_tile(runs, 0, run_count, weight, offset, panel, 0, address, step, rows, columns, k, bias, block * TILE_ROWS)


@kernel(forceinline=True)
def _unstage(g, staged, stage, first_row, last_row, result, first, last, like):  # type: ignore[no-untyped-def]
    """Round or truncate the staged panels [first, last), each (rows, width), into the result; one panel takes ``stage`` elements."""
    for number in range(first, last):
        _unstage_panel(g, staged, (number - first) * stage, first_row, last_row, result, number, like)


@kernel(forceinline=True)
def _unstage_panel(g, staged, start, first_row, last_row, result, number, like):  # type: ignore[no-untyped-def]
    width = TILE_VECTORS * lanes_of(staged)
    pixel = number * width
    across, deep, stride = g[pack.RESULT_SIZE + 2], g[pack.RESULT_SIZE + 1], g[pack.RESULT_STRIDE + 2]
    if not g[SCATTERED]:
        across, deep, stride = g[PIXELS], 1, 1
    d, h, w = pixel // across // deep, pixel // across % deep, pixel % across
    done, pixels = 0, min(width, g[PIXELS] - pixel)
    while done < pixels:
        length = min(across - w, pixels - done)
        offset = d * g[pack.RESULT_STRIDE] + h * g[pack.RESULT_STRIDE + 1] + w * stride
        for row in range(first_row, last_row, g[pack.COMPONENTS]):
            address = result + (row // g[pack.COMPONENTS] * g[RESULT_CHANNEL] + offset) * like.itemsize
            store_sums(staged, start + row * width + done, width, length, address, stride, like)
        done, w, h = done + length, 0, h + 1
        if h == deep:
            h, d = 0, d + 1


# ---- the algorithm -----------------------------------------------------------------------------------------------------
class ImplicitGemm:
    """The algorithm for dense problems."""

    name = "implicit_gemm"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        if problem.dtype == "float16" and not target().float16:
            return "the processor does not convert float16"
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
        return -(-self.rows // TILE_ROWS)

    @cached_property
    def weight_starts(self) -> list[int]:
        """Where each part's weight starts in the packed one; the last is the end."""
        row = self.problem.groups * self.row_blocks * TILE_ROWS * self.kind.products(self.channels)
        return [0, *itertools.accumulate(row * tap_count(part) for part in self.parts)]

    @cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        cycles = 0.0
        for part in self.parts:
            taps, vectors = tap_count(part), -(-pixel_count(part) // self.lanes)
            panels, products = -(-vectors // TILE_VECTORS), self.kind.products(self.channels) * taps
            blocks = -(-self.channels // blocking(self.channels, taps, self.kind)[0])  # of channels
            copies = vectors * taps * self.channels * self.kind.components
            copy = panels * taps * blocks * COPY_START_CYCLES + copies * COPY_CYCLES[min(part[2].step, 3)]
            multiply = vectors * products * TILE_ROWS * PRODUCT_CYCLES[self.kind.sums.name] + panels * blocks * STORE_CYCLES
            cycles += self.problem.groups * (copy + self.row_blocks * multiply) + panels * taps * TABLE_CYCLES * self._tabled(part)
        return cycles / CYCLES_A_SECOND

    def _tabled(self, part: Part) -> float:
        """Share of the panels that need tables of their own: all, or those near the borders of depth and height."""
        if self._columns(part[2].size) > MOST_PANELS:
            return 1.0
        shared = 1.0
        for axis, size in zip(part[:2], self.problem.source_size):
            first = -min(0, *axis.shifts, 0) // axis.step
            last = min(axis.size - 1, (size - 1 - max(0, *axis.shifts, 0)) // axis.step)
            shared *= max(0, last - first + 1) / axis.size
        return 1.0 - shared

    def _columns(self, across: int) -> int:
        """Panels until one begins in the first one's column, in rows of so many pixels."""
        return across // math.gcd(across, TILE_VECTORS * self.lanes)

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates: of each thread a panel, tables, and a copy of a panel's results."""
        width, item, most = TILE_VECTORS * self.lanes, self.kind.sums.itemsize, 0
        stage = self._staged_panels * (self.rows + TILE_ROWS) * width * item
        for part in self.parts:
            channels, taps = blocking(self.channels, tap_count(part), self.kind)
            tables = MOST_PANELS * (taps * (2 * TILE_VECTORS * self._slots(part[2].size) + 1) + 5)
            pieces = 4 * (width + 1) * min(len(part[2].taps), taps)
            numbers = tables + pieces + 6 * width + taps + TILE_VECTORS + 2
            most = max(most, self.kind.products(channels) * taps * width * item + stage + ALIGNMENT + numbers * 8)
        own = most_threads() * most + FIELDS * 8
        return max(own, Direct().setup(self.problem).workspace) if self.problem.transposed else own

    @cached_property
    def _narrows(self) -> bool:
        """Whether results are not stored as the sums are."""
        return ELEMENTS[self.problem.out_dtype].storage.itemsize != self.kind.sums.itemsize

    @cached_property
    def _staged_panels(self) -> int:
        """Panels of a task whose results are staged."""
        one = (self.rows + TILE_ROWS) * TILE_VECTORS * self.lanes * self.kind.sums.itemsize
        return max(1, min(STAGED_BYTES // one, MOST_PANELS))

    @property
    def packed_bytes(self) -> int:
        elements = self.weight_starts[-1] + self.problem.groups * self.row_blocks * TILE_ROWS
        return elements * self.kind.sums.itemsize + 8

    def _slots(self, columns: int) -> int:
        """Entries that one vector of one tap may need where a row has so many pixels."""
        if self.problem.padding_mode != "zeros":
            return self.lanes
        rows = min(self.lanes, (self.lanes - 2) // columns + 2)
        return 4 if rows == 3 else rows

    # ---- arrays --------------------------------------------------------------------------------------------------
    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p = self.problem
        given, finite = weight, np.ones(1, np.int64)
        together, components = self.kind.together, self.kind.components
        if components == 2:
            weight = as_real(weight, p.transposed)
        weight = weight.astype(np.int16 if together == 2 else self.kind.sums, copy=False)
        packed = np.empty(self.weight_starts[-1] * together, weight.dtype)
        steps = [step // weight.itemsize for step in weight.strides]
        of_filter, of_channel = (steps[1], steps[0]) if p.transposed else (steps[0], steps[1])
        of_group, channels = steps[0] * p.out_per_group * components, self.channels * components
        numbers = [_address(weight), of_group, of_filter, of_channel, p.groups, self.rows, channels]
        for part, start in zip(self.parts, self.weight_starts):
            at_once = blocking(self.channels, tap_count(part), self.kind)[0] * components
            offsets = [sum(k * step for k, step in zip(tap, steps[2:])) for tap in itertools.product(*(axis.taps for axis in part))]
            own, taps = np.array([*numbers, at_once, together], np.int64), np.array(offsets, np.int64)
            finite[0] &= pack_weight(own, taps, packed, start * together)
        if p.transposed and not finite[0]:
            return finite, *Direct().setup(p).pack(given, bias)
        padded = np.zeros((p.groups, self.row_blocks * TILE_ROWS // components), ELEMENTS[p.dtype].accumulator)
        if bias is not None:
            padded[:, : p.result_channels // p.groups] = bias.reshape(p.groups, -1)
        return finite, packed.view(self.kind.sums), padded.reshape(-1).view(self.kind.sums)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        finite, weight, bias, *_ = packed
        if self.problem.transposed and not finite[0]:
            Direct().setup(self.problem).run(source, packed[1:], result)
            return
        seconds = self.seconds * source.shape[0] / len(self.parts)
        threads, likes = team_size(seconds), (like(self.problem.dtype), like(self.problem.out_dtype))
        for placed in self._layouts(source, result):
            g = placed.geometry.copy()
            g[SOURCE], g[RESULT], g[pack.SKIPPING] = _address(source), _address(result) + placed.first, finite[0]
            blocks = int(g[TASKS])
            g[SPLITS] = 1 if threads == 1 else min(self.row_blocks, -(-4 * threads // blocks))
            g[TASKS] = blocks * g[SPLITS]
            share(_worker, (g, placed.shifts, weight, bias, *likes), int(g[TASKS]), seconds)

    @cached_property
    def _layouts(self) -> Layouts[list[Placed]]:
        def place(source: AnyArray, result: AnyArray) -> list[Placed]:
            return [
                self._place(part, start, len(source), source.strides, result.strides) for part, start in zip(self.parts, self.weight_starts)
            ]

        return Layouts(place)

    def _place(self, part: Part, start: int, batch: int, source: tuple[int, ...], result: tuple[int, ...]) -> Placed:
        p, g = self.problem, np.zeros(FIELDS, np.int64)
        item, result_item = (ELEMENTS[dtype].storage.itemsize for dtype in (p.dtype, p.out_dtype))
        lines = merged([
            Line(n, s // item, axis.size, t // result_item * axis.stride, axis.step, axis.shifts)
            for axis, n, s, t in zip(part, p.source_size, source[2:], result[2:])
        ])  # fmt: skip
        for i, line in enumerate(lines):
            g[i : pack.MODE : 3] = [*line[:5], len(line.shifts)]
        step = lines[2].step * lines[2].source_stride
        g[pack.MODE], g[pack.SLOTS] = PADDING_MODES.index(p.padding_mode), self._slots(lines[2].size)
        g[pack.LANE_STEP], g[pack.SPACING] = step, {1: pack.UNIT, 2: pack.EVEN}.get(step, pack.SPREAD)
        g[IMAGES], g[GROUPS], g[CHANNELS], g[ROWS] = batch, p.groups, self.channels, self.rows
        g[PIXELS], g[KERNEL], g[WEIGHT] = pixel_count(part), tap_count(part), start
        g[CHANNELS_AT_ONCE], g[pack.TAPS_AT_ONCE] = blocking(self.channels, tap_count(part), self.kind)
        g[SOURCE_IMAGE], g[pack.SOURCE_CHANNEL], g[RESULT_IMAGE], g[RESULT_CHANNEL] = (
            *(s // item for s in source[:2]),
            *(s // result_item for s in result[:2]),
        )
        g[SCATTERED], g[pack.TOGETHER], g[pack.COMPONENTS] = not is_contiguous(lines), self.kind.together, self.kind.components
        g[STAGED] = g[SCATTERED] or self._narrows
        panels = -(-pixel_count(part) // (TILE_VECTORS * self.lanes))
        repeat = self._columns(lines[2].size)
        g[PANELS] = min(max(1, PANELS_A_TASK // repeat) * repeat, self._staged_panels if g[STAGED] else MOST_PANELS, panels)
        g[TASKS] = -(-panels // int(g[PANELS])) * batch * p.groups
        shifts = np.array([shift for line in lines for shift in line.shifts], np.int64)
        return Placed(g, shifts, sum(axis.first * step for axis, step in zip(part, result[2:])))


def blocking(channels: int, kernel: int, kind: Kind) -> tuple[int, int]:
    """Channels and taps of one K block, as even as they can be; more than one block of taps only for the channels of one product."""
    taps, units, depth = max(kernel, 1), -(-channels // kind.together), DEPTH // kind.components
    most = max(1, depth // taps)
    return -(-units // -(-units // most)) * kind.together, -(-taps // -(-taps // depth))


def _address(array: AnyArray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
