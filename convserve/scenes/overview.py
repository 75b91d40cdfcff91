"""A small picture of a huge image, made while its rows are read."""

import numpy as np

from convserve.errors import InputError
from convserve.scenes.source import RowSource

__all__ = ["overview"]


def overview(source: RowSource, longest: int) -> tuple[np.ndarray, int]:
    """Return an image by a whole number of times smaller, each pixel the mean of a square, and that number.

    uint8 (height, width, 3), its longer side at least `longest` pixels where the image's is. Holds a piece of rows and
    the result. Raises InputError for values that are no pixels, ImageError where rows cannot be read.
    """
    if source.dtype != np.uint8:
        raise InputError(f"{source.name} has {source.dtype} values, which are no pixels that a picture could show")
    times = max(1, max(source.height, source.width) // longest)
    rows, starts = -(-source.height // times), np.arange(0, source.width, times)
    means = np.empty((rows, len(starts), 3), np.uint8)
    across = np.diff([*starts, source.width])[:, None]
    sums, count, done = np.zeros((len(starts), 3), np.int64), 0, 0
    for piece in source.pieces(3):
        # columns first, all rows of a piece at once
        for row in np.add.reduceat(piece, starts, axis=1, dtype=np.int64):
            sums += row
            count += 1
            if count == times or done * times + count == source.height:
                pixels = across * count
                means[done] = (sums + pixels // 2) // pixels
                sums[:], count, done = 0, 0, done + 1
    return means, times
