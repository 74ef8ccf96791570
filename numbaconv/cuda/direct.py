"""Direct convolution on a device: any problem, straight from the definition.

A thread computes a few result cells in a block of neighbouring result channels.  Neighbouring threads have neighbouring cells where the
result's cells are contiguous, and neighbouring channels where its channels are (channels-last), so that stores and most loads coalesce.

The order of an element's sum is fixed by the problem alone: copies in the padding (of a gradient that folds back), then taps, then source
channels; its bias comes last.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

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
FEW_THREADS = 1 << 13  # of an image
# The cost model, measured on one H200: what a cell costs in a block of channels, each of its taps, and products in a second.
CELL_SECONDS, TAP_SECONDS = 8e-12, 1.4e-12
PRODUCTS_PER_SECOND = {"float64": 4.2e12, "complex64": 2e12, "complex128": 0.8e12, "int32": 4e12, "int64": 1e12}
FLOAT_PRODUCTS_PER_SECOND = 8.6e12
ONE_CELL = 0.6  # of these rates, where a thread has one cell
STRIDED = 0.5  # and where a gradient has a stride
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


class Form(NamedTuple):
    """What is compiled into a kernel."""

    source: str  # dtype
    result: str
    block: int  # result channels of a thread
    columns: int  # result cells of a thread
    transposed: bool
    folds: bool  # copies in the padding count too (an input gradient with a padding mode); one cell a thread then
    wide: bool  # an image has 2**31 or more pairs of a cell and a block


@functools.cache
def direct_kernel(form: Form) -> Kernel:
    block, columns, transposed, folds = form[2:6]
    read, write = element(form.source), element(form.result)
    store, zero, sum_type, results = write.store, read.zero, read.sum_type, block * columns
    load_sum, sum_all_taps = element(read.accumulator).load, sums_of_taps(form)
    index = types.uint64 if form.wide else types.uint32
    i32, u64 = types.int32, types.uint64
    source_bytes, weight_bytes, result_bytes = u64(read.bytes), u64(itemsize(read.accumulator)), u64(write.bytes)

    def direct(source, weights, bias, result, depth, height, width, source_steps, result_steps, sizes):  # type: ignore[no-untyped-def]
        number, thread = index(cuda.blockIdx.x), index(cuda.threadIdx.x)
        cells, blocks = index(sizes.cells), index(sizes.blocks)
        if sizes.channels_first:
            tiles = index(index(cells + index(THREADS * columns - 1)) // index(THREADS * columns))
            which = index(number // tiles)
            cell, step = index(index(number - index(which * tiles)) * index(THREADS * columns) + thread), index(THREADS)
        else:
            position = index(number * index(THREADS) + thread)
            cell = index(position // blocks)
            which = index(position - index(cell * blocks))
            cell, step = index(cell * index(columns)), index(1)
        if cell >= cells:
            return
        d, h, w = cuda.local.array(columns, i32), cuda.local.array(columns, i32), cuda.local.array(columns, i32)
        for q in range(columns):
            at = index(cell + index(index(q) * step))
            at = at if at < cells else cell  # computed, not stored
            rest = index(at // index(width.result))
            w[q] = i32(at - index(rest * index(width.result)))
            d[q] = i32(rest // index(height.result))
            h[q] = i32(rest - index(index(d[q]) * index(height.result)))
        per_group = i32(sizes.padded // i32(block))
        group = i32(i32(which) // per_group)
        first = i32(i32(i32(which) - i32(group * per_group)) * i32(block))
        image = types.int64(cuda.blockIdx.y)

        base = u64(source + u64(image * source_steps.n + types.int64(group) * sizes.sources * source_steps.c) * source_bytes)
        taps = types.int64(depth.kernel) * height.kernel * width.kernel
        weights = u64(weights + u64((types.int64(group) * taps * sizes.sources) * sizes.padded + first) * weight_bytes)
        sums = cuda.local.array(results, sum_type)
        for r in range(results):
            sums[r] = zero
        if folds:
            own = d[0], h[0], w[0]
            for a in range(copies(depth, own[0], sizes.mode)):
                d[0] = copy_at(depth, own[0], sizes.mode, a)
                for b in range(copies(height, own[1], sizes.mode)):
                    h[0] = copy_at(height, own[1], sizes.mode, b)
                    for c in range(copies(width, own[2], sizes.mode)):
                        w[0] = copy_at(width, own[2], sizes.mode, c)
                        sum_all_taps(base, weights, depth, height, width, d, h, w, source_steps, sizes, sums)
            d[0], h[0], w[0] = own
        else:
            sum_all_taps(base, weights, depth, height, width, d, h, w, source_steps, sizes, sums)

        for q in range(columns):
            if index(cell + index(index(q) * step)) < cells:
                offset = image * result_steps.n + d[q] * result_steps.d + h[q] * result_steps.h + w[q] * result_steps.w
                for r in range(block):
                    channel = i32(first + i32(r))
                    if channel < sizes.results:
                        place = types.int64(group) * sizes.results + channel
                        total = sums[q * block + r]
                        if sizes.bias:
                            total += load_sum(bias + u64(place) * weight_bytes)
                        store(result + u64(offset + place * result_steps.c) * result_bytes, total)

    flags = f"{'-transposed' * transposed}{'-folds' * folds}{'-wide' * form.wide}"
    name = f"direct-{form.source}-{form.result}-{block}x{columns}{flags}"
    return Kernel(name, direct, (types.uint64,) * 4 + (AXIS,) * 3 + (STEPS,) * 2 + (SIZES,), THREADS)


def sums_of_taps(form: Form) -> Any:
    """The device function that adds the products of all taps and channels at a thread's positions of the (padded) result."""
    block, columns, transposed = form.block, form.columns, form.transposed
    read = element(form.source)
    load, zero = read.load, read.zero
    load_weights = load_many(read.accumulator, block)
    meets = transposed_meets if transposed else forward_meets
    i32, u64 = types.int32, types.uint64
    source_bytes, weight_bytes = u64(read.bytes), u64(itemsize(read.accumulator))

    @cuda.jit(device=True)
    def sum_all_taps(source, weights, depth, height, width, d, h, w, steps, sizes, sums):  # type: ignore[no-untyped-def]
        row, channel = u64(u64(sizes.padded) * weight_bytes), u64(u64(steps.c) * source_bytes)
        zd, zh = cuda.local.array(columns, i32), cuda.local.array(columns, i32)
        inside, address = cuda.local.array(columns, types.boolean), cuda.local.array(columns, u64)
        for i in range(depth.kernel):
            for q in range(columns):
                zd[q] = meets(depth, d[q], i32(i), sizes.mode)
            for j in range(height.kernel):
                for q in range(columns):
                    zh[q] = meets(height, h[q], i32(j), sizes.mode)
                for k in range(width.kernel):
                    met = False
                    for q in range(columns):
                        zw = meets(width, w[q], i32(k), sizes.mode)
                        inside[q] = zd[q] >= 0 and zh[q] >= 0 and zw >= 0
                        address[q] = u64(source + u64(zd[q] * steps.d + zh[q] * steps.h + zw * steps.w) * source_bytes)
                        met = met or inside[q]
                    if transposed and not met:
                        weights = u64(weights + row * u64(sizes.sources))
                        continue
                    for _c in range(sizes.sources):
                        loaded = load_weights(weights)
                        for q in range(columns):
                            if not transposed:  # a padded zero is multiplied
                                value = load(address[q]) if inside[q] else zero
                                for r in range(block):
                                    sums[q * block + r] += value * loaded[r]
                            elif inside[q]:  # an inserted one does not exist
                                value = load(address[q])
                                for r in range(block):
                                    sums[q * block + r] += value * loaded[r]
                            address[q] = u64(address[q] + channel)
                        weights = u64(weights + row)

    return sum_all_taps


