"""Arrays of a map on disk, read where they are sliced and not before."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from convserve.optional import optional

__all__ = ["lazy_array"]

_LOCAL_HEADER = 30


class _OneValue:
    """An array (rows, cols, 1) of which the file knows rows and columns alone."""

    def __init__(self, plane: Any) -> None:
        self.shape, self.dtype, self.ndim = (*plane.shape, 1), plane.dtype, 3
        self._plane = plane

    def __getitem__(self, key: Any) -> np.ndarray:
        keys = key if isinstance(key, tuple) else (key,)
        values: np.ndarray = np.asarray(self._plane[keys[:2]])[..., None][(..., *keys[2:])]
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype)


def lazy_array(path: Path, name: str, axes: int) -> Any:
    """Return the array of that name in a map's file: a memmap, or for Zarr and TIFF what their libraries give.

    axes: 3, or 2 where a position has a single number.
    """
    ending = path.suffix.lower()
    if ending == ".npy":
        return np.lib.format.open_memmap(path, mode="r")
    if ending == ".npz":
        return _stored_array(path, f"{name}.npy")
    zarr = optional("zarr", f"{str(path)!r} is read by parts")
    if ending in (".tif", ".tiff"):
        tifffile = optional("tifffile", f"{str(path)!r} is a TIFF")
        found = zarr.open(tifffile.imread(path, aszarr=True), mode="r")
        return found if found.ndim == axes else _OneValue(found)
    return zarr.open_array(str(path), mode="r")


def _stored_array(path: Path, entry: str) -> np.memmap:
    # what lies in an archive as it is can be mapped
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        file.seek(archive.getinfo(entry).header_offset)
        names = struct.unpack("<HH", file.read(_LOCAL_HEADER)[-4:])
        file.seek(sum(names), 1)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape)
