"""Arrays of CuPy, torch, Numba and DLPack on a GPU: in, out, streams, allocators and graphs.  With --gpu only."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv import grad

pytestmark = pytest.mark.gpu
RNG = np.random.default_rng(0)
X, W, B = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 9, 10), (6, 4, 3, 3), (6,)))
EXPECTED = numbaconv.conv2d(X, W, B, padding=1, precision="ieee")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def numba_array(a: np.ndarray) -> Any:
    from numba import cuda

    return cuda.to_device(a)


def cupy_array(a: np.ndarray) -> Any:
    return pytest.importorskip("cupy").asarray(a)


def torch_array(a: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(a).cuda()


class OnlyDLPack:
    """What speaks DLPack and nothing else."""

    def __init__(self, a: np.ndarray) -> None:
        self._array = cupy_array(a)

    def __dlpack__(self, stream: Any = None) -> Any:
        return self._array.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def host(array: Any) -> np.ndarray:
    if hasattr(array, "copy_to_host"):
        return np.asarray(array.copy_to_host())
    return np.asarray(array.get() if hasattr(array, "get") else array.cpu().numpy())


MAKERS = {"numba": numba_array, "cupy": cupy_array, "torch": torch_array, "dlpack": OnlyDLPack}
RESULTS = {"numba": "DeviceNDArray", "cupy": "ndarray", "torch": "Tensor", "dlpack": "DeviceNDArray"}


@pytest.mark.parametrize("library", MAKERS)
@pytest.mark.parametrize("other", MAKERS)
def test_every_library_with_every_other(library: str, other: str, device: Any) -> None:
    """The result is the input's kind, whatever the weight is."""
    result = numbaconv.conv2d(MAKERS[library](X), MAKERS[other](W), MAKERS[other](B), padding=1)
    assert type(result).__name__ == RESULTS[library]
    np.testing.assert_allclose(host(result), EXPECTED, **CLOSE)


@pytest.mark.parametrize("library", ["numba", "cupy", "torch"])
def test_out_and_plans(library: str, device: Any) -> None:
    make = MAKERS[library]
    out = make(np.full_like(EXPECTED, np.nan))
    assert numbaconv.conv2d(make(X), make(W), make(B), padding=1, out=out) is out
    np.testing.assert_allclose(host(out), EXPECTED, **CLOSE)
    p = numbaconv.plan(X.shape, make(W), make(B), padding=1)
    out = make(np.full_like(EXPECTED, np.nan))
    assert p(make(X), out=out) is out and type(p(make(X))).__name__ == RESULTS[library]
    np.testing.assert_allclose(host(out), EXPECTED, **CLOSE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64", "int8", "int64", "uint8"])
def test_torch_dtypes(dtype: str, device: Any) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    x = torch.randint(-3, 4, (2, 4, 9), device="cuda").abs().to(kind)
    w = torch.randint(-3, 4, (3, 4, 3), device="cuda").abs().to(kind)
    result = numbaconv.conv1d(x, w)
    assert result.dtype == kind and result.is_cuda
    wide = torch.complex128 if dtype == "complex64" else torch.float64
    expected = torch.nn.functional.conv1d(x.cpu().to(wide), w.cpu().to(wide))
    assert torch.equal(result.cpu().to(wide), expected.to(kind).to(wide))


def test_torch_gradients_and_layouts(device: Any) -> None:
    torch = pytest.importorskip("torch")
    x = torch_array(X).to(memory_format=torch.channels_last).requires_grad_()
    w = torch_array(W).requires_grad_()
    y = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    g = torch.randn_like(y)
    y.backward(g)
    with pytest.raises(TypeError, match=r"^input must not require a gradient.*detach"):
        numbaconv.conv2d(x, w.detach())
    mine = grad.conv2d_input(x.shape, w.detach(), g.float(), padding=1)
    torch.testing.assert_close(mine, x.grad, rtol=1e-4, atol=1e-4)
    mine = grad.conv2d_weight(x.detach(), w.shape, g.float(), padding=1)
    torch.testing.assert_close(mine, w.grad, rtol=1e-4, atol=1e-4)
    conjugated = torch.randn(1, 2, 8, dtype=torch.complex64, device="cuda").conj()
    kernel = torch.randn(3, 2, 3, dtype=torch.complex64, device="cuda")
    torch.testing.assert_close(numbaconv.conv1d(conjugated, kernel), torch.nn.functional.conv1d(conjugated, kernel), rtol=1e-4, atol=1e-4)


def test_torchs_automatic_differentiation(device: Any) -> None:
    """The operators of numbaconv.torch on CUDA tensors: gradients of both orders, a compiled function, a model's layers replaced."""
    torch = pytest.importorskip("torch")
    import numbaconv.torch as bridge

    x = torch.randn(1, 4, 5, 6, dtype=torch.float64, device="cuda", requires_grad=True)
    w = torch.randn(4, 2, 3, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, device="cuda", requires_grad=True)

    def call(x: Any, w: Any, b: Any) -> Any:
        return bridge.conv2d(x, w, b, stride=2, padding=1, groups=2)

    assert torch.autograd.gradcheck(call, (x, w, b)) and torch.autograd.gradgradcheck(call, (x, w, b))
    torch.testing.assert_close(call(x, w, b), torch.nn.functional.conv2d(x, w, b, stride=2, padding=1, groups=2))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.ConvTranspose2d(8, 2, 2, 2)).cuda()
    image = torch.randn(2, 3, 8, 9, device="cuda")
    expected = model(image)
    torch.testing.assert_close(bridge.replace_convs(model)(image), expected, rtol=1e-4, atol=1e-5)


