"""The picture of ``demo --train``: a held-out coronal plane three times, and the loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import AnyArray
from .draw import BACKGROUND, FAINT, Sheet, grey, zoomed
from .maps import Maps

if TYPE_CHECKING:
    from .train import Scores, Training

WIDTH = 300  # of a plane, in pixels, about
COLOURS = ((64, 156, 255), (255, 158, 61))  # of the engines' curves
PLOT = 1200, 320


def save_picture(output: Path, maps: Maps, trainings: list[Training], scores: Scores) -> None:
    """T1, the true map, the prediction and their difference in the slab's middle plane; the loss curves below."""
    t1, truth = maps.held_out()
    middle = t1.shape[1] // 2
    tiles = [("T1", _plane(t1, middle)), ("grey matter: truth", _plane(truth, middle))]
    for training in trainings:
        tiles.append((f"predicted ({training.name})\nDice {scores.networks[training.name]:.3f}", _plane(training.predicted, middle)))
    wrong = np.abs(trainings[-1].predicted - truth)
    tiles.append((f"|predicted - truth| ({trainings[-1].name})", _plane(wrong, middle)))
    sheet = Sheet()
    sheet.heading(
        "A small 3-D U-Net learns grey matter from T1 patches",
        f"MNI152 template; coronal plane {maps.slab[0] + middle} of the held-out planes {maps.slab[0]} to {maps.slab[1] - 1}.",
        f"Dice in the slab: network {scores.networks[trainings[-1].name]:.3f}; best single threshold on T1 {scores.threshold:.3f}, "
        f"best pair of thresholds {scores.band:.3f}, both chosen on the slab.",
    )
    sheet.row(tiles)
    curves = [smoothed(np.array(training.losses)) for training in trainings]
    low, high = min(curve.min() for curve in curves), max(np.percentile(curve, 99) for curve in curves)
    names = " and ".join(f"{training.name} ({colour})" for training, colour in zip(trainings, ("blue", "orange")))
    title = f"training loss (cross-entropy, mean of 20 steps), {names}\n{len(curves[0])} steps; from {low:.3f} to {high:.3f}"
    sheet.row([(title, plot(curves, float(low), float(high)))])
    sheet.save(output)


def smoothed(losses: AnyArray) -> AnyArray:
    """The mean of each loss and the up to 19 before it."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - 20, 0)
    result: AnyArray = (sums[ends] - sums[starts]) / (ends - starts)
    return result


def plot(curves: list[AnyArray], low: float, high: float) -> AnyArray:
    """Curves as an image (H, W, 3) uint8; ``low`` lies at the bottom line, ``high`` at the top one, four lines between them."""
    from PIL import Image, ImageDraw

    width, height = PLOT
    image = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for i in range(6):
        y = (height - 1) * i // 5
        pen.line([(0, y), (width, y)], fill=tuple(c // 3 for c in FAINT))
    for curve, colour in zip(curves, COLOURS):
        across = np.linspace(0, width - 1, len(curve))
        up = (height - 1) * (1 - np.clip((curve - low) / max(high - low, 1e-12), 0, 1))
        pen.line(list(zip(across.tolist(), up.tolist())), fill=colour, width=3)
    return np.asarray(image)


def _plane(volume: AnyArray, plane: int) -> AnyArray:
    """A coronal plane of a (D, H, W) volume, superior on top."""
    return zoomed(grey(volume[::-1, plane], 1.0), WIDTH)
