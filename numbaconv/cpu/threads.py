"""Running a kernel's tasks on Numba's threads, or on the calling thread where that is safer or faster.

Every algorithm cuts its work into numbered tasks whose results do not depend on who computes them.  A *worker* is a kernel that
takes tasks until none is left::

    @kernel()
    def _worker(..., counter):
        workspace = ...
        while True:
            task = next_task(counter)
            if task >= tasks:
                break
            ...

and :func:`share` runs it alone, or one on each thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import get_num_threads, prange, threading_layer, types
from numba.core import cgutils, config
from numba.extending import intrinsic, overload

from .compile import entry_point, kernel
from .simd import atomic_increment

SERIAL_BELOW = 30e-6
"""Seconds of work below which no parallel region is opened: it takes 2 to 3 microseconds."""

SERIAL_BELOW_IN_QUEUES = 200e-6
"""The same for the layer "workqueue", whose region takes 50."""

_one_at_a_time = threading.Lock()
_forked = False


def next_task(counter: Any) -> int:
    """The next task number from a shared int64 array of one element; callable from kernels, atomic there."""
    task = int(counter[0])
    counter[0] += 1
    return task


@overload(next_task)
def _next_task(counter):  # type: ignore[no-untyped-def]  # Numba compares the signatures, annotations included
    return lambda counter: atomic_increment(counter)


def share(worker: Callable[..., None], arguments: tuple[Any, ...], tasks: int, seconds: float, address: int = 0) -> int:
    """Run ``worker(*arguments, counter)`` on this thread, or one on each of several threads.

    ``seconds`` estimates the whole work on one thread.  A worker is not called without a task.
    address : what a call with arguments of the same types returned: where the worker's code begins, or 0 if it was not asked for.  To find
        it takes about as long as to open a region.
    """
    if tasks == 0:
        return address
    threads = min(team_size(seconds), tasks)
    counter = np.zeros(1, np.int64)
    if config.DISABLE_JIT:
        with np.errstate(all="ignore"):  # integers wrap in machine code, and NumPy's scalars would warn
            worker(*arguments, counter)
    elif threads < 2:
        worker(*arguments, counter)
    else:
        everything = (*arguments, counter)
        address = address or _address(worker, everything)
        # The layer "workqueue" aborts the process when two threads enter it.
        with _one_at_a_time if threading_layer() == "workqueue" else contextlib.nullcontext():
            _team(threads, address, everything)
    return address


@kernel(parallel=True)
def _team(threads, address, arguments):  # type: ignore[no-untyped-def]
    for _ in prange(threads):
        _call(address, arguments)


@intrinsic
def _call(typingctx, address, arguments):  # type: ignore[no-untyped-def]
    """Call the compiled worker at ``address``.

    Were it named instead, Numba would link its code into the team's and optimise and compile all of it a second time.
    """

    def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
        types_, convention = signature.args[1].types, context.call_conv
        worker = builder.inttoptr(values[0], convention.get_function_type(types.void, types_).as_pointer())
        status, _ = convention.call_function(builder, worker, types.void, types_, cgutils.unpack_tuple(builder, values[1]))
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), codegen


def _address(worker: Callable[..., None], arguments: tuple[Any, ...]) -> int:
    """Where the worker's code for arguments of these types begins."""
    key = worker, *[(a.dtype, a.ndim, a.flags.num) if isinstance(a, np.ndarray) else type(a) for a in arguments]
    if key not in _addresses:
        _addresses[key] = entry_point(worker, arguments)
    return _addresses[key]


_addresses: dict[Any, int] = {}


def team_size(seconds: float) -> int:
    """How many threads shall share work of so many seconds; 1 where no parallel region may be opened."""
    if seconds < SERIAL_BELOW or config.DISABLE_JIT or _forked or config.NUMBA_NUM_THREADS == 1:
        return 1
    if 0 < SERIAL_BELOW < seconds < SERIAL_BELOW_IN_QUEUES and _layer() == "workqueue":
        return 1
    threads: int = get_num_threads()
    return threads


def _layer() -> str | None:
    """Numba's threading layer, which it chooses when the first region is opened."""
    try:
        return str(threading_layer())
    except ValueError:
        return None


def most_threads() -> int:
    """The largest ``team_size`` of this process, for bounds on workspace."""
    return 1 if config.DISABLE_JIT else int(config.NUMBA_NUM_THREADS)


def _after_fork() -> None:
    global _forked, _one_at_a_time
    _one_at_a_time = threading.Lock()
    # GNU OpenMP kills a child that enters a parallel region after its parent did.
    _forked = _forked or _layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
