"""numbaconv.torch: values, first and second derivatives, operators, compilation and modules.

``NUMBACONV_REQUIRE_TORCH=1`` turns a missing torch into a failure.
"""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numbaconv

from .conftest import Python

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as error:
    if os.environ.get("NUMBACONV_REQUIRE_TORCH") == "1":
        raise
    pytest.skip(f"torch is not installed: {error}", allow_module_level=True)

import numbaconv.torch as bridge

# torch's own compiler and tracer warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch", "ignore::FutureWarning:torch")

Call = Callable[..., Any]
SIZES = {1: (6,), 2: (5, 4), 3: (3, 4, 3)}


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, grad: bool = True) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_(grad) for shape in shapes]


# name, function, torch's, shapes of input, weight and bias, arguments
CALLS: list[tuple[str, Call, Call, tuple[Any, ...], dict[str, Any]]] = []
for rank, size in SIZES.items():
    ours, theirs = getattr(bridge, f"conv{rank}d"), getattr(F, f"conv{rank}d")
    shapes = ((2, 4, *size), (6, 2, *(2,) * rank), (6,))
    CALLS += [
        (f"conv{rank}d", ours, theirs, shapes, {"stride": 2, "padding": 1, "groups": 2}),
        (f"conv{rank}d same dilated", ours, theirs, ((2, *size), (3, 2, *(2,) * rank)), {"padding": "same", "dilation": 2}),
    ]
    ours, theirs = getattr(bridge, f"conv_transpose{rank}d"), getattr(F, f"conv_transpose{rank}d")
    shapes = ((2, 4, *(n - 1 for n in size)), (4, 2, *(2,) * rank), (4,))
    CALLS.append((f"conv_transpose{rank}d", ours, theirs, shapes, {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}))
EVERY_CALL = pytest.mark.parametrize("ours, theirs, shapes, arguments", [pytest.param(*c[1:], id=c[0]) for c in CALLS])


def modes(rank: int, mode: str) -> tuple[Call, Call]:
    """conv with this padding mode, ours and torch's, 2 cells before and 1 after each axis."""

    def theirs(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return getattr(F, f"conv{rank}d")(F.pad(x, (2, 1) * rank, mode), w, stride=2)

    def ours(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return getattr(bridge, f"conv{rank}d")(x, w, None, 2, ((2, 1),) * rank, padding_mode=mode)

    return ours, theirs


# ---- values ----------------------------------------------------------------------------------------------------------
@EVERY_CALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128], ids=str)
def test_values_and_gradients_are_torchs(ours: Call, theirs: Call, shapes: Any, arguments: Any, dtype: torch.dtype) -> None:
    leaves = tensors(*shapes, dtype=dtype)
    y, expected = ours(*leaves, **arguments), theirs(*leaves, **arguments)
    close(y, expected)
    assert y.is_contiguous() and y.requires_grad
    g = torch.randn_like(y)
    for ours_, theirs_ in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g)):
        close(ours_, theirs_)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_modes(rank: int, mode: str) -> None:
    ours, theirs = modes(rank, mode)
    x, w = tensors((2, 2, *SIZES[rank]), (3, 2, *(2,) * rank))
    y, expected = ours(x, w), theirs(x, w)
    close(y, expected)
    g = torch.randn_like(y)
    for ours_, theirs_ in zip(torch.autograd.grad(y, (x, w), g), torch.autograd.grad(expected, (x, w), g)):
        close(ours_, theirs_)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs)  # its tolerances for the dtype


@pytest.mark.parametrize("dtype", bridge._DTYPES, ids=str)
def test_every_dtype_without_a_copy_and_with_numbaconvs_bits(dtype: torch.dtype) -> None:
    x, w = ((torch.arange(n) % 7 - 2).to(dtype).reshape(shape) for n, shape in ((72, (1, 2, 6, 6)), (54, (3, 2, 3, 3))))
    array = bridge._to_array(x)
    assert array.ctypes.data == x.data_ptr() and array.dtype.name == str(dtype)[6:]
    assert bridge._to_torch(array).data_ptr() == x.data_ptr() and bridge._to_torch(array).dtype == dtype
    y = bridge.conv2d(x, w, padding="same_upper", stride=2)
    expected = numbaconv.conv2d(array, bridge._to_array(w), padding="same_upper", stride=2)
    assert y.dtype == dtype and bridge._to_array(y).tobytes() == expected.tobytes()


