"""The PTX emulator itself, on short kernels written by hand: every instruction's values, every fault, the orders of the warps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from .emulator import Fault
from .snippets import evaluate

RNG = np.random.default_rng(0)
ints = {
    kind: np.concatenate(
        [
            np.array([0, 1, 2, 3, np.iinfo(kind).max, np.iinfo(kind).min, np.iinfo(kind).max - 1], kind),
            RNG.integers(np.iinfo(kind).min, np.iinfo(kind).max, 57, kind, endpoint=True),
        ]
    )
    for kind in ("i2", "u2", "i4", "u4", "i8", "u8")
}
floats = {
    kind: np.concatenate(
        [
            np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, np.finfo(kind).tiny / 2, np.finfo(kind).max, np.finfo(kind).tiny], kind),
            (RNG.standard_normal(54) * 10.0 ** RNG.integers(-4, 4, 54)).astype(kind),
        ]
    )
    for kind in ("f2", "f4", "f8")
}


def dtype(kind: str) -> str:
    return f"{'i' if kind[0] == 's' else 'u' if kind[0] in 'ub' else 'f'}{int(kind[1:]) // 8}"


def values(kind: str) -> np.ndarray:
    return (floats if kind[0] == "f" else ints)[dtype(kind)]


def pair(kind: str) -> tuple[np.ndarray, np.ndarray]:
    first = values(kind)
    return first, np.roll(first, 5)[RNG.permutation(len(first))]


def exact(a: np.ndarray, b: np.ndarray, f: Any, kind: str) -> np.ndarray:
    """``f`` on Python's integers, wrapped to ``kind``."""
    bits = int(kind[1:])
    wrapped = [f(int(x), int(y)) % (1 << bits) for x, y in zip(a, b)]
    return np.array(wrapped, f"u{bits // 8}").view(dtype(kind))


# Integers --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize(
    "name, f",
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul.lo", lambda a, b: a * b),
        ("min", min),
        ("max", max),
    ],
)
def test_integers_wrap_around(kind: str, name: str, f: Any) -> None:
    a, b = pair(kind)
    np.testing.assert_array_equal(evaluate(f"{name}.{kind} $, $, $;", kind, (kind, a), (kind, b)), exact(a, b, f, kind))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_upper_half_of_a_product(kind: str) -> None:
    a, b = pair(kind)
    expected = exact(a, b, lambda x, y: x * y >> int(kind[1:]), kind)
    np.testing.assert_array_equal(evaluate(f"mul.hi.{kind} $, $, $;", kind, (kind, a), (kind, b)), expected)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(kind: str) -> None:
    a, b = pair(kind)
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    c = values(wide)
    expected = exact(a, b, lambda x, y: x * y, wide)
    np.testing.assert_array_equal(evaluate(f"mul.wide.{kind} $, $, $;", wide, (kind, a), (kind, b)), expected)
    added = exact(expected, c, lambda x, y: x + y, wide)
    np.testing.assert_array_equal(evaluate(f"mad.wide.{kind} $, $, $, $;", wide, (kind, a), (kind, b), (wide, c)), added)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_division_goes_towards_zero(kind: str) -> None:
    a, b = pair(kind)
    b = np.where(b == 0, 7, b).astype(b.dtype)
    quotient = lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)  # noqa: E731
    np.testing.assert_array_equal(evaluate(f"div.{kind} $, $, $;", kind, (kind, a), (kind, b)), exact(a, b, quotient, kind))
    rest = exact(a, b, lambda x, y: x - y * quotient(x, y), kind)
    np.testing.assert_array_equal(evaluate(f"rem.{kind} $, $, $;", kind, (kind, a), (kind, b)), rest)
    with pytest.raises(Fault, match="division by zero"):
        evaluate(f"div.{kind} $, $, $;", kind, (kind, a), (kind, np.zeros_like(b)))


def test_carries() -> None:
    """128-bit sums and differences of two 64-bit words."""
    low, high = ints["u8"], np.roll(ints["u8"], 11)
    other, upper = np.roll(low, 3), np.roll(high, 7)
    operands = (("u64", low), ("u64", high), ("u64", other), ("u64", upper))
    for name, f in (("add", lambda x, y: x + y), ("sub", lambda x, y: x - y)):
        result = evaluate(f"{name}.cc.u64 %d30, %d11, %d13; {name}c.u64 %d10, %d12, %d14;", "u64", *operands)
        both = [f(int(h) << 64 | int(x), int(u) << 64 | int(o)) >> 64 for x, h, o, u in zip(low, high, other, upper)]
        np.testing.assert_array_equal(result, np.array([value % (1 << 64) for value in both], np.uint64))


