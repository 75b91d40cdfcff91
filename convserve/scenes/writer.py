"""A score map on its way to disk: where a run has to begin, which rows are new, how many are finished."""

import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from convserve.errors import ConvserveError, InputError, OutputError
from convserve.reduction import Reduction
from convserve.results import Geometry, RunReport, ScoreMap
from convserve.scenes.reading import lazy_array
from convserve.scenes.record import Record, restart
from convserve.scenes.sinks import open_sink
from convserve.scenes.source import RowSource

__all__ = ["MapWriter", "WrittenMap"]

Result = TypeVar("Result")

NOTED_EVERY_S = 1.0
"""Seconds between two times that the number of finished rows is stored; closing stores it as well."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WrittenMap(ScoreMap):
    """A score map that lies on disk: scores and indices are read where they are sliced, memmaps or Zarr arrays.

    path: as it was given. files: where each array lies, by name. resumed_at: rows that were there before.
    """

    path: Path
    files: dict[str, Path]
    resumed_at: int = 0

    def held(self) -> ScoreMap:
        """Return the map in memory, whole."""
        arrays = {"scores": np.asarray(self.scores[:])}
        if self.indices is not None:
            arrays["indices"] = np.asarray(self.indices[:])
        place = {field.name: getattr(self, field.name) for field in fields(Geometry)}
        return ScoreMap.over(Geometry(**place), arrays, report=self.report, reduction=self.reduction)


class MapWriter:
    """A context manager. Where needs_rows: begin() with the geometry, add() for each block, finish().

    However the context is left, rows that were added stay, and are counted; whatever fails on disk is an OutputError.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        source: RowSource,
        *,
        fingerprint: dict[str, Any],
        reduction: Reduction,
        resume: bool = False,
    ) -> None:
        """fingerprint: plain data that a run must share to go on with the map, beside the image's size.

        resume: go on with a map that was left, if there is one. Raises InputError where it is another one's, or where
        the output's ending is not known.
        """
        self._sink = open_sink(output)
        self._source, self._reduction = source, reduction
        self._fingerprint = {**fingerprint, "image": [source.height, source.width, source.channels, source.dtype.name]}
        self._record: Record | None = None
        self._opened = self._broken = False
        self._shift = self._added = 0
        self._noted_s = time.monotonic()
        self.resumed_at = 0
        """Finished rows of scores that were there before."""
        if resume:
            self._record = self._sink.record.read()
            if self._record is not None:
                self._check(self._record)
                self.resumed_at = self._record.rows_done
                self._added = self.resumed_at
                self._shift = self._record.go_on_at()

    def _check(self, record: Record) -> None:
        for name in sorted({*record.fingerprint, *self._fingerprint}):
            before, now = record.fingerprint.get(name), self._fingerprint.get(name)
            if before != now:
                raise InputError(
                    f"{str(self._sink.path)!r} cannot be resumed: it was begun with {name} {before}, this run has {now}"
                )

    @property
    def first_pixel(self) -> int:
        """The row of the image from which on rows are needed."""
        return 0 if self._record is None else self._shift * self._record.geometry.stride[0]

    @property
    def needs_rows(self) -> bool:
        """Whether any row of scores is missing."""
        return self._record is None or self._record.rows_done < self._record.geometry.rows

    @property
    def missing_rows(self) -> int:
        """Rows of scores that the run is to compute."""
        assert self._record is not None
        return self._record.geometry.rows - self._shift

    def begin(self, geometry: Geometry, described: Mapping[str, Any]) -> None:
        """Open the output; geometry: of the whole map, left aside where it is resumed. described: the network."""
        if self._record is None:
            place = Geometry(**{field.name: getattr(geometry, field.name) for field in fields(Geometry)})
            self._record = Record(self._fingerprint, place, self._reduction, restart(geometry, described))
            referenced = self._source.georeference
            ground = referenced and referenced.of_map(geometry.stride, geometry.window, geometry.offset)
            self._on_disk(self._sink.record.remove)
            self._on_disk(lambda: self._sink.create(self._known, ground))
            self._on_disk(lambda: self._sink.record.create(self._known))
        self._on_disk(lambda: self._sink.open(self._known))
        self._opened = True

    @property
    def _known(self) -> Record:
        assert self._record is not None
        return self._record

    def add(self, first: int, arrays: dict[str, np.ndarray]) -> int:
        """Take a block, whose rows are counted from where the run began; return its number of rows."""
        count = len(next(iter(arrays.values())))
        first += self._shift
        # computed again only for the sake of those behind them
        known = max(0, min(count, self.resumed_at - first))
        if known < count:
            rows = {name: array[known:] for name, array in arrays.items()}
            self._known.rows_done = self._on_disk(lambda: self._sink.write(first + known, rows))
            self._added = first + count
            if time.monotonic() - self._noted_s >= NOTED_EVERY_S:
                self._note()
        return count

    def _note(self) -> None:
        self._on_disk(lambda: self._sink.record.advance(self._known.rows_done))
        self._noted_s = time.monotonic()

    def _store(self) -> None:
        self._on_disk(self._sink.flush)
        self._known.rows_done = self._added
        self._note()

    def finish(self, report: RunReport) -> WrittenMap:
        """End the map, all of whose rows were added, and return it."""
        record = self._known
        if self._opened:
            self._store()
            self._opened = False
            self._sink.close()
        if record.rows_done == record.geometry.rows:
            self._on_disk(lambda: self._sink.finish(record))
        place = record.geometry
        specs = record.reduction.arrays(len(place.classes))
        files = self._sink.files(specs)
        arrays = {
            name: self._on_disk(partial(lazy_array, files[name], name, 2 + len(shape))) for name, _, shape in specs
        }
        return WrittenMap(
            **vars(place),
            scores=arrays.get("scores", np.empty((place.rows, place.cols, 0), np.float32)),
            indices=arrays.get("indices"),
            report=report,
            reduction=self._reduction,
            path=self._sink.path,
            files=files,
            resumed_at=self.resumed_at,
        )

    def _on_disk(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except ConvserveError:
            raise
        # stores raise whatever they meet
        except Exception as error:
            self._broken = True
            raise OutputError(self._failed(error)) from error

    def _failed(self, error: Exception) -> str:
        record = self._record
        done = f" after {record.rows_done} of {record.geometry.rows} rows" if record and self._opened else ""
        code = getattr(error, "errno", None)
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = os.strerror(code) if code else str(error)
        kept = "; finished rows stay, and resume goes on from them" if full and done else ""
        return f"{str(self._sink.path)!r} cannot be written{done}: {reason}{kept}"

    def __enter__(self) -> "MapWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._opened and not self._broken:
                self._store()
            elif self._opened:
                self._sink.record.advance(self._known.rows_done)
        except (ConvserveError, OSError):
            if error is None:
                raise
        finally:
            self._opened = False
            self._sink.close()
