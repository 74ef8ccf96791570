"""One way to compile a kernel: nogil, NumPy's division, and a disk cache that sees every edit of the package."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config, types
from numba.core.dispatcher import Dispatcher

Function = Callable[..., Any]
_specialising = threading.Lock()


def kernel(**options: Any) -> Callable[[Function], Function]:
    """``numba.njit`` for every kernel of the package; ``options`` are njit's, ``cache`` excepted.

    The function itself where NUMBA_DISABLE_JIT is set.  Compiled code is cached on disk where a cache folder can be written, and
    compiled again by each process where not.  A serial and a ``parallel=True`` variant must be two functions: Numba's cache key
    ignores that option.
    """

    def compiled(function: Function) -> Function:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        if not config.DISABLE_JIT:
            _cache(dispatcher)
        result: Function = dispatcher
        return result

    return compiled


def specialise(dispatcher: Any, arguments: tuple[types.Type, ...]) -> None:
    """Compile a kernel for exactly these argument types, to which every call is then converted.

    Without it Numba compiles once more for read-only arrays.  Nothing to do where NUMBA_DISABLE_JIT is set.
    """
    if isinstance(dispatcher, Dispatcher):
        with _specialising:
            dispatcher.disable_compile(False)
            dispatcher.compile(arguments)
            dispatcher.disable_compile()


def _cache(dispatcher: Any) -> None:
    """Turn on the disk cache; the only place that touches Numba's private cache attributes.

    Numba compares a stamp of the one file that defines a function, and so would load stale code after an edit of an intrinsic,
    a constant or an inlined function elsewhere.
    """
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # "no locator available": no folder can be written
        return
    stored = dispatcher._cache._cache_file
    stored._source_stamp = (stored._source_stamp, _sources(), config.BOUNDSCHECK)


@functools.cache
def _sources() -> str:
    """Digest of every source file whose code can end up inside a kernel."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(here.glob("*.py")), here.parent / "padding.py"]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
