"""Filters: convolutions with few channels on one side, one register tile of the result at a time.

A task finds the source rows, the *lines*, that a block of result rows meets, and puts their addresses into a table: result rows whose
taps meet the same lines are neighbours there, so that one kernel serves every row stride, dilation and padding.  Lines are rows of the
source itself, read under masks, or copies with padding filled in, any strides straightened, and columns split by their remainder modulo
the stride.  A tile stays in registers over all taps, see ``filter_kernel``.

The order of an element's sum depends on the kernel, the stride and dilation along the rows and the channels of a group alone: bias, then
bands of kernel rows, tallest first; for each height kernel planes, source channels, bands, kernel columns, rows of the band.  Neither
batch, threads, layout in memory, spatial size nor the place of an element change its bits.
"""

from __future__ import annotations

import math

from numba.core import config

from ..choose import Accuracy
from ..problem import Problem
from .filter_forward import FilterSetup
from .filter_gradient import FilterGradientSetup, gradient_parts
from .filter_layout import MOST_SCRATCH, layout_of
from .target import target

MOST_PARTS = 64  # of a transposed convolution
SCATTER_SECONDS = 1e-9  # of a result that is stored on its own, as a gradient's are between those of other remainders


class Filter:
    """The algorithm for few source or result channels a group: depthwise, single-channel and RGB filters, small groups, last layers."""

    name = "filter"
    accuracy: Accuracy = "definition"

    def supports(self, problem: Problem) -> str | None:
        p = problem
        if p.dtype.startswith("complex"):
            return f"it computes with real numbers, not {p.dtype}"
        if p.dtype == "float16" and not target().float16:
            return "the processor does not convert float16"
        if config.DISABLE_JIT:
            return "it is made of LLVM intrinsics, which need the compiler (NUMBA_DISABLE_JIT is set)"
        if p.direction == "weight_grad":
            return "it computes results and gradients of the input, not of the weight"
        if p.transposed and p.padding_mode != "zeros":
            return f"gradients of {p.padding_mode} padding fold back onto the cells that were copied"
        if p.source_channels == 0:
            return "there are no channels to sum over"
        if p.result_channels == 0:
            return "there is no result"
        if p.transposed and math.prod(min(s, i) for s, i in zip(p.stride, p.in_size)) > MOST_PARTS:
            return f"transposed with strides {p.stride} it falls into more than {MOST_PARTS} convolutions"
        needed = max((layout_of(part, contiguous=False).workspace for part in _forward(p)), default=0)
        if needed > MOST_SCRATCH:
            return f"a block of source rows takes {needed:,} bytes, more than {MOST_SCRATCH:,}"
        return None

    def cost(self, problem: Problem) -> float:
        p = problem
        scattered = p.result_channels * math.prod(p.result_size) if p.transposed and p.stride[2] > 1 else 0
        return sum(layout_of(part).seconds for part in _forward(p)) + scattered * SCATTER_SECONDS

    def setup(self, problem: Problem) -> FilterSetup | FilterGradientSetup:
        return FilterGradientSetup(problem) if problem.transposed else FilterSetup(problem)


def _forward(p: Problem) -> list[Problem]:
    """The forward convolutions of one image that a problem is made of."""
    return [part.setup.problem for part in gradient_parts(p) if part.setup] if p.transposed else [p.per_image]
