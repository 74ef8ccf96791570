"""The weight of an implicit GEMM in the order in which the microkernel reads it."""

from __future__ import annotations

import numpy as np

from ..arrays import AnyArray
from .compile import kernel
from .gemm import TILE_ROWS
from .simd import load_element


def as_real(weight: AnyArray, transposed: bool) -> AnyArray:
    """The real weight that takes the components of complex channels to those of filters: rows (re, -im) and (im, re).

    Shape (out_channels, in_per_group, ...) becomes twice that; the channels are the second axis, or the first where ``transposed``.
    """
    real = np.empty((len(weight), 2, weight.shape[1], 2, *weight.shape[2:]), weight.real.dtype)
    real[:, 0, :, 0] = real[:, 1, :, 1] = weight.real
    real[:, 1 - transposed, :, int(transposed)] = weight.imag
    real[:, int(transposed), :, 1 - transposed] = -weight.imag
    return real.reshape(2 * len(weight), 2 * weight.shape[1], *weight.shape[2:])


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
