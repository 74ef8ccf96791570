"""Arrays as arguments and results, on the host or a CUDA device: what is taken, what is refused and what to pass instead."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .arguments import shown, shown_shape
from .device import DeviceArray

AnyArray = np.ndarray[Any, np.dtype[Any]]


class Element(NamedTuple):
    """How one dtype travels: the view that kernels read and write, and what they accumulate in."""

    storage: np.dtype[Any]
    accumulator: np.dtype[Any]


def _element(storage: str, accumulator: str) -> Element:
    return Element(np.dtype(storage), np.dtype(accumulator))


# Numba has no float16 or bfloat16 on the CPU: both travel as uint16 and are accumulated in float32.  Narrow integers are
# accumulated in int32 and truncated, which is exact modulo 2**bits.
ELEMENTS = {
    "float64": _element("float64", "float64"),
    "float32": _element("float32", "float32"),
    "float16": _element("uint16", "float32"),
    "bfloat16": _element("uint16", "float32"),
    "complex64": _element("complex64", "complex64"),
    "complex128": _element("complex128", "complex128"),
    "int8": _element("int8", "int32"),
    "int16": _element("int16", "int32"),
    "int32": _element("int32", "int32"),
    "int64": _element("int64", "int64"),
    "uint8": _element("uint8", "int32"),
}
_STORED_AS_NAMED = {np.dtype(name) for name, element in ELEMENTS.items() if element.storage.name == name}
NARROW_INTEGERS = ("int8", "int16", "uint8")

_DTYPE_HINTS = {
    "bool": "convert a mask with .astype(numpy.uint8) or .astype(numpy.float32)",
    "uint16": "convert with .astype(numpy.int32), which holds every uint16 value, or .astype(numpy.float32)",
    "uint32": "convert with .astype(numpy.int64) or .astype(numpy.float64)",
    "uint64": "convert with .astype(numpy.int64) or .astype(numpy.float64)",
    "longdouble": "convert with .astype(numpy.float64)",
    "clongdouble": "convert with .astype(numpy.complex128)",
    "object": "convert with .astype(numpy.float64)",
}


def check_array(name: str, value: Any) -> Any:
    """``value`` itself when it is a plain NumPy array (or memmap), or its :class:`DeviceArray`, of a supported dtype.

    TypeError saying what to pass otherwise.
    """
    kind = type(value)
    array = value if kind is np.ndarray or kind is np.memmap or kind is DeviceArray else read_device_array(name, value)
    if array is None:
        raise TypeError(f"{name} must be a numpy.ndarray, got {_kind(kind)}: {_instead(name, value)}")
    if name_of(array) not in ELEMENTS:
        hint = _DTYPE_HINTS.get(name_of(array)) or _DTYPE_HINTS.get(getattr(array.dtype, "type", str).__name__, "convert it with .astype")
        raise TypeError(f"{name} must have one of the dtypes {', '.join(ELEMENTS)}, got {array.dtype}: {hint}")
    return array


def read_device_array(name: str, value: Any) -> DeviceArray | None:
    """The array on a CUDA device that ``value`` is; recognised without importing anything where it is none."""
    kind = type(value)
    read = _readers.get(kind)
    if read is None:
        if isinstance(value, np.generic | np.ndarray) or not _may_live_on_a_device(kind, value):
            return None
        if not _has_cuda_packages():
            raise TypeError(
                f"{name} must be a numpy.ndarray where numba-cuda is not installed, got {_kind(kind)}: install numbaconv[cuda13] or "
                f"numbaconv[cuda12], or {_instead(name, value)}"
            )
        from .cuda.arrays import reader

        read = _readers[kind] = reader(kind)
    return read(name, value)


_readers: dict[type, Callable[[str, Any], DeviceArray | None]] = {}


@functools.cache
def _has_cuda_packages() -> bool:
    return importlib.util.find_spec("numba_cuda") is not None


def _may_live_on_a_device(kind: type, value: Any) -> bool:
    if kind.__module__.partition(".")[0] == "torch":
        return bool(getattr(value, "is_cuda", False))
    if hasattr(value, "__cuda_array_interface__"):  # of the object: jax's type has it on the CPU too, and refuses there
        return True
    return hasattr(kind, "__dlpack_device__") and value.__dlpack_device__()[0] in CUDA_DEVICES


def check_alike(first: str, a: Any, second: str, b: Any) -> None:
    """Both in the same memory (TypeError for host and device, ValueError for two devices) and of one dtype (TypeError)."""
    if type(a) is type(b) is np.ndarray and a.dtype is b.dtype:
        return
    if device_number(a) != device_number(b):
        error = TypeError if HOST in (device_number(a), device_number(b)) else ValueError
        raise error(f"{second} must live where {first} does, got {first} in {place_of(a)} and {second} in {place_of(b)}: copy one of them")
    if name_of(a) != name_of(b):
        raise TypeError(
            f"{second} must have the dtype of {first}, got {first} {name_of(a)} and {second} {name_of(b)}: convert one of them with .astype"
        )


def batched(array: Any) -> Any:
    """An image (C, ...) as a batch of one, (1, C, ...)."""
    if type(array) is DeviceArray:
        return array.seen((1, *array.shape), (0, *array.strides), array.stream)
    return array[None]


HOST = -1
CUDA_DEVICES = (2, 13)
"""DLPack's numbers of CUDA devices: kDLCUDA and kDLCUDAManaged."""


