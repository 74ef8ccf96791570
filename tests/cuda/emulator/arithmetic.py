"""Arithmetic, logic, comparisons and moves: one value a lane from a few values of the same lane.

Rounding: ``fma`` of f32 and f64 rounds once (the machine's own fused multiply-add, by way of Numba); every other float operation is
NumPy's, to nearest even.  ``.approx`` and ``.full`` give what NumPy gives for the function.  Integer arithmetic wraps around.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import vectorize
from numba.extending import intrinsic

from .parse import DTYPES, Instruction, Unsupported
from .program import Mask, Program, Run, assign, modifiers, put

Array = np.ndarray
FLOATS = ("f16", "f32", "f64")


@intrinsic
def _fused(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    return a(a, b, c), lambda context, builder, signature, values: builder.fma(*values)


@vectorize(["float32(float32, float32, float32)", "float64(float64, float64, float64)"])
def _fma(a: float, b: float, c: float) -> float:
    """a * b + c, rounded once."""
    return _fused(a, b, c)


fma = _fma.ufunc


def _fma_f16(a: Array, b: Array, c: Array) -> Array:
    # The product is exact in float64, the sum need not be: float64's rounding and then float16's may differ from one rounding by an ulp of
    # float16 in rare ties.
    return (a.astype(np.float64) * b + c).astype(np.float16)


def flushed(x: Array) -> Array:
    """Subnormals of float32 become zeros of their sign (``.ftz``)."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(x.dtype.type(0), x), x) if x.dtype.kind == "f" else x


def _flushing(function: Callable[..., Array], parts: set[str]) -> Callable[..., Array]:
    """``function`` with the .ftz and .sat among ``parts``."""
    if "sat" in parts:
        plain = function
        function = lambda *xs: np.where(np.isnan(y := plain(*xs)), y.dtype.type(0), np.clip(y, 0, 1))  # noqa: E731
    if "ftz" in parts:
        exact = function
        function = lambda *xs: flushed(exact(*map(flushed, xs)))  # noqa: E731
    return function


def typed(instruction: Instruction, *kinds: str) -> str:
    if instruction.type not in kinds:
        raise Unsupported(f"type {instruction.type}")
    return instruction.type


INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
BITS = ("b16", "b32", "b64", "pred")


def same(function: Callable[..., Any], *kinds: str, allowed: tuple[str, ...] = ()) -> Callable[[Program, Instruction], Run]:
    """An instruction whose operands and result all have its type."""

    def decode(program: Program, i: Instruction) -> Run:
        kind = typed(i, *kinds)
        parts = modifiers(i, *allowed)
        sources = [program.read(operand, kind, i) for operand in i.operands[1:]]
        return assign(program.written(i.operands[0], kind, i), _flushing(function, parts), sources)

    return decode


def by_kind(integer: Any, floating: Any) -> Callable[[Program, Instruction], Run]:
    whole = same(integer, *INTEGERS, "b16", "b32", "b64")
    real = same(floating, *FLOATS, allowed=("rn", "ftz", "sat"))
    return lambda program, i: (real if i.type in FLOATS else whole)(program, i)


def _carry(operation: str) -> Callable[[Program, Instruction], Run]:
    """add, sub, addc, subc with ``.cc``: the carry flag is a predicate of its own, 1 for a carry or a borrow."""
    plain = by_kind(*{"add": (np.add, np.add), "sub": (np.subtract, np.subtract)}[operation[:3]])

    def decode(program: Program, i: Instruction) -> Run:
        if "cc" not in i.opcode and not operation.endswith("c"):
            return plain(program, i)
        unsigned = f"u{8 * DTYPES[i.type].itemsize}"
        modifiers(i, "cc")
        a, b = (program.read(operand, unsigned, i) for operand in i.operands[1:])
        target, flag = program.written(i.operands[0], unsigned, i), program.read_scratch("pred")
        takes, sets = operation.endswith("c"), "cc" in i.opcode

        def run(wave: Any, mask: Mask) -> None:
            r = wave.r
            x, y = r[a], r[b]
            carried = r[flag].astype(x.dtype) if takes else x.dtype.type(0)
            if operation.startswith("add"):
                part = x + y
                value = part + carried
                overflow = (part < x) | (value < part)
            else:
                part = x - y
                value = part - carried
                overflow = (x < y) | (part < carried)
            put(r[target], mask, value)
            if sets:
                put(r[flag], mask, overflow)

        return run

    return decode


# Products --------------------------------------------------------------------------------------------------------------------------------


