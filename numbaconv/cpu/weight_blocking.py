"""How a weight gradient is cut into blocks of dW and strips of pixels, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..problem import Problem, Triple
from .gemm import TILE_ROWS, TILE_VECTORS
from .rows import axis_segments, range_inside
from .target import target
from .weight_bands import BAND_TILES, bands
from .weight_fields import CHANNEL_LANES, GROUP_LANES, ROW_BANDS
from .weight_groups import GROUP_TILE
from .weight_tiles import DOT_TILES

CHANNEL_PIXELS = 256  # output pixels of a strip whose lanes are channels: its panel stays in the first-level cache
PIXEL_PIXELS = 1024  # and of one whose lanes are pixels: what a tile reads stays there too, and its lanes are summed up only then
BAND_PIXELS = 4096  # and of one whose kernel rows are taken together
GROUP_PIXELS = 2048  # and of one whose lanes are groups: its copies stay in the second-level cache
SUMS_BYTES = 300_000  # of a block of dW, in the second-level cache
SCRATCH_BYTES = 600_000
TASKS = 32  # as many blocks and shares as keep threads busy
BLOCK_SECONDS = 10e-6  # of an image in a block of several groups, at least
SHARES_BYTES = 1 << 20  # of the sums of all shares
FEW_TASKS = 8  # fewer blocks of a dW too large for shares are cut further
MOST_PAIRS = 16  # of input and output channels of a group, where lanes are groups
LEAST_TAPS = 256  # down to so many rows of products, for which an output gradient is packed

# The cost model, in cycles: of copying a line of cells, a vector of them, of transposing a column, of storing a tile, of starting a block,
# of starting a row in a tile.
LINE_CYCLES = 10.0
VECTOR_CYCLES = 4.0
TRANSPOSE_CYCLES = 5.0
GROUP_CYCLES = 10.5  # of transposing one where lanes are groups, whose planes lie far apart
TILE_CYCLES = 40.0
ROW_CYCLES = 4.0
FAR_CYCLES = 20.0  # of a vector that is neither the first nor the second of its row, where vectors are taken column by column
PICK_CYCLES = 2.5  # of taking every second cell
BLOCK_CYCLES = 300.0
CYCLES_A_SECOND = 2.5e9


@dataclass(frozen=True)
class Blocking:
    """How a problem is cut, for one kind of lanes.

    kind : CHANNEL_LANES, ROW_BANDS or the number of a dot tile
    strips : number of strips along each axis; box : output pixels of the largest along each
    apart : of how many taps of a kernel the tiles are apart, whose rows then are channels: of all, or 1
    channels, filters, groups : of the largest block, which is cut between units of channels and filters
    channel_blocks, filter_blocks : in a group
    sums_step, group_sums : elements of a row of a block's sums, and of all sums of a group in it
    scratch, panel : elements of a task's copies
    seconds : estimated time of one image on one thread
    """

    kind: int
    apart: int
    strips: Triple
    box: Triple
    channels: int
    channel_unit: int
    filters: int
    filter_unit: int
    groups: int
    channel_blocks: int
    filter_blocks: int
    sums_step: int
    group_sums: int
    scratch: int
    panel: int
    seconds: float


def kinds(p: Problem) -> list[tuple[int, bool]]:
    """The kinds of lanes that a problem may have, and whether its taps are apart."""
    found = [(CHANNEL_LANES, False), (1, False)] if p.out_per_group > 1 else [(kind, False) for kind in (CHANNEL_LANES, 0, ROW_BANDS)]
    if p.padding_mode == "zeros" and any(map(any, p.padding)) and p.taps > 1:
        found.append((CHANNEL_LANES, True))
    zeros = p.padding_mode == "zeros" or not any(map(any, p.padding))
    few = p.in_per_group * p.out_per_group <= MOST_PAIRS and 2 * p.groups >= target().lanes(p.dtype)
    return [*found, (GROUP_LANES, False)] if zeros and few else found


def blocking(p: Problem, kind: int, apart: bool = False) -> Blocking:
    if kind == GROUP_LANES:
        return _blocking_of_groups(p)
    own = p.taps if apart else 1
    lanes, item = target().lanes(p.dtype), np.dtype(p.dtype).itemsize
    strips, box = cut(p.out_size, {CHANNEL_LANES: CHANNEL_PIXELS, ROW_BANDS: BAND_PIXELS}.get(kind, PIXEL_PIXELS))
    planes, lines, columns = (cells(p, axis, box[axis], lanes) for axis in range(3))
    channel = planes * lines * columns
    if kind == CHANNEL_LANES:
        across, down = lanes, TILE_ROWS
        most_filters = 3 * TILE_VECTORS * lanes
    else:
        across, down = (1, 1) if kind == ROW_BANDS else DOT_TILES[kind]
        most_filters = 16 * across
    filters = min(evenly(-(-p.out_per_group // across), most_filters // across) * across, p.out_per_group)
    padded = -(-filters // across) * across
    most = min(SUMS_BYTES // (padded * p.taps * item), SCRATCH_BYTES // (channel * item))
    wanted = -(-FEW_TASKS // (p.groups * -(-p.out_per_group // filters) * most_shares(p)))
    unit = down if own > 1 else 1
    units = -(-p.in_per_group // unit)
    parts = max(-(-units // max(1, (most + unit // 2) // unit)), min(wanted, units, p.in_per_group * p.taps // LEAST_TAPS))
    parts = -(-units // -(-units // parts))
    channels = min(-(-units // parts) * unit, p.in_per_group)
    taps = up(channels * p.taps // own, down) * own
    step, rows = (padded, taps) if kind == CHANNEL_LANES else (taps, padded)
    blocks = parts, -(-p.out_per_group // filters)
    panel = padded * math.prod(box) if kind == CHANNEL_LANES else filters * box[0] * box[1] * up(box[2], lanes)
    cycles = _strip_cycles(p, kind, own, box, channels, filters, planes * lines, columns) * math.prod(blocks) + BLOCK_CYCLES
    seconds = p.groups * math.prod(strips) * cycles / CYCLES_A_SECOND
    groups = -(-p.groups // min(TASKS, math.ceil(seconds / BLOCK_SECONDS))) if blocks == (1, 1) else 1
    return Blocking(
        kind, own, strips, box, channels, unit, filters, across, groups, *blocks, step, step * rows, channels * channel + lanes,
        panel + lanes, seconds,
    )  # fmt: skip


def _blocking_of_groups(p: Problem) -> Blocking:
    """How a problem is cut where lanes are groups: whole groups, as many as there are lanes or a multiple."""
    lanes, taps = target().lanes(p.dtype), p.in_per_group * p.taps
    strips, box = cut(p.out_size, GROUP_PIXELS)
    planes, lines, columns = (cells(p, axis, box[axis], 1) for axis in range(3))
    plane, step, pixels = lines * columns + 1, up(taps, GROUP_TILE), math.prod(box)
    vectors = p.in_per_group * planes * -(-plane // lanes) + p.out_per_group * -(-pixels // lanes)
    tiles = p.out_per_group * step // GROUP_TILE
    cycles = vectors * lanes * GROUP_CYCLES + tiles * (pixels * (GROUP_TILE + 1) / 2 + TILE_CYCLES)
    parts = -(-p.groups // lanes)
    seconds = math.prod(strips) * (parts * cycles + BLOCK_CYCLES) / CYCLES_A_SECOND
    groups = -(-parts // min(TASKS, math.ceil(seconds / BLOCK_SECONDS))) * lanes
    scratch, panel = p.in_per_group * planes * plane * lanes + lanes, (pixels + 1) * lanes
    return Blocking(
        GROUP_LANES, 1, strips, box, p.in_per_group, 1, p.out_per_group, 1, groups, 1, 1, step, step * p.out_per_group, scratch, panel,
        seconds,
    )  # fmt: skip


def window(p: Problem, box: Triple) -> int:
    """Input cells of a plane from the first to the last that a strip of such outputs reads, and a row more."""
    spans = [(n - 1) * s + (size - 1) * d + 1 for n, s, size, d in zip(box, p.stride, p.kernel, p.dilation)]
    return (min(spans[1], p.in_size[1]) + 1) * min(spans[2], p.in_size[2])


def most_shares(p: Problem) -> int:
    """Shares of all strips that a problem may be cut into."""
    size = p.out_channels * p.in_per_group * p.taps * np.dtype(p.dtype).itemsize
    return int(max(1, min(TASKS, SHARES_BYTES // size)))


def cut(size: Triple, most: int) -> tuple[Triple, Triple]:
    """The numbers of strips along the axes and the size of the largest: whole rows where they fit into ``most`` pixels."""
    box = [1, 1, 1]
    for axis in (2, 1, 0):
        box[axis] = evenly(size[axis], max(1, most))
        most = most // box[axis] if box[axis] == size[axis] else 0
    d, h, w = (-(-n // b) for n, b in zip(size, box))
    return (d, h, w), (box[0], box[1], box[2])


def evenly(total: int, most: int) -> int:
    """The largest of as few even parts as have at most ``most`` each."""
    return -(-total // -(-total // most))


def up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def cells(p: Problem, axis: int, tile: int, lanes: int) -> int:
    """Cells of a channel's scratch along an axis; rows end on whole vectors, which a copy always writes."""
    _, place, length = axis_segments(p.kernel[axis], p.stride[axis], p.dilation[axis], tile)[0][-1]
    return up(place + up(length, lanes), lanes) if axis == 2 else place + length


