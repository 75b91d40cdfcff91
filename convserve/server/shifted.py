"""Score maps at a finer stride than the network's, from rows to come: shifted passes in step, merged row by row."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from convserve.results import Geometry, PlanBytes
from convserve.server.strides import Strides

if TYPE_CHECKING:
    from convserve.dense import RowStream

__all__ = ["ShiftedRows"]

# Rows that every pass takes before the next part of a block, in strides of the network: scores that wait stay few.
_STRIDES_AT_ONCE = 4


class ShiftedRows:
    """Has the interface of a RowStream; pass (d, a) sees the image from row d * step and column a * step on."""

    def __init__(
        self, first: "RowStream", open_rows: Callable[[int], "RowStream"], width: int, strides: Strides
    ) -> None:
        """first: the pass that is not shifted; open_rows gives one of another width."""
        place = first.geometry(1 << 40)
        self._down, self._across = strides.finer
        self._steps = steps = place.stride[0] // self._down, place.stride[1] // self._across
        self._window_rows = place.window[0]
        self._chunk = _STRIDES_AT_ONCE * place.stride[0]
        self._cols = (width - place.window[1]) // steps[1] + 1
        self._classes = len(place.classes)
        self._passes: dict[tuple[int, int], RowStream] = {}
        self._waiting: dict[tuple[int, int], deque[np.ndarray]] = {}
        self._seen = 0
        self._next = 0
        try:
            for d in range(self._down):
                for a in range(min(self._across, self._cols)):
                    self._passes[d, a] = first if d == a == 0 else open_rows(width - a * steps[1])
                    self._waiting[d, a] = deque()
        except BaseException:
            self.close()
            raise

    @property
    def plan(self) -> PlanBytes:
        """What all passes take together; weights are shared."""
        plans = [one.plan for one in self._passes.values()]
        arena, scratch = sum(plan.arena_bytes for plan in plans), sum(plan.scratch_bytes for plan in plans)
        return PlanBytes(arena, scratch, plans[0].weight_bytes)

    @property
    def allocated_bytes(self) -> int:
        """What all passes were given together."""
        return sum(one.allocated_bytes for one in self._passes.values())

    def geometry(self, height: int) -> Geometry:
        """Return where the scores of the pass that is not shifted lie over an image of that height."""
        return self._passes[0, 0].geometry(height)

    def feed(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next rows of the image and yield the blocks of merged scores that they complete."""
        for begin in range(0, len(rows), self._chunk):
            part = rows[begin : begin + self._chunk]
            for (d, a), one in self._passes.items():
                skipped = max(0, d * self._steps[0] - self._seen)
                for _, scores in one.feed(part[skipped:, a * self._steps[1] :]):
                    self._waiting[d, a].extend(scores)
            self._seen += len(part)
            yield from self._merged()

    def finish(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the blocks that remain after the last row. Raises ShapeError where not one window fitted."""
        for (d, a), one in self._passes.items():
            if d == 0 or self._seen - d * self._steps[0] >= self._window_rows:
                for _, scores in one.finish():
                    self._waiting[d, a].extend(scores)
                    yield from self._merged()

    def _merged(self) -> Iterator[tuple[int, np.ndarray]]:
        first, rows = self._next, []
        while all(self._waiting[self._next % self._down, a] for a in range(min(self._across, self._cols))):
            row = np.empty((self._cols, self._classes), np.float32)
            for a in range(min(self._across, self._cols)):
                row[a :: self._across] = self._waiting[self._next % self._down, a].popleft()
            rows.append(row)
            self._next += 1
        if rows:
            yield first, np.stack(rows)

    def cancel(self) -> None:
        """Stop after the step in work; any thread may call it."""
        for one in list(self._passes.values()):
            one.cancel()

    def close(self) -> None:
        """Give the memory of all passes back."""
        for one in self._passes.values():
            one.close()
