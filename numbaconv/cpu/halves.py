"""float16 and bfloat16 inside kernels: Numba has neither on the CPU, so both are uint16 bits that widen to float32.

``widen(value, kind)`` and ``narrow(value, out, kind)`` are identities but for uint16 storage, decided when a kernel is compiled.  The bit
patterns are worked out in integer and float32 arithmetic, which LLVM vectorises on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload, register_jitable

FLOAT16, BFLOAT16 = 1, 2
KIND = {"float16": FLOAT16, "bfloat16": BFLOAT16}
"""What the uint16 storage of a dtype means; other dtypes have no entry and kind 0."""

_TWO_112 = np.float32(2.0**112)
_SMALLEST_NORMAL = np.uint32(113 << 23)  # 2**-14, the smallest normal float16, as float32 bits
_OVERFLOW = np.uint32(0x477FF000)  # 65520, which rounds to the float16 infinity
_HALF = np.float32(0.5)


@intrinsic  # type: ignore[untyped-decorator]
def _bits_jit(typing: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _float_jit(typing: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


def _bits(value: Any) -> Any:
    return np.float32(value).view(np.uint32)


def _float(bits: Any) -> Any:
    return np.uint32(bits).view(np.float32)


overload(_bits, inline="always")(lambda value: lambda value: _bits_jit(np.float32(value)))
overload(_float, inline="always")(lambda bits: lambda bits: _float_jit(np.uint32(bits)))


@register_jitable  # type: ignore[untyped-decorator]
def float16_to_float32(h: Any) -> Any:
    magnitude = np.uint32(h & 0x7FFF)
    value = _float(magnitude << np.uint32(13)) * _TWO_112  # exact for normal and subnormal numbers
    if magnitude >= np.uint32(0x7C00):
        value = _float((magnitude << np.uint32(13)) | np.uint32(0x7F800000))
    return -value if h & 0x8000 else value


@register_jitable  # type: ignore[untyped-decorator]
def float32_to_float16(value: Any) -> Any:
    bits = _bits(value)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # Subnormal results: adding 0.5 puts 2**-24 into the last place, so the addition itself rounds to nearest even.
    small = _bits(_float(magnitude) + _HALF) - _bits(_HALF)
    normal = (magnitude - np.uint32(112 << 23) + np.uint32(0xFFF) + ((magnitude >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    half = small if magnitude < _SMALLEST_NORMAL else normal
    if magnitude >= _OVERFLOW:
        half = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(0x7C00)
    return np.uint16(half | ((bits >> np.uint32(16)) & np.uint32(0x8000)))


@register_jitable  # type: ignore[untyped-decorator]
def bfloat16_to_float32(h: Any) -> Any:
    return _float(np.uint32(h) << np.uint32(16))


@register_jitable  # type: ignore[untyped-decorator]
def float32_to_bfloat16(value: Any) -> Any:
    bits = _bits(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        rounded = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.uint16(rounded)


def widen(value: Any, kind: int) -> Any:
    """A stored element in the dtype of the sums."""
    if kind == 0:
        return value
    return float16_to_float32(value) if kind == FLOAT16 else bfloat16_to_float32(value)


def narrow(value: Any, out: Any, kind: int) -> Any:
    """A sum as an element of the array ``out``, halves rounded to nearest even."""
    if kind == 0:
        return value.astype(out.dtype)  # interpreted: NumPy would refuse what machine code truncates
    return float32_to_float16(value) if kind == FLOAT16 else float32_to_bfloat16(value)


@overload(widen)
def _widen(value, kind):  # type: ignore[no-untyped-def]  # Numba compares annotations too
    if value == types.uint16:
        return lambda value, kind: float16_to_float32(value) if kind == FLOAT16 else bfloat16_to_float32(value)
    return lambda value, kind: value


@overload(narrow)
def _narrow(value, out, kind):  # type: ignore[no-untyped-def]
    if out.dtype == types.uint16:
        return lambda value, out, kind: float32_to_float16(value) if kind == FLOAT16 else float32_to_bfloat16(value)
    return lambda value, out, kind: value
