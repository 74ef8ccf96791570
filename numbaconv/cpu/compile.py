"""One way to compile a kernel: nogil, NumPy's division, and a disk cache that sees every edit of the package."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config, event, types
from numba.core.dispatcher import Dispatcher
from numba.core.types.misc import unliteral
from numba.core.typing.typeof import typeof

Function = Callable[..., Any]
_specialising = threading.Lock()


def kernel(**options: Any) -> Callable[[Function], Function]:
    """``numba.njit`` for every kernel of the package; ``options`` are njit's, ``cache`` excepted.

    The function itself where NUMBA_DISABLE_JIT is set.  Compiled code is cached on disk where a cache folder can be written, and
    compiled again by each process where not.  With ``forceinline=True`` it can be called from kernels only, not from Python.
    """
    if options.get("forceinline"):  # entries that nobody calls would be compiled too
        options = options | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

    def compiled(function: Function) -> Function:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        if not config.DISABLE_JIT:
            _cache(dispatcher)
            dispatcher.get_call_template = _without_literals(dispatcher.get_call_template)
        result: Function = dispatcher
        return result

    return compiled


def _without_literals(template: Function) -> Function:
    """Numba would compile a kernel once more for each literal integer that another kernel passes, or begins a count with."""
    return lambda arguments, keywords: template(tuple(unliteral(a) for a in arguments), keywords)


def only_specialised(function: Function) -> Function:
    """The same kernel, which no call compiles: TypeError for argument types that it has not been specialised for."""
    if isinstance(function, Dispatcher):
        vars(function)["_can_compile"] = False  # what disable_compile() does, which asks for one signature first
    return function


def specialise(dispatcher: Any, arguments: tuple[types.Type, ...]) -> None:
    """Compile a kernel for exactly these argument types, to which every call is then converted.

    Without it Numba compiles once more for every layout and for read-only arrays.  While one thread does so, another one's call may fail:
    see :func:`call_specialised`.  Nothing to do where NUMBA_DISABLE_JIT is set.
    """
    if isinstance(dispatcher, Dispatcher):
        with _specialising:
            dispatcher.disable_compile(False)
            dispatcher.compile(arguments)
            dispatcher.disable_compile()


def call_specialised(dispatcher: Any, *arguments: Any) -> Any:
    """Call a kernel while no thread specialises it."""
    with _specialising:
        return dispatcher(*arguments)


def entry_point(dispatcher: Any, arguments: tuple[Any, ...]) -> int:
    """Address of the code that a call of a kernel with these arguments runs, compiled now if need be."""
    signature: Any = types.Dispatcher(dispatcher).get_call_type(dispatcher.typingctx, tuple(typeof(a) for a in arguments), {})
    compiled = dispatcher.overloads[signature.args]
    address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return address


# ---- the disk cache, the only place that touches Numba's private attributes for it -------------------------------------
def cache_folder(dispatcher: Any) -> str | None:
    """Where a kernel's compiled code is kept; None where no folder can be written, or nothing is compiled."""
    cache = getattr(dispatcher, "_cache", None)
    return cache and cache.cache_path


def _cache(dispatcher: Any) -> None:
    """Turn on the disk cache.

    Numba compares a stamp of the one file that defines a function, and so would load stale code after an edit of an intrinsic,
    a constant or an inlined function elsewhere.
    """
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # "no locator available": no folder can be written
        return
    cache = dispatcher._cache
    stored = cache._cache_file
    stored._source_stamp = (stored._source_stamp, _sources(), config.BOUNDSCHECK)
    cache.load_overload, cache.save_overload = _unless_it_fails(cache.load_overload), _unless_it_fails(cache.save_overload)


def _unless_it_fails(access: Function) -> Function:
    """Goes on uncached where the cache folder can no longer be read or written: a full disk, a folder taken away."""

    @functools.wraps(access)
    def attempt(*arguments: Any) -> Any:
        with contextlib.suppress(OSError):
            return access(*arguments)

    return attempt


@functools.cache
def _sources() -> str:
    """Digest of every source file whose code can end up inside a kernel."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(here.glob("*.py")), here.parent / "padding.py"]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


# ---- the notice --------------------------------------------------------------------------------------------------------
class _Notice(event.Listener):  # type: ignore[misc]
    """Says once a process, through the logger "numbaconv", that a kernel is being compiled: nothing was loaded from the cache."""

    given = False

    def on_start(self, event: Any) -> None:
        dispatcher = event.data["dispatcher"]
        if self.given or not dispatcher.py_func.__module__.startswith(f"{__package__}."):
            return
        self.given = True
        folder = cache_folder(dispatcher)
        kept = f"once: kept in {folder}" if folder else "in every process: no cache folder can be written, see NUMBA_CACHE_DIR"
        logging.getLogger("numbaconv").warning("numbaconv is compiling kernels for this processor, which takes seconds (%s)", kept)

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Notice())
