"""One convolution, described once: validated sizes in canonical 3-D geometry.

A :class:`Problem` always describes a *forward* cross-correlation (its channels, sizes, kernel, stride, padding,
dilation, groups); ``direction`` says which of its three tensors is computed from the other two.  A transposed
convolution is the ``input_grad`` of the forward convolution whose weight has the same layout, so both share
one description.  1-D and 2-D problems carry unit leading axes; ``rank`` remembers how many axes the user has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

from . import grammar
from .arguments import bounded, check_padding_mode, integer, padding_pairs, per_axis, resolve_padding, shown_shape

Triple = tuple[int, int, int]
Pairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Direction = Literal["forward", "input_grad", "weight_grad"]


@dataclass(frozen=True)
class Problem:
    """One validated convolution; hashable, printable, parseable (``Problem.parse(str(p)) == p``)."""

    dtype: str
    out_dtype: str
    direction: Direction
    rank: int
    batch: int
    groups: int
    in_channels: int
    in_size: Triple
    out_channels: int
    kernel: Triple
    stride: Triple
    padding: Pairs
    dilation: Triple
    output_padding: Triple = (0, 0, 0)
    padding_mode: str = "zeros"
    bias: bool = False

    # ---- derived sizes -------------------------------------------------------------------------------------------
    @cached_property
    def out_size(self) -> Triple:
        """Spatial size of the forward convolution's output."""
        return _triple(
            (i + lo + hi - d * (k - 1) - 1 - op) // s + 1
            for i, (lo, hi), d, k, op, s in zip(self.in_size, self.padding, self.dilation, self.kernel, self.output_padding, self.stride)
        )

    @property
    def in_per_group(self) -> int:
        return self.in_channels // self.groups

    @property
    def out_per_group(self) -> int:
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        """Kernel elements of one channel."""
        return math.prod(self.kernel)

    @property
    def transposed(self) -> bool:
        return self.direction == "input_grad"

    @property
    def source_channels(self) -> int:
        """Channels of the array that is read: the input, or its output's gradient."""
        return self.out_channels if self.transposed else self.in_channels

    @property
    def source_size(self) -> Triple:
        return self.out_size if self.transposed else self.in_size

    @property
    def result_channels(self) -> int:
        """Channels of the array that is written."""
        return self.in_channels if self.transposed else self.out_channels

    @property
    def result_size(self) -> Triple:
        return self.in_size if self.transposed else self.out_size

    @cached_property
    def source_shape(self) -> tuple[int, ...]:
        return (self.batch, self.source_channels, *self.source_size[3 - self.rank :])

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_per_group, *self.kernel[3 - self.rank :])

    @cached_property
    def result_shape(self) -> tuple[int, ...]:
        if self.direction == "weight_grad":
            return self.weight_shape
        return (self.batch, self.result_channels, *self.result_size[3 - self.rank :])

    @property
    def flops(self) -> int:
        """Floating-point operations by the definition: two for each product, padding included (four times that for complex)."""
        products = self.batch * self.out_channels * self.in_per_group * self.taps * math.prod(self.out_size)
        return products * (8 if self.dtype.startswith("complex") else 2)

    @property
    def bytes(self) -> int:
        """Bytes of source, weight, bias and result, each touched once."""
        size = itemsize(self.dtype)
        elements = self.batch * (self.in_channels * math.prod(self.in_size) + self.out_channels * math.prod(self.out_size))
        elements += math.prod(self.weight_shape) + self.result_channels * self.bias
        result = math.prod(self.result_shape)
        return (elements - result) * size + result * itemsize(self.out_dtype)

    @property
    def per_image(self) -> Problem:
        """The same problem for one image: what a choice of algorithm and tile may depend on."""
        return self if self.batch == 1 else replace(self, batch=1)

    def gradient(self, direction: Direction) -> Problem:
        """The gradient of this forward convolution, with the input cells that no tap reaches as output padding."""
        beyond = [
            (i + lo + hi - d * (k - 1) - 1) % s
            for i, (lo, hi), d, k, s in zip(self.in_size, self.padding, self.dilation, self.kernel, self.stride)
        ]
        return replace(self, direction=direction, output_padding=_triple(beyond), bias=False)

    # ---- text form -----------------------------------------------------------------------------------------------
    def __str__(self) -> str:
        return grammar.write(self)

    @staticmethod
    def parse(text: str) -> Problem:
        """The Problem that prints as ``text``; ValueError when no problem does."""
        fields = grammar.read(text)
        for name, fill in (("in_size", 1), ("kernel", 1), ("stride", 1), ("dilation", 1), ("output_padding", 0)):
            fields[name] = _fill(fields[name], fill)
        fields["padding"] = _fill_pairs(fields["padding"])
        problem = Problem(**fields)
        if str(problem) != text:
            raise ValueError(f"not the text form of a Problem: {text!r} (read as {problem})")
        _check_possible(problem)
        return problem


