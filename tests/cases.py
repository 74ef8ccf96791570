"""The one table of problems that drives the tests and the benchmarks, in the text form of ``numbaconv.Problem``.

``CASES`` is a tuple of texts.  The helpers below it make inputs for a case and call the public function with them.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

import numbaconv
from numbaconv import Problem

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TOKENS = ("f64", "f32", "f16", "bf16", "c64", "c128", "s8", "s16", "s32", "s64", "u8")
NARROW = ("s8", "s16", "u8")
FLOAT_NAMES = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")

AxisValues = int | Sequence[int]
Padding = int | Sequence[int | tuple[int, int]]


def case(
    direction: str, size: Sequence[int], kernel: Sequence[int], *, t: str = "f32", mb: int = 1, g: int = 1, ic: int = 2, oc: int = 3,
    s: AxisValues = 1, p: Padding = 0, d: AxisValues = 1, mode: str = "zeros", b: int = 0, op: AxisValues = 0,
) -> str:  # fmt: skip
    """One case's text; ``size`` is that of the function's input (for ``igrad`` the text's sizes are those of its result)."""
    rank = len(size)
    axes = "dhw"[3 - rank :]
    steps, gaps, extra = (values(v, rank) for v in (s, d, op))
    pairs = [pad if isinstance(pad, tuple) else (pad, pad) for pad in ([p] * rank if isinstance(p, int) else p)]
    if direction == "igrad":
        size = [
            (n - 1) * step + gap * (k - 1) + 1 + o - lo - hi
            for n, k, step, gap, (lo, hi), o in zip(size, kernel, steps, gaps, pairs, extra)
        ]
    sizes = "".join(f"i{axis}{n}" for axis, n in zip(axes, size))
    kernels = "".join(f"k{axis}{n}" for axis, n in zip(axes, kernel))
    padding = "x".join(f"{lo}:{hi}" for lo, hi in pairs)
    text = f"{t}_{direction}_mb{mb}g{g}_ic{ic}{sizes}_oc{oc}{kernels}_s{by(steps)}_p{padding}_d{by(gaps)}_{mode}_b{b}"
    return text + (f"_op{by(extra)}" if direction == "igrad" else "")


def values(value: AxisValues, rank: int) -> list[int]:
    return [value] * rank if isinstance(value, int) else list(value)


def by(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


BOTH = ("fwd", "igrad")
SMALL = {1: (9,), 2: (5, 7), 3: (3, 5, 6)}
THREES = {1: (3,), 2: (3, 3), 3: (3, 3, 3)}


def _kernels() -> Iterator[str]:
    for direction in BOTH:
        for k in range(1, 8):
            yield case(direction, (11,), (k,), p=k // 2, b=k % 2)
        for kernel in ((1, 1), (1, 3), (3, 1), (2, 2), (2, 5), (4, 3), (5, 5), (7, 6)):
            yield case(direction, (8, 9), kernel, p=(kernel[0] // 2, (kernel[1] // 2, (kernel[1] - 1) // 2)), b=1)
        for kernel in ((1, 1, 1), (1, 3, 3), (3, 1, 1), (2, 2, 2), (3, 3, 3), (4, 1, 2), (5, 4, 3)):
            yield case(direction, (5, 4, 6), kernel, p=tuple(k // 2 for k in kernel), b=1)
    # A kernel beyond the input, reached by padding; padding beyond the kernel; an input of one cell.
    yield case("fwd", (2, 2), (5, 5), p=2)
    yield case("fwd", (3,), (7,), p=((4, 2),))
    yield case("fwd", (2, 3, 2), (4, 3, 5), p=(1, 0, 2))
    yield case("fwd", (2, 2), (3, 3), p=5, b=1)
    yield case("igrad", (2, 2), (5, 5), p=((1, 0), 2))
    for direction, rank in itertools.product(BOTH, (1, 2, 3)):
        yield case(direction, (1,) * rank, (1,) * rank, b=1)
        yield case(direction, (1,) * rank, (3,) * rank, p=1, ic=3, oc=5)


def _lanes() -> Iterator[str]:
    """Widths and channel counts on both sides of 4, 8, 16 and 48 lanes."""
    for n in (3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49):
        yield case("fwd", (3, n), (3, 3), p=1)
        yield case("igrad", (3, n), (3, 3), p=1)
        yield case("fwd", (2, 5), (2, 3), ic=n, oc=3)
        yield case("fwd", (2, 5), (2, 3), ic=3, oc=n, b=1)
        yield case("igrad", (2, 5), (2, 3), ic=n, oc=3, b=1)
        yield case("igrad", (2, 5), (2, 3), ic=3, oc=n)
    for n in (15, 16, 17, 47, 48, 49):
        yield case("fwd", (n, 3), (3, 3), ic=n, oc=n, p=1, t="f64")
        yield case("fwd", (n,), (3,), ic=n, oc=n, s=2, p=1)
        yield case("fwd", (2, 3, n), (1, 3, 3), ic=5, oc=n, p=(0, 1, 1))
        yield case("fwd", (1, n), (1, 1), ic=n, oc=n, t="f64")


def _geometry() -> Iterator[str]:
    """Stride, dilation and padding together, equal and unequal along the axes and at the two ends of one axis."""
    strides = (1, 2, 3, (1, 2))
    dilations = (1, 2, (2, 1))
    paddings = (0, 1, (2, 0), ((0, 2), (1, 0)))
    for direction, s, d, p in itertools.product(BOTH, strides, dilations, paddings):
        yield case(direction, (7, 8), (3, 2), s=s, d=d, p=p, b=int(s == 1))
    for direction, s, d, p in itertools.product(BOTH, (1, 2, (2, 1, 3)), (1, (1, 3, 2)), (0, ((1, 2), 0, (0, 1)))):
        yield case(direction, (4, 7, 6), (2, 3, 2), s=s, d=d, p=p)
    for direction, s, d in itertools.product(BOTH, (1, 4, 9), (1, 4)):
        yield case(direction, (17,), (4,), s=s, d=d, p=((3, 1),), b=1)
    for s, d, op in ((2, 1, 1), (3, 1, 2), (1, 2, 1), (2, 3, 2), ((2, 3), 1, (1, 0)), ((1, 2), (3, 1), (2, 1))):
        yield case("igrad", (3, 4), (3, 2), s=s, d=d, op=op, b=1)
        yield case("igrad", (3, 4), (3, 2), s=s, d=d, op=op, p=1)
    yield case("igrad", (3, 2, 3), (2, 3, 2), s=2, op=1, p=1, b=1)
    yield case("igrad", (5,), (2,), s=4, op=3, b=1)  # cells that no tap reaches: their bias alone
    for b in (0, 1):
        yield case("igrad", (1,), (1,), s=3, p=1, op=2, b=b)  # nothing but such cells
    for t in ("f32", "f16", "c64"):
        yield case("igrad", (4, 3), (1, 2), s=(2, 3), op=(1, 2), ic=3, oc=9, mb=2, t=t)  # and nothing
    yield case("fwd", (64, 65), (2, 2), s=31)
    yield case("fwd", (9, 9), (2, 2), s=1000, p=1)


def _groups() -> Iterator[str]:
    counts = ((2, 4, 6), (3, 3, 3), (4, 4, 8), (5, 15, 10), (16, 16, 16), (17, 17, 17), (3, 6, 3), (2, 32, 48))
    for direction, (g, ic, oc), rank in itertools.product(BOTH, counts, (1, 2, 3)):
        yield case(direction, SMALL[rank], THREES[rank], g=g, ic=ic, oc=oc, p=1, b=1)
    for direction in BOTH:
        yield case(direction, (6, 7), (3, 3), g=4, ic=4, oc=4, s=2, d=2, p=2)
        yield case(direction, (6, 49), (5, 5), g=3, ic=3, oc=3, p=2, t="f64", b=1)
        yield case(direction, (6, 7), (3, 3), ic=1, oc=1, p=1)
        yield case(direction, (6, 7), (3, 3), ic=1, oc=8, p=1)
        yield case(direction, (6, 7), (3, 3), ic=8, oc=1, p=1)


def _padding_modes() -> Iterator[str]:
    """Each mode inside its limit and at it (reflect: size - 1; circular: size; replicate: none), unequal ends, stride, dilation."""
    limit = {"reflect": lambda n: n - 1, "replicate": lambda n: n + 3, "circular": lambda n: n}
    for mode, most in limit.items():
        for size in SMALL.values():
            rank = len(size)
            yield case("fwd", size, THREES[rank], p=1, mode=mode, b=1)
            yield case("fwd", size, (2,) * rank, p=tuple(most(n) for n in size), mode=mode)
            yield case("fwd", size, (2,) * rank, p=tuple((most(n), 0) for n in size), mode=mode, s=2)
            yield case("fwd", size, (2,) * rank, p=tuple((1, 2) for _ in size), mode=mode, d=2, t="f64")
        yield case("fwd", (5, 48), (3, 3), g=3, ic=6, oc=6, p=(0, 5), mode=mode)
        yield case("fwd", (1, 2), (1, 2), p=(0, 1), mode=mode)
        yield case("fwd", (5, 6), (3, 3), p=2, mode=mode, mb=0)
        for t in ("f16", "bf16", "c128", "s8", "s64"):
            yield case("fwd", (5, 6), (3, 3), p=2, mode=mode, t=t)
    yield case("fwd", (1, 1), (3, 3), p=1, mode="circular")
    yield case("fwd", (1, 1), (3, 3), p=4, mode="replicate")


def _batches() -> Iterator[str]:
    for direction, mb, rank in itertools.product(BOTH, (0, 3), (1, 2, 3)):
        yield case(direction, SMALL[rank], (2,) * rank, mb=mb, p=1, b=1)
    for t, b, rank in itertools.product(("f32", "s16"), (0, 1), (1, 2, 3)):
        yield case("fwd", SMALL[rank], (2,) * rank, ic=0, b=b, t=t)
    yield case("fwd", (5, 6), (2, 2), ic=0, oc=4, g=2, b=1, mb=2)
    yield case("fwd", (5, 6), (2, 2), ic=0, mb=0)


def _dtypes() -> Iterator[str]:
    wide = tuple(f"{t}-s32" for t in NARROW)
    for direction, t in itertools.product(BOTH, TOKENS + wide):
        yield case(direction, (13,), (4,), ic=6, oc=4, g=2, s=2, t=t, mb=2)
        yield case(direction, (6, 17), (3, 3), ic=3, oc=5, p=1, b=1, t=t)
        yield case(direction, (3, 4, 5), (2, 3, 2), ic=2, oc=3, p=(1, 0, 1), d=(1, 1, 2), b=1, t=t)
    for direction, t in itertools.product(BOTH, ("f64", "f16", "bf16", "c64", "s8", "s32", "s64", "u8")):
        yield case(direction, (5, 7), (3, 3), ic=4, oc=4, g=4, p=1, t=t)
        yield case(direction, (3, 3), (3, 3), ic=65, oc=33, p=1, t=t, b=1)


def _long_sums() -> Iterator[str]:
    """More products a sum than any block of channels holds."""
    yield case("fwd", (2, 3), (1, 1), ic=641, oc=9, b=1)
    yield case("fwd", (2, 3), (1, 1), ic=1300, oc=5, t="f64")
    yield case("fwd", (3, 3), (3, 3), ic=130, oc=17, p=1)
    yield case("fwd", (3, 3, 3), (3, 3, 3), ic=50, oc=9, p=1, b=1)
    yield case("fwd", (4000,), (3999,), ic=1, oc=2)
    yield case("igrad", (2, 3), (1, 1), ic=9, oc=641, b=1)
    yield case("igrad", (3, 3), (3, 3), ic=17, oc=130, p=1)
    yield case("igrad", (3, 3, 3), (3, 3, 3), ic=9, oc=50, p=1, t="f64")
    yield case("igrad", (2,), (1999,), ic=2, oc=1)
    for t in ("f16", "bf16", "s8", "u8-s32", "c64"):
        yield case("fwd", (2, 2), (3, 3), ic=300, oc=4, p=1, t=t)


def _layers() -> Iterator[str]:
    """Shrunken layers of well-known networks."""
    yield case("fwd", (30, 31), (7, 7), ic=3, oc=16, s=2, p=3)  # ResNet's first
    yield case("fwd", (14, 14), (3, 3), ic=32, oc=32, p=1, b=1)
    yield case("fwd", (14, 14), (1, 1), ic=64, oc=96)
    yield case("fwd", (14, 14), (1, 1), ic=32, oc=48, s=2)
    yield case("fwd", (20, 21), (5, 5), ic=24, oc=24, g=24, p=2)  # depthwise
    yield case("fwd", (9, 10), (3, 3), ic=32, oc=32, p=6, d=6)  # DeepLab
    yield case("fwd", (14, 15), (3, 3), ic=64, oc=64, g=16, p=1)  # ResNeXt
    yield case("fwd", (8, 9, 10), (3, 3, 3), ic=16, oc=24, p=1, b=1)  # 3-D U-Net
    yield case("fwd", (6, 12, 13), (3, 7, 7), ic=1, oc=16, s=(1, 2, 2), p=(1, 3, 3))
    yield case("fwd", (9, 8, 8), (3, 1, 1), ic=16, oc=16, p=(1, 0, 0))  # (2 + 1)-D
    yield case("fwd", (12, 13, 14), (7, 7, 7), ic=1, oc=4, p=3)  # a bank of 3-D filters
    yield case("fwd", (100,), (9,), ic=40, oc=50, p=4, b=1)
    yield case("fwd", (2000,), (10,), ic=1, oc=16, s=5)  # a waveform
    yield case("igrad", (7, 8), (4, 4), ic=16, oc=32, s=2, p=1, b=1)  # DCGAN
    yield case("igrad", (4, 5, 6), (2, 2, 2), ic=8, oc=16, s=2, b=1)  # 3-D U-Net, up
    yield case("igrad", (50,), (16,), ic=8, oc=16, s=8, p=4)


CASES = tuple(
    dict.fromkeys(
        itertools.chain(
            _kernels(), _lanes(), _geometry(), _groups(), _padding_modes(), _batches(), _dtypes(), _long_sums(), _layers()
        )
    )
)  # fmt: skip
PROBLEMS = tuple(map(Problem.parse, CASES))


# ---- inputs and calls ------------------------------------------------------------------------------------------------
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def dtype_of(name: str) -> np.dtype:
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def integer_arrays(p: Problem) -> Arrays:
    """Source, weight and bias whose sums are exact: every value of an integer dtype, small whole numbers otherwise.

    The magnitudes, 4 and 3, keep a sum of 2**20 products below 2**24: exact in float32, in any order, with or without fma.
    A float16 or bfloat16 result is then that sum rounded once.
    """
    rng = _generator(p)
    return _arrays(p, lambda shape, most: _whole(rng, shape, dtype_of(p.dtype), most))


def normal_arrays(p: Problem) -> Arrays:
    """Source, weight and bias drawn from the normal distribution (float and complex dtypes)."""
    rng = _generator(p)

    def normal(shape: tuple[int, ...], most: int) -> np.ndarray:
        numbers = rng.standard_normal(shape)
        return (numbers + 1j * rng.standard_normal(shape) if p.dtype.startswith("complex") else numbers).astype(dtype_of(p.dtype))

    return _arrays(p, normal)


def call(p: Problem, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, **options: Any) -> np.ndarray:
    """The public function for the problem, with every argument spelt out."""
    options |= arguments(p)
    if p.out_dtype != p.dtype:
        options["out_dtype"] = dtype_of(p.out_dtype)
    function = getattr(numbaconv, f"conv{'_transpose' * p.transposed}{p.rank}d")
    return function(x, w, b, **options)


def arguments(p: Problem) -> dict[str, Any]:
    """The keyword arguments of the problem, beside the arrays."""
    first = 3 - p.rank
    own = {"output_padding": p.output_padding[first:]} if p.transposed else {"padding_mode": p.padding_mode}
    return {"stride": p.stride[first:], "padding": p.padding[first:], "dilation": p.dilation[first:], "groups": p.groups} | own


def _generator(p: Problem) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(p).encode()))


def _whole(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, most: int) -> np.ndarray:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    numbers = rng.integers(-most, most, shape, endpoint=True)
    return (numbers + 1j * rng.integers(-most, most, shape, endpoint=True) if dtype.kind == "c" else numbers).astype(dtype)


def _arrays(p: Problem, make: Any) -> Arrays:
    bias = make((p.result_channels,), 9) if p.bias else None
    return make(p.source_shape, 4), make(p.weight_shape, 3), bias
