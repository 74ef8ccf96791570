"""What backward costs beside forward: python tests/benchmarks/backward.py [--layers NAME,...] [--threads N]

Of each layer that is trained, the time of both gradients (``numbaconv.grad``) over that of the convolution's plain function and of its
plan; all in turns in one process, medians.  The functions pack their weight in each call, as training must.  Prints a Markdown table;
exits with 1 where both gradients take more than 2.2 times as long as the function.
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from typing import Any

import numbaconv
from numbaconv import grad
from numbaconv.bench.layers import IMAGE_FILTERS, LAYERS, Layer, find_layers
from numbaconv.bench.timing import interleaved, on_threads

LIMIT = 2.2
ROUNDS = 7
TRAINED = [name for name in LAYERS if not name.startswith(IMAGE_FILTERS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(TRAINED), metavar="NAME[,NAME...]", help="(parts of) names")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    options = parser.parse_args()
    print("| layer | function ms | plan | input gradient | weight gradient | both over function | over plan |\n|---" + "|---:" * 6 + "|")
    ratios: dict[str, tuple[float, float]] = {}
    with on_threads(options.threads):
        for layer in find_layers(options.layers.split(",")):
            ratios[layer.name] = measure(layer, options.threads)
    over_function, over_plan = (math.exp(sum(map(math.log, column)) / len(column)) for column in zip(*ratios.values()))
    above = [f"{name} ({ratio:.2f})" for name, (ratio, _) in ratios.items() if ratio > LIMIT]
    print(f"\nGeometric mean {over_function:.2f} over the function, {over_plan:.2f} over the plan.")
    print(f"Over the function above {LIMIT}: {', '.join(above) or 'none'}")
    return int(bool(above))


def measure(layer: Layer, threads: int) -> tuple[float, float]:
    """Print a layer's row; its gradients' time over that of the function and of the plan."""
    p = layer.problem
    (x, w, b), dy = layer.arrays(), layer.grad_output()
    stride, dilation, padding = (values[3 - p.rank :] for values in (p.stride, p.dilation, [low for low, _ in p.padding]))
    geometry: dict[str, Any] = {"stride": stride, "padding": tuple(padding), "dilation": dilation, "groups": p.groups}
    function = getattr(numbaconv, f"conv{p.rank}d")
    calls = {
        "function": partial(function, x, w, b, **geometry),
        "plan": partial(numbaconv.plan(x.shape, w, b, **geometry), x),
        "input": partial(getattr(grad, f"conv{p.rank}d_input"), x.shape, w, dy, **geometry),
        "weight": partial(getattr(grad, f"conv{p.rank}d_weight"), x, w.shape, dy, **geometry),
    }
    for call in calls.values():
        call()  # compiles
    seconds = {name: turns.median for name, turns in interleaved(calls, threads, ROUNDS).items()}
    backward = seconds["input"] + seconds["weight"]
    ratios = backward / seconds["function"], backward / seconds["plan"]
    cells = *(f"{seconds[name] * 1e3:.3f}" for name in calls), *(f"{ratio:.2f}" for ratio in ratios)
    print(f"| {layer.name} | " + " | ".join(cells) + " |", flush=True)
    return ratios


if __name__ == "__main__":
    sys.exit(main())
