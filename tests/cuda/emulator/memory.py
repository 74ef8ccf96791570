"""Global memory: allocations at fake 64-bit addresses, with red zones between them, and the checks of every access."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict, deque
from typing import Any

import numpy as np

POISON = 0xFF  # each byte that was never written: NaN in every floating-point type, -1 in the signed ones
BASE = 1 << 40  # above 2**32, so that an address which loses its upper half is caught
RED_ZONE = 256


class Fault(RuntimeError):
    """The kernel did what is an error, or undefined, on a GPU."""


class Arena:
    """Bytes that threads address, seen as vectors of ``count`` words of ``width`` bytes each."""

    def __init__(self, nbytes: int) -> None:
        self.bytes = np.zeros(-(-nbytes // 16) * 16 + 16, np.uint8)
        self._words: dict[tuple[int, int], np.ndarray] = {}

    def words(self, width: int, count: int = 1) -> np.ndarray:
        """(n,) words, or (n, count) vectors; entry i lies at byte ``i * width * count``.  No copy."""
        try:
            return self._words[width, count]
        except KeyError:
            words = self.bytes.view(f"u{width}")
            if count > 1:
                words = words[: words.size // count * count].reshape(-1, count)
            self._words[width, count] = words
            return words


class Memory:
    """``size`` bytes of global memory, of which the machine holds what was touched.

    Allocations start on 256 bytes, at least 256 bytes that belong to nobody lie between them, and new ones hold POISON.  The arena never
    moves, so that a view of an allocation stays valid.
    """

    def __init__(self, size: int = 1 << 28) -> None:
        self.arena = Arena(size)
        self.tensor_maps: dict[int, Any] = {}  # what a kernel names by these addresses (tensorcores.TensorMap)
        self.stored: np.ndarray | None = None  # which bytes the running launch has stored; None: none yet
        self._size = size
        self._top = RED_ZONE
        self._starts: list[int] = []  # offsets of the live allocations, ascending
        self._sizes: dict[int, int] = {}
        self._free: defaultdict[int, deque[int]] = defaultdict(deque)  # bytes reserved -> offsets, oldest first

    def allocate(self, nbytes: int, poison: bool = True) -> int:
        """Address of ``nbytes`` bytes.  ``poison=False`` leaves them as they are, for an allocation too large to be touched all over."""
        reserved = -(-nbytes // 256) * 256 + RED_ZONE
        freed = self._free[reserved]
        full = self._top + reserved > self._size
        if len(freed) > 8 or (full and freed):  # what was freed is used again late, so that a use after free is seen
            offset = freed.popleft()
        elif full:
            raise MemoryError(f"{nbytes} bytes do not fit: {self._size - self._top} of {self._size} are left")
        else:
            offset = self._top
            self._top += reserved
        insort(self._starts, offset)
        self._sizes[offset] = nbytes
        if poison:
            self.arena.bytes[offset : offset + nbytes] = POISON
        return BASE + offset

    def free(self, address: int) -> None:
        offset = address - BASE
        nbytes = self._sizes.pop(offset, None)
        if nbytes is None:
            raise Fault(f"free of {address:#x}, where no allocation starts")
        del self._starts[bisect_left(self._starts, offset)]
        self._free[-(-nbytes // 256) * 256 + RED_ZONE].append(offset)

    def view(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes themselves, uint8, writable: no copy."""
        offset = address - BASE
        if nbytes:
            self._inside(offset, offset + nbytes)
        return self.arena.bytes[offset : offset + nbytes]

    def write(self, address: int, array: np.ndarray) -> None:
        array = np.asarray(array)
        self.view(address, array.nbytes)[...] = np.frombuffer(array.tobytes(), np.uint8)

    def read(self, address: int, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """A copy, C-contiguous."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        return self.view(address, count * dtype.itemsize).copy().view(dtype).reshape(shape)

    def mark_stored(self, offsets: np.ndarray, nbytes: int) -> None:
        if self.stored is None:
            self.stored = np.zeros(self.arena.bytes.size, np.bool_)
        self.stored[offsets[:, None] + np.arange(nbytes)] = True

    def _inside(self, start: int, stop: int) -> None:
        at = bisect_right(self._starts, start) - 1
        if at < 0 or stop > self._starts[at] + self._sizes[self._starts[at]]:
            raise Fault(f"out of bounds: {stop - start} bytes at {BASE + start:#x}")

    def outside(self, addresses: np.ndarray, nbytes: np.ndarray | int) -> np.ndarray | None:
        """Which of the accesses leave every allocation; None where none does."""
        offsets = addresses - BASE
        low, high = int(np.minimum.reduce(offsets)), int(np.maximum.reduce(offsets + nbytes))
        at = bisect_right(self._starts, low) - 1
        if at >= 0 and high <= self._starts[at] + self._sizes[self._starts[at]]:
            return None  # the usual case: all in one allocation
        if not self._starts:
            return np.ones(offsets.shape, np.bool_)
        starts = np.array(self._starts, np.int64)
        ends = starts + np.array([self._sizes[start] for start in self._starts], np.int64)
        at = np.searchsorted(starts, offsets, "right") - 1
        bad = (at < 0) | (offsets + nbytes > ends[at])
        return bad if bad.any() else None
