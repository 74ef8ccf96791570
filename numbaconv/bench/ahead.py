"""Kernels compiled ahead of a benchmark on a device, in parallel.

The calls are made in processes whose driver only notes kernels; each kernel then compiles, one to three seconds on one processor, and
goes to the disk cache.
"""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import AnyArray, dtype_named
from ..problem import Problem
from . import gradients
from .contenders import Task, numbaconv_function, numbaconv_out

if TYPE_CHECKING:
    from ..cuda.driver import Arguments, Function, Grid
    from ..cuda.launch import Kernel


def processes(count: int | None = None) -> ProcessPoolExecutor:
    """Processes without a device, by default four fewer than there are processors, which the benchmark itself keeps busy."""
    return ProcessPoolExecutor(count or max(1, (os.cpu_count() or 1) - 4), multiprocessing.get_context("spawn"))


def compile_ahead(problems: Sequence[str], architecture: str, pool: Executor, say: Callable[[str], None]) -> int:
    """Compile every kernel that these problems, as text forms, need on contiguous and channels-last arrays; how many there are."""
    notes = [pool.submit(kernel_names, text, architecture) for text in problems]
    user: dict[str, str] = {}
    for text, note in zip(problems, notes):
        try:
            user.update((name, text) for name in note.result())
        except Exception as error:  # the benchmark itself will show it
            say(f"{text}: not compiled ahead: {type(error).__name__}: {error}")
    for name, compiled in [(name, pool.submit(_compile, name, text, architecture)) for name, text in user.items()]:
        failed = compiled.exception()
        if failed is not None:
            say(f"{name}: not compiled ahead: {type(failed).__name__}: {failed}")
    return len(user)


def kernel_names(text: str, architecture: str) -> list[str]:
    """Names of the kernels that a problem needs; to be called where no device is used, ever: what it prepares is remembered."""
    recorder, p = _recorder(architecture), Problem.parse(text)
    recorder.names = set()
    for layout in (Nowhere, _channels_last):
        shapes = p.source_shape, p.weight_shape
        if p.direction != "forward":
            shapes = (p.batch, p.in_channels, *p.in_size[3 - p.rank :]), p.weight_shape
        x, w = (layout(shape, p.dtype) for shape in shapes)
        g = None if p.direction == "forward" else layout((p.batch, p.out_channels, *p.out_size[3 - p.rank :]), p.dtype)
        task = Task(p, x, w, Nowhere((p.out_channels,), p.dtype) if p.bias else None, 1, g, _Unreal(layout))
        for prepare in (numbaconv_out, numbaconv_function) if p.direction == "forward" else (gradients.numbaconv_out,):
            prepare(task).call()
    return sorted(recorder.names)


def _compile(name: str, text: str, architecture: str) -> None:
    from ..cuda.launch import compile_cubin

    logging.getLogger("numbaconv").setLevel(logging.ERROR)  # the notice that compiling is under way
    recorder = _recorder(architecture)
    if name not in recorder.kernels:
        kernel_names(text, architecture)
    compile_cubin(recorder.kernels[name], architecture)


# ---- a device that does not exist --------------------------------------------------------------------------------------------
class Nowhere:
    """An array with an address and no memory, C-contiguous or with the strides given."""

    _next = 1 << 40

    def __init__(self, shape: tuple[int, ...], dtype: str, strides: tuple[int, ...] | None = None) -> None:
        self.shape, self.dtype, self._strides = shape, dtype_named(dtype), strides
        self._pointer = Nowhere._next
        Nowhere._next += -(-math.prod(shape) * self.dtype.itemsize // 256) * 256 + 256

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3, "shape": self.shape, "strides": self._strides, "typestr": self.dtype.str, "data": (self._pointer, False)
        }  # fmt: skip


def _channels_last(shape: tuple[int, ...], dtype: str) -> Nowhere:
    size = dtype_named(dtype).itemsize
    steps = np.cumprod([size, shape[1], *shape[:1:-1]]).tolist()  # of the channels, the last axis, ..., and the images
    return Nowhere(shape, dtype, (steps[-1], steps[0], *steps[-2:0:-1]))


class _Unreal:
    """The place of such arrays."""

    def __init__(self, layout: Callable[[tuple[int, ...], str], Nowhere]) -> None:
        self._layout = layout

    def put(self, array: AnyArray) -> Any:
        return self._layout(array.shape, array.dtype.name)

    def get(self, array: Any) -> AnyArray:
        raise TypeError("there is nothing to get")

    def full(self, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        return self._layout(shape, dtype)


class _Recorder:
    """The driver of a device that does not exist: it notes kernels."""

    def __init__(self, architecture: str) -> None:
        self._architecture = architecture
        self.kernels: dict[str, Kernel] = {}
        self.names: set[str] = set()

    def architecture(self, device: int) -> str:
        return self._architecture

    def function(self, kernel: Kernel, device: int) -> Function:
        self.kernels[kernel.name] = kernel
        self.names.add(kernel.name)
        return _nothing

    def current_device(self) -> int:
        return 0

    def device_of(self, pointer: int) -> int:
        return 0

    def devices(self) -> int:
        return 1

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        return Nowhere(shape, dtype)

    def follow(self, stream: int, leader: int, device: int) -> None: ...

    def synchronize(self, stream: int, device: int) -> None: ...

    def upload(self, pointer: int, source: int, nbytes: int, device: int, stream: int) -> None: ...

    def download(self, result: int, pointer: int, nbytes: int, device: int, stream: int) -> None: ...


def _nothing(grid: Grid, stream: int, arguments: Arguments) -> None: ...


@functools.cache
def _recorder(architecture: str) -> _Recorder:
    """The driver of this process from now on."""
    from ..cuda import driver

    recorder = driver._driver = _Recorder(architecture)
    return recorder
