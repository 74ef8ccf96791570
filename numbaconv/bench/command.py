"""The command ``bench``: its options, and what it prints and writes."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..problem import Direction
from .timing import on_threads

if TYPE_CHECKING:
    from .measure import Row

ROUNDS = 13


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=_names, metavar="NAME[,NAME...]", help="(parts of) names, `random`, or text forms of problems")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="one for CPU time, more for time that passes (default: 1)")
    parser.add_argument("--against", type=_names, metavar="NAME[,NAME...]", help="peers (default: all that are installed)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: %(default)s)")
    parser.add_argument(
        "--direction", type=_names, default=["forward"], metavar="NAME[,NAME...]",
        help=f"what is computed of each layer: {', '.join(get_args(Direction))} (default: forward); more than one with --device cuda",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", type=_names, default=[], metavar="NAME[,NAME...]", help="instead of float32; more than one with --device cuda"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images in a batch, with --device cuda (default: 16, 32, 2 in 1-D, 2-D, 3-D)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="turns of each contender (default: %(default)s)")
    parser.add_argument("--seconds", type=float, metavar="N", help="begin no layer later, with --device cuda")
    parser.add_argument("--check-choice", action="store_true", help="time our own algorithms instead: does auto take the right one?")
    parser.add_argument("--saved", type=_names, metavar="CSV[,CSV...]", help="report on these results instead of measuring")
    written = {"csv": "all times", "markdown": "a report", "png": "a chart; needs matplotlib", "costs": "fixed costs of a call on a device"}
    for name, what in written.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {what}")


def run(options: argparse.Namespace) -> int:
    """Measure and report; 1 where an answer of ours is wrong or, with --check-choice, too many choices are."""
    for path in (options.csv, options.markdown, options.png, options.costs):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"the folder of {str(path)!r} must exist")
    if options.png is not None and importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--png draws with matplotlib, which is not installed: pip install matplotlib")
    if options.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {options.rounds}")
    for direction in options.direction:
        if direction not in get_args(Direction):
            raise ValueError(f"--direction must be names out of {', '.join(get_args(Direction))}, got {direction!r}")
    if options.device == "cuda":
        from .gpu_command import run as run_on_gpu

        return run_on_gpu(options)
    for name in ("batch", "seconds", "costs"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} goes with --device cuda")
    if len(options.direction) != 1 or len(options.dtype) > 1:
        raise ValueError("more than one --direction or --dtype goes with --device cuda")
    if options.saved:
        return _report_saved(options)
    with on_threads(options.threads):
        return (_check_choice if options.check_choice else _bench)(options)


def _bench(options: argparse.Namespace) -> int:
    from . import gradients
    from .contenders import PEERS, find_peers
    from .layers import find_layers
    from .measure import Row, WrongAnswer, bench_layer
    from .report import Result, describe, write_csv

    (direction,) = options.direction
    layers = find_layers(options.layers, _dtype(options), direction)
    peers = find_peers(options.against, PEERS if direction == "forward" else gradients.PEERS)
    for peer in peers:
        if not peer.installed:
            print(f"{peer.name} is not installed and not measured: pip install {peer.packages}")
    peers, rows, failed = [peer for peer in peers if peer.installed], list[Row](), False
    for layer in layers:
        try:
            measured = bench_layer(layer, peers, options.threads, options.rounds, lambda text: print(text, flush=True))
        except WrongAnswer as error:
            print(f"{layer.name}: numbaconv is WRONG: {error}", flush=True)
            failed = True
            continue
        print(describe(Result(tuple(measured))), flush=True)
        rows += measured
        if options.csv:
            write_csv(options.csv, rows)  # after each layer: an interrupted run keeps what it has
    _report(options, rows)
    return int(failed)


def _report_saved(options: argparse.Namespace) -> int:
    from .measure import Row
    from .report import read_csv

    _report(options, [row for path in options.saved for row in read_csv(Path(path), Row)])
    return 0


def _report(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    from .chart import draw_chart
    from .report import markdown, summary

    if not rows:
        return
    for line in summary(rows):
        print(line)
    if options.markdown:
        options.markdown.write_text(markdown(rows, "python -m numbaconv " + " ".join(sys.argv[1:])), encoding="utf-8")
    if options.png:
        draw_chart(options.png, rows)


def _check_choice(options: argparse.Namespace) -> int:
    from .choice import Candidate, describe, time_candidates, verdict_on
    from .layers import LAYERS, find_layers, random_layers
    from .report import write_csv

    timed: list[list[Candidate]] = []
    for layer in find_layers(options.layers or [*LAYERS, *random_layers()], _dtype(options)):
        timed.append(time_candidates(layer, options.threads, options.rounds))
        print(describe(timed[-1]), flush=True)
        if options.csv:
            write_csv(options.csv, [candidate for layer in timed for candidate in layer])
    sentence, right = verdict_on(timed)
    print(sentence)
    return int(not right)


def _dtype(options: argparse.Namespace) -> str | None:
    return options.dtype[0] if options.dtype else None


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
