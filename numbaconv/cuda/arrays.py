"""Device arrays of any library as arguments and results, without a copy.

torch tensors and CuPy arrays give results of their own type, from their own allocator, on their current stream.  Every other object is read
through the CUDA array interface (version 3) or DLPack and gives a ``numba.cuda`` device array.

Sources: https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html, https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..arguments import shown
from ..device import DeviceArray, Library
from ..problem import itemsize
from .dlpack import read_capsule
from .driver import driver

_CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged


def view(name: str, value: Any) -> DeviceArray | None:
    """The array that ``value`` is on a CUDA device; None where it is none, TypeError and ValueError where it cannot be read as one."""
    root = type(value).__module__.partition(".")[0]
    if root == "torch":
        return _torch(name, value) if getattr(value, "is_cuda", False) else None
    if root == "cupy" and hasattr(value, "data"):
        return _checked(name, _cupy(value))
    if hasattr(type(value), "__cuda_array_interface__"):
        return _checked(name, _interface(name, value))
    if hasattr(type(value), "__dlpack_device__") and value.__dlpack_device__()[0] in _CUDA_DEVICES:
        return _checked(name, _dlpack(value))
    return None


def _checked(name: str, array: DeviceArray) -> DeviceArray:
    # A GPU faults on an unaligned access, and no kernel reads foreign byte orders.
    size = array.itemsize
    if array.size and (array.pointer % size or any(step % size for step, n in zip(array.strides, array.shape) if n > 1)):
        raise ValueError(f"{name} must be aligned to its itemsize {size}, got address {array.pointer:#x} and strides {array.strides}")
    return array


# ---- torch -------------------------------------------------------------------------------------------------------------
class _TorchLibrary:
    name = "torch"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        import torch

        kind = getattr(torch, dtype)
        if same_stream(stream, self.stream(device)):
            return torch.empty(shape, dtype=kind, device=f"cuda:{device}")
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=device)):
            return torch.empty(shape, dtype=kind, device=f"cuda:{device}")

    def stream(self, device: int) -> int:
        import torch

        return int(torch.cuda.current_stream(device).cuda_stream)


def _torch(name: str, value: Any) -> DeviceArray:
    import torch

    if value.requires_grad and torch.is_grad_enabled():
        raise TypeError(f"{name} must not require a gradient, which would be lost: pass {name}.detach(), or call under torch.no_grad()")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a strided tensor, got layout {value.layout}: pass {name}.to_dense()")
    value = value.resolve_conj().resolve_neg()  # one device copy where torch has put off a conjugation or negation
    size = value.element_size()
    strides = tuple(step * size for step in value.stride())
    device = value.get_device()
    dtype = str(value.dtype).removeprefix("torch.")
    return DeviceArray(value.data_ptr(), tuple(value.shape), strides, dtype, size, device, TORCH.stream(device), True, TORCH, value)


# ---- CuPy --------------------------------------------------------------------------------------------------------------
class _CupyLibrary:
    name = "cupy"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        import cupy

        from ..arrays import dtype_named

        with cupy.cuda.Device(device):
            if same_stream(stream, cupy.cuda.get_current_stream().ptr):
                return cupy.empty(shape, dtype_named(dtype))
            with cupy.cuda.ExternalStream(stream, device):
                return cupy.empty(shape, dtype_named(dtype))

    def stream(self, device: int) -> int:
        import cupy

        return int(cupy.cuda.get_current_stream(device).ptr)


def _cupy(value: Any) -> DeviceArray:
    device = int(value.device.id)
    return DeviceArray(
        int(value.data.ptr),
        value.shape,
        value.strides,
        value.dtype.name,
        value.dtype.itemsize,
        device,
        CUPY.stream(device),
        True,
        CUPY,
        value,
    )


# ---- everything else -----------------------------------------------------------------------------------------------------
class _InterfaceLibrary:
    name = "numba"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        return driver().empty(shape, dtype, device, stream)

    def stream(self, device: int) -> int:
        return 0


def _interface(name: str, value: Any) -> DeviceArray:
    """An object with the CUDA array interface, version 3 or earlier."""
    found = value.__cuda_array_interface__
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
    return DeviceArray(
        pointer, shape, tuple(strides), kind.name, kind.itemsize, device, int(found.get("stream") or 0), not readonly, INTERFACE, value
    )


def _dlpack(value: Any) -> DeviceArray:
    """An object that only speaks DLPack; its producer orders its work before the legacy default stream."""
    capsule = value.__dlpack__(stream=1)
    found = read_capsule(capsule)
    strides = contiguous(found.shape, found.itemsize) if found.strides is None else tuple(s * found.itemsize for s in found.strides)
    return DeviceArray(found.pointer, found.shape, strides, found.dtype, found.itemsize, found.device, 0, True, INTERFACE, (value, capsule))


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


def contiguous(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """Strides in bytes of a C-contiguous array."""
    strides = []
    for n in reversed(shape):
        strides.append(size)
        size *= max(n, 1)
    return tuple(reversed(strides))


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
            import torch

            record(torch.cuda.ExternalStream(stream, device=array.device))
    return replace(array, stream=stream)
