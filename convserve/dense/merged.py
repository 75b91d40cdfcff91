"""Maps from rows to come, of any way; those that several passes make up merge them row by row, and the last one."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from convserve.dense.crops import CropRows
from convserve.dense.stream import RowStream, ScoreStream
from convserve.dense.ways import MOST_PASSES, Way
from convserve.engine.binding import Executor
from convserve.engine.source import ImageRows
from convserve.errors import InputError, RunCancelled, ShapeError
from convserve.graph.restride import begins_with_convolutions
from convserve.reduction import Reduction
from convserve.results import Geometry, PlanBytes, SizedPlan

__all__ = ["MergedRows", "MergedStream", "open_rows", "streamed"]

# Rows that every pass takes before the next part of a block, in strides of the network: scores that wait stay few.
_STRIDES_AT_ONCE = 4


def open_rows(
    way: Way,
    image: ImageRows,
    *,
    classes: list[int] | None,
    labels: list[str],
    memory_budget: int | None = None,
) -> "RowStream | MergedRows | CropRows":
    """Return the stream of a map over rows to come; image has none yet, (1, 0, width, channels).

    Raises InputError where the way takes too many passes, ShapeError, MemoryBudgetError.
    """
    options: dict[str, Any] = {"classes": classes, "labels": labels, "memory_budget": memory_budget}
    if way.sharing:
        return CropRows(way, image, **options)
    if way.edge == "pad" and not begins_with_convolutions(way.engine.graph):
        raise InputError(
            'edge="pad" of rows to come is for networks that begin with convolutions;'
            f" '{way.engine.graph.name}' does not: give the whole image"
        )
    stream = MergedRows if way.merges else RowStream
    return stream(way, image, **options)


def streamed(
    rows: Iterable[np.ndarray],
    opened: "Callable[[str], RowStream | MergedRows | CropRows]",
    reduction: Reduction | None,
) -> Iterator[Any]:
    """Yield the blocks of score rows of an image that comes as blocks of rows; opened: the stream of a dtype's rows.

    reduction: yield what it keeps instead, as dicts of arrays. Raises ShapeError where no rows come.
    """
    stream = None
    try:
        for block in rows:
            if stream is None:
                stream = opened("float32" if block.dtype == np.float32 else "uint8")
            for _, scores in stream.feed(block):
                yield scores if reduction is None else reduction.apply(scores, stream.classes)
        if stream is None:
            raise ShapeError("the image has no rows")
        for _, scores in stream.finish():
            yield scores if reduction is None else reduction.apply(scores, stream.classes)
    finally:
        if stream is not None:
            stream.close()


class MergedRows:
    """Has the interface of a RowStream; pass (d, a) sees the image from row d * step and column a * step on.

    Where the last windows are aligned to the image's end, its last rows are kept for a pass of their own.
    """

    def __init__(
        self,
        way: Way,
        image: ImageRows,
        *,
        classes: list[int] | None,
        labels: list[str],
        memory_budget: int | None = None,
    ) -> None:
        self._way, self._image = way, image
        self.classes = list(range(way.slide.channels)) if classes is None else classes
        """The class index behind each score of a position."""
        self._chosen, self._labels = classes, labels
        self._down = way.shifts[0]
        self._chunk = _STRIDES_AT_ONCE * way.slide.stride[0]
        self.cols = way.slide.positions(way.slide.window[0], image.width, way.stride, way.edge)[1]
        self._across = way.starts(1, image.width)
        if math.prod(way.shifts) > MOST_PASSES:
            raise InputError(
                f"the stride is {way.stride}; it takes {math.prod(way.shifts)} shifted passes, of {MOST_PASSES};"
                ' method="atrous" takes one'
            )
        self._budget = None if memory_budget is None else max(1, memory_budget // (self._down * len(self._across)))
        self._passes: dict[tuple[int, int], RowStream] = {}
        self._waiting: dict[tuple[int, int], deque[np.ndarray]] = {}
        self._seen = self._next = 0
        self._cancelled = False
        self._last: list[ScoreStream] = []
        self._kept = image.rows[0]
        try:
            for d in range(self._down):
                for a, (left, cols) in enumerate(self._across):
                    self._passes[d, a] = RowStream(
                        way,
                        image.of(image.rows[:, :, left:]),
                        classes=classes,
                        labels=labels,
                        cols=len(range(*cols.indices(self.cols))),
                        memory_budget=self._budget,
                    )
                    self._waiting[d, a] = deque()
        except BaseException:
            self.close()
            raise
        plans = [one.plan for one in self._passes.values()]
        arena, scratch = sum(plan.arena_bytes for plan in plans), sum(plan.scratch_bytes for plan in plans)
        self._kept_bytes = 0
        if way.edge == "align":
            # the passes of the last row follow when the others have ended
            lasts = [self._last_executor(left).plan for left, _ in self._across]
            largest = max(lasts, key=lambda plan: plan.arena_bytes + plan.scratch_bytes)
            if largest.arena_bytes + largest.scratch_bytes > arena + scratch:
                arena, scratch = largest.arena_bytes, largest.scratch_bytes
            row = image.rows.shape[2] * image.rows.shape[3] * image.rows.itemsize
            self._kept_bytes = way.slide.window[0] * row
        self.plan: SizedPlan = PlanBytes(arena, scratch + self._kept_bytes, plans[0].weight_bytes)
        """What all passes take together, with the rows that are kept; weights are shared."""

    @property
    def allocated_bytes(self) -> int:
        """What all passes were given together."""
        given = sum(one.allocated_bytes for one in self._passes.values())
        return max([given, *(last.allocated_bytes for last in self._last)]) + self._kept_bytes

    def geometry(self, height: int) -> Geometry:
        """Return where the scores lie over an image of that height."""
        return self._way.geometry(height, self._image.width, classes=self.classes, labels=self._labels)

    def feed(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next rows of the image and yield the blocks of merged scores that they complete."""
        step = self._way.stride[0]
        for begin in range(0, len(rows), self._chunk):
            part = rows[begin : begin + self._chunk]
            for (d, a), one in self._passes.items():
                skipped = max(0, d * step - self._seen)
                for _, scores in one.feed(part[skipped:, self._across[a][0] :]):
                    self._waiting[d, a].extend(scores)
            self._seen += len(part)
            if self._way.edge == "align":
                self._kept = np.concatenate([self._kept, part])[-self._way.slide.window[0] :]
            yield from self._merged()

    def finish(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the blocks that remain after the last row. Raises ShapeError where not one window fitted."""
        rows = self.geometry(self._seen).rows
        starts = self._way.starts(0, self._seen)
        for (d, a), one in self._passes.items():
            if d < len(starts) and starts[d][1].step is not None:
                for _, scores in one.finish(len(range(*starts[d][1].indices(rows)))):
                    self._waiting[d, a].extend(scores)
                    yield from self._merged()
        if starts[-1][1].step is None:
            self.close()
            yield rows - 1, self._last_row()

    def _last_executor(self, left: int) -> Executor:
        way = self._way
        return way.engine.executor(
            way.slide.window[0], self._image.width - left, sink_rows=[1], memory_budget=self._budget
        )

    def _last_row(self) -> np.ndarray:
        # of the windows at the image's end, whose rows were kept
        image = self._image.of(self._kept[None])
        row = np.empty((1, self.cols, len(self.classes)), np.float32)
        for left, cols in self._across:
            part = Geometry(
                rows=1,
                cols=len(range(*cols.indices(self.cols))),
                stride=self._way.stride,
                window=self._way.slide.window,
                classes=self.classes,
            )
            stream = ScoreStream(
                self._way.engine,
                self._last_executor(left),
                part,
                image.of(image.rows[:, :, left:]),
                classes=self._chosen,
            )
            self._last.append(stream)
            if self._cancelled:
                stream.close()
            for _ in stream.blocks(row[:, cols]):
                pass
        return row

    def _merged(self) -> Iterator[tuple[int, np.ndarray]]:
        first, rows = self._next, []
        while all(self._waiting[self._next % self._down, a] for a in range(len(self._across))):
            row = np.empty((self.cols, len(self.classes)), np.float32)
            for a, (_, cols) in enumerate(self._across):
                row[cols] = self._waiting[self._next % self._down, a].popleft()
            rows.append(row)
            self._next += 1
        if rows:
            yield first, np.stack(rows)

    def cancel(self) -> None:
        """Stop after the step in work; any thread may call it."""
        self._cancelled = True
        for one in list(self._passes.values()):
            one.cancel()
        for last in list(self._last):
            last.close()

    def close(self) -> None:
        """Give the memory of all passes back."""
        for one in self._passes.values():
            one.close()

    def __enter__(self) -> "MergedRows":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MergedStream:
    """Has the interface of a ScoreStream: feeds the rows of an image that is there to merged passes."""

    def __init__(self, rows: "RowStream | MergedRows | CropRows", geometry: Geometry, image: ImageRows) -> None:
        self._rows, self._image = rows, image
        self.geometry = geometry
        self._closed = False

    @property
    def plan(self) -> SizedPlan:
        """What all passes take together."""
        return self._rows.plan

    @property
    def allocated_bytes(self) -> int:
        """What all passes were given together."""
        return self._rows.allocated_bytes

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return self.blocks()

    def blocks(self, into: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the blocks of rows; into: write them to this float32 (rows, cols, classes) as well.

        Raises RunCancelled after close().
        """
        with self._rows:
            done = 0
            for source in (lambda: self._rows.feed(self._image.rows[0]), self._rows.finish):
                self._check(done)
                for first, scores in source():
                    self._check(done)
                    done = first + len(scores)
                    if into is not None:
                        into[first:done] = scores
                    yield first, scores

    def _check(self, done: int) -> None:
        if self._closed:
            raise RunCancelled(f"the score map was closed after {done} of {self.geometry.rows} rows")

    def close(self) -> None:
        """Stop after the step in work; going on with the iteration raises RunCancelled."""
        self._closed = True
        self._rows.cancel()
