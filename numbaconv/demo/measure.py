"""One convolution of the demo: run, timed and checked against the reference on a sample of its elements."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..arrays import AnyArray
from ..choose import registry
from ..explanation import Explanation
from ..problem import Problem
from ..sample import draw_sample

SAMPLE = 64
_ROUNDOFF = 2.0**-24  # of float32, the demo's only dtype


@dataclass(frozen=True)
class Check:
    """How far a result is from the reference on a sample.

    error : largest absolute error
    scale : largest magnitude of the result
    bound_used : largest error as a fraction of what summation in float32 may err there
    """

    elements: int
    error: float
    scale: float
    bound_used: float

    @property
    def passed(self) -> bool:
        return self.bound_used <= 1

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return (
            f"{self.elements} random elements against numbaconv.reference: largest error {self.error:.1e}, values up to "
            f"{self.scale:.3g}, {self.bound_used:.1%} of the rounding bound: {verdict}"
        )


@dataclass(frozen=True)
class Measured:
    """A convolution that was run: what it was, its result, seconds of the first call and of the best one, and the check."""

    explanation: Explanation
    result: AnyArray
    first: float
    best: float
    check: Check


def measure(call: Callable[[], AnyArray], explanation: Explanation, source: AnyArray, weight: AnyArray, bias: AnyArray | None) -> Measured:
    """Run ``call``, the float32 forward convolution that ``explanation`` describes, up to four times (two where one takes seconds)."""
    first, result = seconds(call)
    best, total = float("inf"), 0.0
    for _ in range(3):
        del result  # two results of a large volume at once are one too many
        again, result = seconds(call)
        best, total = min(best, again), total + again
        if total > 2:
            break
    check = check_sample(explanation.problem, source, weight, bias, result, explanation.algorithm)
    return Measured(explanation, result, first, best, check)


def seconds(call: Callable[[], AnyArray]) -> tuple[float, AnyArray]:
    """Seconds that ``call`` took, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def check_sample(
    problem: Problem, source: AnyArray, weight: AnyArray, bias: AnyArray | None, result: AnyArray, algorithm: str = "direct", seed: int = 0
) -> Check:
    """Compare ``SAMPLE`` random positions of the result, all channels, with the reference run on their receptive fields.

    source, result : 1 image each, batched; weight, bias : as the call got them.  The bound is that of a sum of K products and a bias
    in any order, (K + 2) u / (1 - (K + 2) u) * sum |w||x| (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1).
    An ``algorithm`` that transforms keeps that for the largest of these sums alone: what surrounds a cell adds to its error.
    """
    sample = draw_sample(problem, source, SAMPLE, seed)
    found, magnitude = sample.found(result), sample.magnitudes(weight, bias)
    error = np.abs(found - sample.exact(weight, bias))
    if any(a.name == algorithm and a.accuracy != "definition" for a in registry("cpu")):
        magnitude = np.full_like(magnitude, magnitude.max())
    length = problem.in_per_group * problem.taps + 2
    bound = length * _ROUNDOFF / (1 - length * _ROUNDOFF) * magnitude
    used = float((error / np.maximum(bound, np.finfo(np.float32).tiny)).max())
    return Check(found.size, float(error.max()), float(np.abs(result).max()), used)


class Progress:
    """A bar on stderr that a thread keeps moving while a step runs; nothing is written where stderr is no terminal."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Show ``label`` and the time it has taken until the block ends."""
        over = threading.Event()
        thread = threading.Thread(target=self._redraw, args=(label, over), daemon=True)
        if sys.stderr.isatty():
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread.ident is not None:
                thread.join()
        self.done += 1

    def _redraw(self, label: str, over: threading.Event) -> None:
        start = time.perf_counter()
        while True:
            filled = 24 * self.done // self.steps
            bar = "#" * filled + "-" * (24 - filled)
            self._write(f"[{bar}] {self.done}/{self.steps} {label}, {time.perf_counter() - start:.1f} s")
            if over.wait(0.1):
                break
        self._write("")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()
