"""A kernel's call with everything decided but where source and result lie, and a plan's short way, which makes such calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..arrays import AnyArray, five, native, storage_view
from ..device import extent_of
from ..layouts import MOST_LAYOUTS
from .layouts import address
from .threads import share, team_size

MOST_BYTES = 1 << 20
"""Of a result: before a larger one is allocated, the memory is asked for room, and what that takes does not matter."""


@dataclass
class Call:
    """A worker's tasks for arrays of certain layouts."""

    worker: Callable[..., None]
    arguments: tuple[Any, ...]
    """What the worker takes behind the byte addresses of source and result."""
    tasks: int
    seconds: float
    _address: int = 0  # of the worker's code, once it was asked for

    def run(self, source: int, result: int) -> None:
        """Compute, with the arrays at these byte addresses."""
        self._address = share(self.worker, (source, result, *self.arguments), self.tasks, self.seconds, self._address)


class Prepares(Protocol):
    """A setup whose ``run`` is one call."""

    def call(self, source: AnyArray, packed: tuple[AnyArray, ...], result: AnyArray) -> Call:
        """What ``run`` does with 5-D arrays of these layouts."""
        ...


class Known(NamedTuple):
    """What depends on an input's layout alone: the result, the call for a number of threads, and the bytes that both take, counted from
    their first elements."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    call: Call
    threads: int
    low: int
    high: int
    size: int


class Repeat:
    """A plan's calls with inputs whose layout has been met: nothing that depends on layouts alone is done again.

    Working all that out in Python takes longer than a small convolution.  Safe to share between threads.
    """

    def __init__(self, setup: Prepares, rank: int, packed: tuple[AnyArray, ...]) -> None:
        self._setup, self._rank, self._packed = setup, rank, packed
        self._known: dict[Any, Known] = {}

    def __call__(self, input: Any, out: Any) -> Any:
        if type(input) is not np.ndarray:
            return None
        known = self._known.get((input.shape, input.strides, input.dtype))
        if known is None or not input.flags.aligned:
            return None
        shape, dtype, call, threads, low, high, size = known
        if threads != team_size(call.seconds):
            return None
        if out is None:
            result = np.empty(shape, dtype)
        elif type(out) is np.ndarray and out.shape == shape and out.dtype == dtype and out.flags.carray:
            result = out
        else:
            return None
        source, to = address(input), address(result)
        if source + low < to + size and to < source + high:
            return None  # whether they share elements takes a closer look
        call.run(source, to)
        return result

    def remember(self, input: AnyArray, result: AnyArray) -> None:
        if result.nbytes > MOST_BYTES:
            return
        if not result.flags.carray or native(input) is not input or any(storage_view(a) is not a for a in (input, result)):
            return  # the kernel has not met these arrays themselves, or no layout that fresh results have
        call = self._setup.call(five(input, self._rank), self._packed, five(result, self._rank))
        low, high = extent_of(input.shape, input.strides)
        if len(self._known) >= MOST_LAYOUTS:
            self._known.clear()
        known = Known(result.shape, result.dtype, call, team_size(call.seconds), low, high + input.itemsize, result.nbytes)
        self._known[input.shape, input.strides, input.dtype] = known
