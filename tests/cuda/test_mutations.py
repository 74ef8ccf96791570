"""The emulator would see it if one of the package's kernels lacked a barrier, a wait or a copy: each is taken away, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, reference

from ..cases import case, integer_arrays
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv import grad

from .broken import Calls, caught, lines_that_run, rewritten
from .device import put
from .snippets import ORDERS

EVERY_ORDER = (*ORDERS, "lanes")


def forward(device: Any) -> Calls:
    p = Problem.parse(case("fwd", (9, 10), (3, 3), p=1, ic=8, oc=40))
    arrays = integer_arrays(p)
    given = [None if a is None else put(device, a) for a in arrays]
    return lambda: numbaconv.conv2d(*given, padding=1, algorithm="implicit_gemm"), reference.convolve(p, *arrays)


def bias_gradient(device: Any) -> Calls:
    g = np.random.default_rng(0).integers(-9, 10, (3, 4, 20, 30)).astype(np.float32)
    given = put(device, g)
    return lambda: grad.conv_bias(given), grad.conv_bias(g)


def removed(text: str, lines: set[int]) -> Iterator[tuple[str, str]]:
    """(what is different, the PTX), of these lines."""
    for pattern, other in (
        (r"bar\.sync\s+0;", ""),
        (r"bar\.warp\.sync[^;]*;", ""),
        (r"cp\.async\.wait_group (\d);", lambda found: f"cp.async.wait_group {int(found[1]) + 1};"),
        (r"cp\.async\.(commit_group|wait_all);", ""),
        (r"cp\.async\.c[ag]\.shared\.global[^;]*;", ""),
        (r"st\.shared\.[^;]*;", ""),
    ):
        places = list(re.finditer(pattern, text))
        for found in places[:2] if "warp" in pattern else places:  # the code between two of them is unrolled
            changed = other if isinstance(other, str) else other(found)
            line = text.count("\n", 0, found.start()) + 1
            if line in lines:
                yield f"line {line}: {found[0]} -> {changed}", text[: found.start()] + changed + text[found.end() :]


# Sums of a channel: before the last barrier thread 0 has itself written what it reads after it.
@pytest.mark.parametrize("make, name, least, spare", [(forward, "implicit-gemm", 8, 0), (bias_gradient, "channel-sums", 3, 1)])
def test_what_is_taken_away_is_missed(
    make: Callable[[Any], Calls], name: str, least: int, spare: int, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not device.emulated:
        pytest.skip("a GPU does not say what it has read")
    monkeypatch.setattr(device, "order", "together")
    device.launched.clear()
    calls = make(device)
    assert not caught(device, [calls], EVERY_ORDER)
    launched = {kernel for kernel, *_ in device.launched}
    (program,) = (program for kernel, program in device._programs.items() if kernel.name in launched and kernel.name.startswith(name))
    changes = list(removed(program.text, lines_that_run(program, device, [calls])))
    assert len(changes) >= least
    survived = []
    for change, text in changes:
        with rewritten(program, text):
            if not caught(device, [calls], ("lanes",) if "warp" in change else EVERY_ORDER):
                survived.append(change)
    assert len(survived) <= spare, survived
