"""Layers with known weights, and an input for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numbaconv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

CONVS = (Conv1d, Conv2d, Conv3d)
TRANSPOSED = (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)


def whole(*shape: int, factor: int = 7, period: int = 11, shift: int = 5) -> np.ndarray:
    """Whole numbers between -5 and 5."""
    return ((np.arange(math.prod(shape)) * factor) % period - shift).astype(np.float64).reshape(shape)


def fill(layer: Any) -> Any:
    """``layer`` with whole numbers as weight and bias."""
    layer.weight[...] = whole(*layer.weight.shape, factor=5, period=7, shift=3)
    if layer.bias is not None:
        layer.bias[...] = np.arange(layer.bias.size) + 1
    return layer


X = whole(2, 2, 5, 6)


def small_layer(**more: Any) -> Conv2d:
    """A float64 layer that takes X."""
    return fill(Conv2d(2, 3, 2, dtype=np.float64, **more))
