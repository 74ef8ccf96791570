"""What the emulator catches: a tiled kernel is compiled and its PTX broken, one instruction at a time.

Each change is caught in one of the orders, by a fault or by a wrong result.
"""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest

from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numbaconv.cuda.launch import compile_ptx

from .emulator import Fault, Program, Unsupported
from .snippets import ORDERS
from .tiled import PRODUCT, multiply

SHAPES = ((45, 20, 40), (32, 8, 32), (1, 4, 4), (70, 28, 64))  # rows, products, columns


@functools.cache
def source() -> str:
    return compile_ptx(PRODUCT, "sm_80")


def wrong(text: str) -> list[str]:
    """In which orders, and how, it is seen that a kernel is not right."""
    try:
        program = Program(text)
    except Unsupported as error:
        pytest.fail(f"the change made PTX that is none: {error}")
    rng = np.random.default_rng(0)
    seen = []
    for m, k, n in SHAPES:
        a, b = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((m, k), (k, n)))
        for order in ORDERS:
            try:
                if not np.array_equal(multiply(program, a, b, order), a @ b):
                    seen.append(f"{order}: wrong result")
            except Fault as fault:
                seen.append(f"{order}: {fault}")
    return seen


def test_the_kernel_is_right() -> None:
    assert wrong(source()) == []


def places(pattern: str) -> list[re.Match[str]]:
    return list(re.finditer(pattern, source()))


def replaced(place: re.Match[str], text: str) -> str:
    return source()[: place.start()] + text + source()[place.end() :]


def test_every_removed_barrier_is_caught() -> None:
    found = places(r"bar\.sync\s+0;")
    assert len(found) == 2
    for place in found:
        assert any("wrong result" in how for how in wrong(replaced(place, "")))


def test_every_wrong_wait_is_caught() -> None:
    found = places(r"cp\.async\.wait_group 1;")
    assert len(found) == 1
    for place in found:
        assert wrong(replaced(place, "cp.async.wait_group 2;"))
        assert wrong(replaced(place, ""))
        assert wrong(replaced(place, "cp.async.wait_group 0;")) == []  # waiting for more is slower, not wrong


def test_every_removed_commit_is_caught() -> None:
    for place in places(r"cp\.async\.commit_group;"):
        assert wrong(replaced(place, ""))


@pytest.mark.parametrize("removed", [r"cp\.async\.cg\.shared\.global [^;]*;", r"st\.global\.v4\.f32 [^;]*;"])
def test_every_removed_copy_and_store_is_caught(removed: str) -> None:
    found = places(removed)
    assert len(found) == 2
    for place in found:
        assert wrong(replaced(place, ""))


def test_every_bound_that_is_off_by_one_is_caught() -> None:
    """Two comparisons are not bounds of anything: "is there a step at all", and "is there a step to copy for", beyond which all bytes lie
    outside and become zeros that nobody reads.
    """
    other = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}
    found = places(r"setp\.(lt|le|gt|ge)\.s32([^;]*;)")
    survived = [place[0] for place in found if not wrong(replaced(place, f"setp.{other[place[1]]}.s32{place[2]}"))]
    assert len(found) >= 7 and len(survived) <= 2, survived
