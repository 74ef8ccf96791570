"""Layers: arguments and their refusals, output_size, copies, freeze.  torch's recorded outcomes are in test_recorded.py."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import numbaconv
from numbaconv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, LazyConv2d
from numbaconv.modules import Frozen

from .layers import X, fill, small_layer, whole


def test_repr_and_attributes() -> None:
    layer = ConvTranspose2d(4, 8, (3, 5), stride=2, padding=[1, 0], output_padding=(np.int64(1),), groups=2, dilation=(2, 3), bias=False)
    assert repr(layer) == (
        "ConvTranspose2d(4, 8, kernel_size=(3, 5), stride=(2, 2), padding=(1, 0), dilation=(2, 3), output_padding=(1, 1), "
        "groups=2, bias=False)"
    )
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 8, 2)
    assert (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 5), (2, 2), (1, 0), (2, 3))
    assert (layer.output_padding, layer.transposed, layer.padding_mode) == ((1, 1), True, "zeros")
    layer = Conv3d(4, 8, 3, 1, "same", 2, padding_mode="circular")
    assert repr(layer) == ("Conv3d(4, 8, kernel_size=(3, 3, 3), stride=(1, 1, 1), padding=same, dilation=(2, 2, 2), padding_mode=circular)")
    assert (layer.output_padding, layer.transposed, layer.padding) == ((0, 0, 0), False, "same")


def test_length_one_tuples_count_for_every_axis() -> None:
    """torch keeps a kernel_size of length 1 as it is and fails at the first call."""
    layer = Conv2d(1, 2, (3,), [2], (1,), dilation=[1])
    assert repr(layer) == "Conv2d(1, 2, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))"
    assert layer(np.zeros((1, 5, 5), np.float32)).shape == (2, 3, 3)


# ---- beyond torch ----------------------------------------------------------------------------------------------------------
def test_padding_beyond_torch() -> None:
    x = whole(1, 1, 6, 5)
    layer = fill(Conv2d(1, 1, 3, stride=2, padding=((0, 1), (2, 1)), dtype=np.float64))
    assert repr(layer) == "Conv2d(1, 1, kernel_size=(3, 3), stride=(2, 2), padding=((0, 1), (2, 1)))"
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (2, 1)))
    np.testing.assert_array_equal(layer(x), numbaconv.conv2d(padded, layer.weight, layer.bias, 2))
    assert Conv2d(1, 1, 3, padding=((1, 1), (2, 2))).padding == (1, 2)
    for padding, pairs in (("same_upper", ((0, 1), (1, 1))), ("same_lower", ((1, 0), (1, 1)))):
        layer.padding = padding
        np.testing.assert_array_equal(layer(x), numbaconv.conv2d(x, layer.weight, layer.bias, 2, pairs))
    assert repr(Conv1d(1, 1, 3, 2, "same_lower")) == "Conv1d(1, 1, kernel_size=(3,), stride=(2,), padding=same_lower)"


def test_transposed_padding_pairs_and_output_size() -> None:
    x = whole(2, 2, 4)
    layer = fill(ConvTranspose1d(2, 3, 3, stride=3, padding=((0, 2),), dtype=np.float64))
    whole_result = numbaconv.conv_transpose1d(x, layer.weight, layer.bias, 3, output_padding=2)
    for extra in range(3):
        np.testing.assert_array_equal(layer(x, output_size=(10 + extra,)), whole_result[..., : 10 + extra])
    np.testing.assert_array_equal(layer(x), whole_result[..., :10])
    with pytest.raises(ValueError, match=r"^output_size must lie between \(10,\) and \(12,\)"):
        layer(x, output_size=[13])


# ---- refusals --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Conv2d(4.0, 4, 3), TypeError, r"^in_channels must be an integer"),
        (lambda: Conv2d(4, True, 3), TypeError, r"^out_channels must be an integer"),
        (lambda: Conv2d(4, 0, 3), ValueError, r"^out_channels must be at least 1"),
        (lambda: Conv2d(-1, 4, 3), ValueError, r"^in_channels must be at least 0"),
        (lambda: ConvTranspose2d(0, 4, 3), ValueError, r"^in_channels must be at least 1"),
        (lambda: ConvTranspose2d(4, 0, 3), ValueError, r"^out_channels must be at least 1"),
        (lambda: Conv2d(3, 4, 3, groups=2), ValueError, r"^in_channels must be divisible by groups, got 3 and groups 2"),
        (lambda: Conv2d(4, 3, 3, groups=2), ValueError, r"^out_channels must be divisible by groups, got 3 and groups 2"),
        (lambda: LazyConv2d(3, 3, groups=2), ValueError, r"^out_channels must be divisible by groups"),
        (lambda: Conv2d(4, 4, 3, groups=1.0), TypeError, r"^groups must be an integer"),
        (lambda: Conv2d(4, 4, 0), ValueError, r"^kernel_size must be at least 1"),
        (lambda: Conv2d(4, 4, (3, -1)), ValueError, r"^kernel_size\[1\] must be at least 1"),
        (lambda: Conv1d(4, 4, (3, 3)), ValueError, r"^kernel_size must be an integer or a tuple or list of 1 integer"),
        (lambda: Conv2d(4, 4, "3"), TypeError, r"^kernel_size must be an integer"),
        (lambda: Conv2d(4, 4, 3, stride=0), ValueError, r"^stride must be at least 1"),
        (lambda: Conv2d(4, 4, 3, stride=None), TypeError, r"^stride must be an integer"),
        (lambda: Conv2d(4, 4, 3, dilation=0), ValueError, r"^dilation must be at least 1"),
        (lambda: Conv2d(4, 4, 3, dilation=2**61), ValueError, r"^the kernel extent .* must be below 2\*\*62"),
        (lambda: Conv2d(4, 4, 3, padding=-1), ValueError, r"^padding must be at least 0"),
        (lambda: Conv2d(4, 4, 3, padding=(1, 1, 1)), ValueError, r"^padding must be an integer or a tuple or list of 1 or 2"),
        (lambda: Conv2d(4, 4, 3, padding=((1, 1), 1)), TypeError, r"^padding must be all integers or all \(low, high\) pairs"),
        (lambda: Conv2d(4, 4, 3, padding=((1, 1), (1, -1))), ValueError, r"^padding\[1\]\[1\] must be at least 0"),
        (lambda: Conv2d(4, 4, 3, padding="full"), ValueError, r"^padding must be integers, pairs or one of 'valid', 'same'"),
        (lambda: Conv2d(4, 4, 3, 2, "same"), ValueError, r"^padding='same' needs stride 1"),
        (lambda: ConvTranspose2d(4, 4, 3, padding="same"), TypeError, r"^padding must be integers or \(low, high\) pairs, got 'same'"),
        (lambda: Conv2d(4, 4, 3, padding_mode="edge"), ValueError, r"^padding_mode must be one of"),
        (lambda: Conv2d(4, 4, 3, padding_mode=None), TypeError, r"^padding_mode must be one of"),
        (lambda: ConvTranspose2d(4, 4, 3, padding_mode="circular"), ValueError, r"^padding_mode must be 'zeros' for ConvTranspose2d"),
        (
            lambda: ConvTranspose2d(4, 4, 3, 2, output_padding=2),
            ValueError,
            r"^output_padding must be smaller than stride or dilation, got 2",
        ),
        (lambda: ConvTranspose2d(4, 4, 3, output_padding=-1), ValueError, r"^output_padding must be at least 0"),
        (lambda: Conv2d(4, 4, 3, bias=None), TypeError, r"^bias must be True or False"),
        (lambda: Conv2d(4, 4, 3, bias=np.zeros(4)), TypeError, r"^bias must be True or False, .* assign an array"),
        (lambda: Conv2d(4, 4, 3, device="gpu"), ValueError, r"^device must be None, 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        (lambda: Conv2d(4, 4, 3, dtype=np.int32), TypeError, r"^dtype must be one of float64, .* got .*int32"),
        (lambda: Conv2d(4, 4, 3, dtype=bool), TypeError, r"^dtype must be one of"),
        (lambda: Conv2d(4, 4, 3, dtype="floating"), TypeError, r"^dtype must be one of"),
        (lambda: Conv2d(4, 4, 3, dtype=object()), TypeError, r"^dtype must be one of"),
        (lambda: Conv2d(4, 4, 3, rng="0"), TypeError, r"^rng must be an integer, a numpy.random.Generator or None"),
        (lambda: Conv2d(4, 4, 3, rng=-1), ValueError, r"^rng must be at least 0"),
        (lambda: Conv2d(10**7, 10**7, 3), MemoryError, r"GiB"),
        (lambda: numbaconv.Unfold(0), ValueError, r"^kernel_size must be at least 1"),
        (lambda: numbaconv.Unfold(3, stride=(1, 1, 1)), ValueError, r"^stride must be an integer or a tuple"),
        (lambda: numbaconv.Unfold(3, padding=-1), ValueError, r"^padding must be at least 0"),
        (lambda: numbaconv.Fold((4, 4), 2, dilation=0), ValueError, r"^dilation must be at least 1"),
        (lambda: numbaconv.Fold(4.0, 2), TypeError, r"^output_size must be an integer"),
    ],
)
def test_constructor_refusals(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# ---- copies --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deep", "copy", "pickle"]
)
def test_copies(copied: Any) -> None:
    for layer in (small_layer(padding="same", padding_mode="reflect"), fill(ConvTranspose2d(2, 3, 2, 2, dtype=np.float64))):
        other = copied(layer)
        assert type(other) is type(layer) and repr(other) == repr(layer)
        np.testing.assert_array_equal(other(X), layer(X))
        other.weight = other.weight + 1
        assert (other.weight != layer.weight).all()
    lazy = copied(LazyConv2d(3, 2, rng=4))
    lazy(np.zeros((2, 5, 5), np.float32))
    np.testing.assert_array_equal(lazy.weight, Conv2d(2, 3, 2, rng=4).weight)


def test_torch_weights_give_torchs_numbers() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    for name, arguments in (
        ("Conv2d", {"padding": "same", "groups": 2, "padding_mode": "circular"}),
        ("ConvTranspose2d", {"stride": 2, "padding": 1, "output_padding": 1}),
    ):
        theirs = getattr(torch.nn, name)(4, 6, 3, **arguments)
        ours = getattr(numbaconv, name)(4, 6, 3, **arguments, dtype=np.float64)
        ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
        x = np.random.default_rng(0).standard_normal((2, 4, 5, 6))
        expected = theirs.double()(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(ours(x), expected, rtol=1e-12, atol=1e-12)
        assert repr(ours) == repr(theirs)


# ---- freeze ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "layer",
    [
        small_layer(padding=1, padding_mode="replicate"),
        small_layer(bias=False, stride=2, padding="same_lower"),
        fill(ConvTranspose2d(2, 3, 3, 2, 1, output_padding=1, dtype=np.float64)),
    ],
    ids=repr,
)
def test_frozen_layers_do_not_see_changes(layer: Any) -> None:
    layer = copy.deepcopy(layer)
    frozen, of_shape, of_input = layer.freeze(), layer.freeze(X.shape), layer.freeze(X[0])
    expected, smaller = layer(X), layer(X[:, :, 1:])
    layer.weight[...] = 0
    if layer.bias is not None:
        layer.bias[...] = 0
    assert isinstance(of_shape, numbaconv.Plan) and of_shape.algorithm and of_shape.packed_bytes > 0
    for plan in (frozen, of_shape, of_input, pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen)):
        np.testing.assert_array_equal(plan(X), expected)
        np.testing.assert_array_equal(plan(X[1]), expected[1])
        out = np.full_like(expected, np.nan)
        assert plan(X, out) is out
        np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(frozen(X[:, :, 1:]), smaller)
    assert repr(frozen) == f"Frozen({layer!r})"


def test_frozen_layers_keep_eight_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = numbaconv.modules.plan
    monkeypatch.setattr(numbaconv.modules, "plan", lambda shape, **arguments: made.append(shape) or real(shape, **arguments))
    frozen = small_layer().freeze()
    for width in (3, 3, *range(3, 11), 3):
        frozen(np.zeros((1, 2, 4, width)))
        frozen(np.zeros((5, 2, 4, width)))  # the batch does not matter
    assert made == [(2, 4, width) for width in range(3, 11)]
    frozen(np.zeros((2, 4, 11)))
    frozen(np.zeros((2, 4, 4)))
    assert made[8:] == [(2, 4, 11), (2, 4, 4)]  # width 4 was the one unused for longest


def test_frozen_refusals() -> None:
    frozen: Frozen = small_layer().freeze()
    for x, error, message in (
        (np.zeros((3, 5, 5)), ValueError, r"^input must have weight.shape\[1\] \* groups = 2 channels, got 3"),
        (np.zeros((5, 5)), ValueError, r"^input must have 3 \(unbatched\) or 4"),
        (X.astype(np.float32), TypeError, r"^input must have dtype float64 for this plan"),
        (X.tolist(), TypeError, r"^input must be a numpy.ndarray"),
    ):
        with pytest.raises(error, match=message):
            frozen(x)
    with pytest.raises(ValueError, match=r"must be called once"):
        LazyConv2d(3, 3).freeze()


# ---- Unfold and Fold -------------------------------------------------------------------------------------------------------
def test_unfold_and_fold_layers() -> None:
    unfold, fold = numbaconv.Unfold((2, 3), padding=1, stride=(1, 2)), numbaconv.Fold((5, 6), (2, 3), padding=1, stride=(1, 2))
    columns = numbaconv.unfold(X, (2, 3), padding=1, stride=(1, 2))
    np.testing.assert_array_equal(unfold(X), columns)
    np.testing.assert_array_equal(fold(columns), numbaconv.fold(columns, (5, 6), (2, 3), padding=1, stride=(1, 2)))
    assert repr(pickle.loads(pickle.dumps(fold))) == "Fold(output_size=(5, 6), kernel_size=(2, 3), dilation=1, padding=1, stride=(1, 2))"
