"""A computation as a list of launches that depends on the layouts of its arrays alone, not on where they lie."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from ..device import DeviceArray
from ..layouts import Layouts
from .driver import Call

SOURCE, RESULT, NULL, PACKED = range(4)
"""What an address counts from: the first element of the source, of the result, zero, and of each packed array (PACKED + i)."""


class Launch(NamedTuple):
    """One kernel; each of its addresses as (base, bytes from there)."""

    call: Call
    places: tuple[tuple[int, int], ...]


class Launched:
    """What setups share that are one such list for each layout; ``launches`` makes it."""

    def launches(self, source: DeviceArray, result: DeviceArray) -> Sequence[Launch]:
        """The launches for arrays of these shapes and strides, on this device."""
        raise NotImplementedError

    @functools.cached_property
    def _known(self) -> Layouts[Sequence[Launch]]:
        return Layouts(lambda source, result, *_: self.launches(source, result))

    def prepared(self, source: DeviceArray, result: DeviceArray) -> Sequence[Launch]:
        """:meth:`launches`, remembered by layout, device and where the arrays start relative to 16 bytes, which vector accesses need."""
        return self._known(source, result, source.device, source.pointer % 16, result.pointer % 16)

    def run(self, source: DeviceArray, packed: tuple[DeviceArray, ...], result: DeviceArray) -> None:
        launch(self.prepared(source, result), result.stream, source.pointer, packed, result.pointer)


def launch(launches: Sequence[Launch], stream: int, source: int, packed: Sequence[DeviceArray], result: int) -> None:
    """Put the launches on a stream, for arrays at these addresses."""
    bases = (source, result, 0, *[array.pointer for array in packed])
    for call, places in launches:
        call(stream, *[bases[base] + offset for base, offset in places])
