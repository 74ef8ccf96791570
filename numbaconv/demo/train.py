"""``python -m numbaconv demo --train``: a small 3-D U-Net learns the grey-matter map of a brain from its T1 image, by NumPy.

The network sees cubes of 32 voxels of the MNI152 template and learns the probability of grey matter in each voxel.  A slab of coronal
planes that no cube touches is held out; there its Dice score is compared with that of the best single threshold.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..arguments import integer
from ..arrays import AnyArray
from .maps import Maps, cube, load_maps
from .unet import DIVISOR, Engine, NumbaconvEngine, TorchEngine

STEPS, BATCH, CUBE = 800, 2, 32
RATE, WARM_UP = 0.01, 100  # the largest learning rate, and the steps that lead to it
SLAB = 32  # coronal planes
COMPARED = 20  # steps for which the engines' losses must agree
AGREEMENT = 1e-4
ENGINES: dict[str, Callable[[int], Engine]] = {"numbaconv": NumbaconvEngine, "torch": TorchEngine}


@dataclass
class Training:
    """What an engine did: its losses, the seconds of the first step (it compiles) and of all, and its probabilities in the slab."""

    name: str
    losses: list[float] = field(default_factory=list)
    first: float = 0.0
    seconds: float = 0.0
    predicted: AnyArray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class Scores:
    """Dice scores in the slab, of voxels whose probability of grey matter is above 1/2.

    threshold, band : of the best single threshold on T1 inside the brain, and of the best pair of them, both chosen on the slab itself
    at : that threshold, and the side of grey matter
    """

    networks: dict[str, float]
    threshold: float
    at: str
    band: float

    @property
    def passed(self) -> bool:
        return all(score > self.threshold for score in self.networks.values())


def train_and_report(output: Path, engine: str = "numbaconv", steps: int = STEPS, seed: int = 0) -> bool:
    """Train, print what happened and save the picture; whether the network beat the threshold (and the engines agree).

    engine : "numbaconv", or "torch": train on torch, then on numbaconv from the same weights on the same batches, and compare
    """
    from numba import get_num_threads

    from .train_picture import save_picture

    steps = integer("steps", steps, COMPARED)
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}")
    maps = load_maps(SLAB, DIVISOR)
    print(f"data: MNI152 T1 template and grey-matter map, brain only, {' x '.join(map(str, maps.t1.shape))} voxels of 1 mm")
    print(f"held out: coronal planes {maps.slab[0]} to {maps.slab[1] - 1}; no training cube touches them")
    print(f"training: {steps} steps of {BATCH} cubes of {CUBE} voxels, {get_num_threads()} threads, seed {seed}")
    corners = maps.positions(np.random.default_rng(seed), steps * BATCH, CUBE).reshape(steps, BATCH, 3)
    names = ["numbaconv"] if engine == "numbaconv" else ["torch", "numbaconv"]
    trainings = [train(ENGINES[name](seed), maps, corners) for name in names]
    scores = score(maps, trainings)
    agreed = report(trainings, scores)
    save_picture(output, maps, trainings, scores)
    print(f"picture saved in {output}")
    return scores.passed and agreed


def train(engine: Engine, maps: Maps, corners: AnyArray) -> Training:
    """Train on the cubes at ``corners`` (steps, batch, 3), then predict the slab."""
    done = Training(engine.name)
    for i, batch in enumerate(corners):
        x, target = (np.stack([cube(volume, corner, CUBE) for corner in batch])[:, None] for volume in (maps.t1, maps.grey))
        start = time.perf_counter()
        done.losses.append(engine.step(standardised(x), target, learning_rate(i, len(corners))))
        done.seconds += time.perf_counter() - start
        done.first = done.first or done.seconds
        show_progress(done, len(corners))
    start = time.perf_counter()
    done.predicted = engine.predict(standardised(maps.held_out()[0][None, None]))[0, 0]
    print(f"{engine.name}: {describe(done)}; the slab in {time.perf_counter() - start:.2f} s", flush=True)
    return done


def standardised(t1: AnyArray) -> AnyArray:
    """T1 of the brain with a mean of about 0 and a deviation of about 1."""
    result: AnyArray = (t1 - np.float32(0.7)) * np.float32(4)
    return result


def learning_rate(step: int, steps: int) -> float:
    """A linear warm-up, and half a cosine down to 0."""
    return RATE * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def show_progress(training: Training, steps: int) -> None:
    """A bar with the loss, the mean of the last 20; ten lines in all where the output is no terminal."""
    done = len(training.losses)
    text = f"{done}/{steps} steps, loss {np.mean(training.losses[-20:]):.4f}, {training.seconds:.0f} s"
    if sys.stdout.isatty():
        filled = 30 * done // steps
        print(f"\r{training.name} [{'#' * filled}{'-' * (30 - filled)}] {text}\x1b[K", end="\r\x1b[K" if done == steps else "", flush=True)
    elif done * 10 // steps > (done - 1) * 10 // steps:
        print(f"{training.name} {text}", flush=True)


def describe(training: Training) -> str:
    later = (training.seconds - training.first) / max(1, len(training.losses) - 1)
    return f"{training.seconds:.1f} s for {len(training.losses)} steps: the first {training.first:.1f} s, then {1e3 * later:.0f} ms each"


# ---- scores ----------------------------------------------------------------------------------------------------------
def dice(predicted: AnyArray, truth: AnyArray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean arrays."""
    return float(2 * np.count_nonzero(predicted & truth) / (np.count_nonzero(predicted) + np.count_nonzero(truth)))


