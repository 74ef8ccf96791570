"""Weight gradients by implicit GEMM on a device: ragged tiles, layouts, chunks, the order of sums, and the machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, choose, reference

from ..cases import case, integer_arrays
from ..checks import assert_same
from ..layouts import channels_last, with_steps
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numbaconv.arrays import check_array
from numbaconv.cuda import weight_grad, weight_kernels

from . import sass
from .compiled import code_of
from .device import get, put

ORDERS = ("forward", "reverse", "random:1")


def wgrad(*given: Any, **options: Any) -> Problem:
    return Problem.parse(case("fwd", *given, **options).replace("_fwd_", "_wgrad_"))


PROBLEMS = (
    wgrad((7, 9), (3, 3), ic=5, oc=6, p=1, mb=2),
    wgrad((9, 11), (3, 2), ic=4, oc=70, s=2, p=((1, 2), 0), d=(1, 2), mb=3),
    wgrad((17, 19), (1, 1), g=2, ic=140, oc=140),
    wgrad((3, 5, 6), (2, 3, 3), ic=3, oc=17, p=(1, 1, 0), mb=2),
    wgrad((41,), (5,), ic=24, oc=33, s=2, p=3, mb=2),
    wgrad((2, 3), (3, 3), ic=3, oc=3, p=3),  # a step of cells passes several images' borders
    wgrad((6, 7), (3, 3), g=4, ic=4, oc=8, p=1, mb=2),
    *(wgrad((5, 6), (3, 3), ic=3, oc=5, p=2, mode=mode) for mode in ("reflect", "replicate", "circular")),
    *(wgrad((7, 9), (3, 3), ic=8, oc=12, p=1, mb=2, t=t) for t in ("f16", "bf16", "f64")),
)


def same(array: np.ndarray) -> np.ndarray:
    return array


def arrays_of(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Input and output gradient, of whole numbers."""
    x = integer_arrays(p)[0]
    g = np.random.default_rng(1).integers(-3, 3, (p.batch, p.out_channels, *p.out_size[3 - p.rank :]), endpoint=True)
    return x, g.astype(x.dtype)


def run(device: Any, p: Problem, x: np.ndarray, g: np.ndarray, arrange: Any = same) -> np.ndarray:
    setup = weight_grad.WeightGemm().setup(p.per_image)
    out = put(device, np.full(p.weight_shape, 99, x.dtype))
    source, grad, result = (check_array("a", a).five(p.rank) for a in (put(device, arrange(x)), put(device, arrange(g)), out))
    setup.run(source, (grad,), result)
    return get(device, out)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_exact(problem: Problem, device: Any) -> None:
    assert weight_grad.WeightGemm().supports(problem) is None
    x, g = arrays_of(problem)
    assert_same(run(device, problem, x, g), reference.weight_grad(problem, x, g))


@pytest.mark.parametrize("arrange", [channels_last, lambda a: with_steps(a, [1, -2, 2, -1, 3][: a.ndim])], ids=["channels-last", "steps"])
@pytest.mark.parametrize("problem", [PROBLEMS[1], wgrad((7, 9), (3, 3), ic=8, oc=36, p=1, mb=2), PROBLEMS[10]], ids=str)
def test_layouts(problem: Problem, arrange: Any, device: Any) -> None:
    x, g = arrays_of(problem)
    assert_same(run(device, problem, x, g, arrange), reference.weight_grad(problem, x, g))


def test_same_bits_in_any_order_of_warps_and_layout(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = wgrad((9, 17), (3, 3), ic=8, oc=36, p=1, mb=4)
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal(a.shape).astype(np.float32) for a in arrays_of(p))
    expected = run(device, p, x, g)
    for order in ORDERS if device.emulated else ("any",):
        monkeypatch.setattr(device, "order", order, raising=False)
        for arrange in (same, channels_last):
            assert run(device, p, x, g, arrange).tobytes() == expected.tobytes()


def test_a_padded_zero_is_multiplied(device: Any) -> None:
    p = wgrad((5, 6), (3, 3), ic=3, oc=5, p=1)
    x, g = arrays_of(p)
    g[0, 2, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        assert_same(run(device, p, x, g), reference.weight_grad(p, x, g))


@pytest.mark.parametrize(
    "problem, chunks",
    [
        (wgrad((16, 16), (3, 3), ic=64, oc=64), 1),
        (wgrad((128, 128, 128), (3, 3, 3), ic=16, oc=16, p=1), 256),
        (wgrad((14, 14), (1, 1), ic=1024, oc=2048), 1),
    ],
    ids=str,
)
def test_chunks_follow_the_problem(problem: Problem, chunks: int) -> None:
    """Many where few results have long sums; the workspace holds those of any batch."""
    setup = weight_grad.WeightGemm().setup(problem)
    found = setup.chunks(1)
    assert found >= chunks if chunks > 1 else found == 1
    for batch in (1, 7, 4096):
        parts = setup.chunks(batch)
        cells = batch * int(np.prod(problem.out_size))
        assert parts * setup.results * 4 <= setup.workspace <= 64 << 20
        assert (parts - 1) * setup.chunk_cells(parts, batch) < cells <= parts * setup.chunk_cells(parts, batch)


def test_declines() -> None:
    algorithm = weight_grad.WeightGemm()
    assert "not results" in str(algorithm.supports(Problem.parse(case("fwd", (9,), (3,)))))
    assert "complex64" in str(algorithm.supports(wgrad((9,), (3,), t="c64")))
    assert choose.choose(wgrad((56, 56), (3, 3), ic=64, oc=64, p=1), device="cuda").name == "weight_gemm"


# ---- machine code ------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(bool(packages.missing("nvdisasm", "cuobjdump", "ptxas")), reason="the disassemblers are not installed")
@pytest.mark.parametrize("lanes, architecture", [*((1, a) for a in sass.ARCHITECTURES), (4, "sm_90a")])
def test_machine_code(lanes: int, architecture: str) -> None:
    kernel = weight_kernels.products("float32", weight_kernels.Tile(128, 128, 8, lanes, lanes))
    code = code_of(kernel, architecture)
    assert (code.stack, code.local_accesses) == (0, 0)
    assert code.registers <= 128
    assert code.fused_multiply_adds % 64 == 0 and code.fused_multiply_adds >= 64
    assert code.count("LDS", "128") >= 4 and code.count("LDGSTS") >= 2
    assert bool(code.count("LDGSTS", "128")) == (lanes == 4)
