"""A few elements of a result or of a gradient, of which the reference can say what is right for problems far too large for it."""

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
    """Random places of the result of a convolution or input gradient, all channels, and the source cells that they depend on.

    places : the image, depth, row and column of each, int64 (count, 4)
    fields : (count, source channels, kd, kh, kw), padding filled in
    problem : the convolution, or gradient, of ``fields`` to one result cell each
    """

    places: AnyArray
    fields: AnyArray
    problem: Problem

    def exact(self, weight: AnyArray, bias: AnyArray | None) -> AnyArray:
        """The reference's sums at the places, (count, result channels): float64, complex128 or int64, not rounded."""
        return self._sums(self.fields, weight, bias)

    def magnitudes(self, weight: AnyArray, bias: AnyArray | None) -> AnyArray:
        """The same sums of the absolute values of all products and the bias: what bounds of rounding errors are fractions of."""
        return self._sums(abs(self.fields), abs(weight), None if bias is None else abs(bias))

    def found(self, result: AnyArray) -> AnyArray:
        """What a result, batched, has at the places: (count, result channels)."""
        five = result.reshape(*result.shape[:2], *(1,) * (5 - result.ndim), *result.shape[2:])
        image, depth, row, column = self.places.T
        return five[image, :, depth, row, column]

    def _sums(self, fields: AnyArray, weight: AnyArray, bias: AnyArray | None) -> AnyArray:
        return reference.convolve(self.problem, fields, weight, bias, rounded=False).reshape(len(fields), -1)


def draw_sample(problem: Problem, source: AnyArray, count: int, seed: int = 0) -> Sample:
    """``count`` random places of the result of a forward ``problem``, or input gradient of zero padding, on ``source``, batched."""
    p, one = problem, (1, 1, 1)
    rng = np.random.default_rng(seed)
    places = np.stack([rng.integers(n, size=count) for n in (p.batch, *p.result_size)], axis=1)
    images = source.reshape(p.batch, p.source_channels, *p.source_size)
    fields = np.stack([_receptive_field(p, images[place[0]], place[1:]) for place in places])
    a, b, c = ((k - 1, k - 1) if p.transposed else (0, 0) for k in p.kernel)  # what turns a field into one cell
    single = replace(
        p, batch=count, rank=3, in_size=one if p.transposed else p.kernel, padding=(a, b, c), dilation=one, stride=one,
        output_padding=(0, 0, 0), padding_mode="zeros",
    )  # fmt: skip
    return Sample(places, fields, single)


@dataclass(frozen=True)
class WeightSample:
    """Random pairs of channels of a weight gradient, all taps between them.

    pairs : an output channel and a channel of its group, int64 (count, 2)
    """

    problem: Problem
    pairs: AnyArray

    def exact(self, input: AnyArray, grad_output: AnyArray) -> AnyArray:
        """The reference's sums of the pairs, (count, taps): float64, complex128 or int64, not rounded."""
        p = self.problem
        single = replace(p, groups=1, in_channels=1, out_channels=1)
        sums = []
        for filter, channel in self.pairs:
            c = filter // p.out_per_group * p.in_per_group + channel
            sums.append(reference.weight_grad(single, input[:, c : c + 1], grad_output[:, filter : filter + 1], rounded=False).ravel())
        return np.stack(sums)

    def found(self, result: AnyArray) -> AnyArray:
        """What a weight gradient has for the pairs: (count, taps)."""
        return result[self.pairs[:, 0], self.pairs[:, 1]].reshape(len(self.pairs), -1)


def draw_weight_sample(problem: Problem, count: int, seed: int = 0) -> WeightSample:
    """``count`` random pairs of channels, or all where there are fewer."""
    pairs = problem.out_channels * problem.in_per_group
    drawn = np.random.default_rng(seed).choice(pairs, min(count, pairs), replace=False)
    return WeightSample(problem, np.stack(np.divmod(drawn, problem.in_per_group), axis=1))


def _receptive_field(p: Problem, image: AnyArray, position: AnyArray) -> AnyArray:
    """The (channels, kd, kh, kw) cells that the result cell at ``position`` is a sum over, in the order in which they lie."""
    field = image
    for axis in range(3):
        indices = _source_indices(p, axis, int(position[axis]))
        field = field.take(indices, axis=axis + 1)
        field[(slice(None),) * (axis + 1) + (indices == PADDING,)] = 0
    return field


def _source_indices(p: Problem, axis: int, position: int) -> AnyArray:
    """The source cells along an axis that the taps of one result cell meet; PADDING for a zero."""
    gap, stride, reach = p.dilation[axis], p.stride[axis], p.dilation[axis] * (p.kernel[axis] - 1)
    if not p.transposed:
        indices = index_map(p.in_size[axis], *p.padding[axis], PADDING_MODES.index(p.padding_mode))
        return indices[position * stride : position * stride + reach + 1 : gap]
    strided = position + p.padding[axis][0] + np.arange(-reach, 1, gap)
    exists = (strided % stride == 0) & (strided >= 0) & (strided < p.out_size[axis] * stride)
    return np.where(exists, strided // stride, PADDING)
