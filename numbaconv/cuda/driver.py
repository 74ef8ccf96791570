"""The CUDA driver, as little of it as the package needs: kernels, launches, and the order between streams.

:data:`driver` is the one boundary between the Python side and a GPU; tests put an emulator in its place.
Source: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from .launch import Kernel, compile_cubin

Grid = tuple[int, int, int]
MOST_BLOCKS = 2**31 - 1  # along x
MOST_ROWS = 65535  # of blocks, along y and z


class Function(Protocol):
    """A kernel on one device."""

    def __call__(self, grid: Grid, stream: int, arguments: Arguments) -> None: ...


class Driver(Protocol):
    def architecture(self, device: int) -> str:
        """What to compile for, ``"sm_90a"`` for instance."""
        ...

    def function(self, kernel: Kernel, device: int) -> Function: ...

    def current_device(self) -> int: ...

    def device_of(self, pointer: int) -> int:
        """The device in whose memory an address lies."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """A fresh device array for callers whose library has no allocator that we know: an object with the CUDA array interface."""
        ...

    def follow(self, stream: int, leader: int, device: int) -> None:
        """Work put on ``stream`` from now on waits for what is on ``leader`` now."""
        ...

    def synchronize(self, stream: int, device: int) -> None:
        """Wait, on the host, for what is on ``stream`` now."""
        ...

    def devices(self) -> int:
        """How many there are."""
        ...

    def upload(self, pointer: int, source: int, nbytes: int, device: int, stream: int) -> None:
        """Copy bytes from an address of the host; they are on the device when work put on ``stream`` next begins."""
        ...

    def download(self, result: int, pointer: int, nbytes: int, device: int, stream: int) -> None:
        """Copy bytes to an address of the host, after what is on ``stream`` now, and wait for them."""
        ...


class Arguments:
    """A kernel's parameters in the form that the driver reads: an array of 8-byte slots and an array of their addresses."""

    def __init__(self, values: Sequence[int]) -> None:
        self.values = (ctypes.c_uint64 * len(values))(*(value & 2**64 - 1 for value in values))
        start = ctypes.addressof(self.values)
        self._table = (ctypes.c_uint64 * len(values))(*(start + 8 * i for i in range(len(values))))
        self.address = ctypes.addressof(self._table)


class Call:
    """One kernel with its grid and numbers fixed; only the addresses of arrays change from call to call.

    Safe to share between threads: a call takes a set of arguments that no other one is using.
    """

    def __init__(self, function: Function, grid: Grid, pointers: int, numbers: Sequence[int]) -> None:
        self._function, self._grid = function, grid
        self._template = [0] * pointers + list(numbers)
        self._free: collections.deque[Arguments] = collections.deque()

    def __call__(self, stream: int, *pointers: int) -> None:
        try:
            arguments = self._free.pop()
        except IndexError:
            arguments = Arguments(self._template)
        values = arguments.values
        for at, pointer in enumerate(pointers):
            values[at] = pointer
        self._function(self._grid, stream, arguments)
        self._free.append(arguments)  # the driver has copied them


