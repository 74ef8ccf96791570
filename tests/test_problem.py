"""Problem: its text form, the sizes it derives, and every form of padding resolved to pairs."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import numbaconv
from numbaconv import Problem
from numbaconv.arguments import resolve_padding

from .cases import CASES, case

TEXT = "f32_fwd_mb1g1_ic32id64ih64iw64_oc64kd3kh3kw3_s1x1x1_p1:1x1:1x1:1_d1x1x1_zeros_b1"


def test_the_text_form_says_everything() -> None:
    p = Problem.parse(TEXT)
    assert p == Problem(
        dtype="float32", out_dtype="float32", direction="forward", rank=3, batch=1, groups=1, in_channels=32, in_size=(64, 64, 64),
        out_channels=64, kernel=(3, 3, 3), stride=(1, 1, 1), padding=((1, 1), (1, 1), (1, 1)), dilation=(1, 1, 1), bias=True,
    )  # fmt: skip
    assert str(p) == TEXT and hash(p) == hash(Problem.parse(TEXT))
    with pytest.raises(FrozenInstanceError):
        p.batch = 2


def test_the_text_form_of_the_functions_arguments() -> None:
    described = numbaconv.explain((1, 32, 64, 64, 64), (64, 32, 3, 3, 3), (64,), padding=1).problem
    assert str(described) == TEXT
    described = numbaconv.explain(
        (8, 9), (8, 3, 4), stride=3, output_padding=2, groups=4, transposed=True, dtype=np.int8, out_dtype=np.int32
    )
    assert str(described.problem) == "s8-s32_igrad_mb1g4_ic12iw30_oc8kw4_s3_p0:0_d1_zeros_b0_op2"


GRADIENTS = [
    *(text.replace("_fwd_", "_wgrad_") for text in CASES[::40] if "_fwd_" in text),
    case("fwd", (6, 7), (3, 2), s=2).replace("_fwd_", "_wgrad_") + "_op1x1",
    case("igrad", (5, 6), (3, 3), s=2, op=1).replace("_igrad_", "_fwd_"),
    case("igrad", (5, 6), (3, 3)).replace("zeros", "reflect"),
]


@pytest.mark.parametrize("text", GRADIENTS)
def test_gradients_have_a_text_form_too(text: str) -> None:
    assert str(Problem.parse(text)) == text


MALFORMED = [
    "", "f32", TEXT + "_", TEXT.upper(), " " + TEXT, TEXT + "\n", TEXT.replace("f32", "f33"), TEXT.replace("fwd", "bwd"),
    TEXT.replace("g1", "g0"), TEXT.replace("id64", ""), TEXT.replace("kd3", ""), TEXT.replace("s1x1x1", "s1x1"),
    TEXT.replace("d1x1x1", "d1"), TEXT.replace("p1:1x", "p1x"), TEXT.replace("zeros", "edge"), TEXT.replace("b1", "b2"),
    TEXT.replace("ic32", "ic032"), TEXT.replace("idih", "ihid"), TEXT.replace("mb1", "mb-1"), TEXT + "_op0x0x0",
    case("igrad", (3, 4), (3, 3)).removesuffix("_op0x0"),
]  # fmt: skip


@pytest.mark.parametrize("text", [text for text in MALFORMED if text != TEXT], ids=repr)
def test_malformed_texts(text: str) -> None:
    with pytest.raises(ValueError, match="not the text form of a Problem"):
        Problem.parse(text)


INVALID = [
    case("fwd", (5, 6), (3, 3), g=2, ic=3, oc=4),
    case("fwd", (5, 6), (3, 3), g=2, ic=4, oc=3),
    case("fwd", (5, 6), (6, 3)),
    case("fwd", (5, 6), (3, 3), s=0),
    case("fwd", (5, 6), (3, 3), d=0),
    case("fwd", (5, 6), (3, 0)),
    case("fwd", (0, 6), (1, 1)),
    case("fwd", (5, 6), (3, 3), oc=0),
    case("fwd", (5, 6), (3, 3), p=5, mode="reflect"),
    case("fwd", (5, 6), (3, 3), p=6, mode="circular"),
    case("igrad", (5, 6), (3, 3), s=2, op=2),
    case("igrad", (5, 6), (3, 3), s=2).replace("ih11", "ih12"),
    case("fwd", (5, 6), (3, 3)).replace("f32", "f32-s32"),
    f"f32_fwd_mb1g1_ic1iw{2**62}_oc1kw1_s1_p0:0_d1_zeros_b0",
]


@pytest.mark.parametrize("text", INVALID)
def test_texts_of_problems_that_are_none(text: str) -> None:
    """What the functions refuse does not parse either."""
    with pytest.raises(ValueError):
        Problem.parse(text)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(CASES), st.integers(0, 100), st.sampled_from("0123456789_:xabdefghiklmnopsw \n٣"))
@example(TEXT, 10, "9" * 5000)
def test_a_changed_character_parses_back_or_is_refused(text: str, place: int, character: str) -> None:
    place %= len(text)
    changed = text[:place] + character + text[place + 1 :]
    try:
        p = Problem.parse(changed)
    except ValueError:
        return
    assert str(p) == changed


# ---- what is derived ---------------------------------------------------------------------------------------------------
def test_shapes_of_both_directions() -> None:
    p = Problem.parse(case("fwd", (9, 11), (3, 5), mb=2, g=2, ic=4, oc=6, s=2, p=((1, 0), 2), b=1))
    assert p.source_shape == (2, 4, 9, 11) and p.weight_shape == (6, 2, 3, 5) and p.result_shape == (2, 6, 4, 6)
    assert (p.in_per_group, p.out_per_group, p.taps, p.source_channels, p.result_channels) == (2, 3, 15, 4, 6)
    t = Problem.parse(case("igrad", (4, 6), (3, 5), mb=2, g=2, ic=4, oc=6, s=2, p=((1, 0), 2), op=(0, 1), b=1))
    assert t.source_shape == (2, 6, 4, 6) and t.weight_shape == (6, 2, 3, 5) and t.result_shape == (2, 4, 8, 12)
    assert t.out_size == (1, 4, 6) and t.transposed and not p.transposed


def test_flops_and_bytes() -> None:
    p = Problem.parse(TEXT)
    assert p.flops == 2 * 64**3 * 64 * 32 * 27
    assert p.bytes == 4 * (32 * 64**3 + 64 * 32 * 27 + 64 + 64 * 64**3)
    assert replace(p, dtype="complex64", out_dtype="complex64").flops == 4 * p.flops
    narrow = Problem.parse(case("fwd", (5,), (3,), t="s8-s32", ic=2, oc=3, b=1))
    assert narrow.bytes == (10 + 18 + 3) + 4 * 9
    assert Problem.parse(case("igrad", (3,), (3,), ic=2, oc=3)).flops == 2 * 3 * 2 * 3 * 3


def test_the_problem_of_one_image() -> None:
    texts = [case("fwd", (5,), (3,), mb=mb) for mb in (0, 1, 7)]
    assert {str(Problem.parse(text).per_image) for text in texts} == {texts[1]}


# ---- padding -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("dilation", (1, 2, 3))
def test_same_is_torchs(kernel: int, dilation: int) -> None:
    """The output has the input's size; the odd cell is at the end."""
    ((low, high),) = resolve_padding("same", [20], [kernel], [1], [dilation])
    assert low + high == dilation * (kernel - 1) and high - low in (0, 1)


