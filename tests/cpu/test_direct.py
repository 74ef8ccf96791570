"""Direct convolution where its tiles of columns, blocks of channels and passes over gathered rows end."""

from __future__ import annotations

import pytest

from numbaconv import Problem
from numbaconv.cpu.direct import MOST_ENTRIES, TILE

from ..cases import case
from ..checks import check_exact

WIDE = [
    # one tile of columns exactly, one column more and less, several; entries that are not a multiple of the four of a pass
    *(case("fwd", (n,), (3,), ic=1, oc=3, p=1, b=1) for n in (TILE, TILE + 1, 2 * TILE - 1, 3 * TILE + 77)),
    *(case("fwd", (n,), (9,), ic=4, oc=3, p=4, b=1) for n in (TILE, TILE + 1, 2 * TILE - 1, 3 * TILE + 77)),
    *(case("fwd", (2, TILE + 100), (2, k), ic=5, oc=4, s=s, d=2, p=1) for k in (1, 3) for s in (1, 2)),
    case("fwd", (TILE + 200,), (MOST_ENTRIES + 3,), ic=2, oc=5, p=7, mode="circular"),
    case("fwd", (TILE + 9,), (3,), ic=1, oc=70, p=1, b=1),
    case("fwd", (TILE + 9,), (3,), ic=6, oc=6, g=3, mb=2, p=1),
    # transposed: the columns of a remainder
    *(case("igrad", (n,), (3,), ic=2, oc=3, s=s, p=1, op=s - 1, b=1) for n in (TILE, TILE + 50) for s in (1, 2, 3)),
]  # fmt: skip
TOKENS = ("f32", "f64", "f16", "bf16", "c64", "s8", "s8-s32", "s64")


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("text", WIDE)
def test_exact(text: str, token: str) -> None:
    check_exact(Problem.parse(text.replace("f32", token)), "direct")
