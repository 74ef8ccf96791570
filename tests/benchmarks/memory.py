"""Memory of one call, in a fresh process each: python tests/benchmarks/memory.py [--layers NAME,...] [--csv FILE]

What a call adds to a process that holds input, weight and plan, and has called the same kernel on a small problem before.  numbaconv
may add its result, and 32 MiB or 5 % of input, weight and result, whichever is more; the plain function its packed weight too.
Prints a Markdown table, torch beside ours where it is installed; exits with 1 where ours takes more.

Linux alone: the peak of resident memory is read from /proc, and reset there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numbaconv import functional
from numbaconv.bench.contenders import PEERS, Task, frozen
from numbaconv.bench.layers import Layer, find_layers
from numbaconv.bench.report import write_csv
from numbaconv.bench.timing import on_threads
from numbaconv.cpu import threads as thread_teams

MIB = 2**20
CONTENDERS = ("plan", "function", "torch", "torch_cl")
SMALL = 16  # cells along an axis of the problem that is computed before


@dataclass(frozen=True)
class Measured:
    """Bytes: ``added`` to the resident ones at the call's peak; of input and weight; of the result; of the packed weight and the workspace
    that a plan states."""

    layer: str
    contender: str
    algorithm: str
    added: int
    arrays: int
    result: int
    packed: int
    workspace: int

    @property
    def allowed(self) -> int:
        spare = max(32 * MIB, (self.arrays + self.result) // 20)
        return self.result + spare + (self.packed if self.contender == "function" else 0)


# ---- in the fresh process ----------------------------------------------------------------------------------------------------
def measure(layer: Layer, contender: str, threads: int) -> Measured:
    problem, small = layer.problem, replace(layer.problem, batch=1, in_size=tuple(min(n, SMALL) for n in layer.problem.in_size))
    task, before_it = (Task(p, *Layer(layer.name, p).arrays(), threads) for p in (problem, small))
    plan = frozen(task)
    thread_teams.SERIAL_BELOW = 0.0  # the small call, too, starts threads
    prepare(contender, before_it, plan.algorithm)()
    call = prepare(contender, task, plan.algorithm)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    result = call()
    added = resident("VmHWM") - before
    del result
    ours = contender in ("plan", "function")
    return Measured(
        layer.name, contender, plan.algorithm if ours else "", added, task.input.nbytes + task.weight.nbytes,
        math.prod(problem.result_shape) * task.input.itemsize, plan.packed_bytes if ours else 0, plan.workspace if ours else 0,
    )  # fmt: skip


def prepare(contender: str, task: Task, algorithm: str) -> Callable[[], Any]:
    """The call, of our ``algorithm`` or of another library."""
    if contender == "plan":
        plan = frozen(task, algorithm)
        return lambda: plan(task.input)
    if contender == "function":
        function = getattr(functional, f"conv{task.problem.rank}d")
        arguments = (task.input, task.weight, task.bias, task.stride, task.padding, task.dilation, task.problem.groups)
        return lambda: function(*arguments, algorithm=algorithm)
    return next(peer for peer in PEERS if peer.name == contender).prepare(task).call


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


# ---- the table ---------------------------------------------------------------------------------------------------------------
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", metavar="NAME[,NAME...]", help="(parts of) names (default: all layers of three dimensions)")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "CONTENDER"), help="measure in this process and print JSON")
    options = parser.parse_args()
    if options.one:
        with on_threads(options.threads):
            print(json.dumps(asdict(measure(find_layers(options.one[:1])[0], options.one[1], options.threads))))
        return 0
    layers = [layer for layer in find_layers(options.layers and options.layers.split(",")) if options.layers or layer.problem.rank == 3]
    contenders = [name for name in CONTENDERS if not name.startswith("torch") or importlib.util.find_spec("torch")]
    print(
        "| layer | contender | algorithm | added MiB | allowed | result | input and weight | packed | workspace |\n|---|---|---"
        + "|---:" * 6
        + "|"
    )
    found = []
    for layer in layers:
        for contender in contenders:
            command = [sys.executable, __file__, "--threads", str(options.threads), "--one", layer.name, contender]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(Measured(**json.loads(output)))
            print(row(found[-1]), flush=True)
    if options.csv:
        write_csv(options.csv, found)
    over = [m for m in found if m.algorithm and m.added > m.allowed]
    print(f"\nnumbaconv is over its limit in {len(over)} of {sum(bool(m.algorithm) for m in found)} calls")
    return int(bool(over))


def row(m: Measured) -> str:
    sizes = (m.added, m.allowed if m.algorithm else None, m.result, m.arrays, m.packed, m.workspace)
    return f"| {m.layer} | {m.contender} | {m.algorithm} | " + " | ".join("" if n is None else f"{n / MIB:.1f}" for n in sizes) + " |"


if __name__ == "__main__":
    sys.exit(main())
