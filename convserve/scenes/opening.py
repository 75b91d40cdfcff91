"""Which kind of source an image is: by its type, and by a path's ending."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convserve.scenes.arrays import ArrayRows, DecodedRows, MappedRows
from convserve.scenes.source import RowSource

__all__ = ["is_scene", "open_scene", "scene_rows"]

_TIFF = (".tif", ".tiff", ".btf", ".tf8")
_ARRAYS = (".npy", ".zarr")


def is_scene(image: Any, *, tiff: bool = False) -> bool:
    """Return whether an image is a source, or the path of one that only open_scene reads: .npy, .zarr.

    tiff: or of a TIFF, which Pillow reads as well, but not by rows.
    """
    if isinstance(image, RowSource):
        return True
    return isinstance(image, (str, os.PathLike)) and _ending(image) in (*_ARRAYS, *(_TIFF if tiff else ()))


def open_scene(image: Any) -> RowSource:
    """Return the rows of an image; of a source that is one already, itself.

    image: an array (H, W), (H, W, C) or (C, H, W), or float32 (1, C, H, W); a path that ends in .npy, .zarr (an array,
    or a group with one), .tif or .tiff, all of which are read by rows; or any other picture that Pillow reads, which is
    decoded and held. uint8 and uint16 are pixels, the latter scaled to 8 bits; float32 is taken as preprocessed
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
        from convserve.scenes.tiff import TiffRows

        return TiffRows(image)
    return DecodedRows(image)


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
