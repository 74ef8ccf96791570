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
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba.core import config
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import ELEMENTS, AnyArray
from ..axes import Line, Part, is_contiguous, merged, pixel_count, tap_count
from ..choose import Accuracy
from ..layouts import Layouts
from ..problem import Problem
from . import pack
from .compile import kernel
from .direct import Direct
from .elements import like, store_sums, store_sums_turned
from .gemm import LINE_BYTES, TILE_ROWS, TILE_VECTORS, multiply_tile
from .gemm_shape import MOST_PANELS, MOST_PARTS, MOST_TURNED_BYTES, GemmShape, blocking, splits_of
from .layouts import address
from .pack import fill_tables, pack_panel, products_of
from .pack_weight import as_real, pack_weight
from .simd import address_of, lanes_of
from .target import target
from .threads import most_threads, next_task, share, team_size

PANELS_A_TASK = 8  # about; while they pass, one K block of the weight stays in the second-level cache
STAGED_BYTES = 256 << 10  # of results that are staged, unless one panel needs more
ALIGNMENT = 64
NEVER = 1 << 62

# Fields of the geometry beyond those of the panels.
(
    IMAGES, GROUPS, CHANNELS, ROWS, PIXELS, KERNEL, SOURCE, SOURCE_IMAGE, RESULT, RESULT_IMAGE, RESULT_CHANNEL, SCATTERED,
    STAGED, CHANNELS_AT_ONCE, PANELS, SPLITS, TASKS, WEIGHT, TURNED, BLOCK, STAGED_ROW, FIELDS,
) = range(pack.FIELDS, pack.FIELDS + 22)  # fmt: skip


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
    each = products_of(g, g[CHANNELS_AT_ONCE]) * g[pack.TAPS_AT_ONCE] * width  # elements of a panel
    panel = np.empty((g[PANELS] if g[TURNED] else 1) * each + spare, weight.dtype)
    panel = panel[-panel.ctypes.data // weight.itemsize % spare :]
    stage = g[STAGED_ROW] * (width if g[TURNED] else g[ROWS] + TILE_ROWS)  # elements of a panel's
    staged = np.empty(g[STAGED] * g[PANELS] * stage, weight.dtype)
    table = np.empty((g[PANELS] * g[pack.TAPS_AT_ONCE] * TILE_VECTORS * g[pack.SLOTS], 2), np.int64)
    apart = (stage if g[STAGED] else width) * weight.itemsize
    counts, runs = np.empty(g[PANELS] * g[pack.TAPS_AT_ONCE], np.int64), np.empty(g[PANELS] * (g[pack.TAPS_AT_ONCE] + 2), np.int64)
    origins, run_counts = np.full((g[PANELS], 5), pack.NOWHERE), np.zeros(g[PANELS], np.int64)
    row_blocks = -(-g[ROWS] // g[BLOCK])
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
                    i = number - first
                    start, run = (i * each, i * (taps // 2 + 1)) if g[TURNED] else (0, 0)
                    run_counts[i] = pack_panel(g, table, counts, origins, i, taps, at, channels, source_like, panel, start, runs, run)
                    if not g[TURNED]:
                        _multiply_panel(g, weight, bias, group, k, first_row, last_row, into, number, panel, runs, run_counts[i])
                    into += apart
                if g[TURNED]:
                    next_k, runs_each = k + taps * products_of(g, channels), taps // 2 + 1
                    _multiply_turned(
                        g, weight, bias, group, k, next_k, first_row, last_row, address_of(staged), first, last, panel, each,
                        runs, runs_each, run_counts, result + first * width * result_like.itemsize, result_like.itemsize,
                    )  # fmt: skip
        if g[STAGED]:
            _unstage(g, staged, stage, first_row * g[BLOCK], min(last_row * g[BLOCK], g[ROWS]), result, first, last, result_like)


@kernel(forceinline=True)
def _multiply_panel(g, weight, bias, group, k, first_row, last_row, into, number, panel, runs, run_count):  # type: ignore[no-untyped-def]
    """Row blocks [first_row, last_row) of a group's weight, from product ``k`` on, times a panel, into the result or the staged copy.

    ``into`` is the byte address of the panel's first pixel there.
    """
    width = TILE_VECTORS * lanes_of(weight)
    columns = min(width, g[PIXELS] - number * width)
    step, products = g[STAGED_ROW] if g[STAGED] else g[RESULT_CHANNEL], products_of(g, g[CHANNELS]) * g[KERNEL]
    for row in range(first_row, last_row):
        block = group * -(-g[ROWS] // TILE_ROWS) + row
        offset = g[WEIGHT] + (block * products + k) * TILE_ROWS
        address, rows = into + row * TILE_ROWS * step * weight.itemsize, min(TILE_ROWS, g[ROWS] - row * TILE_ROWS)
        multiply_tile(
            runs, 0, run_count, weight, offset, TILE_ROWS, panel, 0, 0, address, step, rows, columns, k, bias, block * TILE_ROWS, address, 0
        )  # fmt: skip


@kernel(forceinline=True)
def _multiply_turned(  # type: ignore[no-untyped-def]
    g,
    weight,
    bias,
    group,
    k,
    next_k,
    first_row,
    last_row,
    staged,
    first,
    last,
    panel,
    each,
    runs,
    runs_each,
    run_counts,
    result,
    result_item,
):
    """Row blocks times the panels [first, last) with the roles of the two turned: pixels are broadcast, rows of the weight are lanes.

    Each block of the weight is read from far away while the one before is multiplied.
    """
    width = TILE_VECTORS * lanes_of(weight)
    products, blocks = products_of(g, g[CHANNELS]) * g[KERNEL], -(-g[ROWS] // width)
    for row in range(first_row, last_row):
        block, columns = group * blocks + row, min(width, g[ROWS] - row * width)
        offset = g[WEIGHT] + (block * products + k) * width
        ahead = offset + products * width if row + 1 < last_row else g[WEIGHT] + ((group * blocks + first_row) * products + next_k) * width
        ahead, ahead_step = address_of(weight) + ahead * weight.itemsize, LINE_BYTES
        ahead_end = ahead + (next_k - k) * width * weight.itemsize
        for number in range(first, last):
            i, pixels = number - first, min(width, g[PIXELS] - number * width)
            for pixel in range(0, pixels, TILE_ROWS):
                address = staged + ((i * width + pixel) * g[STAGED_ROW] + row * width) * weight.itemsize
                multiply_tile(
                    runs, i * runs_each, run_counts[i], panel, i * each + pixel, width, weight, offset, 1, address, g[STAGED_ROW],
                    min(TILE_ROWS, pixels - pixel), columns, k, bias, block * width, ahead, ahead_step,
                )  # fmt: skip
                ahead += (next_k - k) * ahead_step
                if ahead >= ahead_end and next_k == products:  # the weight is there: now the lines that _unstage will write
                    ahead, ahead_end = result + row * width * g[RESULT_CHANNEL] * result_item, NEVER


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
        if g[TURNED]:
            length = min(length, lanes_of(staged))
        offset = d * g[pack.RESULT_STRIDE] + h * g[pack.RESULT_STRIDE + 1] + w * stride
        if g[TURNED]:
            for row in range(first_row, last_row, lanes_of(staged)):
                address, rows = result + (row * g[RESULT_CHANNEL] + offset) * like.itemsize, min(lanes_of(staged), last_row - row)
                at = start + done * g[STAGED_ROW] + row
                store_sums_turned(staged, at, g[STAGED_ROW], length, rows, address, g[RESULT_CHANNEL], stride, like)
        for row in range(last_row if g[TURNED] else first_row, last_row, g[pack.COMPONENTS]):
            address = result + (row // g[pack.COMPONENTS] * g[RESULT_CHANNEL] + offset) * like.itemsize
            store_sums(staged, start + row * width + done, width, length, address, stride, like)
        done, w = done + length, w + length
        if w == across:
            w, h = 0, h + 1
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
    """A part of the problem in given layouts: geometry without addresses, shifts, byte offset of its first result pixel, unsplit tasks."""

    geometry: NDArray[np.int64]
    shifts: NDArray[np.int64]
    first: int
    tasks: int


class ImplicitGemmSetup(GemmShape):
    """Implicit GEMM set up for one problem.

    ``pack`` returns an int64 flag (is the weight finite?), then the padded weight and bias.  A transposed convolution with a weight that is
    not finite is left to ``direct``, whose packing then follows the flag: panels hold zeros where the source has no cell, and a
    transposed convolution multiplies no zeros.
    """

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates: of each thread a panel, tables, and a copy of a panel's results."""
        width, item, most = TILE_VECTORS * self.lanes, self.kind.sums.itemsize, 0
        stage, panels = self._staged_panels * self._stage, self._staged_panels if self.turned else 1
        for part in self.parts:
            channels, taps = blocking(self.channels, tap_count(part), self.kind)
            tables = MOST_PANELS * (taps * (2 * TILE_VECTORS * self.slots(part[2].size) + 2) + 8)
            pieces = 4 * (width + 1) * min(len(part[2].taps), taps)
            numbers = tables + pieces + 6 * width + TILE_VECTORS
            most = max(most, panels * self.kind.products(channels) * taps * width * item + stage + ALIGNMENT + numbers * 8)
        own = most_threads() * most + FIELDS * 8
        return max(own, Direct().setup(self.problem).workspace) if self.problem.transposed else own

    @cached_property
    def _narrows(self) -> bool:
        """Whether results are not stored as the sums are."""
        return ELEMENTS[self.problem.out_dtype].storage.itemsize != self.kind.sums.itemsize

    @property
    def _staged_row(self) -> int:
        """Elements of one row of what is staged: of the rows of a panel, or of the pixels where roles are turned (off one cache set)."""
        width = TILE_VECTORS * self.lanes
        return self.row_blocks * width + self.lanes if self.turned else width

    @cached_property
    def _stage(self) -> int:
        """Bytes of a panel's results that are staged."""
        rows = TILE_VECTORS * self.lanes if self.turned else self.rows + TILE_ROWS
        return rows * self._staged_row * self.kind.sums.itemsize

    @cached_property
    def _staged_panels(self) -> int:
        """Panels of a task whose results are staged."""
        return max(1, min((MOST_TURNED_BYTES if self.turned else STAGED_BYTES) // self._stage, MOST_PANELS))

    @property
    def packed_bytes(self) -> int:
        return (self.weight_starts[-1] + self._bias_size) * self.kind.sums.itemsize + 8

    @property
    def _bias_size(self) -> int:
        """Elements of the padded bias, of which the microkernel may read some beyond the last row's."""
        return self.problem.groups * self.row_blocks * self.block + TILE_VECTORS * self.lanes

    # ---- arrays --------------------------------------------------------------------------------------------------
    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p = self.problem
        given, finite = weight, np.ones(1, np.int64)
        together, components = self.kind.together, self.kind.components
        if components == 2:
            weight = as_real(weight, p.transposed)
        weight = weight.astype(np.int16 if together == 2 else self.kind.sums, copy=False)
        elements, spare = self.weight_starts[-1] * together, ALIGNMENT // weight.itemsize
        packed = np.empty(elements + spare, weight.dtype)
        first = -address(packed) // weight.itemsize % spare
        packed = packed[first : first + elements]
        for start, numbers, taps in self._orders(weight, weight):
            own = numbers.copy()
            own[0] = address(weight)
            finite[0] &= pack_weight(own, taps, packed, start * together)
        if p.transposed and not finite[0]:
            return finite, *Direct().setup(p).pack(given, bias)
        padded = np.zeros(self._bias_size // components, ELEMENTS[p.dtype].accumulator)
        if bias is not None:
            rows = padded[: p.groups * self.row_blocks * self.block // components].reshape(p.groups, -1)
            rows[:, : p.result_channels // p.groups] = bias.reshape(p.groups, -1)
        return finite, packed.view(self.kind.sums), padded.view(self.kind.sums)

    @cached_property
    def _orders(self) -> Layouts[list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]]:
        """Of a weight's layout: where each part's packed weight starts, and ``pack_weight``'s numbers, but the address, and taps."""

        def order(weight: AnyArray, _: AnyArray) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
            p, components = self.problem, self.kind.components
            steps = [step // weight.itemsize for step in weight.strides]
            of_filter, of_channel = (steps[1], steps[0]) if p.transposed else (steps[0], steps[1])
            of_group, channels = steps[0] * p.out_per_group * components, self.channels * components
            found = []
            for start, part in dict(zip(self.weight_starts, self.parts)).items():
                at_once = blocking(self.channels, tap_count(part), self.kind)[0] * components
                numbers = [0, of_group, of_filter, of_channel, p.groups, self.rows, channels, at_once, self.kind.together, self.block]
                offsets = [sum(k * step for k, step in zip(tap, steps[2:])) for tap in itertools.product(*(axis.taps for axis in part))]
                found.append((start, np.array(numbers, np.int64), np.array(offsets, np.int64)))
            return found

        return Layouts(order)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        finite, weight, bias, *_ = packed
        if self.problem.transposed and not finite[0]:
            Direct().setup(self.problem).run(source, packed[1:], result)
            return
        seconds = self.seconds * source.shape[0] / len(self.parts)
        threads, from_address, to_address = team_size(seconds), address(source), address(result)
        placed_parts = self._layouts(source, result)
        if self.problem.transposed and not all(placed.geometry[KERNEL] for placed in placed_parts) and not bias.view(np.uint8).any():
            result[...] = 0  # all at once takes less time than every other cell
            placed_parts = [placed for placed in placed_parts if placed.geometry[KERNEL]]
        for placed in placed_parts:
            g, tasks = placed.geometry.copy(), placed.tasks
            g[SOURCE], g[RESULT], g[pack.SKIPPING] = from_address, to_address + placed.first, finite[0]
            if threads > 1:
                splits = splits_of(tasks, self.row_blocks, threads)
                tasks *= splits
                g[SPLITS], g[TASKS] = splits, tasks
            share(_worker, (g, placed.shifts, weight, bias, *self._likes), tasks, seconds)

    @cached_property
    def _likes(self) -> tuple[AnyArray, AnyArray]:
        return like(self.problem.dtype), like(self.problem.out_dtype)

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
        g[pack.MODE], g[pack.SLOTS] = PADDING_MODES.index(p.padding_mode), self.slots(lines[2].size)
        g[pack.LANE_STEP], g[pack.SPACING] = step, {1: pack.UNIT, 2: pack.EVEN}.get(step, pack.SPREAD)
        g[IMAGES], g[GROUPS], g[CHANNELS], g[ROWS] = batch, p.groups, self.channels, self.rows
        g[PIXELS], g[KERNEL], g[WEIGHT] = pixel_count(part), tap_count(part), start
        g[CHANNELS_AT_ONCE], g[pack.TAPS_AT_ONCE] = blocking(self.channels, tap_count(part), self.kind)
        g[SOURCE_IMAGE], g[pack.SOURCE_CHANNEL], g[RESULT_IMAGE], g[RESULT_CHANNEL] = (
            *(s // item for s in source[:2]),
            *(s // result_item for s in result[:2]),
        )
        g[SCATTERED], g[pack.TOGETHER], g[pack.COMPONENTS] = not is_contiguous(lines), self.kind.together, self.kind.components
        g[STAGED] = g[SCATTERED] or self._narrows or self.turned
        g[TURNED], g[BLOCK], g[STAGED_ROW] = self.turned, self.block, self._staged_row
        panels = -(-pixel_count(part) // (TILE_VECTORS * self.lanes))
        repeat = self.columns(lines[2].size)
        most = min(max(1, PANELS_A_TASK // repeat) * repeat, self._staged_panels if g[STAGED] else MOST_PANELS, panels)
        runs = -(-panels // most)
        g[PANELS] = most if most % repeat == 0 else -(-panels // runs)  # tables serve again from one run to the next, or runs are even
        tasks = runs * batch * p.groups
        g[SPLITS], g[TASKS] = 1, tasks
        shifts = np.array([shift for line in lines for shift in line.shifts], np.int64)
        return Placed(g, shifts, sum(axis.first * step for axis, step in zip(part, result[2:])), tasks)
