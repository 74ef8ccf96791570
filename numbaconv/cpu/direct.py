"""Direct convolution: any problem, any dtype, both directions, straight from the definition.

One row of the result at a time.  For every source row that meets it, the cells that its taps read are gathered into a short
line (padding by index, any strides, halves widened), and every tap adds ``weight * line`` to the rows of a block of result
channels.  An input gradient (and so a transposed convolution) only changes which cells a tap reads and writes, so both
directions are one kernel.  With a padding mode other than zeros it also folds back: a result cell collects what its padded
copies get.

The order of an element's sum is fixed: bias, then source channels, then (padded copies and) taps, in memory order.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import ELEMENTS, NARROW_INTEGERS, AnyArray
from ..choose import Accuracy
from ..layouts import Layouts
from ..padding import PADDING
from ..problem import Problem
from . import halves
from .compile import kernel
from .direct_weight import WeightGradSetup
from .layouts import memory_of, place_and_steps, readable_memory
from .rows import (
    BLOCK,
    COLUMNS,
    DILATION,
    FINITE,
    FOLDS,
    GROUPS,
    KERNEL,
    LINE,
    LINES,
    MODE,
    NOTHING,
    OUT_KIND,
    PAD,
    PAD_HIGH,
    RESULT,
    RESULT_BASE,
    RESULT_STEP,
    RESULTS,
    ROWS,
    SOURCE,
    SOURCE_BASE,
    SOURCE_STEP,
    SOURCES,
    STRIDE,
    TRANSPOSED,
    WIDTH,
    forward_columns,
    gather,
    geometry_of,
    index_of,
    meets,
)
from .threads import most_threads, next_task, share

TILE = 512  # result columns of one tile
BLOCK_BYTES = 16 << 10  # sums of one block of result channels: half of a small L1 cache
LINES_BYTES = 8 << 10  # gathered rows that wait to be added: a quarter of it
MOST_ENTRIES = 32
TASK_PRODUCTS = 1 << 18  # products of one task: long against its scheduling, short against the whole
# The cost model, nanoseconds: of a row and of a block of them, of a source row that is gathered and of its cells that lie side by side or
# not, of a pass over a row with one tap and over two with four, of a product of float32 in each of them and of one that is scattered.
ROW_NS, BLOCK_NS, GATHER_NS, CELL_NS, STRIDED_CELL_NS = 50.0, 240.0, 77.0, 0.19, 0.9
PASS_NS, FOUR_PASS_NS, PRODUCT_NS, FOUR_PRODUCT_NS, SCATTERED_NS = 3.7, 14.6, 0.066, 0.037, 0.4
COMPLEX = 5  # times as long as a real product of as many bytes
NO_PADDING = ((0, 0),) * 3
NOWHERE = -(1 << 62)  # no padded position


@kernel()
def _transposed_columns(geometry, start, columns, segments, taps):  # type: ignore[no-untyped-def]
    """Fill ``segments`` and ``taps`` for the result columns [start, start + columns) of a transposed convolution.

    The line is the stretch of the source row that the tile meets, and tap k adds to every ``stride``-th column.
    """
    stride, dilation, pad = geometry[STRIDE + 2], geometry[DILATION + 2], geometry[PAD + 2]
    reach = start + pad
    first = max(0, -(((geometry[KERNEL + 2] - 1) * dilation - reach) // stride))
    last = max(first, min(geometry[SOURCE + 2], (reach + columns - 1) // stride + 1))
    segments[0, 0], segments[0, 1], segments[0, 2] = first, 0, last - first
    for k in range(geometry[KERNEL + 2]):
        lead = reach - k * dilation  # the first column meets source cell lead / stride, where that is whole
        index = max(first, -(-lead // stride))
        column = index * stride - lead
        taps[k, 0], taps[k, 1] = index - first, column
        taps[k, 2] = max(0, min(last - index, (columns - column + stride - 1) // stride))


@kernel(fastmath={"contract"})  # every product is one fused multiply-add, in full vectors and at the edges alike
def _accumulate(sums, lines, weight, entries, count, channels, columns, step):  # type: ignore[no-untyped-def]
    """Add ``weight * line`` to the sums (channels, columns) for each of ``count`` entries, in their order.

    entries[i] = weight of the block's first channel, place in ``lines``, first column, columns; every ``step``-th column is added to.
    With step 0 all entries cover the whole row, and four are added in one pass: the sums are loaded and stored once for them.
    """
    i = 0
    while step == 0 and i + 4 <= count:
        a, b, c, d = lines[entries[i, 1] :], lines[entries[i + 1, 1] :], lines[entries[i + 2, 1] :], lines[entries[i + 3, 1] :]
        u, v = weight[entries[i, 0] : entries[i, 0] + channels], weight[entries[i + 1, 0] : entries[i + 1, 0] + channels]
        w, x = weight[entries[i + 2, 0] : entries[i + 2, 0] + channels], weight[entries[i + 3, 0] : entries[i + 3, 0] + channels]
        r = 0
        while r + 2 <= channels:
            s, t = sums[r * columns : (r + 1) * columns], sums[(r + 1) * columns : (r + 2) * columns]
            u0, v0, w0, x0, u1, v1, w1, x1 = u[r], v[r], w[r], x[r], u[r + 1], v[r + 1], w[r + 1], x[r + 1]
            for q in range(columns):
                s[q] = (((s[q] + u0 * a[q]) + v0 * b[q]) + w0 * c[q]) + x0 * d[q]
                t[q] = (((t[q] + u1 * a[q]) + v1 * b[q]) + w1 * c[q]) + x1 * d[q]
            r += 2
        while r < channels:
            s = sums[r * columns : (r + 1) * columns]
            u0, v0, w0, x0 = u[r], v[r], w[r], x[r]
            for q in range(columns):
                s[q] = (((s[q] + u0 * a[q]) + v0 * b[q]) + w0 * c[q]) + x0 * d[q]
            r += 1
        i += 4
    while i < count:
        a, u = lines[entries[i, 1] :], weight[entries[i, 0] : entries[i, 0] + channels]
        for r in range(channels):
            s, u0 = sums[r * columns + entries[i, 2] : (r + 1) * columns], u[r]
            if step <= 1:
                for q in range(entries[i, 3]):
                    s[q] += u0 * a[q]
            else:
                for q in range(entries[i, 3]):
                    s[q * step] += u0 * a[q]
        i += 1


@kernel()
def _fold(row, geometry):  # type: ignore[no-untyped-def]
    """Add the cells of a padded row of sums to the cells that they were copies of."""
    low, size = geometry[PAD + 2], geometry[RESULT + 2]
    for q in range(row.size):
        if not low <= q < low + size:
            row[low + index_of(q - low, size, geometry[MODE])] += row[q]


@kernel()
def _store(result, base, geometry, sums, channels, columns):  # type: ignore[no-untyped-def]
    across, step, kind = geometry[RESULT_STEP + 1], geometry[RESULT_STEP + 4], geometry[OUT_KIND]
    for r in range(channels):
        row = sums[r * columns : (r + 1) * columns]
        if geometry[FOLDS]:
            _fold(row, geometry)
            row = row[geometry[PAD + 2] : geometry[PAD + 2] + geometry[RESULT + 2]]
        if step == 1:
            target = result[base + r * across : base + r * across + row.size]
            for q in range(row.size):
                target[q] = halves.narrow(row[q], result, kind)
        else:
            for q in range(row.size):
                result[base + r * across + q * step] = halves.narrow(row[q], result, kind)


@kernel()
def _copies(geometry, axis):  # type: ignore[no-untyped-def]
    """How many padded positions along an axis may be copies of a result cell, itself included."""
    return 1 + geometry[PAD + axis] + geometry[PAD_HIGH + axis] if geometry[FOLDS] else 1


@kernel()
def _copy(geometry, axis, position, i):  # type: ignore[no-untyped-def]
    """The i-th of those positions (the first is the cell itself); NOWHERE when it is a copy of another cell."""
    if i == 0:
        return position
    low, size = geometry[PAD + axis], geometry[RESULT + axis]
    padded = -i if i <= low else size + i - low - 1
    return padded if index_of(padded, size, geometry[MODE]) == position else NOWHERE


@kernel()
def _add_rows(source, plane, weight, tap, geometry, d, h, tile, segments, taps, lines, entries, pending, sums, channels):  # type: ignore[no-untyped-def]
    """Gather what one source channel gives to the (padded) result row (d, h): its first cell is at ``plane``, its weights at ``tap``.

    tile = first column, columns, columns that a full tile would have more.  ``pending`` counts the entries gathered and not yet added;
    they are added when the lines are full.  Returns the new count.
    """
    kh, kw, results, length = geometry[KERNEL + 1], geometry[KERNEL + 2], geometry[RESULTS], geometry[LINE]
    step = geometry[STRIDE + 2] if geometry[TRANSPOSED] else 0
    for i in range(geometry[KERNEL]):
        sd = meets(geometry, 0, d, i)
        for j in range(kh):
            sh = meets(geometry, 1, h, j)
            missing = sd == PADDING or sh == PADDING
            if sd == NOTHING or sh == NOTHING or (missing and geometry[FINITE]):
                continue
            if pending + kw > entries.shape[0]:
                _accumulate(sums, lines, weight, entries, pending, channels, tile[1], step)
                pending = 0
            start = pending // kw * length
            base = plane + sd * geometry[SOURCE_STEP + 2] + sh * geometry[SOURCE_STEP + 3]
            gather(source, base, geometry, tile[0], tile[2], segments, missing, lines[start : start + length])
            for k in range(kw):
                entries[pending, 0], entries[pending, 1] = tap + ((i * kh + j) * kw + k) * results, start + taps[k, 0]
                entries[pending, 2], entries[pending, 3] = taps[k, 1], taps[k, 2] - tile[2]
                pending += 1
    return pending


@kernel()
def _row_sums(source, image, weight, bias, geometry, d, h, group, r0, channels, tile, segments, taps, lines, entries, sums):  # type: ignore[no-untyped-def]
    """The sums (channels, columns) of one result row for the channels r0, r0 + 1, ... of a group; ``image`` is where its image starts."""
    sources, results = geometry[SOURCES], geometry[RESULTS]
    each = geometry[KERNEL] * geometry[KERNEL + 1] * geometry[KERNEL + 2] * results  # weights of one source channel
    for r in range(channels):
        row = sums[r * tile[1] : (r + 1) * tile[1]]
        row[:] = 0 if geometry[FOLDS] else bias[group * results + r0 + r]
    pending = 0
    for c in range(group * sources, (group + 1) * sources):
        plane = image + c * geometry[SOURCE_STEP + 1]
        for i in range(_copies(geometry, 0)):
            pd = _copy(geometry, 0, d, i)
            for j in range(_copies(geometry, 1)):
                ph = _copy(geometry, 1, h, j)
                if pd != NOWHERE and ph != NOWHERE:
                    pending = _add_rows(
                        source, plane, weight, c * each + r0, geometry, pd, ph, tile, segments, taps, lines, entries, pending, sums,
                        channels,
                    )  # fmt: skip
    step = geometry[STRIDE + 2] if geometry[TRANSPOSED] else 0
    _accumulate(sums, lines, weight, entries, pending, channels, tile[1], step)


@kernel()
def convolve_rows(source, weight, bias, result, geometry, segments, taps, tasks, counter):  # type: ignore[no-untyped-def]
    """Worker: each task is a run of result rows of one image, group, block of channels and tile of columns."""
    rows, height, width = geometry[RESULT] * geometry[RESULT + 1], geometry[RESULT + 1], geometry[WIDTH]
    results, block, most = geometry[RESULTS], geometry[BLOCK], geometry[COLUMNS]
    runs, tiles, blocks = -(-rows // geometry[ROWS]), -(-width // most), -(-results // block)
    lines, sums = np.empty(geometry[LINES] * geometry[LINE], weight.dtype), np.empty(block * most, weight.dtype)
    segments, taps, entries = segments.copy(), taps.copy(), np.empty((geometry[LINES] * geometry[KERNEL + 2], 4), np.int64)
    while True:
        task = next_task(counter)
        if task >= tasks:
            break
        run, rest = task % runs, task // runs
        start, rest = rest % tiles * most, rest // tiles
        r0, rest = rest % blocks * block, rest // blocks
        group, n = rest % geometry[GROUPS], rest // geometry[GROUPS]
        columns, channels = min(most, width - start), min(block, results - r0)
        tile = (start - geometry[PAD + 2] if geometry[FOLDS] else start, columns, most - columns)
        if geometry[TRANSPOSED]:
            tile = (tile[0], columns, 0)
            _transposed_columns(geometry, tile[0], columns, segments, taps)
        image = geometry[SOURCE_BASE] + n * geometry[SOURCE_STEP]
        for row in range(run * geometry[ROWS], min((run + 1) * geometry[ROWS], rows)):
            d, h = row // height, row % height
            _row_sums(source, image, weight, bias, geometry, d, h, group, r0, channels, tile, segments, taps, lines, entries, sums)
            place = geometry[RESULT_BASE] + n * geometry[RESULT_STEP] + (group * results + r0) * geometry[RESULT_STEP + 1]
            place += d * geometry[RESULT_STEP + 2] + h * geometry[RESULT_STEP + 3] + start * geometry[RESULT_STEP + 4]
            _store(result, place, geometry, sums, channels, columns)


class Direct:
    """The algorithm that takes everything."""

    name = "direct"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        return None

    def cost(self, problem: Problem) -> float:
        return self.setup(problem).seconds

    def setup(self, problem: Problem) -> DirectSetup | WeightGradSetup:
        return WeightGradSetup(problem) if problem.direction == "weight_grad" else DirectSetup(problem)


@dataclass(frozen=True)
class DirectSetup:
    """Forward and input gradient."""

    problem: Problem

    @functools.cached_property
    def _tables(self) -> tuple[AnyArray, AnyArray, AnyArray]:
        """Geometry, segments and taps."""
        p = self.problem
        geometry = geometry_of(p)
        folds = p.transposed and p.padding_mode != "zeros" and p.padding != NO_PADDING
        # A gradient that folds back is summed over whole padded rows, because copies lie anywhere in them.
        width = p.result_size[2] + sum(p.padding[2]) if folds else p.result_size[2]
        tile = width if folds else min(width, TILE)
        segments, taps = forward_columns(p, tile)
        per_group = p.result_channels // p.groups
        block = max(1, min(per_group, BLOCK_BYTES // (tile * self._accumulator.itemsize)))
        row_products = p.taps * (p.source_channels // p.groups) * block * tile
        geometry[FOLDS], geometry[WIDTH], geometry[COLUMNS], geometry[BLOCK] = folds, width, tile, block
        geometry[ROWS] = max(1, min(p.result_size[0] * p.result_size[1], TASK_PRODUCTS // max(1, row_products)))
        geometry[LINE] = segments[-1, 1] + segments[-1, 2]
        fitting = LINES_BYTES // max(1, int(geometry[LINE]) * self._accumulator.itemsize)
        geometry[LINES] = max(1, min(fitting, -(-MOST_ENTRIES // p.kernel[2])))
        return geometry, segments, taps

    @property
    def _accumulator(self) -> np.dtype[Any]:
        # Sums of narrow integers that are truncated in the end are exact in 16 bits already, at twice the rate.
        p = self.problem
        return np.dtype(np.int16) if p.out_dtype in NARROW_INTEGERS else ELEMENTS[p.dtype].accumulator

    @functools.cached_property
    def workspace(self) -> int:
        geometry, segments, taps = self._tables
        elements = int(geometry[LINES] * geometry[LINE] + geometry[BLOCK] * geometry[COLUMNS])
        entries = int(geometry[LINES]) * len(taps) * 4 * 8
        each = elements * self._accumulator.itemsize + entries + segments.nbytes + taps.nbytes
        return most_threads() * each + geometry.nbytes

    @property
    def packed_bytes(self) -> int:
        p = self.problem
        return (math.prod(p.weight_shape) + p.result_channels) * self._accumulator.itemsize + 1

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p = self.problem
        accumulator = self._accumulator
        split = weight.reshape(p.groups, p.out_per_group, p.in_per_group, p.taps)
        order = (0, 1, 3, 2) if p.transposed else (0, 2, 3, 1)  # group, source channel, tap, result channel
        packed = np.array(split.transpose(order), accumulator, order="C").reshape(-1)
        added = np.zeros(p.result_channels, accumulator) if bias is None else bias.astype(accumulator)
        return packed, added, np.isfinite(packed).all(keepdims=True)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        weight, bias, finite = packed
        _, segments, taps = self._tables
        geometry = self._layouts(source, result, bool(finite[0]))
        tasks, seconds = len(source) * self._tasks, len(source) * self.seconds
        arguments = (readable_memory(source), weight, bias, memory_of(result), geometry, segments, taps, tasks)
        share(convolve_rows, arguments, tasks, seconds)

    @functools.cached_property
    def _layouts(self) -> Layouts[AnyArray]:
        def place(source: AnyArray, result: AnyArray, finite: bool) -> AnyArray:
            geometry = self._tables[0].copy()
            geometry[SOURCE_BASE : SOURCE_STEP + 5], geometry[RESULT_BASE : RESULT_STEP + 5] = (
                place_and_steps(source),
                place_and_steps(result),
            )
            geometry[FINITE] = finite
            return geometry

        return Layouts(place)

    @functools.cached_property
    def _tasks(self) -> int:
        """Tasks of one image."""
        results, block, width, columns, at_once = (int(self._tables[0][i]) for i in (RESULTS, BLOCK, WIDTH, COLUMNS, ROWS))
        rows = math.prod(self.problem.result_size[:2])
        return self.problem.groups * -(-results // block) * -(-width // columns) * -(-rows // at_once)

    @functools.cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        p, g = self.problem, self._tables[0]
        results, width, strided = int(g[RESULTS]), int(g[WIDTH]), p.stride[2] > 1
        blocks, wider = -(-results // int(g[BLOCK])), self._accumulator.itemsize / 4
        lines = p.groups * math.prod(p.result_size[:2])
        rows, cells, sources = lines * -(-width // int(g[COLUMNS])), lines * width, p.source_channels // p.groups
        met = p.stride if p.transposed else (1, 1, 1)  # one in so many taps meets a source cell
        gathers = rows * blocks * sources * p.kernel[0] * p.kernel[1] / (met[0] * met[1])
        line = int(g[LINE]) * (STRIDED_CELL_NS if strided and not p.transposed else CELL_NS * wider)
        products, wider = sources * p.taps / math.prod(met), wider * (COMPLEX if p.dtype.startswith("complex") else 1)
        fours = 0 if p.transposed else products // 4
        passes, pairs = results * (products - 4 * fours), -(-results // 2) * fours
        product = SCATTERED_NS if strided and p.transposed else PRODUCT_NS * wider
        sums = rows * (passes * PASS_NS + pairs * FOUR_PASS_NS) + cells * (passes * product + pairs * 8 * FOUR_PRODUCT_NS * wider)
        return (rows * (results * ROW_NS + blocks * BLOCK_NS) + gathers * (GATHER_NS + line) + sums) * 1e-9
