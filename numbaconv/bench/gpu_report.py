"""What was measured on a device, as Markdown and in lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..problem import Direction, Problem
from .gpu import GpuRow
from .launch_cost import EMPTY, Cost
from .measure import Row
from .report import IN_WORDS, Result, geometric_mean, grouped, heading, markdown_table


class GpuKind(NamedTuple):
    """What the rows of one table have in common."""

    direction: Direction
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{IN_WORDS[self.direction]}"


def gpu_results(rows: Iterable[Row]) -> dict[GpuKind, list[Result]]:
    """Rows by kind and layer, in the order in which they come."""

    def kind_of(row: Row) -> GpuKind:
        p = Problem.parse(row.problem)
        return GpuKind(p.direction, p.dtype)

    return grouped(rows, kind_of)


def microseconds(result: Result, name: str) -> str:
    return f"{1e6 * result.by_name[name].seconds:.1f}" if name in result.by_name else "–"


def last_ratio(result: Result) -> float:
    """The time of torch in channels_last over ours in channels_last."""
    ours, peer = result.by_name.get("numbaconv_cl"), result.by_name.get("torch_cl")
    return math.nan if ours is None or peer is None else peer.seconds / ours.seconds


def describe(result: Result) -> str:
    """One line about one layer."""
    ours, best = result.ours, result.best_peer
    assert isinstance(ours, GpuRow)
    others = ", ".join(f"{row.contender} {microseconds(result, row.contender)}" for row in result.rows if row is not ours)
    ratio = "" if best is None else f"{result.ratio:5.2f} x {best.contender:<8}"
    times = f"{microseconds(result, 'numbaconv'):>9} us {ours.rate:>14} {ours.share:4.0%} of the limit"
    return f"{ours.layer:<28} {ours.note:<14} {times} {ratio} | {others}"


def summary(rows: Sequence[GpuRow]) -> list[str]:
    """The means, one line each."""
    return [f"{kind}: {line}" for kind, layers in gpu_results(rows).items() for line in _means(layers)]


def _means(layers: Sequence[Result]) -> list[str]:
    ours = layers[0].ours
    assert isinstance(ours, GpuRow)
    lines = [f"limits: {ours.peak / 1e12:.1f} TFLOP/s (a product of matrices), {ours.bandwidth / 1e12:.2f} TB/s (a copy)"]
    layers = [layer for layer in layers if layer.peers]
    if not layers:
        return lines
    behind = [f"{layer.ours.layer} ({layer.ratio:.2f})" for layer in sorted(layers, key=lambda x: x.ratio) if layer.ratio < 1]
    mean, last = geometric_mean(x.ratio for x in layers), geometric_mean(map(last_ratio, layers))
    return lines + [
        f"best peer: {mean:.2f} times our time on contiguous arrays (geometric mean, {len(layers)} layers)",
        f"torch, contiguous: {geometric_mean(x.torch_ratio for x in layers):.2f} times our time; both in channels_last: {last:.2f}",
        f"ahead on {len(layers) - len(behind)} of {len(layers)} layers; behind: {', '.join(behind) or 'none'}",
    ]


def cost_lines(costs: Sequence[Cost]) -> list[str]:
    """The fixed cost of each call, and what it is beyond an empty launch."""
    empty = next(cost.microseconds for cost in costs if cost.call == EMPTY)
    return markdown_table(
        ["call on 1 x 8 x 8 x 8", "µs", "beyond an empty launch"],
        [[cost.call, f"{cost.microseconds:.1f}", f"{cost.microseconds - empty:.1f}"] for cost in costs],
    )


def markdown(rows: Sequence[GpuRow], costs: Sequence[Cost], command: str) -> str:
    """A report of all rows: where, when and how, the fixed costs, and a table for each direction and dtype."""
    lines = [
        *heading(rows, command),
        "",
        "Medians of the device's time, by events around calls whose arrays rotate through twice the cache, all contenders in turns in one",
        "process, each answer checked before. numbaconv writes into `out` (a plan, or the gradient's function); torch computes float32 in",
        "IEEE float32, with cuDNN's algorithms tried beforehand. _cl: arrays in channels_last. GB/s count every array once, TFLOP/s the",
        "operations of the definition; the rate is that of the nearer limit, which is measured in the same run. The ratio is the best",
        "peer's time over ours on contiguous arrays, the last one that in channels_last on both sides.",
        "",
    ]
    if costs:
        lines += ["### Fixed cost of a call, by the host's clock", "", *cost_lines(costs), ""]
    for kind, layers in gpu_results(rows).items():
        lines += [f"### {kind}", "", *(f"- {line}" for line in _means(layers)), "", *_table(layers), ""]
    return "\n".join(lines)


def _table(layers: Sequence[Result]) -> list[str]:
    names = list(dict.fromkeys(row.contender for layer in layers for row in layer.rows if row.contender != "numbaconv"))
    head = ["layer", "batch", "algorithm", "µs", "rate", "of the limit", *(f"{name} µs" for name in names), "ratio", "cl ratio"]
    rows = []
    for layer in layers:
        ours = layer.ours
        assert isinstance(ours, GpuRow)
        ratio, last = (f"**{r:.2f}**" if r < 1 else "–" if math.isnan(r) else f"{r:.2f}" for r in (layer.ratio, last_ratio(layer)))
        first = [ours.layer, str(Problem.parse(ours.problem).batch), ours.note, microseconds(layer, "numbaconv"), ours.rate]
        rows.append([*first, f"{100 * ours.share:.0f} %", *(microseconds(layer, name) for name in names), ratio, last])
    return markdown_table(head, rows)
