"""Implicit GEMM: a convolution as a matrix product whose second operand, im2col, exists one cache-sized panel at a time.

The result of one image and group is (filters, pixels) = weight (filters, K) times im2col (K, pixels) with K = channels * taps.  A task
takes a few panels of pixels through the blocks of K, one after the other: it packs a panel for the block, multiplies all rows of
the weight with it, and packs the next into the same memory.  The order of the sum over K depends on channels and kernel alone:
neither the batch, the threads, the layout nor the place of a pixel change the bits of a result.

Where that takes less time, the roles of the two are turned: pixels are broadcast from a copy of the source's cells, and the rows of the
weight are lanes (``turned_worker``).  The bits are the same.

A plan packs its weight.  A function's is used once: panels of one tap read it where it lies, tasks with turned roles pack a strip of it
where they multiply, or all threads pack it ahead, whichever takes the least time.  The bits are the same, once more.

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
from typing import Any, NamedTuple

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
from .gemm_costs import CYCLES_A_SECOND, PACK_CYCLES, READ_CYCLES, READ_FAR_CYCLES, STRIP_COPY_CYCLES, STRIP_CYCLES, blocking
from .gemm_place import PlacedPart, place_panels, place_turned
from .gemm_shape import MOST_PANELS, MOST_PARTS, GemmShape
from .gemm_worker import ALIGNMENT
from .layouts import address
from .pack_weight import as_real, pack_pieces
from .target import target
from .threads import most_threads, share, team_size

_PAIRED = np.dtype(np.int16)
_NO_ORDERS = np.empty(0, np.int64)
MOST_STRIP_BYTES = 16 << 20  # of a thread's workspace, so that packing in strips is considered
SMALL_WEIGHT = 1 << 14  # elements, up to which to decide how one is read takes as long as to pack it


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


class Lent(NamedTuple):
    """A weight and a bias as the user keeps them, for one call."""

    weight: AnyArray
    bias: AnyArray | None


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
        own = self.turned_bytes if self.turned or self._packs_strips else 0
        own = most_threads() * (max(own, self._panel_bytes) if self.in_place or not self.turned else own)
        return max(own, Direct().setup(self.problem).workspace) if self.problem.transposed else own

    @cached_property
    def _packs_strips(self) -> bool:
        """Whether a weight may be packed in strips."""
        return self.turnable and self.turned_bytes <= MOST_STRIP_BYTES

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
        return panel + self.staged_panels * self.stage + ALIGNMENT + (numbers + 4) * 8

    @property
    def packed_bytes(self) -> int:
        return (self.weight_starts[-1] + self._bias_size(self.block)) * self.kind.sums.itemsize + 8

    def _bias_size(self, block: int) -> int:
        """Elements of the padded bias, of which the microkernel may read some beyond the last row's."""
        return self.problem.groups * -(-self.rows // block) * block + TILE_VECTORS * self.lanes

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
        packed, place, finite = packed[first : first + elements], address(weight), np.ones(1, np.int64)
        orders = self._orders(weight, weight)
        for start, (numbers, taps, pieces) in zip(self.weight_starts, orders):
            seconds = weight.size / len(orders) * PACK_CYCLES / CYCLES_A_SECOND
            share(pack_pieces, (place, numbers, taps, packed, start * together, finite, pieces), pieces, seconds)
        if p.transposed and not finite[0]:
            return finite, *Direct().setup(p).pack(given, bias)
        return finite, packed if packed.dtype == sums else packed.view(sums), self._padded(bias, self.block)

    def _padded(self, bias: AnyArray | None, block: int) -> AnyArray:
        """The bias, with zeros where a group's last block of rows is not full, and behind."""
        p, components = self.problem, self.kind.components
        padded = np.zeros(self._bias_size(block) // components, ELEMENTS[p.dtype].accumulator)
        if bias is not None:
            rows = padded[: -(TILE_VECTORS * self.lanes // components)].reshape(p.groups, -1)
            rows[:, : p.result_channels // p.groups] = bias.reshape(p.groups, -1)
        return padded if padded.dtype == self.kind.sums else padded.view(self.kind.sums)

    def pack_once(self, weight: AnyArray, bias: AnyArray | None) -> Lent:
        return Lent(weight, bias)

    def _lend(self, lent: Lent, batch: int) -> tuple[Any, ...]:
        """What :meth:`call` takes of a weight that is used once: packed ahead, or as it is."""
        weight, bias = lent
        orders, turned = self._lying(weight, weight, batch) if weight.size > SMALL_WEIGHT else (_NO_ORDERS, False)
        if not orders.size:
            return self.pack(weight, bias)
        padded = self._padded(bias, self.lanes if turned else TILE_ROWS)
        return np.ones(1, np.int64), np.empty(0, weight.dtype), padded, address(weight), orders, turned

    @cached_property
    def _lying(self) -> Layouts[tuple[NDArray[np.int64], bool]]:
        """Of a weight's layout, for a batch: the kernels' ``orders``, for panels of one tap to read it, or with turned roles (True) for
        tasks to pack strips of it; or none where to pack it ahead takes the least time."""

        def find(weight: AnyArray, _: AnyArray, batch: int) -> tuple[NDArray[np.int64], bool]:
            if not self.plain or weight.dtype != self.kind.sums:
                return _NO_ORDERS, False
            orders = self._orders(weight, weight)
            neighbours = orders[0][0][1] == 1  # the rows
            options = [(self.seconds * CYCLES_A_SECOND * batch + weight.size * PACK_CYCLES, False)]
            if self.in_place and self.rows % TILE_ROWS == 0:
                each = READ_FAR_CYCLES if neighbours else READ_CYCLES
                options.append((self.panel_cycles * batch + weight.size * each, False))
            if self._packs_strips:
                each = STRIP_COPY_CYCLES if neighbours else STRIP_CYCLES
                options.append((self.turned_cycles * batch + weight.size * each * batch * self.turned_tasks, True))
            best = min(options)
            if best is options[0]:
                return _NO_ORDERS, False
            found = list[int]()
            for numbers, taps, _pieces in orders:
                found += [0 if best[1] else int(taps[:1].sum()), *numbers[:3], *taps]  # panels begin at the only tap
            return np.array(found, np.int64), best[1]

        return Layouts(find)

    @cached_property
    def _orders(self) -> Layouts[list[tuple[NDArray[np.int64], NDArray[np.int64], int]]]:
        """Of a weight's layout: ``pack_pieces``' numbers, taps and pieces, of each part of a transposed convolution, else of all."""

        def order(weight: AnyArray, _: AnyArray) -> list[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
            p, components = self.problem, self.kind.components
            steps = [step // weight.itemsize for step in weight.strides]
            of_filter, of_channel = (steps[1], steps[0]) if p.transposed else (steps[0], steps[1])
            of_group, channels = steps[0] * p.out_per_group * components, self.channels * components
            found = []
            for part in self.parts if self.has_remainders else self.parts[:1]:
                at_once = blocking(self.channels, tap_count(part), self.kind)[0] * components
                numbers = [of_group, of_filter, of_channel, p.groups, self.rows, channels, at_once, self.kind.together, self.block]
                offsets = [sum(k * step for k, step in zip(tap, steps[2:])) for tap in itertools.product(*(axis.taps for axis in part))]
                count = p.groups * self.row_blocks * -(-channels // at_once) if offsets else 0
                found.append((np.array(numbers, np.int64), np.array(offsets, np.int64), count))
            return found

        return Layouts(order)

    def run(self, source: AnyArray, packed: tuple[Any, ...], result: AnyArray) -> None:
        given = packed
        if isinstance(given, Lent):
            packed = self._lend(given, len(source))
        if not self.problem.transposed or packed[0][0]:
            self.call(source, packed, result).run(address(source), address(result))
        if self.problem.transposed and not packed[0][0]:  # as strips may have shown only now
            direct = Direct().setup(self.problem)
            direct.run(source, direct.pack(*given) if isinstance(given, Lent) else packed[1:], result)

    def call(self, source: AnyArray, packed: tuple[Any, ...], result: AnyArray) -> Call:
        """``run`` with a weight that is finite or not transposed; zeros of a transposed convolution may be written already."""
        finite, weight, bias, *lent = packed
        place, orders, turned = lent or (0, _NO_ORDERS, self.turned)
        seconds = self.seconds * source.shape[0]
        placed, met = self._layouts[turned, bool(lent)](source, result, team_size(seconds))
        if self.problem.transposed and len(met.geometry) < len(placed.geometry) and not bias.view(np.uint8).any():
            result[...] = 0  # all at once takes less time than every other cell
            placed = met
        arguments = placed.geometry, placed.shifts, weight, bias
        if turned:
            return Call(turned_worker.work_turned, (*arguments, finite, place, orders), placed.tasks, seconds)
        skipping = 0 if lent else int(finite[0])
        return Call(gemm_worker.work, (*arguments, skipping, place, orders, *self._likes), placed.tasks, seconds)

    @cached_property
    def _likes(self) -> tuple[AnyArray, AnyArray]:
        return like(self.problem.dtype), like(self.problem.out_dtype)

    @cached_property
    def _layouts(self) -> dict[tuple[bool, bool], Layouts[tuple[Placed, Placed]]]:
        """Whether roles are turned, and the weight read as the user keeps it: then of the source's and the result's layout and the number
        of threads all parts, and those that meet a tap."""
        either = False, True
        return {(turned, lent): Layouts(partial(self._place, turned, lent)) for turned in either for lent in either}

    def _place(self, turned: bool, lent: bool, source: AnyArray, result: AnyArray, threads: int) -> tuple[Placed, Placed]:
        place, starts = place_turned if turned else place_panels, self._order_starts if lent else self.weight_starts
        parts = [
            place(self, part, start, len(source), source.strides, result.strides, threads) for part, start in zip(self.parts, starts)
        ]  # fmt: skip
        everything = _together(parts, turned)
        met = [part for part in parts if part.kernel]
        return everything, everything if len(met) == len(parts) else _together(met, turned)

    @property
    def _order_starts(self) -> list[int]:
        """Where the parts' begin in ``orders`` of the kernels."""
        sizes = [turned_worker.TAP_OFFSETS + tap_count(part) if self.has_remainders else 0 for part in self.parts]
        return [0, *itertools.accumulate(sizes)]


def _together(parts: list[PlacedPart], turned: bool) -> Placed:
    """Parts one after the other, with their tasks and shifts numbered through; those of the longest tasks first, as shorter ones at the
    end leave fewer threads waiting."""
    worker = turned_worker if turned else gemm_worker
    shifts, tasks, rows = list[int](), 0, list[NDArray[np.int64]]()
    for part in sorted(parts, key=lambda part: -part.work):
        tasks += part.tasks
        g = part.geometry.copy()
        g[worker.LAST_TASK], g[worker.SHIFTS] = tasks, len(shifts)
        shifts += part.shifts
        rows.append(g)
    return Placed(np.array(rows), np.array(shifts, np.int64), tasks)
