"""Depthwise weight gradients of floats on a device: the taps' sums in registers, while threads march as in ``depthwise_march``.

A block of threads owns a channel (32 of them, channels-last) and one plane of taps, and takes every so many columns of the output
gradients of all images.  Each of its threads sums all taps of the plane over its columns; the block adds up its threads, and
``weight_kernels.fold`` the blocks that shared a channel.

Order of a sum, which the problem, its batch and the layout of the channels decide: the cells of a thread's columns, column after
column; the threads of a block in eight runs, then the runs; the chunks as in ``weight_kernels``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

from numba import cuda
from numba.cuda import types
from numba.cuda.types import int32, int64, uint32, uint64

from ..choose import Accuracy
from ..device import DeviceArray
from ..layouts import Layouts
from ..padding import source_index
from ..problem import Problem, itemsize
from . import depthwise, ptx
from . import weight_kernels as gemm
from .arrays import empty
from .depthwise_march import THREADS, Form, divide, divisor, load_lanes, march_of
from .driver import Call, driver
from .elements import element
from .geometry import mode_of, named, numbers, too_long
from .launch import Kernel

CHANNELS = 32  # of a block, where neighbouring threads have neighbouring channels
MOST_TAPS = 81  # of a plane: those of all threads fit the shared memory
PARTS = 16  # sums of a channel's threads before the last
BLOCKS = 132 * 12  # of all channels, about
LEAST_COLUMNS = 2  # of a thread

# The cost model: rates of one H100.
BYTES_PER_SECOND = 2e12
INSTRUCTIONS_PER_SECOND = 2e13  # of a thread
LAUNCH_SECONDS = 8e-6

_AXES = ("d", "h", "w")
_COUNTS = (
    "channels", "multiplier", "mode", "kernel_d", "chunk", "per_image", "size_w", "size_h",
    *(f"{name}_{axis}" for name in ("source", "out", "pad") for axis in _AXES), "stride_d", "dilation_d",
    "from_h", "from_w", "grad_h", "grad_w",
)  # fmt: skip
_UNSIGNED = ("magic_w", "magic_h", "shift_w", "shift_h")
_LONG = ("columns", *(f"{name}_{axis}" for name in ("from", "grad") for axis in ("n", "c", "d")))
Geometry: Any = named("Geometry", _COUNTS + _UNSIGNED + _LONG)
"""Numbers of the kernel.