@pytest.mark.parametrize("kind", ["b32", "b64", "u32", "s32", "u64", "s64"])
def test_shifts_by_the_width_and_more(kind: str) -> None:
    a = values(kind)
    width = int(kind[1:])
    by = np.resize(np.array([0, 1, 5, width - 1, width, width + 1, 200], np.uint32), a.size)
    bits = f"b{width}"
    expected = exact(a, by, lambda x, n: x << n, kind)
    np.testing.assert_array_equal(evaluate(f"shl.{bits} $, $, $;", kind, (kind, a), ("u32", by)), expected)
    expected = exact(a, by, lambda x, n: x >> n, kind)
    np.testing.assert_array_equal(evaluate(f"shr.{kind} $, $, $;", kind, (kind, a), ("u32", by)), expected)
    np.testing.assert_array_equal(evaluate(f"shr.{kind} $, $, 3;", kind, (kind, a)), a >> a.dtype.type(3))


def test_funnel_shift() -> None:
    low, high = pair("u32")
    by = np.resize(np.array([0, 1, 8, 31, 32, 40], np.uint32), low.size)
    for mode, limit in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        both = [(int(h) << 32 | int(x), limit(int(n))) for x, h, n in zip(low, high, by)]
        left = evaluate(f"shf.l.{mode}.b32 $, $, $, $;", "b32", ("b32", low), ("b32", high), ("u32", by))
        np.testing.assert_array_equal(left, np.array([(x << n >> 32) % (1 << 32) for x, n in both], np.uint32))
        right = evaluate(f"shf.r.{mode}.b32 $, $, $, $;", "b32", ("b32", low), ("b32", high), ("u32", by))
        np.testing.assert_array_equal(right, np.array([(x >> n) % (1 << 32) for x, n in both], np.uint32))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields_of_bits(kind: str) -> None:
    a, other = pair(kind)
    width = int(kind[1:])
    at = np.resize(np.array([0, 3, width - 4, width], np.uint32), a.size)
    length = np.resize(np.array([0, 1, 9, width, 5], np.uint32), a.size)

    def field(x: int, position: int, size: int) -> int:
        bits = [x >> min(position + n, width - 1 if kind[0] == "s" else position + n) & 1 for n in range(size)]
        if kind[0] == "u":
            bits = [bit if position + n < width else 0 for n, bit in enumerate(bits)]
        value = sum(bit << n for n, bit in enumerate(bits))
        return value - (bits[-1] << size) if size and kind[0] == "s" else value

    expected = np.array([field(int(x), int(p), int(n)) for x, p, n in zip(a, at, length)], object)
    result = evaluate(f"bfe.{kind} $, $, $, $;", kind, (kind, a), ("u32", at), ("u32", length))
    np.testing.assert_array_equal(result.astype(object), expected)
    bits, unsigned = f"b{width}", a.view(f"u{width // 8}")
    into = other.view(unsigned.dtype)
    inserted = []
    for x, y, p, n in zip(unsigned, into, at, length):
        ones = ((1 << int(n)) - 1) << int(p) & ((1 << width) - 1)
        inserted.append(int(y) & ~ones | (int(x) << int(p)) & ones)
    result = evaluate(f"bfi.{bits} $, $, $, $, $;", bits, (bits, unsigned), (bits, into), ("u32", at), ("u32", length))
    np.testing.assert_array_equal(result, np.array(inserted, unsigned.dtype))


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_counts_of_bits(kind: str) -> None:
    a = values(kind)
    width = int(kind[1:])
    count = lambda f: np.array([f(int(x)) for x in a], np.uint32)  # noqa: E731
    np.testing.assert_array_equal(evaluate(f"popc.{kind} $, $;", "u32", (kind, a)), count(lambda x: x.bit_count()))
    np.testing.assert_array_equal(evaluate(f"clz.{kind} $, $;", "u32", (kind, a)), count(lambda x: width - x.bit_length()))
    highest = count(lambda x: (x.bit_length() - 1) % (1 << 32))
    np.testing.assert_array_equal(evaluate(f"bfind.u{width} $, $;", "u32", (kind, a)), highest)
    turned = np.array([int(f"{int(x):0{width}b}"[::-1], 2) for x in a], a.dtype)
    np.testing.assert_array_equal(evaluate(f"brev.{kind} $, $;", kind, (kind, a)), turned)


