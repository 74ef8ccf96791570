"""Implicit GEMM with turned roles, where pixels are broadcast, against the form with panels: the same bits whatever is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from numbaconv import Problem
from numbaconv.arrays import ELEMENTS, five, storage_view
from numbaconv.cpu import threads, turned_shape, turned_worker
from numbaconv.cpu.elements import kind_of
from numbaconv.cpu.gemm import TILE_ROWS
from numbaconv.cpu.gemm_place import place_turned
from numbaconv.cpu.implicit_gemm import ImplicitGemm, ImplicitGemmSetup
from numbaconv.cpu.target import target

from ..cases import CASES, case, normal_arrays
from ..checks import always_parallel
from ..layouts import channels_last, with_steps
from .test_implicit_gemm import BITS, BLOCKS, CUT, SPACINGS, STRIDED

pytestmark = pytest.mark.skipif(target().lanes("float32") % TILE_ROWS > 0, reason="a vector is not whole tiles")


def is_summed_as_it_is(text: str) -> bool:
    kind = kind_of(Problem.parse(text).dtype)
    return kind.components == kind.together == 1


def computed(p: Problem, turned: bool, layout: Callable[[np.ndarray], np.ndarray] = np.array) -> np.ndarray:
    """The result, in this layout, of one form; the input has the layout too."""
    x, w, b = normal_arrays(p)
    setup = ImplicitGemmSetup(p)
    setup.__dict__["turned"] = turned
    packed = setup.pack(storage_view(five(w, p.rank)), None if b is None else b.astype(ELEMENTS[p.dtype].accumulator))
    result = layout(np.ones((p.batch, p.result_channels, *p.result_size[3 - p.rank :]), x.dtype))
    setup.run(storage_view(five(layout(x), p.rank)), packed, storage_view(five(result, p.rank)))
    return np.array(result)


def takes(text: str) -> bool:
    p = Problem.parse(text)
    return p.batch > 0 and p.direction != "weight_grad" and ImplicitGemm().supports(p) is None and is_summed_as_it_is(text)


@pytest.mark.parametrize("text", [*filter(takes, dict.fromkeys([*BLOCKS, *SPACINGS, *BITS, *CASES]))])
def test_both_forms_give_the_same_bits(text: str) -> None:
    p = Problem.parse(text)
    expected = computed(p, False).tobytes()
    assert computed(p, True).tobytes() == expected
    if text in BITS:
        with always_parallel():
            assert computed(p, True).tobytes() == expected


@pytest.mark.parametrize("layout", [channels_last, lambda a: with_steps(a, (1, 2, -1, -3)), lambda a: with_steps(a, (-1, -1, 3, 1))])
@pytest.mark.parametrize("text", [*filter(is_summed_as_it_is, STRIDED), case("igrad", (5, 26), (3, 3), mb=2, ic=25, oc=31, s=2, p=1)])
def test_layouts_do_not_change_a_bit(text: str, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    p = Problem.parse(text)
    assert computed(p, True, layout).tobytes() == computed(p, False).tobytes()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    "text", [*filter(is_summed_as_it_is, [*BLOCKS, *CUT, case("fwd", (50, 60, 700), (3, 3, 3), ic=48, oc=70, s=2, p=1)])]
)
def test_blocks_cover_every_pixel_and_keep_the_bounds(text: str, count: int) -> None:
    p = Problem.parse(text)
    setup = ImplicitGemmSetup(p)
    setup.__dict__["turned"] = True
    x, y = (np.empty((p.batch, n, *size), np.uint8) for n, size in ((p.source_channels, p.source_size), (p.result_channels, p.result_size)))
    for part, start in zip(setup.parts, setup.weight_starts):
        item = ELEMENTS[p.dtype].storage.itemsize
        source, result = ([step * item for step in a.strides] for a in (x, y))
        g = place_turned(setup, part, start, p.batch, tuple(source), tuple(result), count).geometry
        size, block, counts = (g[field : field + 3] for field in (turned_worker.RESULT_SIZE, turned_worker.BLOCK, turned_worker.BLOCKS))
        assert math.prod(size) == math.prod(axis.size for axis in part)
        assert (block * counts >= size).all() and (block * (counts - 1) < size).all()
        assert 1 <= g[turned_worker.SPLITS] <= setup.row_blocks and (count > 1 or g[turned_worker.SPLITS] == 1)
        box = g[turned_worker.SPAN] * g[turned_worker.SPAN + 1] * g[turned_worker.CHANNELS_AT_ONCE]
        cells = math.prod(block) * g[turned_worker.STAGED_ROW] + box * g[turned_worker.CELLS]
        lines, taps = block[0] * block[1], g[turned_worker.TAPS_AT_ONCE]
        numbers = box * 3 + lines * (taps + 2) + taps * g[turned_worker.CHANNELS_AT_ONCE]
        assert cells * setup.kind.sums.itemsize + numbers * 8 <= setup.turned_bytes
    assert setup.workspace >= threads.most_threads() * setup.turned_bytes


def test_two_threads_share_the_rows_of_a_small_plane() -> None:
    lines = turned_shape.lines_of(
        ImplicitGemmSetup(Problem.parse(case("fwd", (7, 7), (1, 1), ic=512, oc=2048))).parts[0], (1, 7, 7), (49, 7, 1), (49, 7, 1)
    )
    cut, _ = turned_shape.blocks(lines, 512, 171, 2048, 16, 1, 2)
    assert math.prod(cut.counts) * cut.splits == 2