def test_the_current_stream(device: Any) -> None:
    """Work goes to the caller's current stream: what is queued there before a call comes before it."""
    cupy = pytest.importorskip("cupy")
    w, b = cupy.asarray(W), cupy.asarray(B)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        big = cupy.random.standard_normal((4096, 4096))
        for repeats in (1, 100):  # the first time compiles; then a quarter of a second of work
            x = cupy.asarray(X)
            stream.synchronize()
            for _ in range(repeats):
                big = big @ big / 4096
            x += 0 * big[0, 0].astype(cupy.float32)
            result = numbaconv.conv2d(x, w, b, padding=1)
            waited = stream.done
        assert not waited
        np.testing.assert_allclose(result.get(), EXPECTED, **CLOSE)


def test_streams_by_argument(device: Any) -> None:
    cupy, torch = pytest.importorskip("cupy"), pytest.importorskip("torch")
    from numba import cuda

    for library, stream in (("cupy", cupy.cuda.Stream()), ("torch", torch.cuda.Stream()), ("numba", cuda.stream())):
        make = MAKERS[library]
        for given in (stream, stream if not hasattr(stream, "ptr") else stream.ptr):
            result = numbaconv.conv2d(make(X), make(W), make(B), padding=1, stream=given)
            stream.synchronize()
            np.testing.assert_allclose(host(result), EXPECTED, **CLOSE)


def test_results_come_from_the_callers_allocator(device: Any) -> None:
    cupy, torch = pytest.importorskip("cupy"), pytest.importorskip("torch")
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        x, w = cupy.asarray(X), cupy.asarray(W)
        before = pool.used_bytes()
        result = numbaconv.conv2d(x, w, padding=1)
        assert pool.used_bytes() >= before + result.nbytes
    del result
    gc.collect()
    x, w = torch_array(X), torch_array(W)
    before = torch.cuda.memory_allocated()
    result = numbaconv.conv2d(x, w, padding=1)
    assert torch.cuda.memory_allocated() >= before + result.nbytes
    del result
    assert torch.cuda.memory_allocated() == before, "a call keeps no memory"


@pytest.mark.parametrize("transposed", [False, True])
def test_a_planned_call_can_be_captured_in_a_graph(transposed: bool, device: Any) -> None:
    torch = pytest.importorskip("torch")
    x, w = torch_array(X), torch_array(np.ascontiguousarray(W.transpose(1, 0, 2, 3)) if transposed else W)
    plan = numbaconv.plan(x, w, padding=1, transposed=transposed)
    expected = plan(x).clone()
    out = torch.full_like(expected, float("nan"))
    plan(x, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan(x, out=out)
    x.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out, 2 * expected)


def test_more_than_two_to_the_31_elements(device: Any) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("needs 30 GiB of free device memory")
    n = 2**31 + 2**20
    x = torch.zeros((1, 1, n // 1024, 1024), dtype=torch.int8, device="cuda")
    x[0, 0, -1, -3:] = torch.tensor([1, 2, 3], dtype=torch.int8)
    w = torch.tensor([[[[1, 1, 1]]]], dtype=torch.int8, device="cuda")
    y = numbaconv.conv2d(x, w, padding=(0, 1))
    assert y.numel() == n and y[0, 0, -1, -4:].tolist() == [1, 3, 6, 5] and int(y.count_nonzero()) == 4
    images = torch.zeros((2**20 + 3, 2, 1024), dtype=torch.int8, device="cuda")
    images[-1, 1, 5] = 7
    y = numbaconv.conv1d(images, torch.ones((1, 2, 1), dtype=torch.int8, device="cuda"))
    assert y.shape == (2**20 + 3, 1, 1024) and int(y.count_nonzero()) == 1 and int(y[-1, 0, 5]) == 7


def test_host_and_device_do_not_mix(device: Any) -> None:
    with pytest.raises(TypeError, match=r"^weight must live where input does, got input in the memory of cuda:0 and weight in host memory"):
        numbaconv.conv2d(cupy_array(X), W)
    with pytest.raises(TypeError, match=r"^stream must be None for NumPy arrays"):
        numbaconv.conv2d(X, W, stream=0)
    with pytest.raises(TypeError, match=r"^out must be an array in the memory of cuda:0"):
        numbaconv.conv2d(cupy_array(X), cupy_array(W), out=EXPECTED)
