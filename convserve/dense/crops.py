"""The network on every crop: what score maps are compared with, and what networks that cannot slide take."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from convserve.engine.engine import Engine
from convserve.engine.source import ImageRows
from convserve.reduction import Reduction
from convserve.results import Geometry

__all__ = ["score_crops"]


def score_crops(
    engine: Engine,
    image: ImageRows,
    place: Geometry,
    arrays: dict[str, np.ndarray],
    reduce: Reduction,
    **options: Any,
) -> Iterator[int]:
    """Write what is kept of every crop's scores, a row of them as one batch; yield the number of rows, 1, after each.

    arrays: of the map's geometry, place, by name, as reduce has them. options: of Engine.run.
    """
    name, (window, _) = engine.graph.outputs[0].name, place.window
    lefts = [place.box(0, col)[1] for col in range(place.cols)]
    for row in range(place.rows):
        top = place.box(row, 0)[0]
        crops = _row_of_crops(image, top, lefts, window, place.window[1])
        values = engine.run(crops, **options)[name]
        scores = values.reshape(1, place.cols, -1)[:, :, place.classes]
        for part, array in reduce.apply(scores, place.classes).items():
            arrays[part][row] = array[0]
        yield 1


def _row_of_crops(image: ImageRows, top: int, lefts: list[int], height: int, width: int) -> ImageRows:
    if top + height > image.height or lefts[-1] + width > image.width:
        return ImageRows(np.stack([_cut(_values(image, top, left, height, width), height, width) for left in lefts]))
    if len(lefts) > 1 and len(set(np.diff(lefts))) == 1:
        # the windows are views of the image: no crop is copied
        strip = image.rows[0, top : top + height]
        windows = np.lib.stride_tricks.sliding_window_view(strip, width, axis=1)[:, :: lefts[1] - lefts[0]]
        return image.of(windows.transpose(1, 0, 3, 2))
    return image.of(np.stack([image.rows[0, top : top + height, left : left + width] for left in lefts]))


def _values(image: ImageRows, top: int, left: int, height: int, width: int) -> np.ndarray:
    # what the network sees of a part of the image, float32 (rows, columns, channels)
    part = image.rows[0, top : top + height, left : left + width]
    if image.table is None:
        return part
    return np.stack([image.table[c][part[..., of]] for c, of in enumerate(image.channel_of)], axis=2)


def _cut(values: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.pad(values, ((0, height - values.shape[0]), (0, width - values.shape[1]), (0, 0)))
