"""Direct weight gradient on a device: any problem, straight from the definition.

``dW[o, c, k] = sum over n, y of grad[n, o, y] * conj(input[n, c, y * stride + k * dilation - padding])``: a block of threads sums one
tap of one input channel for a few output channels.

The order of an element's sum is fixed: thread t of a block takes cells t, t + 256, ... of one image after the other, in runs of 64 that are
summed in the accumulator and added up in float64 (complex128); then the threads' sums are added pairwise.  This is the one result that
depends on the batch size.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

from numba import cuda
from numba.cuda import types

from ..device import DeviceArray
from ..layouts import Layouts
from ..problem import Problem
from .driver import Call, driver
from .elements import element
from .geometry import AXIS, STEPS, Steps, axes_of, forward_meets, mode_of, numbers
from .launch import Kernel
from .reduce import THREADS, sum_pairwise

PRODUCTS_PER_SECOND = 1e12  # an estimate for the cost model
RUN = 64  # cells that a thread sums in the accumulator


class Sizes(NamedTuple):
    """Channels are those of one group."""

    sources: int
    results: int
    blocks: int  # of output channels in a group
    images: int
    cells: int
    mode: int


SIZES = types.NamedTuple((types.int32,) * 4 + (types.int64, types.int32), Sizes)


@functools.cache
def weight_kernel(name: str, block: int) -> Kernel:
    """The kernel for a dtype and so many output channels a block of threads."""
    part = element(name)
    load, store, zero, sum_type = part.load, part.store, part.zero, part.sum_type
    size = types.uint64(part.bytes)
    wide = {"float32": types.float64, "complex64": types.complex128}.get(part.accumulator, sum_type)
    i32, i64, u32, u64 = types.int32, types.int64, types.uint32, types.uint64
    conjugated = name.startswith("complex")

    def weight_grad(source, grad, result, depth, height, width, source_steps, grad_steps, result_steps, sizes):  # type: ignore[no-untyped-def]
        thread = i32(cuda.threadIdx.x)
        rest = u32(cuda.blockIdx.x)
        k = i32(rest % u32(width.kernel))
        rest = rest // u32(width.kernel)
        j = i32(rest % u32(height.kernel))
        rest = rest // u32(height.kernel)
        i = i32(rest % u32(depth.kernel))
        rest = rest // u32(depth.kernel)
        c = i32(rest % u32(sizes.sources))
        rest = rest // u32(sizes.sources)
        first = i32(i32(rest % u32(sizes.blocks)) * i32(block))
        group = i32(rest // u32(sizes.blocks))

        totals, sums = cuda.local.array(block, wide), cuda.local.array(block, sum_type)
        for r in range(block):
            totals[r], sums[r] = wide(0), zero
        in_run = i32(0)
        for n in range(sizes.images):
            inputs = u64(source + u64(i64(n) * source_steps.n + (i64(group) * sizes.sources + c) * source_steps.c) * size)
            grads = u64(grad + u64(i64(n) * grad_steps.n + (i64(group) * sizes.results + first) * grad_steps.c) * size)
            cell = i64(thread)
            while cell < sizes.cells:
                row = cell // width.result
                w = i32(cell - row * width.result)
                d = i32(row // height.result)
                h = i32(row - i64(d) * height.result)
                zd = forward_meets(depth, d, i, sizes.mode)
                zh = forward_meets(height, h, j, sizes.mode)
                zw = forward_meets(width, w, k, sizes.mode)
                value = zero
                if zd >= 0 and zh >= 0 and zw >= 0:
                    value = load(inputs + u64(zd * source_steps.d + zh * source_steps.h + zw * source_steps.w) * size)
                if conjugated:
                    value = value.conjugate()
                place = u64(grads + u64(d * grad_steps.d + h * grad_steps.h + w * grad_steps.w) * size)
                for r in range(block):
                    if i32(first + i32(r)) < sizes.results:
                        sums[r] += load(place + u64(r * grad_steps.c) * size) * value
                in_run = i32(in_run + i32(1))
                if in_run == i32(RUN):
                    in_run = i32(0)
                    for r in range(block):
                        totals[r] += sums[r]
                        sums[r] = zero
                cell += THREADS

        shared = cuda.shared.array(THREADS, wide)
        for r in range(block):
            shared[thread] = totals[r] + sums[r]
            sum_pairwise(shared, thread)
            channel = i32(first + i32(r))
            if thread == 0 and channel < sizes.results:
                offset = (i64(group) * sizes.results + channel) * result_steps.n + c * result_steps.c
                offset += i * result_steps.d + j * result_steps.h + k * result_steps.w
                store(result + u64(offset) * size, sum_type(shared[0]))
            cuda.syncthreads()

    signature = (types.uint64,) * 3 + (AXIS,) * 3 + (STEPS,) * 3 + (SIZES,)
    return Kernel(f"direct-weight-{name}-{block}", weight_grad, signature, THREADS)


@dataclass(frozen=True)
class DirectWeightSetup:
    """``run`` takes the output gradient in place of a packed weight; nothing is packed."""

    problem: Problem
    workspace: int = 0
    packed_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Estimated, of one image."""
        return 4e-6 + self.problem.per_image.flops / 2 / PRODUCTS_PER_SECOND

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> tuple[DeviceArray, ...]:
        raise NotImplementedError("a weight gradient has no weight to pack")

    def run(self, source: DeviceArray, packed: tuple[DeviceArray, ...], result: DeviceArray) -> None:
        (grad,) = packed
        call = self._calls(source, result, grad.strides, source.device)
        call(result.stream, source.pointer, grad.pointer, result.pointer)

    @functools.cached_property
    def _calls(self) -> Layouts[Call]:
        return Layouts(self._prepared)

    def _prepared(self, source: DeviceArray, result: DeviceArray, grad_strides: tuple[int, ...], device: int) -> Call:
        p = self.problem
        block = 4 if p.out_per_group > 1 else 1
        blocks = -(-p.out_per_group // block)
        sizes = Sizes(p.in_per_group, p.out_per_group, blocks, source.shape[0], math.prod(p.out_size), mode_of(p))
        grad_steps = Steps(*(stride // source.itemsize for stride in grad_strides))
        constants = numbers([*axes_of(p), Steps(*source.steps), grad_steps, Steps(*result.steps), sizes])
        grid = (p.groups * blocks * p.in_per_group * p.taps, 1, 1)
        return Call(driver().function(weight_kernel(p.dtype, block), device), grid, 3, constants)
