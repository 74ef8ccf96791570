"""Whether ``auto`` takes the right algorithm: all that support a layer, timed beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..choose import choose
from ..sample import draw_sample
from .contenders import Task, frozen
from .layers import Layer
from .measure import PLACES, check
from .timing import interleaved

CLOSE = 1.1
"""What is taken should cost at most so many times what the fastest costs ..."""

SHARE = 0.95
"""... on this share of the layers."""

_HOPELESS = 3.0  # times slower than the fastest: one round tells enough


@dataclass(frozen=True)
class Candidate:
    """One algorithm on one layer: whether ``auto`` takes it, seconds as measured and as estimated on one thread."""

    layer: str
    problem: str
    threads: int
    algorithm: str
    taken: bool
    seconds: float
    estimated: float


def time_candidates(layer: Layer, threads: int, rounds: int) -> list[Candidate]:
    """Every algorithm that supports the layer, its answer checked (WrongAnswer) and timed."""
    p = layer.problem
    x, w, b = layer.arrays()
    sample = draw_sample(p, x, PLACES)
    exact, choice = sample.exact(w, b), choose(p)
    task = Task(p, x, w, b, threads)
    plans = {verdict.name: frozen(task, verdict.name) for verdict in choice.verdicts if verdict.reason is None}
    for apply in plans.values():
        check(p, apply(x), sample, exact)
    calls = {name: (lambda own=own: own(x)) for name, own in plans.items()}
    turns = interleaved(calls, threads, rounds, _HOPELESS, 1)
    costs = {verdict.name: verdict.cost * p.batch for verdict in choice.verdicts}
    return [
        Candidate(layer.name, str(p), threads, name, name == choice.name, turn.median, costs[name]) for name, turn in turns.items()
    ]  # fmt: skip


def loss(candidates: Sequence[Candidate]) -> float:
    """Times the fastest one's seconds that what ``auto`` takes costs, for the candidates of one layer."""
    return next(c.seconds for c in candidates if c.taken) / min(c.seconds for c in candidates)


def describe(candidates: Sequence[Candidate]) -> str:
    """One line about one layer."""
    times = ", ".join(
        f"{'*' if c.taken else ''}{c.algorithm} {1e3 * c.seconds:.3g} ms (estimated {1e3 * c.estimated:.3g})"
        for c in sorted(candidates, key=lambda c: c.seconds)
    )
    factor = loss(candidates)
    return f"{candidates[0].layer:<28} {factor:5.2f} {'  ' if factor <= CLOSE else '! '}{times}"


def verdict_on(layers: Sequence[Sequence[Candidate]]) -> tuple[str, bool]:
    """A sentence about all layers, and whether ``auto`` is close to the fastest on enough of them."""
    close = sum(loss(candidates) <= CLOSE for candidates in layers)
    percent = f"{100 * close / len(layers):.1f} %"
    return f"auto is within {CLOSE - 1:.0%} of the fastest on {close} of {len(layers)} layers ({percent})", close >= SHARE * len(layers)