def test_memory_layouts() -> None:
    x, w = tensors((2, 3, 6, 7), (4, 3, 3, 3), grad=False)
    expected = bridge.conv2d(x, w)
    for layout in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(bridge.conv2d(layout, w), expected)
    assert torch.equal(bridge.conv2d(x[:, :1].expand(2, 3, 6, 7), w), bridge.conv2d(x[:, :1].repeat(1, 3, 1, 1), w))
    z = torch.complex(x, x.flip(0))
    v = torch.complex(w, w)
    assert z.conj().is_conj() and torch.equal(bridge.conv2d(z.conj(), v), bridge.conv2d(z.conj().resolve_conj(), v))
    assert torch.equal(bridge.conv2d(z.conj().imag, w), bridge.conv2d(-z.imag, w))


@pytest.mark.parametrize("batch, channels", [(0, 3), (2, 0)])
def test_nothing_to_sum(batch: int, channels: int) -> None:
    x, w, b = tensors((batch, channels, 5, 5), (4, channels, 3, 3), (4,))
    y = bridge.conv2d(x, w, b)
    assert y.shape == (batch, 4, 3, 3) and bool((y == b[:, None, None]).all())
    y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.any() and bool((b.grad == 9 * batch).all())


# ---- derivatives -----------------------------------------------------------------------------------------------------
@EVERY_CALL
def test_gradcheck(ours: Call, theirs: Call, shapes: Any, arguments: Any) -> None:
    leaves = tensors(*shapes)
    assert torch.autograd.gradcheck(lambda *t: ours(*t, **arguments), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: ours(*t, **arguments), leaves, fast_mode=True)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_gradcheck_of_padding_modes(mode: str) -> None:
    leaves = tensors((1, 2, 4, 3), (2, 2, 2, 2))
    assert torch.autograd.gradcheck(modes(2, mode)[0], leaves)
    assert torch.autograd.gradgradcheck(modes(2, mode)[0], leaves)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradcheck_of_complex_numbers(transposed: bool) -> None:
    function = bridge.conv_transpose2d if transposed else bridge.conv2d
    leaves = tensors((1, 2, 3, 3), (2, 1, 2, 2), (2,), dtype=torch.complex128)
    assert torch.autograd.gradcheck(lambda x, w, b: function(x, w, b, 2, 1, groups=2), leaves)
    assert torch.autograd.gradgradcheck(lambda x, w, b: function(x, w, b, 2, 1, groups=2), leaves)


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("conv2d_input", "conv2d_weight"):
        real = getattr(numbaconv.grad, name)
        monkeypatch.setattr(numbaconv.grad, name, lambda *a, _real=real, _name=name, **k: asked.append(_name) or _real(*a, **k))
    x, w = tensors((1, 2, 5, 5), (3, 2, 3, 3))
    bridge.conv2d(x.detach(), w).sum().backward()
    assert asked == ["conv2d_weight"] and x.grad is None
    bridge.conv2d(x, w.detach()).sum().backward()
    assert asked == ["conv2d_weight", "conv2d_input"]
    with torch.no_grad():
        assert not bridge.conv2d(x, w).requires_grad


# ---- operators and compilation ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_opcheck(transposed: bool, dtype: torch.dtype) -> None:
    x, w, b = tensors((2, 4, 5, 6), (4, 2, 3, 3), (4,), dtype=dtype)
    geometry = ([2, 1], [1, 2, 0, 1], [1, 2], [1, 1] if transposed else [0, 0], 2, transposed, "zeros")
    y = torch.ops.numbaconv.convolution(x, w, b, *geometry)
    g = torch.ones_like(y).requires_grad_()
    for name, arguments in (
        ("convolution", (x, w, b)),
        ("convolution", (x.detach(), w.detach(), None)),
        ("convolution", (x[0], w, b)),
        ("convolution_input_grad", (x.shape, w, g)),
        ("convolution_weight_grad", (x, w.shape, g)),
    ):
        found = torch.library.opcheck(getattr(torch.ops.numbaconv, name).default, (*arguments, *geometry))
        assert set(found.values()) == {"SUCCESS"} and len(found) == 4


def test_the_schema_has_canonical_lists_and_a_mode() -> None:
    assert str(torch.ops.numbaconv.convolution.default._schema) == (
        "numbaconv::convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
        "SymInt[] output_padding, SymInt groups, bool transposed, str padding_mode) -> Tensor"
    )


