"""How an implicit GEMM with turned roles falls into tasks, and what it costs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from ..axes import Line, Part, merged
from .gemm import TILE_ROWS, TILE_VECTORS
from .gemm_costs import DEPTH, LOAD_CYCLES, tile_cycles
from .pack_weight import SPARSE

MOST_PIXELS = 512  # of a block, about
MOST_ACROSS = 256  # pixels of a block in a row
MOST_STAGED, MOST_BOX = 1 << 17, 1 << 17  # elements of a task's sums, and of its box unless one row needs more
# Cycles: of a task; to find whether a line takes a tap; to copy a vector of cells into the box, to read one of the weight from far away, to
# begin and end a tile, to turn a vector of sums.  Fitted to 90 layers beside those of panels.
TASK_CYCLES, TAP_CYCLES, CELL_CYCLES, FAR_CYCLES, TILE_CYCLES, TURN_CYCLES = 6000.0, 25.0, 12.0, 2.0, 90.0, 9.0
FAR_ELEMENTS, FAR_AWAY_CYCLES = 1 << 19, 5.0  # of a group's weight, from which on it lies beyond the second-level cache


Lines = tuple[Line, ...]
"""Of a part, in memory: depth, height and width."""


def lines_of(part: Part, source_size: Sequence[int], source: Sequence[int], result: Sequence[int]) -> Lines:
    """A part's lines in arrays whose axes have these strides, in elements."""
    return tuple(
        merged([
            Line(n, s, axis.size, t * axis.stride, axis.step, axis.shifts) for axis, n, s, t in zip(part, source_size, source, result)
        ])
    )  # fmt: skip


class Blocks(NamedTuple):
    """How a part is cut into tasks: blocks of ``size`` pixels along each axis, ``counts`` of them, times ``splits`` shares of the rows.

    spans : cells that a block's taps reach along each axis; cells : those of one channel's row in the box, so many that rows begin in
    different sets of a cache.
    """

    size: tuple[int, ...]
    counts: tuple[int, ...]
    spans: tuple[int, ...]
    cells: int
    splits: int

    @property
    def pixels(self) -> int:
        return math.prod(self.size)

    @property
    def box(self) -> int:
        """Elements of the box for one channel."""
        return self.spans[0] * self.spans[1] * self.cells


@functools.cache
def blocks(lines: Lines, channels: int, at_once: int, rows: int, lanes: int, members: int, threads: int) -> tuple[Blocks, float]:
    """The blocks of a part with which the threads are done soonest, and the cycles that takes."""
    kernel, row = math.prod(len(line.shifts) for line in lines), -(-rows // lanes) * lanes
    reaches = [max(line.shifts, default=0) - min(line.shifts, default=0) + 1 for line in lines]
    best: tuple[Blocks, float] | None = None
    for size in _sizes([line.size for line in lines]):
        counts = tuple(-(-line.size // cells) for line, cells in zip(lines, size))
        spans = tuple((cells - 1) * line.step + reach for cells, line, reach in zip(size, lines, reaches))
        found = Blocks(size, counts, spans, (-(-spans[2] // lanes) | 1) * lanes, 1)
        tasks, vectors = members * math.prod(counts), max(1, row // lanes)
        least = max(1, min(vectors, -(-found.pixels * row // MOST_STAGED)))
        if best and found.box * at_once > MOST_BOX:
            continue
        for splits in range(least, 1 + min(vectors, max(least, 4 * threads // tasks if threads > 1 else 1))):
            cycles = -(-tasks * splits // threads) * _cycles(found, lines, kernel, channels, at_once, rows, lanes, splits)
            if best is None or cycles < best[1]:
                best = found._replace(splits=splits), cycles
    assert best
    return best


def _sizes(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Sizes of blocks that may be taken, the smallest first: a row or an even piece of it, some rows, or whole planes."""
    depth, height, width = axes
    across = _even(width, MOST_ACROSS)
    found: list[tuple[int, ...]] = [(1, _even(height, rows), across) for rows in range(1, max(1, MOST_PIXELS // across) + 1)]
    if height * across <= MOST_PIXELS:
        found += [(_even(depth, planes), height, across) for planes in range(2, MOST_PIXELS // (height * across) + 1)]
    return list(dict.fromkeys(found))


def _even(size: int, most: int) -> int:
    """The length of pieces that are as even as they can be, and at most so long."""
    return -(-size // -(-size // most))


def _cycles(found: Blocks, lines: Lines, kernel: int, channels: int, at_once: int, rows: int, lanes: int, splits: int) -> float:
    """Of one task."""
    vectors, products, across = -(-rows // lanes), kernel * channels, found.size[2]
    share, k_blocks = -(-vectors // splits), -(-channels // at_once)
    tile_rows = found.size[0] * found.size[1]
    met = [min(len(line.shifts) * cells, span) for line, cells, span in zip(lines, found.size, found.spans)]
    copies = met[0] * met[1] * channels * -(-found.spans[2] // lanes) * CELL_CYCLES
    multiply, tiles = 0.0, -(-across // TILE_ROWS)
    for some in vector_tiles(share):
        for tile in range(tiles):
            pixels = across * (tile + 1) // tiles - across * tile // tiles
            cycles = max(tile_cycles(pixels, some, 0.5), (pixels + some + 2) * LOAD_CYCLES)
            multiply += tile_rows * (products * cycles + k_blocks * TILE_CYCLES)
    finds = tile_rows * kernel * TAP_CYCLES * (channels if kernel > DEPTH else 1)  # again for each channel where taps fill a K block
    return (
        TASK_CYCLES
        + finds
        + copies
        + multiply
        + share * (found.pixels * TURN_CYCLES + products * (FAR_CYCLES if products * rows < FAR_ELEMENTS else FAR_AWAY_CYCLES))
    )


def vector_tiles(vectors: int) -> list[int]:
    """Vectors of the tiles that so many fall into: see ``turned_worker``."""
    found = []
    while vectors:
        found.append(min(vectors, TILE_VECTORS if vectors % 2 else 2))
        vectors -= found[-1]
    return found


def workspace(lines: Lines, taps: int, at_once: int, rows: int, lanes: int, item: int) -> int:
    """Upper bound of the bytes of one thread, whatever the blocks and however axes are merged."""
    reach = [max(line.shifts, default=0) - min(line.shifts, default=0) + 1 for line in lines]
    cells = (MOST_ACROSS - 1) * lines[2].step + reach[2] + 2 * lanes
    box = max(MOST_BOX, reach[0] * reach[1] * cells * at_once)
    staged = MOST_STAGED + 3 * MOST_PIXELS * lanes  # whole vectors, an odd number of them
    pieces, runs, strip = box // lanes * 24, MOST_PIXELS * (taps + 3) * 8 + 16, TILE_VECTORS * taps * at_once * lanes
    order = (SPARSE * taps * at_once + lanes) * 8
    return (box + staged + strip + 3 * lanes) * item + pieces + runs + taps * at_once * 8 + order