def test_bytes_are_permuted() -> None:
    a, b = pair("b32")
    expected = []
    for x, y in zip(a, b):
        pool = int(x).to_bytes(4, "little") + int(y).to_bytes(4, "little")
        expected.append(int.from_bytes([pool[6], pool[1], 255 if pool[4] & 128 else 0, pool[3]], "little"))
    result = evaluate("prmt.b32 $, $, $, 0x3C16;", "b32", ("b32", a), ("b32", b))
    np.testing.assert_array_equal(result, np.array(expected, np.uint32))


def test_any_function_of_three_bits() -> None:
    a, b = pair("b32")
    c = np.roll(b, 9)
    operands = (("b32", a), ("b32", b), ("b32", c))
    for table, expected in ((0x80, a & b & c), (0xFE, a | b | c), (0x96, a ^ b ^ c), (0xCA, (a & b) | (~a & c)), (0x1E, a ^ (b | c))):
        np.testing.assert_array_equal(evaluate(f"lop3.b32 $, $, $, $, {table};", "b32", *operands), expected)


def test_products_of_bytes() -> None:
    a, b, c = ints["i4"], np.roll(ints["i4"], 3), np.roll(ints["i4"], 8)
    sums = (a.view(np.int8).reshape(-1, 4).astype(np.int64) * b.view(np.int8).reshape(-1, 4)).sum(1) + c
    result = evaluate("dp4a.s32.s32 $, $, $, $;", "s32", ("s32", a), ("s32", b), ("s32", c))
    np.testing.assert_array_equal(result, sums.astype(np.int32))


# Floats ----------------------------------------------------------------------------------------------------------------------------------


def once_rounded(a: float, b: float, c: float) -> np.float32:
    """a * b + c in exact rational arithmetic, rounded to float32, ties to even."""
    from fractions import Fraction

    value = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    guess = np.float32(float(value))  # at most one ulp off
    candidates = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    return min(candidates, key=lambda x: (abs(Fraction(float(x)) - value), int(x.view(np.uint32)) & 1))


def test_fused_multiply_add_rounds_once() -> None:
    """Among the cases are those where float64 in between gives another result."""
    a, b = (RNG.standard_normal(256).astype(np.float32) for _ in range(2))
    c = RNG.standard_normal(256).astype(np.float32) * np.float32(2.0) ** RNG.integers(-30, 30, 256).astype(np.float32)
    # 1 + 2**-23 + 2**-24 (a tie in float32) plus or minus 2**-60, which float64 cannot hold
    a[:2], b[:2] = np.float32(2**-30), np.float32([2**-30, -(2**-30)])
    c[:2] = np.float32(1)
    halves = np.float32(1 + 2**-12)  # its square is 1 + 2**-11 + 2**-24: a tie
    a[2:6], b[2:6] = halves, halves
    c[2:6] = np.float32([2**-60, -(2**-60), 0, 2**-23])
    a[6:8], b[6:8], c[6:8] = np.float32(2**-75), np.float32([2**-75, 1.5 * 2**-75]), np.float32(2**-140)
    expected = np.array([once_rounded(*abc) for abc in zip(a, b, c)])
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert np.count_nonzero(twice != expected) >= 1
    result = evaluate("fma.rn.f32 $, $, $, $;", "f32", ("f32", a), ("f32", b), ("f32", c))
    np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))


def test_fused_multiply_add_of_float64() -> None:
    a = np.array([1 + 2.0**-30, 3.0])
    result = evaluate("fma.rn.f64 $, $, $, $;", "f64", ("f64", a), ("f64", a), ("f64", -(a * a)))
    np.testing.assert_array_equal(result, [2.0**-60, 0])


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_float_arithmetic(kind: str) -> None:
    a, b = pair(kind)
    with np.errstate(all="ignore"):
        for name, expected in (
            ("add.rn", a + b),
            ("sub.rn", a - b),
            ("mul.rn", a * b),
            ("div.rn", a / b),
            ("min", np.fmin(a, b)),
            ("max", np.fmax(a, b)),
        ):
            np.testing.assert_array_equal(evaluate(f"{name}.{kind} $, $, $;", kind, (kind, a), (kind, b)), expected, name)
        for name, expected in (("neg", -a), ("abs", abs(a)), ("sqrt.rn", np.sqrt(a)), ("rcp.rn", 1 / a)):
            np.testing.assert_array_equal(evaluate(f"{name}.{kind} $, $;", kind, (kind, a)), expected, name)


