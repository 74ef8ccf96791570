"""Direct convolution: any problem, any dtype, both directions, straight from the definition.

One row of the result at a time.  For every source row that meets it, the cells that its taps read are gathered into a short
line (padding by index, any strides, halves widened), and every tap adds ``weight * line`` to the rows of a block of result
channels.  A transposed convolution only changes which cells a tap reads and writes, so both directions are one kernel.

The order of an element's sum is fixed: bias, then source channels, then taps, in memory order.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import from_dtype, prange, types

from ..arguments import PADDING_MODES
from ..arrays import ELEMENTS, AnyArray, memory_hull
from ..choose import Accuracy
from ..padding import PADDING, source_index
from ..problem import Problem
from . import halves
from .compile import kernel, specialise
from .threads import launch, most_threads, next_task

NOTHING = -2  # no source cell: outside a gradient, or between the steps of its stride
TILE = 512  # result columns of one tile
BLOCK_BYTES = 16 << 10  # sums of one block of result channels: half of a small L1 cache
TASK_PRODUCTS = 1 << 18  # products of one task: long against its scheduling, short against the whole

# Fields of the geometry, an int64 array.  First three axes each, then single numbers.
SOURCE, RESULT, KERNEL, STRIDE, DILATION, PAD = 0, 3, 6, 9, 12, 15
GROUPS, SOURCES, RESULTS, MODE, TRANSPOSED, IN_KIND, OUT_KIND, COLUMNS, BLOCK, ROWS, LINE, FINITE = range(18, 30)
# Of a call: offset of the first element and five strides, in elements, of source and result.
SOURCE_BASE, SOURCE_STEP, RESULT_BASE, RESULT_STEP, FIELDS = 30, 31, 36, 37, 42

_source_index = kernel()(source_index)


@kernel()
def _meets(geometry, axis, position, tap):  # type: ignore[no-untyped-def]
    """Source index along an axis that a tap of a result position meets; PADDING for a padded zero, NOTHING for no cell."""
    offset = tap * geometry[DILATION + axis] - geometry[PAD + axis]
    stride, size = geometry[STRIDE + axis], geometry[SOURCE + axis]
    if not geometry[TRANSPOSED]:
        return _source_index(position * stride + offset, size, geometry[MODE])
    reach = position - offset
    if reach < 0 or reach % stride or reach // stride >= size:
        return NOTHING
    return reach // stride


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


@kernel()
def _gather(source, base, geometry, start, trimmed, segments, missing, line):  # type: ignore[no-untyped-def]
    """Fill the line with the cells of one source row (its first element at ``base``) that the tile's taps read.

    segments[s] = first position, place in the line, length for a full tile, of which ``trimmed`` are left out.
    """
    size, step, kind = geometry[SOURCE + 2], geometry[SOURCE_STEP + 4], geometry[IN_KIND]
    transposed = geometry[TRANSPOSED]
    stride = 1 if transposed else geometry[STRIDE + 2]
    origin = 0 if transposed else start * stride - geometry[PAD + 2]
    for s in range(segments.shape[0]):
        first, length = origin + segments[s, 0], segments[s, 2] - trimmed
        part = line[segments[s, 1] : segments[s, 1] + length]
        low = min(length, max(0, -(first // stride)))  # cells [low, high) lie inside the row
        high = max(low, min(length, (size - 1 - first) // stride + 1))
        if missing:
            low = high = length
        if step * stride == 1:
            inside, target = source[base + first + low : base + first + high], part[low:high]
            for q in range(high - low):
                target[q] = halves.widen(inside[q], kind)
        else:
            for q in range(low, high):
                part[q] = halves.widen(source[base + (first + q * stride) * step], kind)
        for begin, end in ((0, low), (high, length)):
            for q in range(begin, end):
                index = PADDING if missing else _source_index(first + q * stride, size, geometry[MODE])
                if index == PADDING:
                    part[q] = 0
                else:
                    part[q] = halves.widen(source[base + index * step], kind)


@kernel(fastmath={"contract"})  # every product is one fused multiply-add, in full vectors and at the edges alike
def _accumulate(sums, line, weight, base, geometry, channels, columns, taps):  # type: ignore[no-untyped-def]
    """Add every tap of one source row to the sums (channels, columns); ``weight[base]`` is tap 0 of the block's first channel."""
    count, results = geometry[KERNEL + 2], geometry[RESULTS]
    step = geometry[STRIDE + 2] if geometry[TRANSPOSED] else 1
    k = 0
    if not geometry[TRANSPOSED]:
        while k + 3 <= count:  # three taps a pass: the sums are loaded and stored once for three products
            a, b, c = line[taps[k, 0] :], line[taps[k + 1, 0] :], line[taps[k + 2, 0] :]
            u, v, w = weight[base + k * results :], weight[base + (k + 1) * results :], weight[base + (k + 2) * results :]
            r = 0
            while r + 4 <= channels:
                s0, s1 = sums[r * columns : (r + 1) * columns], sums[(r + 1) * columns : (r + 2) * columns]
                s2, s3 = sums[(r + 2) * columns : (r + 3) * columns], sums[(r + 3) * columns : (r + 4) * columns]
                u0, u1, u2, u3 = u[r], u[r + 1], u[r + 2], u[r + 3]
                v0, v1, v2, v3 = v[r], v[r + 1], v[r + 2], v[r + 3]
                w0, w1, w2, w3 = w[r], w[r + 1], w[r + 2], w[r + 3]
                for q in range(columns):
                    s0[q] = ((s0[q] + u0 * a[q]) + v0 * b[q]) + w0 * c[q]
                    s1[q] = ((s1[q] + u1 * a[q]) + v1 * b[q]) + w1 * c[q]
                    s2[q] = ((s2[q] + u2 * a[q]) + v2 * b[q]) + w2 * c[q]
                    s3[q] = ((s3[q] + u3 * a[q]) + v3 * b[q]) + w3 * c[q]
                r += 4
            while r < channels:
                s0 = sums[r * columns : (r + 1) * columns]
                u0, v0, w0 = u[r], v[r], w[r]
                for q in range(columns):
                    s0[q] = ((s0[q] + u0 * a[q]) + v0 * b[q]) + w0 * c[q]
                r += 1
            k += 3
    while k < count:
        a, u = line[taps[k, 0] :], weight[base + k * results :]
        for r in range(channels):
            target = sums[r * columns + taps[k, 1] : (r + 1) * columns]
            u0 = u[r]
            if step == 1:
                for q in range(taps[k, 2]):
                    target[q] += u0 * a[q]
            else:
                for q in range(taps[k, 2]):
                    target[q * step] += u0 * a[q]
        k += 1


