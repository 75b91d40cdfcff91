"""What every source of an image's rows offers: its size, what it holds, and blocks of rows from any row on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from convserve.errors import InputError, ShapeError
from convserve.scenes.georeference import GeoReference

__all__ = ["RowSource", "checked_channels", "pixel_type"]

BLOCK_BYTES = 1 << 20
"""About what a block of rows takes where the format does not say how many rows belong together."""

PIECE_PIXELS = 1 << 18
"""Pixels that are fed to a run at once: between two pieces it can be interrupted."""


class RowSource(ABC):
    """An image that is read by rows: iterate over it, or over blocks(first) from row `first` on, as often as wanted.

    height, width, channels: of the image as it is. dtype: uint8 for pixels, or float32 for values that are
    preprocessed already. held_bytes: of decoded pixels that are held as a whole, where the format gives no rows.
    georeference: where the pixels lie on the ground, None where the image does not say. A context manager that closes.
    """

    def __init__(self, name: str, height: int, width: int, channels: int, dtype: np.dtype | type) -> None:
        """name: for messages, such as "the image 'scene.tif'"."""
        self.name = name
        self.height, self.width, self.channels = height, width, channels
        self.dtype = np.dtype(dtype)
        self.held_bytes = 0
        self.georeference: GeoReference | None = None

    @property
    def block_rows(self) -> int:
        """Rows that are read together; a block never spans two such groups."""
        return max(1, BLOCK_BYTES // (self.width * self.channels * self.dtype.itemsize))

    @abstractmethod
    def read(self, first: int, count: int) -> np.ndarray:
        """Return rows first to first + count, (count, width, channels), all of one group of block_rows.

        Raises ImageError where they cannot be read.
        """

    def blocks(self, first: int = 0) -> Iterator[np.ndarray]:
        """Yield the rows from `first` to the last, (k, width, channels) of the source's dtype, read as they are asked.

        Raises InputError where the image has no such row, ImageError where rows cannot be read.
        """
        if not 0 <= first < self.height:
            raise InputError(f"{self.name} has the rows 0 to {self.height - 1}; row {first} does not exist")
        step = self.block_rows
        while first < self.height:
            end = min((first // step + 1) * step, self.height)
            yield self.read(first, end - first)
            first = end

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.blocks()

    def pieces(self, channels: int, first: int = 0) -> Iterator[np.ndarray]:
        """Yield the rows from `first` on as a network of so many channels reads them, about PIECE_PIXELS at once.

        Gray becomes colour and colour gray as decode() does. Raises ShapeError where that cannot be.
        """
        from convserve.images.decode import decode

        checked_channels(self, channels)
        step = max(1, PIECE_PIXELS // self.width)
        for block in self.blocks(first):
            for row in range(0, len(block), step):
                piece = block[row : row + step]
                if self.dtype == np.uint8 and self.channels != channels:
                    piece = decode(piece, channels="gray" if channels == 1 else "rgb")
                yield piece

    def below(self, first: int) -> "RowSource":
        """Return the part of the image from row `first` on, which lives as long as the whole."""
        return _LowerRows(self, first) if first else self

    def close(self) -> None:
        """Give files and memory back, if there are any; closing twice does nothing."""
        return

    def __enter__(self) -> "RowSource":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _LowerRows(RowSource):
    def __init__(self, whole: RowSource, first: int) -> None:
        super().__init__(whole.name, whole.height - first, whole.width, whole.channels, whole.dtype)
        self._whole, self._first = whole, first

    def read(self, first: int, count: int) -> np.ndarray:
        return self._whole.read(self._first + first, count)

    def blocks(self, first: int = 0) -> Iterator[np.ndarray]:
        return self._whole.blocks(self._first + first)


def checked_channels(source: RowSource, channels: int) -> None:
    """Raise ShapeError where a network of so many channels cannot read the source's rows."""
    images = source.dtype == np.uint8 and channels in (1, 3) and source.channels in (1, 3, 4)
    if source.channels != channels and not images:
        raise ShapeError(f"{source.name} has {source.channels} channel(s); the network reads {channels}")


def pixel_type(name: str, dtype: np.dtype) -> type[np.uint8] | type[np.float32]:
    """Return the type in which rows of a stored type are given: 16 bits are scaled to 8, as decode() does with gray.

    Raises InputError for types that are neither pixels nor float32.
    """
    if dtype in (np.uint8, np.uint16):
        return np.uint8
    if dtype == np.float32:
        return np.float32
    raise InputError(
        f"{name} has {dtype} values; it must have uint8 or uint16 pixels, or float32 values that are preprocessed"
    )
