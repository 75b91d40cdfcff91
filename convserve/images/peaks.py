"""Where a score map has found something: its local maxima, one for each object."""

import numpy as np

from convserve.errors import ShapeError

__all__ = ["find_peaks"]


def _smoothed(plane: np.ndarray) -> np.ndarray:
    """Return the mean over 3x3 positions, with zeros around."""
    rows, cols = plane.shape
    padded = np.pad(plane, 1)
    return np.mean([padded[i : i + rows, j : j + cols] for i in range(3) for j in range(3)], axis=0)


def find_peaks(
    class_indices: np.ndarray,
    scores: np.ndarray,
    *,
    distance: tuple[float, float],
    threshold: float = 0.5,
    background: int | None = None,
    most: int | None = None,
) -> list[tuple[int, int]]:
    """Return the (row, col) of each peak, the strongest first.

    class_indices, int (rows, cols), names each position's class, scores, float32 (rows, cols), its
    score. A peak has a score of at least threshold, is not of the background class, and no stronger
    one lies within distance (vertical, horizontal), in positions; strength is the mean over 3x3
    positions, which puts a peak in the middle of a plateau. most: no more peaks than these. Raises
    ShapeError for other shapes.
    """
    if scores.ndim != 2 or class_indices.shape != scores.shape:
        raise ShapeError(f"classes {class_indices.shape} and scores {scores.shape} must both be (rows, cols)")
    found = np.nan_to_num(scores.astype(np.float32)) >= threshold
    if background is not None:
        found &= class_indices != background
    strength = np.where(found, _smoothed(np.where(found, scores, 0).astype(np.float32)), -np.inf)
    rows, cols = np.indices(scores.shape)
    peaks: list[tuple[int, int]] = []
    while True:
        row, col = (int(index) for index in np.unravel_index(np.argmax(strength), scores.shape))
        if not np.isfinite(strength[row, col]) or len(peaks) == most:
            return peaks
        peaks.append((row, col))
        near = (abs(rows - row) <= distance[0]) & (abs(cols - col) <= distance[1])
        strength[near] = -np.inf
