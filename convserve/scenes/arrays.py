"""Rows of arrays, of .npy files that are mapped, and of pictures whose format is decoded as a whole."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import ImageError, ShapeError
from convserve.scenes.source import RowSource, pixel_type

__all__ = ["ArrayRows", "DecodedRows", "MappedRows", "pixels_of", "scaled_pixels", "with_alpha", "without_data"]

_MOST_CHANNELS = 1 << 10


class ArrayRows(RowSource):
    """Rows of an array (H, W) or (H, W, C), of (C, H, W) where the last axis is longer, or of float32 (1, C, H, W).

    16-bit pixels are scaled to 8 as they are read; a memmap is read where its rows lie.
    """

    def __init__(self, array: Any, name: str = "the image array") -> None:
        """array: anything with shape, dtype and slices. Raises ShapeError, InputError."""
        kind = pixel_type(name, np.dtype(array.dtype))
        self._axis = 0
        shape = tuple(array.shape)
        if len(shape) == 4 and shape[0] == 1 and kind == np.float32:
            array, shape, self._axis = array[0], shape[1:], 1
        elif len(shape) == 3 and shape[2] > 4 and shape[0] <= 4:
            self._axis = 1
        if self._axis:
            shape = (*shape[1:], shape[0])
        if len(shape) == 2:
            shape = (*shape, 1)
        if len(shape) != 3 or 0 in shape or shape[2] > _MOST_CHANNELS:
            raise ShapeError(f"{name} has shape {tuple(array.shape)}; it must be (H, W), (H, W, C) or (C, H, W)")
        super().__init__(name, *shape, kind)
        self._array = array

    def read(self, first: int, count: int) -> np.ndarray:
        part = self._array[:, first : first + count] if self._axis else self._array[first : first + count]
        rows = np.asarray(part)
        if self._axis:
            rows = rows.transpose(1, 2, 0)
        return scaled_pixels(rows.reshape(count, self.width, self.channels))

    def close(self) -> None:
        self._array = None


class MappedRows(ArrayRows):
    """Rows of a .npy file, whose pages the system takes back as it needs them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ImageError where the file cannot be read, ShapeError, InputError."""
        name = f"the image '{os.fspath(path)}'"
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ImageError(f"{name} cannot be read: {reason}") from error
        super().__init__(array, name)


class DecodedRows(ArrayRows):
    """Rows of a picture that Pillow reads, JPEG or PNG for one: decoded as a whole, and held."""

    def __init__(self, picture: Any) -> None:
        """picture: as decode() takes it. Raises ImageError, InputError."""
        from convserve.images.decode import decode

        named = isinstance(picture, (str, os.PathLike))
        super().__init__(decode(picture), f"the image '{Path(picture)}'" if named else "the image")
        self.held_bytes = self.height * self.width * self.channels


def scaled_pixels(rows: np.ndarray) -> np.ndarray:
    """Return rows whose 16-bit pixels are scaled to 8 bits; others as they are, in the machine's byte order."""
    if rows.dtype == np.uint16:
        return ((rows.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("="))


def without_data(rows: np.ndarray, stored: np.ndarray, nothing: Any) -> np.ndarray:
    """Return rows (k, width, channels) with 0 where every stored sample has the value that stands for no data.

    stored: (k, width, samples); nothing: a number, NaN perhaps, or one for each sample.
    """
    gone = stored == nothing
    if np.isnan(nothing).any():
        gone |= np.isnan(stored) & np.isnan(nothing)
    found: np.ndarray = np.where(gone.all(axis=2, keepdims=True), rows.dtype.type(0), rows)
    return found


def with_alpha(rows: np.ndarray) -> np.ndarray:
    """Return rows (k, width, 4) of red, green, blue and transparency as they are, of gray and transparency as such."""
    return rows if rows.shape[2] == 4 else np.ascontiguousarray(rows[:, :, [0, 0, 0, 1]])


def pixels_of(stored: np.ndarray, mode: str, wanted: str) -> np.ndarray:
    """Return pixels of one of Pillow's modes in another."""
    from PIL import Image

    height, width = stored.shape[:2]
    return np.asarray(Image.frombytes(mode, (width, height), stored.tobytes()).convert(wanted))
