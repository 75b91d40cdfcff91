"""Which kind of source an image is: by its type, and by a path's ending."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import ImageError
from convserve.optional import installed
from convserve.scenes.arrays import ArrayRows, DecodedRows, MappedRows
from convserve.scenes.source import RowSource

__all__ = ["is_scene", "open_scene", "scene_rows"]

_TIFF = (".tif", ".tiff", ".btf", ".tf8")
_ARRAYS = (".npy", ".zarr")
_RASTERS = (".vrt", ".img", ".bil", ".ers", ".asc", ".ntf", ".mrf")
# which Pillow decodes as well
_JPEG_2000 = (".jp2", ".j2k")


def is_scene(image: Any) -> bool:
    """Return whether an image is a source, or a path that open_scene reads by rows: .npy, .zarr, .vrt, ...

    .tif is one where the packages are there that read it so; else Pillow reads it as any picture.
    """
    if isinstance(image, RowSource):
        return True
    if not isinstance(image, (str, os.PathLike)):
        return False
    ending = _ending(image)
    return ending in (*_ARRAYS, *_RASTERS) or (ending in _TIFF and (installed("tifffile") or installed("rasterio")))


def open_scene(image: Any) -> RowSource:
    """Return the rows of an image; of a source that is one already, itself.

    image: an array (H, W), (H, W, C) or (C, H, W), or float32 (1, C, H, W); a path that ends in .npy, .zarr (an array,
    or a group with one), .tif or .tiff, or in .vrt, .jp2, .img or others that rasterio reads, all of which are read by
    rows; or any other picture that Pillow reads, which is decoded and held. uint8 and uint16 are pixels, the latter
    scaled to 8 bits; float32 is taken as preprocessed
    already. Raises ImageError, ShapeError, InputError.
    """
    if isinstance(image, RowSource):
        return image
    if isinstance(image, np.ndarray):
        return ArrayRows(image)
    ending = _ending(image) if isinstance(image, (str, os.PathLike)) else ""
    if ending == ".npy":
        return MappedRows(image)
    if ending == ".zarr":
        from convserve.scenes.zarr_arrays import ZarrRows

        return ZarrRows(image)
    if ending in _TIFF:
        return _tiff_rows(image)
    if ending in _RASTERS or (ending in _JPEG_2000 and installed("rasterio")):
        from convserve.scenes.rasters import RasterRows

        return RasterRows(image)
    return DecodedRows(image)


def _tiff_rows(path: str | os.PathLike[str]) -> RowSource:
    # by tifffile; what it cannot read by rasterio, or as any picture
    from convserve.scenes.rasters import RasterRows
    from convserve.scenes.tiff import TiffRows

    readers: list[Callable[[str | os.PathLike[str]], RowSource]] = [TiffRows, RasterRows, DecodedRows]
    if not installed("rasterio"):
        readers.remove(RasterRows)
    elif not installed("tifffile"):
        readers.remove(TiffRows)
    refused = None
    for reader in readers:
        try:
            rows = reader(path)
        except ImageError as error:
            refused = refused or error
            continue
        if not isinstance(rows, TiffRows) or not rows.turned:
            return rows
        rows.close()
        return DecodedRows(path)
    assert refused is not None
    raise refused


@contextmanager
def scene_rows(image: Any) -> Iterator[RowSource]:
    """Give the rows of an image, and close them at the end unless the caller had opened them."""
    source = open_scene(image)
    try:
        yield source
    finally:
        if source is not image:
            source.close()


def _ending(path: str | os.PathLike[str]) -> str:
    # an array within a group lies below a folder that ends in .zarr
    parts = Path(os.fspath(path)).parts
    return ".zarr" if any(part.lower().endswith(".zarr") for part in parts) else Path(path).suffix.lower()
