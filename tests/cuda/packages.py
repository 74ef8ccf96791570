"""The packages that compile CUDA kernels: ``packages.require()`` at the top of a test module skips it where they are missing."""

from __future__ import annotations

import importlib
import os

import pytest


def require() -> None:
    """Skip the calling module where a package is missing; NUMBACONV_REQUIRE_CUDA_PACKAGES=1 makes that a failure."""
    try:
        for name in ("numba_cuda", "cuda.bindings.nvjitlink"):
            importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("NUMBACONV_REQUIRE_CUDA_PACKAGES") == "1":
            raise
        pytest.skip(f"the CUDA packages are not installed: {error}", allow_module_level=True)
