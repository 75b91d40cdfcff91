"""Arrays on disk whose rows are written one after another, readable at any time: .npy, and tiled TIFF."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import numpy as np

from convserve.optional import optional
from convserve.scenes.georeference import GeoReference

__all__ = ["ArrayFile", "NpyFile", "TiffFile"]

_TILE_BYTES = 1 << 20
_LARGEST_TILE = 256
_CLASSIC_BYTES = 1 << 31


class ArrayFile(ABC):
    """A file of an array (rows, cols, *position) that has its full size from the beginning, zeros where nothing is."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._file = -1

    @abstractmethod
    def create(self, georeference: GeoReference | None) -> None:
        """Write the empty file; georeference: where the array's positions lie, for formats that can say so."""

    @abstractmethod
    def open(self) -> None:
        """Open the file that was created. Raises ValueError where it is not as it was made."""

    @abstractmethod
    def write(self, first: int, rows: np.ndarray) -> None:
        """Write rows (k, cols, *position) from row `first` on."""

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write_at(self, offset: int, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values).data.cast("B")
        while data:
            done = os.pwrite(self._file, data, offset)
            data, offset = data[done:], offset + done


class NpyFile(ArrayFile):
    """A .npy file, of one type in the machine's byte order."""

    def create(self, georeference: GeoReference | None) -> None:
        # written by calls, not through the map: a full disk is then an error, and no signal
        np.lib.format.open_memmap(self.path, mode="w+", dtype=self.dtype, shape=self.shape)

    def open(self) -> None:
        found = np.lib.format.open_memmap(self.path, mode="r")
        if (found.shape, found.dtype) != (self.shape, self.dtype) or not found.flags.c_contiguous:
            raise ValueError(f"it has {found.dtype} values of shape {found.shape}, not {self.dtype} {self.shape}")
        self._begin = int(found.offset)
        self._file = os.open(self.path, os.O_WRONLY)

    def write(self, first: int, rows: np.ndarray) -> None:
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        self._write_at(self._begin + first * row_bytes, rows)


class TiffFile(ArrayFile):
    """A tiled, uncompressed TIFF (BigTIFF from 2 GiB on); a position's values are its samples."""

    def create(self, georeference: GeoReference | None) -> None:
        tifffile = optional("tifffile", f"{str(self.path)!r} is to be a TIFF")
        samples = int(np.prod(self.shape[2:], dtype=np.int64))
        side = _LARGEST_TILE
        while side > 16 and side * side * samples * self.dtype.itemsize > _TILE_BYTES:
            side //= 2
        size_bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        with tifffile.TiffWriter(self.path, bigtiff=size_bytes >= _CLASSIC_BYTES) as writer:
            writer.write(
                shape=(*self.shape[:2], samples) if samples > 1 else self.shape[:2],
                dtype=self.dtype,
                tile=tuple(min(side, -(-size // 16) * 16) for size in self.shape[:2]),
                photometric="minisblack",
                planarconfig="contig" if samples > 1 else None,
                metadata=None,
                extratags=[] if georeference is None else georeference.tags(),
            )

    def open(self) -> None:
        tifffile = optional("tifffile", f"{str(self.path)!r} is a TIFF")
        try:
            with tifffile.TiffFile(self.path) as tiff:
                page = tiff.pages.first
                samples = int(np.prod(self.shape[2:], dtype=np.int64))
                found = (page.imagelength, page.imagewidth, page.samplesperpixel)
                if found != (*self.shape[:2], samples) or page.dtype != self.dtype or page.compression != 1:
                    raise ValueError(f"it has {page.dtype} values of shape {found}, not {self.dtype} {self.shape}")
                self._offsets = [int(offset) for offset in page.dataoffsets]
                self._tile = int(page.tilelength), int(page.tilewidth)
                order = tiff.byteorder
        except tifffile.TiffFileError as error:
            raise ValueError(str(error)) from error
        self._stored = self.dtype.newbyteorder(order)
        self._file = os.open(self.path, os.O_WRONLY)

    def write(self, first: int, rows: np.ndarray) -> None:
        high, wide = self._tile
        across = -(-self.shape[1] // wide)
        position = int(np.prod(self.shape[2:], dtype=np.int64)) * self.dtype.itemsize
        values = rows.astype(self._stored, copy=False)
        for number in range(len(rows)):
            down, within = divmod(first + number, high)
            for tile in range(across):
                offset = self._offsets[down * across + tile] + within * wide * position
                self._write_at(offset, values[number, tile * wide : (tile + 1) * wide])
