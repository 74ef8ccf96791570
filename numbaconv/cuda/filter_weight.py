"""Weight gradients of few channels a group on a device: the taps' sums in registers, while threads march as in ``depthwise_march``.

A block of threads owns a plane of taps of up to four output channels and up to four input channels of a group (one for each quarter of
its threads), or of 32 groups of one channel in channels-last arrays.  It takes every so many columns of the output gradients of all images:
each of its threads sums all its taps over its columns; the block adds up its threads, and ``weight_kernels.fold`` the blocks that
shared the work.

Order of a sum, which the problem, its batch and the layout of the channels decide: the cells of a thread's columns, column after
column; the threads of a block in sixteen runs, then the runs; the chunks as in ``weight_kernels``.
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
from .depthwise_march import THREADS, Form, divide, divisor, far, load_lanes, march_of
from .driver import Call, driver
from .elements import element
from .geometry import mode_of, named, numbers, too_long
from .launch import Kernel
from .weight_grad import WeightGemmSetup

CHANNELS = 32  # groups of a block, where neighbouring threads have neighbouring channels
MOST_SOURCES = 32  # channels of a group: tiles in shared memory reuse more of more
MOST_TAPS = 81  # sums of a thread: those of all threads fit the shared memory
PARTS = 16  # sums of a result's threads before the last
BLOCKS = 132 * 12  # of all channels, about
LEAST_COLUMNS = 2  # of a thread

# The cost model: rates as estimated for Hopper, of memory and of the second-level cache; not refitted to a measurement.
BYTES_PER_SECOND = 2e12
CACHE_BYTES_PER_SECOND = 4e12
INSTRUCTIONS_PER_SECOND = 2e13  # of a thread
LAUNCH_SECONDS = 8e-6

_AXES = ("d", "h", "w")
_COUNTS = (
    "groups", "sources", "results", "mode", "kernel_d", "chunk", "per_image", "size_w", "size_h",
    *(f"{name}_{axis}" for name in ("source", "out", "pad") for axis in _AXES), "stride_d", "dilation_d",
)  # fmt: skip
_PITCHES = ("from_h", "from_w", "grad_h", "grad_w")
_UNSIGNED = ("magic_w", "magic_h", "shift_w", "shift_h")
_LONG = ("columns", *(f"{name}_{axis}" for name in ("from", "grad") for axis in ("n", "c", "d")))
Geometry: Any = named("Geometry", _COUNTS + _PITCHES + _UNSIGNED + _LONG)
"""Numbers of the kernel.