def met(p: Problem) -> float:
    """The part of all pairs of taps and output pixels that meet a cell of the input."""
    part = 1.0
    for out, size, kernel, stride, dilation, (low, _) in zip(p.out_size, p.in_size, p.kernel, p.stride, p.dilation, p.padding):
        ranges = [range_inside(tap * dilation - low, stride, out, size) for tap in range(kernel)]
        part *= sum(high - low for low, high in ranges) / (out * kernel)
    return part


def _strip_cycles(p: Problem, kind: int, apart: int, box: Triple, channels: int, filters: int, lines: int, columns: int) -> float:
    """Estimated cycles of one strip in one block: copies, then tiles."""
    lanes = target().lanes(p.dtype)
    pixels, taps = math.prod(box), channels * p.taps
    if kind == ROW_BANDS:
        return _band_cycles(p, box, channels, lines, columns)
    copies = channels * lines * (LINE_CYCLES + columns / lanes * VECTOR_CYCLES * (1.5 if p.stride[2] > 1 else 1.0))
    if kind == CHANNEL_LANES:
        vectors = -(-filters // lanes)
        copies += vectors * up(pixels, lanes) * TRANSPOSE_CYCLES
        panels = -(-vectors // TILE_VECTORS)
        pixel = TILE_ROWS * vectors / 2 + (panels if vectors == panels else 0)
        tiles = -(-taps // apart // TILE_ROWS) * apart
        if apart > 1:
            copies = vectors * (up(pixels, lanes) * TRANSPOSE_CYCLES + pixels) + p.taps * box[0] * box[1] * ROW_CYCLES
            pixel *= met(p)
        return copies + tiles * (pixels * pixel + panels * (TILE_CYCLES + box[0] * box[1] * ROW_CYCLES))
    across, down = DOT_TILES[kind]
    vectors = box[0] * box[1] * -(-box[2] // lanes)
    vector = max(across * down / 2, across + down) + 2
    return copies + -(-filters // across) * -(-taps // down) * (vectors * vector + across * TILE_CYCLES)


def _band_cycles(p: Problem, box: Triple, channels: int, lines: int, columns: int) -> float:
    """Estimated cycles of one strip of one filter whose kernel rows are taken together."""
    lanes = target().lanes(p.dtype)
    in_place, vectors = p.stride[2] <= 2 and p.padding_mode == "zeros", -(-box[2] // lanes)
    step = p.stride[2] if in_place else 1
    cycles = p.kernel[0] * box[0] * box[1] * max(0, vectors - 2) * FAR_CYCLES
    if not in_place:
        cycles += lines * (LINE_CYCLES + columns / lanes * VECTOR_CYCLES)
    for _, _, rows, lag in bands(p, box[1]):
        width = dict(BAND_TILES)[rows]
        line = max(rows * width / 2, rows + step * width) + 2 + (step - 1) * width * PICK_CYCLES
        met = box[0] * vectors * (box[1] + lag * (rows - 1))
        cycles += p.kernel[0] * -(-p.kernel[2] // width) * (met * line + 2 * TILE_CYCLES)
    return channels * cycles
