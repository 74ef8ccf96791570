"""Direct convolution with several cells a thread, as large images have it, on small ones; more images than one launch takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, reference

from ..cases import case, dtype_of, integer_arrays
from ..checks import assert_same
from ..layouts import channels_last
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numbaconv.cuda import direct
from numbaconv.cuda.arrays import reader

from .device import get, put

TEXTS = [
    case("fwd", (20, 31), (3, 2), p=1, ic=3, oc=9, b=1, mb=2),
    case("fwd", (7, 9, 11), (2, 3, 3), s=(1, 2, 1), p=1, d=(1, 1, 2), ic=4, oc=6, g=2, mode="reflect"),
    case("fwd", (600,), (5,), p=((3, 0),), ic=2, oc=2, g=2, t="bf16", b=1),
    case("fwd", (20, 31), (3, 2), ic=3, oc=9, t="c64", b=1),
    case("fwd", (20, 31), (3, 2), p=1, ic=3, oc=9, t="s8-s32", b=1),
    case("fwd", (20, 31), (3, 2), p=1, ic=3, oc=5, t="f64", mode="circular"),
    case("igrad", (13, 17), (3, 4), s=2, p=1, op=1, ic=9, oc=3, b=1, mb=2),
    case("igrad", (5, 6, 7), (2, 3, 2), s=3, d=2, op=1, ic=4, oc=6, g=2),
    case("igrad", (20, 31), (3, 3), p=1, ic=9, oc=5, t="f16"),
]


@pytest.fixture
def many_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "FEW_THREADS", 0)


@pytest.mark.parametrize("arrange", [np.ascontiguousarray, channels_last], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("text", TEXTS)
def test_several_cells_a_thread(text: str, arrange: Any, many_cells: None, device: Any) -> None:
    p = Problem.parse(text)
    assert_same(run(device, p, arrange), reference.convolve(p, *integer_arrays(p)))
    names = [launch.call for launch in direct.DirectSetup(p).launches(*_five(device, p, arrange))]
    assert len(names) == 1


def test_the_cells_of_a_thread_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch, device: Any) -> None:
    p = Problem.parse(case("fwd", (40, 41), (3, 3), p=1, ic=7, oc=9, b=1))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (p.source_shape, p.weight_shape, (p.out_channels,))]
    one = run(device, p, np.ascontiguousarray, arrays)
    monkeypatch.setattr(direct, "FEW_THREADS", 0)
    assert run(device, p, np.ascontiguousarray, arrays).tobytes() == one.tobytes()


def test_more_images_than_one_launch_takes(monkeypatch: pytest.MonkeyPatch, device: Any) -> None:
    monkeypatch.setattr(direct, "MOST_ROWS", 2)
    p = Problem.parse(case("fwd", (9,), (3,), p=1, ic=2, oc=3, b=1, mb=5))
    assert len(direct.DirectSetup(p).launches(*_five(device, p, np.ascontiguousarray))) == 3
    assert_same(run(device, p, np.ascontiguousarray), reference.convolve(p, *integer_arrays(p)))


def run(device: Any, p: Problem, arrange: Any, arrays: Any = None) -> np.ndarray:
    """The result of a fresh setup, on arrays of this layout."""
    x, w, b = integer_arrays(p) if arrays is None else arrays
    setup = direct.DirectSetup(p)
    source, weight = (_read(device, arrange(a)).five(p.rank) for a in (x, w))
    out = put(device, arrange(np.full(p.result_shape, 7, dtype_of(p.out_dtype))))
    packed = setup.pack(weight, None if b is None else _read(device, b))
    result = reader(type(out))("out", out)
    assert result is not None
    setup.run(source, packed, result.five(p.rank))
    return np.ascontiguousarray(get(device, out))


def _five(device: Any, p: Problem, arrange: Any) -> tuple[Any, Any]:
    shapes = (p.source_shape, p.dtype), (p.result_shape, p.out_dtype)
    source, result = (_read(device, arrange(np.zeros(shape, dtype_of(dtype)))).five(p.rank) for shape, dtype in shapes)
    return source, result


def _read(device: Any, host: np.ndarray) -> Any:
    placed = put(device, host)
    return reader(type(placed))("array", placed)
