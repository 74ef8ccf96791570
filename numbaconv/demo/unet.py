"""A small 3-D U-Net by NumPy and numbaconv's layers alone, its loss and its optimiser; and the same network on torch to compare with.

Sources: Çiçek et al., 3D U-Net, https://arxiv.org/abs/1606.06650; Kingma and Ba, Adam, https://arxiv.org/abs/1412.6980
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..arrays import AnyArray
from ..modules import Conv3d, ConvTranspose3d

Layers = Mapping[str, Any]
DIVISOR = 4  # sizes must be a multiple of it: two halvings
LEAK = np.float32(0.1)  # slope of the ReLUs below 0: no channel ever dies


class Engine(Protocol):
    """What trains and applies the network."""

    name: str

    def step(self, x: AnyArray, target: AnyArray, rate: float) -> float:
        """One step of Adam on a batch (N, 1, D, H, W) at this learning rate; the loss before it."""
        ...

    def predict(self, x: AnyArray) -> AnyArray:
        """The network's probabilities, (N, 1, D, H, W)."""
        ...


def make_layers(seed: int) -> dict[str, Any]:
    """Ten layers: two strided convolutions down, two transposed ones up; the others keep the size by replicate padding.

    Weights are drawn by He et al. (https://arxiv.org/abs/1502.01852), which keeps the variance through ReLUs; biases start at 0.
    """
    rng = np.random.default_rng(seed)
    same: dict[str, Any] = {"padding": 1, "padding_mode": "replicate", "rng": rng}
    layers: dict[str, Any] = {
        "first": Conv3d(1, 8, 3, **same),
        "down1": Conv3d(8, 16, 3, stride=2, **same),
        "middle": Conv3d(16, 16, 3, **same),
        "down2": Conv3d(16, 32, 3, stride=2, **same),
        "bottom": Conv3d(32, 32, 3, **same),
        "up2": ConvTranspose3d(32, 16, 2, stride=2, rng=rng),
        "merge2": Conv3d(32, 16, 3, **same),
        "up1": ConvTranspose3d(16, 8, 2, stride=2, rng=rng),
        "merge1": Conv3d(16, 8, 3, **same),
        "last": Conv3d(8, 1, 1, rng=rng),
    }
    for layer in layers.values():
        products = layer.in_channels * (1 if layer.transposed else math.prod(layer.kernel_size))  # of one element
        layer.weight[...] = rng.normal(0, math.sqrt(2 / products), layer.weight.shape)
        layer.bias[...] = 0
    return layers


def forward(layers: Layers, x: Any, relu: Callable[[Any], Any], join: Callable[[list[Any]], Any]) -> tuple[Any, dict[str, Any]]:
    """The logits (N, 1, D, H, W) for ``x`` of that shape, and each layer's output after its ReLU; of NumPy arrays or torch tensors.

    ``join`` concatenates along the channels.
    """
    y = {}
    y["first"] = relu(layers["first"](x))
    y["down1"] = relu(layers["down1"](y["first"]))
    y["middle"] = relu(layers["middle"](y["down1"]))
    y["down2"] = relu(layers["down2"](y["middle"]))
    y["bottom"] = relu(layers["bottom"](y["down2"]))
    y["merge2"] = relu(layers["merge2"](join([layers["up2"](y["bottom"]), y["middle"]])))
    y["merge1"] = relu(layers["merge1"](join([layers["up1"](y["merge2"]), y["first"]])))
    return layers["last"](y["merge1"]), y


def backward(layers: Layers, outputs: Mapping[str, AnyArray], g: AnyArray) -> None:
    """Add the gradients of every weight and bias, from that of the logits; ``outputs`` are those of :func:`forward`."""

    def through(name: str, g: AnyArray) -> AnyArray:
        """Back through a layer and the ReLU after it."""
        result: AnyArray = layers[name].backward(np.where(outputs[name] > 0, g, LEAK * g))
        return result

    g = through("merge1", layers["last"].backward(g))
    up, to_first = np.split(g, [layers["up1"].out_channels], axis=1)
    g = through("merge2", layers["up1"].backward(up))
    up, to_middle = np.split(g, [layers["up2"].out_channels], axis=1)
    g = through("down2", through("bottom", layers["up2"].backward(up)))
    g = through("down1", through("middle", g + to_middle))
    through("first", g + to_first)