@EVERY_CALL
def test_compiled(ours: Call, theirs: Call, shapes: Any, arguments: Any) -> None:
    """In one graph, with the bits of the eager call, gradients too."""
    leaves = tensors(*shapes)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: ours(*t, **arguments), backend="aot_eager", fullgraph=True)
    y, expected = compiled(*leaves), ours(*leaves, **arguments)
    assert torch.equal(y, expected)
    for ours_, theirs_ in zip(torch.autograd.grad(y.sin().sum(), leaves), torch.autograd.grad(expected.sin().sum(), leaves)):
        assert torch.equal(ours_, theirs_)


@pytest.mark.parametrize("padding", [1, (2, 0), ((0, 1), (2, 0)), "same_upper", "same_lower"], ids=str)
def test_compiled_once_for_every_size(padding: Any) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def convolve(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return bridge.conv2d(x, w, None, 2, padding)

    compiled = torch.compile(convolve, backend=backend, dynamic=True, fullgraph=True)
    (w,) = tensors((3, 2, 3, 3), grad=False)
    for size in ((6, 9), (7, 8), (11, 5)):
        (x,) = tensors((2, 2, *size), grad=False)
        assert torch.equal(compiled(x, w), convolve(x, w))
    assert len(graphs) == 1 or isinstance(padding, str)  # padding that the size decides may be decided anew


# ---- modules ---------------------------------------------------------------------------------------------------------
def network() -> nn.Sequential:
    torch.manual_seed(0)
    shared = nn.Conv2d(6, 6, 1)
    inner = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, padding_mode="reflect"), nn.ReLU(), shared, shared)
    return nn.Sequential(inner, nn.Conv2d(6, 4, 3, padding="same", dilation=2, bias=False), nn.ConvTranspose2d(4, 2, 3, stride=2))


def test_replaced_layers_compute_the_same() -> None:
    plain = network()
    x, target = tensors((2, 3, 9, 8), (2, 2, 11, 9), dtype=torch.float32, grad=False)
    ours = copy.deepcopy(plain)
    keys, parameters = list(ours.state_dict()), list(ours.parameters())
    assert bridge.replace_convs(ours) is ours
    kinds = [type(layer).__name__ for layer in ours.modules() if type(layer).__module__ == "numbaconv.torch"]
    assert kinds == ["NumbaConv2d", "NumbaConv2d", "NumbaConv2d", "NumbaConvTranspose2d"] and ours[0][2] is ours[0][3]
    assert list(ours.state_dict()) == keys
    assert all(a is b for a, b in zip(ours.parameters(), parameters, strict=True))
    losses = []
    for model in (plain, ours):
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5) and losses[2] < losses[0]


def test_replaced_layers_are_ordinary_ones() -> None:
    ours = bridge.replace_convs(network())
    x = torch.ones(1, 3, 8, 8)
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(x), ours(x)) and torch.equal(copy.deepcopy(ours)(x), ours(x))
    assert isinstance(ours[1], nn.Conv2d)
    assert repr(ours[1]) == "NumbaConv2d(6, 4, kernel_size=(3, 3), stride=(1, 1), padding=same, dilation=(2, 2), bias=False)"
    seen = []
    ours[1].register_forward_hook(lambda *arguments: seen.append(arguments[0]))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(ours, backend="aot_eager")(x), ours(x), rtol=0, atol=0)
    assert seen
    ours.double()
    assert ours(x.double()).dtype == torch.float64
    assert bridge.replace_convs(ours) is ours


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_kind_of_layer(rank: int) -> None:
    x = torch.ones(1, 2, *SIZES[rank])
    conv = getattr(nn, f"Conv{rank}d")(2, 3, 2, padding=1, padding_mode="circular")
    new = bridge.replace_convs(conv)
    assert new is not conv and type(conv) is getattr(nn, f"Conv{rank}d") and new.weight is conv.weight
    torch.testing.assert_close(new(x), conv(x))
    conv = getattr(nn, f"ConvTranspose{rank}d")(2, 3, 2, stride=3)
    new = bridge.replace_convs(conv)
    for output_size in (None, tuple(3 * n + 1 for n in SIZES[rank])):
        torch.testing.assert_close(new(x, output_size), conv(x, output_size))


