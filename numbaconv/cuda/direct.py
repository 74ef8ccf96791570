"""Direct convolution on a device: any problem, straight from the definition.

A thread computes one result cell in a block of neighbouring result channels.  Neighbouring threads have neighbouring cells where the
result's cells are contiguous, and neighbouring channels where its channels are (channels-last), so that stores and most loads coalesce.

The order of an element's sum is fixed by the problem alone: copies in the padding (of a gradient that folds back), then taps, then source
channels; its bias comes last.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

from numba import cuda
from numba.cuda import types

from ..choose import Accuracy, Setup
from ..device import DeviceArray
from ..problem import Problem, itemsize
from .arrays import empty
from .copies import strided_copy
from .direct_weight import DirectWeightSetup
from .driver import MOST_ROWS, Call, driver
from .elements import element, load_many
from .geometry import AXIS, STEPS, Steps, axes_of, copies, copy_at, forward_meets, mode_of, numbers, too_long, transposed_meets
from .launch import Kernel
from .launches import NULL, PACKED, RESULT, SOURCE, Launch, Launched

THREADS = 128
# Rates of the cost model, measured on one H200 in float32.
PRODUCTS_PER_SECOND = 4e12
LAUNCH_SECONDS = 4e-6


class Sizes(NamedTuple):
    """What the kernel needs beside axes and strides; channels are those of one group."""

    sources: int
    results: int
    padded: int  # results, in whole blocks
    blocks: int  # of result channels, of all groups
    cells: int
    channels_first: int  # threads run along cells
    mode: int
    bias: int


SIZES = types.NamedTuple((types.int32,) * 4 + (types.int64,) + (types.int32,) * 3, Sizes)


@functools.cache
def direct_kernel(source: str, result: str, block: int, transposed: bool, folds: bool, wide: bool) -> Kernel:
    """The kernel for these dtypes and so many result channels a thread.

    folds : copies in the padding count too (an input gradient with a padding mode)
    wide : an image has 2**31 or more pairs of a cell and a block
    """
    read, write = element(source), element(result)
    load, store, zero, sum_type = read.load, write.store, read.zero, read.sum_type
    load_weights, load_sum = load_many(read.accumulator, block), element(read.accumulator).load
    meets = transposed_meets if transposed else forward_meets
    index = types.uint64 if wide else types.uint32
    i32, u64 = types.int32, types.uint64
    source_bytes, weight_bytes, result_bytes = u64(read.bytes), u64(itemsize(read.accumulator)), u64(write.bytes)

    @cuda.jit(device=True)
    def sum_taps(source, weights, depth, height, width, d, h, w, steps, sizes, sums):  # type: ignore[no-untyped-def]
        """Add the products of all taps and channels at one position of the (padded) result."""
        row = u64(u64(sizes.padded) * weight_bytes)
        channel = u64(u64(steps.c) * source_bytes)
        for i in range(depth.kernel):
            zd = meets(depth, d, i32(i), sizes.mode)
            for j in range(height.kernel):
                zh = meets(height, h, i32(j), sizes.mode)
                for k in range(width.kernel):
                    zw = meets(width, w, i32(k), sizes.mode)
                    inside = zd >= 0 and zh >= 0 and zw >= 0
                    if inside or not transposed:  # a padded zero is multiplied, an inserted one does not exist
                        offset = zd * steps.d + zh * steps.h + zw * steps.w
                        address = u64(source + u64(offset) * source_bytes)
                        for _c in range(sizes.sources):
                            value = load(address) if inside else zero
                            loaded = load_weights(weights)
                            for r in range(block):
                                sums[r] += value * loaded[r]
                            address = u64(address + channel)
                            weights = u64(weights + row)
                    else:
                        weights = u64(weights + row * u64(sizes.sources))

    def direct(source, weights, bias, result, depth, height, width, source_steps, result_steps, sizes):  # type: ignore[no-untyped-def]
        position = index(index(cuda.blockIdx.x) * index(THREADS) + index(cuda.threadIdx.x))
        cells, blocks = index(sizes.cells), index(sizes.blocks)
        if sizes.channels_first:
            which = index(position // cells)
            cell = index(position - index(which * cells))
        else:
            cell = index(position // blocks)
            which = index(position - index(cell * blocks))
        if cell >= cells or which >= blocks:
            return
        rest = index(cell // index(width.result))
        w = i32(cell - index(rest * index(width.result)))
        d = i32(rest // index(height.result))
        h = i32(rest - index(index(d) * index(height.result)))
        per_group = i32(sizes.padded // i32(block))
        group = i32(i32(which) // per_group)
        first = i32(i32(i32(which) - i32(group * per_group)) * i32(block))
        image = types.int64(cuda.blockIdx.y)

        base = u64(source + u64(image * source_steps.n + types.int64(group) * sizes.sources * source_steps.c) * source_bytes)
        taps = types.int64(depth.kernel) * height.kernel * width.kernel
        weights = u64(weights + u64((types.int64(group) * taps * sizes.sources) * sizes.padded + first) * weight_bytes)
        sums = cuda.local.array(block, sum_type)
        for r in range(block):
            sums[r] = zero
        if folds:
            for a in range(copies(depth, d, sizes.mode)):
                for b in range(copies(height, h, sizes.mode)):
                    for c in range(copies(width, w, sizes.mode)):
                        at = copy_at(depth, d, sizes.mode, a), copy_at(height, h, sizes.mode, b), copy_at(width, w, sizes.mode, c)
                        sum_taps(base, weights, depth, height, width, at[0], at[1], at[2], source_steps, sizes, sums)
        else:
            sum_taps(base, weights, depth, height, width, d, h, w, source_steps, sizes, sums)

        offset = image * result_steps.n + d * result_steps.d + h * result_steps.h + w * result_steps.w
        for r in range(block):
            channel = i32(first + i32(r))
            if channel < sizes.results:
                number = types.int64(group) * sizes.results + channel
                total = sums[r]
                if sizes.bias:
                    total += load_sum(bias + u64(number) * weight_bytes)
                store(result + u64(offset + number * result_steps.c) * result_bytes, total)

    name = f"direct-{source}-{result}-{block}{'-transposed' * transposed}{'-folds' * folds}{'-wide' * wide}"
    return Kernel(name, direct, (types.uint64,) * 4 + (AXIS,) * 3 + (STEPS,) * 2 + (SIZES,), THREADS)


class Direct:
    """The algorithm that takes everything."""

    name = "direct"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        return too_long(problem)

    def cost(self, problem: Problem) -> float:
        return LAUNCH_SECONDS + problem.per_image.flops / 2 / PRODUCTS_PER_SECOND

    def setup(self, problem: Problem) -> Setup:
        return DirectWeightSetup(problem) if problem.direction == "weight_grad" else DirectSetup(problem)


@dataclass(frozen=True)
class DirectSetup(Launched):
    """Forward and input gradient."""

    problem: Problem
    workspace: int = 0

    @property
    def _block(self) -> int:
        """Result channels of a thread."""
        per_group = self.problem.result_channels // self.problem.groups
        return 8 if per_group > 4 else 4 if per_group > 1 else 1

    @property
    def _padded(self) -> int:
        per_group = self.problem.result_channels // self.problem.groups
        return -(-per_group // self._block) * self._block

    @property
    def _packed_shape(self) -> tuple[int, ...]:
        """Group, taps, source channel, result channel."""
        p = self.problem
        return (p.groups, *p.kernel, p.source_channels // p.groups, self._padded)

    @property
    def packed_bytes(self) -> int:
        p = self.problem
        return (math.prod(self._packed_shape) + p.result_channels * p.bias) * itemsize(element(p.dtype).accumulator)

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> tuple[DeviceArray, ...]:
        p = self.problem
        accumulator = element(p.dtype).accumulator
        packed = empty(self._packed_shape, accumulator, weight)
        out, within, *taps = weight.steps
        group = out * p.out_per_group
        steps = (group, *taps, *((out, within) if p.transposed else (within, out)))
        inside = (*self._packed_shape[:-1], p.result_channels // p.groups)
        strided_copy(weight, packed, packed.shape, steps, packed.steps, inside)
        if bias is None:
            return (packed,)
        added = empty(bias.shape, accumulator, weight)
        strided_copy(bias, added, added.shape, bias.steps, added.steps)
        return packed, added

    def launches(self, source: DeviceArray, result: DeviceArray) -> list[Launch]:
        p = self.problem
        cells, blocks = math.prod(p.result_size), p.groups * self._padded // self._block
        sizes = Sizes(
            p.source_channels // p.groups, p.result_channels // p.groups, self._padded, blocks, cells,
            result.strides[1] != result.itemsize or cells == 1, mode_of(p), p.bias,
        )  # fmt: skip
        folds = p.transposed and p.padding_mode != "zeros"
        kernel = direct_kernel(p.dtype, p.out_dtype, self._block, p.transposed, folds, cells * blocks >= 2**31 - THREADS)
        function = driver().function(kernel, source.device)
        constants = numbers([*axes_of(p), Steps(*source.steps), Steps(*result.steps), sizes])
        found = []
        for first in range(0, source.shape[0], MOST_ROWS):  # images are counted along a short dimension of the grid
            grid = (-(-cells * blocks // THREADS), min(MOST_ROWS, source.shape[0] - first), 1)
            bias = (PACKED + 1, 0) if p.bias else (NULL, 0)
            places = (SOURCE, first * source.strides[0]), (PACKED, 0), bias, (RESULT, first * result.strides[0])
            found.append(Launch(Call(function, grid, 4, constants), places))
        return found