sources, results : channels of a group
chunk, per_image, columns : threads' columns of a chunk, of a channel of one image, and of all images
size_*, magic_*, shift_* : columns along w, and along h, as divisors; from_*, grad_* : bytes between cells of the input and of the gradient
"""


def _geometry_type(far: bool) -> Any:
    kinds = (int32,) * len(_COUNTS) + (int64 if far else int32,) * len(_PITCHES) + (uint32,) * len(_UNSIGNED) + (int64,) * len(_LONG)
    return types.NamedTuple(kinds, Geometry)


@functools.cache
def kernel(form: Form, sources: int) -> Kernel:
    """``(input, gradient, workspace, geometry)``: grid (blocks of channels * planes, chunks), workspace (chunks, weight).

    sources : input channels of a block, a power of two
    """
    signature = (uint64, uint64, uint64, _geometry_type(form.far))
    return Kernel(f"{form.name}_{sources}", _sum_taps(form, sources), signature, THREADS, form.blocks)


def _sum_taps(form: Form, sources: int) -> Any:
    SH, SW = form.stride
    ROWS, COLUMNS, OUTPUTS, VALUES, SHIFT = form.rows, form.columns, form.outputs, form.values, form.shift
    BY_CHANNEL, MAPPED = form.by_channel, form.mapped
    SOURCES, SLOTS = sources, THREADS // (CHANNELS if form.by_channel else sources)
    CELLS = form.reach(1)[1]
    one = element(form.dtype)
    SUMS, ZERO = one.sum_type, one.zero
    RESULTS, TAPS = OUTPUTS * ROWS * COLUMNS, OUTPUTS * form.kernel[0] * form.kernel[1]
    march, add_up, load_grads = march_of(form), _add_up(form, sources), _load_grads(form)
    mapped, opaque = cuda.jit(device=True, forceinline=True)(source_index), ptx.opaque

    def sum_taps(source, grad, workspace, g):  # type: ignore[no-untyped-def]
        acc = cuda.local.array(RESULTS, SUMS)
        taps = cuda.local.array(TAPS, SUMS)
        values = cuda.local.array(VALUES, SUMS)
        cells = cuda.local.array(CELLS, int32)
        for i in range(TAPS):
            taps[i] = ZERO

        thread, block = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x)
        tap_d, block = int32(block % g.kernel_d), int32(block // g.kernel_d)
        if BY_CHANNEL:
            slot, read = int32(thread // int32(CHANNELS)), int32(0)
            output = int32(int32(block * int32(CHANNELS)) + int32(thread % int32(CHANNELS)))  # and group
            group, real = output, output < g.groups
        else:
            parts = int32(int32(g.sources + int32(SOURCES - 1)) // int32(SOURCES))
            slot, read = int32(thread % int32(SLOTS)), int32(int32(block % parts) * int32(SOURCES))
            output = int32(int32(block // parts) * int32(OUTPUTS))
            read, group = int32(read + int32(thread // int32(SLOTS))), int32(output // g.results)
            real = read < g.sources
        source = opaque(uint64(source + uint64(int64(int64(int32(int32(group * g.sources) + read)) * g.from_c))))
        grad = opaque(uint64(grad + uint64(int64(int64(output) * g.grad_c))))
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
            load_grads(uint64(grad + uint64(at)), acc, first_h, first_w, g)
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
        add_up(workspace, taps, thread, output, read, tap_d, g)

    return sum_taps


def _load_grads(form: Form, output: int = 0) -> Any:
    """Read a thread's output gradients from channel ``output`` on, zeros where there are none; ``plane`` is the address of cell (0, 0)."""
    ROWS, COLUMNS, FIRST, WIDTH = form.rows, form.columns, output * form.rows * form.columns, form.columns if form.stores else 1
    load, opaque = load_lanes(form.dtype, WIDTH), ptx.opaque
    rest = _load_grads(form, output + 1) if output + 1 < form.outputs else _loaded

    @cuda.jit(device=True, forceinline=True)
    def load_grads(plane, acc, first_h, first_w, g):  # type: ignore[no-untyped-def]
        row = uint64(plane + uint64(int64(int64(first_h) * int64(g.grad_h)) + int64(int64(first_w) * int64(g.grad_w))))
        for i in range(ROWS):
            row = opaque(row)
            there = int32(first_h + int32(i)) < g.out_h
            for j in range(0, COLUMNS, WIDTH):
                loaded = load(uint64(row + uint64(int64(int64(j) * int64(g.grad_w)))), there)
                for v in range(WIDTH):
                    acc[FIRST + i * COLUMNS + j + v] = loaded[v]
            row = uint64(row + uint64(int64(g.grad_h)))
        rest(uint64(plane + uint64(g.grad_c)), acc, first_h, first_w, g)

    return load_grads


@cuda.jit(device=True, forceinline=True)
def _loaded(plane, acc, first_h, first_w, g):  # type: ignore[no-untyped-def]
    pass


