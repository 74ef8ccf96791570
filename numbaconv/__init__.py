"""numbaconv: torch's documented convolutions for NumPy arrays and CUDA-device arrays, compiled by Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and the modules they come from.  Nothing is imported until it is used: `import numbaconv` costs nothing heavy.
_HOME = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "functional"),
    **dict.fromkeys(("unfold", "unfold1d", "unfold2d", "unfold3d", "fold", "fold1d", "fold2d", "fold3d"), "columns"),
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Unfold", "Fold"), "modules"),
    **dict.fromkeys(
        ("LazyConv1d", "LazyConv2d", "LazyConv3d", "LazyConvTranspose1d", "LazyConvTranspose2d", "LazyConvTranspose3d"), "lazy"
    ),
    **dict.fromkeys(("plan", "explain", "Plan"), "plans"),
    "Problem": "problem",
}

# Public modules; torch and jax, which need the package of that name, are not in __all__.
_MODULES = ("cuda", "grad", "jax", "torch")

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Fold",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "Plan",
    "Problem",
    "Unfold",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cuda",
    "explain",
    "fold",
    "fold1d",
    "fold2d",
    "fold3d",
    "grad",
    "plan",
    "unfold",
    "unfold1d",
    "unfold2d",
    "unfold3d",
]

if TYPE_CHECKING:
    from . import cuda, grad
    from .columns import fold, fold1d, fold2d, fold3d, unfold, unfold1d, unfold2d, unfold3d
    from .functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
    from .lazy import LazyConv1d, LazyConv2d, LazyConv3d, LazyConvTranspose1d, LazyConvTranspose2d, LazyConvTranspose3d
    from .modules import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Fold, Unfold
    from .plans import Plan, explain, plan
    from .problem import Problem


def __getattr__(name: str) -> Any:
    if name not in _HOME and name not in _MODULES:
        raise AttributeError(f"module 'numbaconv' has no attribute {name!r}")
    import importlib

    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
