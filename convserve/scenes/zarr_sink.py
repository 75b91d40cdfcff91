"""A map as a Zarr group of one array for each that is kept, chunked by score rows."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from convserve.errors import InputError
from convserve.optional import optional
from convserve.reduction import ArraySpec
from convserve.scenes.georeference import GeoReference
from convserve.scenes.record import Record
from convserve.scenes.sinks import Sink

__all__ = ["ZarrSink"]

_CHUNK_BYTES = 1 << 20
_MARK = "convserve"


class ZarrSink(Sink):
    """Rows wait until those of a chunk are there; the group's attribute "convserve" tells geometry and labels."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zarr = optional("zarr", f"{str(path)!r} is to be a Zarr group")
        self._arrays: dict[str, Any] = {}
        self._waiting: list[dict[str, np.ndarray]] = []
        self._chunk = self._first = self._next = 0

    def files(self, specs: list[ArraySpec]) -> dict[str, Path]:
        return {name: self.path / name for name, _, _ in specs}

    def create(self, record: Record, georeference: GeoReference | None) -> None:
        if self.path.exists():
            self._remove_old()
        told: dict[str, Any] = record.to_dict()
        if georeference is not None:
            told |= georeference.to_dict()
        group = self._zarr.create_group(str(self.path), attributes={_MARK: told})
        place = record.geometry
        specs = record.reduction.arrays(len(place.classes))
        largest = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for _, dtype, shape in specs)
        rows = max(1, min(place.rows, _CHUNK_BYTES // max(1, largest * place.cols)))
        for name, dtype, shape in specs:
            group.create_array(
                name,
                shape=(place.rows, place.cols, *shape),
                dtype=dtype,
                chunks=(rows, place.cols, *shape),
                dimension_names=["row", "col", "class"][: 2 + len(shape)],
            )

    def _remove_old(self) -> None:
        # only what is a map of ours is replaced, and an empty folder
        try:
            ours = _MARK in self._zarr.open_group(str(self.path), mode="r").attrs
        except (FileNotFoundError, ValueError, KeyError):
            ours = self.path.is_dir() and not any(self.path.iterdir())
        if not ours:
            raise InputError(f"{str(self.path)!r} is there already, and no score map; give another output")
        shutil.rmtree(self.path)

    def open(self, record: Record) -> None:
        group = self._zarr.open_group(str(self.path), mode="r+")
        place = record.geometry
        for name, dtype, shape in record.reduction.arrays(len(place.classes)):
            array = group[name]
            if array.shape != (place.rows, place.cols, *shape) or array.dtype != dtype:
                raise ValueError(f"its array {name} has {array.dtype} values of shape {array.shape}")
            self._arrays[name] = array
            self._chunk = int(array.chunks[0])
        self._first = self._next = record.rows_done

    def write(self, first: int, arrays: dict[str, np.ndarray]) -> int:
        self._waiting.append(arrays)
        self._next = first + len(next(iter(arrays.values())))
        if self._next // self._chunk > self._first // self._chunk or self._next == self._rows:
            self.flush()
        return self._first

    @property
    def _rows(self) -> int:
        return int(next(iter(self._arrays.values())).shape[0])

    def flush(self) -> None:
        if not self._waiting:
            return
        for name, array in self._arrays.items():
            array[self._first : self._next] = np.concatenate([rows[name] for rows in self._waiting])
        self._first = self._next
        self._waiting.clear()

    def close(self) -> None:
        self._waiting.clear()
        self._arrays = {}
