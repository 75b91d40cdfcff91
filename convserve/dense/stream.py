"""One dense pass as a stream: geometry at once, rows of scores as they become final."""

from collections.abc import Iterator

import numpy as np

from convserve.engine.engine import Engine
from convserve.engine.executor import CANCELLED, Execution, Executor
from convserve.engine.source import ImageRows
from convserve.errors import RunCancelled
from convserve.plan.plan import Plan
from convserve.results import Geometry

__all__ = ["ScoreStream"]


class ScoreStream:
    """A score map on its way.

    Iterating yields (first_row, scores float32 (k, cols, classes)), once. close() stops it between two steps;
    any thread may call it.
    """

    def __init__(
        self, engine: Engine, executor: Executor, geometry: Geometry, image: ImageRows, *, classes: list[int] | None
    ) -> None:
        self.geometry = geometry
        self._engine = engine
        self._executor = executor
        self._image = image
        self._chosen = None if classes is None else np.asarray(classes, np.int64)
        self._execution: Execution | None = None
        self._closed = False

    @property
    def plan(self) -> Plan:
        """The plan that is run."""
        plan: Plan = self._executor.plan
        return plan

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return self.blocks()

    def blocks(self, into: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the blocks of rows; into: write them to this float32 (rows, cols, classes), of any strides.

        Raises RunCancelled after close().
        """
        rows, cols = self.geometry.rows, self.geometry.cols
        band = max(step.end - step.begin for block in self.plan.blocks for step in block.steps if step.kind == "Write")
        with self._engine.execution(self._executor) as run:
            self._execution = run
            run.set_source(self._image.rows, table=self._image.table, channel_of=self._image.channel_of)
            done = 0
            while done < rows:
                count = min(band, rows - done)
                if into is None:
                    block = np.empty((count, cols, len(self.geometry.classes)), np.float32)
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