def _high(a: Array, b: Array) -> Array:
    """The upper half of the products."""
    if a.dtype.itemsize < 8:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
        return (np.multiply(a, b, dtype=wide) >> wide.type(8 * a.dtype.itemsize)).astype(a.dtype)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x0, x1, y0, y1 = x & low, x >> shift, y & low, y >> shift
    middle = x1 * y0 + (x0 * y0 >> shift)
    high = x1 * y1 + (middle >> shift) + (((middle & low) + x0 * y1) >> shift)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def _product(program: Program, i: Instruction) -> Run:
    """mul and mad of integers: .lo, .hi or .wide; mul of floats; mad of floats is fma."""
    kind = i.type
    if kind in FLOATS:
        return (same(np.multiply, *FLOATS, allowed=("rn", "ftz", "sat")) if i.opcode[0] == "mul" else _fused_multiply)(program, i)
    (which,) = modifiers(i, "lo", "hi", "wide")
    a, b = (program.read(operand, kind, i) for operand in i.operands[1:3])
    result = f"{kind[0]}{2 * int(kind[1:])}" if which == "wide" else kind
    target = program.written(i.operands[0], result, i)
    dtype = DTYPES[result]
    wide: Callable[[Array, Array], Array] = lambda x, y: np.multiply(x, y, dtype=dtype)  # noqa: E731
    multiply: Any = {"lo": np.multiply, "hi": _high, "wide": wide}[which]
    if i.opcode[0] == "mul":
        return assign(target, multiply, [a, b])
    added = program.read(i.operands[3], result, i)
    return assign(target, lambda x, y, z: multiply(x, y) + z, [a, b, added])


def _fused_multiply(program: Program, i: Instruction) -> Run:
    return same(_fma_f16 if i.type == "f16" else fma, *FLOATS, allowed=("rn", "ftz", "sat"))(program, i)


def _dp4a(program: Program, i: Instruction) -> Run:
    """d = c + the sum of four products of bytes."""
    kinds = i.opcode[-2:]
    a, b = (program.read(operand, "b32", i) for operand in i.operands[1:3])
    result = "s32" if "s32" in kinds else "u32"
    bytes_of = [np.int8 if kind == "s32" else np.uint8 for kind in kinds]

    def dot(x: Array, y: Array, z: Array) -> Array:
        pairs = (np.ascontiguousarray(v).view(kind).reshape(-1, 4).astype(np.int64) for v, kind in zip((x, y), bytes_of))
        return (np.multiply(*pairs).sum(1) + z).astype(DTYPES[result])

    return assign(program.written(i.operands[0], result, i), dot, [a, b, program.read(i.operands[3], result, i)])


def _division(remainder: bool) -> Callable[[Program, Instruction], Run]:
    def decode(program: Program, i: Instruction) -> Run:
        if i.type in FLOATS:
            return same(np.divide, *FLOATS, allowed=("rn", "full", "approx", "ftz"))(program, i)
        kind = typed(i, *INTEGERS)
        a, b = (program.read(operand, kind, i) for operand in i.operands[1:])
        target = program.written(i.operands[0], kind, i)

        def run(wave: Any, mask: Mask) -> None:
            x, y = wave.r[a], wave.r[b]
            zero = (y == 0) & mask
            if zero.any():
                wave.fault(zero, "integer division by zero")
            rest = np.fmod(x, y)  # towards zero, as PTX
            put(wave.r[target], mask, rest if remainder else (x - rest) // y)

        return run

    return decode


def _least(name: str) -> Callable[[Program, Instruction], Run]:
    """min and max: the other value where one is NaN, unless .NaN."""
    integer, number_, nan = {"min": (np.minimum, np.fmin, np.minimum), "max": (np.maximum, np.fmax, np.maximum)}[name]

    def decode(program: Program, i: Instruction) -> Run:
        if i.type not in FLOATS:
            return same(integer, *INTEGERS)(program, i)
        return same(nan if "NaN" in i.opcode else number_, *FLOATS, allowed=("ftz", "NaN"))(program, i)

    return decode


def _real(function: Callable[[Array], Array], *allowed: str) -> Callable[[Program, Instruction], Run]:
    return same(function, *FLOATS, allowed=("ftz", "approx", *allowed))


ARITHMETIC: dict[str, Callable[[Program, Instruction], Run]] = {
    "add": _carry("add"),
    "addc": _carry("addc"),
    "sub": _carry("sub"),
    "subc": _carry("subc"),
    "mul": _product,
    "mad": _product,
    "fma": _fused_multiply,
    "dp4a": _dp4a,
    "div": _division(remainder=False),
    "rem": _division(remainder=True),
    "min": _least("min"),
    "max": _least("max"),
    "neg": by_kind(np.negative, np.negative),
    "abs": by_kind(np.abs, np.abs),
    "copysign": same(lambda sign, size: np.copysign(size, sign), *FLOATS),
    "sqrt": _real(np.sqrt, "rn"),
    "rsqrt": _real(lambda x: (1 / np.sqrt(x.astype(np.float64))).astype(x.dtype)),
    "rcp": _real(np.reciprocal, "rn"),
    "sin": _real(np.sin),
    "cos": _real(np.cos),
    "ex2": _real(np.exp2),
    "lg2": _real(np.log2),
    "tanh": _real(np.tanh),
}
