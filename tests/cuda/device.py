"""The device that the tests run on: a GPU with ``pytest tests/cuda --gpu``, and otherwise an emulated one behind the driver's boundary."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np

from numbaconv.arrays import dtype_named
from numbaconv.cuda import driver
from numbaconv.cuda.arrays import contiguous
from numbaconv.cuda.driver import Arguments, Function, Grid
from numbaconv.cuda.launch import Kernel

from .compiled import ARCHITECTURE, ptx_of
from .emulator import Memory, Program
from .emulator import launch as emulate


class Placed:
    """An array on the device that offers the CUDA array interface and nothing else."""

    def __init__(self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], owner: Any = None) -> None:
        self.pointer, self.shape, self.strides, self.dtype, self.owner = pointer, shape, strides, dtype, owner
        self.stream: int | None = None
        self.readonly, self.mask = False, None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3, "shape": self.shape, "strides": self.strides, "typestr": self.dtype.str, "data": (self.pointer, self.readonly),
            "stream": self.stream, "mask": self.mask,
        }  # fmt: skip


class Device(Protocol):
    emulated: bool

    def allocate(self, nbytes: int) -> tuple[int, Any]:
        """Address and owner of so many bytes."""
        ...

    def fill(self, pointer: int, data: np.ndarray) -> None: ...

    def contents(self, pointer: int, nbytes: int) -> np.ndarray: ...


def put(device: Device, host: np.ndarray) -> Placed:
    """The array on the device, with its strides; what lies between its elements is 0xFF, NaN in every dtype."""
    if not host.size:
        return Placed(0, host.shape, host.strides, host.dtype)
    low = sum(min(0, step * (n - 1)) for step, n in zip(host.strides, host.shape))
    high = sum(max(0, step * (n - 1)) for step, n in zip(host.strides, host.shape)) + host.itemsize
    span = np.full(high - low, 0xFF, np.uint8)
    np.ndarray(host.shape, host.dtype, span, -low, host.strides)[...] = host
    pointer, owner = device.allocate(span.nbytes)
    device.fill(pointer, span)
    return Placed(pointer - low, host.shape, host.strides, host.dtype, owner)


def get(device: Device, array: Any) -> np.ndarray:
    """A copy, on the host, of an array with the CUDA array interface."""
    found = array.__cuda_array_interface__
    shape, dtype = found["shape"], array.dtype
    if not all(shape):
        return np.empty(shape, dtype)
    strides = found["strides"] or contiguous(shape, np.dtype(dtype).itemsize)
    low = sum(min(0, step * (n - 1)) for step, n in zip(strides, shape))
    high = sum(max(0, step * (n - 1)) for step, n in zip(strides, shape)) + np.dtype(dtype).itemsize
    span = device.contents(found["data"][0] + low, high - low)
    return np.ndarray(shape, dtype, span, -low, strides).copy()


class Emulated:
    """A device whose memory is the emulator's and whose kernels run as PTX."""

    emulated = True

    def __init__(self, architecture: str = ARCHITECTURE) -> None:
        self.memory = Memory(1 << 30)
        self.order = "together"
        self.launched: list[tuple[str, Grid, int]] = []
        self.followed: list[tuple[int, int]] = []
        self.elsewhere: dict[int, int] = {}  # addresses that lie on another device than 0
        self._architecture = architecture
        self._programs: dict[Kernel, Program] = {}

    # ---- the driver ----------------------------------------------------------------------------------------------------
    def architecture(self, device: int) -> str:
        return self._architecture

    def current_device(self) -> int:
        return 0

    def device_of(self, pointer: int) -> int:
        return self.elsewhere.get(pointer, 0)

    def synchronize(self, stream: int, device: int) -> None:
        pass

    def devices(self) -> int:
        return 2

    def upload(self, pointer: int, source: int, nbytes: int, device: int, stream: int) -> None:
        self.memory.write(pointer, np.frombuffer((ctypes.c_uint8 * nbytes).from_address(source), np.uint8))

    def download(self, result: int, pointer: int, nbytes: int, device: int, stream: int) -> None:
        ctypes.memmove(result, self.memory.view(pointer, nbytes).ctypes.data, nbytes)

    def follow(self, stream: int, leader: int, device: int) -> None:
        self.followed.append((stream, leader))

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Placed:
        kind = dtype_named(dtype)
        strides = contiguous(shape, kind.itemsize)
        nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        return Placed(self.memory.allocate(nbytes) if nbytes else 0, shape, strides, kind)

    def function(self, kernel: Kernel, device: int) -> Function:
        program = self._programs.get(kernel)
        if program is None:
            program = self._programs[kernel] = Program(ptx_of(kernel))
        bits = [8 * nbytes for _, _, nbytes in program.parameters]

        def run(grid: Grid, stream: int, arguments: Arguments) -> None:
            self.launched.append((kernel.name, grid, stream))
            values = [value & (1 << n) - 1 for value, n in zip(arguments.values, bits)]
            signed = [value - (1 << n) if value >> (n - 1) else value for value, n in zip(values, bits)]
            emulate(program, signed, grid, kernel.threads, kernel.shared_bytes, memory=self.memory, order=self.order)

        return run

    # ---- what tests do with its memory ---------------------------------------------------------------------------------------
    def allocate(self, nbytes: int) -> tuple[int, Any]:
        return self.memory.allocate(nbytes), None

    def fill(self, pointer: int, data: np.ndarray) -> None:
        self.memory.write(pointer, data)

    def contents(self, pointer: int, nbytes: int) -> np.ndarray:
        return self.memory.view(pointer, nbytes).copy()


class Real:
    """The first GPU of this machine."""

    emulated = False

    def __init__(self) -> None:
        from cuda.bindings import driver as api

        self._api = api
        driver.driver()

    def _check(self, returned: tuple[Any, ...]) -> Any:
        assert int(returned[0]) == 0, returned
        return returned[1] if len(returned) > 1 else None

    def allocate(self, nbytes: int) -> tuple[int, Any]:
        from numba import cuda

        owner = cuda.device_array(nbytes, np.uint8)
        return int(owner.__cuda_array_interface__["data"][0]), owner

    def fill(self, pointer: int, data: np.ndarray) -> None:
        self._check(self._api.cuMemcpyHtoD(pointer, data.ctypes.data, data.nbytes))

    def contents(self, pointer: int, nbytes: int) -> np.ndarray:
        self._check(self._api.cuCtxSynchronize())
        data = np.empty(nbytes, np.uint8)
        self._check(self._api.cuMemcpyDtoH(data.ctypes.data, pointer, nbytes))
        return data
