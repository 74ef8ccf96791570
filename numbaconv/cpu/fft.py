"""Convolution by Fourier transforms of overlapping tiles, for large filters of few channels ("overlap-save").

The cyclic correlation of a tile of source cells with a filter is, where it does not wrap around, a tile of the result; transforms turn it
into one product for each cell.  Two tiles are transformed at once, as real and imaginary part of one, and the transforms are our own, of
many columns in the lanes of vectors: NumPy's, row by row, take longer than ``filter`` takes for all products of a 31 x 31 filter.

The tile grid starts at the first result cell of the problem, and the order of all sums depends on the problem alone: neither the batch, the
threads nor the layout change the bits of a result.  The weight's spectra are many times its size, and are computed in each call.

A NaN or an infinity spreads over its pair of tiles, and sums can overflow where the definition's do not: results that are not finite are
computed again by the definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numba.core import config
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import AnyArray
from ..choose import Accuracy, Setup
from ..layouts import Layouts
from ..padding import PADDING, source_index
from ..problem import Problem, Triple
from . import fft_tasks as tasks
from .direct import Direct
from .fft_kernel import passes_of, twiddles_of
from .fft_layout import MOST_SPECTRA, MOST_TILES, Layout, layout_of
from .filter import Filter
from .filter_gradient import GradientPart, gradient_parts
from .layouts import address
from .target import target
from .threads import most_threads, share


class Fft:
    """The algorithm for large filters of few channels, of stride 1."""

    name = "fft"
    accuracy: Accuracy = "transform"

    def supports(self, problem: Problem) -> str | None:
        p = problem
        if p.dtype not in ("float32", "float64") or target().lanes(p.dtype) < 4:
            return f"it computes float32 and float64 in vectors of at least 4, not {p.dtype}"
        if config.DISABLE_JIT:
            return "it is made of LLVM intrinsics, which need the compiler (NUMBA_DISABLE_JIT is set)"
        if p.direction == "weight_grad":
            return "it computes results and gradients of the input, not of the weight"
        if p.transposed and p.padding_mode != "zeros":
            return f"gradients of {p.padding_mode} padding fold back onto the cells that were copied"
        if max(p.stride) > 1:
            return "it would compute the results between those that a stride leaves"
        if min(p.kernel[1:]) == 1:
            return f"it transforms filters that extend along rows and columns, not {p.kernel[3 - p.rank :]}"
        if p.source_channels == 0:
            return "there are no channels to sum over"
        forward, _ = forward_of(p)
        if forward is None or layout_of(forward) is None:
            return f"its tiles would take more than {MOST_TILES:,} bytes, or the transformed weight more than {MOST_SPECTRA:,}"
        return None

    def cost(self, problem: Problem) -> float:
        return self.setup(problem).layout.seconds

    def setup(self, problem: Problem) -> FftSetup:
        return FftSetup(problem)


def forward_of(p: Problem) -> tuple[Problem | None, GradientPart | None]:
    """The forward convolution of one image that a problem is, and, where it is that of a gradient, how."""
    if not p.transposed:
        return p.per_image, None
    (part,) = gradient_parts(p)
    return part.setup.problem if part.setup else None, part


@dataclass(frozen=True)
class FftSetup:
    """The algorithm set up for one problem.

    ``pack`` returns an int64 flag (is the weight finite?), then the weight of the forward convolution and the bias.  A weight that is not
    finite is left to the definition, whose packing then follows the flag.
    """

    problem: Problem

    @cached_property
    def _forward(self) -> tuple[Problem, GradientPart | None]:
        forward, part = forward_of(self.problem)
        assert forward is not None
        return forward, part

    @cached_property
    def layout(self) -> Layout:
        layout = layout_of(self._forward[0])
        assert layout is not None
        return layout

    @cached_property
    def _definition(self) -> Setup:
        return by_definition(self.problem)

    @cached_property
    def _again(self) -> tuple[Problem, Setup]:
        """One tile by the definition."""
        p, layout = self._forward[0], self.layout
        problem = replace(p, in_size=layout.lengths, padding=((0, 0),) * 3, padding_mode="zeros")
        return problem, by_definition(problem)

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates."""
        layout, p = self.layout, self._forward[0]
        again, setup = self._again
        cells = 2 * (again.in_channels * math.prod(again.in_size) + again.out_channels * math.prod(again.out_size)) * layout.itemsize
        own = layout.spectra_bytes + max(most_threads() * layout.thread_bytes, cells + setup.workspace + setup.packed_bytes)
        return max(own + 2 * p.groups * layout.pairs + 8 * tasks.FIELDS, self._definition.workspace)

    @property
    def packed_bytes(self) -> int:
        p = self._forward[0]
        return (p.out_channels * (p.in_per_group * p.taps + 1)) * self.layout.itemsize + 8

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        (p, part), finite = self._forward, np.array([np.isfinite(weight).all()], np.int64)
        if not finite[0]:
            return finite, *self._definition.pack(weight, bias)
        forward = part.weight(weight) if part else weight
        biases = np.zeros(p.out_channels, weight.dtype) if bias is None else np.array(bias)
        return finite, np.array(forward, order="C").reshape(p.out_channels * p.in_per_group, p.taps), biases

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        finite, *rest = packed
        if not finite[0]:
            self._definition.run(source, packed[1:], result)
            return
        (p, part), layout, (weight, bias) = self._forward, self.layout, rest
        source = part.of_source(source) if part else source
        g, (passes, twiddles) = self._layouts(source, result), self._tables
        spectra, wrong = (
            np.empty(layout.spectra_bytes // layout.itemsize, p.dtype),
            np.zeros((len(source), p.groups, 2 * layout.pairs), bool),
        )
        share(tasks.weight_worker, (g, passes, twiddles, weight, spectra), len(weight), layout.weight_seconds)
        arguments = address(source), address(result), g, passes, twiddles, spectra, bias, wrong
        share(tasks.tile_worker, arguments, int(g[tasks.TASKS]), layout.tile_seconds * len(source))
        if wrong.any():
            self._run_again(source, weight, bias, result, np.argwhere(wrong.any(axis=1)))

    def _run_again(self, source: AnyArray, weight: AnyArray, bias: AnyArray, result: AnyArray, places: NDArray[np.int64]) -> None:
        """What is not finite of the (image, tile) of ``places``, all channels, by the definition."""
        (p, _), layout, (_, setup) = self._forward, self.layout, self._again
        packed = setup.pack(weight.reshape(p.out_channels, p.in_per_group, *p.kernel), bias if p.bias else None)
        fresh = np.empty((1, p.out_channels, *layout.useful), source.dtype)
        for image, number in places:
            first = layout.first_cell(int(number))
            setup.run(self._tile(source[image : image + 1], first), packed, fresh)
            into = result[image : image + 1, :, *(slice(start, start + n) for start, n in zip(first, layout.useful))]
            np.copyto(into, fresh[:, :, : into.shape[2], : into.shape[3], : into.shape[4]], where=~np.isfinite(into))

    def _tile(self, cells: AnyArray, first: Triple) -> AnyArray:
        """The source cells that a tile reads, padding filled in, of one image; ``first`` is its first result cell."""
        p, mode = self._forward[0], PADDING_MODES.index(self._forward[0].padding_mode)
        for axis, (start, length) in enumerate(zip(first, self.layout.lengths)):
            low, size, end = p.padding[axis][0], p.in_size[axis], p.in_size[axis] + p.padding[axis][1]
            places = range(start - low, start - low + length)
            indices = np.array([source_index(i, size, mode) if i < end else PADDING for i in places])
            cells = cells.take(indices, axis=axis + 2)
            cells[(slice(None),) * (axis + 2) + (indices == PADDING,)] = 0
        return cells

    @cached_property
    def _tables(self) -> tuple[NDArray[np.int64], AnyArray]:
        """Passes and twiddles of each axis."""
        p, passes, factors = self.layout.problem, np.zeros((3, tasks.PASS_FIELDS), np.int64), []
        place = 0
        for numbers, length in zip(passes, self.layout.lengths):
            for i, one in enumerate(passes_of(length) if length > 1 else []):
                numbers[0], numbers[1 + 3 * i : 4 + 3 * i] = i + 1, (*one, place)
                factors.append(twiddles_of(one, p.dtype).reshape(-1))
                place += factors[-1].nbytes
        return passes.reshape(-1), np.concatenate(factors)

    @cached_property
    def _layouts(self) -> Layouts[NDArray[np.int64]]:
        return Layouts(self._geometry)

    def _geometry(self, source: AnyArray, result: AnyArray) -> NDArray[np.int64]:
        p, layout, g = self.layout.problem, self.layout, np.zeros(tasks.FIELDS, np.int64)
        g[tasks.GROUPS], g[tasks.SOURCES], g[tasks.RESULTS], g[tasks.PAIRS] = p.groups, p.in_per_group, p.out_per_group, layout.pairs
        g[tasks.ITEM], g[tasks.MODE], g[tasks.ROW] = layout.itemsize, PADDING_MODES.index(p.padding_mode), layout.row * layout.itemsize
        g[tasks.TILE], g[tasks.BUFFER] = layout.rows * layout.row * layout.itemsize, layout.buffer * layout.itemsize
        g[tasks.COLUMN] = 2 * layout.lanes * max(layout.lengths) * layout.itemsize
        g[tasks.TASKS] = len(source) * p.groups * layout.pairs
        g[tasks.SOURCE_IMAGE], g[tasks.SOURCE_CHANNEL], g[tasks.RESULT_IMAGE], g[tasks.RESULT_CHANNEL] = (
            *source.strides[:2],
            *result.strides[:2],
        )
        for axis in range(3):
            low, high = p.padding[axis]
            g[tasks.LENGTH + axis], g[tasks.USEFUL + axis], g[tasks.TILES + axis] = (
                layout.lengths[axis],
                layout.useful[axis],
                layout.tiles[axis],
            )
            g[tasks.SIZE + axis], g[tasks.LOW + axis], g[tasks.MET + axis] = p.in_size[axis], low, low + p.in_size[axis] + high
            g[tasks.RESULT_SIZE + axis], g[tasks.TAPS + axis], g[tasks.GAP + axis] = p.out_size[axis], p.kernel[axis], p.dilation[axis]
            g[tasks.SOURCE_STEP + axis], g[tasks.RESULT_STEP + axis] = source.strides[axis + 2], result.strides[axis + 2]
        return g


def by_definition(p: Problem) -> Setup:
    found = Filter()
    return found.setup(p) if found.supports(p) is None else Direct().setup(p)
