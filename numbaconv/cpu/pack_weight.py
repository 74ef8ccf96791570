"""The weight of an implicit GEMM in the order in which the microkernel reads it."""

from __future__ import annotations

from .compile import kernel
from .gemm import TILE_ROWS
from .simd import load_element


@kernel()
def pack_weight(numbers, taps, packed, at):  # type: ignore[no-untyped-def]
    """Write one part's weight as (groups, row blocks, K, TILE_ROWS, together) from packed[at] on: K in the order of the panels.

    numbers : int64 array: byte address, strides (elements) of a group, a filter and a channel, groups, filters, channels, the
        channels of a K block and those of one product (together); taps : int64 offsets of the part's taps.
    packed : array of the weight's dtype, full of zeros, where missing rows and channels stay.
    """
    address, of_group, of_filter, of_channel, groups, filters, channels, at_once, together = numbers
    for group in range(groups):
        for row in range(0, filters, TILE_ROWS):
            rows = min(TILE_ROWS, filters - row)
            for first in range(0, channels, at_once):
                for tap in taps:
                    for channel in range(first, min(first + at_once, channels), together):
                        for i in range(min(together, channels - channel)):
                            start = address + (group * of_group + row * of_filter + (channel + i) * of_channel + tap) * packed.itemsize
                            for r in range(rows):
                                packed[at + r * together + i] = load_element(start + r * of_filter * packed.itemsize, packed)
                        at += TILE_ROWS * together