def device_number(array: Any) -> int:
    """The CUDA device that an array lives on, or HOST."""
    return array.device if type(array) is DeviceArray else HOST


def place_of(array: Any) -> str:
    """Whose memory an array lies in, in words."""
    return f"the memory of cuda:{array.device}" if type(array) is DeviceArray else "host memory"


def device_of(array: Any) -> str:
    """The registry of algorithms for an array: ``"cpu"`` or ``"cuda"``."""
    return "cuda" if type(array) is DeviceArray else "cpu"


def name_of(array: Any) -> str:
    """The name of an array's dtype, whatever its byte order."""
    dtype = array.dtype
    return dtype if type(dtype) is str else _name(dtype)


@functools.cache  # NumPy works the name out anew each time, which takes microseconds
def _name(dtype: np.dtype[Any]) -> str:
    name: str = dtype.name
    return name


def dtype_name(name: str, dtype: Any) -> str:
    """The name of what NumPy makes of ``dtype``; TypeError where it makes nothing of it."""
    try:
        found: str = np.dtype(dtype).name
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a NumPy dtype or None, got {shown(dtype)}") from None
    return found


def check_out_dtype(out_dtype: Any, dtype: str) -> str:
    """The result's dtype name: ``dtype`` itself, or int32 for narrow integers."""
    if out_dtype is None:
        return dtype
    wanted = dtype_name("out_dtype", out_dtype)
    if wanted != dtype and not (wanted == "int32" and dtype in NARROW_INTEGERS):
        raise ValueError(f"out_dtype must be {dtype}{' or int32' if dtype in NARROW_INTEGERS else ''} for {dtype} arguments, got {wanted}")
    return wanted


def check_out(out: Any, shape: Sequence[int], dtype: str, arguments: dict[str, Any]) -> Any:
    """``out`` (or its :class:`DeviceArray`) when the result can be written into it; nothing of it has been touched when this refuses."""
    result: Any = out if type(out) is np.ndarray or type(out) is np.memmap else read_device_array("out", out)
    first = next(iter(arguments.values()))
    if result is None or device_number(result) != device_number(first):
        wanted = f"an array in {place_of(first)}" if type(first) is DeviceArray else "a numpy.ndarray"
        raise TypeError(f"out must be {wanted} or None, got {_kind(type(out))}{'' if result is None else f' in {place_of(result)}'}")
    if name_of(result) != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {name_of(result)}")
    if type(result) is not DeviceArray and not result.dtype.isnative:
        raise ValueError(f"out must have native byte order, got dtype {result.dtype.str}")
    if result.shape != tuple(shape):
        raise ValueError(f"out must have shape {shown_shape(shape)}, got {shown_shape(result.shape)}")
    on_device = type(result) is DeviceArray
    if not (result if on_device else result.flags).writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if not on_device and (not result.flags.aligned or any(step % result.itemsize for step in result.strides)):
        raise ValueError(f"out must be aligned to its itemsize {result.itemsize}, got strides {result.strides}")
    if overlaps_itself(result):
        raise ValueError(f"out must not overlap itself, got shape {shown_shape(result.shape)} with strides {result.strides}")
    for name, argument in arguments.items():
        if _share_memory(result, argument):
            raise ValueError(f"out must not share memory with {name}")
    return result


def overlaps_itself(array: Any) -> bool:
    """Whether two elements may share memory; True where the simple test cannot exclude it."""
    return _overlaps_itself(array.shape, array.strides, array.itemsize)


