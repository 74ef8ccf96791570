"""Input gradients, and so transposed convolutions, by the filter algorithm: forward convolutions with the flipped, channel-swapped weight.

With stride s they are s convolutions an axis: the result cells of one remainder modulo s meet the same taps, at consecutive source
cells.  No zeros are inserted between source cells, so none are multiplied.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import ELEMENTS, AnyArray, storage_view
from ..axes import Axis, Part, axis_parts
from ..problem import Problem
from .direct import Direct
from .filter_forward import FilterSetup


class Met(NamedTuple):
    """What the cells of a part meet along one axis: source cells [first, last), padded by (low, high), by taps ``dilation`` apart."""

    first: int
    last: int
    padding: tuple[int, int]
    dilation: int


@dataclass(frozen=True)
class GradientPart:
    """The result cells of one remainder along each axis, as a forward convolution.

    axes : their places, and the taps that they meet; met : the source cells.  None where a result is its bias: along some axis no tap
    meets a source cell.
    """

    problem: Problem
    axes: Part
    met: tuple[Met, Met, Met] | None

    @cached_property
    def setup(self) -> FilterSetup | None:
        if self.met is None:
            return None
        (d, h, w), (kd, kh, kw), p = self.met, map(len, self.taps), self.problem
        return FilterSetup(replace(
            p, direction="forward", batch=1, in_channels=p.out_channels, out_channels=p.in_channels, output_padding=(0, 0, 0),
            stride=(1, 1, 1), in_size=(d.last - d.first, h.last - h.first, w.last - w.first), kernel=(kd, kh, kw),
            padding=(d.padding, h.padding, w.padding), dilation=(d.dilation, h.dilation, w.dilation),
        ))  # fmt: skip

    @property
    def taps(self) -> tuple[tuple[int, ...], ...]:
        """Positions in the kernel, along each axis, by ascending source cell."""
        return tuple(axis.taps[::-1] for axis in self.axes)

    def weight(self, weight: AnyArray) -> AnyArray:
        """The weight of the forward convolution."""
        p, taken = self.problem, self._taken(weight)
        taken = taken.reshape(p.groups, p.out_per_group, p.in_per_group, *taken.shape[2:]).swapaxes(1, 2)
        return taken.reshape(p.in_channels, p.out_per_group, *taken.shape[3:])

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Places, in a group's weight, of what the forward convolution packs."""
        p, setup = self.problem, self.setup
        assert setup is not None
        shape = p.out_per_group, p.in_per_group, *p.kernel
        return setup.order(self._taken(np.arange(math.prod(shape)).reshape(shape)).swapaxes(0, 1))

    def _taken(self, weight: AnyArray) -> AnyArray:
        return weight[:, :, *(_slice(taps) for taps in self.taps)]

    def of_source(self, source: AnyArray) -> AnyArray:
        """The source cells that are met."""
        assert self.met is not None
        return source[:, :, *(slice(axis.first, axis.last) for axis in self.met)]

    def of_result(self, result: AnyArray) -> AnyArray:
        return result[:, :, *(slice(axis.first, None, axis.stride) for axis in self.axes)]


def _slice(taps: tuple[int, ...]) -> slice:
    """Taps of descending positions, evenly spaced, as a view takes them."""
    step = taps[1] - taps[0] if len(taps) > 1 else -1
    return slice(taps[0], taps[-1] - 1 if taps[-1] else None, step) if taps else slice(0)


def gradient_parts(p: Problem) -> list[GradientPart]:
    found = []
    for axes in itertools.product(*(axis_parts(p, axis) for axis in range(3))):
        depth, height, width = axes
        d, h, w = (_met(axis, size) for axis, size in zip(axes, p.source_size))
        found.append(GradientPart(p, (depth, height, width), (d, h, w) if d and h and w else None))
    return found


def _met(axis: Axis, size: int) -> Met | None:
    """None where no tap meets one of the ``size`` source cells."""
    shifts = axis.shifts[::-1]
    if not shifts:
        return None
    end = axis.size + shifts[-1]
    first, last = max(0, shifts[0]), min(size, end)
    dilation = shifts[1] - shifts[0] if len(shifts) > 1 else 1
    return Met(first, last, (first - shifts[0], end - last), dilation) if first < last else None


@dataclass(frozen=True)
class FilterGradientSetup:
    """The algorithm set up for an input gradient.

    ``pack`` returns an int64 flag (is the weight finite?), the bias, and what the parts packed.  A weight that is not finite is left to
    ``direct``, whose packing then follows the flag: parts multiply zeros where the source has no cell, which a gradient does not.
    """

    problem: Problem

    @cached_property
    def parts(self) -> list[GradientPart]:
        return gradient_parts(self.problem)

    @cached_property
    def _setups(self) -> list[FilterSetup]:
        return [part.setup for part in self.parts if part.setup]

    @cached_property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates."""
        return max([Direct().setup(self.problem).workspace, *(setup.workspace for setup in self._setups)])

    @property
    def packed_bytes(self) -> int:
        bias = self.problem.in_channels * ELEMENTS[self.problem.dtype].storage.itemsize
        return 8 + bias + sum(setup.packed_bytes for setup in self._setups)

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        p, finite = self.problem, np.array([np.isfinite(weight).all()], np.int64)
        if not finite[0]:
            return finite, *Direct().setup(p).pack(weight, bias)
        packed = [finite, storage_view(np.zeros(p.in_channels, weight.dtype) if bias is None else np.array(bias))]
        padded: AnyArray | None = None
        for part in self.parts:
            if part.setup:
                padded = part.setup.pack_bias(bias) if padded is None else padded  # tiles have as many channels in all parts
                packed += part.setup.pack_weight(weight, part.order), padded, finite
        return tuple(packed)

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        finite, bias, *rest = packed
        if not finite[0]:
            Direct().setup(self.problem).run(source, packed[1:], result)
            return
        for part in self.parts:
            cells = part.of_result(result)
            if part.setup:
                part.setup.run(part.of_source(source), tuple(rest[:3]), cells)
                rest = rest[3:]
            else:
                cells[...] = bias[:, None, None, None]
