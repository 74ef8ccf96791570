"""Depthwise convolutions and banks of filters on a device: edges of the threads' columns, layouts, what is not finite, machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, reference

from ..cases import arguments, case, integer_arrays, normal_arrays
from ..checks import assert_same
from ..layouts import channels_last
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv.cuda import depthwise, depthwise_kernels, depthwise_march

from . import sass
from .compiled import code_of
from .device import get, put

ORDERS = ("forward", "reverse", "random:1")


def dw(direction: str, size: Any, kernel: Any, channels: int = 3, each: int = 1, **options: Any) -> str:
    return case(direction, size, kernel, g=channels, ic=channels, oc=channels * each, **options)


TEXTS = (
    dw("fwd", (17, 33), (3, 3), p=1, mb=2, b=1),  # a row and a column more than whole threads hold
    dw("fwd", (7, 7), (3, 3), 8, p=1, b=1),
    dw("fwd", (9, 11), (3, 3), 4, s=2, p=1, b=1),
    dw("fwd", (9, 11), (3, 3), 2, s=(1, 3), p=((2, 0), (0, 1)), d=(2, 1)),
    dw("fwd", (10, 9), (3, 3), 2, each=3, p=1, b=1),  # by filter
    dw("fwd", (5, 6, 7), (3, 3, 3), 4, p=1, b=1),
    dw("fwd", (5, 6, 7), (2, 3, 3), 2, s=2, p=(0, 1, 1), d=(2, 1, 1)),
    dw("fwd", (21,), (5,), 4, p=2, b=1),
    dw("fwd", (5, 6, 7), (3, 3, 3), 2, p=2, mode="replicate"),
    dw("fwd", (9, 12), (3, 3), 2, p=1, b=1),  # rows of whole vectors
    dw("fwd", (17, 10), (3, 3), 2, p=1, b=1),
    dw("fwd", (6, 16), (5, 5), 2, s=2, p=2),
    dw("fwd", (10, 9), (3, 3), 4, p=1, t="f16", b=1),
    dw("fwd", (10, 9), (3, 3), 4, p=1, t="bf16"),
    dw("fwd", (6, 9), (3, 3), 2, p=1, t="f64"),
    dw("igrad", (9, 17), (3, 3), 4, p=1, mb=2),
    dw("igrad", (9, 12), (3, 3), 2, p=1),
    dw("igrad", (5, 8), (4, 4), 2, s=2, p=1),
    dw("igrad", (5, 6), (3, 3), 4, s=2, p=1, op=1, b=1),
    dw("igrad", (5, 6), (4, 2), 2, s=(3, 2), p=((1, 2), 0), op=(2, 1)),
    dw("igrad", (3, 4, 5), (3, 3, 3), 2, s=2, p=1, op=1),
    dw("igrad", (5, 6), (3, 3), 2, s=2, d=3, p=1, op=2, t="f16"),
)


FILTERS = (
    case("fwd", (9, 12), (3, 3), ic=3, oc=8, p=1, mb=2, b=1),
    case("fwd", (9, 7), (3, 2), ic=4, oc=12, g=2, p=((2, 0), 1), s=2, b=1),
    case("fwd", (4, 5, 8), (3, 3, 3), ic=2, oc=4, p=1, mode="reflect"),
    case("fwd", (6, 8), (2, 3), ic=2, oc=4, p=1, t="f64"),
    case("igrad", (4, 5, 8), (3, 3, 3), ic=8, oc=6, g=2, p=1, b=1),
    case("igrad", (5, 6), (2, 2), ic=4, oc=3, s=2, t="bf16"),
)


def run(device: Any, p: Problem, arrays: Any, arrange: Any = lambda a: a) -> np.ndarray:
    function = getattr(numbaconv, f"conv{'_transpose' * p.transposed}{p.rank}d")
    x, w, b = arrays
    given = [put(device, arrange(x)), put(device, w), None if b is None else put(device, b)]
    out = put(device, arrange(np.full(p.result_shape, 99, x.dtype)))
    function(*given, **arguments(p), algorithm="depthwise" if p.in_channels == p.out_channels == p.groups else "filter", out=out)
    return get(device, out)


@pytest.mark.parametrize("number, text", list(enumerate(TEXTS + FILTERS)))
def test_exact(number: int, text: str, device: Any) -> None:
    """Every other problem channels-last."""
    p = Problem.parse(text)
    arrays = integer_arrays(p)
    result = run(device, p, arrays, channels_last if number % 2 else np.asarray)
    assert_same(np.ascontiguousarray(result), reference.convolve(p, *arrays))


@pytest.mark.parametrize("text", [dw("fwd", (17, 33), (3, 3), 4, p=1, mb=2, b=1), dw("igrad", (5, 6), (3, 3), 4, s=2, p=1, op=1, b=1)])
def test_same_bits_in_any_layout_and_order_of_warps(text: str, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem.parse(text)
    arrays = normal_arrays(p)
    expected = run(device, p, arrays)
    for order in ORDERS if device.emulated else ("any",):
        monkeypatch.setattr(device, "order", order, raising=False)
        for arrange in (np.asarray, channels_last):
            assert np.ascontiguousarray(run(device, p, arrays, arrange)).tobytes() == expected.tobytes()


def test_more_images_than_rows_of_blocks(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread then has several images."""
    monkeypatch.setattr(depthwise, "MOST_ROWS", 2)
    p = Problem.parse(dw("fwd", (9, 11), (3, 3), p=1, mb=5, b=1))
    arrays = integer_arrays(p)
    assert_same(run(device, p, arrays), reference.convolve(p, *arrays))


