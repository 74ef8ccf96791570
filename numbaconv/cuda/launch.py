"""Kernels from Python function to machine code: compiled once per architecture, cached in memory and on disk.

Everything here, and in ``ptx``, is bound to numba-cuda 0.30.  Kernels are linked to a cubin by nvJitLink and never handed to the driver as
PTX: a newer compiler writes PTX that an older driver refuses.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numba import cuda


@dataclass(frozen=True)
class Kernel:
    """A kernel as its module describes it.

    name : unique within the package for everything that is compiled in (element, tile, direction); part of the cache key
    function : the Python function, of raw addresses (uint64) and numbers
    signature : numba types of its arguments; a named tuple is passed field by field
    threads : of a block, all of them along x
    blocks : that shall fit on one multiprocessor, which bounds the registers
    shared_bytes : of dynamic shared memory
    """

    name: str
    function: Callable[..., None] = field(compare=False)
    signature: tuple[Any, ...] = field(compare=False)
    threads: int
    blocks: int = 1
    shared_bytes: int = 0


def compile_ptx(kernel: Kernel, architecture: str) -> str:
    """The kernel's PTX, for instance for ``"sm_90a"``; what an emulator runs and a reader reads."""
    return str(_compile(kernel, architecture, "ptx"))


def compile_cubin(kernel: Kernel, architecture: str) -> bytes:
    """The kernel's machine code, from the disk cache where an earlier process compiled it."""
    path = _cache_file(kernel, architecture)
    if path is not None and path.is_file():
        return path.read_bytes()
    _say_that_it_takes_seconds(architecture)
    cubin = link(_compile(kernel, architecture, "ltoir"), architecture)[0]
    if path is not None:
        _write(path, cubin)
    return cubin


@functools.cache
def _say_that_it_takes_seconds(architecture: str) -> None:
    """Once a process, through the logger "numbaconv"."""
    folder = cache_folder()
    kept = f"once: kept in {folder}" if folder else "in every process: no cache folder can be written, see NUMBA_CACHE_DIR"
    logging.getLogger("numbaconv").warning("numbaconv is compiling kernels for %s, which takes seconds (%s)", architecture, kept)


def link(ltoir: bytes, architecture: str, options: Sequence[str] = ()) -> tuple[bytes, str]:
    """Machine code of LTO-IR by nvJitLink, and what nvJitLink said."""
    from cuda.bindings import nvjitlink

    given = [f"-arch={architecture}", "-lto", *options]
    handle = nvjitlink.create(len(given), given)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, ltoir, len(ltoir), "kernel")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        said = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, said)
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin), said.decode(errors="replace").strip("\0")


_compiling = threading.Lock()  # numba-cuda's compiler is not re-entrant


def _compile(kernel: Kernel, architecture: str, output: str) -> Any:
    capability = _capability(architecture)
    with _compiling, _device_functions_for(capability):
        code, _ = cuda.compile(
            kernel.function,
            kernel.signature,
            cc=capability,
            device=False,
            abi="numba",
            output=output,
            launch_bounds=(kernel.threads, kernel.blocks),
        )
    return code


@contextlib.contextmanager
def _device_functions_for(capability: tuple[Any, ...]) -> Iterator[None]:
    """numba-cuda compiles device functions for the present GPU, and not at all without one: for ``capability`` here."""
    from numba.cuda import dispatcher

    present = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = present


def _capability(architecture: str) -> tuple[Any, ...]:
    """``"sm_90a"`` as (9, 0, "a"), ``"sm_120"`` as (12, 0)."""
    found = re.fullmatch(r"sm_(\d{2,3})([af]?)", architecture)
    if found is None:
        raise ValueError(f"architecture must be like 'sm_90a' or 'sm_120', got {architecture!r}")
    digits, suffix = found.groups()
    capability = (int(digits[:-1]), int(digits[-1]))
    return (*capability, suffix) if suffix else capability


# ---- the disk cache ----------------------------------------------------------------------------------------------------
def _cache_file(kernel: Kernel, architecture: str) -> Path | None:
    """Where the cubin is kept; None where no folder can be written."""
    key = hashlib.sha256(f"{kernel.name} {architecture} {_versions()}".encode()).hexdigest()[:24]
    folder = cache_folder()
    return None if folder is None else folder / f"{kernel.name}.{architecture}.{key}.cubin"


@functools.cache
def cache_folder() -> Path | None:
    """NUMBA_CACHE_DIR, or the user's cache folder; None where neither can be written."""
    wanted = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(wanted) / "numbaconv-cuda"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@functools.cache
def _versions() -> str:
    """Everything a cubin depends on: the package's sources and the compilers."""
    from importlib.metadata import version

    package = Path(__file__).parent
    sources = [*sorted(package.glob("*.py")), package.parent / "padding.py"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return " ".join([digest, *(version(name) for name in ("numba", "numba-cuda", "cuda-bindings"))])


def _write(path: Path, data: bytes) -> None:
    """Write so that no other process ever sees half a file; a cache that cannot be written is no error."""
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
