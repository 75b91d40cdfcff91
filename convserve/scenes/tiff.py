"""Rows of a TIFF or BigTIFF, tiled or in strips: of its first image, one row of tiles at a time."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import ImageError
from convserve.images.decode import check_pixels
from convserve.scenes.arrays import scaled_pixels
from convserve.scenes.georeference import GeoReference
from convserve.scenes.optional import optional
from convserve.scenes.source import RowSource, pixel_type

__all__ = ["TiffRows"]

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG = (6, 7, 34892, 33007)


class TiffRows(RowSource):
    """Holds one row of tiles, or one strip, at a time; uncompressed strips are read row by row.

    Of RGB and RGBA the channels are kept, of more samples all; palettes become RGB, 16-bit pixels are scaled to 8.
    Tiles that a sparse file leaves out are black.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ImageError where the file is no TIFF, or has a form that cannot be read, InputError."""
        name = f"the image '{os.fspath(path)}'"
        tifffile = optional("tifffile", f"{name} is a TIFF")
        try:
            self._file = Path(path).open("rb")  # noqa: SIM115
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error
        try:
            self._tiff = tifffile.TiffFile(self._file, name=os.fspath(path))
            self._page = page = self._tiff.pages.first
            dtype, tags = page.dtype, {int(tag.code): tag.value for tag in page.tags}
        # tifffile raises whatever its parsers meet
        except Exception as error:
            self._file.close()
            raise ImageError(f"{name} cannot be read: {error}") from error
        try:
            self._open(name, page, dtype)
            self.georeference = GeoReference.from_tags(tags)
            self._try_first_tile()
        except BaseException:
            self.close()
            raise

    def _open(self, name: str, page: Any, dtype: np.dtype | None) -> None:
        photometric, samples = int(page.photometric or 0), int(page.samplesperpixel)
        if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR):
            kind = getattr(page.photometric, "name", photometric)
            raise ImageError(f"{name} has the colours {kind}; allowed: gray, a palette, RGB and YCbCr")
        if photometric == _YCBCR and int(page.compression) not in _JPEG:
            raise ImageError(f"{name} has YCbCr pixels outside JPEG, which convserve does not read")
        if dtype is None or page.imagedepth != 1 or 0 in (page.imagelength, page.imagewidth, samples):
            raise ImageError(f"{name} is no image of rows: {page.bitspersample} bits, shape {page.shape}")
        self._bits = dtype == np.bool_
        kind = np.uint8 if self._bits else pixel_type(name, dtype)
        self._inverted = photometric == _WHITE_IS_ZERO
        self._colours = None
        self._kept = samples
        if photometric == _PALETTE:
            self._colours = (np.asarray(page.colormap, np.uint16).T >> 8).astype(np.uint8)
            self._kept = 1
        elif kind == np.uint8 and photometric in (_RGB, _YCBCR):
            # what lies behind red, green and blue counts where it is said to be transparency
            alpha = samples == 4 and int((page.extrasamples or (0,))[0]) in (1, 2)
            self._kept = 4 if alpha else 3
        elif kind == np.uint8 and samples == 2:
            self._kept = 1
        channels = 3 if self._colours is not None else self._kept
        super().__init__(name, page.imagelength, page.imagewidth, channels, kind)
        self._stored, self._planes = dtype.newbyteorder(self._tiff.byteorder), samples if page.planarconfig == 2 else 1
        self._samples = samples // self._planes
        self._high = min(int(page.tilelength if page.is_tiled else page.rowsperstrip), self.height)
        self._wide = int(page.tilewidth) if page.is_tiled else self.width
        self._across, self._down = -(-self.width // self._wide), -(-self.height // self._high)
        self._plain = not page.is_tiled and page.compression == 1 and page.fillorder == 1 and not self._bits
        if not self._plain:
            check_pixels(self._high, self.width, f"a row of tiles of {name}")
        wanted = self._across * self._down * self._planes
        if len(page.dataoffsets) < wanted or len(page.databytecounts) < wanted:
            raise ImageError(f"{name} lists {len(page.dataoffsets)} tiles or strips; its size takes {wanted}")

    def _try_first_tile(self) -> None:
        # so that a compression that is not there is found out before anything is computed
        if self._plain:
            return
        compression = getattr(self._page.compression, "name", self._page.compression)
        try:
            self._page.decode(None, 0)
        except Exception as error:
            raise ImageError(f"{self.name} is compressed by {compression}, which cannot be read: {error}") from error
        if int(self._page.compression) != 1:
            tifffile = optional("tifffile", self.name)
            try:
                tifffile.TIFF.DECOMPRESSORS[self._page.compression]
            except KeyError:
                raise ImageError(
                    f"{self.name} is compressed by {compression}; reading it takes the package imagecodecs"
                ) from None

    @property
    def block_rows(self) -> int:
        return super().block_rows if self._plain else self._high

    def read(self, first: int, count: int) -> np.ndarray:
        try:
            stored = self._plain_rows(first, count) if self._plain else self._tile_row(first, count)
        except ImageError:
            raise
        # decoders raise whatever they meet
        except Exception as error:
            raise self._broken(first, error) from error
        return self._pixels(stored[:, :, : self._kept])

    def _broken(self, row: int, reason: object) -> ImageError:
        at = row // self._high * self._high if not self._plain else row
        return ImageError(
            f"{self.name} cannot be read from row {at} of {self.height} on, the rows before are fine: {reason}"
        )

    def _bytes(self, offset: int, count: int, row: int) -> bytes:
        found = os.pread(self._file.fileno(), count, offset)
        if len(found) < count:
            raise self._broken(row, "the file is cut short")
        return found

    def _plain_rows(self, first: int, count: int) -> np.ndarray:
        row_bytes = self.width * self._samples * self._stored.itemsize
        rows = np.zeros((count, self.width, self._samples * self._planes), self._stored)
        for plane in range(self._planes):
            row = first
            while row < first + count:
                strip, within = divmod(row, self._high)
                here = min(self._high - within, first + count - row)
                offset = self._page.dataoffsets[plane * self._down + strip]
                if offset:
                    data = self._bytes(offset + within * row_bytes, here * row_bytes, row)
                    part = np.frombuffer(data, self._stored).reshape(here, self.width, self._samples)
                    samples = slice(plane * self._samples, (plane + 1) * self._samples)
                    rows[row - first : row - first + here, :, samples] = part
                row += here
        return rows

    def _tile_row(self, first: int, count: int) -> np.ndarray:
        page, down = self._page, first // self._high
        top = first - down * self._high
        rows = np.zeros((count, self.width, self._samples * self._planes), np.bool_ if self._bits else self._stored)
        tables = page.jpegtables
        for plane in range(self._planes):
            for across in range(self._across):
                index = (plane * self._down + down) * self._across + across
                offset, size = page.dataoffsets[index], page.databytecounts[index]
                if not size or not offset:
                    continue
                data = self._bytes(offset, size, first)
                tile = page.decode(data, index, jpegtables=tables, jpegheader=page.jpegheader)[0][0]
                left = across * self._wide
                part = tile[top : top + count, : self.width - left]
                if len(part) < count:
                    raise self._broken(first, "a tile is too small")
                samples = slice(plane * self._samples, plane * self._samples + part.shape[2])
                rows[:, left : left + part.shape[1], samples] = part
        return rows

    def _pixels(self, stored: np.ndarray) -> np.ndarray:
        if self._bits:
            stored = stored.astype(np.uint8) * np.uint8(255)
        if self._colours is not None:
            return self._colours[stored[:, :, 0]]
        rows = scaled_pixels(stored)
        return ~rows if self._inverted and rows.dtype == np.uint8 else rows

    def close(self) -> None:
        self._tiff.close()
        self._file.close()
