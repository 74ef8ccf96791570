"""Which algorithm computes a problem: each one says why it can't, or what it costs, and the cheapest is taken.

The choice looks at one image of the problem: never at the batch size or the number of threads, so that the bits of an
output element depend on neither.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .problem import Problem, itemsize

PRECISIONS = (None, "ieee", "fast", "tf32")
Accuracy = Literal["definition", "transform", "loose"]


class Setup(Protocol):
    """An algorithm set up for one problem: geometry and tile, none of the user's arrays; safe to share between threads."""

    @property
    def workspace(self) -> int:
        """Upper bound of the bytes that ``run`` allocates."""
        ...

    @property
    def packed_bytes(self) -> int:
        """Bytes of what ``pack`` returns."""
        ...

    def pack(self, weight: Any, bias: Any) -> tuple[Any, ...]:
        """Weight (out_channels, in_per_group, kd, kh, kw) and bias in the form that ``run`` reads; never a view of them.

        A setup may have another method, ``pack_once``, for what is run once, before the weight can change: it may return views.
        """
        ...

    def run(self, source: Any, packed: tuple[Any, ...], result: Any) -> None:
        """Compute 5-D ``result`` from 5-D ``source`` (native, aligned, any strides, any batch): storage views or device arrays."""
        ...


class Algorithm(Protocol):
    """One way to compute convolutions.

    ``accuracy`` is "definition" when every product of the definition is formed, "transform" when it isn't but the rms error
    stays within 3 times that, "loose" otherwise.
    """

    name: str
    accuracy: Accuracy

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why this algorithm cannot compute the problem: the end of "… declines: "."""
        ...

    def cost(self, problem: Problem) -> float:
        """Estimated seconds for one image on one thread."""
        ...

    def setup(self, problem: Problem) -> Setup: ...


@dataclass(frozen=True)
class Verdict:
    """What became of one algorithm: a reason against it, or its estimated cost in seconds."""

    name: str
    reason: str | None
    cost: float = float("inf")


@dataclass(frozen=True)
class Choice:
    """The algorithm taken for a problem, set up, and every verdict on the way to it."""

    name: str
    setup: Setup
    verdicts: tuple[Verdict, ...]
    memory: int
    """Bytes of workspace and packed weight: what a call allocates at most beside its result."""
    arithmetic: str
    """What products are formed and summed in, in words."""


def choose(problem: Problem, precision: str | None = None, algorithm: str = "auto", device: str = "cpu") -> Choice:
    """The cheapest algorithm that computes ``problem``, or the one named; ValueError with its reason where it declines."""
    check_precision(precision)
    check_algorithm(algorithm)
    return _choose(problem.per_image, precision, algorithm, device)


def decide(
    make: Callable[..., Problem], given: tuple[Any, ...], options: tuple[Any, ...], precision: Any, algorithm: Any, device: str
) -> tuple[Problem, Choice]:
    """``make(*given, *options)`` and its choice, remembered where that is safe; what it raises is not.

    given : shapes and names that are known to be tuples of ints and strings; options : what the user passed, unchecked.
    """
    if _remembers(options) and _remembers((precision, algorithm)):
        return _decide(make, given, options, precision, algorithm, device)
    problem = make(*given, *options)
    return problem, choose(problem, precision, algorithm, device)


@functools.lru_cache(maxsize=1024)
def _decide(make: Callable[..., Problem], given: Any, options: Any, precision: Any, algorithm: Any, device: str) -> tuple[Problem, Choice]:
    problem = make(*given, *options)
    return problem, choose(problem, precision, algorithm, device)


def _remembers(values: tuple[Any, ...]) -> bool:
    """Whether equal values are interchangeable: not True and 1, nor 1.0 and 1, of which only one is refused."""
    for value in values:
        kind = type(value)
        if kind is not int and kind is not str and value is not None and not (kind is tuple and _remembers(value)):
            return False
    return True


@functools.lru_cache(maxsize=512)
def _choose(problem: Problem, precision: str | None, algorithm: str, device: str) -> Choice:
    found = registry(device)
    verdicts = tuple(_verdict(a, problem, precision) for a in found)
    if algorithm == "auto":
        taken = min(range(len(found)), key=lambda i: verdicts[i].cost)
    else:
        names = [a.name for a in found]
        if algorithm not in names:
            raise ValueError(f"algorithm must be 'auto' or one of {', '.join(map(repr, names))}, got {algorithm!r}")
        taken = names.index(algorithm)
    verdict = verdicts[taken]
    if verdict.reason is not None:
        raise ValueError(f"algorithm {verdict.name!r} declines: {verdict.reason}")
    setup = found[taken].setup(problem)
    memory = setup.workspace + (0 if problem.direction == "weight_grad" else setup.packed_bytes)
    return Choice(verdict.name, setup, verdicts, memory, _arithmetic(problem, precision))


def _arithmetic(problem: Problem, precision: str | None) -> str:
    """The accumulator's arithmetic; nothing here rounds factors to less than their dtype, also where a caller allows it."""
    wide = {"float16": "float32", "bfloat16": "float32", "complex64": "float32", "complex128": "float64"}.get(problem.dtype, problem.dtype)
    if "float" not in wide:
        return f"integers modulo 2**{8 * itemsize(problem.out_dtype)}"
    return f"IEEE {wide}" + (", although precision 'tf32' allows less" if precision == "tf32" else "")


def registry(device: str) -> tuple[Algorithm, ...]:
    """The algorithms of a device, fastest first, ending in ``direct``; imports the compiler on first use."""
    if device == "cpu":
        from .cpu import ALGORITHMS

        return ALGORITHMS
    if device == "cuda":
        if importlib.util.find_spec("numba_cuda") is None:
            raise ModuleNotFoundError("device 'cuda' needs numba-cuda: pip install numbaconv[cuda13], or numbaconv[cuda12]")
        from .cuda import algorithms

        return algorithms.ALGORITHMS
    raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")


def check_precision(precision: Any) -> None:
    if precision is not None and not isinstance(precision, str):
        raise TypeError(f"precision must be None, 'ieee', 'fast' or 'tf32', got {precision!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be None, 'ieee', 'fast' or 'tf32', got {precision!r}")


def check_algorithm(algorithm: Any) -> None:
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be a string, 'auto' or an algorithm's name, got {algorithm!r}")


def _verdict(algorithm: Algorithm, problem: Problem, precision: str | None) -> Verdict:
    reason = _accuracy_reason(algorithm, precision) or algorithm.supports(problem)
    return Verdict(algorithm.name, reason, float("inf") if reason else algorithm.cost(problem))


def _accuracy_reason(algorithm: Algorithm, precision: str | None) -> str | None:
    if algorithm.accuracy == "definition" or precision == "fast":
        return None
    if algorithm.accuracy == "loose":
        return "its rounding errors are for precision='fast'"
    return None if precision is None else f"it does not form every product of the definition, which precision={precision!r} asks for"
