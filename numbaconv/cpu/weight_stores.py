"""Which part of dW a block of a weight gradient is, and how its sums get there.  See ``weight_grad``."""

from __future__ import annotations

from .compile import kernel
from .elements import store_stored, store_sums_as, store_sums_turned_as
from .simd import lanes_of

# isort: off
from .weight_fields import (
    BLOCKS, CHANNELS, CHANNEL_BLOCKS, CHANNEL_LANES, CHANNEL_UNIT, COMPONENTS, FILTERS, FILTER_BLOCKS, FILTER_UNIT, GROUPS, GROUP_BLOCK,
    GROUP_LANES, GROUP_SUMS, KERNEL, KIND, RESULT, RESULT_ITEM, RESULT_TAP, STORED, SUMS_STEP,
)  # fmt: skip
# isort: on


@kernel()
def block_of(g, block):  # type: ignore[no-untyped-def]
    """Of a block of dW: first and last group, first filter and their number, first channel and their number (inside a group).

    Components of dW are blocks apart, the last of all numbers: see :func:`component_of`.
    """
    c, rest = block % g[CHANNEL_BLOCKS], block // g[CHANNEL_BLOCKS]
    f, rest = rest % g[FILTER_BLOCKS], rest // g[FILTER_BLOCKS]
    rest %= -(-g[GROUPS] // g[GROUP_BLOCK])
    channel, channels = _part(c, g[CHANNEL_BLOCKS], g[CHANNEL_UNIT], g[CHANNELS])
    filter, filters = _part(f, g[FILTER_BLOCKS], g[FILTER_UNIT], g[FILTERS])
    return rest * g[GROUP_BLOCK], min((rest + 1) * g[GROUP_BLOCK], g[GROUPS]), filter, filters, channel, channels


@kernel()
def _part(number, parts, unit, total):  # type: ignore[no-untyped-def]
    """First and number of what one of so many parts of a total has, which is cut between whole units."""
    units = -(-total // unit)
    first = units * number // parts * unit
    return first, min(units * (number + 1) // parts * unit, total) - first


@kernel()
def component_of(g, block):  # type: ignore[no-untyped-def]
    """Which component of dW a block holds: the real part is 0."""
    return block * g[COMPONENTS] // g[BLOCKS]


@kernel()
def address_of_block(g, block):  # type: ignore[no-untyped-def]
    """Byte address of a block's first element in dW."""
    first_group, _, filter, _, channel, _ = block_of(g, block)
    place = (first_group * g[FILTERS] + filter) * g[RESULT + 1] + channel * g[RESULT + 2] + component_of(g, block)
    return g[RESULT] + place * g[RESULT_ITEM]


@kernel()
def store_block(g, block, sums):  # type: ignore[no-untyped-def]
    """Write the sums of a block to dW."""
    first_group, last_group, _, filters, _, channels = block_of(g, block)
    lanes, taps = lanes_of(sums), channels * g[KERNEL] * g[KERNEL + 1] * g[KERNEL + 2]
    start = address_of_block(g, block)
    if g[KIND] == GROUP_LANES:
        _store_groups(g, sums, start, last_group - first_group)
        return
    for group in range(last_group - first_group):
        result, at = start + group * g[FILTERS] * g[RESULT + 1] * g[RESULT_ITEM], group * g[GROUP_SUMS]
        if g[RESULT_TAP] == 0:
            of_filter, of_tap = (1, g[SUMS_STEP]) if g[KIND] == CHANNEL_LANES else (g[SUMS_STEP], 1)
            _store_elements(g, sums[at:], of_filter, of_tap, result, filters, channels)
        elif g[KIND] != CHANNEL_LANES:
            for o in range(filters):
                place = result + o * g[RESULT + 1] * g[RESULT_ITEM]
                store_sums_as(sums, at + o * g[SUMS_STEP], taps, place, g[RESULT_TAP], g[STORED])
        else:
            for tap in range(0, taps, lanes):
                store_taps(g, sums, at, tap, min(lanes, taps - tap), 0, filters, result)


@kernel()
def _store_groups(g, sums, start, groups):  # type: ignore[no-untyped-def]
    """Write the sums of a block whose lanes are groups."""
    lanes, taps, step = lanes_of(sums), g[CHANNELS] * g[KERNEL] * g[KERNEL + 1] * g[KERNEL + 2], g[FILTERS] * g[RESULT + 1]
    for group in range(0, groups, lanes):
        some = min(lanes, groups - group)
        for o in range(g[FILTERS]):
            at, result = group * g[GROUP_SUMS] + o * g[SUMS_STEP] * lanes, start + (group * step + o * g[RESULT + 1]) * g[RESULT_ITEM]
            if g[RESULT_TAP] == 0:
                for lane in range(some):
                    _store_elements(g, sums[at + lane :], 0, lanes, result + lane * step * g[RESULT_ITEM], 1, g[CHANNELS])
            else:
                for t in range(0, taps, lanes):
                    place = result + t * g[RESULT_TAP] * g[RESULT_ITEM]
                    store_sums_turned_as(sums, at + t * lanes, lanes, min(lanes, taps - t), some, place, step, g[RESULT_TAP], g[STORED])


@kernel()
def store_until(g, sums, at, stored, done, first, last, result):  # type: ignore[no-untyped-def]
    """Write rows [stored, done) of the sums of filters [first, last) to dW; returns where the next begin."""
    while stored < done:
        some = min(lanes_of(sums), done - stored)
        store_taps(g, sums, at, stored, some, first, last, result)
        stored += some
    return stored


@kernel()
def store_taps(g, sums, at, tap, taps, first, last, result):  # type: ignore[no-untyped-def]
    """Write sums[at:] of at most a vector's ``taps`` from ``tap`` on, and filters [first, last), to dW, where taps are evenly spaced."""
    lanes, step = lanes_of(sums), g[RESULT_TAP]
    start = at + tap * g[SUMS_STEP]
    target = result + tap * step * g[RESULT_ITEM]
    if g[RESULT + 1] == 1:
        for t in range(taps):
            address = target + (first + t * step) * g[RESULT_ITEM]
            store_sums_as(sums, start + t * g[SUMS_STEP] + first, last - first, address, 1, g[STORED])
    else:
        for o in range(first, last, lanes):
            address, filters = target + o * g[RESULT + 1] * g[RESULT_ITEM], min(lanes, last - o)
            store_sums_turned_as(sums, start + o, g[SUMS_STEP], taps, filters, address, g[RESULT + 1], step, g[STORED])


@kernel()
def _store_elements(g, sums, of_filter, of_tap, result, filters, channels):  # type: ignore[no-untyped-def]
    """Write sums[filter * of_filter + tap * of_tap], taps counted over channels, to any layout."""
    for o in range(filters):
        tap = 0
        for c in range(channels):
            for i in range(g[KERNEL]):
                for j in range(g[KERNEL + 1]):
                    for k in range(g[KERNEL + 2]):
                        offset = o * g[RESULT + 1] + c * g[RESULT + 2] + i * g[RESULT + 3] + j * g[RESULT + 4] + k * g[RESULT + 5]
                        store_stored(result + offset * g[RESULT_ITEM], sums[o * of_filter + tap * of_tap], g[STORED])
                        tap += 1
