"""What a setup remembers of the layouts of arrays that it has met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

MOST_LAYOUTS = 64
Geometry = TypeVar("Geometry")


class Layouts(Generic[Geometry]):
    """The geometries that ``make(source, result, *more)`` worked out, remembered by the layouts of the two arrays (and ``more``).

    Working one out in Python takes longer than a small convolution.  The least recently made is not tracked: a full memory
    starts afresh.
    """

    def __init__(self, make: Callable[..., Geometry]) -> None:
        self._make = make
        self._known: dict[Any, Geometry] = {}

    def __call__(self, source: Any, result: Any, *more: Any) -> Geometry:
        key = (source.shape, source.strides, result.strides, *more)
        geometry = self._known.get(key)
        if geometry is None:
            geometry = self._make(source, result, *more)
            if len(self._known) >= MOST_LAYOUTS:
                self._known.clear()
            self._known[key] = geometry
        return geometry
