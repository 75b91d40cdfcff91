"""Score maps as pictures: one class as a heat map, or the winning class of each position, over the image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from convserve.errors import InputError, ShapeError
from convserve.images.colours import class_colours, colour_scale
from convserve.images.legend import BACKGROUND, Font, font_of, shortened, with_names, with_scale
from convserve.images.peaks import find_peaks

__all__ = ["LONGEST_SIDE", "argmax_map", "heat_map"]

Pair = tuple[int, int]
Place = tuple[float, float]
Corners = tuple[int, int, int, int]
Colour = tuple[int, int, int]

LONGEST_SIDE = 2560
"""Pixels of the longer side of a picture, unless another is asked for."""

_LONG_SIDE = 1280
_MOST_NAMED = 24
_MOST_COLOURED = 12
_MOST_WINDOWS = 48
_LEAST_WINDOW = 12
_LARGEST_SIDE = 1 << 14
_OTHER = (128, 132, 142)


def _zoom(image: np.ndarray, side: int | None) -> float:
    """Return by how much a small image is enlarged, so that text over it can be read, or a huge one shrunk."""
    longest = max(image.shape[:2])
    if side is not None:
        return side / longest
    return LONGEST_SIDE / longest if longest > LONGEST_SIDE else float(max(1, min(8, _LONG_SIDE // longest)))


def _base(image: np.ndarray, zoom: float) -> np.ndarray:
    """Return the image in gray, enlarged or shrunk, as float32 (H, W, 3): hue is left to the scores."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("L")
    size = (max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom)))
    gray = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float32)
    return np.repeat(gray[:, :, None], 3, axis=2)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where the positions of a map lie along one side of a picture, in its pixels.

    begin: of the window of position 0; stride: to the next one's; last: begin of the last one's, which may be nearer.
    """

    count: int
    begin: float
    stride: float
    window: float
    last: float

    def at(self, position: int) -> float:
        """Return where the window of a position begins."""
        return self.last if position == self.count - 1 else self.begin + position * self.stride

    @property
    def length(self) -> int:
        """Pixels that all positions take where each has the stride."""
        return max(1, round(self.count * self.stride))

    def pixels(self, size: int) -> np.ndarray:
        """Return, of each pixel of a side, its place among the `length`, -1 where it has none: int (size,)."""
        top = round(self.begin + (self.window - self.stride) / 2)
        nearer = self.begin + (self.count - 1) * self.stride - self.last
        places = np.arange(size) - top
        if nearer > 0:
            # from the centre before the last on, the way to the last is shorter
            bend, way = self.length - 1.5 * self.stride, max(self.stride - nearer, 1e-6)
            beyond = places - bend
            bent = np.where(beyond <= way, bend + beyond * self.stride / way, bend + beyond + nearer)
            places = np.where(beyond > 0, np.floor(bent), places).astype(np.intp)
        return np.where((places >= 0) & (places < self.length), places, -1)


def _axes(
    scores: np.ndarray, zoom: float, stride: Place, window: Place, offset: Place, last: Place | None
) -> list[_Axis]:
    found = []
    for axis, count in enumerate(scores.shape):
        end = offset[axis] + (count - 1) * stride[axis] if last is None else last[axis]
        found.append(_Axis(count, *(zoom * length for length in (offset[axis], stride[axis], window[axis], end))))
    return found


def _spread(plane: np.ndarray, shape: Pair, axes: list[_Axis]) -> np.ndarray:
    """Return a plane (rows, cols) as float32 (H, W) of the picture, each value at its window's centre, NaN outside."""
    size = axes[1].length, axes[0].length
    enlarged = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BICUBIC), np.float32)
    enlarged = np.clip(enlarged, plane.min(), plane.max())
    down, across = (axis.pixels(side) for axis, side in zip(axes, shape, strict=True))
    spread = enlarged[down][:, across]
    spread[down < 0], spread[:, across < 0] = np.nan, np.nan
    return spread


