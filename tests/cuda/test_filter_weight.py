"""Weight gradients of few channels a group on a device: ragged columns of threads, layouts, what is not finite, and the machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numbaconv import Problem, choose, reference

from ..cases import case, integer_arrays
from ..checks import assert_same
from ..layouts import channels_last
from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

from numbaconv.arrays import check_array
from numbaconv.cuda import arrays, depthwise_march, filter_weight

from . import sass
from .compiled import code_of
from .device import get, put


def wgrad(*given: Any, **options: Any) -> Problem:
    return Problem.parse(case("fwd", *given, **options).replace("_fwd_", "_wgrad_"))


def dw(size: Any, kernel: Any, channels: int = 3, each: int = 1, **options: Any) -> Problem:
    return wgrad(size, kernel, g=channels, ic=channels, oc=channels * each, **options)


PROBLEMS = (
    dw((8, 12), (3, 3), p=1, mb=3),  # rows of whole vectors
    dw((7, 9), (3, 3), 35, p=1, mb=3),
    dw((11, 9), (3, 2), each=2, s=(2, 1), p=((1, 0), 1), d=(1, 2), mb=2),
    dw((7, 7), (7, 7), 2, p=3, mb=40),  # columns of a block from many images
    dw((4, 5, 6), (3, 3, 3), 2, p=1, mode="reflect", mb=2),
    dw((21,), (5,), 1, each=5, p=2, mb=2, t="bf16"),
    dw((17, 16), (3, 3), 4, p=1, mb=2, t="f64"),
    wgrad((8, 12), (3, 3), ic=6, oc=8, p=1, mb=3),
    wgrad((3, 6, 8), (3, 3, 3), g=2, ic=6, oc=4, p=1, mb=2),
    wgrad((9, 7), (2, 3), ic=5, oc=3, s=(1, 2), p=1),
)


def run(device: Any, p: Problem, x: np.ndarray, g: np.ndarray, arrange: Any) -> np.ndarray:
    out = put(device, np.full(p.weight_shape, 99, x.dtype))
    source, grad, result = (check_array("a", a).five(p.rank) for a in (put(device, arrange(x)), put(device, arrange(g)), out))
    filter_weight.FilterWeight().setup(p.per_image).run(source, (grad,), result)
    return get(device, out)


def arrays_of(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Input and output gradient, of whole numbers."""
    x = integer_arrays(p)[0]
    g = np.random.default_rng(1).integers(-3, 3, (p.batch, p.out_channels, *p.out_size[3 - p.rank :]), endpoint=True)
    return x, g.astype(x.dtype)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("arrange", [np.asarray, channels_last], ids=["contiguous", "channels-last"])
def test_exact(problem: Problem, arrange: Any, device: Any) -> None:
    if arrange is channels_last and problem.dtype != "float32":
        pytest.skip("the same but for the loads")
    assert filter_weight.FilterWeight().supports(problem) is None
    x, g = arrays_of(problem)
    assert_same(run(device, problem, x, g, arrange), reference.weight_grad(problem, x, g))


def test_steps_of_two_gigabytes(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels whose steps along h and w are 64-bit, on arrays that fit here."""
    monkeypatch.setattr(depthwise_march, "FAR", 1)
    x, g = arrays_of(PROBLEMS[0])
    assert_same(run(device, PROBLEMS[0], x, g, np.asarray), reference.weight_grad(PROBLEMS[0], x, g))


@pytest.mark.parametrize("arrange", [np.asarray, channels_last], ids=["contiguous", "channels-last"])
def test_workspace_is_as_stated(arrange: Any, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a batch that fills the device, whatever the layout."""
    p, taken = dw((7, 9), (3, 3), 35, p=1, mb=300), []
    monkeypatch.setattr(filter_weight, "BLOCKS", 8)
    monkeypatch.setattr(filter_weight, "empty", lambda shape, dtype, like: taken.append(shape[0] * 4) or arrays.empty(shape, dtype, like))
    run(device, p, *arrays_of(p), arrange)
    stated = filter_weight.FilterWeight().setup(p.per_image).workspace
    assert taken[0] <= stated and (arrange is np.asarray or taken[0] == stated)


@pytest.mark.parametrize("order", ["forward", "reverse", "random:1"])
def test_same_bits_in_any_order_of_warps(order: str, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = PROBLEMS[1]
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal(a.shape).astype(np.float32) for a in arrays_of(p))
    expected = run(device, p, x, g, np.asarray)
    monkeypatch.setattr(device, "order", order, raising=False)
    assert run(device, p, x, g, np.asarray).tobytes() == expected.tobytes()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_stays_where_it_is(value: float, device: Any) -> None:
    """Padded zeros are multiplied; rows that a thread has beyond the last are not."""
    p = dw((11, 9), (3, 3), p=1, d=(2, 1), s=(2, 1), mb=2)
    x, g = arrays_of(p)
    x[0, 0, -1, 3], g[1, 1, 0, 0] = value, value
    with np.errstate(invalid="ignore"):
        assert_same(run(device, p, x, g, np.asarray), reference.weight_grad(p, x, g))


def test_choice() -> None:
    algorithm = filter_weight.FilterWeight()
    assert "1 to 32 input channels" in str(algorithm.supports(wgrad((8, 8), (3, 3), ic=33, oc=33)))
    assert choose.choose(dw((56, 56), (3, 3), 128, p=1), device="cuda").name == "filter_weight"
    assert choose.choose(wgrad((56, 56), (3, 3), ic=128, oc=128, p=1), device="cuda").name == "weight_gemm"
    assert algorithm.setup(dw((56, 56), (3, 3), 128, p=1)).workspace <= 2 << 20


@pytest.mark.skipif(bool(packages.missing("nvdisasm", "cuobjdump", "ptxas")), reason="the disassemblers are not installed")
@pytest.mark.parametrize("architecture", sass.ARCHITECTURES)
@pytest.mark.parametrize(
    "problem, products",
    [(dw((56, 56), (3, 3), 8, p=1), 8 * 4 * 9), (wgrad((64, 64, 64), (3, 3, 3), ic=16, oc=16, p=1), 4 * 4 * 4 * 9)],
    ids=str,
)
def test_machine_code(problem: Problem, products: int, architecture: str) -> None:
    kernel = filter_weight.kernel(filter_weight.form_of(problem, vector=4, loads=True), filter_weight.sources_of(problem))
    code = code_of(kernel, architecture)
    assert code.local_accesses == 0
    assert code.registers <= depthwise_march.REGISTERS // (depthwise_march.THREADS * kernel.blocks)
    assert code.fused_multiply_adds == products
