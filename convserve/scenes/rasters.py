"""Rows of what GDAL reads, through rasterio: JPEG 2000, ERDAS, VRT and others, one row of blocks at a time."""

import os
import warnings

import numpy as np

from convserve.errors import ImageError
from convserve.images.decode import check_pixels
from convserve.optional import installed, optional
from convserve.scenes.arrays import scaled_pixels, with_alpha, without_data
from convserve.scenes.georeference import GeoReference
from convserve.scenes.source import BLOCK_BYTES, RowSource, pixel_type

__all__ = ["RasterRows"]

_LEAST_CACHE_BYTES = 32 << 20


class RasterRows(RowSource):
    """Bands are channels: red, green and blue, or gray, with their transparency where they are named so, else all.

    A palette becomes RGB, 16-bit pixels are scaled to 8, and what the file says to hold nothing is 0, as in TiffRows.
    GDAL keeps the blocks of two rows, at least 32 MiB.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ImageError where GDAL cannot read it, or has bands that are no image's, InputError."""
        name = f"the image '{os.fspath(path)}'"
        self._rasterio = optional("rasterio", f"{name} is read by GDAL", extra="geo")
        try:
            with warnings.catch_warnings():
                # that it lies nowhere on the ground
                warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
                self._file = self._rasterio.open(os.fspath(path))
        except (self._rasterio.errors.RasterioError, OSError) as error:
            raise ImageError(f"{name} cannot be read: {_line(error)}") from error
        try:
            self._open(name)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str) -> None:
        file = self._file
        if not file.count or 0 in file.shape:
            raise ImageError(f"{name} is no single image: it has {file.count} bands and {len(file.subdatasets)} parts")
        if len(set(file.dtypes)) > 1:
            raise ImageError(f"{name} has bands of several types: {', '.join(file.dtypes)}")
        kind = pixel_type(name, np.dtype(file.dtypes[0]))
        bands = {colour.name: number for number, colour in reversed(list(enumerate(file.colorinterp, 1)))}
        space = file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE", "RGB")
        if {"cyan", "magenta", "yellow", "Y", "hue"} & set(bands) or space not in ("RGB", "YCbCr"):
            raise ImageError(f"{name} has {space} bands: {', '.join(bands)}; allowed: gray, a palette, RGB and others")
        self._bands = list(range(1, file.count + 1))
        self._colours = None
        if "palette" in bands:
            self._bands = [bands["palette"]]
            table = file.colormap(self._bands[0])
            self._colours = np.zeros((max(table) + 1, 3), np.uint8)
            for index, colour in table.items():
                self._colours[index] = colour[:3]
        elif kind == np.uint8 and {"red", "green", "blue"} <= set(bands):
            self._bands = [bands[colour] for colour in ("red", "green", "blue", "alpha") if colour in bands]
        elif kind == np.uint8 and file.count == 2 and "alpha" in bands:
            self._bands = [3 - bands["alpha"], bands["alpha"]]
        self._alpha = kind == np.uint8 and bands.get("alpha") == self._bands[-1] and len(self._bands) in (2, 4)
        channels = 3 if self._colours is not None else 4 if self._alpha else len(self._bands)
        super().__init__(name, file.height, file.width, channels, kind)
        self.georeference = self._ground()
        high = min(max(height for height, _ in file.block_shapes), file.height)
        check_pixels(high, self.width, f"a row of blocks of {name}")
        row_bytes = self.width * sum(np.dtype(dtype).itemsize for dtype in file.dtypes)
        self._together = high * max(1, BLOCK_BYTES // (high * row_bytes))
        self._cache_bytes = max(_LEAST_CACHE_BYTES, 2 * high * row_bytes)
        flags = {flag.name for flag in file.mask_flag_enums[self._bands[0] - 1]}
        self._masked = "per_dataset" in flags and not self._alpha
        self._nothing = None
        if not self._alpha and all(file.nodatavals[band - 1] is not None for band in self._bands):
            self._nothing = np.array([file.nodatavals[band - 1] for band in self._bands])

    @property
    def block_rows(self) -> int:
        return self._together

    def read(self, first: int, count: int) -> np.ndarray:
        window = self._rasterio.windows.Window(0, first, self.width, count)
        try:
            with self._rasterio.Env(GDAL_CACHEMAX=self._cache_bytes):
                stored = self._file.read(self._bands, window=window).transpose(1, 2, 0)
                mask = self._file.read_masks(self._bands[0], window=window) if self._masked else None
        except (self._rasterio.errors.RasterioError, OSError) as error:
            raise ImageError(
                f"{self.name} cannot be read from row {first} of {self.height} on, the rows before are fine:"
                f" {_line(error)}"
            ) from error
        rows = self._colours[stored[:, :, 0]] if self._colours is not None else scaled_pixels(stored)
        if self._alpha:
            return with_alpha(rows)
        if mask is not None:
            rows = np.where(mask[:, :, None], rows, rows.dtype.type(0))
        return np.ascontiguousarray(rows if self._nothing is None else without_data(rows, stored, self._nothing))

    def _ground(self) -> GeoReference | None:
        # as the tags of a TIFF would tell it, which GDAL writes
        file = self._file
        points, system = file.gcps
        told = {"gcps": points, "crs": system} if points else {"transform": file.transform, "crs": file.crs}
        if not installed("tifffile") or (not points and file.transform.is_identity):
            return None
        tifffile = optional("tifffile", self.name)
        with self._rasterio.MemoryFile() as memory:
            with memory.open(driver="GTiff", width=1, height=1, count=1, dtype="uint8", **told):
                pass
            with tifffile.TiffFile(memory) as tiff:
                return GeoReference.from_tags({int(tag.code): tag.value for tag in tiff.pages.first.tags})

    def close(self) -> None:
        self._file.close()


def _line(error: BaseException) -> str:
    # GDAL's own words, where rasterio has them
    return " ".join(str(error.__cause__ or error).split())
