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
PLOT = 1200, 260
LABELS = 64, 30  # left of the plot and below it
ERROR = 0.5  # of a probability, drawn white


def save_picture(output: Path, maps: Maps, trainings: list[Training], scores: Scores) -> None:
    """T1, the true map, the prediction and their difference in the slab's middle plane; the loss curves below."""
    t1, truth = maps.held_out()
    middle = t1.shape[1] // 2
    tiles = [("T1\nwhat the network sees", _plane(t1, middle)), ("grey matter\nthe truth", _plane(truth, middle))]
    for training in trainings:
        tiles.append((f"predicted by {training.name}\nDice {scores.networks[training.name]:.3f}", _plane(training.predicted, middle)))
    wrong = np.abs(trainings[-1].predicted - truth)
    tiles.append((f"|predicted - truth|\nwhite: {ERROR} and above", _plane(wrong, middle, ERROR)))
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
    sheet.row([(f"training loss of {names}\ncross-entropy, mean of 20 steps, over steps", plot(curves, float(low), float(high)))])
    sheet.save(output)


def smoothed(losses: AnyArray) -> AnyArray:
    """The mean of each loss and the up to 19 before it."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - 20, 0)
    result: AnyArray = (sums[ends] - sums[starts]) / (ends - starts)
    return result


def plot(curves: list[AnyArray], low: float, high: float) -> AnyArray:
    """Curves as an image (H, W, 3) uint8 with numbered axes; ``low`` lies at the bottom line, ``high`` at the top one."""
    from PIL import Image, ImageDraw, ImageFont

    (left, below), (right, bottom), top = LABELS, PLOT, 10
    image = Image.new("RGB", (right + left, bottom + top + below), BACKGROUND)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for i in range(6):
        y = top + bottom * i // 5
        pen.line([(left, y), (left + right, y)], fill=tuple(c // 3 for c in FAINT))
        pen.text((left - 10, y), f"{high - (high - low) * i / 5:.2f}", FAINT, font, anchor="rm")
    for i in range(5):
        step, x, anchor = len(curves[0]) * i // 4, left + right * i // 4, "rt" if i == 4 else "mt"
        pen.text((x, top + bottom + 8), str(step), FAINT, font, anchor=anchor)
    for curve, colour in zip(curves, COLOURS):
        across = left + np.linspace(0, right, len(curve))
        up = top + bottom * (1 - np.clip((curve - low) / max(high - low, 1e-12), 0, 1))
        pen.line(list(zip(across.tolist(), up.tolist())), fill=colour, width=3)
    return np.asarray(image)


def _plane(volume: AnyArray, plane: int, white: float = 1.0) -> AnyArray:
    """A coronal plane of a (D, H, W) volume, superior on top."""
    return zoomed(grey(volume[::-1, plane], white), WIDTH)
