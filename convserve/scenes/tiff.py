"""Rows of a TIFF or BigTIFF as pixels: of its first image, one row of tiles at a time."""

import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import ImageError
from convserve.optional import optional
from convserve.scenes.arrays import pixels_of, scaled_pixels, with_alpha, without_data
from convserve.scenes.georeference import GeoReference
from convserve.scenes.source import RowSource, pixel_type
from convserve.scenes.tiff_page import PageRows

__all__ = ["TiffRows"]

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG = (6, 7, 34892, 33007)
_ORIENTATION, _NO_DATA = 274, 42113
_REDUCED, _MASK = 1, 4
_MULTIPLIED, _TRANSPARENCY = 1, 2


class TiffRows(RowSource):
    """Holds one row of tiles, or one strip, at a time; uncompressed strips are read row by row.

    Of RGB and RGBA the channels are kept, gray with transparency is RGBA, of more samples all are kept; palettes
    and CMYK become RGB, 16-bit pixels are scaled to 8. Tiles that a sparse file leaves out, and pixels that its
    mask or its value for no data says to hold nothing, are 0. turned: whether the file says that its first row and
    column are not the image's, which rows cannot follow.
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
            page = self._tiff.pages.first
            tags = {int(tag.code): tag.value for tag in page.tags}
            mask = self._mask_of(page)
        # tifffile raises whatever its parsers meet
        except Exception as error:
            self._file.close()
            raise ImageError(f"{name} cannot be read: {error}") from error
        try:
            self._page = PageRows(name, self._file, self._tiff, page)
            self._open(name, page)
            self._mask = None if mask is None or self._alpha else PageRows(name, self._file, self._tiff, mask)
        except BaseException:
            self.close()
            raise
        self._nothing = None if self._alpha else _number(tags.get(_NO_DATA))
        self.turned = tags.get(_ORIENTATION, 1) != 1
        self.georeference = GeoReference.from_tags(tags)

    def _mask_of(self, first: Any) -> Any:
        # it follows its image, among smaller forms of both; of what follows, much may be cut off
        with suppress(Exception):
            for number in count(1):
                page = self._tiff.pages[number]
                kind = int(page.subfiletype)
                if not kind & (_REDUCED | _MASK):
                    break
                if kind == _MASK and (page.imagelength, page.imagewidth) == (first.imagelength, first.imagewidth):
                    return page
        return None

    def _open(self, name: str, page: Any) -> None:
        photometric, samples, dtype = int(page.photometric or 0), self._page.samples, self._page.dtype
        known = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR)
        cmyk = photometric == _CMYK and samples == 4 and dtype == np.uint8
        if photometric not in known and not cmyk:
            kind = getattr(page.photometric, "name", photometric)
            raise ImageError(f"{name} has the colours {kind}; allowed: gray, a palette, RGB, YCbCr and CMYK of 8 bits")
        if photometric == _YCBCR and int(page.compression) not in _JPEG:
            raise ImageError(f"{name} has YCbCr pixels outside JPEG, which convserve does not read")
        kind = np.uint8 if dtype == np.bool_ else pixel_type(name, dtype)
        self._inverted, self._cmyk = photometric == _WHITE_IS_ZERO, cmyk
        self._colours = None
        self._alpha = self._multiplied = False
        self._kept = samples
        if photometric == _PALETTE:
            self._colours = (np.asarray(page.colormap, np.uint16).T >> 8).astype(np.uint8)
            self._kept = 1
        elif kind == np.uint8 and (photometric in (_RGB, _YCBCR) or samples == 2):
            # what lies behind red, green and blue, or gray, counts where it is said to be transparency
            colours = 1 if samples == 2 else 3
            extra = int((page.extrasamples or (0,))[0]) if samples == colours + 1 else 0
            self._alpha = extra in (_MULTIPLIED, _TRANSPARENCY)
            self._multiplied = extra == _MULTIPLIED
            self._kept = colours + self._alpha
        channels = 3 if self._colours is not None or cmyk else 4 if self._alpha else self._kept
        super().__init__(name, self._page.height, self._page.width, channels, kind)

    @property
    def block_rows(self) -> int:
        return self._page.high or super().block_rows

    def read(self, first: int, count: int) -> np.ndarray:
        stored = self._page.rows(first, count)[:, :, : self._kept]
        rows = self._pixels(stored)
        if self._mask is not None:
            rows = np.where(self._mask.rows(first, count)[:, :, :1], rows, rows.dtype.type(0))
        return rows if self._nothing is None else without_data(rows, stored, self._nothing)

    def _pixels(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype == np.bool_:
            stored = stored.astype(np.uint8) * np.uint8(255)
        if self._colours is not None:
            return self._colours[stored[:, :, 0]]
        if self._cmyk:
            return pixels_of(stored, "CMYK", "RGB")
        rows = scaled_pixels(stored)
        if self._inverted and rows.dtype == np.uint8:
            rows = np.concatenate([~rows[:, :, :1], rows[:, :, 1:]], axis=2) if self._alpha else ~rows
        if not self._alpha:
            return rows
        rows = with_alpha(rows)
        return pixels_of(rows, "RGBa", "RGBA") if self._multiplied else rows

    def close(self) -> None:
        self._tiff.close()
        self._file.close()


def _number(text: Any) -> float | None:
    # as GDAL writes it: "0", "-9999", "nan"
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None
