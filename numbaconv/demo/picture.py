"""The demo's picture."""

from __future__ import annotations

import numpy as np

from ..arrays import AnyArray
from .draw import Box, Sheet, arrow, colours, column, extent, grey, orthogonal, pile, zoomed
from .steps import FILTERS, Step

WIDTH = 160  # of a plane, in pixels, about


def draw_bank(sheet: Sheet, volume: AnyArray, step: Step) -> None:
    """Three orthogonal planes of the volume and of each filter's result."""
    bank, box = step.runs["bank"], extent(volume)
    problem = bank.explanation.problem
    sheet.heading(
        "Six 3-D filters, one conv3d",
        f"input {problem.source_shape}, weight {problem.weight_shape}, output {problem.result_shape}",
        "An axial, a coronal and a sagittal plane of each.  Grey: values from 0 up.  Blue: below 0.  Orange: above 0.",
    )
    tiles = [("input", _three(volume, box))]
    tiles += [(name.replace(", ", "\n"), _three(channel, box)) for name, channel in zip(FILTERS, bank.result[0])]
    sheet.row([(title if "\n" in title else title + "\n ", tile) for title, tile in tiles])


def draw_lesson(sheet: Sheet, volume: AnyArray, plane: AnyArray, smoothed: AnyArray) -> None:
    """The volume as a pile of slices; the ``plane`` (H, W) that conv2d makes of it, and the volume ``smoothed`` that conv3d makes of it."""
    depth, box = volume.shape[0], extent(volume)
    sheet.heading(
        "Two or three dimensions: the same volume, twice",
        "2-D, slices as channels: the filter slides along H and W only and sums over the channels.  Out comes a plane.",
        "3-D, slices as depth: the filter slides along D, H and W.  Out comes a volume.",
    )
    cards = _pile(volume, box, float(volume.max()))
    shadow = orthogonal(plane[None], ((0.0, 1.0), *box[1:]))[0]
    sheet.row(
        [
            (f"{depth} slices as channels\n{(1, *volume.shape)}", cards),
            (f"conv2d\nweight {(1, depth, 5, 5)}", arrow()),
            (f"one plane\n{(1, 1, *plane.shape)}", zoomed(grey(shadow, float(plane.max())), WIDTH)),
        ]
    )
    sheet.row(
        [
            (f"{depth} slices as depth\n{(1, 1, *volume.shape)}", cards),
            ("conv3d\nweight (1, 1, 5, 5, 5)", arrow()),
            (f"a volume\n{(1, 1, *smoothed.shape)}", _pile(smoothed, box, float(volume.max()))),
        ]
    )


def draw_stack(sheet: Sheet, volume: AnyArray, step: Step) -> None:
    """An axial plane of the four channels of each layer that vary most."""
    box = extent(volume)
    sheet.heading(
        "A stack of Conv3d layers, ReLU between them",
        "An axial plane of the four most varied channels after each layer; random weights, drawn as torch draws them.",
    )
    tiles = [(f"input\n \n{(1, 1, *volume.shape)}", _card(volume, box, float(volume.max())))]
    for name, run in step.runs.items():
        channels = np.maximum(run.result[0], 0)
        chosen = np.sort(np.argsort(channels.std(axis=(1, 2, 3)))[-4:])
        planes = [_card(channel, box, colours(channel)[1]) for channel in channels[chosen]]
        square = np.concatenate([np.concatenate(planes[:2], axis=1), np.concatenate(planes[2:], axis=1)])
        tiles += [("", arrow(60)), (f"{name.replace(': ', chr(10))}\n{run.result.shape}", square)]
    sheet.row(tiles)


def _three(volume: AnyArray, box: Box) -> AnyArray:
    paint, limit = colours(volume)
    return column([zoomed(paint(plane, limit), WIDTH) for plane in orthogonal(volume, box)])


def _card(volume: AnyArray, box: Box, white: float) -> AnyArray:
    return zoomed(grey(orthogonal(volume, box)[0], white), WIDTH)


def _pile(volume: AnyArray, box: Box, white: float) -> AnyArray:
    """Eight axial slices, the middle one in front and the top one at the back."""
    low, high = (edge * volume.shape[0] for edge in box[0])
    depths = [int(low + (high - low) * (0.45 + 0.06 * i)) for i in range(8)]
    slices = [orthogonal(volume[d : d + 1], ((0.0, 1.0), *box[1:]))[0] for d in depths]
    cards = [zoomed(grey(plane, white), WIDTH) for plane in slices]
    return pile(cards, right=cards[0].shape[1] * 3 // 10)
