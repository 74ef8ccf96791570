"""Where a padded cell gets its value: the four padding modes as one index map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PADDING = -1
"""The index of a cell of zero padding."""


def source_index(index: int, size: int, mode: int) -> int:
    """The input index that padded position ``index`` (0 is the first input cell) reads; ``PADDING`` for a zero.

    ``mode`` is the position in ``PADDING_MODES``: 0 zeros, 1 reflect (without repeating the edge), 2 replicate, 3 circular.
    Plain integer arithmetic, so that compiled kernels inline this very function.
    """
    if 0 <= index < size:
        return index
    if mode == 0:
        return PADDING
    if mode == 1:
        return -index if index < 0 else 2 * (size - 1) - index
    if mode == 2:
        return 0 if index < 0 else size - 1
    return index + size if index < 0 else index - size


def index_map(size: int, low: int, high: int, mode: int) -> NDArray[np.int64]:
    """The input index of every cell of an axis padded by ``low`` and ``high``, as an int64 array of length low + size + high."""
    return np.array([source_index(i, size, mode) for i in range(-low, size + high)], np.int64)
