"""Implicit GEMM: a convolution as a matrix product whose second operand, im2col, exists one cache-sized panel at a time.

The result of one image and group is (filters, pixels) = weight (filters, K) times im2col (K, pixels) with K = channels * taps.  A task
takes a few panels of pixels through the blocks of K, one after the other: it packs a panel for the block, multiplies all rows of
the weight with it, and packs the next into the same memory.  The order of the sum over K depends on channels and kernel alone:
neither the batch, the threads, the layout nor the place of a pixel change the bits of a result.

Where that takes less time, the roles of the two are turned: pixels are broadcast from a copy of the source's cells, and the rows of the
weight are lanes (``turned_worker``).  The bits are the same.

A complex convolution is a real one of the components: two rows of the weight a filter, two products a channel (``pack_weight.as_real``).

Results whose dtype is not that of the sums, or whose pixels do not follow one another in memory, are staged: the sums of a task's
panels stay in memory of their own through all blocks of K, and are rounded or truncated once.

A gradient of the input with stride s is s convolutions an axis: the result pixels of one remainder modulo s meet the same taps, at
consecutive source cells.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numba.core import config
from numpy.typing import NDArray

from ..arrays import ELEMENTS, AnyArray
from ..axes import tap_count
from ..choose import Accuracy
from ..layouts import Layouts
from ..problem import Problem
from . import gemm_worker, turned_worker
from .calls import Call
from .direct import Direct
from .elements import like
from .gemm import TILE_ROWS, TILE_VECTORS
from .gemm_costs import blocking
from .gemm_place import PlacedPart, place_panels, place_turned
from .gemm_shape import MOST_PANELS, MOST_PARTS, GemmShape
from .gemm_worker import ALIGNMENT
from .layouts import address
from .pack_weight import as_real, pack_weight
from .target import target
from .threads import most_threads, team_size

_PAIRED = np.dtype(np.int16)
_FLAGS = {value: np.array([value], np.int64) for value in (False, True)}
STAGED_BYTES = 256 << 10  # of results that are staged, unless one panel needs more


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
    """The parts of the problem in given layouts and for a number of threads.

    geometry : a row a part, without addresses; shifts : of all parts; tasks : of all parts.
    """

    geometry: NDArray[np.int64]
    shifts: NDArray[np.int64]
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
        own = most_threads() * (self.turned_bytes if self.turned else self._panel_bytes)
        return max(own, Direct().setup(self.problem).workspace) if self.problem.transposed else own

    @property
    def _panel_bytes(self) -> int:
        """Of one thread, with panels."""
        width, item = TILE_VECTORS * self.lanes, self.kind.sums.itemsize
        panel = numbers = 0
        for part in self.parts:
            channels, taps = blocking(self.channels, tap_count(part), self.kind)
            tables = MOST_PANELS * (taps * (2 * TILE_VECTORS * self.slots(part[2].size) + 2) + 8)
            pieces = 4 * (width + 1) * min(len(part[2].taps), taps)
            numbers = max(numbers, tables + pieces + 6 * width + TILE_VECTORS)
            panel = max(panel, self.kind.products(channels) * taps * width * item)
        return panel + self._staged_panels * self._stage + ALIGNMENT + (numbers + 4) * 8

    @cached_property
    def _stage(self) -> int:
        """Bytes of a panel's results that are staged."""
        return (self.rows + TILE_ROWS) * TILE_VECTORS * self.lanes * self.kind.sums.itemsize

    @cached_property
    def _staged_panels(self) -> int:
        """Panels of a task whose results are staged."""
        return max(1, min(STAGED_BYTES // self._stage, MOST_PANELS))

    @property
    def packed_bytes(self) -> int:
        return (self.weight_starts[-1] + self._bias_size) * self.kind.sums.itemsize + 8

    @cached_property
    def _bias_size(self) -> int:
        """Elements of the padded bias, of which the microkernel may read some beyond the last row's."""
        return self.problem.groups * self.row_blocks * self.block + TILE_VECTORS * self.lanes

    # ---- arrays --------------------------------------------------------------------------------------------------
    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p, (sums, together, components), given = self.problem, self.kind, weight
        if components == 2:
            weight = as_real(weight, p.transposed)
        element = _PAIRED if together == 2 else sums
        if weight.dtype != element:
            weight = weight.astype(element)
        elements, spare = self.weight_starts[-1] * together, ALIGNMENT // element.itemsize
        packed = np.empty(elements + spare, element)
        first = -address(packed) // element.itemsize % spare
        packed, place, finite = packed[first : first + elements], address(weight), True
        for start, numbers, taps in self._orders(weight, weight):
            finite &= pack_weight(place, numbers, taps, packed, start * together)
        flag = _FLAGS[finite]
        if p.transposed and not finite:
            return flag, *Direct().setup(p).pack(given, bias)
        padded = np.zeros(self._bias_size // components, ELEMENTS[p.dtype].accumulator)
        if bias is not None:
            rows = padded[: -(TILE_VECTORS * self.lanes // components)].reshape(p.groups, -1)
            rows[:, : p.result_channels // p.groups] = bias.reshape(p.groups, -1)
        return flag, *(numbers if numbers.dtype == sums else numbers.view(sums) for numbers in (packed, padded))

    @cached_property
    def _orders(self) -> Layouts[list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]]:
        """Of a weight's layout: where each part's packed weight starts, and ``pack_weight``'s numbers and taps."""

        def order(weight: AnyArray, _: AnyArray) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
            p, components = self.problem, self.kind.components
            steps = [step // weight.itemsize for step in weight.strides]
            of_filter, of_channel = (steps[1], steps[0]) if p.transposed else (steps[0], steps[1])
            of_group, channels = steps[0] * p.out_per_group * components, self.channels * components
            found = []
            for start, part in dict(zip(self.weight_starts, self.parts)).items():
                at_once = blocking(self.channels, tap_count(part), self.kind)[0] * components
                numbers = [of_group, of_filter, of_channel, p.groups, self.rows, channels, at_once, self.kind.together, self.block]
                offsets = [sum(k * step for k, step in zip(tap, steps[2:])) for tap in itertools.product(*(axis.taps for axis in part))]
                found.append((start, np.array(numbers, np.int64), np.array(offsets, np.int64)))
            return found

        return Layouts(order)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        if self.problem.transposed and not packed[0][0]:
            Direct().setup(self.problem).run(source, packed[1:], result)
        else:
            self.call(source, packed, result).run(address(source), address(result))

    def call(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> Call:
        """``run`` with a weight that is finite or not transposed; zeros of a transposed convolution may be written already."""
        finite, weight, bias, *_ = packed
        seconds = self.seconds * source.shape[0]
        placed, met = self._layouts(source, result, team_size(seconds))
        if self.problem.transposed and len(met.geometry) < len(placed.geometry) and not bias.view(np.uint8).any():
            result[...] = 0  # all at once takes less time than every other cell
            placed = met
        arguments = placed.geometry, placed.shifts, weight, bias, int(finite[0])
        if self.turned:
            return Call(turned_worker.work_turned, arguments, placed.tasks, seconds)
        return Call(gemm_worker.work, (*arguments, *self._likes), placed.tasks, seconds)

    @cached_property
    def _likes(self) -> tuple[AnyArray, AnyArray]:
        return like(self.problem.dtype), like(self.problem.out_dtype)

    @cached_property
    def _layouts(self) -> Layouts[tuple[Placed, Placed]]:
        """Of the source's and the result's layout and the number of threads: all parts, and those that meet a tap."""

        place = partial(place_turned, self) if self.turned else partial(place_panels, self, self._staged_panels)

        def find(source: AnyArray, result: AnyArray, threads: int) -> tuple[Placed, Placed]:
            parts = [
                place(part, start, len(source), source.strides, result.strides, threads)
                for part, start in zip(self.parts, self.weight_starts)
            ]
            everything = _together(parts, self.turned)
            met = [part for part in parts if part.kernel]
            return everything, everything if len(met) == len(parts) else _together(met, self.turned)

        return Layouts(find)


def _together(parts: list[PlacedPart], turned: bool) -> Placed:
    """Parts one after the other, with their tasks and shifts numbered through; those of the longest tasks first, as shorter ones at the
    end leave fewer threads waiting."""
    last_task, first_shift = (turned_worker.LAST_TASK, turned_worker.SHIFTS) if turned else (gemm_worker.LAST_TASK, gemm_worker.SHIFTS)
    shifts, tasks, rows = list[int](), 0, list[NDArray[np.int64]]()
    for part in sorted(parts, key=lambda part: -part.work):
        tasks += part.tasks
        g = part.geometry.copy()
        g[last_task], g[first_shift] = tasks, len(shifts)
        shifts += part.shifts
        rows.append(g)
    return Placed(np.array(rows), np.array(shifts, np.int64), tasks)