@functools.lru_cache(maxsize=1024)
def _overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...], reach: int) -> bool:
    if 0 in shape:
        return False
    for step, n in sorted((abs(step), n) for step, n in zip(strides, shape) if n > 1):
        if step < reach:
            return True
        reach += step * (n - 1)
    return False


def _share_memory(a: Any, b: Any) -> bool:
    if type(a) is DeviceArray:
        (a_start, a_end), (b_start, b_end) = a.extent, b.extent
        if a_end <= b_start or b_end <= a_start:
            return False
    # Deciding exactly can take exponential time: a bounded effort, and undecided counts as sharing.
    try:
        return bool(np.shares_memory(_addresses(a), _addresses(b), max_work=10_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


class _Addresses:
    def __init__(self, array: DeviceArray) -> None:
        kind = f"|V{array.itemsize}"
        self.__array_interface__ = {
            "version": 3, "shape": array.shape, "strides": array.strides, "typestr": kind, "data": (array.pointer, True)
        }  # fmt: skip


def _addresses(array: Any) -> AnyArray:
    """An array for comparing addresses; that of a device array is never read, since the host cannot."""
    return np.asarray(_Addresses(array)) if type(array) is DeviceArray else array


def native(array: AnyArray) -> AnyArray:
    """The array itself, or one native copy of it when it is byte-swapped or unaligned (no kernel reads those)."""
    flags = array.flags
    if array.dtype.isnative and flags.aligned and (flags.c_contiguous or not any(step % array.itemsize for step in array.strides)):
        return array
    return array.astype(array.dtype.newbyteorder("="), order="C")


def storage_view(array: AnyArray) -> AnyArray:
    """The same memory with the dtype that kernels use: float16 and bfloat16 as uint16."""
    return array if array.dtype in _STORED_AS_NAMED else array.view(ELEMENTS[name_of(array)].storage)


def five(array: Any, rank: int) -> Any:
    """The (N, C, D, H, W) view of a NumPy array of ``rank`` spatial axes, batched or not."""
    if array.ndim == 5:
        return array
    if array.ndim == rank + 1:
        array = array[None]
    return array[_UNIT_AXES[rank]]


_UNIT_AXES: dict[int, Sequence[Any]] = {rank: (slice(None), slice(None)) + (None,) * (3 - rank) for rank in (1, 2, 3)}


def dtype_named(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 only exists once ml_dtypes has been imported by somebody."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def allocate(shape: Sequence[int], dtype: np.dtype[Any], workspace: int = 0) -> AnyArray:
    """A fresh C-contiguous array; MemoryError at once when it and ``workspace`` bytes pass the physical memory."""
    check_memory(math.prod(shape) * dtype.itemsize + workspace)
    return np.empty(shape, dtype)


def check_memory(needed: int) -> None:
    """MemoryError when ``needed`` bytes are more than the machine has: allocating first would only delay the failure."""
    if needed > 1 << 24 and needed > physical_memory():
        raise MemoryError(f"output and workspace need {needed / 2**30:.1f} GiB, this machine has {physical_memory() / 2**30:.1f} GiB")


@functools.cache
def physical_memory() -> int:
    """Bytes of physical memory; a number larger than any array where the system does not say."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _windows_memory() if sys.platform == "win32" else 2**62


def _windows_memory() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [(f"n{i}", ctypes.c_ulonglong) for i in range(7)]

    status = Status(length=ctypes.sizeof(Status))
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009  (absent from the type stubs elsewhere)
    return int(status.n0) if kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else 2**62


def _kind(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if kind.__module__ != "builtins" else kind.__qualname__


def _instead(name: str, value: Any) -> str:
    """What a caller with this kind of object should pass; recognised by name, never by importing its library."""
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    if isinstance(value, np.ma.MaskedArray):
        return f"its mask would be lost; pass {name}.filled(fill_value) with the value that masked elements shall have"
    if library == "torch":
        return f"pass {name}.detach().numpy() to leave torch"
    if library == "nibabel":
        return f"pass numpy.asarray({name}.dataobj)" if hasattr(value, "dataobj") else f"pass numpy.asarray({name})"
    if library == "xarray":
        return f"pass {name}.values (coordinates are not carried)"
    if library in ("cupy", "numba") or hasattr(kind, "__cuda_array_interface__"):
        return f"copy it to the host first, for instance with {name}.get() or {name}.copy_to_host()"
    if isinstance(value, (list, tuple, int, float)):
        return f"pass numpy.array({name}, dtype=numpy.float32)"
    return f"pass numpy.asarray({name})"
