"""What was measured, as CSV and as Markdown: our ratio to the best peer on each layer, and the means over layers."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from ..problem import Direction, Problem
from .measure import Row

Record = TypeVar("Record")
Group = TypeVar("Group")

_KINDS: dict[str, Any] = {"int": int, "float": float, "bool": lambda text: text == "True", "str": str}


# ---- CSV ---------------------------------------------------------------------------------------------------------------------
def write_csv(path: Path, records: Sequence[Any]) -> None:
    """Dataclass objects of one kind, a line each, below their field names; replaces the file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(records[0])])
        writer.writeheader()
        writer.writerows(map(asdict, records))


def read_csv(path: Path, kind: type[Record]) -> list[Record]:
    """What ``write_csv`` wrote of objects of a kind; ValueError for another file."""
    types = {field.name: _KINDS[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(types):
            raise ValueError(f"{path} does not hold results of this command: its first line must be {','.join(types)}")
        return [kind(**{name: types[name](text) for name, text in line.items()}) for line in reader]


# ---- one layer ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Result:
    """All rows of one layer on one number of threads."""

    rows: tuple[Row, ...]

    @cached_property
    def by_name(self) -> dict[str, Row]:
        return {row.contender: row for row in self.rows}

    @property
    def ours(self) -> Row:
        return self.by_name["numbaconv"]

    @property
    def peers(self) -> list[Row]:
        return [row for row in self.rows if not row.contender.startswith("numbaconv")]

    @property
    def best_peer(self) -> Row | None:
        """The one that comes closest to us; None without peers."""
        return min(self.peers, key=self.ratio_to, default=None)

    def ratio_to(self, peer: Row) -> float:
        """How many times our time the peer takes; we write into the same memory in each call where it does, else into fresh one."""
        return peer.seconds / self.by_name["numbaconv_out" if peer.reuses_output else "numbaconv"].seconds

    @property
    def ratio(self) -> float:
        best = self.best_peer
        return math.nan if best is None else self.ratio_to(best)

    @property
    def fresh_ratio(self) -> float:
        """The fastest peer's time over ours with a fresh result, whatever the peer does."""
        return min((peer.seconds for peer in self.peers), default=math.nan) / self.ours.seconds

    @property
    def torch_ratio(self) -> float:
        torch = self.by_name.get("torch")
        return math.nan if torch is None else torch.seconds / self.ours.seconds


IN_WORDS = {"forward": "", "input_grad": ", gradient of the input", "weight_grad": ", gradient of the weight"}


class Kind(NamedTuple):
    """What the rows of one table have in common."""

    direction: Direction
    threads: int

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads > 1)}{IN_WORDS[self.direction]}"


def results(rows: Iterable[Row]) -> dict[Kind, list[Result]]:
    """Rows by kind and layer, in the order in which they come."""
    return grouped(rows, lambda row: Kind(Problem.parse(row.problem).direction, row.threads))