@pytest.mark.parametrize(
    "size, stride, kernel, dilation", [(i, s, k, d) for i in (1, 2, 7, 8) for s in (1, 2, 3, 9) for k in (1, 2, 3, 6) for d in (1, 2)]
)
def test_same_upper_and_lower(size: int, stride: int, kernel: int, dilation: int) -> None:
    """ceil(size / stride) outputs with the least padding that reaches them; the odd cell at the end or at the start."""
    ((low, high),) = resolve_padding("same_upper", [size], [kernel], [stride], [dilation])
    assert [(high, low)] == resolve_padding("same_lower", [size], [kernel], [stride], [dilation])
    assert high - low in (0, 1)
    outputs = -(-size // stride)
    needed = (outputs - 1) * stride + dilation * (kernel - 1) + 1 - size
    assert low + high == max(needed, 0)
    y = numbaconv.conv1d(np.ones((1, 1, size)), np.ones((1, 1, kernel)), stride=stride, dilation=dilation, padding="same_upper")
    assert y.shape[-1] == outputs


def test_same_upper_and_lower_values() -> None:
    x, w = np.arange(1.0, 6)[None, None], np.array([[[1.0, 10.0]]])
    np.testing.assert_array_equal(numbaconv.conv1d(x, w, padding="same_upper"), [[[21, 32, 43, 54, 5]]])
    np.testing.assert_array_equal(numbaconv.conv1d(x, w, padding="same_lower"), [[[10, 21, 32, 43, 54]]])
    np.testing.assert_array_equal(numbaconv.conv1d(x, w, stride=2, padding="same_upper"), [[[21, 43, 5]]])
    np.testing.assert_array_equal(numbaconv.conv1d(x, w, stride=2, padding="same_lower"), [[[10, 32, 54]]])


def test_padding_forms_that_mean_the_same() -> None:
    shapes = (1, 2, 6, 7), (3, 2, 3, 3)
    forms = (1, (1,), [1], (1, 1), ((1, 1),), ((1, 1), (1, 1)), [[1, 1], (1, 1)], "same", "same_upper", "same_lower")
    assert len({str(numbaconv.explain(*shapes, padding=form).problem) for form in forms}) == 1
    assert str(numbaconv.explain(*shapes, padding="valid").problem) == str(numbaconv.explain(*shapes).problem)


def test_output_sizes_are_the_documented_formula() -> None:
    for i, k, s, d, lo, hi in [(10, 3, 2, 1, 0, 1), (10, 3, 3, 2, 1, 1), (7, 7, 1, 1, 0, 0), (5, 2, 9, 4, 2, 3)]:
        p = numbaconv.explain((1, 1, i), (1, 1, k), stride=s, dilation=d, padding=((lo, hi),)).problem
        assert p.result_shape[-1] == math.floor((i + lo + hi - d * (k - 1) - 1) / s + 1)
        t = numbaconv.explain((1, 1, i), (1, 1, k), stride=s, dilation=d, padding=((lo, 0),), transposed=True).problem
        assert t.result_shape[-1] == (i - 1) * s - lo + d * (k - 1) + 1