def test_other_layers_are_left_as_they_are() -> None:
    class Mine(nn.Conv2d):
        pass

    with warnings.catch_warnings(action="ignore"):  # lazy modules are "under heavy development"
        lazy = nn.LazyConv2d(2, 3)
    model = nn.ModuleDict({"mine": Mine(1, 1, 1), "lazy": lazy, "linear": nn.Linear(1, 1), "none": nn.Sequential()})
    model.register_module("nothing", None)
    kinds = [type(layer) for layer in model.modules()]
    assert [type(layer) for layer in bridge.replace_convs(model).modules()] == kinds
    with pytest.raises(TypeError, match=r"^module must be a torch.nn.Module, got list"):
        bridge.replace_convs([])


# ---- refusals --------------------------------------------------------------------------------------------------------
X, W, B = torch.zeros(1, 2, 5, 5), torch.zeros(3, 2, 3, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bridge.conv2d(X.numpy(), W), TypeError, r"^input must be a torch.Tensor, got ndarray"),
        (lambda: bridge.conv2d(X, None), TypeError, r"^weight must be a torch.Tensor, got NoneType"),
        (lambda: bridge.conv2d(X, W, 0), TypeError, r"^bias must be a torch.Tensor, got int"),
        (lambda: bridge.conv2d(X.to("meta"), W), TypeError, r"^input must be a dense tensor of the CPU or of CUDA, got device meta"),
        (
            lambda: bridge.conv2d(X, W.to_sparse()),
            TypeError,
            r"^weight must be a dense tensor of the CPU or of CUDA, got .* layout torch.sparse_coo",
        ),
        (lambda: bridge.conv2d(X.bool(), W), TypeError, r"^input must have one of the dtypes float64, .* got torch.bool"),
        (lambda: bridge.conv2d(X.double(), W), TypeError, r"^weight must have the dtype of input, got input float64 and weight float32"),
        (
            lambda: bridge.conv2d(X[0, 0], W),
            ValueError,
            r"^input must have 3 \(unbatched\) or 4 \(batched\) dimensions, got shape \(5, 5\)",
        ),
        (lambda: bridge.conv2d(X, W[0]), ValueError, r"^weight must have 4 dimensions, got shape \(2, 3, 3\)"),
        (lambda: bridge.conv2d(X[:, :1], W), ValueError, r"^input must have weight.shape\[1\] \* groups = 2 channels, got 1"),
        (lambda: bridge.conv2d(X, W, B[:2]), ValueError, r"^bias must have shape \(3,\)"),
        (lambda: bridge.conv2d(X, W, B, 0), ValueError, r"^stride must be at least 1"),
        (lambda: bridge.conv2d(X, W, B, 2, "same"), ValueError, r"^padding='same' needs stride 1"),
        (lambda: bridge.conv2d(X, W, B, 1, 5, padding_mode="reflect"), ValueError, r"^padding must be smaller than the input"),
        (lambda: bridge.conv2d(X, W, padding_mode="edge"), ValueError, r"^padding_mode must be one of"),
        (lambda: bridge.conv2d(X, W, dilation=3), ValueError, r"^kernel extent"),
        (lambda: bridge.conv2d(X, W, groups=2.0), TypeError, r"^groups must be an integer"),
        (lambda: bridge.conv_transpose2d(X[:, :1], W), ValueError, r"^input must have weight.shape\[0\] = 3 channels, got 1"),
        (lambda: bridge.conv_transpose2d(X, W[:2], padding="same"), TypeError, r"^padding must be integers or \(low, high\) pairs"),
        (lambda: bridge.conv_transpose2d(X, W[:2], output_padding=1), ValueError, r"^output_padding must be smaller"),
    ],
)
def test_refusals_name_the_argument(call: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error and "\n" not in str(caught.value)


# ---- imports ---------------------------------------------------------------------------------------------------------
def test_torch_is_imported_only_on_demand(python: Python) -> None:
    code = "import sys, numbaconv; a = 'torch' in sys.modules; numbaconv.torch.conv2d; print(a, 'torch' in sys.modules)"
    assert python(code).split() == ["False", "True"]
    python("import numbaconv.torch; import torch; assert numbaconv.torch is not torch")


def test_the_result_is_numbaconvs() -> None:
    x, w = np.arange(50.0).reshape(1, 2, 5, 5), np.arange(54.0).reshape(3, 2, 3, 3)
    assert torch.equal(bridge.conv2d(torch.from_numpy(x), torch.from_numpy(w)), torch.from_numpy(numbaconv.conv2d(x, w)))