def cross_entropy(logits: AnyArray, target: AnyArray) -> tuple[float, AnyArray]:
    """The mean binary cross-entropy against probabilities, and its gradient with respect to the logits."""
    small = np.exp(-np.abs(logits))
    loss = np.maximum(logits, 0) - logits * target + np.log1p(small)
    return float(loss.mean(dtype=np.float64)), (sigmoid(logits) - target) / np.float32(logits.size)


def sigmoid(logits: AnyArray) -> AnyArray:
    small = np.exp(-np.abs(logits))
    result: AnyArray = np.where(logits >= 0, 1, small) / (1 + small)
    return result


class Adam:
    """Adam for the weights and biases of numbaconv layers, with its authors' constants."""

    def __init__(self, layers: Layers) -> None:
        self._names = [(layer, name) for layer in layers.values() for name in ("weight", "bias")]
        self._means = [np.zeros_like(getattr(layer, name)) for layer, name in self._names]
        self._squares = [np.zeros_like(mean) for mean in self._means]
        self._steps = 0

    def step(self, rate: float) -> None:
        """Change every parameter in place by its accumulated gradient, and drop the gradient."""
        self._steps += 1
        step, scale = rate / (1 - 0.9**self._steps), (1 - 0.999**self._steps) ** -0.5
        for (layer, name), mean, square in zip(self._names, self._means, self._squares):
            gradient = getattr(layer, f"{name}_grad")
            mean += (gradient - mean) * np.float32(0.1)
            square += (gradient * gradient - square) * np.float32(0.001)
            parameter = getattr(layer, name)
            parameter -= np.float32(step) * mean / (np.sqrt(square) * np.float32(scale) + np.float32(1e-8))
        for layer, _ in self._names:
            layer.zero_grad()


class NumbaconvEngine:
    """The network on numbaconv's layers."""

    name = "numbaconv"

    def __init__(self, seed: int) -> None:
        self.layers = make_layers(seed)
        self._adam = Adam(self.layers)

    def step(self, x: AnyArray, target: AnyArray, rate: float) -> float:
        for layer in self.layers.values():
            layer.train()
        logits, outputs = self._forward(x)
        loss, g = cross_entropy(logits, target)
        backward(self.layers, outputs, g)
        self._adam.step(rate)
        return loss

    def predict(self, x: AnyArray) -> AnyArray:
        for layer in self.layers.values():
            layer.eval()
        return sigmoid(self._forward(x)[0])

    def _forward(self, x: AnyArray) -> tuple[AnyArray, dict[str, AnyArray]]:
        return forward(self.layers, x, lambda y: np.maximum(y, LEAK * y, out=y), lambda parts: np.concatenate(parts, axis=1))


class TorchEngine:
    """The same network, from the same initial weights, on torch's layers, autograd and Adam; ImportError without torch."""

    name = "torch"

    def __init__(self, seed: int) -> None:
        import torch

        self._torch = torch
        self._layers = {name: self._converted(layer) for name, layer in make_layers(seed).items()}
        self._adam = torch.optim.Adam([p for layer in self._layers.values() for p in layer.parameters()])

    def _converted(self, layer: Any) -> Any:
        kind = getattr(self._torch.nn, type(layer).__name__)
        result = kind(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, padding_mode=layer.padding_mode
        )
        result.load_state_dict({name: self._torch.from_numpy(array) for name, array in layer.state_dict().items()})
        return result

    def step(self, x: AnyArray, target: AnyArray, rate: float) -> float:
        torch = self._torch
        self._adam.param_groups[0]["lr"] = rate
        self._adam.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self._forward(x), torch.from_numpy(target))
        loss.backward()
        self._adam.step()
        return float(loss.item())

    def predict(self, x: AnyArray) -> AnyArray:
        with self._torch.no_grad():
            result: AnyArray = self._forward(x).sigmoid().numpy()
        return result

    def _forward(self, x: AnyArray) -> Any:
        torch = self._torch
        return forward(
            self._layers, torch.from_numpy(x), lambda y: torch.nn.functional.leaky_relu(y, float(LEAK)), lambda parts: torch.cat(parts, 1)
        )[0]
