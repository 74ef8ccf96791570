"""The emulator would see it if one of the package's kernels lacked a barrier, a wait or a copy: each is taken away, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from .device import get, put
from .emulator import Fault, Program
from .snippets import ORDERS

Calls = tuple[Callable[[], Any], np.ndarray]  # what to run, and the right result


def forward(device: Any) -> Calls:
    p = Problem.parse(case("fwd", (9, 10), (3, 3), p=1, ic=8, oc=40))
    arrays = integer_arrays(p)
    given = [None if a is None else put(device, a) for a in arrays]
    return lambda: numbaconv.conv2d(*given, padding=1, algorithm="implicit_gemm"), reference.convolve(p, *arrays)


def bias_gradient(device: Any) -> Calls:
    g = np.random.default_rng(0).integers(-9, 10, (3, 4, 20, 30)).astype(np.float32)
    given = put(device, g)
    return lambda: grad.conv_bias(given), grad.conv_bias(g)


def lines_that_run(program: Program, device: Any, calls: Calls) -> set[int]:
    """Numbers of the PTX lines that the calls come to: the compiler also writes paths for divisions by zero."""
    lines: set[int] = set()

    def noting(block: Any) -> Callable[..., None]:
        end, own = block.end, [i.line for i in [*(i for i, _ in block.body), block.last] if i is not None]

        def run(wave: Any, lanes: np.ndarray) -> None:
            lines.update(own)
            end(wave, lanes)

        return run

    ends = [block.end for block in program.blocks]
    try:
        for block in program.blocks:
            block.end = noting(block)
        assert not caught(device, calls, ("forward",))
    finally:
        for block, end in zip(program.blocks, ends):
            block.end = end
    return lines


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


@contextmanager
def broken(program: Program, text: str) -> Iterator[None]:
    """The program, which plans hold on to, becomes another one for a while."""
    good = dict(vars(program))
    vars(program).update(vars(Program(text)))
    try:
        yield
    finally:
        vars(program).update(good)


def caught(device: Any, calls: Calls, orders: tuple[str, ...] = (*ORDERS, "lanes")) -> bool:
    run, expected = calls
    for device.order in orders:
        try:
            if not np.array_equal(get(device, run()), expected):
                return True
        except Fault:
            return True
    return False


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
    assert not caught(device, calls)
    launched = {kernel for kernel, *_ in device.launched}
    (program,) = (program for kernel, program in device._programs.items() if kernel.name in launched and kernel.name.startswith(name))
    changes = list(removed(program.text, lines_that_run(program, device, calls)))
    assert len(changes) >= least
    survived = []
    for change, text in changes:
        with broken(program, text):
            if not caught(device, calls, ("lanes",) if "warp" in change else (*ORDERS, "lanes")):
                survived.append(change)
    assert len(survived) <= spare, survived
