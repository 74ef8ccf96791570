"""Implicit GEMM on a device in float32, for dense problems: sizes, packing and launches of :mod:`.implicit_gemm_kernel`.

A forward convolution is one matrix product.  An input gradient is one for each remainder of the result's cells modulo the stride: those
cells meet the same taps, without a zero between them.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

from ..axes import Part, axis_parts, pixel_count, tap_count
from ..choose import Accuracy
from ..device import DeviceArray
from ..problem import Problem
from .arrays import empty
from .copies import strided_copy
from .driver import MOST_BLOCKS, MOST_ROWS, Call, driver
from .finite import find_not_finite
from .geometry import mode_of, numbers, too_long
from .implicit_gemm_gather import QUAD, Geometry
from .implicit_gemm_kernel import Tile, kernel
from .launches import NULL, PACKED, RESULT, SOURCE, Launch, Launched

MOST_PARTS = 64
ITEM = 4  # bytes of float32
DEPTH = 16  # steps of k are padded to a multiple of, which every tile's depth divides


class Tiles(NamedTuple):
    """Tiles of equal rows: the weight is packed before the layout of the source is known.

    any : for sources of any strides; last : where every four channels are neighbours
    rate : products in a second, padding included, measured on one H200 with enough blocks to fill it (that of 16 rows: estimated)
    """

    any: Tile
    last: Tile
    rate: float


_WIDE, _MIDDLE, _SMALL, _NARROW = Tile(4, 1, 2, 16), Tile(2, 2, 2, 8), Tile(2, 2, 1, 16), Tile(1, 4, 1, 8)
_THIN = Tile(1, 4, 1, 8, high=2)
TILES = (
    Tiles(_WIDE, _WIDE, 22e12),
    Tiles(_MIDDLE, _SMALL, 20e12),
    Tiles(_SMALL, _SMALL, 19e12),
    Tiles(_NARROW, _NARROW, 16e12),
    Tiles(_THIN, _THIN, 12e12),
)
"""Fastest first."""
LARGE = TILES[:2]
FEW_BLOCKS = 8
"""An image of so few blocks of the first tile takes no large ones: at a small batch most of the GPU would idle."""
LAUNCH_SECONDS = 4e-6


class ImplicitGemm:
    """The algorithm for dense problems in float32."""

    name = "implicit_gemm"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        p = problem
        if p.dtype != "float32" or p.out_dtype != "float32":
            return f"it computes float32, not {p.dtype}"
        if p.direction == "weight_grad":
            return "it computes results and gradients of the input, not of the weight"
        if p.transposed and p.padding_mode != "zeros":
            return f"gradients of {p.padding_mode} padding fold back onto the cells that were copied"
        if p.source_channels == 0:
            return "there are no channels to sum over"
        if p.groups > MOST_ROWS:
            return f"there are more than {MOST_ROWS} groups"
        if p.transposed and math.prod(min(s, i) for s, i in zip(p.stride, p.in_size)) > MOST_PARTS:
            return f"transposed with strides {p.stride} it falls into more than {MOST_PARTS} convolutions"
        if math.prod(p.result_size) * (-(-p.result_channels // 32)) >= MOST_BLOCKS:
            return "an image has too many results for one launch"
        return too_long(p)

    def cost(self, problem: Problem) -> float:
        return self.setup(problem).seconds

    def setup(self, problem: Problem) -> ImplicitGemmSetup:
        few = ImplicitGemmSetup(problem, TILES[0]).blocks <= FEW_BLOCKS
        return min((ImplicitGemmSetup(problem, tiles) for tiles in TILES if not (few and tiles in LARGE)), key=lambda setup: setup.seconds)


@dataclass(frozen=True)
class ImplicitGemmSetup(Launched):
    """Forward or input gradient; ``pack`` returns one product's weight after the other, the bias, and whether the
    weight of a gradient is not finite."""

    problem: Problem
    tiles: Tiles
    workspace: int = 0

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """The problem as dense products, one or one for each remainder modulo the stride of a gradient."""
        a, b, c = (axis_parts(self.problem, axis) for axis in range(3))
        return tuple(itertools.product(a, b, c))

    @property
    def channels(self) -> int:
        """Source channels of a group."""
        return self.problem.source_channels // self.problem.groups

    @property
    def rows(self) -> int:
        """Result channels of a group."""
        return self.problem.result_channels // self.problem.groups

    @property
    def padded_channels(self) -> int:
        return _up(self.channels, QUAD)

    @property
    def padded_rows(self) -> int:
        return _up(self.rows, self.tiles.any.rows)

    def _depth(self, part: Part) -> int:
        """Steps of k, in whole tiles."""
        return _up(tap_count(part) * self.padded_channels, DEPTH)

    @property
    def blocks(self) -> int:
        """Of one image, whatever the layout of its source."""
        tile = self.tiles.any
        return sum(-(-pixel_count(part) // tile.cells) for part in self.parts) * self.padded_rows // tile.rows * self.problem.groups

    @property
    def seconds(self) -> float:
        """Estimated, of one image: its last tile of cells may hold cells of the next image."""
        products = sum(self._depth(part) * pixel_count(part) for part in self.parts) * self.problem.groups * self.padded_rows
        return LAUNCH_SECONDS * len(self.parts) + products / self.tiles.rate

    @functools.cached_property
    def _starts(self) -> list[int]:
        """Where each part's weight starts, in elements, and the end."""
        sizes = [self.problem.groups * self._depth(part) * self.padded_rows for part in self.parts]
        return list(itertools.accumulate(sizes, initial=0))

    @property
    def packed_bytes(self) -> int:
        return (self._starts[-1] + self.problem.groups * self.padded_rows + self.problem.transposed) * ITEM

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> tuple[DeviceArray, ...]:
        p = self.problem
        packed, added = empty((self._starts[-1],), "float32", weight), empty((p.groups, self.padded_rows), "float32", weight)
        out, within, *along = weight.steps
        of_row, of_channel = (within, out) if p.transposed else (out, within)
        for start, part in zip(self._starts, self.parts):
            taps, depth, row = [len(axis.taps) for axis in part], self._depth(part), self.padded_rows
            whole, spare = taps[1] * taps[2] * self.padded_channels, depth - tap_count(part) * self.padded_channels
            to = (depth * row, whole * row, taps[2] * self.padded_channels * row, self.padded_channels * row, row, 1)
            if tap_count(part):
                first = sum(axis.taps[0] * step for axis, step in zip(part, along))
                spaced = [step * (axis.taps[1] - axis.taps[0] if len(axis.taps) > 1 else 0) for axis, step in zip(part, along)]
                sizes, inside = (p.groups, *taps, self.padded_channels, row), (p.groups, *taps, self.channels, self.rows)
                steps = (out * p.out_per_group, *spaced, of_channel, of_row)
                strided_copy(_at(weight, first), _at(packed, start), sizes, steps, to, inside)
            if spare:
                end = start + (depth - spare) * row
                strided_copy(packed, _at(packed, end), (p.groups, spare * row), (0, 0), (depth * row, 1), (0, 0))
        if bias is None:
            strided_copy(added, added, added.shape, (0, 0), added.steps, (0, 0))
        else:
            steps = (bias.steps[0] * self.rows, bias.steps[0])
            strided_copy(bias, added, added.shape, steps, added.steps, (p.groups, self.rows))
        return (packed, added, find_not_finite(packed)) if p.transposed else (packed, added)

    @functools.cached_property
    def _most_images(self) -> int:
        """Of one launch: cells and blocks are counted in 32 bits."""
        cells = max(pixel_count(part) for part in self.parts)
        per_block = min(self.tiles.any.cells, self.tiles.last.cells)
        return max(1, min(MOST_BLOCKS // cells, MOST_BLOCKS // (self.padded_rows // self.tiles.any.rows) * per_block // cells) - 1)

    def launches(self, source: DeviceArray, result: DeviceArray) -> list[Launch]:
        transposed, last = self.problem.transposed, self._reads_quads(source)
        tile = self.tiles.last if last else self.tiles.any
        found, most = [], self._most_images
        for first in range(0, source.shape[0], most):
            images = min(most, source.shape[0] - first)
            for start, part in zip(self._starts, self.parts):
                at = first * result.strides[0] + sum(axis.first * step for axis, step in zip(part, result.strides[2:]))
                form = self._form(part, result, result.pointer + at)
                function = driver().function(kernel(tile, last, form, transposed), source.device)
                geometry = self._geometry(part, tile, images, source.steps, result.steps)
                blocks = -(-images * pixel_count(part) // tile.cells) * geometry.row_tiles
                call = Call(function, (blocks, self.problem.groups, 1), 5, numbers([geometry]))
                read, flag = (SOURCE, first * source.strides[0]), (PACKED + 2, 0) if transposed else (NULL, 0)
                found.append(Launch(call, (read, (PACKED, start * ITEM), (PACKED + 1, 0), (RESULT, at), flag)))
        return found

    def _reads_quads(self, source: DeviceArray) -> bool:
        """Whether every four channels of the source, from a multiple of four on, follow one another at addresses of a multiple of 16."""
        steps = [step for axis, (n, step) in enumerate(zip(source.shape, source.strides)) if n > 1 and axis != 1]
        return source.strides[1] == ITEM and self.channels % QUAD == 0 and _all_by_16(source.pointer, *steps)

    def _form(self, part: Part, result: DeviceArray, address: int) -> str:
        """How a part's results are written, the first of them at this address."""
        axes = [(result.shape[0], result.strides[0]), *((axis.size, axis.stride * step) for axis, step in zip(part, result.strides[2:]))]
        axes = [(n, step) for n, step in axes if n > 1]
        if result.strides[1] == ITEM and self.rows > 1:
            quads = self.rows % QUAD == 0 and _all_by_16(address, *(step for _, step in axes))
            return "quads of channels" if quads else "channels"
        run = 1  # cells that follow one another in memory
        while axes and axes[-1][1] == run * ITEM:
            run *= axes.pop()[0]
        of_channel = result.strides[1] if self.problem.result_channels > 1 else 0
        return "quads of cells" if run % QUAD == 0 and _all_by_16(address, of_channel, *(step for _, step in axes)) else "cells"

    def _geometry(self, part: Part, tile: Tile, images: int, source: tuple[int, ...], result: tuple[int, ...]) -> Geometry:
        p = self.problem
        shifts = [axis.shifts[0] if axis.shifts else 0 for axis in part]
        spacings = [axis.shifts[1] - axis.shifts[0] if len(axis.shifts) > 1 else 0 for axis in part]
        fields = [
            images, self.rows, self.padded_rows, self.padded_rows // tile.rows, self.channels, self.padded_channels,
            self._depth(part) // tile.depth, mode_of(p),
            *(axis.size for axis in part), *(axis.step for axis in part), *shifts, *spacings, *(len(axis.taps) for axis in part),
            *p.source_size, *source, *result[:2], *(step * axis.stride for axis, step in zip(part, result[2:])),
        ]  # fmt: skip
        return Geometry(*fields)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _all_by_16(*numbers: int) -> bool:
    """Whether vectors of 16 bytes may start there."""
    return all(number % 16 == 0 for number in numbers)


def _at(array: DeviceArray, elements: int) -> DeviceArray:
    """The array's memory from so many elements on; only its address is meant."""
    return array.shifted(elements)