@cache
def itemsize(dtype: str) -> int:
    """Bytes of one element of the named dtype."""
    if dtype.startswith("complex"):
        return int(dtype[7:]) // 8
    return int(re.sub(r"\D", "", dtype)) // 8


def _check_possible(p: Problem) -> None:
    """ValueError for sizes that no call has."""
    first = 3 - p.rank
    input_shape = (p.batch, p.in_channels, *p.in_size[first:])
    forward_problem(
        p.rank, input_shape, p.weight_shape, None, p.stride[first:], p.padding[first:], p.dilation[first:], p.groups,
        padding_mode=p.padding_mode,
    )  # fmt: skip
    for i, (lo, hi), k, s, d, op in zip(p.in_size, p.padding, p.kernel, p.stride, p.dilation, p.output_padding):
        if (p.transposed or op) and (op >= max(s, d) or (i + lo + hi - d * (k - 1) - 1 - op) % s):
            raise ValueError(f"output_padding must be what a strided convolution leaves over, got {p.output_padding[first:]} in {p}")
    if p.out_dtype != p.dtype and (p.out_dtype != "int32" or p.dtype not in ("int8", "int16", "uint8")):
        raise ValueError(f"out_dtype must be {p.dtype}, or int32 for a narrow integer, got {p.out_dtype} in {p}")


# ---- the two constructors ----------------------------------------------------------------------------------------
def forward_problem(
    rank: int,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    *,
    padding_mode: Any = "zeros",
    dtype: str = "float32",
    out_dtype: str | None = None,
) -> Problem:
    """Validate a forward convolution; ``input_shape`` is batched or unbatched (then the batch is 1)."""
    name = f"conv{rank}d"
    weight = _weight_shape(name, rank, weight_shape)
    batch, channels, size = split_shape(name, rank, input_shape)
    steps, gaps = per_axis("stride", stride, rank, 1), per_axis("dilation", dilation, rank, 1)
    count = _groups(groups, weight)
    if channels != weight[1] * count:
        raise ValueError(
            f"input must have weight.shape[1] * groups = {weight[1] * count} channels, got {channels} "
            f"(input {shown_shape(input_shape)}, weight {shown_shape(weight_shape)}, groups {count})"
        )
    _check_bias("weight.shape[0]", weight[0], bias_shape)
    mode = check_padding_mode(padding_mode)
    kernel = weight[2:]
    extents = [_extent(k, d) for k, d in zip(kernel, gaps)]
    pairs = resolve_padding(padding, size, kernel, steps, gaps)
    for axis, (i, (lo, hi), extent) in enumerate(zip(size, pairs, extents)):
        padded = bounded(f"input size plus padding along axis {axis}", i + lo + hi)
        if i == 0:
            raise ValueError(f"input must have at least one element along every spatial axis, got {shown_shape(input_shape)}")
        _check_mode_limit(mode, axis, i, lo, hi)
        if extent > padded:
            raise ValueError(
                f"kernel extent dilation * (kernel - 1) + 1 must not exceed the padded input, got extent {tuple(extents)} "
                f"for padded input {tuple(n + a + b for n, (a, b) in zip(size, pairs))}"
            )
    problem = Problem(
        dtype=dtype,
        out_dtype=out_dtype or dtype,
        direction="forward",
        rank=rank,
        batch=batch,
        groups=count,
        in_channels=channels,
        in_size=_fill(size, 1),
        out_channels=weight[0],
        kernel=_fill(kernel, 1),
        stride=_fill(steps, 1),
        padding=_fill_pairs(pairs),
        dilation=_fill(gaps, 1),
        padding_mode=mode,
        bias=bias_shape is not None,
    )
    bounded("the number of output elements", math.prod(problem.result_shape))
    return problem


