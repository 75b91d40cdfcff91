"""Score maps as pictures: one class as a heat map, or the winning class of each position, over the image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convserve.errors import InputError, ShapeError
from convserve.images.colours import class_colours, colour_scale
from convserve.images.peaks import find_peaks

__all__ = ["argmax_map", "heat_map"]

Pair = tuple[int, int]
Corners = tuple[int, int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_BACKGROUND = (17, 19, 28)
_TEXT = (232, 233, 238)
_FAINT = (150, 154, 168)
_LONG_SIDE = 1280
_LONGEST_SIDE = 2560
_MOST_LEGEND_ENTRIES = 24


def _zoom(image: np.ndarray) -> float:
    """Return by how much a small image is enlarged, so that text over it can be read, or a huge one shrunk."""
    side = max(image.shape[:2])
    return _LONGEST_SIDE / side if side > _LONGEST_SIDE else float(max(1, min(8, _LONG_SIDE // side)))


def _base(image: np.ndarray, zoom: float) -> np.ndarray:
    """Return the image in gray, enlarged or shrunk, as float32 (H, W, 3): hue is left to the scores."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("L")
    size = (max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom)))
    gray = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float32)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _spread(plane: np.ndarray, shape: Pair, zoom: float, stride: Pair, window: Pair, offset: Pair) -> np.ndarray:
    """Return a plane (rows, cols) as float32 over the picture, each value at its window's centre, NaN outside.

    shape is the picture's (H, W), zoom times the image's; stride, window and offset are in image pixels.
    """
    rows, cols = plane.shape
    height, width = max(1, round(rows * stride[0] * zoom)), max(1, round(cols * stride[1] * zoom))
    enlarged = np.asarray(
        Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC), np.float32
    )
    enlarged = np.clip(enlarged, plane.min(), plane.max())
    top, left = (round((offset[axis] + (window[axis] - stride[axis]) / 2) * zoom) for axis in range(2))
    spread = np.full(shape, np.nan, np.float32)
    into = (slice(max(top, 0), min(top + height, shape[0])), slice(max(left, 0), min(left + width, shape[1])))
    spread[into] = enlarged[into[0].start - top : into[0].stop - top, into[1].start - left : into[1].stop - left]
    return spread


def _check(image: np.ndarray, scores: np.ndarray, opacity: float) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ShapeError(f"the image is {image.dtype} of shape {image.shape}; it must be uint8 (H, W, 1) or (H, W, 3)")
    if scores.ndim != 2 or 0 in scores.shape:
        raise ShapeError(f"the scores have shape {scores.shape}; they must be (rows, cols), at least one of each")
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity is {opacity!r}; it must be from 0 to 1")


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _with_legend(picture: np.ndarray, height: int) -> Image.Image:
    """Return the picture, float32 (H, W, 3) in 0..255, with an empty strip of that height below."""
    framed = Image.new("RGB", (picture.shape[1], picture.shape[0] + height), _BACKGROUND)
    framed.paste(Image.fromarray(np.round(picture).clip(0, 255).astype(np.uint8)), (0, 0))
    return framed


def _range(scores: np.ndarray, value_range: tuple[float, float] | None) -> tuple[float, float]:
    if value_range is None:
        finite = scores[np.isfinite(scores)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        return low, high if high > low else low + 1.0
    low, high = map(float, value_range)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"value_range is {value_range!r}; it must be two finite numbers, the lower first")
    return low, high


