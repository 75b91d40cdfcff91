"""The contact sheet of a score map: the crops of its best positions, each with its label and score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from convserve.errors import InputError
from convserve.images.legend import BACKGROUND, FAINT, TEXT, font_of, shortened

__all__ = ["Found", "contact_sheet"]

_TILE = 224
_LEAST, _MOST = 96, 384
_GAP = 16
_TEXT = 18


@dataclass(frozen=True, slots=True)
class Found:
    """A position of a map: the pixels (top, left, bottom, right) that it sees, its label and its score."""

    box: tuple[int, int, int, int]
    label: str
    score: float


def contact_sheet(image: np.ndarray, positions: Sequence[Found], *, columns: int | None = None) -> Image.Image:
    """Return a picture of what each position sees in the image, uint8 (H, W, 1 or 3), in their order, row by row.

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
    for number, one in enumerate(positions):
        left = _GAP + number % across * (cell[0] + _GAP)
        top = _GAP + number // across * (cell[1] + _GAP)
        sheet.paste(_crop(image, one.box, tile), (left, top))
        below = top + tile[0] + _TEXT // 2
        score = f"{one.score:.3g}"
        room = cell[0] - font.getlength(score) - _TEXT / 2
        draw.text((left, below), shortened(one.label, font, room), TEXT, font, anchor="lt")
        draw.text((left + cell[0], below), score, TEXT, font, anchor="rt")
        draw.text((left, below + _TEXT + 2), f"at {one.box[1]}, {one.box[0]}", FAINT, small, anchor="lt")
    return sheet


def _crop(image: np.ndarray, box: tuple[int, int, int, int], tile: tuple[int, int]) -> Image.Image:
    # what lies outside the image stays dark
    top, left, bottom, right = box
    into = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    whole = np.zeros((bottom - top, right - left, image.shape[2]), np.uint8)
    down, across = max(-top, 0), max(-left, 0)
    whole[down : down + into.shape[0], across : across + into.shape[1]] = into
    picture = Image.fromarray(whole[:, :, 0] if image.shape[2] == 1 else whole).convert("RGB")
    return picture.resize((tile[1], tile[0]), Image.Resampling.LANCZOS)