class Cuda:
    """The real driver, by NVIDIA's cuda.bindings; works in the primary context of each device, as CuPy, Numba and torch do."""

    def __init__(self) -> None:
        from cuda.bindings import driver as api

        self._api = api
        self._check(api.cuInit(0))

    def _check(self, returned: tuple[Any, ...]) -> Any:
        code, *values = returned
        if int(code):
            _, name = self._api.cuGetErrorName(code)
            _, text = self._api.cuGetErrorString(code)
            raise RuntimeError(f"CUDA driver: {(name or b'?').decode()}: {(text or b'').decode()}")
        return values[0] if values else None

    def devices(self) -> int:
        return int(self._check(self._api.cuDeviceGetCount()))

    @functools.lru_cache  # noqa: B019  (one object for the process)
    def architecture(self, device: int) -> str:
        kinds = self._api.CUdevice_attribute
        major, minor = (
            self._check(self._api.cuDeviceGetAttribute(kind, self._handle(device)))
            for kind in (kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        )
        return f"sm_{major}{minor}{'a' if major == 9 else ''}"

    def current_device(self) -> int:
        code, device = self._api.cuCtxGetDevice()
        return 0 if int(code) else int(device)

    def device_of(self, pointer: int) -> int:
        kind = self._api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(self._check(self._api.cuPointerGetAttribute(kind, pointer)))

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        from numba import cuda

        from ..arrays import dtype_named

        with cuda.gpus[device]:
            return cuda.device_array(shape, dtype_named(dtype), stream=cuda.external_stream(stream) if stream else 0)

    def follow(self, stream: int, leader: int, device: int) -> None:
        api = self._api
        with self.on(device):
            event = self._check(api.cuEventCreate(api.CUevent_flags.CU_EVENT_DISABLE_TIMING))
            try:
                self._check(api.cuEventRecord(event, leader))
                self._check(api.cuStreamWaitEvent(stream, event, 0))
            finally:
                self._check(api.cuEventDestroy(event))  # freed by the driver once it has happened

    def synchronize(self, stream: int, device: int) -> None:
        with self.on(device):
            self._check(self._api.cuStreamSynchronize(stream))

    def upload(self, pointer: int, source: int, nbytes: int, device: int, stream: int) -> None:
        with self.on(device):
            self._check(self._api.cuMemcpyHtoDAsync(pointer, source, nbytes, stream))
            self._check(self._api.cuStreamSynchronize(stream))  # the caller's memory may go away

    def download(self, result: int, pointer: int, nbytes: int, device: int, stream: int) -> None:
        with self.on(device):
            self._check(self._api.cuMemcpyDtoHAsync(result, pointer, nbytes, stream))
            self._check(self._api.cuStreamSynchronize(stream))

    @functools.lru_cache  # noqa: B019
    def function(self, kernel: Kernel, device: int) -> Function:
        api = self._api
        with self.on(device):
            cubin = compile_cubin(kernel, self.architecture(device))
            library = self._check(api.cuLibraryLoadData(cubin, [], [], 0, [], [], 0))
            (handle,) = self._check(api.cuLibraryEnumerateKernels(1, library))
            handle = self._check(api.cuKernelGetFunction(handle))
            if kernel.shared_bytes > 48 * 1024:  # more has to be asked for
                kind = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._check(api.cuFuncSetAttribute(handle, kind, kernel.shared_bytes))
        launch, context, good = api.cuLaunchKernel, int(self._context(device)), api.CUresult.CUDA_SUCCESS
        current, threads, shared = api.cuCtxGetCurrent, kernel.threads, kernel.shared_bytes

        def run(grid: Grid, stream: int, arguments: Arguments) -> None:
            x, y, z = grid
            if int(current()[1]) == context:
                (code,) = launch(handle, x, y, z, threads, 1, 1, shared, stream, arguments.address, 0)
            else:
                with self.on(device):
                    (code,) = launch(handle, x, y, z, threads, 1, 1, shared, stream, arguments.address, 0)
            if code != good:
                self._check((code,))

        return run

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """The device's primary context is current on this thread."""
        self._check(self._api.cuCtxPushCurrent(self._context(device)))
        try:
            yield
        finally:
            self._check(self._api.cuCtxPopCurrent())

    @functools.lru_cache  # noqa: B019
    def _context(self, device: int) -> Any:
        return self._check(self._api.cuDevicePrimaryCtxRetain(self._handle(device)))

    @functools.lru_cache  # noqa: B019
    def _handle(self, device: int) -> Any:
        return self._check(self._api.cuDeviceGet(device))


_driver: Driver | None = None
_starting = threading.Lock()


def driver() -> Driver:
    """The driver of this process; RuntimeError where there is none."""
    global _driver
    if _driver is None:
        with _starting:
            _driver = _driver or Cuda()
    return _driver
