"""Direct weight gradient: any problem, straight from the definition.

``dW[o, c, k] = sum over n, y of grad[n, o, y] * conj(input[n, c, y * stride + k * dilation - padding])``: for every row of the output
gradient, the input cells that the taps meet are gathered into a line, and each tap's share is a dot product of two rows.

The order of an element's sum is fixed: images, then rows in memory order, then tiles of columns; the products of one tile are summed by
lanes in float32 (or the dtype's accumulator), the tiles in float64.  This is the one result that depends on the batch size.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import ELEMENTS, AnyArray
from ..padding import PADDING
from ..problem import Problem
from . import halves
from .compile import kernel
from .layouts import memory_of, place_and_steps, readable_memory
from .rows import (
    BLOCK,
    COLUMNS,
    IMAGES,
    IN_KIND,
    KERNEL,
    LINE,
    OTHER_BASE,
    OTHER_STEP,
    OUT_KIND,
    RESULT,
    RESULT_BASE,
    RESULT_STEP,
    RESULTS,
    SOURCE_BASE,
    SOURCE_STEP,
    SOURCES,
    forward_columns,
    gather,
    geometry_of,
    meets,
)
from .threads import most_threads, next_task, share

TILE = 512  # columns of a row of the output gradient taken at once
FILTERS = 16  # output channels of a task
# The cost model, nanoseconds: of a row of the input and, with a stride, of a cell of its line; of a row of the output gradient and of a
# cell; of a dot product and of a product of float32.  Fitted to 120 layers, nine in ten within 15 %.
ROW_NS, STRIDED_CELL_NS, GRAD_NS, CELL_NS, DOT_NS, PRODUCT_NS = 187.0, 0.72, 8.0, 0.49, 5.0, 0.049


@kernel(fastmath={"contract", "reassoc", "nsz"})  # lanes: the order within a tile is fixed by the tile's length
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = a.dtype.type(0)
    for q in range(a.size):
        total += a[q] * np.conj(b[q])
    return total


@kernel()
def _add_row(source, grad, base, missing, place, geometry, segments, taps, line, row, sums):  # type: ignore[no-untyped-def]
    """Add what one row of the input (at ``base``) and one of each output gradient (the first at ``place``) give to the sums (outs, kw)."""
    width, most, step = geometry[RESULT + 2], geometry[COLUMNS], geometry[OTHER_STEP + 4]
    for start in range(0, width, most):
        columns = min(most, width - start)
        gather(source, base, geometry, start, most - columns, segments, missing, line)
        for o in range(sums.shape[0]):
            first = place + o * geometry[OTHER_STEP + 1] + start * step
            for q in range(columns):
                row[q] = halves.widen(grad[first + q * step], geometry[IN_KIND])
            for k in range(sums.shape[1]):
                sums[o, k] += _dot(row[:columns], line[taps[k, 0] : taps[k, 0] + columns])


@kernel()
def weight_grad_rows(source, grad, result, narrow, wide, geometry, segments, taps, tasks, counter):  # type: ignore[no-untyped-def]
    """Worker: each task is one kernel row (i, j) of one input channel and a block of output channels.

    narrow, wide : arrays that lend their dtypes to the sums within a tile and over tiles.
    """
    kd, kh, kw = geometry[KERNEL], geometry[KERNEL + 1], geometry[KERNEL + 2]
    sources, results, block = geometry[SOURCES], geometry[RESULTS], geometry[BLOCK]
    line, row, rounded = np.empty(geometry[LINE], narrow.dtype), np.empty(geometry[COLUMNS], narrow.dtype), np.empty(1, narrow.dtype)
    blocks = -(-results // block)
    while True:
        task = next_task(counter)
        if task >= tasks:
            break
        j, rest = task % kh, task // kh
        i, rest = rest % kd, rest // kd
        c, rest = rest % sources, rest // sources
        o0, group = rest % blocks * block, rest // blocks
        outs = min(block, results - o0)
        sums = np.zeros((outs, kw), wide.dtype)
        for n in range(geometry[IMAGES]):
            plane = geometry[SOURCE_BASE] + n * geometry[SOURCE_STEP] + (group * sources + c) * geometry[SOURCE_STEP + 1]
            first = geometry[OTHER_BASE] + n * geometry[OTHER_STEP] + (group * results + o0) * geometry[OTHER_STEP + 1]
            for d in range(geometry[RESULT]):
                sd = meets(geometry, 0, d, i)
                for h in range(geometry[RESULT + 1]):
                    sh = meets(geometry, 1, h, j)
                    base = plane + sd * geometry[SOURCE_STEP + 2] + sh * geometry[SOURCE_STEP + 3]
                    place = first + d * geometry[OTHER_STEP + 2] + h * geometry[OTHER_STEP + 3]
                    _add_row(source, grad, base, sd == PADDING or sh == PADDING, place, geometry, segments, taps, line, row, sums)
        place = geometry[RESULT_BASE] + (group * results + o0) * geometry[RESULT_STEP] + c * geometry[RESULT_STEP + 1]
        place += i * geometry[RESULT_STEP + 2] + j * geometry[RESULT_STEP + 3]
        for o in range(outs):
            for k in range(kw):
                rounded[0] = sums[o, k]
                result[place + o * geometry[RESULT_STEP] + k * geometry[RESULT_STEP + 4]] = halves.narrow(
                    rounded[0], result, geometry[OUT_KIND]
                )


@dataclass(frozen=True)
class WeightGradSetup:
    """``run`` takes the output gradient (a storage view, 5-D) in place of a packed weight; nothing is packed."""

    problem: Problem
    packed_bytes: int = 0

    @functools.cached_property
    def _tables(self) -> tuple[AnyArray, AnyArray, AnyArray]:
        p = self.problem
        geometry = geometry_of(p)
        tile = min(p.out_size[2], TILE)
        segments, taps = forward_columns(p, tile)
        geometry[COLUMNS], geometry[BLOCK] = tile, min(p.out_per_group, FILTERS)
        geometry[LINE] = segments[-1, 1] + segments[-1, 2]
        return geometry, segments, taps

    @property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        p, line, components = self.problem, int(self._tables[0][LINE]), 1 + self.problem.dtype.startswith("complex")
        columns, tiles = p.out_size[2], -(-p.out_size[2] // TILE)
        rows = p.groups * p.in_per_group * math.prod(p.kernel[:2]) * math.prod(p.out_size[:2])
        product, gather = PRODUCT_NS * components * self._dtypes[0].itemsize / 4, STRIDED_CELL_NS * line if p.stride[2] > 1 else 0.0
        grad = tiles * GRAD_NS + columns * components * CELL_NS + p.kernel[2] * (tiles * DOT_NS + columns * product)
        return rows * (-(-p.out_per_group // FILTERS) * tiles * (ROW_NS + gather) + p.out_per_group * grad) * 1e-9

    @property
    def workspace(self) -> int:
        geometry, _, taps = self._tables
        narrow, wide = self._dtypes
        each = int(geometry[LINE] + geometry[COLUMNS] + 1) * narrow.itemsize + int(geometry[BLOCK]) * len(taps) * wide.itemsize
        return most_threads() * each + geometry.nbytes

    @property
    def _dtypes(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        narrow = ELEMENTS[self.problem.dtype].accumulator
        return narrow, np.result_type(narrow, np.float64) if narrow.kind in "fc" else narrow

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        raise NotImplementedError("a weight gradient has no weight to pack")

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        (grad,) = packed
        fixed, segments, taps = self._tables
        geometry = fixed.copy()
        for field, array in ((SOURCE_BASE, source), (OTHER_BASE, grad), (RESULT_BASE, result)):
            geometry[field : field + 6] = place_and_steps(array)
        geometry[IMAGES] = len(source)
        narrow, wide = self._dtypes
        p = self.problem
        tasks = p.groups * -(-p.out_per_group // int(geometry[BLOCK])) * p.in_per_group * p.kernel[0] * p.kernel[1]
        arguments = (
            readable_memory(source),
            readable_memory(grad),
            memory_of(result),
            np.empty(0, narrow),
            np.empty(0, wide),
            geometry,
            segments,
            taps,
            tasks,
        )
        share(weight_grad_rows, arguments, tasks, len(source) * self.seconds)
