"""Implicit GEMM on a device: every tile and layout against the reference, its promises, its machine code, and what a slip would do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, reference

from ..cases import case, integer_arrays, normal_arrays
from ..checks import assert_same
from ..layouts import channels_last, with_steps
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numbaconv.arrays import check_array
from numbaconv.cuda import implicit_gemm as algorithm
from numbaconv.cuda.implicit_gemm import TILES, ImplicitGemm, ImplicitGemmSetup, Tiles
from numbaconv.cuda.implicit_gemm_kernel import Tile, kernel

from . import sass
from .compiled import code_of, ptx_of
from .device import Emulated, get, put
from .emulator import Fault, Program

KINDS = list(dict.fromkeys(tile for tiles in TILES for tile in tiles[:2]))
PLAIN = Problem.parse(case("fwd", (9, 10), (3, 3), mb=2, ic=8, oc=40, p=1, b=1))
WIDE = Problem.parse(case("fwd", (5, 30), (1, 3), ic=4, oc=130, s=(1, 2), p=(0, 1), b=1))  # beyond one tile in both directions
FORWARD = [
    PLAIN,
    WIDE,
    Problem.parse(case("fwd", (7, 9), (2, 3), ic=3, oc=70, s=(2, 1), p=((1, 0), (2, 1)), d=(1, 2), b=1)),
    Problem.parse(case("fwd", (6, 5), (3, 3), mb=2, g=2, ic=12, oc=8, s=2, p=1)),
    Problem.parse(case("fwd", (70,), (5,), ic=20, oc=33, p=2, b=1)),
    Problem.parse(case("fwd", (7, 8), (3, 3), mb=2, ic=4, oc=36, p=1, b=1)),  # results in quads
    Problem.parse(case("fwd", (5, 4, 6), (3, 3, 3), ic=4, oc=5, s=(1, 2, 1), p=1, b=1)),
    Problem.parse(case("fwd", (5, 7), (3, 3), ic=5, oc=9, p=(1, 2), mode="reflect", b=1)),
    Problem.parse(case("fwd", (5, 7), (3, 3), ic=4, oc=9, p=(1, 2), mode="replicate")),
    Problem.parse(case("fwd", (5, 7), (3, 3), ic=4, oc=9, p=(1, 2), d=2, mode="circular")),
]
TRANSPOSED = [
    Problem.parse(case("igrad", (5, 7), (3, 3), mb=2, g=2, ic=40, oc=6, s=2, p=1, op=1, b=1)),
    Problem.parse(case("igrad", (3, 4, 5), (3, 3, 3), ic=20, oc=8, s=(2, 1, 3), p=1, d=(1, 2, 1), op=(1, 0, 2), b=1)),
    Problem.parse(case("igrad", (4, 6), (1, 1), ic=4, oc=4, s=2, op=1, b=1)),  # result cells that meet no tap
    Problem.parse(case("igrad", (4, 3), (3, 2), ic=5, oc=7, s=(3, 1))),
]


def same(array: np.ndarray) -> np.ndarray:
    return array


def run(
    device: Any, p: Problem, given: Any, tile: Tile | None = None, read: Callable[..., Any] = same, written: Callable[..., Any] = same
) -> np.ndarray:
    """The result by the kernels of a tile, or of those that are taken, of a source and into a result of these layouts."""
    setup = ImplicitGemm().setup(p) if tile is None else ImplicitGemmSetup(p, Tiles(tile, tile, 1.0))
    x, w, b = given
    source, weight = (check_array("array", put(device, a)).five(p.rank) for a in (read(x), w))
    out = put(device, written(np.full(p.result_shape, np.nan, np.float32)))
    packed = setup.pack(weight, None if b is None else check_array("bias", put(device, b)))
    assert sum(part.nbytes for part in packed) <= setup.packed_bytes
    setup.run(source, packed, check_array("out", out).five(p.rank))
    return get(device, out)


def spaced(array: np.ndarray) -> np.ndarray:
    """Backwards in memory along its last axis, with gaps."""
    return with_steps(array, [2, 1, *[1] * (array.ndim - 3), -3])


@pytest.mark.parametrize("p", FORWARD + TRANSPOSED, ids=str)
@pytest.mark.parametrize("layout", [same, channels_last])
def test_exact(device: Any, p: Problem, layout: Callable[..., Any]) -> None:
    """Whole numbers: equal to the reference, with the tile that is taken."""
    assert ImplicitGemm().supports(p) is None
    given = integer_arrays(p)
    assert_same(run(device, p, given, None, layout, layout), reference.convolve(p, *given))


LAYOUTS = [(same, same), (channels_last, channels_last), (channels_last, same), (spaced, spaced)]
# Every tile with the first two; those of 4 and of 2 threads along rows with all.
PLACED = [(tile, *layouts) for tile in KINDS for layouts in (LAYOUTS if tile in (KINDS[0], KINDS[-1]) else LAYOUTS[:2])]


@pytest.mark.parametrize("tile, read, written", PLACED)
def test_same_bits_from_every_tile_and_layout(device: Any, tile: Tile, read: Callable[..., Any], written: Callable[..., Any]) -> None:
    for p in (PLAIN, WIDE):
        given = normal_arrays(p)
        first = run(device, p, given, KINDS[0])
        assert run(device, p, given, tile, read, written).tobytes() == first.tobytes()


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
@pytest.mark.parametrize("layout", [same, channels_last])
def test_any_order_of_warps(device: Any, order: str, layout: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if not device.emulated:
        pytest.skip("the emulator orders warps")
    monkeypatch.setattr(device, "order", order)
    given = integer_arrays(PLAIN)
    for tile in KINDS[:2]:
        assert_same(run(device, PLAIN, given, tile, layout, layout), reference.convolve(PLAIN, *given))


def test_bits_in_a_batch(device: Any) -> None:
    x, w, b = normal_arrays(PLAIN)
    alone = run(device, replace(PLAIN, batch=1), (x[1:], w, b), KINDS[0])
    assert run(device, replace(PLAIN, batch=4), (np.concatenate([x, x]), w, b), KINDS[0])[3].tobytes() == alone.tobytes()


def test_batches_beyond_one_launch(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are numbered in 32 bits: of more images than these there are several launches."""
    monkeypatch.setattr(algorithm, "MOST_BLOCKS", 300)
    p = replace(PLAIN, batch=5)
    assert 1 <= ImplicitGemmSetup(p, Tiles(KINDS[1], KINDS[1], 1.0))._most_images < 5
    given = integer_arrays(p)
    assert_same(run(device, p, given, KINDS[1]), reference.convolve(p, *given))


