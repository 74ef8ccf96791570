"""Weight gradients of floats as an implicit GEMM over the output cells; see ``weight_kernels`` for the tiles and the order of the sums.

The number of chunks into which the sum over cells is cut depends on the problem and its batch, and on nothing of the device.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from ..choose import Accuracy
from ..device import DeviceArray
from ..layouts import Layouts
from ..problem import Problem, itemsize
from . import weight_kernels as k
from .arrays import empty
from .direct_weight import DirectWeightSetup
from .driver import Call, driver
from .elements import element
from .geometry import mode_of, numbers, too_long

DTYPES = ("float32", "float64", "float16", "bfloat16")
TILES = tuple((rows, columns) for rows in (128, 64, 32, 16) for columns in (128, 64, 32))
LEAST_CHUNK = 256  # cells
WAVES = 2  # of blocks, at most
BATCH = 32  # of which the cost of one image is a part: the sum is cut so that many images fill the device

# The cost model, estimated for Hopper: lanes of multiply-adds a second and threads at once; instructions of a thread for a cell, beside its
# multiply-adds, and for one copy; bytes a second of the chunks' results, written and read.
LANES_PER_SECOND = 2.8e13
THREADS_AT_ONCE = 132 * 512
CELL_INSTRUCTIONS = 10.0
COPY_INSTRUCTIONS = 11.0
DOUBLE_INSTRUCTIONS = 2.0  # for one of float64
BYTES_PER_SECOND = 3e12
LAUNCH_SECONDS = 6e-6


class WeightGemm:
    """The algorithm for weight gradients of floats."""

    name = "weight_gemm"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        if problem.direction != "weight_grad":
            return "it computes gradients of the weight, not results or gradients of the input"
        if problem.dtype not in DTYPES:
            return f"it computes {', '.join(DTYPES)}, not {problem.dtype}"
        if problem.in_per_group == 0:
            return "there are no channels"
        return too_long(problem)

    def cost(self, problem: Problem) -> float:
        setup = WeightGemmSetup(problem.per_image)
        return setup.seconds(setup.chunks(BATCH), BATCH) / BATCH

    def setup(self, problem: Problem) -> WeightGemmSetup:
        return WeightGemmSetup(problem)


@dataclass(frozen=True)
class WeightGemmSetup:
    """``run`` takes the output gradient in place of a packed weight; nothing is packed."""

    problem: Problem
    packed_bytes: int = 0

    @property
    def columns(self) -> int:
        return self.problem.in_per_group * self.problem.taps

    @property
    def results(self) -> int:
        return self.problem.out_channels * self.columns

    @property
    def each(self) -> int:
        """Results of a thread along each axis."""
        return 4 if self.problem.dtype == "float64" else 8

    @functools.cached_property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of a tile: those that waste least."""
        return min((tile for tile in TILES if 32 <= self.threads(tile) <= 256), key=self._instructions)

    def tiles(self, sizes: tuple[int, int]) -> int:
        return self.problem.groups * -(-self.problem.out_per_group // sizes[0]) * -(-self.columns // sizes[1])

    def threads(self, sizes: tuple[int, int]) -> int:
        return sizes[0] * sizes[1] // self.each**2

    def _instructions(self, sizes: tuple[int, int]) -> float:
        """Of all threads, for one cell."""
        products = self.each**2 * (DOUBLE_INSTRUCTIONS if self.problem.dtype == "float64" else 1)
        copies = sum(sizes) / self.threads(sizes) * COPY_INSTRUCTIONS
        return self.tiles(sizes) * self.threads(sizes) * (products + CELL_INSTRUCTIONS + copies)

    @property
    def most_chunks(self) -> int:
        blocks = WAVES * THREADS_AT_ONCE // self.threads(self.sizes)
        return max(1, -(-blocks // self.tiles(self.sizes)))

    @property
    def workspace(self) -> int:
        return self.most_chunks * self.results * itemsize(element(self.problem.dtype).accumulator)

    def chunks(self, batch: int) -> int:
        """Into how many parts the sum over the cells of so many images is cut."""
        most = min(self.most_chunks, -(-batch * math.prod(self.problem.out_size) // LEAST_CHUNK))
        return min(range(1, most + 1), key=lambda chunks: self.seconds(chunks, batch))

    def chunk_cells(self, chunks: int, batch: int) -> int:
        return -(-batch * math.prod(self.problem.out_size) // (chunks * k.DEPTH)) * k.DEPTH

    def seconds(self, chunks: int, batch: int) -> float:
        """Estimated time: whole waves of blocks."""
        at_once = THREADS_AT_ONCE // self.threads(self.sizes)
        blocks = self.tiles(self.sizes) * chunks
        waves = -(-blocks // at_once) * at_once / blocks
        products = chunks * self.chunk_cells(chunks, batch) * self._instructions(self.sizes) / LANES_PER_SECOND
        parts = 2 * chunks * self.results * itemsize(element(self.problem.dtype).accumulator) / BYTES_PER_SECOND
        return LAUNCH_SECONDS + products * waves + parts

    def pack(self, weight: DeviceArray, bias: DeviceArray | None) -> tuple[DeviceArray, ...]:
        raise NotImplementedError("a weight gradient has no weight to pack")

    def run(self, source: DeviceArray, packed: tuple[DeviceArray, ...], result: DeviceArray) -> None:
        (grad,) = packed
        if source.shape[0] == 0 or max(_span(source), _span(grad)) >= 2**31:  # of one image, whose offsets are 32-bit
            self._direct.run(source, packed, result)
            return
        aligned = tuple(array.pointer % 16 == 0 for array in (source, grad))
        chunks, products, fold = self._calls(source, result, grad.shape, grad.strides, aligned, source.device)
        workspace = empty((chunks * self.results,), element(self.problem.dtype).accumulator, result)
        products(result.stream, grad.pointer, source.pointer, workspace.pointer)
        fold(result.stream, workspace.pointer, result.pointer)

    @functools.cached_property
    def _direct(self) -> DirectWeightSetup:
        return DirectWeightSetup(self.problem)

    @functools.cached_property
    def _calls(self) -> Layouts[tuple[int, Call, Call]]:
        return Layouts(self._prepared)

    def _prepared(
        self, source: DeviceArray, result: DeviceArray, grad_shape: tuple[int, ...], grad_strides: tuple[int, ...],
        aligned: tuple[bool, bool], device: int,
    ) -> tuple[int, Call, Call]:  # fmt: skip
        p, batch = self.problem, source.shape[0]
        tile = k.Tile(
            *self.sizes, self.each, mapped=p.padding_mode != "zeros",
            cell_lanes=lanes(p.dtype, p.in_per_group, source.shape, source.strides) if aligned[0] else 1,
            grad_lanes=lanes(p.dtype, p.out_per_group, grad_shape, grad_strides) if aligned[1] else 1,
        )  # fmt: skip
        chunks = self.chunks(batch)
        by_tap = source.strides[1] != source.itemsize
        grad_steps = tuple(stride // source.itemsize for stride in grad_strides)
        geometry = products_geometry(p, tile, batch, self.chunk_cells(chunks, batch), by_tap, source.steps, grad_steps)
        function = driver().function(k.products(p.dtype, tile), device)
        products = Call(function, (self.tiles(self.sizes), chunks, 1), 3, numbers([geometry]))
        fold = k.FoldGeometry(
            p.out_per_group, self.columns, p.in_per_group, p.taps, by_tap, chunks, p.kernel[1], p.kernel[2], self.results, *result.steps
        )
        return chunks, products, Call(driver().function(k.fold(p.dtype), device), (-(-self.results // k.FOLDED), 1, 1), 2, numbers([fold]))


def products_geometry(
    p: Problem, tile: k.Tile, batch: int, chunk: int, by_tap: bool, source: tuple[int, ...], grad: tuple[int, ...]
) -> k.Geometry:
    """The numbers of the first kernel; ``source`` and ``grad`` are strides in elements."""
    rows, columns, cells = p.out_per_group, p.in_per_group * p.taps, math.prod(p.out_size)
    jump, rest, size = [], k.DEPTH, itemsize(p.dtype)
    for n in reversed(p.out_size):
        jump.append(rest % n)
        rest //= n
    low = [lo for lo, _ in p.padding]
    axes = (p.out_size, p.in_size, p.kernel, p.stride, low, p.dilation, jump[::-1], grad[2:], source[2:])
    return k.Geometry(
        rows, columns, p.in_per_group, p.taps, -(-rows // tile.rows), -(-columns // tile.columns), p.groups, mode_of(p), by_tap, chunk,
        *(number for triple in axes for number in triple), rest, grad[1], source[1], grad[0] * size, source[0] * size, cells, batch * cells,
    )  # fmt: skip


def lanes(dtype: str, channels: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many neighbouring channels of an aligned array one asynchronous copy moves: 16 bytes of them, or 1."""
    size = itemsize(dtype)
    whole = dtype == "float32" and channels % 4 == 0 and strides[1] == size
    return 4 if whole and all(step % 16 == 0 for axis, (n, step) in enumerate(zip(shape, strides)) if n > 1 and axis != 1) else 1


def _span(array: DeviceArray) -> int:
    """Elements between the first and the last of an image, the furthest that an offset reaches."""
    return sum((n - 1) * abs(step) for n, step in zip(array.shape[1:], array.steps[1:]))