def test_a_padded_zero_times_infinity_is_nan() -> None:
    result = evaluate("fma.rn.f32 $, $, $, $;", "f32", *(("f32", np.array([x], np.float32)) for x in (0, np.inf, 1)))
    assert np.isnan(result[0])


def test_subnormals_are_kept_unless_ftz() -> None:
    tiny = np.float32([1e-40, -1e-40, 1.0])
    one = np.ones(3, np.float32)
    np.testing.assert_array_equal(evaluate("mul.f32 $, $, $;", "f32", ("f32", tiny), ("f32", one)), tiny)
    np.testing.assert_array_equal(evaluate("mul.ftz.f32 $, $, $;", "f32", ("f32", tiny), ("f32", one)), np.float32([0, 0, 1]))


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"])
def test_comparisons_with_nan(name: str) -> None:
    a, b = pair("f32")
    a, b = np.append(a, [np.nan, np.nan, 1, 1]).astype(np.float32), np.append(b, [np.nan, 1, np.nan, 1]).astype(np.float32)
    unordered = np.isnan(a) | np.isnan(b)
    ordered = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    expected = {"num": ~unordered, "nan": unordered}.get(name)
    if expected is None:
        expected = ordered[name] & ~unordered if name in ordered else ordered[name[:2]] | unordered
    result = evaluate(f"setp.{name}.f32 %p1, %f11, %f12; selp.u32 %r10, 1, 0, %p1;", "u32", ("f32", a), ("f32", b))
    np.testing.assert_array_equal(result, expected)


def test_comparisons_combined() -> None:
    a, b = pair("s32")
    text = "setp.gt.s32 %p3, %r11, 0; setp.lt.and.s32 %p1|%p2, %r11, %r12, !%p3; selp.u32 %r1, 1, 0, %p1; selp.u32 %r2, 2, 0, %p2;"
    result = evaluate(f"{text} add.u32 %r10, %r1, %r2;", "u32", ("s32", a), ("s32", b))
    np.testing.assert_array_equal(result, np.where(a > 0, 0, np.where(a < b, 1, 2)))


# Conversions -----------------------------------------------------------------------------------------------------------------------------


def test_float16_is_rounded_to_even() -> None:
    x = np.concatenate([floats["f4"], np.float32([1 + 2**-11, 1 + 3 * 2**-11, 65519, 65520, 2**-25, 1.5 * 2**-25, 6e-8])])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    np.testing.assert_array_equal(evaluate("cvt.rn.f16.f32 $, $;", "f16", ("f32", x)), expected)
    assert evaluate("cvt.rn.f16.f32 $, $;", "f16", ("f32", np.float32([1 + 2**-11])))[0] == 1  # the tie goes to even
    np.testing.assert_array_equal(evaluate("cvt.f32.f16 $, $;", "f32", ("f16", floats["f2"])), floats["f2"].astype(np.float32))


def test_bfloat16_is_rounded_to_even() -> None:
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7F800001, 0x80000001], np.uint32)
    expected = np.array([0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0x7FFF, 0x7FFF, 0x8000], np.uint16)
    np.testing.assert_array_equal(evaluate("cvt.rn.bf16.f32 $, $;", "bf16", ("f32", bits.view(np.float32))), expected)
    back = evaluate("cvt.f32.bf16 $, $;", "f32", ("bf16", expected))
    np.testing.assert_array_equal(back.view(np.uint32), expected.astype(np.uint32) << 16)
    both = evaluate("cvt.rn.bf16x2.f32 $, $, $;", "b32", ("f32", bits.view(np.float32)), ("f32", bits[::-1].copy().view(np.float32)))
    np.testing.assert_array_equal(both, expected.astype(np.uint32) << 16 | expected[::-1])


def test_directed_rounding() -> None:
    x = np.array([1 + 2.0**-30, -1 - 2.0**-30, 0.5, 1 - 2.0**-30])
    above, below = np.nextafter(np.float32(1), np.float32(2)), np.nextafter(np.float32(1), np.float32(0))
    for mode, expected in {
        "rn": [1, -1, 0.5, 1],
        "rz": [1, -1, 0.5, below],
        "rm": [1, -above, 0.5, below],
        "rp": [above, -1, 0.5, 1],
    }.items():
        np.testing.assert_array_equal(evaluate(f"cvt.{mode}.f32.f64 $, $;", "f32", ("f64", x)), np.float32(expected), mode)


