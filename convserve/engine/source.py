"""Image rows on their way into a run: an array, and what turns its bytes into values."""

import math
from dataclasses import dataclass

import numpy as np

from convserve.errors import MemoryBudgetError

__all__ = ["ImageRows", "empty_scores"]


def empty_scores(*shape: int) -> np.ndarray:
    """Return an uninitialised float32 array. Raises MemoryBudgetError where the operating system refuses it."""
    try:
        return np.empty(shape, np.float32)
    except (MemoryError, ValueError) as error:
        sizes = "x".join(map(str, shape))
        raise MemoryBudgetError(
            f"the operating system refused {4 * math.prod(shape):,} bytes for {sizes} scores"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class ImageRows:
    """Images as (N, H, W, C) rows of any strides: float32 values, or uint8 through a table.

    table: float32 (channels, 256), the value of each byte; channel c of the network reads source channel
    channel_of[c]. Both are unused for float32.
    """

    rows: np.ndarray
    table: np.ndarray | None = None
    channel_of: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of images."""
        return self.rows.shape[0]

    @property
    def height(self) -> int:
        """Rows of each image."""
        return self.rows.shape[1]

    @property
    def width(self) -> int:
        """Pixels of each row."""
        return self.rows.shape[2]

    def of(self, rows: np.ndarray) -> "ImageRows":
        """Return other rows that are read in the same way."""
        return ImageRows(rows, self.table, self.channel_of)
