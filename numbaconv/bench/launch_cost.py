"""What a call costs the host before any work is done: an empty kernel's launch, a plan, the function, and torch, on a tiny problem."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..arrays import check_array
from ..problem import Problem
from .contenders import Task, frozen, numbaconv_function
from .gpu import Gpu
from .layers import Layer
from .measure import layer_task

TINY = "f32_fwd_mb1g1_ic8ih8iw8_oc8kh3kw3_s1x1_p1:1x1:1_d1x1_zeros_b1"
EMPTY = "an empty kernel"
_WARM, _CALLS, _ROUNDS = 50, 500, 8


@dataclass(frozen=True)
class Cost:
    """Microseconds that one call takes by the host's clock: the median of ``calls``."""

    call: str
    microseconds: float
    calls: int


def measure_costs(gpu: Gpu, calls: int = _CALLS, rounds: int = _ROUNDS) -> list[Cost]:
    """The cost of each call; the calls take turns, with the device idle at the start of each."""
    known = tiny_calls(layer_task(Layer("tiny", Problem.parse(TINY)), 1).on(gpu))
    times: dict[str, list[int]] = {name: [] for name in known}
    for _ in range(rounds):
        for name, call in known.items():
            gpu.synchronize()
            for _ in range(min(_WARM, calls)):
                call()
            gpu.synchronize()
            times[name] += [_nanoseconds(call) for _ in range(calls)]
    gpu.synchronize()
    return [Cost(name, statistics.median(own) / 1e3, len(own)) for name, own in times.items()]


def tiny_calls(task: Task) -> dict[str, Callable[[], Any]]:
    x, apply, out = task.input, frozen(task), task.poisoned()
    calls = {
        EMPTY: _empty_launch(x),
        f"plan(x, out=out) ({apply.algorithm})": lambda: apply(x, out=out),
        "plan(x)": lambda: apply(x),
        "conv2d(x, weight, bias)": numbaconv_function(task).call,
    }
    if type(x).__module__.partition(".")[0] == "torch":
        import torch

        calls["torch.nn.functional.conv2d"] = lambda: torch.nn.functional.conv2d(x, task.weight, task.bias, padding=1)
    return calls


def _empty_launch(array: Any) -> Callable[[], None]:
    """A launch of a kernel that does nothing, by the way that every kernel of the package takes."""
    from numba.cuda import types

    from ..cuda.driver import Call, driver
    from ..cuda.launch import Kernel

    def empty(address):  # type: ignore[no-untyped-def]
        pass

    found = check_array("array", array)
    launch = Call(driver().function(Kernel("empty", empty, (types.uint64,), 32), found.device), (1, 1, 1), 1, ())
    return lambda: launch(found.stream, found.pointer)


def _nanoseconds(call: Callable[[], Any]) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start
