"""The picture of a benchmark: a bar a layer, how many times our time the best peer takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .measure import Row
from .report import Result, geometric_mean, results

AHEAD, BEHIND = "#2f6ea5", "#d1702f"  # told apart with every kind of colour vision


def draw_chart(path: Path, rows: Sequence[Row]) -> None:
    """Save a PNG with a panel for each kind of results; needs matplotlib and a row of a peer."""
    draw_panels(path, results(rows))


def draw_panels(path: Path, kinds: Mapping[Any, Sequence[Result]]) -> None:
    """The same for results by kind: ratios on a logarithmic axis."""
    from matplotlib.figure import Figure

    panels = {kind: [layer for layer in layers if layer.peers] for kind, layers in kinds.items()}
    panels = {kind: layers for kind, layers in panels.items() if layers}
    if not panels:
        raise ValueError("--png needs a peer to compare with, got none")
    height = 1.4 + 0.21 * max(map(len, panels.values()))
    figure = Figure(figsize=(7.5 * len(panels), height), dpi=120, layout="constrained")
    for axes, (kind, layers) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        ratios = [layer.ratio for layer in layers]
        places = range(len(layers), 0, -1)
        axes.barh(places, [ratio - 1 for ratio in ratios], left=1, height=0.75, color=[AHEAD if r >= 1 else BEHIND for r in ratios])
        for place, layer in zip(places, layers):
            text = f" {layer.ratio:.2f} {layer.best_peer.contender if layer.best_peer else ''} "
            axes.text(layer.ratio, place, text, va="center", ha="left" if layer.ratio >= 1 else "right", fontsize=7)
        mean = geometric_mean(ratios)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.axvline(mean, color="0.5", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        low, high = min([*ratios, 0.7]), max([*ratios, 1.4])
        axes.set_xlim(low * (high / low) ** -0.28, high * (high / low) ** 0.22)  # room for the numbers beside the bars
        ticks = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(0.3, len(layers) + 0.7)
        axes.set_yticks(places, [layer.ours.layer for layer in layers], fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{kind}: the best peer's time over numbaconv's, mean {mean:.2f}×", fontsize=9)
    figure.savefig(path)
