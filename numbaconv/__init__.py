"""numbaconv: torch's documented convolutions for NumPy arrays, compiled by Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and the modules they come from.  Nothing is imported until it is used: `import numbaconv` costs nothing heavy.
_HOME = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "functional"),
    **dict.fromkeys(("plan", "explain", "Plan"), "plans"),
    "Problem": "problem",
}

__all__ = ["Plan", "Problem", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "explain", "plan"]

if TYPE_CHECKING:
    from .functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
    from .plans import Plan, explain, plan
    from .problem import Problem


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'numbaconv' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
