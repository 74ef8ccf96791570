"""The names that recorded torch code uses (``torch``, ``F``, ``nn``, its input formulas) with numbaconv and NumPy behind them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numba
import numpy as np

import numbaconv
from numbaconv.arguments import resolve_padding


def _formula(times: int, modulus: int, shift: int) -> Callable[..., np.ndarray]:
    """The recorded inputs, (times * i) % modulus + shift."""

    def array(*shape: int, dt: Any = np.float64) -> np.ndarray:
        return ((np.arange(int(np.prod(shape))) * times) % modulus + shift).astype(dt).reshape(shape)

    return array


def _fill(layer: Any) -> Any:
    layer.weight[...] = _K(*layer.weight.shape, dt=layer.weight.dtype)
    if layer.bias is not None:
        layer.bias[...] = _B(*layer.bias.shape, dt=layer.bias.dtype)
    return layer


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def _reversed_padding(layer: Any) -> list[int]:
    """torch's private ``_reversed_padding_repeated_twice``: (low, high) of the last axis first."""
    unit = (1,) * len(layer.kernel_size)
    pairs = resolve_padding(layer.padding, unit, layer.kernel_size, layer.stride, layer.dilation)
    return [cells for pair in reversed(pairs) for cells in pair]


def _initial_bounds(layer: Any) -> dict[str, Any]:
    """Fans and bound by torch's formula from the weight's shape; how near the largest drawn values come to the bound."""
    w = layer.weight
    taps = int(np.prod(w.shape[2:]))
    bound = (w.shape[1] * taps) ** -0.5
    ratios = {f"{name}_max_ratio": float(np.abs(getattr(layer, name)).max()) / bound for name in ("weight", "bias")}
    return dict(fan_in=w.shape[1] * taps, fan_out=w.shape[0] * taps, bound=bound, **ratios)


def _same_for_threads(function: Any, x: np.ndarray, w: np.ndarray) -> bool:
    threads = numba.get_num_threads()
    results = []
    for count in (1, threads):
        numba.set_num_threads(count)
        results.append(function(x, w, padding=1))
    return bool((results[0] == results[1]).all())


def _default_float32(make: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def array(*shape: Any, dtype: Any = np.float32) -> np.ndarray:
        return make(shape[0] if isinstance(shape[0], tuple) else shape, dtype=dtype)

    return array


def _randn(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


_A, _K, _B = _formula(7, 11, -5), _formula(5, 7, -3), _formula(1, 2**62, 1)
_DTYPES = "float64 float32 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 complex64 complex128"
_TORCH = SimpleNamespace(
    **{name: np.dtype(name).type for name in _DTYPES.split()},
    bfloat16=ml_dtypes.bfloat16,
    float8_e4m3fn=ml_dtypes.float8_e4m3fn,
    bool=np.bool_,
    arange=lambda *limits: np.arange(*limits, dtype=np.float32 if isinstance(limits[0], float) else np.int64),
    zeros=_default_float32(np.zeros),
    ones=_default_float32(np.ones),
    empty=_default_float32(np.zeros),
    full=lambda shape, value, dtype=np.float32: np.full(shape, value, dtype),
    tensor=lambda value, dtype=None: np.array(value, dtype or (np.int64 if isinstance(value, int) else np.float32)),
    complex=lambda re, im: re + 1j * im,
    from_numpy=lambda array: array,
    randn=_randn,
    Size=tuple,
)
_LAYERS = [f"{kind}{rank}d" for kind in ("Conv", "ConvTranspose", "LazyConv", "LazyConvTranspose") for rank in (1, 2, 3)]
NAMES: dict[str, Any] = {
    "np": np,
    "inspect": inspect,
    "F": numbaconv,
    "nn": SimpleNamespace(
        grad=numbaconv.grad,
        Parameter=lambda array, requires_grad: array,
        **{name: getattr(numbaconv, name) for name in (*_LAYERS, "Unfold", "Fold")},
    ),
    "torch": _TORCH,
    "A": _A,
    "K": _K,
    "B": _B,
    "D": {"dtype": np.float64},
    "fill": _fill,
    "channels_last": _channels_last,
    "reversed_padding": _reversed_padding,
    "initial_bounds": _initial_bounds,
    "same_for_threads": _same_for_threads,
}
