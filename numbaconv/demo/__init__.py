"""``python -m numbaconv demo``: convolutions of a brain volume, timed, checked against the reference, and drawn."""

from __future__ import annotations

from pathlib import Path

from .. import __version__
from ..cpu.target import target
from ..explanation import Explanation
from .brain import load_brain
from .draw import Sheet
from .measure import Measured, Progress
from .picture import draw_bank, draw_lesson, draw_stack
from .steps import Step, filter_bank, has_scipy, layer_stack, steps_of_progress, two_or_three


def run(output: Path, crop: int | None = None) -> bool:
    """Run everything, print what happened and save the picture; whether every check passed.

    crop : use the central cube of so many voxels.  Memory: about 0.7 GB for the whole volume.
    """
    from numba import get_num_threads

    volume = load_brain(crop)
    print(f"numbaconv {__version__}, {get_num_threads()} threads, {8 * target().vector_bytes}-bit vectors, float32")
    print(f"volume: MNI ICBM 2009c T1 template, brain only, {' x '.join(map(str, volume.shape))} voxels of 1 mm, scaled to 0..1")
    if not has_scipy():
        print("scipy is not installed: no times of scipy.ndimage beside ours")
    progress = Progress(steps_of_progress())
    bank = filter_bank(volume, progress)
    print_step(1, bank)
    lesson = two_or_three(volume, progress)
    print_step(2, lesson)
    stack = layer_stack(volume, progress)
    print_step(3, stack)

    sheet = Sheet()
    draw_bank(sheet, volume, bank)
    sheet.space(20)
    draw_lesson(sheet, volume, lesson.runs["conv2d"].result[0, 0], lesson.runs["conv3d"].result[0, 0])
    sheet.space(20)
    draw_stack(sheet, volume, stack)
    sheet.save(output)
    checks = [run.check for step in (bank, lesson, stack) for run in step.runs.values()]
    passed = sum(check.passed for check in checks)
    print(f"\n{passed} of {len(checks)} checks against the reference passed; picture saved in {output}")
    return passed == len(checks)


def print_step(number: int, step: Step) -> None:
    print(f"\n{number}. {step.title}")
    for name, measured in step.runs.items():
        _print_run(name, measured)
    for peer in step.peers:
        print(f"   scipy.ndimage  {1e3 * peer.seconds:.1f} ms: {peer.call}; largest difference {peer.difference:.1e}")
    for note in step.notes:
        print(f"   {note}")


def _print_run(name: str, m: Measured) -> None:
    p = m.explanation.problem
    print(f"   {name}")
    print(f"     shapes     input {p.source_shape}, weight {p.weight_shape}, output {p.result_shape}")
    print(f"     algorithm  {_algorithm(m.explanation)}")
    rate = f"{p.flops / m.best / 1e9:.1f} GFLOP/s ({p.flops / 1e9:.3g} GFLOP)"
    print(f"     time       {1e3 * m.best:.1f} ms, {rate}; first call {1e3 * m.first:.0f} ms")
    print(f"     check      {m.check}", flush=True)


def _algorithm(explanation: Explanation) -> str:
    """The algorithm taken, and the reason of each that declined."""
    declined = [f"{v.name} declines: {v.reason}" for v in explanation.choice.verdicts if v.reason is not None]
    return "; ".join([explanation.algorithm, *declined])
