"""Dense passes as streams: over an image that is there, or over rows that are still to come."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from convserve.dense.ways import Way
from convserve.engine.binding import Executor
from convserve.engine.engine import Engine
from convserve.engine.executor import CANCELLED, WROTE_ROWS, Execution
from convserve.engine.meter import Meter
from convserve.engine.source import ImageRows, empty_scores
from convserve.errors import RunCancelled, ShapeError
from convserve.plan.plan import Plan, finish_plan
from convserve.results import Geometry

__all__ = ["ENDLESS", "RowStream", "ScoreStream", "block_bytes", "check_rows", "counting_blocks"]

Opened = TypeVar("Opened")

# Stands for a height that is not known: higher than any image, low enough for 64-bit sums.
ENDLESS = 1 << 40


class ScoreStream:
    """A score map on its way.

    Iterating yields (first_row, scores float32 (k, cols, classes)), once. close() stops it between two steps;
    any thread may call it.
    """

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        geometry: Geometry,
        image: ImageRows,
        *,
        classes: list[int] | None,
        meter: Meter | None = None,
    ) -> None:
        """meter: looks at the run; default one of its own."""
        self.geometry = geometry
        self._engine = engine
        self._executor = executor
        self._image = image
        self._chosen = None if classes is None else np.asarray(classes, np.int64)
        self._execution: Execution | None = None
        self._meter = meter or Meter()
        self._closed = False

    @property
    def plan(self) -> Plan:
        """The plan that is run."""
        plan: Plan = self._executor.plan
        return plan

    @property
    def allocated_bytes(self) -> int:
        """What the run was given for arena and scratch; 0 before it began."""
        return self._meter.allocated_bytes

    @property
    def block_bytes(self) -> int:
        """What the largest block takes, in bytes."""
        return block_bytes(self.plan, self.geometry.rows, self.geometry.cols, len(self.geometry.classes))

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return self.blocks()

    def blocks(self, into: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the blocks of rows; into: write them to this float32 (rows, cols, classes), of any strides.

        Raises RunCancelled after close().
        """
        rows, cols = self.geometry.rows, self.geometry.cols
        band = _written_at_once(self.plan)
        with self._engine.execution(self._executor, self._meter) as run:
            self._execution = run
            run.set_source(self._image.rows, table=self._image.table, channel_of=self._image.channel_of)
            done = 0
            while done < rows:
                count = min(band, rows - done)
                if into is None:
                    block = empty_scores(count, cols, len(self.geometry.classes))
                else:
                    block = into[done : done + count]
                run.set_sink(0, block[None], begin=done, chosen=self._chosen)
                if self._closed:
                    run.cancel()
                if run.advance(pause_after_write=True) == CANCELLED:
                    raise RunCancelled(f"the score map was closed after {done} of {rows} rows")
                _, first, done = run.written
                yield first, block[: done - first]

    def close(self) -> None:
        """Stop after the step in work; going on with the iteration raises RunCancelled."""
        self._closed = True
        run = self._execution
        if run is not None:
            run.cancel()


def _written_at_once(plan: Plan) -> int:
    return max(step.end - step.begin for block in plan.blocks for step in block.steps if step.kind == "Write")


def block_bytes(plan: Plan, rows: int, cols: int, classes: int) -> int:
    """Return what the largest block takes that a plan writes of a map of so many rows, columns and classes."""
    return 4 * min(_written_at_once(plan), rows) * cols * classes


def counting_blocks(
    open_at: Callable[[int], Opened], held: int, largest: Callable[[Opened], int]
) -> tuple[Opened, int]:
    """Return what open_at(score_bytes) gives, and score_bytes: what is held and the largest block of what it gives."""
    score_bytes = held
    while True:
        opened = open_at(score_bytes)
        needed = held + largest(opened)
        # a tighter budget makes blocks smaller, never larger
        if needed <= score_bytes:
            return opened, score_bytes
        score_bytes = needed


def check_rows(rows: np.ndarray, image: ImageRows) -> None:
    """Raise ShapeError unless rows, (k, width, channels), are such as the image's."""
    wanted = image.rows
    if rows.ndim != 3 or rows.shape[1:] != wanted.shape[2:] or rows.dtype != wanted.dtype:
        raise ShapeError(
            f"the rows are {rows.dtype} of shape {rows.shape};"
            f" they must be {wanted.dtype} (rows, {wanted.shape[2]}, {wanted.shape[3]})"
        )


