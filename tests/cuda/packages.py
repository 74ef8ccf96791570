"""What the tests of the CUDA side need, and why a module of them is skipped::

if why := packages.missing("nvdisasm"):
    pytest.skip(why, allow_module_level=True)
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path


def missing(*tools: str) -> str:
    """What is missing to compile CUDA kernels and to use the ``tools`` (nvdisasm, cuobjdump, ptxas); "" where nothing is.

    NUMBACONV_REQUIRE_CUDA_PACKAGES=1 makes that an error.
    """
    absent = [name for name in tools if tool(name) is None]
    for name in ("numba_cuda", "cuda.bindings.nvjitlink"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            absent.append(str(error))
    if not absent:
        return ""
    why = f"the packages of the extras cuda13 and cuda-test are not all installed: {', '.join(absent)}"
    if os.environ.get("NUMBACONV_REQUIRE_CUDA_PACKAGES") == "1":
        raise RuntimeError(why)
    return why


def tool(name: str) -> str | None:
    """Path of a CUDA tool: from a package of this environment, else from PATH."""
    packaged = (path for entry in sys.path for path in sorted(Path(entry).glob(f"nvidia/cu*/bin/{name}")))
    return next(map(str, packaged), None) or shutil.which(name)
