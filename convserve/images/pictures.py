"""A score map, reduced or not, as the pictures that show it: a heat map, the winners, the best positions."""

import os
import re
from typing import Any

import numpy as np
from PIL import Image

from convserve.errors import InputError
from convserve.images.contact import Found, contact_sheet
from convserve.images.decode import ImageSource, decode
from convserve.images.heatmap import argmax_map, heat_map
from convserve.images.peaks import find_peaks
from convserve.results import ScoreMap

__all__ = ["best_positions", "draw_best", "draw_map", "save_picture"]

# Labels of ImageNet begin with the number of their WordNet synset, which pictures leave out.
_SYNSET = re.compile(r"n\d{8}\s+")


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
    place |= {"opacity": opacity, "side": side}
    labels, names = _labels(found), _names(found)
    if len(labels) == 1 and not found.reduction.argmax:
        return heat_map(pixels, _numbers(found)[:, :, 0], label=names[0], value_range=value_range, **place)
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
        scores = _numbers(found)[:, :, 0]
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


def draw_best(found: ScoreMap, image: ImageSource, **options: Any) -> Image.Image:
    """Return the contact sheet of a map's best positions; the options are those of best_positions."""
    return contact_sheet(decode(image, channels="rgb"), best_positions(found, **options))


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format of its name, .png or .jpg; InputError where it cannot be written."""
    try:
        picture.save(path, quality=88)
    except (OSError, ValueError) as error:
        raise InputError(f"the picture {os.fspath(path)!r} cannot be written: {error}") from error


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


def _numbers(found: ScoreMap) -> np.ndarray:
    """Return the scores as float32: of uint8 those in the middle of what each stands for."""
    if found.reduction.value_range is None:
        return found.scores.astype(np.float32, copy=False)
    low, high = found.reduction.value_range
    return (low + (high - low) * found.scores.astype(np.float32) / 255).astype(np.float32)


def _winners(found: ScoreMap) -> tuple[np.ndarray, np.ndarray]:
    """Return the place among the labels of the class that wins each position, int, and its share, float32 in 0..1.

    Where scores are no shares, they become some by a softmax over what is kept; an argmax map has 1 everywhere.
    """
    if found.indices is not None:
        best = found.indices if found.reduction.argmax else found.indices[:, :, 0]
        places = np.zeros(max(found.classes) + 1, np.int64)
        places[found.classes] = np.arange(len(found.classes))
        if found.reduction.argmax:
            return places[best], np.ones(best.shape, np.float32)
        return places[best], _shares(_numbers(found))[:, :, 0]
    scores = _numbers(found)
    winners = np.argmax(scores, axis=2)
    return winners, np.take_along_axis(_shares(scores), winners[:, :, None], axis=2)[:, :, 0]


def _shares(scores: np.ndarray) -> np.ndarray:
    if np.nanmin(scores, initial=0) >= 0 and np.nanmax(scores, initial=0) <= 1:
        return scores
    powers = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=2, keepdims=True)
    return shares