def test_steps_of_two_gigabytes(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels whose steps along h and w are 64-bit, on arrays that fit here."""
    monkeypatch.setattr(depthwise_march, "FAR", 1)
    p = Problem.parse(dw("fwd", (9, 12), (3, 3), 2, p=1, b=1))
    arrays = integer_arrays(p)
    for arrange in (np.asarray, channels_last):
        assert_same(np.ascontiguousarray(run(device, p, arrays, arrange)), reference.convolve(p, *arrays))


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    "text",
    [dw("fwd", (7, 9), (3, 3), p=1, b=1), dw("fwd", (5, 6, 7), (3, 3, 3), 4, p=1), dw("igrad", (5, 6), (3, 3), 4, s=2, p=1, op=1)],
)
def test_what_is_not_finite_stays_where_it_is(text: str, value: float, device: Any) -> None:
    """A weight meets the padded zeros of a convolution, and no zero of a gradient."""
    p = Problem.parse(text)
    x, w, b = integer_arrays(p)
    w[1, 0, 0, 1], x[0, 2, 1, 1] = value, value
    with np.errstate(invalid="ignore"):
        assert_same(run(device, p, (x, w, b)), reference.convolve(p, x, w, b))


@pytest.mark.parametrize(
    "text, words",
    [
        (case("fwd", (9, 9), (3, 3), ic=2, oc=2), "several channels a group"),
        (dw("fwd", (99, 99), (13, 13)), "taps a plane"),
        (dw("fwd", (99, 99), (3, 3), s=5), "strides up to"),
        (dw("fwd", (9, 9), (3, 3), t="s32"), "not int32"),
    ],
)
def test_declines(text: str, words: str) -> None:
    assert words in str(depthwise.Depthwise().supports(Problem.parse(text)))


def test_division_by_multiplication() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 10, 641, 2**16 - 1, 2**31 - 1, *rng.integers(1, 2**31, 50)):
        magic, shift = depthwise_march.divisor(int(size))
        assert magic < 2**32
        for number in (0, int(size) - 1, int(size), 2**31 - 1, *map(int, rng.integers(0, 2**31, 50))):
            assert number * magic >> shift == number // size


# ---- machine code ------------------------------------------------------------------------------------------------------
# Form of a layer, multiply-adds, and loads of a thread: taps, source cells and a bias, each of so many bits.
CODE = [
    ("fwd", (3, 3), 1, {"vector": 1}, 7 * 9, 9 + 9 * 3 + 1, "E"),
    ("fwd", (3, 3), 1, {"vector": 4, "stores": True}, 7 * 4 * 9, 9, "128"),  # of the vectors at both ends one cell is read
    ("fwd", (3, 3), 1, {"lanes": 4, "by_channel": True}, 4 * 2 * 9 * 4, 9 + 6 * 4 + 1, "128"),
    ("fwd", (7, 7), 1, {"vector": 4, "stores": True}, 4 * 4 * 49, 10 * 3, "128"),
    ("igrad", (3, 3), 2, {"vector": 1}, 8 * 2 * 9 // 4, 9 + 5 * 2 + 1, "E"),
]
# Compiling takes a second: all of them for two architectures, the second one for every other.
CHECKED = [(*code, sm) for sm in sass.ARCHITECTURES for code in (CODE if sm in ("sm_90a", "sm_120") else CODE[1:2])]
BANK = case("fwd", (28, 28, 28), (3, 3, 3), ic=16, oc=16, p=1)


@pytest.mark.skipif(bool(packages.missing("nvdisasm", "cuobjdump", "ptxas")), reason="the disassemblers are not installed")
@pytest.mark.parametrize("direction, kernel, stride, layout, products, loads, width, architecture", CHECKED)
def test_machine_code(
    direction: str, kernel: Any, stride: int, layout: dict[str, Any], products: int, loads: int, width: str, architecture: str
) -> None:
    p = Problem.parse(dw(direction, (28, 28), kernel, 8, s=stride, p=kernel[0] // 2))
    compiled = depthwise_kernels.kernel(depthwise.form_of(p, **layout))
    code = code_of(compiled, architecture)
    assert code.local_accesses <= (8 if architecture == "sm_120" else 0)  # there the compiler keeps some values of 7x7 in local memory
    assert code.registers <= depthwise_march.REGISTERS // (depthwise_march.THREADS * compiled.blocks)
    assert code.fused_multiply_adds == products
    assert loads <= code.count("LDG", width) <= loads + 4
    assert bool(code.count("STG", "128")) == (width == "128")


@pytest.mark.skipif(bool(packages.missing("nvdisasm", "cuobjdump", "ptxas")), reason="the disassemblers are not installed")
@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
def test_machine_code_of_a_bank_of_filters(architecture: str) -> None:
    compiled = depthwise_kernels.kernel(depthwise.form_of(Problem.parse(BANK), vector=4, stores=True))
    code = code_of(compiled, architecture)
    assert code.local_accesses == 0 and code.registers <= 168
    assert code.fused_multiply_adds == 4 * 4 * 4 * 9
    assert (code.count("LDG", "128"), code.count("STG", "128")) == (9 + 6 + 1, 16)