def score(maps: Maps, trainings: list[Training]) -> Scores:
    t1, grey = maps.held_out()
    truth = grey > 0.5
    networks = {training.name: dice(training.predicted > 0.5, truth) for training in trainings}
    return Scores(networks, *best_thresholds(np.round(t1 * 255).astype(np.int64), truth))


def best_thresholds(level: AnyArray, truth: AnyArray) -> tuple[float, str, float]:
    """The best Dice score of one threshold on the 8-bit T1 inside the brain (level above 0), what it is, and that of the best pair.

    Cumulated histograms say how many voxels, and true ones, have a level from 1 to h.
    """
    brain, inside = (np.cumsum(np.bincount(part, minlength=256)[1:]) for part in (level[level > 0], level[truth]))
    total = np.count_nonzero(truth)
    below = 2 * inside / (brain + total)
    above = 2 * (inside[-1] - inside) / (brain[-1] - brain + total)
    best, at = max((below.max(), f"T1 <= {(below.argmax() + 1) / 255:.2f}"), (above.max(), f"T1 > {(above.argmax() + 1) / 255:.2f}"))
    band = 2 * (inside - inside[:, None]) / (np.maximum(brain - brain[:, None], 0) + total)  # from above the row's level to the column's
    return float(best), at, float(band.max())


def report(trainings: list[Training], scores: Scores) -> bool:
    """Print the comparison; whether the engines agree, where there are two."""
    agreed = True
    if len(trainings) == 2:
        first, second = (np.array(training.losses[:COMPARED]) for training in trainings)
        difference = float(np.max(np.abs(first - second) / np.abs(first)))
        agreed = difference <= AGREEMENT
        verdict = "agree" if agreed else "DO NOT AGREE"
        print(f"losses of the first {COMPARED} steps {verdict}: largest relative difference {difference:.1e} (at most {AGREEMENT:g})")
        print("time: " + ", ".join(f"{training.name} {training.seconds:.1f} s" for training in trainings))
    for name, value in scores.networks.items():
        print(f"Dice in the held-out slab: network ({name}) {value:.4f}")
        gain = value - scores.threshold
        print(f"  best single threshold, chosen on the slab itself ({scores.at}, inside the brain): {scores.threshold:.4f}")
        print(f"  best pair of thresholds, likewise: {scores.band:.4f}")
        print(f"  the network {'beats' if gain > 0 else 'DOES NOT BEAT'} the single threshold by {gain:+.4f}")
    return agreed