def transposed_problem(
    rank: int,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
    *,
    dtype: str = "float32",
    out_dtype: str | None = None,
) -> Problem:
    """Validate a transposed convolution: the input gradient of the forward convolution with this weight."""
    name = f"conv_transpose{rank}d"
    weight = _weight_shape(name, rank, weight_shape)
    batch, channels, size = split_shape(name, rank, input_shape)
    steps, gaps = per_axis("stride", stride, rank, 1), per_axis("dilation", dilation, rank, 1)
    count = _groups(groups, weight)
    if channels != weight[0]:
        raise ValueError(
            f"input must have weight.shape[0] = {weight[0]} channels, got {channels} "
            f"(input {shown_shape(input_shape)}, weight {shown_shape(weight_shape)})"
        )
    result_channels = weight[1] * count
    _check_bias("weight.shape[1] * groups", result_channels, bias_shape)
    pairs = padding_pairs(padding, rank)
    extra = per_axis("output_padding", output_padding, rank, 0)
    result = []
    for axis, (i, k, s, d, (lo, hi), op) in enumerate(zip(size, weight[2:], steps, gaps, pairs, extra)):
        if i == 0:
            raise ValueError(f"input must have at least one element along every spatial axis, got {shown_shape(input_shape)}")
        if op >= max(s, d):
            raise ValueError(
                f"output_padding must be smaller than stride or dilation, got {op} with stride {s} and dilation {d} (axis {axis})"
            )
        full = bounded(f"the output size along axis {axis}", (i - 1) * s + _extent(k, d) + op)
        result.append(full - lo - hi)
    if any(n < 1 for n in result):
        raise ValueError(f"padding must leave an output of at least one element along every axis, got output size {tuple(result)}")
    problem = Problem(
        dtype=dtype,
        out_dtype=out_dtype or dtype,
        direction="input_grad",
        rank=rank,
        batch=batch,
        groups=count,
        in_channels=result_channels,
        in_size=_fill(result, 1),
        out_channels=channels,
        kernel=_fill(weight[2:], 1),
        stride=_fill(steps, 1),
        padding=_fill_pairs(pairs),
        dilation=_fill(gaps, 1),
        output_padding=_fill(extra, 0),
        bias=bias_shape is not None,
    )
    bounded("the number of output elements", math.prod(problem.result_shape))
    return problem


# ---- parts -----------------------------------------------------------------------------------------------------------
def _weight_shape(name: str, rank: int, shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) != rank + 2:
        raise ValueError(f"weight must have {rank + 2} dimensions for {name}, got shape {shown_shape(shape)}")
    if shape[0] == 0:
        raise ValueError(f"weight must have at least one filter (weight.shape[0]), got shape {shown_shape(shape)}")
    if any(k == 0 for k in shape[2:]):
        raise ValueError(f"weight must have a kernel of at least one element along every axis, got shape {shown_shape(shape)}")
    return tuple(shape)


def split_shape(name: str, rank: int, shape: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
    """Batch, channels and spatial size of an input shape, batched or not (then the batch is 1); ``name`` is the function's."""
    if len(shape) == rank + 1:
        shape = (1, *shape)
    if len(shape) != rank + 2:
        raise ValueError(
            f"input must have {rank + 1} (unbatched) or {rank + 2} (batched) dimensions for {name}, got shape {shown_shape(shape)}"
        )
    return shape[0], shape[1], tuple(shape[2:])


def _groups(groups: Any, weight: Sequence[int]) -> int:
    count = integer("groups", groups, 1)
    if weight[0] % count:
        raise ValueError(f"groups must divide weight.shape[0], got groups {count} and weight {shown_shape(weight)}")
    return count


def _check_bias(what: str, channels: int, shape: Sequence[int] | None) -> None:
    if shape is not None and tuple(shape) != (channels,):
        raise ValueError(f"bias must have shape ({channels},) to match {what}, got {shown_shape(shape)}")


def _check_mode_limit(mode: str, axis: int, size: int, lo: int, hi: int) -> None:
    if mode == "reflect" and max(lo, hi) >= size:
        raise ValueError(
            f"padding must be smaller than the input with padding_mode='reflect', got ({lo}, {hi}) for size {size} (axis {axis})"
        )
    if mode == "circular" and max(lo, hi) > size:
        raise ValueError(f"padding must not exceed the input with padding_mode='circular', got ({lo}, {hi}) for size {size} (axis {axis})")


def _extent(kernel: int, dilation: int) -> int:
    return bounded("the kernel extent dilation * (kernel - 1) + 1", dilation * (kernel - 1) + 1)


def _triple(values: Any) -> Triple:
    a, b, c = values
    return (a, b, c)


def _fill(values: Sequence[int], fill: int) -> Triple:
    return _triple((fill,) * (3 - len(values)) + tuple(values))


def _fill_pairs(pairs: Sequence[tuple[int, int]]) -> Pairs:
    a, b, c = ((0, 0),) * (3 - len(pairs)) + tuple(pairs)
    return (a, b, c)
