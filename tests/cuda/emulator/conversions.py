"""cvt and cvta: between types, and between address spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import FLOATS, flushed
from .machine import LOCAL_WINDOW, SHARED_WINDOW
from .parse import DTYPES, Instruction, Unsupported
from .program import Program, Run, assign

Array = np.ndarray
TO_INTEGER: dict[str, np.ufunc] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_bfloat16(x: Array) -> Array:
    """Bits of float32 rounded to nearest even; NaN becomes 0x7FFF as on the device."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tensorfloat32(x: Array) -> Array:
    """Bits of float32 rounded to 10 bits of mantissa, ties away from zero."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def _rounded(x: Array, dtype: np.dtype, mode: str) -> Array:
    """Float to a narrower float: to nearest even, then a step back where the mode asks for the other side."""
    value = x.astype(dtype)
    back = value.astype(x.dtype)
    if mode == "rn":
        return value
    wrong, towards = {
        "rz": (np.abs(back) > np.abs(x), 0),
        "rm": (back > x, -np.inf),
        "rp": (back < x, np.inf),
    }[mode]
    return np.where(wrong, np.nextafter(value, dtype.type(towards)), value)


def _saturated(x: Array, dtype: np.dtype) -> Array:
    """Integral floats to integers: NaN is 0, what is out of range the nearest bound."""
    info = np.iinfo(dtype)
    x = np.where(np.isnan(x), 0, x).astype(np.float64)
    high, low = x >= float(info.max), x <= float(info.min)
    inside = np.where(high | low, 0, x).astype(dtype)
    return np.where(high, dtype.type(info.max), np.where(low, dtype.type(info.min), inside))


def _convert(program: Program, i: Instruction) -> Run:
    to, source = i.opcode[-2:]
    parts = set(i.opcode[1:-2])
    if not parts <= {"rn", "rz", "rm", "rp", "rna", *TO_INTEGER, "ftz", "sat"}:
        raise Unsupported(f"modifiers {sorted(parts)}")
    mode = next((part for part in parts if part.startswith("r")), "")
    if to in ("bf16x2", "f16x2"):
        return _convert_pair(program, i, to, source, parts)
    function = _conversion(to, source, mode, parts)
    if "ftz" in parts:
        exact = function
        function = lambda x: _flush_either(exact, x)  # noqa: E731
    return assign(program.written(i.operands[0], to, i), _extended(program, i, to, function), [program.read(i.operands[1], source, i)])


def _flush_either(exact: Callable[[Array], Array], x: Array) -> Array:
    value = exact(flushed(x) if x.dtype == np.float32 else x)
    return flushed(value) if value.dtype == np.float32 else value


def _extended(program: Program, i: Instruction, to: str, function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A register wider than the type takes the value extended."""
    register = program.source.register(i.operands[0], i.scope)
    assert register is not None
    width = DTYPES[register[2]].itemsize
    if width == DTYPES[to].itemsize:
        return function
    return lambda x: function(x).astype(f"{'i' if to[0] == 's' else 'u'}{width}")


def _conversion(to: str, source: str, mode: str, parts: set[str]) -> Callable[[Array], Array]:
    dtype = DTYPES[to]
    if to == "tf32" and mode == "rna" and source == "f32":
        return to_tensorfloat32
    if to == "bf16" and mode == "rn" and source == "f32":
        return to_bfloat16
    if source == "bf16" and to == "f32":
        return from_bfloat16
    if "bf16" in (to, source) or to == "tf32":
        raise Unsupported(f"cvt {mode} {to} {source}")
    if source in FLOATS and to in FLOATS:
        if mode in TO_INTEGER:
            return lambda x: TO_INTEGER[mode](x).astype(dtype)
        if "sat" in parts:
            return lambda x: np.clip(np.where(np.isnan(x), 0, _rounded(x, dtype, mode or "rn")), 0, 1).astype(dtype)
        return lambda x: _rounded(x, dtype, mode or "rn")
    if source in FLOATS:
        return lambda x: _saturated(TO_INTEGER[mode](x), dtype)
    if to in FLOATS:
        if mode != "rn" or "sat" in parts:
            raise Unsupported(f"cvt {mode} {to} {source}")
        # One rounding: NumPy goes to float16 by way of float32, which is exact for every integer that float16 can hold.
        return lambda x: x.astype(dtype)
    if "sat" in parts:
        info = np.iinfo(dtype)
        return lambda x: np.clip(x.astype(object), info.min, info.max).astype(dtype)
    return lambda x: x.astype(dtype)


def _convert_pair(program: Program, i: Instruction, to: str, source: str, parts: set[str]) -> Run:
    """Two floats into the upper and the lower half of one register."""
    if source != "f32" or parts != {"rn"}:
        raise Unsupported("this pair")
    half: Callable[[Array], Array] = to_bfloat16 if to == "bf16x2" else lambda x: x.astype(np.float16).view(np.uint16)
    high, low = (program.read(operand, "f32", i) for operand in i.operands[1:3])
    return assign(
        program.written(i.operands[0], "b32", i),
        lambda a, b: half(a).astype(np.uint32) << np.uint32(16) | half(b),
        [high, low],
    )


def _convert_address(program: Program, i: Instruction) -> Run:
    """cvta: an address in a space to a generic one; cvta.to the other way."""
    space = next(part.partition("::")[0] for part in i.opcode[1:] if part != "to")
    window = {"global": 0, "const": 0, "param": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}[space]
    shift: Any = program.constant(-window if "to" in i.opcode else window, i.type)
    return assign(program.written(i.operands[0], i.type, i), np.add, [program.read(i.operands[1], i.type, i), shift])


def _window_test(program: Program, i: Instruction) -> Run:
    """isspacep: does a generic address lie in a space?"""
    space = i.opcode[1].partition("::")[0]
    low, high = {"shared": (SHARED_WINDOW, LOCAL_WINDOW), "local": (LOCAL_WINDOW, 1 << 62), "global": (0, SHARED_WINDOW)}[space]
    return assign(program.written(i.operands[0], "pred", i), lambda a: (a >= low) & (a < high), [program.read(i.operands[1], "s64", i)])


CONVERSIONS = {"cvt": _convert, "cvta": _convert_address, "isspacep": _window_test}