@pytest.mark.parametrize("p", [PLAIN, FORWARD[3], *TRANSPOSED], ids=str)
@pytest.mark.parametrize("layout", [same, channels_last])
def test_infinite_weights(device: Any, p: Problem, layout: Callable[..., Any]) -> None:
    """A padded zero is multiplied; where a gradient has no source there is no product."""
    x, w, b = integer_arrays(p)
    w[0, 0, ...], w[-1, -1, ..., -1] = np.inf, np.nan
    assert_same(run(device, p, (x, w, b), None, layout, layout), reference.convolve(p, x, w, b))


def test_infinite_sources_stay_in_their_channels(device: Any) -> None:
    """Channels are padded to quads, rows and taps to tiles: none of that meets a value of the source."""
    for p in (FORWARD[2], Problem.parse(case("fwd", (3, 5, 5), (2, 3, 3), ic=3, oc=5, p=1))):  # the second has a plane behind its last tap
        x, w, b = integer_arrays(p)
        x[0, 2, 1, 2] = np.inf
        assert_same(run(device, p, (x, w, b), KINDS[0]), reference.convolve(p, x, w, b))


@pytest.mark.parametrize(
    "text, reason",
    [
        (case("fwd", (9,), (3,), t="f64"), "float32, not float64"),
        (case("igrad", (9,), (3,), p=1).replace("zeros", "reflect"), "fold back"),
        (case("fwd", (9,), (3,), ic=0), "no channels"),
        (case("igrad", (9, 9), (3, 3), s=9), "more than 64 convolutions"),
    ],
)
def test_declines(text: str, reason: str) -> None:
    assert reason in (ImplicitGemm().supports(Problem.parse(text)) or "")


