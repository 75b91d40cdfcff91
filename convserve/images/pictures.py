"""A score map, reduced or not, as the pictures that show it: a heat map, the winners, the best positions."""

import os
import re
from typing import Any, cast

import numpy as np
from PIL import Image

from convserve.errors import InputError
from convserve.images.contact import Found, HeldPixels, PixelRows, contact_sheet, cut_out
from convserve.images.decode import ImageSource, decode
from convserve.images.heatmap import argmax_map, heat_map
from convserve.images.peaks import find_peaks
from convserve.results import ScoreMap

__all__ = ["best_positions", "draw_best", "draw_map", "save_picture"]

# Labels of ImageNet begin with the number of their WordNet synset, which pictures leave out.
_SYNSET = re.compile(r"n\d{8}\s+")

# Of a map on disk, whose rows are read as they are needed.
_VALUES_AT_ONCE = 1 << 20


def draw_map(
    found: ScoreMap,
    image: ImageSource,
    *,
    background: str | None = None,
    threshold: float = 0.5,
    opacity: float = 0.6,
    value_range: tuple[float, float] | None = None,
    side: int | None = None,
    shrunk: int = 1,
) -> Image.Image:
    """Return a map over its image: of one class a heat map, of several the class that wins each position.

    background, threshold: a label, and a score in 0..1, below which positions stay uncoloured, among several.
    value_range: ends of the scale of one class, by default those of its scores. opacity: 0..1; side: pixels of
    the picture's longer side. shrunk: by how many times the image is smaller than the one of the map.
    Raises InputError, ImageError.
    """
    pixels = decode(image, channels="rgb")
    places = {"stride": found.stride, "window": found.window, "offset": found.offset}
    place: dict[str, Any] = {name: (down / shrunk, across / shrunk) for name, (down, across) in places.items()}
    place["last"] = tuple(begin / shrunk for begin in found.box(-1, -1)[:2])
    place |= {"opacity": opacity, "side": side}
    labels, names = _labels(found), _names(found)
    if len(labels) == 1 and not found.reduction.argmax:
        return heat_map(pixels, _plane(found), label=names[0], value_range=value_range, **place)
    if value_range is not None:
        raise InputError("a value range is for a heat map of one class; this map has several")
    winners, shares = _winners(found)
    uncoloured = _index_of(background, labels)
    return argmax_map(pixels, winners, shares, names, background=uncoloured, threshold=threshold, **place)


def best_positions(
    found: ScoreMap, *, most: int = 24, background: str | None = None, threshold: float | None = None
) -> list[Found]:
    """Return the best positions of a map, best first, no two of which see each other's centre.

    Of one class, or of the class that wins each position among several. threshold: of a score, by default 0.5 among
    several and none of one. Raises InputError for a map without scores.
    """
    if found.reduction.argmax:
        raise InputError("an argmax map has no scores, and so no best positions: keep top=1 instead")
    labels, names = _labels(found), _names(found)
    nothing: int | None
    if len(labels) == 1:
        scores = _plane(found)
        # NaN is no class of the map
        winners, nothing = np.isnan(scores).astype(np.int64), 1
        least = float("-inf") if threshold is None else threshold
    else:
        winners, scores = _winners(found)
        nothing = _index_of(background, labels)
        least = 0.5 if threshold is None else threshold
    distance = found.window[0] / 2 / found.stride[0], found.window[1] / 2 / found.stride[1]
    peaks = find_peaks(winners, scores, distance=distance, threshold=least, background=nothing, most=most)
    places = sorted(peaks, key=lambda place: -float(scores[place]))
    return [Found(found.box(*place), names[int(winners[place])], float(scores[place])) for place in places]


def draw_best(found: ScoreMap, image: ImageSource | PixelRows, **options: Any) -> Image.Image:
    """Return the contact sheet of a map's best positions; the options are those of best_positions.

    image: also what convserve.open_scene gives, of which the crops alone are held. Raises InputError, ImageError.
    """
    positions = best_positions(found, **options)
    rows: Any = image if hasattr(image, "pieces") else HeldPixels(decode(cast(ImageSource, image), channels="rgb"))
    return contact_sheet(cut_out(rows, [one.box for one in positions]) if positions else [], positions)


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format of its name, .png or .jpg; InputError where it cannot be written."""
    try:
        picture.save(path, quality=88)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"the picture {os.fspath(path)!r} cannot be written: {reason}") from error


def _labels(found: ScoreMap) -> list[str]:
    return found.labels or [str(index) for index in found.classes]


def _names(found: ScoreMap) -> list[str]:
    return [_SYNSET.sub("", label, count=1) for label in _labels(found)]


def _index_of(label: str | None, labels: list[str]) -> int | None:
    if label is None:
        return None
    if label not in labels:
        raise InputError(f"the background {label!r} is none of the classes: {', '.join(labels[:20])}")
    return labels.index(label)


def _numbers(found: ScoreMap, values: Any) -> np.ndarray:
    """Return a part of a map's scores as float32: of uint8 those in the middle of what each stands for."""
    numbers = np.asarray(values)
    if found.reduction.value_range is None:
        return numbers.astype(np.float32, copy=False)
    low, high = found.reduction.value_range
    return (low + (high - low) * numbers.astype(np.float32) / 255).astype(np.float32)


def _plane(found: ScoreMap) -> np.ndarray:
    return _numbers(found, found.scores[:, :, :1])[:, :, 0]


def _winners(found: ScoreMap) -> tuple[np.ndarray, np.ndarray]:
    """Return the place among the labels of the class that wins each position, int, and its share, float32 in 0..1.

    Where scores are no shares, they become some by a softmax over what is kept; an argmax map has 1 everywhere. A map
    on disk is read some rows at a time.
    """
    shape = found.rows, found.cols
    winners, scores, shares = np.empty(shape, np.int64), np.ones(shape, np.float32), np.empty(shape, np.float32)
    places = np.zeros(max(found.classes) + 1, np.int64)
    places[found.classes] = np.arange(len(found.classes))
    low, high = 0.0, 1.0
    step = max(1, _VALUES_AT_ONCE // (found.cols * max(1, found.scores.shape[2])))
    for first in range(0, found.rows, step):
        rows = slice(first, min(first + step, found.rows))
        if found.reduction.argmax:
            assert found.indices is not None
            winners[rows] = places[np.asarray(found.indices[rows])]
            continue
        values = _numbers(found, found.scores[rows])
        # best first where indices are kept
        best = np.argmax(values, axis=2)[:, :, None] if found.indices is None else np.zeros((*values.shape[:2], 1), int)
        winners[rows] = best[:, :, 0] if found.indices is None else places[np.asarray(found.indices[rows])[:, :, 0]]
        scores[rows] = np.take_along_axis(values, best, axis=2)[:, :, 0]
        shares[rows] = np.take_along_axis(_softmax(values), best, axis=2)[:, :, 0]
        low, high = min(low, float(np.nanmin(values, initial=0))), max(high, float(np.nanmax(values, initial=0)))
    return winners, scores if low >= 0 and high <= 1 else shares


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=2, keepdims=True)
    return shares
