"""PTX of the package's kernels, compiled once for all processes of the tests and kept beside the cubins."""

from __future__ import annotations

from numbaconv.cuda import launch
from numbaconv.cuda.launch import Kernel

from . import sass

ARCHITECTURE = "sm_80"
"""The oldest one: its PTX is assembled for every later one, too."""


def ptx_of(kernel: Kernel) -> str:
    """The kernel's PTX; its name says everything that is compiled in, and the file's name the sources and the compilers."""
    cubin = launch._cache_file(kernel, ARCHITECTURE)
    if cubin is None:
        return launch.compile_ptx(kernel, ARCHITECTURE)
    path = cubin.with_suffix(".ptx")
    if not path.is_file():
        launch._write(path, launch.compile_ptx(kernel, ARCHITECTURE).encode())
    return path.read_text()


def code_of(kernel: Kernel, architecture: str) -> sass.Sass:
    """The kernel's machine code: for sm_90a as it is shipped, for the others that of its PTX, which takes half as long."""
    if architecture == "sm_90a":
        return sass.report(kernel, architecture)
    return sass.inspect(sass.assemble(ptx_of(kernel), architecture)[0])
