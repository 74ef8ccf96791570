"""Convolutions with few channels a group on a device, and their input gradients: depthwise, and banks of filters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..choose import Accuracy
from ..device import DeviceArray
from ..problem import Problem, itemsize
from . import depthwise_kernels as k
from . import depthwise_march as march
from .arrays import empty
from .copies import copy, strided_copy
from .driver import MOST_ROWS, Call, driver
from .elements import element
from .geometry import mode_of, numbers, too_long
from .launches import NULL, PACKED, RESULT, SOURCE, Launch, Launched

DTYPES = ("float32", "float64", "float16", "bfloat16")
MOST_TAPS = 121  # of a plane of the kernel: more do not stay in registers
MOST_SPAN = 40  # cells of a row that a thread holds
MOST_STRIDE = 4
MOST_SOURCES = 32  # channels of a group: tiles in shared memory reuse more of more
MOST_RESULTS = 64  # of a thread
RESIDENT = 64  # registers for the taps of neighbouring channels
SHARED_TAPS = 48  # and for those of result channels that share source cells

# The cost model: rates as estimated for Hopper; not refitted to a measurement.
BYTES_PER_SECOND = 2.5e12
INSTRUCTIONS_PER_SECOND = 2e13  # of a thread
LAUNCH_SECONDS = 4e-6


class Filter:
    """The algorithm for few source channels a group."""

    name = "filter"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        p = problem
        if p.direction == "weight_grad":
            return "it computes results and gradients of the input, not of the weight"
        if p.dtype not in DTYPES:
            return f"it computes {', '.join(DTYPES)}, not {p.dtype}"
        if p.transposed and p.padding_mode != "zeros":
            return f"gradients of {p.padding_mode} padding fold back onto the cells that were copied"
        if reason := self._channels(p):
            return reason
        form = form_of(p)
        if p.kernel[1] * p.kernel[2] > MOST_TAPS or form.reach(1)[1] > MOST_SPAN or max(p.stride[1:]) > MOST_STRIDE:
            return f"it takes up to {MOST_TAPS} taps a plane, strides up to {MOST_STRIDE} and rows of up to {MOST_SPAN} cells a thread"
        if threads_of(p, form) >= 2**31:
            return "an image has 2**31 or more results"
        return too_long(p)

    def _channels(self, p: Problem) -> str | None:
        if not 1 <= p.source_channels // p.groups <= MOST_SOURCES:
            return f"it is for 1 to {MOST_SOURCES} source channels a group"
        return "there is one channel a group, which depthwise is for" if p.in_per_group == p.out_per_group == 1 else None

    def cost(self, problem: Problem) -> float:
        p = problem.per_image
        form = form_of(p, vector=math.gcd(p.source_size[2], 4))
        taps, results = p.kernel[1] * p.kernel[2], form.rows * form.columns * form.outputs
        products = results * taps / (math.prod(p.stride[1:]) if p.transposed else 1)
        plane = 20 + form.reach(0)[1] * form.loads * 5 + taps * 2 + products
        each = 100 + p.source_channels // p.groups * p.kernel[0] * plane + results * 2
        return LAUNCH_SECONDS + max(p.bytes / BYTES_PER_SECOND, threads_of(p, form) * each / INSTRUCTIONS_PER_SECOND)

    def setup(self, problem: Problem) -> FilterSetup:
        return FilterSetup(problem)


class Depthwise(Filter):
    """The algorithm for one channel a group."""

    name = "depthwise"

    def _channels(self, p: Problem) -> str | None:
        return None if p.in_per_group == p.out_per_group == 1 else "there are several channels a group"


def form_of(p: Problem, lanes: int = 1, by_channel: bool = False, vector: int = 0, stores: bool = False) -> march.Form:
    """The kernel for a problem and a layout, of which the sums of a result do not depend.

    vector, stores : how many source cells of a row, and whether so many results, are contiguous and aligned for one access
    """
    _, kh, kw = p.kernel
    stride, transposed = (p.stride[1], p.stride[2]), p.transposed
    per_group = p.result_channels // p.groups
    wide = itemsize(element(p.dtype).accumulator)
    outputs = next(n for n in (4, 2, 1) if n == 1 or (per_group % n == 0 and kh * kw * n <= SHARED_TAPS and n * wide <= 16))
    if lanes > 1:
        most, columns = 4, 2
    else:
        columns = max(2 if by_channel or outputs > 1 else 1, min(vector, 4)) if kh > 1 else 4
        most = min(8 if by_channel or kh * kw * columns <= 64 else 4, MOST_RESULTS // (columns * outputs))
    height = p.result_size[1] + _firsts(p)[0]
    rows = -(-height // -(-height // most))
    if transposed:  # whole steps of the stride
        rows, columns = (-(-n // step) * step for n, step in zip((rows, columns), stride))
    every = columns // stride[1] if transposed else columns * stride[1]  # source cells from a thread to the next
    unit = math.gcd(vector, every) if vector else 0
    form = march.Form(
        p.dtype, transposed, (kh, kw), stride, (p.dilation[1], p.dilation[2]), rows, columns, lanes, outputs, by_channel, unit,
        mapped=p.padding_mode != "zeros", grouped=p.in_channels != p.groups or p.out_channels != p.groups,
    )  # fmt: skip
    if unit < 2:
        return form
    first = (p.padding[2][0] - _firsts(p)[1]) // stride[1] + form.reach(1)[0] if transposed else -p.padding[2][0]
    return replace(form, shift=first % unit, stores=stores and columns == vector)


def _firsts(p: Problem) -> tuple[int, int]:
    """Results before the first with which columns of threads start, along h and w."""
    h, w = (lo % s if p.transposed else 0 for (lo, _), s in zip(p.padding[1:], p.stride[1:]))
    return h, w


def _groups(p: Problem, form: march.Form) -> tuple[int, int]:
    """Threads along h and w."""
    h, w = (-(-(n + first) // each) for n, first, each in zip(p.result_size[1:], _firsts(p), (form.rows, form.columns)))
    return h, w


def threads_of(p: Problem, form: march.Form) -> int:
    """Threads for one image."""
    return p.result_channels // (form.lanes * form.outputs) * p.result_size[0] * math.prod(_groups(p, form))


@dataclass(frozen=True)
class FilterSetup(Launched):
    """The weight is packed as (source channels of a group, taps, result channels) in the accumulator's dtype."""

    problem: Problem
    workspace: int = 0

    @property
    def packed_bytes(self) -> int:
        p = self.problem
        taps = p.out_channels * p.in_per_group * p.taps
        return taps * itemsize(element(p.dtype).accumulator) + p.result_channels * p.bias * itemsize(p.dtype)

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> tuple[DeviceArray, ...]:
        p = self.problem
        sources, results = p.source_channels // p.groups, p.result_channels // p.groups
        packed = empty((sources, *p.kernel, p.groups, results), element(p.dtype).accumulator, weight)
        out, within, *taps = weight.steps
        inner, outer = (out, within) if p.transposed else (within, out)
        strided_copy(weight, packed, packed.shape, (inner, *taps, out * p.out_per_group, outer), packed.steps)
        if bias is None:
            return (packed,)
        added = empty(bias.shape, p.dtype, weight)
        copy(bias, added)
        return packed, added

    def launches(self, source: DeviceArray, result: DeviceArray) -> list[Launch]:
        p = self.problem
        form = self.form(source, result, source.pointer % 16 == 0 and result.pointer % 16 == 0)
        form = replace(form, far=march.far((source.shape, source.strides), (result.shape, result.strides)))
        function = driver().function(k.kernel(form), source.device)
        grid = (-(-threads_of(p, form) // march.THREADS), min(source.shape[0], MOST_ROWS), 1)
        call = Call(function, grid, 4, numbers([geometry(p, form, source.shape[0], source.strides, result.strides)]))
        return [Launch(call, ((SOURCE, 0), (PACKED, 0), (PACKED + 1, 0) if p.bias else (NULL, 0), (RESULT, 0)))]

    def form(self, source: DeviceArray, result: DeviceArray, aligned: bool) -> march.Form:
        p, size = self.problem, source.itemsize
        by_channel = source.strides[1] == result.strides[1] == size and p.result_channels > 1 and p.result_size != (1, 1, 1)
        if by_channel and aligned and p.in_per_group == p.out_per_group == 1 and p.dtype != "float64":
            steps = [*_steps(source, 1), *_steps(result, 1), p.result_channels * size]
            taps = p.kernel[1] * p.kernel[2]
            lanes = next(n for n in (4, 2, 1) if n == 1 or (taps * n <= RESIDENT and all(step % (n * size) == 0 for step in steps)))
            return form_of(p, lanes, by_channel)
        if by_channel:
            return form_of(p, 1, by_channel)
        vector = vector_of(p, source, aligned)
        steps = [*_steps(result, 4), p.result_size[2] * size]
        stores = vector > 1 and result.strides[4] == size and _firsts(p)[1] == 0
        return form_of(p, 1, False, vector, stores and all(step % (vector * size) == 0 for step in steps))


def vector_of(p: Problem, source: DeviceArray, aligned: bool) -> int:
    """How many cells of a row one load may take: at most 16 bytes, of rows that are all aligned; 0 where cells are not contiguous."""
    size = source.itemsize
    if source.strides[4] != size or p.padding_mode != "zeros":
        return 0
    steps = [*_steps(source, 4), source.shape[4] * size]
    return next(n for n in (4, 2, 1) if n == 1 or (aligned and n * size <= 16 and all(step % (n * size) == 0 for step in steps)))


def _steps(array: DeviceArray, axis: int) -> list[int]:
    """Strides in bytes of the other axes."""
    return [step for i, (n, step) in enumerate(zip(array.shape, array.strides)) if n > 1 and i != axis]


def geometry(p: Problem, form: march.Form, batch: int, source: tuple[int, ...], result: tuple[int, ...]) -> k.Geometry:
    """The numbers of the kernel; ``source`` and ``result`` are strides in bytes."""
    rows, columns = _groups(p, form)
    first = _firsts(p)
    vectors = p.result_channels // (form.lanes * form.outputs)
    digits = (vectors, columns, rows) if form.by_channel else (columns, rows, vectors)
    magic, shift = zip(*map(march.divisor, digits))
    return k.Geometry(
        batch, mode_of(p), p.bias, p.source_channels // p.groups, p.result_channels // p.groups, p.kernel[0], p.stride[0], p.dilation[0],
        *p.source_size, *p.result_size, *(lo for lo, _ in p.padding), *first, *source[3:], *result[3:],
        threads_of(p, form), *digits, *magic, *shift, p.result_channels, *source[:3], *result[:3],
    )  # fmt: skip
