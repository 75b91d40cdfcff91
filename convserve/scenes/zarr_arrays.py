"""Rows of a Zarr array, version 2 or 3, (H, W), (H, W, C) or (C, H, W): one row of its chunks at a time."""

import os
from typing import Any

from convserve.errors import ImageError
from convserve.optional import optional
from convserve.scenes.arrays import ArrayRows

__all__ = ["ZarrRows"]


class ZarrRows(ArrayRows):
    """Rows of an array, or of the only array of a group."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ImageError where there is none, ShapeError, InputError."""
        name = f"the image '{os.fspath(path)}'"
        zarr = optional("zarr", f"{name} is a Zarr array")
        try:
            found: Any = zarr.open(os.fspath(path), mode="r")
            if isinstance(found, zarr.Group):
                arrays = dict(found.arrays())
                if len(arrays) != 1:
                    names = ", ".join(sorted(arrays)) or "none"
                    raise ImageError(f"{name} is a group with these arrays: {names}; give the path of one")
                found = next(iter(arrays.values()))
        except ImageError:
            raise
        # stores and codecs raise whatever they meet
        except Exception as error:
            raise ImageError(f"{name} cannot be read as a Zarr array: {error}") from error
        super().__init__(found, name)
        self._rows_of_chunks = int(found.chunks[1 if self._axis else 0])

    @property
    def block_rows(self) -> int:
        return min(self._rows_of_chunks, self.height)

    def read(self, first: int, count: int) -> Any:
        try:
            return super().read(first, count)
        except Exception as error:
            raise ImageError(f"{self.name} cannot be read from row {first} of {self.height} on: {error}") from error