def test_floats_to_integers() -> None:
    x = np.float32([2.5, 3.5, -2.5, 2.7, -2.7, np.nan, np.inf, -np.inf, 3e9, -3e9, 5e9, 0.49])
    for mode, f in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        for kind in ("s32", "u32", "s64", "u64", "s16"):
            info = np.iinfo(dtype(kind))
            whole = [0 if math.isnan(v) else max(info.min, min(info.max, int(f(np.clip(v, -1e30, 1e30))))) for v in x.astype(float)]
            result = evaluate(f"cvt.{mode}.{kind}.f32 $, $;", kind, ("f32", x))
            np.testing.assert_array_equal(result, np.array(whole, dtype(kind)), f"{mode} {kind}")
    np.testing.assert_array_equal(evaluate("cvt.rni.f32.f32 $, $;", "f32", ("f32", x)), np.rint(x))


def test_integers_to_floats_and_integers() -> None:
    big = np.array([2**24 + 1, 2**24 + 3, -(2**24) - 1, 2**62 + 1], np.int64)
    np.testing.assert_array_equal(evaluate("cvt.rn.f32.s64 $, $;", "f32", ("s64", big)), big.astype(np.float32))
    np.testing.assert_array_equal(evaluate("cvt.s64.s32 $, $;", "s64", ("s32", ints["i4"])), ints["i4"])
    np.testing.assert_array_equal(evaluate("cvt.u64.u32 $, $;", "u64", ("u32", ints["u4"])), ints["u4"])
    np.testing.assert_array_equal(evaluate("cvt.u32.u64 $, $;", "u32", ("u64", ints["u8"])), ints["u8"].astype(np.uint32))
    np.testing.assert_array_equal(evaluate("cvt.s32.s8 $, $;", "s32", ("b32", ints["u4"])), ints["u4"].astype(np.int8))
    np.testing.assert_array_equal(evaluate("cvt.u16.u8 $, $;", "u16", ("b32", ints["u4"])), ints["u4"].astype(np.uint8))
    np.testing.assert_array_equal(evaluate("cvt.sat.u16.s32 $, $;", "u16", ("s32", ints["i4"])), np.clip(ints["i4"], 0, 65535))


def test_registers_in_parts() -> None:
    a, b = pair("u32")
    both = evaluate("mov.b64 $, {$, $};", "b64", ("u32", a), ("u32", b))
    np.testing.assert_array_equal(both, b.astype(np.uint64) << np.uint64(32) | a)
    np.testing.assert_array_equal(evaluate("mov.b64 {_, $}, %d11;", "b32", ("b64", both)), b)
    swapped = "mov.b32 {%h1, %h2}, %r11; mov.b32 %r10, {%h2, %h1};"
    np.testing.assert_array_equal(evaluate(swapped, "b32", ("b32", a)), a << 16 | a >> 16)
    shifted = evaluate("mov.b32 $, {0, $};", "f32", ("b16", ints["u2"]))
    np.testing.assert_array_equal(shifted.view(np.uint32), ints["u2"].astype(np.uint32) << 16)


def test_immediate_values() -> None:
    one = np.zeros(1, np.uint32)
    assert evaluate("mov.f32 %f10, 0fBF800000;", "f32", ("u32", one))[0] == -1
    assert evaluate("mov.f64 %g10, 0d3FF8000000000000;", "f64", ("u32", one))[0] == 1.5
    assert evaluate("mov.b32 %r10, 0f3F800000;", "u32", ("u32", one))[0] == 0x3F800000
    assert evaluate("mov.u32 %r10, -1;", "u32", ("u32", one))[0] == 0xFFFFFFFF
    negative = evaluate("mov.f32 %f1, 0f00000000; mov.f32 %f10, 0f80000000; add.f32 %f10, %f10, 0f80000000;", "f32", ("u32", one))
    assert np.signbit(negative[0])  # 0 and -0 are different constants
    assert evaluate("mov.u64 %d10, 0xFFFFFFFFFFFFFFFF; shr.u64 %d10, %d10, 4;", "u64", ("u32", one))[0] == (1 << 60) - 1