@kernel()
def _store(result, base, geometry, sums, channels, columns):  # type: ignore[no-untyped-def]
    across, step, kind = geometry[RESULT_STEP + 1], geometry[RESULT_STEP + 4], geometry[OUT_KIND]
    for r in range(channels):
        row = sums[r * columns : (r + 1) * columns]
        if step == 1:
            target = result[base + r * across : base + r * across + columns]
            for q in range(columns):
                target[q] = halves.narrow(row[q], result, kind)
        else:
            for q in range(columns):
                result[base + r * across + q * step] = halves.narrow(row[q], result, kind)


@kernel()
def _row_sums(source, plane, weight, tap, geometry, d, h, start, columns, trimmed, segments, taps, line, sums, channels):  # type: ignore[no-untyped-def]
    """Add what one source channel gives to the result row (d, h): its first element is at ``plane``, its weights at ``tap``."""
    kh, kw, results = geometry[KERNEL + 1], geometry[KERNEL + 2], geometry[RESULTS]
    for i in range(geometry[KERNEL]):
        sd = _meets(geometry, 0, d, i)
        for j in range(kh):
            sh = _meets(geometry, 1, h, j)
            missing = sd == PADDING or sh == PADDING
            if sd == NOTHING or sh == NOTHING or (missing and geometry[FINITE]):
                continue
            base = plane + sd * geometry[SOURCE_STEP + 2] + sh * geometry[SOURCE_STEP + 3]
            _gather(source, base, geometry, start, trimmed, segments, missing, line)
            _accumulate(sums, line, weight, tap + (i * kh + j) * kw * results, geometry, channels, columns, taps)


