"""Device arrays of any library as arguments and results, without a copy.

torch tensors and CuPy arrays give results of their own type, from their own allocator, on their current stream.  Every other object is read
through the CUDA array interface (version 3) or DLPack and gives a ``numba.cuda`` device array.

Sources: https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html, https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..arguments import shown
from ..arrays import CUDA_DEVICES, dtype_named, name_of
from ..device import DeviceArray, Library
from ..problem import itemsize
from .dlpack import read_capsule
from .driver import driver

Reader = Callable[[str, Any], DeviceArray | None]


def reader(kind: type) -> Reader:
    """How a value of this type, named by a caller's argument, is read: its array, or None where it is not on a CUDA device.

    TypeError and ValueError where it cannot be read as one.
    """
    root = kind.__module__.partition(".")[0]
    if root == "torch":
        return _torch
    if root == "cupy":
        return _cupy
    if hasattr(kind, "__cuda_array_interface__"):
        return _interface
    return _dlpack


def _checked(name: str, array: DeviceArray) -> DeviceArray:
    # A GPU faults on an unaligned access, and no kernel reads foreign byte orders.
    size = array.itemsize
    if array.pointer % size and array.size:
        raise ValueError(f"{name} must be aligned to its itemsize {size}, got address {array.pointer:#x}")
    for step, n in zip(array.strides, array.shape):
        if step % size and n > 1:
            raise ValueError(f"{name} must be aligned to its itemsize {size}, got strides {array.strides}")
    return array


# ---- torch -------------------------------------------------------------------------------------------------------------
class _TorchLibrary:
    name = "torch"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        torch = _module("torch")
        kind, where = _torch_kinds(dtype, device)
        if same_stream(stream, self.stream(device)):
            return torch.empty(shape, dtype=kind, device=where)
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=device)):
            return torch.empty(shape, dtype=kind, device=where)

    def stream(self, device: int) -> int:
        return int(_raw_stream()(device))


@functools.cache
def _module(name: str) -> Any:
    """A library that the caller has imported already; an import statement would look for it in every call."""
    return importlib.import_module(name)


@functools.cache
def _torch_kinds(dtype: str, device: int) -> tuple[Any, Any]:
    torch = _module("torch")
    return getattr(torch, dtype), torch.device("cuda", device)


@functools.cache
def _raw_stream() -> Callable[[int], int]:
    """The handle of torch's current stream; by way of the public function it takes ten times as long."""
    torch = _module("torch")
    fast = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return fast or (lambda device: torch.cuda.current_stream(device).cuda_stream)


def _torch(name: str, value: Any) -> DeviceArray | None:
    if not value.is_cuda:
        return None
    if value.requires_grad and _module("torch").is_grad_enabled():
        raise TypeError(f"{name} must not require a gradient, which would be lost: pass {name}.detach(), or call under torch.no_grad()")
    kind = value.dtype
    dtype = _TORCH_NAMES.get(kind)
    if dtype is None:
        dtype = _TORCH_NAMES[kind] = str(kind).removeprefix("torch.")
    if kind.is_complex:  # one device copy where torch has put off a conjugation or negation
        value = value.resolve_conj()
    if value.is_neg():
        value = value.resolve_neg()
    try:
        strides = value.stride()
    except RuntimeError:
        raise TypeError(f"{name} must be a strided tensor, got layout {value.layout}: pass {name}.to_dense()") from None
    size, device = value.element_size(), value.get_device()
    scaled = tuple([step * size for step in strides])
    return DeviceArray(value.data_ptr(), tuple(value.shape), scaled, dtype, size, device, TORCH.stream(device), True, TORCH, value)


_TORCH_NAMES: dict[Any, str] = {}


# ---- CuPy --------------------------------------------------------------------------------------------------------------
class _CupyLibrary:
    name = "cupy"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        cupy = _module("cupy")
        if same_stream(stream, self.stream(device)) and cupy.cuda.runtime.getDevice() == device:
            return cupy.empty(shape, dtype_named(dtype))
        with cupy.cuda.Device(device), _foreign_stream(cupy, stream, device):
            return cupy.empty(shape, dtype_named(dtype))

    def stream(self, device: int) -> int:
        return int(_module("cupy").cuda.get_current_stream(device).ptr)


class _StreamHandle:
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def _foreign_stream(cupy: Any, stream: int, device: int) -> Any:
    """CuPy's object for a stream that is not its own, by the newer or the older way to ask for one."""
    made = getattr(cupy.cuda.Stream, "from_external", None)
    return made(_StreamHandle(stream)) if made else cupy.cuda.ExternalStream(stream, device)