def _add_up(form: Form, sources: int) -> Any:
    """The sums of a block's threads, to the workspace: in PARTS runs of a result's threads, and then the runs."""
    PLANE, OUTPUTS, BY_CHANNEL = form.kernel[0] * form.kernel[1], form.outputs, form.by_channel
    TAPS, OWNERS = form.outputs * PLANE, CHANNELS if form.by_channel else sources
    RUNS = 1 if BY_CHANNEL else PARTS  # in channels-last arrays four threads share a result
    SLOTS = THREADS // OWNERS
    one = element(form.dtype)
    SUMS, ZERO, WIDE, SHARED = one.sum_type, one.zero, element(one.accumulator).bytes, TAPS * THREADS
    store = ptx.store(one.accumulator)

    @cuda.jit(device=True, forceinline=True)
    def add_up(workspace, taps, thread, output, read, tap_d, g):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(SHARED, SUMS)
        slot = int32(thread // int32(OWNERS)) if BY_CHANNEL else int32(thread % int32(SLOTS))
        owner = int32(thread % int32(OWNERS)) if BY_CHANNEL else int32(thread // int32(SLOTS))
        for k in range(TAPS):
            shared[int32(int32(int32(int32(k * OWNERS) + owner) * int32(SLOTS)) + slot)] = taps[k]
        cuda.syncthreads()
        for item in range(thread, int32(TAPS * OWNERS * RUNS), THREADS):
            first = int32(int32(int32(item) // int32(RUNS)) * int32(SLOTS) + int32(int32(item) % int32(RUNS)))
            total = ZERO
            for i in range(0, SLOTS, RUNS):
                total += shared[int32(first + int32(i))]
            shared[first] = total
        cuda.syncthreads()
        output, read = int32(output - owner) if BY_CHANNEL else output, read if BY_CHANNEL else int32(read - owner)
        for item in range(thread, int32(TAPS * OWNERS), THREADS):
            k, own = int32(int32(item) // int32(OWNERS)), int32(int32(item) % int32(OWNERS))
            total = ZERO
            for i in range(RUNS):
                total += shared[int32(int32(item) * int32(SLOTS) + int32(i))]
            channel = int32(output + (own if BY_CHANNEL else int32(k % int32(OUTPUTS))))
            from_c = read if BY_CHANNEL else int32(read + own)
            if channel < int32(g.groups * g.results) and from_c < g.sources:
                at = int64(int64(cuda.blockIdx.y) * int64(int32(g.groups * g.results)) + int64(channel)) * int64(g.sources)
                at = int64(int64(at + int64(from_c)) * int64(g.kernel_d) + int64(tap_d)) * int64(PLANE)
                at = int64(at + int64(int32(k // int32(OUTPUTS))))
                store(uint64(workspace + uint64(at) * uint64(WIDE)), total)

    return add_up


class FilterWeight:
    """The algorithm for weight gradients of few input channels a group."""

    name = "filter_weight"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        p = problem
        if p.direction != "weight_grad":
            return "it computes gradients of the weight, not results or gradients of the input"
        if p.dtype not in depthwise.DTYPES:
            return f"it computes {', '.join(depthwise.DTYPES)}, not {p.dtype}"
        if not 1 <= p.in_per_group <= MOST_SOURCES:
            return f"it is for 1 to {MOST_SOURCES} input channels a group"
        form = form_of(p)
        if p.kernel[1] * p.kernel[2] > MOST_TAPS * 4 // itemsize(element(p.dtype).accumulator) or form.reach(1)[1] > depthwise.MOST_SPAN:
            return f"it takes up to {MOST_TAPS} taps a plane, and rows of up to {depthwise.MOST_SPAN} cells a thread"
        if _columns(p, form) >= 2**31 - THREADS:
            return "a channel has 2**31 or more columns of cells"
        return too_long(p)

    def cost(self, problem: Problem) -> float:
        p = problem.per_image
        form = form_of(p, vector=math.gcd(p.in_size[2], 4))
        results = form.rows * form.columns * form.outputs
        each = 60 + form.reach(0)[1] * form.loads * 5 + results * (p.kernel[1] * p.kernel[2] + 2)
        passes = p.out_channels // form.outputs * p.kernel[0] * p.in_per_group
        read = passes * (form.outputs / sources_of(p) * math.prod(p.out_size) + 1.5 * math.prod(p.in_size)) * itemsize(p.dtype)
        seconds = passes * _columns(p, form) * each / INSTRUCTIONS_PER_SECOND
        return LAUNCH_SECONDS / 32 + max(p.bytes / BYTES_PER_SECOND, read / CACHE_BYTES_PER_SECOND, seconds)

    def setup(self, problem: Problem) -> FilterWeightSetup:
        return FilterWeightSetup(problem)


def form_of(p: Problem, by_channel: bool = False, vector: int = 0, loads: bool = False) -> Form:
    """The kernel for a problem and a layout; ``loads`` : whether ``vector`` gradients are aligned for one load."""
    form = depthwise.form_of(replace(p, direction="forward"), 1, by_channel, vector, loads)
    if p.out_size[2] % form.columns:
        form = replace(form, columns=1, vector=min(vector, 1), shift=0, stores=False)
    return replace(form, sums_taps=True, ragged=p.out_size[1] % form.rows != 0)


def sources_of(p: Problem) -> int:
    """Input channels of a block: they share what they read of the output gradients in the first-level cache."""
    return next(n for n in (4, 2, 1) if n <= p.in_per_group)


def _columns(p: Problem, form: Form) -> int:
    """Of a channel of one image."""
    return p.out_size[0] * -(-p.out_size[1] // form.rows) * -(-p.out_size[2] // form.columns)


@dataclass(frozen=True)
class FilterWeightSetup:
    """``run`` takes the output gradient in place of a packed weight; nothing is packed."""

    problem: Problem
    packed_bytes: int = 0

    @functools.cached_property
    def _gemm(self) -> WeightGemmSetup:
        """For channels-last arrays of several channels a group, whose rows are not read in vectors."""
        return WeightGemmSetup(self.problem)

    @property
    def workspace(self) -> int:
        p = self.problem
        blocks = self._blocks(CHANNELS if p.in_per_group == p.out_per_group == 1 else 1)
        own = self._most_chunks(blocks) * math.prod(p.weight_shape) * itemsize(element(p.dtype).accumulator)
        return own if p.in_per_group == 1 else max(own, self._gemm.workspace)

    def _blocks(self, width: int) -> int:
        """Blocks that differ in their results; ``width`` is how many groups of one channel each of them has."""
        p = self.problem
        outputs = 1 if width > 1 else form_of(p).outputs
        return -(-p.out_channels // (outputs * width)) * -(-p.in_per_group // sources_of(p)) * p.kernel[0]

    def _most_chunks(self, blocks: int) -> int:
        return -(-BLOCKS // blocks)

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> tuple[DeviceArray, ...]:
        raise NotImplementedError("a weight gradient has no weight to pack")

    def run(self, source: DeviceArray, packed: tuple[DeviceArray, ...], result: DeviceArray) -> None:
        (grad,) = packed
        p = self.problem
        if p.in_per_group > 1 and source.strides[1] == source.itemsize and math.prod(p.in_size) > 1:
            self._gemm.run(source, packed, result)
            return
        aligned = source.pointer % 16 == 0 and grad.pointer % 16 == 0
        chunks, sums, fold = self._calls(source, result, grad.shape, grad.strides, aligned, source.device)
        workspace = empty((chunks * math.prod(p.weight_shape),), element(p.dtype).accumulator, result)
        sums(result.stream, source.pointer, grad.pointer, workspace.pointer)
        fold(result.stream, workspace.pointer, result.pointer)

    @functools.cached_property
    def _calls(self) -> Layouts[tuple[int, Call, Call]]:
        return Layouts(self._prepared)

    def form(self, source: DeviceArray, grad_shape: tuple[int, ...], grad: tuple[int, ...], aligned: bool) -> Form:
        p, size = self.problem, source.itemsize
        if p.in_per_group == p.out_per_group == 1 and source.strides[1] == grad[1] == size and p.groups > 1 and math.prod(p.out_size) > 1:
            return form_of(p, by_channel=True)
        vector = depthwise.vector_of(p, source, aligned)
        steps = [step for n, step in zip(grad_shape[:4], grad[:4]) if n > 1]
        return form_of(p, False, vector, vector > 1 and grad[4] == size and all(step % (vector * size) == 0 for step in steps))

    def _prepared(
        self, source: DeviceArray, result: DeviceArray, grad_shape: tuple[int, ...], grad: tuple[int, ...], aligned: bool, device: int
    ) -> tuple[int, Call, Call]:
        p, batch = self.problem, source.shape[0]
        form, sources = self.form(source, grad_shape, grad, aligned), sources_of(p)
        form = replace(form, far=far((source.shape, source.strides), (grad_shape, grad)))
        width = CHANNELS if form.by_channel else 1
        slots, each = THREADS // (width * sources), _columns(p, form)
        blocks = self._blocks(width)
        chunks = max(1, min(self._most_chunks(blocks), -(-batch * each // (slots * LEAST_COLUMNS))))
        chunk = max(1, -(-batch * each // (chunks * slots))) * slots
        chunks = max(1, -(-batch * each // chunk))
        across = -(-p.out_size[2] // form.columns), -(-p.out_size[1] // form.rows)
        (magic_w, shift_w), (magic_h, shift_h) = map(divisor, across)
        geometry = Geometry(
            p.groups, p.in_per_group, p.out_per_group, mode_of(p), p.kernel[0], chunk, each, *across,
            *p.in_size, *p.out_size, *(lo for lo, _ in p.padding), p.stride[0], p.dilation[0], *source.strides[3:], *grad[3:],
            magic_w, magic_h, shift_w, shift_h, batch * each, *source.strides[:3], *grad[:3],
        )  # fmt: skip
        sums = Call(driver().function(kernel(form, sources), device), (blocks, chunks, 1), 3, numbers([geometry]))
        results, columns = math.prod(p.weight_shape), p.in_per_group * p.taps
        fold = gemm.FoldGeometry(
            p.out_per_group, columns, p.in_per_group, p.taps, True, chunks, p.kernel[1], p.kernel[2], results, *result.steps
        )
        return chunks, sums, Call(driver().function(gemm.fold(p.dtype), device), (-(-results // gemm.FOLDED), 1, 1), 2, numbers([fold]))
