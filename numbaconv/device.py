"""An array in the memory of a CUDA device, as the library sees it: an address with a shape, and who owns it."""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol


@functools.lru_cache(maxsize=1024)
def _five(shape: tuple[int, ...], strides: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(shape) == rank + 1:
        shape, strides = (1, *shape), (0, *strides)
    return shape[:2] + (1,) * (3 - rank) + shape[2:], strides[:2] + (0,) * (3 - rank) + strides[2:]


@functools.lru_cache(maxsize=1024)
def extent_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Bytes from the element with index 0 to the lowest and to the highest one."""
    reaches = [step * (n - 1) for step, n in zip(strides, shape) if n]
    return sum(min(0, reach) for reach in reaches), sum(max(0, reach) for reach in reaches)


class Library(Protocol):
    """Whose arrays these are: results come back as its own type, from its allocator."""

    name: str

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """A fresh C-contiguous array of the library, allocated in the order of ``stream``."""
        ...

    def stream(self, device: int) -> int:
        """Handle of the stream on which the library's caller works now."""
        ...


class DeviceArray:
    """Strides in bytes; ``dtype`` is a name; ``stream`` is the handle of the stream that orders the array's contents.

    Never changed once made.  (A plain class: a frozen dataclass takes three times as long to make, which is a part of each call.)
    """

    __slots__ = ("device", "dtype", "itemsize", "library", "owner", "pointer", "shape", "stream", "strides", "writeable")

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: str,
        itemsize: int,
        device: int,
        stream: int,
        writeable: bool,
        library: Library,
        owner: Any,
    ) -> None:
        self.pointer, self.shape, self.strides, self.dtype, self.itemsize = pointer, shape, strides, dtype, itemsize
        self.device, self.stream, self.writeable, self.library = device, stream, writeable, library
        self.owner = owner
        """The caller's object, which keeps the memory alive."""

    def seen(self, shape: tuple[int, ...], strides: tuple[int, ...], stream: int) -> DeviceArray:
        """The same memory with another shape, or on another stream."""
        return DeviceArray(
            self.pointer, shape, strides, self.dtype, self.itemsize, self.device, stream, self.writeable, self.library, self.owner
        )  # fmt: skip

    def shifted(self, elements: int) -> DeviceArray:
        """The same from ``elements`` further on in memory."""
        pointer = self.pointer + elements * self.itemsize
        return DeviceArray(
            pointer, self.shape, self.strides, self.dtype, self.itemsize, self.device, self.stream, self.writeable, self.library, self.owner
        )  # fmt: skip

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def steps(self) -> tuple[int, ...]:
        """Strides in elements."""
        return tuple(stride // self.itemsize for stride in self.strides)

    def five(self, rank: int) -> DeviceArray:
        """The (N, C, D, H, W) view of an array of ``rank`` spatial axes, batched or not."""
        if len(self.shape) == 5:
            return self
        return self.seen(*_five(self.shape, self.strides, rank), self.stream)

    @property
    def extent(self) -> tuple[int, int]:
        """Addresses of the array's first byte and behind its last."""
        low, high = extent_of(self.shape, self.strides)
        return self.pointer + low, self.pointer + high + self.itemsize

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)}, strides {self.strides}, cuda:{self.device}, of {self.library.name})"
