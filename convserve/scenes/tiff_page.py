"""The stored samples of one image of a TIFF, by rows: of tiles, of strips, or as they lie where they are plain."""

import os
from typing import Any, BinaryIO

import numpy as np

from convserve.errors import ImageError
from convserve.images.decode import check_pixels
from convserve.optional import optional

__all__ = ["PageRows"]


class PageRows:
    """Decodes one row of tiles, or one strip, at a time; uncompressed strips are read row by row.

    high: rows that are decoded together, 0 where each stands alone. Tiles that a sparse file leaves out are zeros.
    """

    def __init__(self, name: str, file: BinaryIO, tiff: Any, page: Any) -> None:
        """name: of the image, for messages; tiff, page: tifffile's. Raises ImageError where it cannot be read."""
        self._name, self._file, self._page = name, file, page
        dtype, samples = page.dtype, int(page.samplesperpixel)
        if dtype is None or page.imagedepth != 1 or 0 in (page.imagelength, page.imagewidth, samples):
            raise ImageError(f"{name} is no image of rows: {page.bitspersample} bits, shape {page.shape}")
        self.height, self.width, self.samples = int(page.imagelength), int(page.imagewidth), samples
        self.dtype = dtype
        self._stored = dtype.newbyteorder(tiff.byteorder)
        self._planes = samples if page.planarconfig == 2 else 1
        self._each = samples // self._planes
        self._strip = min(int(page.tilelength if page.is_tiled else page.rowsperstrip), self.height)
        self._wide = int(page.tilewidth) if page.is_tiled else self.width
        self._across, self._down = -(-self.width // self._wide), -(-self.height // self._strip)
        plain = not page.is_tiled and page.compression == 1 and page.fillorder == 1 and dtype != np.bool_
        self.high = 0 if plain else self._strip
        wanted = self._across * self._down * self._planes
        if len(page.dataoffsets) < wanted or len(page.databytecounts) < wanted:
            raise ImageError(f"{name} lists {len(page.dataoffsets)} tiles or strips; its size takes {wanted}")
        if not plain:
            check_pixels(self._strip, self.width, f"a row of tiles of {name}")
            self._try_first_tile()

    def _try_first_tile(self) -> None:
        # so that a compression that is not there is found out before anything is computed
        compression = getattr(self._page.compression, "name", self._page.compression)
        try:
            optional("tifffile", self._name).TIFF.DECOMPRESSORS[self._page.compression]
        except KeyError:
            raise ImageError(
                f"{self._name} is compressed by {compression}; reading it takes the package imagecodecs"
            ) from None
        try:
            self._tile_row(0, 1)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{self._name} is compressed by {compression}, which cannot be read: {error}") from error

    def rows(self, first: int, count: int) -> np.ndarray:
        """Return rows first to first + count as they are stored, (count, width, samples). Raises ImageError."""
        try:
            if not self.high:
                return self._plain_rows(first, count)
            parts, end = [], first + count
            while first < end:
                here = min((first // self.high + 1) * self.high, end) - first
                parts.append(self._tile_row(first, here))
                first += here
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        except ImageError:
            raise
        # decoders raise whatever they meet
        except Exception as error:
            raise self._broken(first, error) from error

    def _broken(self, row: int, reason: object) -> ImageError:
        at = row // self.high * self.high if self.high else row
        return ImageError(
            f"{self._name} cannot be read from row {at} of {self.height} on, the rows before are fine: {reason}"
        )

    def _bytes(self, offset: int, count: int, row: int) -> bytes:
        found = os.pread(self._file.fileno(), count, offset)
        if len(found) < count:
            raise self._broken(row, "the file is cut short")
        return found

    def _plain_rows(self, first: int, count: int) -> np.ndarray:
        row_bytes = self.width * self._each * self._stored.itemsize
        rows = np.zeros((count, self.width, self.samples), self._stored)
        for plane in range(self._planes):
            row = first
            while row < first + count:
                strip, within = divmod(row, self._strip)
                here = min(self._strip - within, first + count - row)
                offset = self._page.dataoffsets[plane * self._down + strip]
                if offset:
                    data = self._bytes(offset + within * row_bytes, here * row_bytes, row)
                    part = np.frombuffer(data, self._stored).reshape(here, self.width, self._each)
                    samples = slice(plane * self._each, (plane + 1) * self._each)
                    rows[row - first : row - first + here, :, samples] = part
                row += here
        return rows

    def _tile_row(self, first: int, count: int) -> np.ndarray:
        page, down = self._page, first // self.high
        top = first - down * self.high
        rows = np.zeros((count, self.width, self.samples), np.bool_ if self.dtype == np.bool_ else self._stored)
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
                samples = slice(plane * self._each, plane * self._each + part.shape[2])
                rows[:, left : left + part.shape[1], samples] = part
        return rows