def _check(image: np.ndarray, scores: np.ndarray, opacity: float, side: int | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ShapeError(f"the image is {image.dtype} of shape {image.shape}; it must be uint8 (H, W, 1) or (H, W, 3)")
    if scores.ndim != 2 or 0 in scores.shape:
        raise ShapeError(f"the scores have shape {scores.shape}; they must be (rows, cols), at least one of each")
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity is {opacity!r}; it must be from 0 to 1")
    if side is not None and not 64 <= side <= _LARGEST_SIDE:
        raise InputError(f"the picture's longer side is {side!r} pixels; allowed: 64 to {_LARGEST_SIDE}")


def _range(scores: np.ndarray, value_range: tuple[float, float] | None) -> tuple[float, float]:
    if value_range is None:
        finite = scores[np.isfinite(scores)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        low = 0.0 if 0 < low < high / 50 else low
        return low, high if high > low else low + 1.0
    low, high = map(float, value_range)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"value_range is {value_range!r}; it must be two finite numbers, the lower first")
    return low, high


def heat_map(
    image: np.ndarray,
    scores: np.ndarray,
    *,
    stride: Place,
    window: Place,
    offset: Place = (0, 0),
    last: Place | None = None,
    label: str = "",
    opacity: float = 0.6,
    value_range: tuple[float, float] | None = None,
    side: int | None = None,
) -> Image.Image:
    """Return a picture of one class's scores, float32 (rows, cols), over the image they belong to.

    image: uint8 (H, W, 1 or 3). stride, window, offset (vertical, horizontal, pixels) are the score map's, last where
    its last window begins, by default as all others do; each score is shown at its window's centre and smoothly
    between, the highest as opaque as opacity says, the lowest half as much. value_range fixes the two ends of the
    colour scale, by default the lowest and highest score. side: pixels of the picture's longer side; by default a small
    image is enlarged, a huge one shrunk. Raises ShapeError, InputError for arguments outside their range.
    """
    scores = np.asarray(scores, np.float32)
    _check(image, scores, opacity, side)
    low, high = _range(scores, value_range)
    zoom = _zoom(image, side)
    picture = _base(image, zoom)
    shares = np.clip((np.nan_to_num(scores, nan=low) - low) / (high - low), 0, 1)
    spread = _spread(shares, picture.shape[:2], _axes(scores, zoom, stride, window, offset, last))
    covered = np.isfinite(spread)
    table = colour_scale().astype(np.float32)
    seen = spread[covered]
    colours = table[np.round(seen * 255).astype(np.intp)]
    # low scores let more of the image through, which says what lies there
    alpha = (opacity * (0.5 + 0.5 * seen.clip(0, 1)))[:, None]
    picture[covered] = (1 - alpha) * picture[covered] + alpha * colours
    picture[~covered] *= 1 - opacity
    return with_scale(picture, label, low, high)


def argmax_map(
    image: np.ndarray,
    class_indices: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    *,
    stride: Place,
    window: Place,
    offset: Place = (0, 0),
    last: Place | None = None,
    threshold: float = 0.5,
    background: int | None = None,
    opacity: float = 0.6,
    side: int | None = None,
) -> Image.Image:
    """Return a picture in which each position has its winning class's colour, and each peak its window and label.

    class_indices, int (rows, cols), indexes labels; scores, float32 (rows, cols) in 0..1, are the
    winners' own. Positions below threshold, and those of the background class (such as "no digit"),
    stay uncoloured. Where there are many classes, those that win most positions have a colour of their own, and
    the others one together; where there are many peaks, the strongest of each class are drawn. The rest is as for
    heat_map.
    """
    scores, class_indices = np.nan_to_num(np.asarray(scores, np.float32)), np.asarray(class_indices)
    _check(image, scores, opacity, side)
    if class_indices.shape != scores.shape or class_indices.min() < 0 or class_indices.max() >= len(labels):
        raise ShapeError(
            f"the classes have shape {class_indices.shape} and run to {class_indices.max(initial=0)}; "
            f"they must have the scores' shape {scores.shape} and lie in 0..{len(labels) - 1}"
        )
    zoom = _zoom(image, side)
    picture = _base(image, zoom)
    shown = scores >= threshold
    if background is not None:
        shown &= class_indices != background
    palette = _palette(class_indices[shown], len(labels), background)
    # Colours weighted by their scores are spread, not colours: so black does not seep in from the uncoloured side.
    weights = np.where(shown, scores.clip(0, 1), 0).astype(np.float32)
    colours = np.zeros((len(labels), 3), np.float32)
    for index, one in palette.items():
        colours[index] = one
    weighted = weights[:, :, None] * colours[class_indices]
    axes = _axes(scores, zoom, stride, window, offset, last)
    planes = [
        np.nan_to_num(_spread(plane, picture.shape[:2], axes))
        for plane in (weights, *np.moveaxis(weighted, 2, 0))
    ]
    total = planes[0]
    colour = np.stack(planes[1:], axis=2) / np.maximum(total, 1e-6)[:, :, None]
    alpha = (opacity * total.clip(0, 1))[:, :, None]
    # Multiplying keeps bright strokes bright and lets colour fill the dark around them.
    picture = (1 - alpha) * picture + alpha * np.maximum(colour, 0.35 * colour + 0.65 * picture).clip(0, 255)
    distance = (window[0] / 2 / stride[0], window[1] / 2 / stride[1])
    peaks = find_peaks(class_indices, scores, distance=distance, threshold=threshold, background=background)
    framed = with_names(picture, *_legend(palette, class_indices[shown], labels))
    draw = ImageDraw.Draw(framed)
    font = font_of(max(11, min(40, round(window[0] * zoom * 0.2))))
    chips: list[Corners] = []
    # The strongest first: a peak whose label would cover a stronger one's keeps its colour alone.
    for row, col in _drawn(peaks, class_indices):
        top, left = axes[0].at(row), axes[1].at(col)
        corners = (left, top, left + axes[1].window - 1, top + axes[0].window - 1)
        box = (round(corners[0]), round(corners[1]), round(corners[2]), round(corners[3]))
        index = int(class_indices[row, col])
        _draw_window(draw, box, labels[index], palette[index], font, chips)
    return framed


def _palette(winners: np.ndarray, count: int, background: int | None) -> dict[int, Colour]:
    """Return the colour of each class that wins somewhere: of few classes all their own, of many the most frequent."""
    found, positions = np.unique(winners, return_counts=True)
    if count <= _MOST_NAMED:
        named = [index for index in range(count) if index != background]
    else:
        most = found[np.argsort(-positions, kind="stable")]
        named = sorted(most.tolist()[: _MOST_COLOURED if len(most) > _MOST_NAMED else None])
    colours = [(int(one[0]), int(one[1]), int(one[2])) for one in class_colours(len(named))]
    own = dict(zip(named, colours, strict=True))
    return {int(index): own.get(int(index), _OTHER) for index in found}


def _legend(palette: dict[int, Colour], winners: np.ndarray, labels: Sequence[str]) -> tuple[list[str], list[Colour]]:
    named = [index for index, colour in palette.items() if colour != _OTHER]
    names, colours = [labels[index] for index in named], [palette[index] for index in named]
    others = len(palette) - len(named)
    if others:
        share = np.isin(winners, named, invert=True).mean()
        names.append(f"{others} other classes, {share:.0%} of what is coloured")
        colours.append(_OTHER)
    return names, colours


def _drawn(peaks: list[tuple[int, int]], class_indices: np.ndarray) -> list[tuple[int, int]]:
    # all where they are few; else as many of each class as leave room for those of the others, the strongest first
    if len(peaks) <= _MOST_WINDOWS:
        return peaks
    seen: Counter[int] = Counter()
    rounds: list[tuple[int, tuple[int, int]]] = []
    for peak in peaks:
        index = int(class_indices[peak])
        rounds.append((seen[index], peak))
        seen[index] += 1
    kept = {peak for number, peak in sorted(rounds, key=lambda one: one[0])[: _MOST_WINDOWS // 2] if number < 3}
    return [peak for peak in peaks if peak in kept]


def _draw_window(
    draw: ImageDraw.ImageDraw, box: Corners, label: str, colour: tuple[int, ...], font: Font, chips: list[Corners]
) -> None:
    """Draw a window's outline with its label on a chip in the upper left corner, unless it would cover one of chips.

    Windows of less than 12 pixels show nothing but their colour.
    """
    if min(box[2] - box[0], box[3] - box[1]) < _LEAST_WINDOW:
        return
    line = max(1, (box[3] - box[1]) // 50)
    radius = (box[3] - box[1]) // 12
    label = shortened(label, font, box[2] - box[0])
    text = draw.textbbox((0, 0), label, font)
    pad = max(2, int(text[3]) // 5)
    chip = (box[0], box[1], box[0] + int(max(text[2], text[3])) + 2 * pad, box[1] + int(text[3]) + 2 * pad)
    if any(chip[0] < old[2] and old[0] < chip[2] and chip[1] < old[3] and old[1] < chip[3] for old in chips):
        return
    chips.append(chip)
    draw.rounded_rectangle(box, radius, outline=colour, width=line)
    draw.rounded_rectangle(chip, radius, fill=colour)
    draw.text(((chip[0] + chip[2]) / 2, (chip[1] + chip[3]) / 2), label, BACKGROUND, font, anchor="mm")