class Direct:
    """The algorithm that takes everything."""

    name = "direct"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        return too_long(problem)

    def cost(self, problem: Problem) -> float:
        p = problem.per_image
        return DirectWeightSetup(p).seconds if p.direction == "weight_grad" else DirectSetup(p).seconds

    def setup(self, problem: Problem) -> Setup:
        return DirectWeightSetup(problem) if problem.direction == "weight_grad" else DirectSetup(problem)


@dataclass(frozen=True)
class DirectSetup(Launched):
    """Forward and input gradient."""

    problem: Problem
    workspace: int = 0

    @functools.cached_property
    def _block(self) -> int:
        """Result channels of a thread."""
        per_group = self.problem.result_channels // self.problem.groups
        return 8 if per_group > 4 else 4 if per_group > 1 else 1

    @functools.cached_property
    def _columns(self) -> int:
        """Result cells of a thread, which share the loads of the weights: fewer where an image would not fill a GPU."""
        p = self.problem
        if p.transposed and p.padding_mode != "zeros":
            return 1
        threads = math.prod(p.result_size) * p.groups * self._padded // self._block
        return 1 if threads < FEW_THREADS else {"complex64": 2, "complex128": 1}.get(p.dtype, 4)  # as registers allow

    @functools.cached_property
    def _padded(self) -> int:
        per_group = self.problem.result_channels // self.problem.groups
        return -(-per_group // self._block) * self._block

    @functools.cached_property
    def seconds(self) -> float:
        """Estimated, of one image."""
        p = self.problem
        cells = math.prod(p.result_size) * p.groups * self._padded // self._block
        rate = PRODUCTS_PER_SECOND.get(element(p.dtype).accumulator, FLOAT_PRODUCTS_PER_SECOND) * (1 if self._columns > 1 else ONE_CELL)
        products = float(cells * self._block * (p.source_channels // p.groups) * p.taps)
        if p.transposed and p.stride != (1, 1, 1):  # neighbouring threads meet different taps, and wait for each other
            products, rate = products / (p.stride[0] * p.stride[1]), rate * STRIDED
        return LAUNCH_SECONDS + cells * (CELL_SECONDS + p.taps * TAP_SECONDS) + products / rate

    @functools.cached_property
    def _packed_shape(self) -> tuple[int, ...]:
        """Group, taps, source channel, result channel."""
        p = self.problem
        return (p.groups, *p.kernel, p.source_channels // p.groups, self._padded)

    @functools.cached_property
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
        folds, columns = p.transposed and p.padding_mode != "zeros", self._columns
        channels_first = result.strides[1] != result.itemsize or cells == 1
        sizes = Sizes(
            p.source_channels // p.groups, p.result_channels // p.groups, self._padded, blocks, cells, channels_first, mode_of(p), p.bias
        )
        wide = (cells + THREADS * columns) * blocks >= 2**31
        kernel = direct_kernel(Form(p.dtype, p.out_dtype, self._block, columns, p.transposed, folds, wide))
        function = driver().function(kernel, source.device)
        constants = numbers([*axes_of(p), Steps(*source.steps), Steps(*result.steps), sizes])
        count = -(-cells // (THREADS * columns)) * blocks if channels_first else -(-(-(-cells // columns) * blocks) // THREADS)
        found = []
        for first in range(0, source.shape[0], MOST_ROWS):  # images are counted along a short dimension of the grid
            grid = (count, min(MOST_ROWS, source.shape[0] - first), 1)
            bias = (PACKED + 1, 0) if p.bias else (NULL, 0)
            places = (SOURCE, first * source.strides[0]), (PACKED, 0), bias, (RESULT, first * result.strides[0])
            found.append(Launch(Call(function, grid, 4, constants), places))
        return found