class RowStream:
    """A score map over an image whose rows come block by block, and whose height only its last row tells.

    feed() takes rows and yields the blocks of scores that they complete, finish() the rest. Memory depends on
    the width alone. close() gives it back; the stream is also a context manager that closes. Not for use by
    two threads at once, except cancel().
    """

    def __init__(
        self,
        way: Way,
        image: ImageRows,
        *,
        classes: list[int] | None,
        labels: list[str],
        cols: int | None = None,
        memory_budget: int | None = None,
    ) -> None:
        """image: no rows yet, (1, 0, width, channels); it says the width and how values are read.

        cols: score columns, where they are not as many as the way has over that width.
        """
        self._way, self._image = way, image
        self.classes = list(range(way.slide.channels)) if classes is None else classes
        """The class index behind each score of a position."""
        self._labels = labels
        self._chosen = None if classes is None else np.asarray(classes, np.int64)
        slide, engine = way.slide, way.engine
        rows, own_cols = slide.positions(ENDLESS, image.width, edge=way.edge)
        self.cols = own_cols if cols is None else cols
        executor = engine.executor(ENDLESS, image.width, sink_rows=[rows], memory_budget=memory_budget, streamed=True)
        self._meter = Meter()
        self._memory = engine.execution(executor, self._meter)
        self._run = self._memory.__enter__()
        self._open = True
        self._band = _written_at_once(executor.plan)
        self._done = 0
        self._seen = 0
        self._held: list[tuple[int, np.ndarray]] = []

    @property
    def plan(self) -> Plan:
        """The plan that is run; its height is not the image's."""
        plan: Plan = self._run.executor.plan
        return plan

    @property
    def allocated_bytes(self) -> int:
        """What the run was given for arena and scratch."""
        return self._meter.allocated_bytes

    def geometry(self, height: int) -> Geometry:
        """Return where the scores lie over an image of that height."""
        return self._way.geometry(height, self._image.width, classes=self.classes, labels=self._labels)

    def feed(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next rows, (k, width, channels) of the image's dtype, and yield (first_row, scores) blocks.

        scores are float32 (k, cols, classes). The iteration has to be finished before the next call.
        Raises ShapeError for rows of another width, channels or dtype, RunCancelled after cancel().
        """
        check_rows(rows, self._image)
        if not len(rows):
            return
        self._set_source(rows, self._seen)
        self._seen += len(rows)
        down, window = self._way.slide.stride[0], self._way.slide.window[0]
        for first, scores in self._blocks(None):
            self._held.append((first, scores))
            while self._held and (self._held[0][0] + len(self._held[0][1]) - 1) * down + window <= self._seen:
                yield self._held.pop(0)

    def finish(self, rows: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the blocks that remain after the last row. Raises ShapeError where not one window fitted.

        rows: score rows in all, where they are not as many as the way has.
        """
        if rows is None:
            rows = self.geometry(self._seen).rows
        plan = finish_plan(self.plan, self._way.engine.graph, self._run.rows_done(), self._seen, rows)
        old = self._run.executor
        self._run.go_on_with(Executor(plan, old.isa, old.mapping, evict_weights=old.evict_weights))
        for first, scores in [*self._held, *self._blocks(rows)]:
            if first < rows:
                yield first, scores[: rows - first]
        self._held.clear()

    def _set_source(self, rows: np.ndarray, begin: int) -> None:
        self._run.set_source(rows[None], begin=begin, table=self._image.table, channel_of=self._image.channel_of)

    def _blocks(self, limit: int | None) -> Iterator[tuple[int, np.ndarray]]:
        while limit is None or self._done < limit:
            count = self._band if limit is None else min(self._band, limit - self._done)
            block = empty_scores(count, self.cols, len(self.classes))
            self._run.set_sink(0, block[None], begin=self._done, chosen=self._chosen)
            status = self._run.advance(pause_after_write=True)
            if status == CANCELLED:
                raise RunCancelled(f"the score map was cancelled after {self._done} rows of scores")
            if status != WROTE_ROWS:
                return
            _, first, self._done = self._run.written
            yield first, block[: self._done - first]

    def cancel(self) -> None:
        """Stop after the step in work; any thread may call it."""
        self._run.cancel()

    def close(self) -> None:
        """Give the memory back; closing twice does nothing."""
        if self._open:
            self._open = False
            self._memory.__exit__(None, None, None)

    def __enter__(self) -> "RowStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