def test_the_choice_does_not_see_the_batch() -> None:
    p = replace(PLAIN, batch=64)
    assert ImplicitGemm().setup(p).tiles == ImplicitGemm().setup(PLAIN).tiles and ImplicitGemm().cost(p) == ImplicitGemm().cost(PLAIN)


def test_small_images_take_small_tiles() -> None:
    """Large ones would leave most of a GPU idle at a small batch; rows are padded to few more."""
    expected = [(56, 256, 128), (14, 256, 64), (7, 512, 64), (56, 64, 64), (56, 96, 128), (56, 32, 32), (7, 24, 32), (56, 16, 16)]
    for size, filters, rows in expected:
        p = Problem.parse(case("fwd", (size, size), (3, 3), ic=64, oc=filters, p=1))
        assert ImplicitGemm().setup(p).tiles.any.rows == rows


# ---- mutations: the tests above would see these slips ----------------------------------------------------------------------
def broken(change: Callable[[str], str], tile: Tile, layout: Callable[..., Any], order: str) -> np.ndarray | None:
    """The result of PLAIN by a kernel whose PTX is changed; None where the emulator refuses to go on."""
    device, last = Emulated(), layout is channels_last
    device.order = order
    spoilt = kernel(tile, last, "quads of channels" if last else "cells", False)
    text = ptx_of(spoilt)
    assert change(text) != text
    device._programs[spoilt] = Program(change(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("numbaconv.cuda.driver._driver", device)
        try:
            result = run(device, PLAIN, integer_arrays(PLAIN), tile, layout, layout)
        except Fault:
            return None
    assert device.launched[-1][0] == spoilt.name
    return result


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace("bar.sync", "// bar.sync"), id="no barrier"),
        pytest.param(
            lambda text: re.sub(r"(cp.async.wait_group) (\d)", lambda m: f"{m[1]} {int(m[2]) + 1}", text), id="a wait for too little"
        ),
        pytest.param(lambda text: text.replace("setp.lt.s32", "setp.le.s32"), id="bounds one too far"),
    ],
)
@pytest.mark.parametrize("layout", [same, channels_last])
def test_slips_show(change: Callable[[str], str], layout: Callable[..., Any]) -> None:
    expected = reference.convolve(PLAIN, *integer_arrays(PLAIN))
    results = [broken(change, KINDS[0], layout, order) for order in ("forward", "reverse")]
    assert any(result is None or not np.array_equal(result, expected) for result in results)


# ---- machine code ------------------------------------------------------------------------------------------------------------
KERNELS = [(tile, last, False) for tile in KINDS for last in (False, True)] + [(KINDS[0], False, True)]
CHECKED = [(*k, "sm_90a") for k in KERNELS] + [(*k, a) for k in (KERNELS[0], KERNELS[-2]) for a in sass.ARCHITECTURES if a != "sm_90a"]


@pytest.mark.skipif(bool(packages.missing("nvdisasm", "cuobjdump", "ptxas")), reason="the disassemblers are not installed")
@pytest.mark.parametrize("tile, last, transposed, architecture", CHECKED)
def test_machine_code(tile: Tile, last: bool, transposed: bool, architecture: str) -> None:
    """Sums live in registers, as few of them as let the planned blocks share a multiprocessor; a step of k reads 16 bytes at a time."""
    code = code_of(kernel(tile, last, f"quads of {'channels' if last else 'cells'}", transposed), architecture)
    assert (code.stack, code.local_accesses) == (0, 0)
    assert code.registers <= 65536 // (tile.threads * tile.blocks) // 8 * 8
    assert code.shared <= (48 << 10) + 1024
    products = 8 * 4 * tile.quads * tile.depth
    assert products <= code.fused_multiply_adds <= products + 32
    loads = tile.depth * (2 + tile.quads)
    assert loads <= code.count("LDS", "128") <= loads + 12  # of the cell's place, where the tap changes, and of what is transposed
    assert code.count("LDGSTS", "128") >= 1
    assert code.count("BAR") == 1
    if last:
        assert code.count("LDGSTS", "128") >= 2 and code.count("LDGSTS") == code.count("LDGSTS", "128")
    else:
        assert code.count("LDGSTS") >= 5
