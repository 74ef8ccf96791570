"""Weight gradients as matrix products over the output pixels, block by block of the gradient.

``dW[o, c, k] = sum over n, y of grad[n, o, y] * input[n, c, y * stride + k * dilation - padding]`` is a product of the output gradients
(o, pixels) with input cells ((c, k), pixels).  A task owns a block of dW and walks over the images in *strips*: boxes of output pixels
whose operands fit the caches.  Of a strip the input cells, padding filled in, are copied to a scratch of short rows where every tap
finds its neighbours side by side (without padding they are read in place): im2col is never formed.  The vectors' lanes are output
channels where there are enough of them in a group, and neighbouring pixels where there are few (see ``weight_tiles``); with one output
channel a group, kernel rows may be taken together (see ``weight_bands``); with few channels in many groups, lanes are groups (see
``weight_groups``).

With padding by zeros, lanes of output channels and enough input channels, a tile's rows are input channels at one tap, and the products
of output gradients that are all finite with padded zeros are left out; of a panel of others they are added.  Nothing outside the input
is read then, so that it is read in place.

Copies convert elements to the dtype of the sums, so that halves and narrow integers cost no more than copies.  Each component of a
complex dW is the real gradient of twice as many images: of the real parts of all, and of their imaginary parts.

Order of the sums, which neither threads nor memory layouts change: the products of a strip form one chain of multiply-adds a lane, row
after row (where kernel rows are taken together, column by column of vectors); up to RUN strips are added up one after the other, such
runs likewise, and at last the shares into which the strips of all images are cut where dW has too few blocks to keep threads busy.  The
shares depend on the problem and its batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numba.core import config
from numpy.typing import NDArray

from ..arguments import PADDING_MODES
from ..arrays import ELEMENTS, AnyArray
from ..choose import Accuracy
from ..layouts import Layouts
from ..problem import Problem, itemsize
from . import weight_fields as k
from .elements import NUMBERS, kind_of
from .layouts import address
from .rows import axis_segments
from .target import target
from .threads import most_threads, share
from .weight_bands import TABLE, bands
from .weight_blocking import TASKS, Blocking, blocking, cells, kinds, most_shares, up, window
from .weight_kernels import ALIGNMENT, add_shares, worker

TASK_SECONDS = 100e-6  # of a share, at least
BYTES_A_SECOND = 1e10  # of shares that are added up
MULTIPLY = {"int32": 2.5, "int64": 3.0}
"""How much longer sums of integers take than those of floating-point numbers as wide, copies included."""


class WeightGemm:
    """The algorithm for weight gradients."""

    name = "weight_gemm"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        if problem.direction != "weight_grad":
            return "it computes gradients of the weight, not results or gradients of the input"
        if problem.dtype == "float16" and not target().float16:
            return "the processor does not convert float16"
        if config.DISABLE_JIT:
            return "it is made of LLVM intrinsics, which need the compiler (NUMBA_DISABLE_JIT is set)"
        if problem.in_per_group == 0:
            return "there are no channels"
        return None

    def cost(self, problem: Problem) -> float:
        return self.setup(problem).seconds

    def setup(self, problem: Problem) -> WeightGemmSetup:
        return WeightGemmSetup(problem.per_image)


@dataclass(frozen=True)
class WeightGemmSetup:
    """``run`` takes the output gradient (5-D) in place of a packed weight; nothing is packed."""

    problem: Problem
    packed_bytes: int = 0

    @cached_property
    def sums(self) -> np.dtype[Any]:
        """Dtype of the sums, which are of one component each."""
        real: np.dtype[Any] = ELEMENTS[self.problem.dtype].accumulator.type(0).real.dtype
        return real

    @cached_property
    def components(self) -> int:
        return kind_of(self.problem.dtype).components

    @cached_property
    def swaps(self) -> bool:
        """Whether a pointwise convolution's input and output gradient change roles, so that fewer channels are packed into panels."""
        p = self.problem
        pointwise = p.kernel == p.stride == (1, 1, 1) and p.groups == 1 and not any(map(any, p.padding))
        return pointwise and target().lanes(self.sums.name) <= p.in_channels < p.out_channels

    @cached_property
    def cut(self) -> Problem:
        """The problem as it is cut, of the dtype of the sums: its dW is the transposed one where roles change."""
        p = replace(self.problem, dtype=self.sums.name, out_dtype=self.sums.name)
        return replace(p, in_channels=p.out_channels, out_channels=p.in_channels) if self.swaps else p

    @cached_property
    def blocking(self) -> Blocking:
        return min((blocking(self.cut, *kind) for kind in kinds(self.cut)), key=lambda b: b.seconds)

    @cached_property
    def seconds(self) -> float:
        """Estimated time of one image on one thread."""
        return self.blocking.seconds * self.components**2 * MULTIPLY.get(self.sums.name, 1.0)

    @cached_property
    def blocks(self) -> int:
        b = self.blocking
        return -(-self.problem.groups // b.groups) * b.channel_blocks * b.filter_blocks * self.components

    @property
    def _shares(self) -> int:
        """The most shares of any batch."""
        return min(TASKS // self.blocks, most_shares(self.cut))

    @property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates: of each thread its copies, sums and tables, and the shares."""
        p, b = self.cut, self.blocking
        item = np.dtype(p.dtype).itemsize
        sums = b.groups * b.group_sums
        rows = math.prod(b.box[:2])
        levels = math.prod(p.kernel[:2]) if b.apart > 1 else 0
        tables = (b.channels + 16) * p.taps + b.filters + 3 * (b.scratch // self._row + 1) + 3 * rows + TABLE + 192 + self._window
        tables += 2 * (levels + 1) * (rows + 1) + 2 * p.kernel[2]
        each = (b.scratch + b.panel + 2 * sums) * item + tables * 8
        shares = max(1, self._shares)
        return most_threads() * each + (shares * self.blocks * sums * item if shares > 1 else 0) + 2 * ALIGNMENT + k.FIELDS * 8

    @property
    def _row(self) -> int:
        lanes = target().lanes(self.cut.dtype)
        columns = self.blocking.box[2]
        return cells(self.cut, 2, columns, 1) * lanes if self._grouped else cells(self.cut, 2, columns, lanes)

    @property
    def _grouped(self) -> bool:
        return self.blocking.kind == k.GROUP_LANES

    @property
    def _window(self) -> int:
        return window(self.cut, self.blocking.box) if self._grouped else 0

    @cached_property
    def _tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The geometry without the fields that arrays decide; the segments and the places of the taps of all axes."""
        p, b, g = self.cut, self.blocking, np.zeros(k.FIELDS, np.int64)
        lanes = target().lanes(p.dtype)
        axes = {
            k.OUT: p.out_size, k.IN: p.in_size, k.KERNEL: p.kernel, k.STRIDE: p.stride, k.DILATION: p.dilation,
            k.PAD: [lo for lo, _ in p.padding], k.STRIPS: b.strips, k.BOX: b.box,
        }  # fmt: skip
        for field, values in axes.items():
            g[field : field + 3] = values
        segments: list[list[int]] = []
        places: list[int] = []
        for axis in range(3):
            g[k.SEGMENTS + axis] = len(segments)
            own, taps = axis_segments(p.kernel[axis], p.stride[axis], p.dilation[axis], b.box[axis])
            segments += own
            places += [place * lanes for place in taps] if self._grouped and axis == 2 else taps
        g[k.BANDS] = len(places)
        for band in bands(p, b.box[1]):
            places += band
        lines = cells(p, 1, b.box[1], lanes)
        g[k.MODE], g[k.GROUPS], g[k.CHANNELS], g[k.FILTERS] = PADDING_MODES.index(p.padding_mode), p.groups, p.in_per_group, p.out_per_group
        g[k.CHANNEL_BLOCK], g[k.FILTER_BLOCK], g[k.GROUP_BLOCK] = b.channels, b.filters, b.groups
        g[k.CHANNEL_UNIT], g[k.FILTER_UNIT], g[k.TAPS_APART] = b.channel_unit, b.filter_unit, b.apart
        g[k.CHANNEL_BLOCKS], g[k.FILTER_BLOCKS], g[k.BLOCKS], g[k.KIND] = b.channel_blocks, b.filter_blocks, self.blocks, b.kind
        g[k.ROW], g[k.PLANE] = self._row, lines * self._row + (lanes if self._grouped else 0)
        g[k.CHANNEL], g[k.WINDOW] = cells(p, 0, b.box[0], lanes) * g[k.PLANE], self._window
        g[k.GRAD_ROW], g[k.SCRATCH], g[k.PANEL] = up(b.box[2], lanes), b.scratch, b.panel
        g[k.SUMS_STEP], g[k.GROUP_SUMS] = b.sums_step, b.group_sums
        loaded, stored = (p.dtype if self.components == 2 else name for name in (self.problem.dtype, self.problem.out_dtype))
        g[k.LOADED], g[k.STORED], g[k.ITEM], g[k.RESULT_ITEM] = NUMBERS[loaded], NUMBERS[stored], itemsize(loaded), itemsize(stored)
        g[k.COMPONENTS], g[k.NEGATED] = self.components, not self.swaps
        return g, np.array(segments, np.int64), np.array(places, np.int64)

    def pack(self, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, ...]:
        raise NotImplementedError("a weight gradient has no weight to pack")

    def run(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> None:
        (grad,) = packed
        if self.swaps:
            source, grad, result = grad, source, result.swapaxes(0, 1)
        g = self._layouts(source, result, grad.strides).copy()
        g[k.SOURCE], g[k.GRAD], g[k.RESULT] = address(source), address(grad), address(result)
        _, segments, places = self._tables
        shares, partial = int(g[k.SHARES]), self._no_partial
        if shares > 1:
            partial = _aligned(int(shares * g[k.BLOCKS] * g[k.GROUP_BLOCK] * g[k.GROUP_SUMS]), self.sums)
        share(worker, (g, segments, places, partial), self.blocks * shares, self.seconds * len(source))
        if shares > 1:
            share(add_shares, (g, partial), self.blocks, partial.nbytes / BYTES_A_SECOND)

    @cached_property
    def _no_partial(self) -> AnyArray:
        """What lends the workers its dtype where there are no shares."""
        return np.empty(0, self.sums)

    @cached_property
    def _layouts(self) -> Layouts[NDArray[np.int64]]:
        return Layouts(self._place)

    def _place(self, source: AnyArray, result: AnyArray, grad_strides: tuple[int, ...]) -> NDArray[np.int64]:
        """The geometry for arrays of these layouts, without their addresses."""
        p, b = self.cut, self.blocking
        g = self._tables[0].copy()
        item, of_result = int(g[k.ITEM]), int(g[k.RESULT_ITEM])
        for field, strides, size in ((k.SOURCE, source.strides, item), (k.GRAD, grad_strides, item), (k.RESULT, result.strides, of_result)):
            g[field + 1 : field + 6] = [step // size for step in strides]
        (d, h, w), (_, height, width) = g[k.GRAD + 3 : k.GRAD + 6].tolist(), p.out_size
        as_summed, unpadded = g[k.LOADED] == NUMBERS[p.dtype], not any(map(any, p.padding))
        banded = b.kind == k.ROW_BANDS
        side_by_side = g[k.SOURCE + 5] * (1 if banded else p.stride[2]) == 1 and p.stride[2] <= 2
        masked = b.apart > 1 or (banded and p.padding_mode == "zeros")
        g[k.IN_PLACE] = as_summed and not self._grouped and (unpadded or masked) and (b.kind == k.CHANNEL_LANES or side_by_side)
        g[k.GRAD_IN_PLACE] = as_summed and w == 1
        g[k.GRAD_MERGES] = b.strips[2] == 1 and (b.box[1] == 1 or h == width * w) and (b.box[0] == 1 or d == height * width * w)
        g[k.RESULT_TAP] = spacing(g[k.RESULT + 2 : k.RESULT + 6].tolist(), (p.in_per_group, *p.kernel))
        strips = len(source) * math.prod(b.strips) * self.components
        g[k.IMAGES] = len(source)
        shares = max(1, min(self._shares, int(self.seconds * len(source) / TASK_SECONDS) // self.blocks, strips))
        g[k.SHARES] = 1 << (shares.bit_length() - 1)  # tasks of two and four threads shall end together
        return g


def _aligned(size: int, dtype: np.dtype[Any]) -> AnyArray:
    """Memory of so many elements that begins where vectors do, after which a vector more can be read."""
    lanes = ALIGNMENT // dtype.itemsize
    memory = np.empty(size + 2 * lanes, dtype)
    return memory[-(address(memory) // dtype.itemsize) % lanes :]


def spacing(steps: list[int], sizes: tuple[int, ...]) -> int:
    """The distance in memory of the elements of axes of these strides where it is the same for all, and 0 where not."""
    distance, expected = 0, 0
    for step, size in zip(reversed(steps), reversed(sizes)):
        if size > 1:
            if expected not in (0, step):
                return 0
            distance, expected = distance or step, step * size
    return distance or 1
