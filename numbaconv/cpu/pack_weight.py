"""The weight of an implicit GEMM in the order in which the microkernel reads it."""

from __future__ import annotations

import numpy as np

from ..arrays import AnyArray
from .compile import kernel
from .copies import pack_columns, pack_each
from .gemm import TILE_ROWS
from .simd import lanes_of, load_element
from .threads import next_task

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
        channels of a K block and those of one product (together), rows of a block: TILE_ROWS, or a vector's lanes.
    taps : int64 offsets of the part's taps.
    packed : array of the weight's dtype, of any content; missing rows and channels become zeros.

    Returns whether all numbers are finite.
    """
    finite, orders = True, _orders(numbers, taps, lanes_of(packed))
    blocks = numbers[3] * -(-numbers[4] // numbers[8])
    for piece in range(blocks * -(-numbers[5] // numbers[6]) if len(taps) else 0):
        finite &= _pack_piece(address, numbers, taps, orders, piece, packed, at)
    return finite


@kernel()
def pack_pieces(address, numbers, taps, packed, at, finite, pieces, counter):  # type: ignore[no-untyped-def]
    """:func:`pack_weight` as tasks, a row block of one K block each; finite[0] becomes 0 where a number is not."""
    orders = _orders(numbers, taps, lanes_of(packed))
    while True:
        piece = next_task(counter)
        if piece >= pieces:
            break
        if not _pack_piece(address, numbers, taps, orders, piece, packed, at):
            finite[0] = 0


@kernel()
def _orders(numbers, taps, lanes):  # type: ignore[no-untyped-def]
    """What :func:`order_of` tells of whole K blocks, and of the last one."""
    channels, at_once = numbers[5:7]
    whole = order_of(taps, numbers[1], numbers[2], min(channels, at_once), numbers[8], lanes)
    if channels % at_once == 0:
        return whole, whole
    return whole, order_of(taps, numbers[1], numbers[2], channels % at_once, numbers[8], lanes)


@kernel(forceinline=True)
def _pack_piece(address, numbers, taps, orders, piece, packed, at):  # type: ignore[no-untyped-def]
    """One K block of one row block of a group: numbered so that the memory of a weight is read from its beginning to its end."""
    of_group, of_filter, of_channel, groups, filters, channels, at_once, together, block_rows = numbers
    row_blocks, pieces = -(-filters // block_rows), -(-channels // at_once)
    if abs(of_channel) > abs(of_filter):
        channel, block = piece // (groups * row_blocks) * at_once, piece % (groups * row_blocks)
    else:
        channel, block = piece % pieces * at_once, piece // pieces
    first, count = block % row_blocks * block_rows, min(at_once, channels - channel)
    source = address + (block // row_blocks * of_group + first * of_filter + channel * of_channel) * packed.itemsize
    rows, each = min(block_rows, filters - first), len(taps) * block_rows * together
    at += (block * -(-channels // together) + channel // together) * each
    if together > 1:
        _pack_pairs(source, of_filter, of_channel, rows, taps, count, together, packed, at, block_rows)
    else:
        pack_rows(source, of_filter, of_channel, rows, taps, count, orders[0 if count == at_once else 1], packed, at, block_rows)
    return is_finite(packed[at : at + -(-count // together) * each])


@kernel()
def pack_rows(source, of_filter, of_channel, rows, taps, channels, order, packed, at, block_rows):  # type: ignore[no-untyped-def]
    """Write ``rows`` rows of one K block as (taps, channels, block_rows) from packed[at] on.

    source : int64 byte address of the first one's first channel; order : what :func:`order_of` tells.
    """
    low, most, places = order
    if len(places) == 0:
        for t in range(len(taps)):
            to = at + t * channels * block_rows
            pack_each(source + taps[t] * packed.itemsize, of_filter, rows, of_channel, channels, packed, to, block_rows)
    else:
        size = len(places) - lanes_of(packed)
        for channel in range(0, channels, most):
            start = source + (low + channel * of_channel) * packed.itemsize
            pack_columns(start, of_filter, rows, size, places, packed, at + channel * block_rows, block_rows)


@kernel(fastmath={"contract", "reassoc", "nsz"})
def is_finite(numbers):  # type: ignore[no-untyped-def]
    """Whether all numbers are finite, which the cache still holds."""
    zero = numbers.dtype.type(0)
    total = zero
    for i in range(numbers.size):
        total += numbers[i] * zero
    return total == zero


@kernel()
def order_of(taps, of_filter, of_channel, channels, block_rows, lanes):  # type: ignore[no-untyped-def]
    """How the elements of a K block lie side by side in memory: (offset of the first one, channels at once, place of each in K or -1).

    All channels at once where they are neighbours, else one; no places, but a vector of -1 behind, where elements lie too far apart.
    """
    nowhere = np.empty(0, np.int64)
    if len(taps) == 0:
        return 0, 1, nowhere
    low = taps.min()
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