@kernel()
def convolve_rows(source, weight, bias, result, geometry, segments, taps, tasks, counter):  # type: ignore[no-untyped-def]
    """Worker: each task is a run of result rows of one image, group, block of channels and tile of columns."""
    rows, height, width = geometry[RESULT] * geometry[RESULT + 1], geometry[RESULT + 1], geometry[RESULT + 2]
    sources, results, block, tile = geometry[SOURCES], geometry[RESULTS], geometry[BLOCK], geometry[COLUMNS]
    runs, tiles, blocks = -(-rows // geometry[ROWS]), -(-width // tile), -(-results // block)
    each = geometry[KERNEL] * geometry[KERNEL + 1] * geometry[KERNEL + 2] * results  # weights of one source channel
    line, sums = np.empty(geometry[LINE], weight.dtype), np.empty(block * tile, weight.dtype)
    segments, taps = segments.copy(), taps.copy()
    while True:
        task = next_task(counter)
        if task >= tasks:
            break
        run, rest = task % runs, task // runs
        start, rest = rest % tiles * tile, rest // tiles
        r0, rest = rest % blocks * block, rest // blocks
        group, image = rest % geometry[GROUPS], rest // geometry[GROUPS]
        columns, channels = min(tile, width - start), min(block, results - r0)
        trimmed = tile - columns
        if geometry[TRANSPOSED]:
            trimmed = 0
            _transposed_columns(geometry, start, columns, segments, taps)
        for row in range(run * geometry[ROWS], min((run + 1) * geometry[ROWS], rows)):
            d, h = row // height, row % height
            for r in range(channels):
                sums[r * columns : (r + 1) * columns] = bias[group * results + r0 + r]
            for c in range(group * sources, (group + 1) * sources):
                plane = geometry[SOURCE_BASE] + image * geometry[SOURCE_STEP] + c * geometry[SOURCE_STEP + 1]
                _row_sums(
                    source, plane, weight, c * each + r0, geometry, d, h, start, columns, trimmed, segments, taps, line, sums, channels
                )  # fmt: skip
            place = geometry[RESULT_BASE] + image * geometry[RESULT_STEP] + (group * results + r0) * geometry[RESULT_STEP + 1]
            place += d * geometry[RESULT_STEP + 2] + h * geometry[RESULT_STEP + 3] + start * geometry[RESULT_STEP + 4]
            _store(result, place, geometry, sums, channels, columns)


@kernel(parallel=True)
def convolve_rows_team(threads, source, weight, bias, result, geometry, segments, taps, tasks, counter):  # type: ignore[no-untyped-def]
    for _ in prange(threads):
        convolve_rows(source, weight, bias, result, geometry, segments, taps, tasks, counter)


@functools.cache
def _compile(storage: np.dtype[Any], accumulator: np.dtype[Any], result: np.dtype[Any]) -> None:
    """One compilation for each combination of dtypes: read-only and writeable sources share it."""
    read = types.Array(from_dtype(storage), 1, "C", readonly=True)
    sums, write = (types.Array(from_dtype(dtype), 1, "C") for dtype in (accumulator, result))
    vector, table = types.int64[::1], types.int64[:, ::1]
    arguments = (read, sums, sums, write, vector, table, table, types.int64, vector)
    specialise(convolve_rows, arguments)
    specialise(convolve_rows_team, (types.int64, *arguments))


class Direct:
    """The algorithm that takes everything."""

    name = "direct"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        return "weight gradients are not computed by it" if problem.direction == "weight_grad" else None

    def cost(self, problem: Problem) -> float:
        return _seconds(problem)

    def setup(self, problem: Problem) -> DirectSetup:
        return DirectSetup(problem)


@dataclass(frozen=True)
class DirectSetup:
    problem: Problem

    @functools.cached_property
    def _tables(self) -> tuple[AnyArray, AnyArray, AnyArray]:
        """Geometry, segments and taps."""
        p = self.problem
        tile = min(p.result_size[2], TILE)
        segments, taps = _forward_columns(p, tile)
        per_group = p.result_channels // p.groups
        accumulator = ELEMENTS[p.dtype].accumulator
        block = max(1, min(per_group, BLOCK_BYTES // (tile * accumulator.itemsize)))
        row_products = p.taps * (p.source_channels // p.groups) * block * tile
        geometry = np.zeros(FIELDS, np.int64)
        geometry[SOURCE : SOURCE + 3], geometry[RESULT : RESULT + 3] = p.source_size, p.result_size
        geometry[KERNEL : KERNEL + 3], geometry[STRIDE : STRIDE + 3] = p.kernel, p.stride
        geometry[DILATION : DILATION + 3], geometry[PAD : PAD + 3] = p.dilation, [lo for lo, _ in p.padding]
        geometry[GROUPS], geometry[SOURCES], geometry[RESULTS] = p.groups, p.source_channels // p.groups, per_group
        geometry[MODE], geometry[TRANSPOSED] = PADDING_MODES.index(p.padding_mode), p.transposed
        geometry[IN_KIND], geometry[OUT_KIND] = halves.KIND.get(p.dtype, 0), halves.KIND.get(p.out_dtype, 0)
        geometry[COLUMNS], geometry[BLOCK] = tile, block
        geometry[ROWS] = max(1, min(p.result_size[0] * p.result_size[1], TASK_PRODUCTS // max(1, row_products)))
        geometry[LINE] = segments[-1, 1] + segments[-1, 2]
        return geometry, segments, taps

    @property
    def workspace(self) -> int:
        geometry, segments, taps = self._tables
        elements = int(geometry[LINE] + geometry[BLOCK] * geometry[COLUMNS])
        each = elements * ELEMENTS[self.problem.dtype].accumulator.itemsize + segments.nbytes + taps.nbytes
        return most_threads() * each + geometry.nbytes

    @property
    def packed_bytes(self) -> int:
        p = self.problem
        return (math.prod(p.weight_shape) + p.result_channels) * ELEMENTS[p.dtype].accumulator.itemsize + 1

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p = self.problem
        accumulator = ELEMENTS[p.dtype].accumulator
        split = weight.reshape(p.groups, p.out_per_group, p.in_per_group, p.taps)
        order = (0, 1, 3, 2) if p.transposed else (0, 2, 3, 1)  # group, source channel, tap, result channel
        packed = np.array(split.transpose(order), accumulator, order="C").reshape(-1)
        added = np.zeros(p.result_channels, accumulator) if bias is None else bias.astype(accumulator)
        return packed, added, np.isfinite(packed).all(keepdims=True)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        weight, bias, finite = packed
        fixed, segments, taps = self._tables
        geometry = fixed.copy()
        read, geometry[SOURCE_BASE], geometry[SOURCE_STEP : SOURCE_STEP + 5] = memory_hull(source)
        write, geometry[RESULT_BASE], geometry[RESULT_STEP : RESULT_STEP + 5] = memory_hull(result)
        geometry[FINITE] = finite[0]
        depth, height, width = self.problem.result_size
        tasks = len(source) * self.problem.groups * -(-int(geometry[RESULTS]) // int(geometry[BLOCK]))
        tasks *= -(-width // int(geometry[COLUMNS])) * -(-(depth * height) // int(geometry[ROWS]))
        _compile(source.dtype, weight.dtype, result.dtype)
        arguments = (read, weight, bias, write, geometry, segments, taps, tasks)
        with np.errstate(all="ignore"):  # where the interpreter runs the kernel, integers wrap as they do in machine code
            launch(convolve_rows, convolve_rows_team, arguments, tasks, len(source) * _seconds(self.problem))


def _seconds(problem: Problem) -> float:
    """A rough model of one image on one thread: products at a tenth of a wide machine's rate, and a fixed cost for each pass of a row."""
    passes = math.prod(problem.out_size[:2]) * problem.out_channels * problem.in_per_group * problem.taps / 3
    return problem.flops / 2e10 + passes * 1e-8


def _forward_columns(p: Problem, tile: int) -> tuple[AnyArray, AnyArray]:
    """What a row of ``tile`` result columns gathers, and where in the line its taps read.

    segments[s] = first position from the tile's first tap, place in the line, length: positions ``stride`` apart lie side by
    side, and taps share a segment where their cells overlap.  taps[k] = place in the line, first column, columns.
    (A transposed convolution works these out for each tile; here it only learns how much the line must hold.)
    """
    taps = np.zeros((p.kernel[2], 3), np.int64)
    if p.transposed:
        reach = (tile - 1 + (p.kernel[2] - 1) * p.dilation[2]) // p.stride[2] + 1
        return np.array([[0, 0, min(reach, p.source_size[2])]], np.int64), taps
    segments: list[list[int]] = []
    latest: dict[int, int] = {}  # the last segment of each phase of the stride
    members = []
    for k in range(p.kernel[2]):
        position = k * p.dilation[2]
        phase = position % p.stride[2]
        found = latest.get(phase)
        if found is None or position > segments[found][0] + segments[found][2] * p.stride[2]:
            found = latest[phase] = len(segments)
            segments.append([position, 0, 0])
        cell = (position - segments[found][0]) // p.stride[2]
        segments[found][2] = cell + tile
        members.append((found, cell))
    for before, after in itertools.pairwise(segments):
        after[1] = before[1] + before[2]
    taps[:, 0] = [segments[found][1] + cell for found, cell in members]
    taps[:, 2] = tile
    return np.array(segments, np.int64), taps