chunk, per_image, columns : threads' columns of a chunk, of a channel of one image, and of all images
size_*, magic_*, shift_* : columns along w, and along h, as divisors; from_*, grad_* : bytes between cells of the input and of the gradient
"""
GEOMETRY = types.NamedTuple((int32,) * len(_COUNTS) + (uint32,) * len(_UNSIGNED) + (int64,) * len(_LONG), Geometry)


@functools.cache
def kernel(form: Form) -> Kernel:
    """``(input, gradient, workspace, geometry)``: grid (blocks of channels * planes, chunks), workspace (chunks, channels, taps)."""
    return Kernel(form.name, _sum_taps(form), (uint64, uint64, uint64, GEOMETRY), THREADS, form.blocks)


def _sum_taps(form: Form) -> Any:
    (KH, KW), (SH, SW) = form.kernel, form.stride
    ROWS, COLUMNS, VALUES, SHIFT = form.rows, form.columns, form.values, form.shift
    BY_CHANNEL, MAPPED, GROUPED = form.by_channel, form.mapped, form.grouped
    WIDTH, SLOTS = (CHANNELS, THREADS // CHANNELS) if BY_CHANNEL else (1, THREADS)
    CELLS = form.reach(1)[1]
    one = element(form.dtype)
    SUMS, ZERO = one.sum_type, one.zero
    RESULTS, TAPS = ROWS * COLUMNS, KH * KW
    load, march, add_up = load_lanes(form.dtype, 1), march_of(form), _add_up(form)
    mapped, opaque = cuda.jit(device=True, forceinline=True)(source_index), ptx.opaque

    def sum_taps(source, grad, workspace, g):  # type: ignore[no-untyped-def]
        acc = cuda.local.array(RESULTS, SUMS)
        taps = cuda.local.array(TAPS, SUMS)
        values = cuda.local.array(VALUES, SUMS)
        cells = cuda.local.array(CELLS, int32)
        for i in range(TAPS):
            taps[i] = ZERO

        thread, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x)
        tap_d = int32(block % g.kernel_d)
        lane, slot = int32(thread % int32(WIDTH)), int32(thread // int32(WIDTH))
        channel = int32(int32(int32(block // g.kernel_d) * int32(WIDTH)) + lane)
        real = channel < g.channels
        read = int32(channel // g.multiplier) if GROUPED else channel
        source = opaque(uint64(source + uint64(int64(int64(read) * g.from_c))))
        grad = opaque(uint64(grad + uint64(int64(int64(channel) * g.grad_c))))
        start = int64(int64(cuda.blockIdx.y) * int64(g.chunk))
        count = int32(min(int64(g.chunk), int64(g.columns - start)))
        image = int64(int64(start + int64(slot)) // int64(g.per_image))
        place = int32(int64(start + int64(slot)) - int64(image * int64(g.per_image)))
        for _ in range(slot, count if real else int32(0), SLOTS):
            above, w = divide(uint32(place), uint32(g.size_w), g.magic_w, g.shift_w)
            above, h = divide(above, uint32(g.size_h), g.magic_h, g.shift_h)
            d = int32(above)
            first_h, first_w = int32(h * int32(ROWS)), int32(w * int32(COLUMNS))
            at = int64(int64(image * g.grad_n) + int64(int64(d) * g.grad_d))
            row = uint64(grad + uint64(int64(at + int64(int64(first_h) * int64(g.grad_h)) + int64(int64(first_w) * int64(g.grad_w)))))
            for i in range(ROWS):
                row = opaque(row)
                there = int32(first_h + int32(i)) < g.out_h
                for j in range(COLUMNS):
                    acc[i * COLUMNS + j] = load(uint64(row + uint64(int64(int64(j) * int64(g.grad_w)))), there)[0]
                row = uint64(row + uint64(int64(g.grad_h)))
            from_h, from_w = int32(int32(first_h * int32(SH)) - g.pad_h), int32(int32(first_w * int32(SW)) - g.pad_w)
            cell = int32(int32(int32(d * g.stride_d) + int32(tap_d * g.dilation_d)) - g.pad_d)
            if MAPPED:
                cell = int32(mapped(cell, g.source_d, g.mode))
            at = int64(int64(image * g.from_n) + int64(int64(cell) * g.from_d))
            if MAPPED:
                for c in range(CELLS):
                    cells[c] = int32(mapped(int32(from_w + int32(c)), g.source_w, g.mode))
            else:
                at = int64(at + int64(int64(from_h) * int64(g.from_h)) + int64(int64(int32(from_w - int32(SHIFT))) * int64(g.from_w)))
            exists = uint32(cell) < uint32(g.source_d)
            march(acc, taps, values, cells, uint64(source + uint64(at)), exists, from_h, from_w, int32(g.out_h - first_h), g)
            place = int32(place + int32(SLOTS))
            while place >= g.per_image:
                place = int32(place - g.per_image)
                image = int64(image + int64(1))
        add_up(workspace, taps, thread, channel, tap_d, g)

    return sum_taps


def _add_up(form: Form) -> Any:
    """The sums of a block's threads, to the workspace: by eight threads each, and then the rest, one thread a tap."""
    TAPS, BY_CHANNEL = form.kernel[0] * form.kernel[1], form.by_channel
    one = element(form.dtype)
    SUMS, ZERO, WIDE, SHARED = one.sum_type, one.zero, element(one.accumulator).bytes, TAPS * THREADS
    PARTIAL = CHANNELS if BY_CHANNEL else PARTS
    store = ptx.store(one.accumulator)

    @cuda.jit(device=True, forceinline=True)
    def add_up(workspace, taps, thread, channel, tap_d, g):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(SHARED, SUMS)
        for k in range(TAPS):
            shared[int32(int32(k * THREADS) + thread)] = taps[k]
        cuda.syncthreads()
        for item in range(thread, int32(TAPS * PARTIAL), THREADS):
            k, part = int32(int32(item) // int32(PARTIAL)), int32(int32(item) % int32(PARTIAL))
            total = ZERO
            for i in range(part, THREADS, PARTIAL):
                total += shared[int32(int32(k * int32(THREADS)) + int32(i))]
            shared[int32(int32(k * int32(THREADS)) + part)] = total
        cuda.syncthreads()
        first = int32(channel - int32(thread % int32(CHANNELS))) if BY_CHANNEL else channel
        for item in range(thread, int32(TAPS * (CHANNELS if BY_CHANNEL else 1)), THREADS):
            k, number = int32(item), first
            if BY_CHANNEL:
                k, number = int32(int32(item) // int32(CHANNELS)), int32(first + int32(int32(item) % int32(CHANNELS)))
                total = shared[int32(int32(k * int32(THREADS)) + int32(int32(item) % int32(CHANNELS)))]
            else:
                total = ZERO
                for i in range(PARTS):
                    total += shared[int32(int32(k * int32(THREADS)) + int32(i))]
            if number < g.channels:
                at = int64(int64(cuda.blockIdx.y) * int64(g.channels) + int64(number)) * int64(int32(g.kernel_d * int32(TAPS)))
                at = int64(at + int64(int32(int32(tap_d * int32(TAPS)) + k)))
                store(uint64(workspace + uint64(at) * uint64(WIDE)), total)

    return add_up


class DepthwiseWeight:
    """The algorithm for weight gradients of one input channel a group."""

    name = "depthwise_weight"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        p = problem
        if p.direction != "weight_grad":
            return "it computes gradients of the weight, not results or gradients of the input"
        if p.dtype not in depthwise.DTYPES:
            return f"it computes {', '.join(depthwise.DTYPES)}, not {p.dtype}"
        if p.in_per_group != 1:
            return "it is for one input channel a group"
        form = _form(p)
        if p.kernel[1] * p.kernel[2] > MOST_TAPS * 4 // itemsize(element(p.dtype).accumulator) or form.reach(1)[1] > depthwise.MOST_SPAN:
            return f"it takes up to {MOST_TAPS} taps a plane, and rows of up to {depthwise.MOST_SPAN} cells a thread"
        if _columns(p, form) >= 2**31 - THREADS:
            return "a channel has 2**31 or more columns of cells"
        return too_long(p)

    def cost(self, problem: Problem) -> float:
        p = problem.per_image
        form = _form(p)
        each = 40 + form.reach(0)[1] * form.loads * 4 + form.rows * form.columns * (p.kernel[1] * p.kernel[2] + 4)
        threads = p.out_channels * p.kernel[0] * _columns(p, form)
        return LAUNCH_SECONDS / 32 + max(p.bytes / BYTES_PER_SECOND, threads * each / INSTRUCTIONS_PER_SECOND)

    def setup(self, problem: Problem) -> DepthwiseWeightSetup:
        return DepthwiseWeightSetup(problem)


def _form(p: Problem, by_channel: bool = False, vector: int = 0) -> Form:
    """The kernel for a problem and a layout."""
    form = replace(depthwise.form_of(replace(p, direction="forward"), 1, by_channel, vector), outputs=1)
    if p.out_size[2] % form.columns:
        form = replace(form, columns=1, vector=min(vector, 1), shift=0)
    rows = form.rows if form.rows * form.columns <= 16 else -(-form.rows // 2)  # whose gradients stay in registers beside the taps
    return replace(form, rows=rows, sums_taps=True, ragged=p.out_size[1] % rows != 0)


def _columns(p: Problem, form: Form) -> int:
    """Of a channel of one image."""
    return p.out_size[0] * -(-p.out_size[1] // form.rows) * -(-p.out_size[2] // form.columns)


@dataclass(frozen=True)
class DepthwiseWeightSetup:
    """``run`` takes the output gradient in place of a packed weight; nothing is packed."""

    problem: Problem
    packed_bytes: int = 0

    @property
    def workspace(self) -> int:
        return self._most_chunks(1) * math.prod(self.problem.weight_shape) * itemsize(element(self.problem.dtype).accumulator)

    def _most_chunks(self, width: int) -> int:
        p = self.problem
        return -(-BLOCKS // (-(-p.out_channels // width) * p.kernel[0]))

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> tuple[DeviceArray, ...]:
        raise NotImplementedError("a weight gradient has no weight to pack")

    def run(self, source: DeviceArray, packed: tuple[DeviceArray, ...], result: DeviceArray) -> None:
        (grad,) = packed
        chunks, sums, fold = self._calls(source, result, grad.shape, grad.strides, source.pointer % 16 == 0, source.device)
        p = self.problem
        workspace = empty((chunks * math.prod(p.weight_shape),), element(p.dtype).accumulator, result)
        sums(result.stream, source.pointer, grad.pointer, workspace.pointer)
        fold(result.stream, workspace.pointer, result.pointer)

    @functools.cached_property
    def _calls(self) -> Layouts[tuple[int, Call, Call]]:
        return Layouts(self._prepared)

    def _prepared(
        self, source: DeviceArray, result: DeviceArray, grad_shape: tuple[int, ...], grad: tuple[int, ...], aligned: bool, device: int
    ) -> tuple[int, Call, Call]:
        p, batch = self.problem, source.shape[0]
        by_channel = source.strides[1] == grad[1] == source.itemsize and p.out_channels > 1 and math.prod(p.out_size) > 1
        form = _form(p, by_channel, 0 if by_channel else depthwise.vector_of(p, source, aligned))
        width, slots = (CHANNELS, THREADS // CHANNELS) if by_channel else (1, THREADS)
        each = _columns(p, form)
        blocks = -(-p.out_channels // width) * p.kernel[0]
        chunks = max(1, min(self._most_chunks(width), -(-batch * each // (slots * LEAST_COLUMNS))))
        chunk = -(-batch * each // (chunks * slots)) * slots
        chunks = max(1, -(-batch * each // chunk)) if chunk else 1
        across = -(-p.out_size[2] // form.columns), -(-p.out_size[1] // form.rows)
        (magic_w, shift_w), (magic_h, shift_h) = map(divisor, across)
        geometry = Geometry(
            p.out_channels, p.out_per_group, mode_of(p), p.kernel[0], chunk, each, *across,
            *p.in_size, *p.out_size, *(lo for lo, _ in p.padding), p.stride[0], p.dilation[0], *source.strides[3:], *grad[3:],
            magic_w, magic_h, shift_w, shift_h, batch * each, *source.strides[:3], *grad[:3],
        )  # fmt: skip
        sums = Call(driver().function(kernel(form), device), (blocks, chunks, 1), 3, numbers([geometry]))
        results = p.out_channels * p.taps
        fold = gemm.FoldGeometry(1, p.taps, 1, p.taps, True, chunks, p.kernel[1], p.kernel[2], results, *result.steps)
        return chunks, sums, Call(driver().function(gemm.fold(p.dtype), device), (-(-results // gemm.FOLDED), 1, 1), 2, numbers([fold]))
