"""An array in the memory of a CUDA device, as the library sees it: an address with a shape, and who owns it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol


class Library(Protocol):
    """Whose arrays these are: results come back as its own type, from its allocator."""

    name: str

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int) -> Any:
        """A fresh C-contiguous array of the library, allocated in the order of ``stream``."""
        ...

    def stream(self, device: int) -> int:
        """Handle of the stream on which the library's caller works now."""
        ...


@dataclass(frozen=True)
class DeviceArray:
    """Strides in bytes; ``dtype`` is a name; ``stream`` is the handle of the stream that orders the array's contents."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    itemsize: int
    device: int
    stream: int
    writeable: bool
    library: Library
    owner: Any
    """The caller's object, which keeps the memory alive."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def steps(self) -> tuple[int, ...]:
        """Strides in elements."""
        return tuple(stride // self.itemsize for stride in self.strides)

    def five(self, rank: int) -> DeviceArray:
        """The (N, C, D, H, W) view of an array of ``rank`` spatial axes, batched or not."""
        unit = (1,) * (3 - rank)
        first = self.ndim - rank
        lead = (1,) * (2 - first)
        return replace(
            self,
            shape=lead + self.shape[:first] + unit + self.shape[first:],
            strides=(0,) * len(lead) + self.strides[:first] + (0,) * len(unit) + self.strides[first:],
        )
