"""The definition, in plain NumPy: the oracle that every kernel is tested against, and readable on its own.

Sums run in float64 (complex128, or Python-exact int64 arithmetic modulo 2**64) over one tap at a time, so that the code
follows the formula of torch's documentation::

    out[n, o] = bias[o] + sum over c, k of weight[o, c, k] * input[n, c, o * stride + k * dilation - padding]

Not fast, and it keeps a padded copy of the input.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .arguments import PADDING_MODES
from .arrays import AnyArray, dtype_named
from .padding import PADDING, index_map
from .problem import Problem


def convolve(problem: Problem, source: AnyArray, weight: AnyArray, bias: AnyArray | None = None, *, rounded: bool = True) -> AnyArray:
    """The result of ``problem`` for arrays of its shapes (any layout), rounded once to its ``out_dtype``.

    source : array of shape ``problem.source_shape``; weight : ``problem.weight_shape``; bias : ``(problem.result_channels,)``
    or None.  With ``rounded=False`` the float64 (complex128, int64) sums themselves.
    """
    wide = _wide(problem.dtype)
    x = source.astype(wide).reshape(problem.batch, problem.source_channels, *problem.source_size)
    w = weight.astype(wide).reshape(problem.out_channels, problem.in_per_group, *problem.kernel)
    with np.errstate(all="ignore"):
        sums = (_input_grad if problem.transposed else _forward)(problem, x, w)
        if bias is not None:
            sums += bias.astype(wide).reshape(1, -1, 1, 1, 1)
        sums = sums.reshape(problem.result_shape)
        return sums.astype(dtype_named(problem.out_dtype)) if rounded else sums


def _forward(p: Problem, x: AnyArray, w: AnyArray) -> AnyArray:
    padded = _pad(p, x).reshape(p.batch, p.groups, p.in_per_group, *_padded_size(p))
    filters = w.reshape(p.groups, p.out_per_group, p.in_per_group, *p.kernel)
    out = np.zeros((p.batch, p.groups, p.out_per_group, *p.out_size), w.dtype)
    for tap in itertools.product(*map(range, p.kernel)):
        window = padded[_window(p, tap)]
        for c in range(p.in_per_group):
            out += filters[None, :, :, c, *tap, None, None, None] * window[:, :, None, c]
    return out.reshape(p.batch, p.out_channels, *p.out_size)


def _input_grad(p: Problem, g: AnyArray, w: AnyArray) -> AnyArray:
    grads = g.reshape(p.batch, p.groups, p.out_per_group, *p.out_size)
    filters = w.reshape(p.groups, p.out_per_group, p.in_per_group, *p.kernel)
    padded = np.zeros((p.batch, p.groups, p.in_per_group, *_padded_size(p)), w.dtype)
    for tap in itertools.product(*map(range, p.kernel)):
        window = padded[_window(p, tap)]
        for o in range(p.out_per_group):
            window += filters[None, :, o, :, *tap, None, None, None] * grads[:, :, None, o]
    return _fold(p, padded.reshape(p.batch, p.in_channels, *_padded_size(p)))


def weight_grad(problem: Problem, input: AnyArray, grad_output: AnyArray, *, rounded: bool = True) -> AnyArray:
    """The gradient of ``problem`` (direction "weight_grad") with respect to its weight, the input conjugated; as :func:`convolve`."""
    p, wide = problem, _wide(problem.dtype)
    padded = _pad(p, input.astype(wide).reshape(p.batch, p.in_channels, *p.in_size))
    padded = padded.conj().reshape(p.batch, p.groups, p.in_per_group, *_padded_size(p))
    grads = grad_output.astype(wide).reshape(p.batch, p.groups, p.out_per_group, *p.out_size)
    out = np.zeros((p.groups, p.out_per_group, p.in_per_group, *p.kernel), wide)
    with np.errstate(all="ignore"):
        for tap in itertools.product(*map(range, p.kernel)):
            out[:, :, :, tap[0], tap[1], tap[2]] = np.einsum("ngodhw,ngcdhw->goc", grads, padded[_window(p, tap)])
    out = out.reshape(p.weight_shape)
    return out.astype(dtype_named(p.out_dtype)) if rounded else out


def _padded_size(p: Problem) -> tuple[int, ...]:
    return tuple(i + lo + hi for i, (lo, hi) in zip(p.in_size, p.padding))


def _window(p: Problem, tap: tuple[int, ...]) -> Any:
    """The padded cells that one kernel tap meets, one for each output cell."""
    return (...,) + tuple(slice(k * d, k * d + (o - 1) * s + 1, s) for k, d, s, o in zip(tap, p.dilation, p.stride, p.out_size))


def _maps(p: Problem) -> list[AnyArray]:
    mode = PADDING_MODES.index(p.padding_mode)
    return [index_map(i, lo, hi, mode) for i, (lo, hi) in zip(p.in_size, p.padding)]


def _pad(p: Problem, x: AnyArray) -> AnyArray:
    for axis, indices in enumerate(_maps(p), start=2):
        x = x.take(indices, axis=axis)  # a zero of the padding takes any cell first
        x[(slice(None),) * axis + (indices == PADDING,)] = 0
    return x


def _fold(p: Problem, padded: AnyArray) -> AnyArray:
    """The transpose of padding: every padded cell adds to the input cell that it read."""
    for axis, indices in enumerate(_maps(p), start=2):
        kept = indices != PADDING
        shape = padded.shape[:axis] + (p.in_size[axis - 2],) + padded.shape[axis + 1 :]
        folded = np.zeros(shape, padded.dtype)
        np.add.at(np.moveaxis(folded, axis, 0), indices[kept], np.moveaxis(padded, axis, 0)[kept])
        padded = folded
    return padded


def _wide(dtype: str) -> np.dtype[Any]:
    if dtype.startswith("complex"):
        return np.dtype(np.complex128)
    return np.dtype(np.float64 if "float" in dtype else np.int64)
