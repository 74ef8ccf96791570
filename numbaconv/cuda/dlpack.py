"""A DLPack capsule read in place.

The capsule is not renamed, so it stays its own owner: whoever keeps it keeps the memory, and its destructor gives the memory back.
Source: https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Capsule:
    """Strides in elements; None where the array is C-contiguous."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    itemsize: int
    device: int


_KINDS = ("int", "uint", "float", "handle", "bfloat", "complex", "bool")  # by DLDataTypeCode


def read_capsule(capsule: Any) -> Capsule:
    """What an unversioned capsule (``"dltensor"``) describes."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.ndim])
    kind = _KINDS[tensor.code] if tensor.code < len(_KINDS) else f"code {tensor.code}, "
    name = kind if kind == "bool" else f"{kind}{tensor.bits}"
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    return Capsule((tensor.data or 0) + tensor.byte_offset, shape, strides, name, tensor.bits * tensor.lanes // 8, tensor.device_id)
