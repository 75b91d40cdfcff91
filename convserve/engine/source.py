"""Image rows on their way into a run: an array, and what turns its bytes into values."""

import math
import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from convserve.errors import InputError, MemoryBudgetError, ShapeError
from convserve.graph.ir import Volume

__all__ = ["ImageRows", "empty_scores", "tensor_rows"]

MAPPED_BYTES = 256 << 10


def empty_scores(*shape: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Return an array of any content. Raises MemoryBudgetError where the operating system refuses it.

    A large one is mapped, so that all of it goes back to the system with the array, however the heap lies.
    """
    size_bytes = np.dtype(dtype).itemsize * math.prod(shape)
    try:
        if size_bytes < MAPPED_BYTES:
            return np.empty(shape, dtype)
        mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(mapping, dtype).reshape(shape)
    except (MemoryError, ValueError, OverflowError, OSError) as error:
        sizes = "x".join(map(str, shape))
        raise MemoryBudgetError(f"the operating system refused {size_bytes:,} bytes for {sizes} scores") from error


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


def tensor_rows(x: np.ndarray, declared: Volume) -> ImageRows:
    """Return float32 (N, C, H, W), or (N, C) for a network that reads single pixels, as rows.

    Raises InputError, ShapeError where they are not what the network declares.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(f"the input is {kind}; it must be a float32 array")
    if x.ndim == 2 and (declared.height, declared.width) == (1, 1):
        x = x.reshape(*x.shape, 1, 1)
    fits = x.ndim == 4 and all(
        have == want or want is None
        for have, want in zip(x.shape[1:], (declared.channels, declared.height, declared.width), strict=True)
    )
    if not fits or 0 in x.shape:
        want = f"(N, {declared.channels}, {declared.height or 'H'}, {declared.width or 'W'})"
        hint = "; score_map takes larger images" if x.ndim == 4 and declared.height and declared.width else ""
        raise ShapeError(f"the input has shape {x.shape}; it must be {want} with N from 1{hint}")
    return ImageRows(x.transpose(0, 2, 3, 1))
