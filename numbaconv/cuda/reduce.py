"""Sums of what the threads of a block hold."""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

THREADS = 256
"""Of a block whose threads are summed."""


@cuda.jit(device=True)
def sum_pairwise(shared, thread):  # type: ignore[no-untyped-def]
    """Leave the sum of THREADS numbers in the first one: always the same pairs, so always the same bits.

    Each thread has written its own number, and no barrier has been met since.
    """
    cuda.syncthreads()
    half = types.int32(THREADS // 2)
    while half > 0:
        if thread < half:
            shared[thread] += shared[thread + half]
        cuda.syncthreads()
        half = types.int32(half // types.int32(2))