def heat_map(
    image: np.ndarray,
    scores: np.ndarray,
    *,
    stride: Pair,
    window: Pair,
    offset: Pair = (0, 0),
    label: str = "",
    opacity: float = 0.6,
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """Return a picture of one class's scores, float32 (rows, cols), over the image they belong to.

    image: uint8 (H, W, 1 or 3). stride, window, offset (vertical, horizontal, pixels) are the score
    map's; each score is shown at its window's centre and smoothly between. value_range fixes the two
    ends of the colour scale, by default the lowest and highest score. A small image is enlarged.
    Raises ShapeError, InputError for arguments outside their range.
    """
    scores = np.asarray(scores, np.float32)
    _check(image, scores, opacity)
    low, high = _range(scores, value_range)
    zoom = _zoom(image)
    picture = _base(image, zoom)
    shares = np.clip((np.nan_to_num(scores, nan=low) - low) / (high - low), 0, 1)
    spread = _spread(shares, picture.shape[:2], zoom, stride, window, offset)
    covered = np.isfinite(spread)
    table = colour_scale().astype(np.float32)
    colours = table[np.round(spread[covered] * 255).astype(np.intp)]
    picture[covered] = (1 - opacity) * picture[covered] + opacity * colours
    picture[~covered] *= 1 - opacity
    return _draw_scale(picture, label, low, high)


def _draw_scale(picture: np.ndarray, label: str, low: float, high: float) -> Image.Image:
    width = picture.shape[1]
    text = max(10, min(22, width // 28))
    strip = text * 3
    framed = _with_legend(picture, strip)
    draw, font = ImageDraw.Draw(framed), _font(text)
    middle, margin = picture.shape[0] + strip // 2, text
    low_text, high_text = f"{low:.3g}", f"{high:.3g}"
    bar_right = width - margin - int(draw.textlength(high_text, font)) - text // 2
    bar_left = max(margin * 4, bar_right - max(width // 3, 60))
    bar = np.repeat(colour_scale(max(bar_right - bar_left, 1))[None], text, axis=0)
    framed.paste(Image.fromarray(bar), (bar_left, middle - text // 2))
    draw.text((bar_right + text // 2, middle), high_text, _TEXT, font, anchor="lm")
    draw.text((bar_left - text // 2, middle), low_text, _TEXT, font, anchor="rm")
    label_right = bar_left - text - int(draw.textlength(low_text, font))
    while label and draw.textlength(label, font) > label_right - margin:
        label = label[:-2] + "…" if len(label) > 2 else ""
    draw.text((margin, middle), label, _TEXT, font, anchor="lm")
    return framed


def argmax_map(
    image: np.ndarray,
    class_indices: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    *,
    stride: Pair,
    window: Pair,
    offset: Pair = (0, 0),
    threshold: float = 0.5,
    background: int | None = None,
    opacity: float = 0.6,
) -> Image.Image:
    """Return a picture in which each position has its winning class's colour, and each peak its window and label.

    class_indices, int (rows, cols), indexes labels; scores, float32 (rows, cols) in 0..1, are the
    winners' own. Positions below threshold, and those of the background class (such as "no digit"),
    stay uncoloured. The rest is as for heat_map.
    """
    scores, class_indices = np.nan_to_num(np.asarray(scores, np.float32)), np.asarray(class_indices)
    _check(image, scores, opacity)
    if class_indices.shape != scores.shape or class_indices.min() < 0 or class_indices.max() >= len(labels):
        raise ShapeError(
            f"the classes have shape {class_indices.shape} and run to {class_indices.max(initial=0)}; "
            f"they must have the scores' shape {scores.shape} and lie in 0..{len(labels) - 1}"
        )
    zoom = _zoom(image)
    picture = _base(image, zoom)
    shown = scores >= threshold
    if background is not None:
        shown &= class_indices != background
    winners = [int(index) for index in np.unique(class_indices[shown])]
    named = (
        [index for index in range(len(labels)) if index != background]
        if len(labels) <= _MOST_LEGEND_ENTRIES
        else winners
    )
    palette = dict(zip(named, class_colours(len(named)), strict=True))
    # Colours weighted by their scores are spread, not colours: so black does not seep in from the uncoloured side.
    weights = np.where(shown, scores.clip(0, 1), 0).astype(np.float32)
    colours = np.zeros((len(labels), 3), np.float32)
    for index in winners:
        colours[index] = palette[index]
    weighted = weights[:, :, None] * colours[class_indices]
    planes = [
        np.nan_to_num(_spread(plane, picture.shape[:2], zoom, stride, window, offset))
        for plane in (weights, *np.moveaxis(weighted, 2, 0))
    ]
    total = planes[0]
    colour = np.stack(planes[1:], axis=2) / np.maximum(total, 1e-6)[:, :, None]
    alpha = (opacity * total.clip(0, 1))[:, :, None]
    # Multiplying keeps bright strokes bright and lets colour fill the dark around them.
    picture = (1 - alpha) * picture + alpha * np.maximum(colour, 0.35 * colour + 0.65 * picture).clip(0, 255)
    distance = (window[0] / 2 / stride[0], window[1] / 2 / stride[1])
    peaks = find_peaks(class_indices, scores, distance=distance, threshold=threshold, background=background)
    framed = _draw_labels(picture, [labels[index] for index in winners], [palette[index] for index in winners])
    draw = ImageDraw.Draw(framed)
    font = _font(max(11, min(40, round(window[0] * zoom * 0.2))))
    chips: list[Corners] = []
    # The strongest first: a peak whose label would cover a stronger one's keeps its colour alone.
    for row, col in peaks:
        top, left = offset[0] + row * stride[0], offset[1] + col * stride[1]
        corners = (left * zoom, top * zoom, (left + window[1]) * zoom - 1, (top + window[0]) * zoom - 1)
        box = (round(corners[0]), round(corners[1]), round(corners[2]), round(corners[3]))
        index = int(class_indices[row, col])
        _draw_window(draw, box, labels[index], tuple(int(value) for value in palette[index]), font, chips)
    return framed


def _shortened(label: str, font: Font, width: float) -> str:
    """Return what of a label fits in that many pixels: all of it, its first name, or its beginning."""
    if font.getlength(label) > width:
        label = label.split(",")[0]
    while len(label) > 2 and font.getlength(label) > width:
        label = label[:-2] + "…"
    return label


def _draw_window(
    draw: ImageDraw.ImageDraw, box: Corners, label: str, colour: tuple[int, ...], font: Font, chips: list[Corners]
) -> None:
    """Draw a window's outline with its label on a chip in the upper left corner, unless it would cover one of chips."""
    line = max(1, (box[3] - box[1]) // 50)
    radius = (box[3] - box[1]) // 12
    label = _shortened(label, font, box[2] - box[0])
    text = draw.textbbox((0, 0), label, font)
    pad = max(2, int(text[3]) // 5)
    chip = (box[0], box[1], box[0] + int(max(text[2], text[3])) + 2 * pad, box[1] + int(text[3]) + 2 * pad)
    if any(chip[0] < old[2] and old[0] < chip[2] and chip[1] < old[3] and old[1] < chip[3] for old in chips):
        return
    chips.append(chip)
    draw.rounded_rectangle(box, radius, outline=colour, width=line)
    draw.rounded_rectangle(chip, radius, fill=colour)
    draw.text(((chip[0] + chip[2]) / 2, (chip[1] + chip[3]) / 2), label, _BACKGROUND, font, anchor="mm")


def _draw_labels(picture: np.ndarray, names: list[str], colours: list[np.ndarray]) -> Image.Image:
    text = max(10, min(22, picture.shape[1] // 28))
    font = _font(text)
    more = len(names) - _MOST_LEGEND_ENTRIES
    names = names[:_MOST_LEGEND_ENTRIES]
    places, x, line = [], text, 0
    for name in names:
        needed = int(text * 2.6 + font.getlength(name))
        if x + needed > picture.shape[1] and x > text:
            x, line = text, line + 1
        places.append((x, line))
        x += needed
    framed = _with_legend(picture, text * (2 * line + 3))
    draw = ImageDraw.Draw(framed)
    for name, colour, (x, line) in zip(names, colours, places, strict=False):
        middle = picture.shape[0] + text * 3 // 2 + line * text * 2
        chip = (x, middle - text // 2, x + text, middle + text // 2)
        draw.rounded_rectangle(chip, text // 4, fill=tuple(int(value) for value in colour))
        draw.text((x + text * 1.4, middle), name, _TEXT, font, anchor="lm")
    if more > 0:
        bottom = framed.height - text * 3 // 2
        draw.text((framed.width - text, bottom), f"and {more} more", _FAINT, font, anchor="rm")
    return framed
