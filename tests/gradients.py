"""Arrays, calls and expected values for the gradients of a case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from numbaconv import Problem, grad, reference

from .cases import arguments, dtype_of


def call_input(p: Problem, w: np.ndarray, g: np.ndarray, *, batched: bool = True, **options: Any) -> np.ndarray:
    """``numbaconv.grad``'s gradient of the function of ``p`` with respect to its input."""
    size = p.source_shape if batched else p.source_shape[1:]
    return getattr(grad, f"{function_name(p)}_input")(size, w, g, **arguments(p), **options)


def call_weight(p: Problem, x: np.ndarray, g: np.ndarray, **options: Any) -> np.ndarray:
    """``numbaconv.grad``'s gradient of the function of ``p`` with respect to its weight."""
    return getattr(grad, f"{function_name(p)}_weight")(x, p.weight_shape, g, **arguments(p), **options)


def expected_input(p: Problem, w: np.ndarray, g: np.ndarray, *, rounded: bool = True) -> np.ndarray:
    """The reference's input gradient: of a convolution its input_grad, of a transposed convolution its forward convolution."""
    other = plain(p, "forward" if p.transposed else "input_grad")
    return reference.convolve(other, g, conjugate(w), rounded=rounded)


def expected_weight(p: Problem, x: np.ndarray, g: np.ndarray, *, rounded: bool = True) -> np.ndarray:
    """The reference's weight gradient; it conjugates what the forward convolution reads, which of a transposed one is ``g``."""
    q = plain(p, "weight_grad")
    if p.transposed:
        return conjugate(reference.weight_grad(q, g, x, rounded=rounded))
    return reference.weight_grad(q, x, g, rounded=rounded)


def plain(p: Problem, direction: Any) -> Problem:
    return replace(p, direction=direction, bias=False, out_dtype=p.dtype)


def function_name(p: Problem) -> str:
    return f"conv{'_transpose' * p.transposed}{p.rank}d"


def conjugate(array: np.ndarray) -> np.ndarray:
    return np.conj(array) if array.dtype.kind == "c" else array


def formula_arrays(p: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Input, weight, bias and output gradient of whole numbers by formulas, (times * i) % modulus + shift."""
    dtype = dtype_of(p.dtype)

    def formula(shape: tuple[int, ...], times: int, modulus: int, shift: int) -> np.ndarray:
        i = np.arange(int(np.prod(shape)))
        numbers = (times * i) % modulus + shift
        imaginary = (times * i + 1) % (modulus - 1) + shift
        return (numbers + 1j * imaginary if dtype.kind == "c" else numbers).astype(dtype).reshape(shape)

    bias = formula((p.result_channels,), 1, 5, 1) if p.bias else None
    return formula(p.source_shape, 7, 11, -5), formula(p.weight_shape, 5, 7, -3), bias, formula(p.result_shape, 3, 8, -4)
