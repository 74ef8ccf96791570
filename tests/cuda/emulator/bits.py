"""Logic on bits: shifts, fields, permutations of bytes, counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arithmetic import same, typed
from .parse import DTYPES, Instruction, number
from .program import Program, Run, assign, modifiers

Array = np.ndarray
BITS = ("b16", "b32", "b64", "pred")


def _shift(left: bool) -> Callable[[Program, Instruction], Run]:
    """NumPy shifts by the width and more as PTX does: all bits leave, copies of the sign come in."""
    function = np.left_shift if left else np.right_shift

    def decode(program: Program, i: Instruction) -> Run:
        kind = i.type
        dtype = DTYPES[kind]
        target, value = program.written(i.operands[0], kind, i), program.read(i.operands[1], kind, i)
        modifiers(i)
        try:
            return assign(target, function, [value, program.constant(min(number(i.operands[2], "u32"), 8 * dtype.itemsize), kind)])
        except ValueError:
            by = program.read(i.operands[2], "u32", i)
            return assign(target, lambda x, n: function(x, np.minimum(n, 8 * dtype.itemsize).astype(dtype)), [value, by])

    return decode


def _funnel_shift(program: Program, i: Instruction) -> Run:
    """shf: the upper (left) or lower (right) word of two words shifted together."""
    parts = modifiers(i, "l", "r", "wrap", "clamp")
    low, high, by = (program.read(operand, "b32", i) for operand in i.operands[1:])

    def shift(a: Array, b: Array, n: Array) -> Array:
        n = (n & np.uint32(31) if "wrap" in parts else np.minimum(n, np.uint32(32))).astype(np.uint64)
        both = b.astype(np.uint64) << np.uint64(32) | a
        return (both << n >> np.uint64(32) if "l" in parts else both >> n).astype(np.uint32)

    return assign(program.written(i.operands[0], "b32", i), shift, [low, high, by])


def _lop3(program: Program, i: Instruction) -> Run:
    """Any function of three bits: bit ``4a + 2b + c`` of the table is its value."""
    table = number(i.operands[4], "u32")

    def look_up(*words: Array) -> Array:
        result = np.zeros_like(words[0])
        for row in range(8):
            if table >> row & 1:
                a, b, c = (word if row >> 2 - at & 1 else ~word for at, word in enumerate(words))
                result |= a & b & c
        return result

    return assign(program.written(i.operands[0], "b32", i), look_up, [program.read(operand, "b32", i) for operand in i.operands[1:4]])


def _field_mask(position: Array, length: Array, dtype: np.dtype) -> tuple[Array, Array]:
    """(position, mask of ``length`` ones), clamped to the width."""
    width = 8 * dtype.itemsize
    position, length = (np.minimum(x & np.uint32(255), width).astype(dtype) for x in (position, length))
    return position, (dtype.type(1) << length) - dtype.type(1)


def _extract(program: Program, i: Instruction) -> Run:
    """bfe: a field of bits, extended by its highest bit for signed types."""
    dtype, width = DTYPES[i.type], 8 * DTYPES[i.type].itemsize
    unsigned = np.dtype(f"u{dtype.itemsize}")

    def field(value: Array, position: Array, length: Array) -> Array:
        at, ones = _field_mask(position, length, unsigned)
        bits = value >> at.astype(dtype)
        if dtype.kind == "u":
            return bits & ones
        last = np.minimum((position & 255) + (length & 255) - 1, width - 1).astype(dtype)  # the field's highest bit, or the value's
        sign = (value >> last & 1).astype(bool) & (ones != 0)
        return np.where(sign, bits.view(unsigned) | ~ones, bits.view(unsigned) & ones).view(dtype)

    sources = [program.read(i.operands[1], i.type, i), *(program.read(operand, "u32", i) for operand in i.operands[2:])]
    return assign(program.written(i.operands[0], i.type, i), field, sources)


def _insert(program: Program, i: Instruction) -> Run:
    """bfi: the low bits of the first value as a field of the second."""

    def field(value: Array, into: Array, position: Array, length: Array) -> Array:
        at, ones = _field_mask(position, length, value.dtype)
        return into & ~(ones << at) | (value & ones) << at

    sources = [*(program.read(operand, i.type, i) for operand in i.operands[1:3]), *(program.read(o, "u32", i) for o in i.operands[3:])]
    return assign(program.written(i.operands[0], i.type, i), field, sources)


def _permute(program: Program, i: Instruction) -> Run:
    """prmt: each byte of the result is one of eight bytes, or its sign repeated."""
    modifiers(i)

    def pick(a: Array, b: Array, selectors: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a
        result = np.zeros_like(a)
        for at in range(4):
            selector = selectors >> np.uint32(4 * at)
            byte = (both >> (np.uint64(8) * (selector & np.uint32(7)).astype(np.uint64))).astype(np.uint8)
            byte = np.where(selector & np.uint32(8), np.where(byte & 128, np.uint8(255), np.uint8(0)), byte)
            result |= byte.astype(np.uint32) << np.uint32(8 * at)
        return result

    return assign(program.written(i.operands[0], "b32", i), pick, [program.read(operand, "b32", i) for operand in i.operands[1:]])


def _ones(x: Array) -> Array:
    """How many bits are set."""
    return np.unpackbits(np.ascontiguousarray(x).view(np.uint8).reshape(x.size, -1), axis=1).sum(1, dtype=np.uint32)


def _smeared(x: Array) -> Array:
    """Every bit below the highest set one becomes set too."""
    for by in (1, 2, 4, 8, 16, 32)[: 5 if x.dtype.itemsize == 4 else 6]:
        x = x | x >> x.dtype.type(by)
    return x


def _reversed_bits(x: Array) -> Array:
    bits = np.unpackbits(np.ascontiguousarray(x).view(np.uint8).reshape(x.size, -1), axis=1, bitorder="little")
    return np.packbits(bits, axis=1).view(x.dtype.newbyteorder(">")).ravel().astype(x.dtype)


def _counting(function: Callable[[Array], Array]) -> Callable[[Program, Instruction], Run]:
    def decode(program: Program, i: Instruction) -> Run:
        modifiers(i)
        return assign(program.written(i.operands[0], "u32", i), function, [program.read(i.operands[1], typed(i, "b32", "b64"), i)])

    return decode


def _highest(program: Program, i: Instruction) -> Run:
    """bfind: number of the highest bit that is not the sign's; 2**32 - 1 where there is none.  .shiftamt: places to shift it to the top."""
    parts, signed, width = modifiers(i, "shiftamt"), i.type[0] == "s", 8 * DTYPES[i.type].itemsize

    def find(x: Array) -> Array:
        if signed:
            x = np.where(x < 0, ~x, x).view(f"u{width // 8}")
        found = _ones(_smeared(x)) - np.uint32(1)
        return np.where(found < width, np.uint32(width - 1) - found, found) if parts else found

    return assign(program.written(i.operands[0], "u32", i), find, [program.read(i.operands[1], i.type, i)])


LOGIC: dict[str, Callable[[Program, Instruction], Run]] = {
    "and": same(np.bitwise_and, *BITS),
    "or": same(np.bitwise_or, *BITS),
    "xor": same(np.bitwise_xor, *BITS),
    "not": same(np.invert, *BITS),
    "shl": _shift(left=True),
    "shr": _shift(left=False),
    "shf": _funnel_shift,
    "lop3": _lop3,
    "bfe": _extract,
    "bfi": _insert,
    "prmt": _permute,
    "popc": _counting(_ones),
    "clz": _counting(lambda x: np.uint32(8 * x.dtype.itemsize) - _ones(_smeared(x))),
    "bfind": _highest,
    "brev": lambda program, i: assign(program.written(i.operands[0], i.type, i), _reversed_bits, [program.read(i.operands[1], i.type, i)]),
}
