"""Any strides are read and written in place, on a device too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, reference

from ..cases import arguments, case, integer_arrays
from ..checks import assert_same, poisoned
from ..layouts import channels_last, with_axes_in_order, with_steps
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv.choose import registry

from .device import get, put

LAYOUTS = {
    "channels-last": lambda a: channels_last(a) if a.ndim > 1 else a,
    "fortran": lambda a: with_axes_in_order(a, range(a.ndim)[::-1]),
    "steps": lambda a: with_steps(a, [2, -1, 1, -2, 3][-a.ndim :]),
    "width-in-front": lambda a: with_axes_in_order(a, [a.ndim - 1, *range(a.ndim - 1)]),
}
TEXTS = [
    case("fwd", (6, 9), (3, 3), p=1, ic=8, oc=8, b=1, mb=2),
    case("fwd", (6, 9), (3, 3), p=1, g=8, ic=8, oc=8, b=1, mb=2),
    case("fwd", (3, 4, 5), (2, 3, 3), s=2, p=1, ic=4, oc=6, g=2, b=1, mb=2),
    case("igrad", (3, 4, 5), (2, 3, 3), s=2, p=1, ic=4, oc=6, b=1, mb=2),
    case("igrad", (6, 9), (3, 3), p=1, ic=8, oc=8, mb=2),
    case("fwd", (9,), (3,), p=1, mode="circular", ic=4, oc=8, mb=2),
]


PAIRS = [(a.name, text) for a in registry("cuda") for text in TEXTS if a.supports(Problem.parse(text)) is None]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algorithm, text", PAIRS)
def test_any_strides(algorithm: str, text: str, layout: str, device: Any) -> None:
    p = Problem.parse(text)
    x, w, b = integer_arrays(p)
    expected = reference.convolve(p, x, w, b)
    arrange = LAYOUTS[layout]
    function = getattr(numbaconv, f"conv{'_transpose' * p.transposed}{p.rank}d")
    given = [None if a is None else put(device, arrange(a)) for a in (x, w, b)]
    assert_same(get(device, function(*given, **arguments(p), algorithm=algorithm)), expected)

    buffer, out = poisoned(p.result_shape, expected.dtype)
    buffer = arrange(buffer)
    placed = put(device, buffer)
    inside = (slice(1, -1),) * buffer.ndim
    out = put_view(placed, buffer[inside], buffer)
    assert function(*given, **arguments(p), algorithm=algorithm, out=out) is out
    after = get(device, placed)
    assert_same(np.ascontiguousarray(after[inside]), expected)
    buffer[inside] = after[inside]
    assert after.tobytes() == buffer.tobytes(), "cells around out were written"


def put_view(placed: Any, view: np.ndarray, whole: np.ndarray) -> Any:
    """The part of a placed array that ``view`` is of its host array ``whole``."""
    shift = view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return type(placed)(placed.pointer + shift, view.shape, view.strides, view.dtype, placed)
