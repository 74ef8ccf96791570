"""The weight of an implicit GEMM in the order in which the microkernel reads it."""

from __future__ import annotations

import numpy as np

from ..arrays import AnyArray
from .compile import kernel
from .copies import pack_column, pack_columns
from .gemm import TILE_ROWS
from .simd import lanes_of, load_element

SPARSE = 4  # elements of memory for each one that is packed, from which on they are not read side by side


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
def pack_weight(address, numbers, taps, packed, at):  # type: ignore[no-untyped-def]
    """Write one part's weight as (groups, row blocks, K, rows of a block, together) from packed[at] on: K in the order of the panels.

    address : int64 byte address of the weight.
    numbers : int64 array: strides (elements) of a group, a filter and a channel, groups, filters, channels, the
        channels of a K block and those of one product (together), rows of a block, a multiple of TILE_ROWS.
    taps : int64 offsets of the part's taps.
    packed : array of the weight's dtype, of any content; missing rows and channels become zeros.

    Returns whether all numbers are finite.
    """
    finite = True
    of_group, of_filter, of_channel, groups, filters, channels, at_once, together, block_rows = numbers
    row_blocks, products = -(-filters // block_rows), -(-channels // together) * len(taps)
    count = 0
    for first in range(0, channels if len(taps) else 0, at_once):
        if count != min(at_once, channels - first):
            count = min(at_once, channels - first)
            low, most, places = _places(taps, of_filter, of_channel, count, block_rows, lanes_of(packed))
        for group in range(groups):
            for block in range(row_blocks):
                begin = at + ((group * row_blocks + block) * products + first // together * len(taps)) * block_rows * together
                for row in range(0, block_rows, TILE_ROWS):
                    filter = block * block_rows + row
                    rows, to = min(TILE_ROWS, filters - filter), begin + row * together
                    source = address + (group * of_group + filter * of_filter + first * of_channel) * packed.itemsize
                    if together > 1:
                        _pack_pairs(source, of_filter, of_channel, rows, taps, count, together, packed, to, block_rows)
                    elif len(places) == 0:
                        for tap in taps:
                            for channel in range(count):
                                pack_column(source + (channel * of_channel + tap) * packed.itemsize, of_filter, rows, packed, to)
                                to += block_rows
                    else:
                        size, source = len(places) - lanes_of(packed), source + low * packed.itemsize
                        for channel in range(0, count, most):
                            pack_columns(source + channel * of_channel * packed.itemsize, of_filter, rows, size, places, packed, to)
                            to += block_rows
                finite &= _is_finite(packed[begin : begin + -(-count // together) * len(taps) * block_rows * together])
    return finite


@kernel(fastmath={"contract", "reassoc", "nsz"})
def _is_finite(numbers):  # type: ignore[no-untyped-def]
    """Whether all numbers are finite, which the cache still holds."""
    zero = numbers.dtype.type(0)
    total = zero
    for i in range(numbers.size):
        total += numbers[i] * zero
    return total == zero


@kernel()
def _places(taps, of_filter, of_channel, channels, block_rows, lanes):  # type: ignore[no-untyped-def]
    """How the elements of a K block lie side by side in memory: (offset of the first one, channels at once, place of each in K or -1).

    All channels at once where they are neighbours, else one; no places, but a vector of -1 behind, where elements lie too far apart.
    """
    low, nowhere = taps.min(), np.empty(0, np.int64)
    span = taps.max() - low + 1
    most = channels if 0 < of_channel < SPARSE * len(taps) else 1
    size, wanted = span + (most - 1) * of_channel, most * len(taps)
    if of_filter == 1 or size >= SPARSE * wanted or wanted == 1:
        return low, most, nowhere
    places = np.full(size + lanes, -1)
    for channel in range(most):
        for t in range(len(taps)):
            places[channel * of_channel + taps[t] - low] = (t * channels + channel) * block_rows
    if (places >= 0).sum() < wanted:  # some lie in one place
        return low, most, nowhere
    return low, most, places


@kernel()
def _pack_pairs(source, of_filter, of_channel, rows, taps, channels, together, packed, at, block_rows):  # type: ignore[no-untyped-def]
    """TILE_ROWS rows of a K block where several channels make one product."""
    for tap in taps:
        for channel in range(0, channels, together):
            packed[at : at + TILE_ROWS * together] = 0
            for i in range(min(together, channels - channel)):
                start = source + ((channel + i) * of_channel + tap) * packed.itemsize
                for r in range(rows):
                    packed[at + r * together + i] = load_element(start + r * of_filter * packed.itemsize, packed)
            at += block_rows * together
