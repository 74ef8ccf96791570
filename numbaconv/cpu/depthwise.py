"""Depthwise convolution with channels in the lanes of vectors, for planes whose rows are short, or strided.

A task copies a box of source cells of a few channels, channels changing places with pixels, into memory of its own with padding filled in;
sums there the results of a box, tap by tap in memory order; and copies them back.  Neither the batch, the threads, the layout nor the box
change the order of an element's sum.

An input gradient with stride s is s convolutions an axis: the result cells of one remainder modulo s meet the same taps, at consecutive
source cells.  They all read one box.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numba.core import config
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import AnyArray
from ..axes import Axis, axis_parts
from ..choose import Accuracy
from ..layouts import Layouts
from ..problem import Problem, Triple
from . import depthwise_tasks as tasks
from .calls import Call
from .depthwise_kernel import PIXELS
from .direct import Direct
from .layouts import address
from .pack_weight import pack_weight
from .target import target
from .threads import most_threads

MOST_BYTES = 768 << 10  # of a task's boxes: they stay in the second-level cache
MOST_PARTS = 64  # of an input gradient
ALIGNMENT = 64

# The cost model, in cycles: of copying a vector of pixels of every lane's channel in or out, of a tile, of one of its taps, of a task.
NEAR_COPY_CYCLES, FAR_COPY_CYCLES = 120.0, 170.0
TILE_CYCLES = 25.0
TAP_CYCLES = 4.7
TASK_CYCLES = 400.0
NEAR_BYTES = 32 << 10  # of a task's boxes: they then stay in the first-level cache
CYCLES_A_SECOND = 2.5e9


class Depthwise:
    """The algorithm for depthwise problems with as many channels as vectors have lanes."""

    name = "depthwise"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        p = problem
        if p.dtype not in ("float32", "float64"):
            return f"it computes float32 and float64, not {p.dtype}"
        if config.DISABLE_JIT:
            return "it is made of LLVM intrinsics, which need the compiler (NUMBA_DISABLE_JIT is set)"
        if p.direction == "weight_grad":
            return "it computes results and gradients of the input, not of the weight"
        if p.transposed and p.padding_mode != "zeros":
            return f"gradients of {p.padding_mode} padding fold back onto the cells that were copied"
        if not p.in_channels == p.out_channels == p.groups:
            return "it is for one input and one output channel a group"
        if p.transposed and math.prod(min(s, i) for s, i in zip(p.stride, p.in_size)) > MOST_PARTS:
            return f"transposed with strides {p.stride} it falls into more than {MOST_PARTS} convolutions"
        if layout_of(p.per_image) is None:
            return f"a box of few rows takes more than {MOST_BYTES:,} bytes"
        return None

    def cost(self, problem: Problem) -> float:
        return self.setup(problem).layout.seconds

    def setup(self, problem: Problem) -> DepthwiseSetup:
        return DepthwiseSetup(problem)


@dataclass(frozen=True)
class Layout:
    """How results are cut into boxes: ``box`` places along each axis, of every remainder of a gradient's stride."""

    problem: Problem
    box: Triple

    @cached_property
    def axes(self) -> list[list[Axis]]:
        """The parts along each axis."""
        return [axis_parts(self.problem, axis) for axis in range(3)]

    @property
    def lanes(self) -> int:
        return target().lanes(self.problem.dtype)

    @property
    def cell(self) -> int:
        """Bytes of the channels of one pixel."""
        return target().vector_bytes

    @cached_property
    def reach(self) -> list[tuple[int, int]]:
        """The least and the largest shift from a place to a source cell along each axis."""
        found = []
        for parts in self.axes:
            shifts = [shift for part in parts for shift in part.shifts] or [0]
            found.append((min(shifts), max(shifts)))
        return found

    @cached_property
    def extent(self) -> Triple:
        """Source cells of a box along each axis."""
        d, h, w = ((n - 1) * parts[0].step + high - low + 1 for n, parts, (low, high) in zip(self.box, self.axes, self.reach))
        return d, h, w

    @cached_property
    def results(self) -> Triple:
        """Result cells of a box along each axis; along the width all of them."""
        d, h, _ = (n * parts[0].stride for n, parts in zip(self.box, self.axes))
        return d, h, self.problem.result_size[2]

    @cached_property
    def boxes(self) -> tuple[int, int]:
        """Boxes along the depth and the height."""
        d, h = (-(-parts[0].size // n) for n, parts in zip(self.box[:2], self.axes))
        return d, h

    @cached_property
    def bytes(self) -> tuple[int, int]:
        """Bytes of the source cells of a box, with what a last tile and a last vector go beyond them, and of its results."""
        beyond = PIXELS * self.axes[2][0].step + self.lanes
        return (math.prod(self.extent) + beyond) * self.cell, (math.prod(self.results) + self.lanes) * self.cell

    @cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        p, lanes, boxes = self.problem, self.lanes, math.prod(self.boxes)
        copied = boxes * math.prod(self.extent[:2]) * -(-min(self.extent[2], p.source_size[2]) // lanes)
        near = sum(self.bytes) <= NEAR_BYTES
        cycles = boxes * TASK_CYCLES + (copied + math.prod(p.result_size) / lanes) * (NEAR_COPY_CYCLES if near else FAR_COPY_CYCLES)
        for d, h, w in itertools.product(*self.axes):
            tiles = d.size * h.size * -(-w.size // PIXELS)
            cycles += tiles * (TILE_CYCLES + TAP_CYCLES * len(d.taps) * len(h.taps) * len(w.taps))
        return -(-p.in_channels // lanes) * cycles / CYCLES_A_SECOND


@cache
def layout_of(p: Problem) -> Layout | None:
    """The layout of least cost for one image; None where a box of one row is too large."""
    depth, height, width = (axis_parts(p, axis)[0].size for axis in range(3))
    best = None
    for d, h in itertools.product(_shares(depth), _shares(height)):
        layout = Layout(p, (d, h, width))
        if sum(layout.bytes) <= MOST_BYTES and (best is None or layout.seconds < best.seconds):
            best = layout
    return best


def _shares(size: int) -> list[int]:
    """Even parts of ``size``: a half, a third, a quarter, a sixth ..."""
    return sorted({-(-size // n) for i in range(size.bit_length() + 1) for n in (1 << i, 3 << i)})


@dataclass(frozen=True)
class DepthwiseSetup:
    """The algorithm set up for one problem.

    ``pack`` returns an int64 flag (is the weight finite?), then weight (blocks of channels, taps, lanes) and bias (blocks, lanes).  An
    input gradient with a weight that is not finite is left to ``direct``, whose packing then follows the flag: boxes hold zeros where the
    source has no cell, which a gradient does not multiply.
    """

    problem: Problem

    @cached_property
    def layout(self) -> Layout:
        layout = layout_of(self.problem.per_image)
        assert layout is not None
        return layout

    @property
    def _blocks(self) -> int:
        return -(-self.problem.in_channels // self.layout.lanes)

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates."""
        own = most_threads() * (sum(self.layout.bytes) + ALIGNMENT)
        return max(own, Direct().setup(self.problem).workspace) if self.problem.transposed else own

    @property
    def packed_bytes(self) -> int:
        return 8 + self._blocks * (self.problem.taps + 1) * self.layout.cell

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p, channels = self.problem, self._blocks * self.layout.lanes
        packed, biases = np.empty(channels * p.taps, weight.dtype), np.zeros(channels, weight.dtype)
        finite = np.array([pack_weight(address(weight), *self._order(weight, weight), packed, 0)], np.int64)
        if p.transposed and not finite[0]:
            return finite, *Direct().setup(p).pack(weight, bias)
        if bias is not None:
            biases[: p.in_channels] = bias
        return finite, packed, biases

    @cached_property
    def _order(self) -> Layouts[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Where ``pack_weight`` finds the weight, by its layout."""

        def place(weight: AnyArray, _: AnyArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            steps = [step // weight.itemsize for step in weight.strides]
            taps = [sum(i * step for i, step in zip(tap, steps[2:])) for tap in np.ndindex(*self.problem.kernel)]
            numbers = [0, steps[0], 0, 1, self.problem.in_channels, 1, 1, 1, self.layout.lanes]
            return np.array(numbers, np.int64), np.array(taps, np.int64)

        return Layouts(place)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        if self.problem.transposed and not packed[0][0]:
            Direct().setup(self.problem).run(source, packed[1:], result)
        else:
            self.call(source, packed, result).run(address(source), address(result))

    def call(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> Call:
        """``run`` with a weight that is finite or not transposed."""
        finite, weight, bias, *_ = packed
        g = self._layouts(source, result, bool(finite[0]))
        return Call(tasks.worker, (g, *self._tables, weight, bias), int(g[tasks.TASKS]), self.layout.seconds * len(source))

    @cached_property
    def _tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The parts, and their taps.

        Of each part: first result cell and places along the axes, where its taps start, how many there are, and how many of them meet one
        plane of the source, or one row where the kernel has one plane.  Of each tap: place of its cell and of its weights, in bytes, and
        shift along that axis.
        """
        layout, parts, taps = self.layout, list[list[int]](), list[list[int]]()
        (_, rows, columns), (deep, height, width) = layout.extent, self.problem.kernel
        (front, _), (top, _), (left, _) = layout.reach
        for d, h, w in itertools.product(*layout.axes):
            start = len(taps)
            for (i, a), (j, b), (k, c) in itertools.product(*(list(zip(axis.taps, axis.shifts)) for axis in (d, h, w))):
                place = ((a - front) * rows + b - top) * columns + c - left
                taps.append([place * layout.cell, ((i * height + j) * width + k) * layout.cell, a if deep > 1 else b])
            each = len(w.taps) * (len(h.taps) if deep > 1 else 1)
            parts.append([d.first, h.first, w.first, d.size, h.size, w.size, start, len(taps) - start, max(each, 1)])
        return np.array(parts, np.int64), np.array(taps, np.int64).reshape(-1)

    @cached_property
    def _layouts(self) -> Layouts[NDArray[np.int64]]:
        return Layouts(self._geometry)

    def _geometry(self, source: AnyArray, result: AnyArray, finite: bool) -> NDArray[np.int64]:
        p, layout, g = self.problem, self.layout, np.zeros(tasks.FIELDS, np.int64)
        g[tasks.CHANNELS], g[tasks.MODE] = p.in_channels, PADDING_MODES.index(p.padding_mode)
        g[tasks.SOURCE_BYTES], g[tasks.RESULT_BYTES] = layout.bytes
        g[tasks.BOXES], g[tasks.BOXES + 1] = layout.boxes
        g[tasks.DEEP], g[tasks.SKIPPING] = p.kernel[0] > 1, finite and p.padding_mode == "zeros"
        g[tasks.TASKS] = len(source) * self._blocks * math.prod(layout.boxes)
        g[tasks.SOURCE_STEP : tasks.SOURCE_STEP + 5], g[tasks.RESULT_STEP : tasks.RESULT_STEP + 5] = source.strides, result.strides
        for axis in range(3):
            part, (low, high) = layout.axes[axis][0], p.padding[axis]
            g[tasks.BOX + axis], g[tasks.EXTENT + axis], g[tasks.RESULTS + axis] = (
                layout.box[axis],
                layout.extent[axis],
                layout.results[axis],
            )
            g[tasks.STEP + axis], g[tasks.STRIDE + axis], g[tasks.ORIGIN + axis] = part.step, part.stride, layout.reach[axis][0]
            g[tasks.SIZE + axis], g[tasks.RESULT_SIZE + axis] = p.source_size[axis], p.result_size[axis]
            g[tasks.LOW + axis], g[tasks.HIGH + axis] = (0, 0) if p.transposed else (low, high)
        return g
