"""Where a map is written, chosen by the ending of its path: .npy, .npz, .zarr, .tif. Rows are written as they come."""

import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TypeGuard

import numpy as np

from convserve.errors import InputError
from convserve.reduction import ArraySpec
from convserve.results import Geometry
from convserve.scenes.array_files import ArrayFile, NpyFile, TiffFile
from convserve.scenes.georeference import GeoReference
from convserve.scenes.record import Record, RecordFile

__all__ = ["ENDINGS", "FileSink", "NpzSink", "Sink", "is_output", "open_sink"]

ENDINGS = (".npy", ".npz", ".zarr", ".tif", ".tiff")

_COPIED_AT_ONCE = 1 << 20


class Sink(ABC):
    """Takes the rows of named arrays in their order. Methods raise OSError and ValueError as the format's library does.

    record: the file that says how far it is; written by whoever writes rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = RecordFile(path)

    @abstractmethod
    def create(self, record: Record, georeference: GeoReference | None) -> None:
        """Make what rows are written to; georeference: where the map's positions lie."""

    @abstractmethod
    def open(self, record: Record) -> None:
        """Open what was created, to go on with it."""

    @abstractmethod
    def write(self, first: int, arrays: dict[str, np.ndarray]) -> int:
        """Write the next rows, by name (k, cols, *position), of which the first is row `first`.

        Return how many rows are stored by now: some may wait for the rest of their chunk, until flush().
        """

    def flush(self) -> None:
        """Store the rows that wait; none do unless a format says so."""
        return

    def finish(self, record: Record) -> None:
        """End a map whose rows are all written; most formats have no end."""
        return

    def close(self) -> None:
        """Close files, if any are open; closing twice does nothing."""
        return

    @abstractmethod
    def files(self, specs: list[ArraySpec]) -> dict[str, Path]:
        """Return where each array lies."""


class FileSink(Sink):
    """A file for each array: the first has the sink's path, another, "indices" for one, STEM.indices.ENDING."""

    def __init__(self, path: Path, kind: type[ArrayFile]) -> None:
        super().__init__(path)
        self._kind = kind
        self._arrays: dict[str, ArrayFile] = {}

    def _parts(self, specs: list[ArraySpec]) -> dict[str, Path]:
        # what is written to while rows come
        return self.files(specs)

    def files(self, specs: list[ArraySpec]) -> dict[str, Path]:
        names = [name for name, _, _ in specs]
        beside = {name: self.path.with_suffix(f".{name}{self.path.suffix}") for name in names[1:]}
        return {names[0]: self.path, **beside}

    def _array_files(self, record: Record) -> dict[str, ArrayFile]:
        place, specs = record.geometry, record.reduction.arrays(len(record.geometry.classes))
        paths = self._parts(specs)
        return {name: self._kind(paths[name], (place.rows, place.cols, *shape), dtype) for name, dtype, shape in specs}

    def create(self, record: Record, georeference: GeoReference | None) -> None:
        for array in self._array_files(record).values():
            array.create(georeference)

    def open(self, record: Record) -> None:
        self._arrays = self._array_files(record)
        for array in self._arrays.values():
            array.open()

    def write(self, first: int, arrays: dict[str, np.ndarray]) -> int:
        for name, rows in arrays.items():
            self._arrays[name].write(first, rows)
            stored = first + len(rows)
        return stored

    def close(self) -> None:
        for array in self._arrays.values():
            array.close()


class NpzSink(FileSink):
    """An .npz file, packed when all rows are there: until then each array is a .npy file beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, NpyFile)

    def files(self, specs: list[ArraySpec]) -> dict[str, Path]:
        return {name: self.path for name, _, _ in specs}

    def _parts(self, specs: list[ArraySpec]) -> dict[str, Path]:
        return {name: self.path.with_suffix(f".{name}.part.npy") for name, _, _ in specs}

    def finish(self, record: Record) -> None:
        self.close()
        place = record.geometry
        parts = self._parts(record.reduction.arrays(len(place.classes)))
        packed = self.path.with_suffix(".part.npz")
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, path in parts.items():
                with path.open("rb") as part, archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    shutil.copyfileobj(part, entry, _COPIED_AT_ONCE)
            for name, value in _facts(place).items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, value, allow_pickle=False)
        packed.replace(self.path)
        for path in parts.values():
            path.unlink()
        self.record.remove()


def _facts(place: Geometry) -> dict[str, np.ndarray]:
    # as convserve score-map has always named them
    return {
        "classes": np.asarray(place.classes, np.int64),
        "labels": np.asarray(place.labels or [], np.str_),
        **{name: np.asarray(getattr(place, name), np.int64) for name in ("stride", "window", "offset", "ring")},
        "covered": np.asarray(place.covered, np.int64),
        "image": np.asarray(place.image, np.int64),
        **{name: np.asarray(getattr(place, name)) for name in ("exactness", "edge", "method")},
    }


def is_output(output: object) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether something names a file that a map is written to, as a path object or a text does."""
    return isinstance(output, os.PathLike) or (isinstance(output, str) and output.lower().endswith(ENDINGS))


def open_sink(path: str | os.PathLike[str]) -> Sink:
    """Return the sink of a path; InputError where its ending is none of ENDINGS, or its folder is not there."""
    place = Path(path)
    ending = place.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"the output is {str(place)!r}; its name must end in {', '.join(ENDINGS[:-1])}")
    if not place.parent.is_dir():
        raise InputError(f"the output is {str(place)!r}, but there is no such folder")
    if ending == ".npz":
        return NpzSink(place)
    if ending == ".zarr":
        from convserve.scenes.zarr_sink import ZarrSink

        return ZarrSink(place)
    return FileSink(place, NpyFile if ending == ".npy" else TiffFile)
