"""Timing calls beside each other: threads and pinning, the clock, and rounds in which every call has its turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SLOT = 0.012
"""Seconds of one turn: a short call is repeated for so long."""

FEWEST_ROUNDS = 5
HOPELESS = 30.0
"""A call so many times slower than the fastest one leaves after FEWEST_HOPELESS rounds: its exact time does not matter."""

FEWEST_HOPELESS = 3

BUDGET = 2.0
"""Seconds of turns after which a call takes part in no more than FEWEST_ROUNDS rounds."""

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SETTLE = 0.12


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Keep this process on ``threads`` CPUs, and libraries that it loads from now on to so many threads.

    The thread that calls is pinned where the system allows it; libraries that were loaded before may have more threads.
    """
    import numba  # before pinning: it makes as many threads as it then sees CPUs, once, and is told how many of them to use

    pinning = hasattr(os, "sched_setaffinity")
    cpus = sorted(os.sched_getaffinity(0)) if pinning else list(range(os.cpu_count() or 1))
    if not 1 <= threads <= len(cpus):
        raise ValueError(f"--threads must be between 1 and {len(cpus)}, the CPUs of this process, got {threads}")
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, str(threads)))
    if pinning:
        os.sched_setaffinity(0, cpus[-threads:])  # the first CPUs have more of the system's own work
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)
        if pinning:
            os.sched_setaffinity(0, cpus)
        for name, value in variables.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


Stopwatch = Callable[[Callable[[], object], int], float]
"""Seconds that each of so many calls takes, made one after another."""


@dataclass
class Turns:
    """One call's times: seconds a call, one number for each round that it took part in."""

    call: Callable[[], object]
    estimate: float
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


def interleaved(
    calls: Mapping[str, Callable[[], object]], threads: int, rounds: int, hopeless: float = HOPELESS, fewest: int = FEWEST_HOPELESS
) -> dict[str, Turns]:
    """Time calls in turns, see :func:`in_turns`, by the host's clock.

    One thread: CPU time of the process, which other processes hardly disturb.  More: time that passes, each turn begun when nothing
    else runs (threads of the call before may still be waiting for more work).
    """
    clock = time.process_time if threads == 1 else time.perf_counter

    def stopwatch(call: Callable[[], object], repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats

    return in_turns(calls, stopwatch, rounds, SLOT, _settle if threads > 1 else None, hopeless, fewest)


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    stopwatch: Stopwatch,
    rounds: int,
    slot: float,
    settle: Callable[[], None] | None = None,
    hopeless: float = HOPELESS,
    fewest: int = FEWEST_HOPELESS,
) -> dict[str, Turns]:
    """Time calls in turns of ``slot`` seconds, each once a round, in an order that rotates from round to round.

    settle : what comes before each turn.  A short call's turn begins with one that is not timed.
    A call ``hopeless`` times slower than the fastest one leaves after ``fewest`` rounds, at least 1.
    """
    turns = {name: Turns(call, max(stopwatch(call, 1), 1e-7)) for name, call in calls.items()}
    names = list(turns)
    fastest = min(t.estimate for t in turns.values())
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            slow = turns[name].estimate > hopeless * fastest
            if _takes_part(turns[name].estimate, number, fewest if slow else rounds, slot):
                if settle is not None:
                    settle()
                _take(turns[name], stopwatch, slot)
        fastest = min(t.best for t in turns.values())
    return turns


def _takes_part(estimate: float, number: int, rounds: int, slot: float) -> bool:
    return number < rounds and (number < FEWEST_ROUNDS or number * max(estimate, slot) < BUDGET)


def _take(turns: Turns, stopwatch: Stopwatch, slot: float) -> None:
    if turns.estimate < BUDGET / 10:
        turns.call()  # brings back what the call before it took from the caches
    turns.seconds.append(stopwatch(turns.call, max(1, int(slot / turns.estimate))))
    turns.estimate = turns.best


def _settle() -> None:
    """Wait until nothing but this thread runs on the machine, a tenth of a second at most."""
    time.sleep(0.004)
    end, quiet = time.perf_counter() + _SETTLE, 0
    while time.perf_counter() < end and quiet < 3:
        quiet = quiet + 1 if _running() <= 1 else 0
        time.sleep(0.002)


def _running() -> int:
    """Threads that run on this machine, this one included; 1 where the system does not say."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 1
    return next((int(line.split()[1]) for line in lines if line.startswith("procs_running")), 1)
