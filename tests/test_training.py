"""Layers in training: what they keep, backward, accumulated gradients."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest

import numbaconv
from numbaconv import Conv1d, Conv2d, Conv3d, ConvTranspose2d, LazyConv2d, LazyConvTranspose2d, grad

from .cases import BFLOAT16
from .layers import CONVS, TRANSPOSED, X, fill, small_layer, whole


def output_gradient(y: np.ndarray) -> np.ndarray:
    return whole(*y.shape, factor=3, period=8, shift=4).astype(y.dtype)


# ---- the gradients -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", CONVS + TRANSPOSED)
def test_backward_gives_the_gradients(kind: Any, batched: bool) -> None:
    rank = kind._rank
    layer = fill(kind(4, 6, 3, stride=2, padding=1, dilation=1, groups=2, dtype=np.float64)).train()
    x = whole(*((2, 4) if batched else (4,)), *range(5, 5 + rank))
    y = layer(x)
    g = output_gradient(y)
    dx = layer.backward(g)
    name = f"conv{'_transpose' * layer.transposed}{rank}d"
    arguments = {"stride": 2, "padding": 1, "groups": 2}
    np.testing.assert_array_equal(dx, getattr(grad, f"{name}_input")(x.shape, layer.weight, g, **arguments))
    np.testing.assert_array_equal(layer.weight_grad, getattr(grad, f"{name}_weight")(x, layer.weight.shape, g, **arguments))
    np.testing.assert_array_equal(layer.bias_grad, g.sum(axis=tuple(i for i in range(g.ndim) if i != g.ndim - rank - 1)))
    for adjoint, of in ((dx, x), (layer.weight_grad, layer.weight)):
        assert np.vdot(adjoint, of) == np.vdot(g, y - layer.bias.reshape(-1, *[1] * rank))


@pytest.mark.parametrize("padding, mode", [("same", "zeros"), (((0, 2), (1, 0)), "reflect"), (1, "replicate"), ((2, 1), "circular")])
def test_every_padding(padding: Any, mode: str) -> None:
    layer = small_layer(padding=padding, padding_mode=mode, bias=False).train()
    y = layer(X)
    g = output_gradient(y)
    assert np.vdot(layer.backward(g), X) == np.vdot(layer.weight_grad, layer.weight) == np.vdot(g, y)
    assert layer.bias_grad is None


@pytest.mark.parametrize("output_size", [None, (10, 12), [11, 10], (2, 3, 12, 11)])
@pytest.mark.parametrize("given", [False, True])
def test_output_size_is_respected(output_size: Any, given: bool) -> None:
    layer = fill(ConvTranspose2d(2, 3, 2, stride=3, padding=2, output_padding=1, bias=False, dtype=np.float64)).train()
    x = X[..., :5]
    y = layer(x, output_size)
    assert y.shape[2:] == ((11, 11) if output_size is None else tuple(output_size[-2:]))
    g = output_gradient(y)
    dx = layer.backward(g, x if given else None)
    assert np.vdot(dx, x) == np.vdot(layer.weight_grad, layer.weight) == np.vdot(g, y)


def test_output_padding_beyond_the_stride_is_told_from_grad_output() -> None:
    layer = fill(ConvTranspose2d(2, 3, 2, dilation=3, output_padding=2, bias=False, dtype=np.float64))
    y = layer(X)
    g = output_gradient(y)
    assert np.vdot(layer.backward(g, X), X) == np.vdot(layer.weight_grad, layer.weight) == np.vdot(g, y)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16, np.complex64])
def test_dtypes(dtype: Any) -> None:
    layer = Conv2d(2, 3, 2, dtype=dtype, rng=0).train()
    x = X.astype(dtype)
    g = output_gradient(layer(x))
    for _ in range(2):
        dx = layer.backward(g, x)
    assert dx.dtype == layer.weight_grad.dtype == layer.bias_grad.dtype == dtype
    np.testing.assert_array_equal(layer.bias_grad, (2 * grad.conv_bias(g)).astype(dtype))


def test_steps_down_the_gradient_lower_the_loss() -> None:
    layer, target = small_layer(rng=0).train(), 2 * small_layer()(X) + 1
    losses = []
    for _ in range(5):
        residual = layer(X) - target
        losses.append(float((residual**2).sum() / 2))
        layer.zero_grad()
        layer.backward(residual)
        layer.weight -= 1e-4 * layer.weight_grad
        layer.bias -= 1e-4 * layer.bias_grad
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]


# ---- modes -----------------------------------------------------------------------------------------------------------------
def test_eval_is_the_default_and_keeps_nothing() -> None:
    layer = small_layer()
    assert layer.training is False and layer.weight_grad is None and layer.bias_grad is None
    before = dict(vars(layer))
    layer(X)
    assert vars(layer).keys() == before.keys()
    assert layer.train() is layer and layer.training is True
    assert layer.train(np.bool_(False)) is layer and layer.training is False
    assert layer.train().eval() is layer and layer.training is False
    with pytest.raises(TypeError, match=r"^mode must be True or False, got 'fast'"):
        layer.train("fast")


@pytest.mark.parametrize("drop", ["backward", "eval"])
def test_the_input_is_kept_without_a_copy_until_it_is_not_needed(drop: str) -> None:
    layer, x = small_layer().train(), X.copy()
    kept = weakref.ref(x)
    g = output_gradient(layer(x))
    layer.zero_grad()
    del x
    gc.collect()
    assert kept() is not None
    layer.backward(g) if drop == "backward" else layer.eval()
    gc.collect()
    assert kept() is None


def test_gradients_accumulate_until_zero_grad() -> None:
    layer = small_layer().train()
    g = output_gradient(layer(X))
    layer.backward(g)
    first, first_bias = layer.weight_grad, layer.bias_grad
    before = first.copy()
    for times in (2, 3):
        layer(X)
        layer.backward(g)
        np.testing.assert_array_equal(layer.weight_grad, times * first)
        np.testing.assert_array_equal(layer.bias_grad, times * first_bias)
    np.testing.assert_array_equal(first, before)  # a gradient that somebody holds is not written into
    layer.zero_grad()
    assert layer.weight_grad is None and layer.bias_grad is None


def test_a_second_call_before_backward_needs_input() -> None:
    layer, y, other = small_layer().train(), X + 1, X[:1]
    g, g_other = output_gradient(layer(X)), output_gradient(layer(other))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^input must be given: the layer was called 2 times since the last backward and keeps one"):
            layer.backward(g)
    assert layer.weight_grad is None
    np.testing.assert_array_equal(layer.backward(g_other, other), grad.conv2d_input(other.shape, layer.weight, g_other))
    layer.backward(g, input=X)
    both = grad.conv2d_weight(X, layer.weight.shape, g) + grad.conv2d_weight(other, layer.weight.shape, g_other)
    np.testing.assert_array_equal(layer.weight_grad, both)
    with pytest.raises(ValueError, match=r"^input must be given: the layer was not called since the last backward"):
        layer.backward(g)
    layer(y)
    layer.backward(g)  # one call: its input is kept again


def test_backward_in_eval_mode_takes_the_input() -> None:
    layer = small_layer()
    g = output_gradient(layer(X))
    with pytest.raises(ValueError, match=r"^input must be given: the layer was not called in training mode: call its train\(\) first"):
        layer.backward(g)
    layer.backward(g, X)
    np.testing.assert_array_equal(layer.weight_grad, grad.conv2d_weight(X, layer.weight.shape, g))


def test_a_call_that_fails_is_no_call() -> None:
    layer = small_layer().train()
    g = output_gradient(layer(X))
    with pytest.raises(ValueError, match="input"):
        layer(X[0, 0])
    layer.backward(g)


# ---- refusals --------------------------------------------------------------------------------------------------------------
def test_backward_refusals_change_nothing() -> None:
    layer = small_layer().train()
    g = output_gradient(layer(X))
    for arguments, error, message in (
        ((None,), TypeError, r"^grad_output must be a numpy.ndarray"),
        ((g[0],), ValueError, r"^grad_output must have the convolution's output shape \(2, 3, 4, 5\), got \(3, 4, 5\)"),
        ((g.astype(np.float32),), TypeError, r"^grad_output must have the dtype of weight"),
        ((g, X.tolist()), TypeError, r"^input must be a numpy.ndarray"),
        ((g, X.astype(np.float32)), TypeError, r"^input must have the dtype of weight"),
        ((g, X[:, :1]), ValueError, r"^input must have weight.shape\[1\] \* groups = 2 channels, got 1"),
        ((g, X[..., 1:]), ValueError, r"^grad_output must have the convolution's output shape \(2, 3, 4, 4\)"),
    ):
        with pytest.raises(error, match=message):
            layer.backward(*arguments)
    assert layer.weight_grad is None and layer.bias_grad is None
    layer.backward(g)  # the kept input is still there
    layer.weight_grad = np.zeros((3, 2, 2))
    before = layer.bias_grad.copy()
    with pytest.raises(ValueError, match=r"^weight_grad must have shape \(3, 2, 2, 2\), got \(3, 2, 2\)"):
        layer.backward(g, X)
    np.testing.assert_array_equal(layer.bias_grad, before)


def test_transposed_refusals() -> None:
    layer = fill(ConvTranspose2d(2, 3, 2, stride=2, dtype=np.float64)).train()
    y = layer(X, (11, 12))
    with pytest.raises(ValueError, match=r"^grad_output must have the convolution's output shape \(2, 3, 11, 12\), got \(2, 3, 10, 12\)"):
        layer.backward(np.ones((2, 3, 10, 12)))
    for shape in ((2, 3, 12, 12), (2, 3, 9, 12), (12,)):
        with pytest.raises(ValueError, match=r"^grad_output must have a spatial size between \(10, 12\) and \(11, 13\) for this input"):
            layer.backward(np.ones(shape), X)
    with pytest.raises(ValueError, match=r"^grad_output must have the convolution's output shape"):
        layer.backward(y[:1], X)
    with pytest.raises(ValueError, match=r"^input must have 3 \(unbatched\) or 4 \(batched\) dimensions"):
        layer.backward(y, X[0, 0])


# ---- copies, lazy layers -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deep", "copy", "pickle"]
)
def test_copies_drop_the_kept_input(copied: Any) -> None:
    layer = small_layer().train()
    g = output_gradient(layer(X))
    other = copied(layer)
    assert other.training and other.weight_grad is None
    with pytest.raises(ValueError, match=r"^input must be given: the layer was not called since"):
        other.backward(g)
    layer.backward(g)
    np.testing.assert_array_equal(copied(layer).weight_grad, layer.weight_grad)
    assert len(pickle.dumps(Conv2d(1, 1, 1).train())) < 1000
    big = Conv1d(1, 1, 1).train()
    big(np.zeros((1, 100_000), np.float32))
    assert len(pickle.dumps(big)) < 2000


@pytest.mark.parametrize("lazy, plain", [(LazyConv2d, Conv2d), (LazyConvTranspose2d, ConvTranspose2d)])
def test_lazy_layers_train_from_their_first_call(lazy: Any, plain: Any) -> None:
    layer = lazy(3, 2, dtype=np.float64, rng=0).train()
    with pytest.raises(ValueError, match=r"must be called once before it has weight and bias"):
        layer.backward(X)
    direct = plain(2, 3, 2, dtype=np.float64, rng=0).train()
    g = output_gradient(direct(X))
    layer(X)
    assert type(layer) is plain and layer.training
    np.testing.assert_array_equal(layer.backward(g), direct.backward(g))
    np.testing.assert_array_equal(layer.weight_grad, direct.weight_grad)


def test_state_dicts_and_frozen_layers_hold_no_gradients() -> None:
    layer = Conv3d(1, 1, 1).train()
    x = np.ones((1, 2, 2, 2), np.float32)
    layer.backward(layer(x))
    assert set(layer.state_dict()) == {"weight", "bias"}
    frozen = layer.freeze()
    np.testing.assert_array_equal(frozen(x), layer(x))
    assert not hasattr(frozen, "backward") and numbaconv.Conv3d is Conv3d
