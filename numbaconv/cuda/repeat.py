"""A plan's call with layouts that it has met before: the checks that depend on layouts alone are not made again.

What such a call still looks at: that ``out`` may be written, shares no byte range with the input, and is ordered by the same stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..arrays import read_device_array
from ..device import DeviceArray
from ..layouts import MOST_LAYOUTS
from .launches import Launch, Launched, launch

Known = tuple[Sequence[Launch], int, int, int, int]


class Repeat:
    """The short way of one plan; safe to share between threads."""

    def __init__(self, setup: Launched, rank: int, packed: tuple[DeviceArray, ...]) -> None:
        self._setup, self._rank, self._packed = setup, rank, packed
        self._known: dict[Any, Known] = {}

    def __call__(self, input: Any, out: Any) -> Any:
        if out is None:
            return None
        x, y = input, read_device_array("out", out)
        if y is None or type(x) is not DeviceArray:
            return None
        known = self._known.get(_key(x, y))
        if known is None or not y.writeable or x.stream != y.stream:
            return None
        launches, x_low, x_high, y_low, y_high = known
        source, result = x.pointer, y.pointer
        if source + x_low < result + y_high and result + y_low < source + x_high:
            return None  # whether they share elements takes a closer look
        launch(launches, x.stream, source, self._packed, result)
        return out

    def remember(self, input: DeviceArray, result: DeviceArray) -> None:
        x, y = input, result
        launches = self._setup.prepared(x.five(self._rank), y.five(self._rank))
        ends = [end - array.pointer for array in (x, y) for end in array.extent]
        if len(self._known) >= MOST_LAYOUTS:
            self._known.clear()
        self._known[_key(x, y)] = (launches, *ends)  # type: ignore[assignment]


def _key(x: DeviceArray, y: DeviceArray) -> Any:
    # A launch may count on arrays that start on 16 bytes.
    return x.shape, x.strides, x.dtype, x.device, x.pointer % 16, y.shape, y.strides, y.dtype, y.device, y.pointer % 16
