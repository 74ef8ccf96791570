"""Layers on a device: where they are drawn, how they move, train, freeze, load and are pickled."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from . import packages

if why := packages.missing():
    pytest.skip(why, allow_module_level=True)

import numbaconv
from numbaconv import Conv1d, Conv2d, ConvTranspose2d, LazyConv2d

from .device import get, put

X = np.random.default_rng(0).integers(-3, 4, (2, 4, 6, 7)).astype(np.float32)


@pytest.fixture(autouse=True)
def available(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.emulated:
        monkeypatch.setattr(numbaconv.cuda, "unavailable_reason", lambda: None)


def rounded(layer: Any) -> Any:
    """The layer with whole numbers as weight and bias, so that results are exact."""
    layer.load_state_dict({name: np.round(value * 9) for name, value in layer.to("cpu").state_dict().items()})
    return layer


@pytest.mark.parametrize(
    "make", [lambda d: Conv2d(4, 6, 3, padding=1, device=d, rng=1), lambda d: ConvTranspose2d(4, 6, 3, 2, device=d, rng=1)]
)
def test_drawn_alike_and_computes_there(make: Any, device: Any) -> None:
    there, here = make("cuda"), make(None)
    for name, value in here.state_dict().items():
        np.testing.assert_array_equal(get(device, there.state_dict()[name]), value)
    rounded(here), rounded(there).to("cuda:0")
    np.testing.assert_array_equal(get(device, there(put(device, X))), here(X))
    with pytest.raises(TypeError, match=r"^weight must live where input does"):
        there(X)
    assert there.to("cpu") is there and isinstance(there.weight, np.ndarray)
    np.testing.assert_array_equal(there(X), here(X))


def test_training(device: Any) -> None:
    here, there = rounded(Conv2d(4, 6, 3, padding=1, rng=2)).train(), rounded(Conv2d(4, 6, 3, padding=1, rng=2)).to("cuda").train()
    for _ in range(2):  # the second time gradients are added
        g = np.sign(here(X))
        there(put(device, X))
        np.testing.assert_array_equal(get(device, there.backward(put(device, g))), here.backward(g))
        np.testing.assert_array_equal(get(device, there.weight_grad), here.weight_grad)
        np.testing.assert_array_equal(get(device, there.bias_grad), here.bias_grad)
    image = Conv2d(4, 6, 3, device="cuda", rng=2).train()
    image(put(device, X[0]))
    assert get(device, image.backward(put(device, np.ones((6, 4, 5), np.float32)))).shape == X[0].shape


def test_frozen_layers_do_not_see_later_changes(device: Any) -> None:
    layer = rounded(Conv2d(4, 6, 3, rng=3)).to("cuda")
    expected = get(device, layer(put(device, X)))
    frozen, plan = layer.freeze(), layer.freeze(X.shape)
    layer.load_state_dict({name: np.zeros(value.shape, np.float32) for name, value in layer.state_dict().items()})
    assert not get(device, layer(put(device, X))).any()
    np.testing.assert_array_equal(get(device, frozen(put(device, X))), expected)
    np.testing.assert_array_equal(get(device, plan(put(device, X))), expected)


def test_state_of_another_dtype_or_place(device: Any) -> None:
    layer = Conv1d(2, 3, 5, device="cuda", dtype=np.float64)
    state = {"weight": np.arange(30, dtype=np.float32).reshape(3, 2, 5), "bias": put(device, np.arange(3))}
    kept = layer.weight
    layer.load_state_dict(state)
    assert layer.weight is kept, "loaded in place"
    np.testing.assert_array_equal(get(device, layer.weight), state["weight"])
    np.testing.assert_array_equal(get(device, layer.bias), np.arange(3))
    with pytest.raises(ValueError, match=r"^weight must have shape"):
        layer.load_state_dict(state | {"weight": state["weight"][:2]})


@pytest.mark.parametrize("make", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(make: Any, device: Any) -> None:
    layer = Conv2d(4, 6, 3, device="cuda", rng=4)
    twin = make(layer)
    assert twin.weight is not layer.weight
    np.testing.assert_array_equal(get(device, twin.weight), get(device, layer.weight))
    assert get(device, twin(put(device, X))).shape == (2, 6, 4, 5)


def test_lazy_layers(device: Any) -> None:
    layer = LazyConv2d(6, 3, device="cuda", rng=5)
    result = layer(put(device, X))
    assert type(layer) is Conv2d and layer.in_channels == 4 and get(device, result).shape == (2, 6, 4, 5)


def test_refusals(device: Any) -> None:
    for name, error, message in (
        ("cuda:x", ValueError, r"^device must be None, 'cpu', 'cuda' or 'cuda:N', got 'cuda:x'"),
        ("cuda:99", ValueError, r"^device must be one of the \d+ there are, got 'cuda:99'"),
        (0, TypeError, r"^device must be None, 'cpu', 'cuda' or 'cuda:N', got 0"),
    ):
        with pytest.raises(error, match=message):
            Conv2d(4, 6, 3, device=name)
        with pytest.raises(error, match=message):
            Conv2d(4, 6, 3).to(name)
