"""The CUDA side: the algorithms that convolve device arrays, and whether there is a device at all.

Every function of the package takes device arrays; nothing here has to be called first.
"""

from __future__ import annotations

import functools
import importlib.util

__all__ = ["is_available", "unavailable_reason"]


def is_available() -> bool:
    """Whether arrays on a CUDA device can be convolved in this process."""
    return unavailable_reason() is None


@functools.cache
def unavailable_reason() -> str | None:
    """Why :func:`is_available` is False, in words; None where it is True."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is not installed: pip install numbaconv[cuda13], or numbaconv[cuda12] for drivers of CUDA 12"
    try:
        from .driver import Cuda

        count = Cuda().devices()
    except Exception as error:  # the driver library is missing, or refuses: each binding says so in its own way
        return f"the CUDA driver does not start: {error}"
    return None if count else "the CUDA driver sees no device"
