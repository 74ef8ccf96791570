"""A few positions of a convolution's result, at which the reference can say what is right for problems far too large for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import reference
from .arguments import PADDING_MODES
from .arrays import AnyArray
from .padding import PADDING, index_map
from .problem import Problem


@dataclass(frozen=True)
class Sample:
    """Random places of the result of a forward convolution, all channels, and the cells of the input that they depend on.

    places : the image, depth, row and column of each, int64 (count, 4)
    fields : (count, C, kd, kh, kw), padding filled in
    problem : the convolution of ``fields`` to one result cell each
    """

    places: AnyArray
    fields: AnyArray
    problem: Problem

    def exact(self, weight: AnyArray, bias: AnyArray | None) -> AnyArray:
        """The reference's sums at the places, (count, out_channels): float64, complex128 or int64, not rounded."""
        return self._sums(self.fields, weight, bias)

    def magnitudes(self, weight: AnyArray, bias: AnyArray | None) -> AnyArray:
        """The same sums of the absolute values of all products and the bias: what bounds of rounding errors are fractions of."""
        return self._sums(abs(self.fields), abs(weight), None if bias is None else abs(bias))

    def found(self, result: AnyArray) -> AnyArray:
        """What a result, batched, has at the places: (count, out_channels)."""
        five = result.reshape(*result.shape[:2], *(1,) * (5 - result.ndim), *result.shape[2:])
        image, depth, row, column = self.places.T
        return five[image, :, depth, row, column]

    def _sums(self, fields: AnyArray, weight: AnyArray, bias: AnyArray | None) -> AnyArray:
        return reference.convolve(self.problem, fields, weight, bias, rounded=False).reshape(len(fields), -1)


def draw_sample(problem: Problem, source: AnyArray, count: int, seed: int = 0) -> Sample:
    """``count`` random places of the result of a forward ``problem`` on ``source``, batched."""
    rng = np.random.default_rng(seed)
    places = np.stack([rng.integers(n, size=count) for n in (problem.batch, *problem.out_size)], axis=1)
    images = source.reshape(problem.batch, problem.in_channels, *problem.in_size)
    fields = np.stack([_receptive_field(problem, images[place[0]], place[1:]) for place in places])
    unpadded = ((0, 0),) * 3
    single = replace(
        problem, batch=count, rank=3, in_size=problem.kernel, padding=unpadded, dilation=(1, 1, 1), stride=(1, 1, 1), padding_mode="zeros"
    )
    return Sample(places, fields, single)


def _receptive_field(p: Problem, image: AnyArray, position: AnyArray) -> AnyArray:
    """The (C, kd, kh, kw) cells that the result cell at ``position`` is a sum over."""
    field = image
    for axis in range(3):
        start, gap = int(position[axis]) * p.stride[axis], p.dilation[axis]
        indices = index_map(p.in_size[axis], *p.padding[axis], PADDING_MODES.index(p.padding_mode))
        indices = indices[start : start + gap * (p.kernel[axis] - 1) + 1 : gap]
        field = field.take(indices, axis=axis + 1)
        field[(slice(None),) * (axis + 1) + (indices == PADDING,)] = 0
    return field