def grouped(rows: Iterable[Row], kind_of: Callable[[Row], Group]) -> dict[Group, list[Result]]:
    found: dict[Group, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(kind_of(row), {}).setdefault(row.layer, []).append(row)
    return {kind: [Result(tuple(layer)) for layer in layers.values()] for kind, layers in found.items()}


def describe(result: Result) -> str:
    """One line about one layer."""
    ours, best = result.ours, result.best_peer
    others = ", ".join(f"{row.contender} {row.gflops:.1f}" for row in result.rows if row is not ours)
    ratio = "" if best is None else f"{result.ratio:5.2f} x {best.contender:<10}"
    share = f"{ours.flops / ours.seconds / ours.peak:4.0%}"
    return f"{ours.layer:<28} {ours.note:<14} {ours.gflops:7.1f} GFLOP/s {share} of peak {ratio} | {others}"


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


# ---- Markdown ----------------------------------------------------------------------------------------------------------------
def markdown(rows: Sequence[Row], command: str) -> str:
    """A report of all rows: where, when and how, the means, and two tables for each number of threads."""
    lines = [
        *heading(rows, command),
        "",
        "Medians, all contenders in turns in one process, each answer checked before. GFLOP/s are 10⁹ operations of the definition a",
        "second, padding included, so that algorithms that need fewer can pass the multiply-add peak, which is measured in the same run.",
        "The ratio is the best peer's time over ours: ours with a fresh result, but with `out=` beside peers that reuse theirs (ort,",
        "openvino).",
        "",
    ]
    kinds = results(rows)
    for kind, layers in kinds.items():
        lines += [f"### {kind}", "", *(f"- {line}" for line in _means(layers)), ""]
        lines += [*_table(layers), "", "GFLOP/s of all, and errors of ours:", "", *_all_rates(layers), ""]
    one, two = Kind("forward", 1), Kind("forward", 2)
    if {one, two} <= kinds.keys():
        lines += ["### Two threads over one", "", _scaling(kinds[one], kinds[two]), ""]
    return "\n".join([*lines, *_backward(kinds)])


def heading(rows: Sequence[Row], command: str) -> list[str]:
    """Where, when and with what."""
    return [
        f"Machine: {', '.join(dict.fromkeys(row.machine for row in rows))}  ",
        f"Date: {', '.join(dict.fromkeys(row.date for row in rows))}  ",
        f"Versions: {', '.join(dict.fromkeys(row.version for row in rows))}  ",
        f"Command: `{command}`",
    ]


def summary(rows: Sequence[Row]) -> list[str]:
    """The means, one line each."""
    kinds = results(rows)
    return [f"{kind}: {line}" for kind, layers in kinds.items() for line in _means(layers)] + _backward(kinds)


def _backward(kinds: Mapping[Kind, Sequence[Result]]) -> list[str]:
    """For each number of threads: what both gradients take, beside the forward function, on the layers that have all three."""
    lines = []
    for threads in sorted({kind.threads for kind in kinds}):
        forward, *gradients = (
            {layer.ours.layer: layer.by_name for layer in kinds.get(Kind(direction, threads), ())} for direction in get_args(Direction)
        )
        factors = {
            name: sum(gradient[name]["numbaconv"].seconds for gradient in gradients) / own["numbaconv_function"].seconds
            for name, own in forward.items()
            if all(name in gradient for gradient in gradients)
        }
        if factors:
            worst = ", ".join(f"{name} ({factor:.2f})" for name, factor in sorted(factors.items(), key=lambda item: -item[1])[:5])
            mean = geometric_mean(factors.values())
            lines.append(f"{Kind('forward', threads)}: both gradients take {mean:.2f} times the forward function; most: {worst}")
    return lines


def _means(layers: Sequence[Result]) -> list[str]:
    peaks = [layer.ours.peak / 1e9 for layer in layers]
    lines = [f"multiply-add peak {statistics.median(peaks):.0f} GFLOP/s (median of {min(peaks):.0f} to {max(peaks):.0f})"]
    layers = [layer for layer in layers if layer.peers]
    if not layers:
        return lines
    behind = [f"{layer.ours.layer} ({layer.ratio:.2f})" for layer in sorted(layers, key=lambda x: x.ratio) if layer.ratio < 1]
    mean, fresh, torch = (geometric_mean(getattr(x, name) for x in layers) for name in ("ratio", "fresh_ratio", "torch_ratio"))
    groups: dict[str, list[float]] = {}
    for layer in layers:
        groups.setdefault(f"{layer.ours.note} {Problem.parse(layer.ours.problem).rank}-D", []).append(layer.ratio)
    return lines + [
        f"best peer: {mean:.2f} times our time (geometric mean, {len(layers)} layers), {fresh:.2f} with fresh results of ours everywhere",
        f"torch, contiguous: {torch:.2f} times our time",
        f"ahead on {len(layers) - len(behind)} of {len(layers)} layers; behind: {', '.join(behind) or 'none'}",
        "by algorithm (layers): " + ", ".join(f"{name} {geometric_mean(r):.2f} ({len(r)})" for name, r in sorted(groups.items())),
    ]


def _table(layers: Sequence[Result]) -> list[str]:
    head = ["layer", "GFLOP", "algorithm", "GFLOP/s", "with out=", "function", "of peak"]
    head += ["best peer", "its GFLOP/s", "ratio", "fresh ratio", "torch ratio"]
    rows = []
    for layer in layers:
        ours, best = layer.ours, layer.best_peer
        own = ("numbaconv", "numbaconv_out", "numbaconv_function")
        rates = [f"{layer.by_name[name].gflops:.1f}" if name in layer.by_name else "–" for name in own]
        share = f"{100 * ours.flops / ours.seconds / ours.peak:.0f} %"
        peer = ["", ""] if best is None else [best.contender, f"{best.gflops:.1f}"]
        ratios = [f"{layer.ratio:.2f}", f"{layer.fresh_ratio:.2f}", f"{layer.torch_ratio:.2f}"]
        ratios[0] = f"**{ratios[0]}**" if layer.ratio < 1 else ratios[0]
        rows.append([ours.layer, f"{ours.flops / 1e9:.3f}", ours.note, *rates, share, *peer, *ratios])
    return markdown_table(head, rows)


def _all_rates(layers: Sequence[Result]) -> list[str]:
    names = list(dict.fromkeys(row.contender for layer in layers for row in layer.peers))
    rows = []
    for layer in layers:
        rates = [f"{layer.by_name[name].gflops:.1f}" if name in layer.by_name else "–" for name in ["numbaconv", *names]]
        ours = layer.ours
        rows.append([ours.layer, *rates, f"{ours.max_error:.1e}", f"{ours.rms_error:.1e}"])
    return markdown_table(["layer", "numbaconv", *names, "max error", "rms error"], rows)


def _scaling(one: Sequence[Result], two: Sequence[Result]) -> str:
    alone = {layer.ours.layer: layer.ours for layer in one}
    pairs = [(alone[layer.ours.layer], layer.ours) for layer in two if layer.ours.layer in alone]
    large = sorted(((a.seconds / b.seconds, a) for a, b in pairs if a.flops >= 1e9), key=lambda pair: pair[0])
    below = ", ".join(f"{row.layer} ({ratio:.2f})" for ratio, row in large if ratio < 1.8)
    mean = geometric_mean(ratio for ratio, _ in large)
    return f"{len(large)} layers of at least 1 GFLOP: geometric mean {mean:.2f}; below 1.8: {below or 'none'}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
