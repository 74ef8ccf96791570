"""Checks of the arguments that are not arrays: one sentence for each refusal, naming the argument."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
PADDING_STRINGS = ("valid", "same", "same_upper", "same_lower")
# Offsets are 64-bit; sizes stay a factor two below so that a sum of two never wraps.
LARGEST = 2**62


def integer(name: str, value: Any, least: int, what: str = "") -> int:
    """``value`` as an int of at least ``least``; bool, float and anything else without ``__index__`` is a TypeError."""
    if type(value) is int:  # torch.compile traces symbolic integers through this branch
        number: int = value
    elif isinstance(value, bool) or not hasattr(value, "__index__") or getattr(value, "ndim", False):
        raise TypeError(f"{name} must be an integer{what}, got {shown(value)}")
    else:
        number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if number >= LARGEST:
        raise ValueError(f"{name} must be below 2**62, got {value!r}")
    return number


def per_axis(name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """An int, or a tuple or list of 1 or ``rank`` ints, as ``rank`` ints of at least ``least``."""
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, rank):
            raise ValueError(f"{name} must be an integer or {_ints(rank)}, got {value!r} of length {len(value)}")
        numbers = tuple(integer(f"{name}[{i}]", v, least) for i, v in enumerate(value))
        return numbers * rank if len(numbers) == 1 else numbers
    return (integer(name, value, least, f" or a tuple or list of {rank} integers"),) * rank


def padding_pairs(padding: Any, rank: int, *, extra: str = "") -> list[tuple[int, int]]:
    """Numeric ``padding`` as (low, high) pairs, one an axis; ``extra`` names what else the caller accepts."""
    if isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) not in (1, rank):
            raise ValueError(f"padding must have a (low, high) pair for each of {rank} axes, got {padding!r}")
        pairs = []
        for i, pair in enumerate(padding):
            if not isinstance(pair, (tuple, list)):
                raise TypeError(f"padding must be all integers or all (low, high) pairs, got {padding!r}")
            if len(pair) != 2:
                raise ValueError(f"padding[{i}] must be a pair (low, high), got {pair!r}")
            pairs.append((integer(f"padding[{i}][0]", pair[0], 0), integer(f"padding[{i}][1]", pair[1], 0)))
        return pairs * rank if len(pairs) == 1 else pairs
    if isinstance(padding, str):
        raise TypeError(f"padding must be integers or (low, high) pairs{extra}, got {padding!r}")
    return [(p, p) for p in per_axis("padding", padding, rank, 0)]


def resolve_padding(
    padding: Any, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """Every form of a forward convolution's ``padding`` as (low, high) pairs for the given geometry.

    ``"same"`` is torch's: ``dilation * (kernel - 1)`` cells in all, the odd one at the end, and stride 1 only.
    ``"same_upper"`` and ``"same_lower"`` are ONNX's: ``max((ceil(i / s) - 1) * s + d * (k - 1) + 1 - i, 0)`` in all, for any
    stride, the odd cell at the end or at the start.
    """
    if not isinstance(padding, str):
        return padding_pairs(padding, len(size))
    if padding not in PADDING_STRINGS:
        raise ValueError(f"padding must be integers, pairs or one of {_quoted(PADDING_STRINGS)}, got {padding!r}")
    if padding == "valid":
        return [(0, 0)] * len(size)
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ValueError(f"padding='same' needs stride 1, got stride {tuple(stride)}; 'same_upper' and 'same_lower' take any stride")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation)]
    else:
        totals = [max((-(-i // s) - 1) * s + d * (k - 1) + 1 - i, 0) for i, k, s, d in zip(size, kernel, stride, dilation)]
    halves = [(total // 2, total - total // 2) for total in totals]
    return [(hi, lo) for lo, hi in halves] if padding == "same_lower" else halves


def check_padding_string(padding: Any, stride: Sequence[int], rank: int) -> None:
    """What can be refused about ``padding`` before the input's size is known (a module's constructor)."""
    unit = (1,) * rank
    resolve_padding(padding, unit, unit, stride, unit)


def check_padding_mode(mode: Any) -> str:
    if not isinstance(mode, str):
        raise TypeError(f"padding_mode must be one of {_quoted(PADDING_MODES)}, got {shown(mode)}")
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {_quoted(PADDING_MODES)}, got {mode!r}")
    return mode


def bounded(what: str, number: int) -> int:
    if number >= LARGEST:
        raise ValueError(f"{what} must be below 2**62, got {number}")
    return number


def shown_shape(shape: Sequence[int]) -> str:
    return str(tuple(int(n) for n in shape))


def _ints(rank: int) -> str:
    return "a tuple or list of 1 integer" if rank == 1 else f"a tuple or list of 1 or {rank} integers"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} of type {type(value).__name__}"
