"""Pictures of slices: planes of a volume as tiles with titles, row under row, saved as one PNG by Pillow (the ``demo`` extra).

Titles are plain ASCII: the font that ships inside Pillow has little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import AnyArray

BACKGROUND, TEXT, FAINT = (13, 17, 23), (236, 240, 244), (150, 160, 172)
MARGIN = 28
GAP = 12
Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
_NEGATIVE, _POSITIVE = np.array([64, 156, 255]), np.array([255, 158, 61])


def grey(plane: AnyArray, white: float) -> AnyArray:
    """(H, W) numbers as (H, W, 3) uint8: 0 is black, ``white`` and above white."""
    level = np.clip(plane / max(white, 1e-30), 0, 1) ** 0.9 * 255
    return np.repeat(level[..., None], 3, axis=-1).astype(np.uint8)


def signed(plane: AnyArray, limit: float) -> AnyArray:
    """(H, W) numbers as (H, W, 3) uint8: 0 is black, ``-limit`` blue and ``limit`` orange."""
    level = np.clip(plane / max(limit, 1e-30), -1, 1)[..., None]
    return (np.where(level < 0, _NEGATIVE, _POSITIVE) * np.abs(level) ** 0.7).astype(np.uint8)


def colours(volume: AnyArray) -> tuple[Any, float]:
    """The colour map that suits a result, and its limit: ``signed`` where values are negative, else ``grey``."""
    limit = float(np.percentile(np.abs(volume), 99.7)) or float(np.abs(volume).max())
    return (signed if volume.min() < -0.05 * limit else grey), limit


def extent(volume: AnyArray, margin: float = 0.03) -> Box:
    """Where a (D, H, W) volume isn't zero, as a (low, high) pair of fractions for each axis, a margin included."""
    box = []
    for axis in range(3):
        inside = np.flatnonzero(volume.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (inside[0], inside[-1] + 1) if inside.size else (0, volume.shape[axis])
        box.append((max(low / volume.shape[axis] - margin, 0.0), min(high / volume.shape[axis] + margin, 1.0)))
    return box[0], box[1], box[2]


def orthogonal(volume: AnyArray, box: Box) -> tuple[AnyArray, AnyArray, AnyArray]:
    """An axial, a coronal and a sagittal plane of a (D, H, W) volume within ``box``, anterior or superior on top.

    The sagittal one lies beside the middle, where a symmetric brain has no slope along W.
    """
    v = volume[tuple(slice(round(low * n), round(high * n)) for (low, high), n in zip(box, volume.shape))]
    d, h, w = v.shape
    return v[d * 55 // 100, ::-1], v[::-1, h // 2], v[::-1, :, w * 42 // 100]


def zoomed(image: AnyArray, width: int) -> AnyArray:
    """An image repeated to whole multiples, as near to ``width`` pixels as they come."""
    times = max(1, round(width / image.shape[1]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def column(images: Sequence[AnyArray]) -> AnyArray:
    """Images one under the other, centred."""
    width = max(image.shape[1] for image in images)
    parts: list[AnyArray] = []
    for image in images:
        left = (width - image.shape[1]) // 2
        parts.append(_padded(image, (GAP // 2 if parts else 0, 0), (left, width - image.shape[1] - left)))
    return np.concatenate(parts)


def pile(images: Sequence[AnyArray], right: int, up: int = 14) -> AnyArray:
    """Images of one size as a pile of cards, the first in front; each lies ``right`` and ``up`` pixels from the one before it."""
    height, width = images[0].shape[:2]
    last = len(images) - 1
    canvas = np.empty((height + up * last, width + right * last, 3), np.uint8)
    canvas[:] = BACKGROUND
    for i in reversed(range(len(images))):
        card = images[i].copy()
        card[[0, -1]] = card[:, [0, -1]] = FAINT
        canvas[up * (last - i) : up * (last - i) + height, right * i : right * i + width] = card
    return canvas


def arrow(length: int = 80, height: int = 28) -> AnyArray:
    """An arrow to the right."""
    image = np.empty((height, length, 3), np.uint8)
    image[:] = BACKGROUND
    y, x = np.mgrid[:height, :length]
    off = np.abs(y - (height - 1) / 2)
    image[((off < 2) & (x < length - height // 2)) | (off < (length - x) * 0.6) & (x >= length - height * 0.75)] = FAINT
    return image


class Sheet:
    """A picture that grows downwards: headings, notes and rows of titled tiles."""

    def __init__(self) -> None:
        self._blocks: list[Any] = []

    def heading(self, text: str, *notes: str) -> None:
        """A line in large letters and lines in small ones under it."""
        self._blocks.append(_text([(text, 32, TEXT)] + [(note, 19, FAINT) for note in notes]))
        self.space(GAP)

    def space(self, height: int) -> None:
        self._blocks.append(_blank(1, height))

    def row(self, tiles: Sequence[tuple[str, AnyArray]]) -> None:
        """Tiles side by side, centred on one line, each under its title; lines of a title are parted by newlines."""
        from PIL import Image

        titles = [_title(title) for title, _ in tiles]
        top = max(title.height for title in titles) + 6
        body = max(image.shape[0] for _, image in tiles)
        widths = [max(title.width, image.shape[1]) for title, (_, image) in zip(titles, tiles)]
        block = _blank(sum(widths) + GAP * (len(tiles) - 1), top + body)
        left = 0
        for title, (_, image), width in zip(titles, tiles, widths):
            block.paste(title, (left + (width - title.width) // 2, top - 6 - title.height))
            block.paste(Image.fromarray(image), (left + (width - image.shape[1]) // 2, top + (body - image.shape[0]) // 2))
            left += width + GAP
        self._blocks.append(block)

    def save(self, path: str | Path) -> None:
        """Write the PNG, in 256 colours to keep it small."""
        width = max(block.width for block in self._blocks) + 2 * MARGIN
        sheet = _blank(width, sum(block.height + GAP for block in self._blocks) + 2 * MARGIN)
        top = MARGIN
        for block in self._blocks:
            sheet.paste(block, (MARGIN, top))
            top += block.height + GAP
        sheet.quantize(256, dither=0).save(path, optimize=True)


def _padded(image: AnyArray, vertical: tuple[int, int], horizontal: tuple[int, int]) -> AnyArray:
    canvas = np.empty((image.shape[0] + sum(vertical), image.shape[1] + sum(horizontal), 3), np.uint8)
    canvas[:] = BACKGROUND
    canvas[vertical[0] : vertical[0] + image.shape[0], horizontal[0] : horizontal[0] + image.shape[1]] = image
    return canvas


def _blank(width: int, height: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (width, height), BACKGROUND)


def _title(title: str) -> Any:
    first, *others = title.split("\n")
    return _text([(first, 20, TEXT)] + [(line, 17, FAINT) for line in others], centred=True)


def _text(lines: Sequence[tuple[str, int, tuple[int, int, int]]], centred: bool = False) -> Any:
    """Lines of (text, size in pixels, colour) as an image."""
    from PIL import ImageDraw, ImageFont

    fonts = [ImageFont.load_default(size) for _, size, _ in lines]
    width = max(int(font.getlength(text)) + 2 for font, (text, _, _) in zip(fonts, lines))
    image = _blank(width, sum(size + 8 for _, size, _ in lines))
    pen, top = ImageDraw.Draw(image), 0
    for font, (text, size, colour) in zip(fonts, lines):
        pen.text(((width - font.getlength(text)) // 2 if centred else 0, top), text, colour, font)
        top += size + 8
    return image
