"""The contact sheet of a score map: the crops of its best positions, each with its label and score."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from convserve.errors import InputError
from convserve.images.legend import BACKGROUND, FAINT, TEXT, font_of, shortened
from convserve.results import Box

__all__ = ["Found", "HeldPixels", "PixelRows", "contact_sheet", "cut_out"]

_TILE = 224
_LEAST, _MOST = 96, 384
_GAP = 16
_TEXT = 18


@dataclass(frozen=True, slots=True)
class Found:
    """A position of a map: the pixels (top, left, bottom, right) that it sees, its label and its score."""

    box: Box
    label: str
    score: float


class PixelRows(Protocol):
    """What gives an image's rows: an opened scene, for one."""

    height: int
    width: int

    def pieces(self, channels: int, first: int = 0) -> Iterator[np.ndarray]:
        """Yield uint8 (k, width, channels) from row `first` on."""


class HeldPixels:
    """The same of pixels that are decoded already, uint8 (height, width, 3)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.height, self.width = pixels.shape[:2]
        self._pixels = pixels

    def pieces(self, channels: int, first: int = 0) -> Iterator[np.ndarray]:
        """Yield the rows from `first` on at once; they have 3 channels."""
        yield self._pixels[first:]


def cut_out(image: PixelRows, boxes: Sequence[Box]) -> list[np.ndarray]:
    """Return what lies in each box (top, left, bottom, right) of an image, uint8 (bottom - top, right - left, 3).

    Reads the rows from the uppermost box to the lowest once; what lies outside the image is black.
    """
    crops = [np.zeros((bottom - top, right - left, 3), np.uint8) for top, left, bottom, right in boxes]
    row = max(0, min(box[0] for box in boxes))
    last = min(image.height, max(box[2] for box in boxes))
    pieces = image.pieces(3, row) if row < last else iter(())
    for piece in pieces:
        end = row + len(piece)
        for crop, (top, left, bottom, right) in zip(crops, boxes, strict=True):
            above, below = max(top, row), min(bottom, end)
            if above < below:
                into = slice(max(left, 0), max(min(right, image.width), 0))
                seen = piece[above - row : below - row, into]
                crop[above - top : below - top, into.start - left : into.start - left + seen.shape[1]] = seen
        row = end
        if row >= last:
            break
    return crops


def contact_sheet(
    crops: Sequence[np.ndarray], positions: Sequence[Found], *, columns: int | None = None
) -> Image.Image:
    """Return a picture of what each position sees, uint8 (height, width, 3), in their order, row by row.

    columns: crops of a row, default about four to three. A crop has the size of its window, small and large ones
    closer to 224 pixels; below lie its label, its score and where its window begins (x, y). Raises InputError where
    there is no position.
    """
    if not positions:
        raise InputError("the contact sheet has no positions to show: no score reaches the threshold")
    height, width = (positions[0].box[2] - positions[0].box[0], positions[0].box[3] - positions[0].box[1])
    longest = max(height, width)
    zoom = 1.0 if _LEAST <= longest <= _MOST else _TILE / longest
    tile = max(1, round(height * zoom)), max(1, round(width * zoom))
    cell = max(tile[1], _LEAST), tile[0] + 3 * _TEXT
    across = min(columns or math.ceil(math.sqrt(len(positions) * 4 / 3 * cell[1] / cell[0])), len(positions))
    down = math.ceil(len(positions) / across)
    sheet = Image.new("RGB", (_GAP + across * (cell[0] + _GAP), _GAP + down * (cell[1] + _GAP)), BACKGROUND)
    draw, font, small = ImageDraw.Draw(sheet), font_of(_TEXT - 2), font_of(_TEXT - 5)
    for number, (crop, one) in enumerate(zip(crops, positions, strict=True)):
        left = _GAP + number % across * (cell[0] + _GAP)
        top = _GAP + number // across * (cell[1] + _GAP)
        sheet.paste(Image.fromarray(crop).resize((tile[1], tile[0]), Image.Resampling.LANCZOS), (left, top))
        below = top + tile[0] + _TEXT // 2
        score = f"{one.score:.3g}"
        room = cell[0] - font.getlength(score) - _TEXT / 2
        draw.text((left, below), shortened(one.label, font, room), TEXT, font, anchor="lt")
        draw.text((left + cell[0], below), score, TEXT, font, anchor="rt")
        draw.text((left, below + _TEXT + 2), f"at {one.box[1]}, {one.box[0]}", FAINT, small, anchor="lt")
    return sheet