def _cupy(name: str, value: Any) -> DeviceArray:
    data, kind = value.data, value.dtype
    device = data.device_id
    return DeviceArray(
        data.ptr, value.shape, value.strides, name_of(value), kind.itemsize, device, CUPY.stream(device), True, CUPY, value
    )  # fmt: skip


# ---- everything else -----------------------------------------------------------------------------------------------------
class _InterfaceLibrary:
    name = "numba"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        return driver().empty(shape, dtype, device, stream)

    def stream(self, device: int) -> int:
        return 0


def _interface(name: str, value: Any) -> DeviceArray | None:
    """An object with the CUDA array interface, version 3 or earlier."""
    found = getattr(value, "__cuda_array_interface__", None)
    if found is None:
        return None
    if not {"shape", "typestr", "data"} <= found.keys():
        raise TypeError(
            f"{name} must have shape, typestr and data in its __cuda_array_interface__, got {sorted(found)}: copy it to the host"
        )
    if found.get("mask") is not None:
        raise TypeError(f"{name} must not be masked, since its mask would be lost: pass its data with masked elements filled")
    kind = np.dtype(getattr(value, "dtype", None) or found["typestr"])
    if not kind.isnative:
        raise ValueError(f"{name} must have native byte order, got typestr {found['typestr']!r}")
    shape = tuple(found["shape"])
    pointer, readonly = found["data"]
    device = driver().device_of(pointer) if pointer and math.prod(shape) else driver().current_device()
    strides = found.get("strides") or contiguous(shape, kind.itemsize)
    stream = int(found.get("stream") or 0)
    array = DeviceArray(pointer, shape, tuple(strides), kind.name, kind.itemsize, device, stream, not readonly, INTERFACE, value)
    return _checked(name, array)


def _dlpack(name: str, value: Any) -> DeviceArray | None:
    """An object that only speaks DLPack; its producer orders its work before the legacy default stream."""
    if value.__dlpack_device__()[0] not in CUDA_DEVICES:
        return None
    capsule = value.__dlpack__(stream=1)
    found, owner = read_capsule(capsule), (value, capsule)
    strides = contiguous(found.shape, found.itemsize) if found.strides is None else tuple(s * found.itemsize for s in found.strides)
    array = DeviceArray(found.pointer, found.shape, strides, found.dtype, found.itemsize, found.device, 0, True, INTERFACE, owner)
    return _checked(name, array)


TORCH, CUPY, INTERFACE = _TorchLibrary(), _CupyLibrary(), _InterfaceLibrary()


def empty(shape: Sequence[int], dtype: str, like: DeviceArray) -> DeviceArray:
    """A fresh C-contiguous array of the library, device and stream of ``like``."""
    shape = tuple(shape)
    library: Library = like.library
    owner = library.empty(shape, dtype, like.device, like.stream)
    size = itemsize(dtype)
    return DeviceArray(_pointer(owner), shape, contiguous(shape, size), dtype, size, like.device, like.stream, True, library, owner)


def _pointer(owner: Any) -> int:
    if hasattr(owner, "data_ptr"):
        return int(owner.data_ptr())
    return int(owner.__cuda_array_interface__["data"][0])


@functools.lru_cache(maxsize=1024)
def contiguous(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Strides in bytes of a C-contiguous array."""
    strides = []
    for n in reversed(shape):
        strides.append(size)
        size *= max(n, 1)
    return tuple(strides[::-1])


# ---- streams -----------------------------------------------------------------------------------------------------------
def stream_handle(stream: Any) -> int:
    """The handle of what a caller passes as ``stream``: an int, or a stream of CuPy, torch, Numba or cuda.core."""
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for attribute in ("cuda_stream", "ptr", "handle"):  # torch, CuPy, Numba
        if hasattr(stream, attribute):
            handle = getattr(stream, attribute)
            return int(getattr(handle, "value", handle) or 0)
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    raise TypeError(f"stream must be a stream of CuPy, torch, Numba or cuda.core, or its handle as an int, got {shown(stream)}")


def same_stream(a: int, b: int) -> bool:
    return a == b or {a, b} == {0, 1}  # both name the legacy default stream


def ordered(array: DeviceArray, stream: int) -> DeviceArray:
    """The array as work on ``stream`` sees it, once that stream waits for the one that the array's contents come from."""
    if array.stream == stream:
        return array
    if not same_stream(array.stream, stream):
        driver().follow(stream, array.stream, array.device)
        record = getattr(array.owner, "record_stream", None)
        if record is not None:  # torch must not hand the memory out again before that work is done
            record(_module("torch").cuda.ExternalStream(stream, device=array.device))
    return array.seen(array.shape, array.strides, stream)
