"""The network on every crop, block by block of positions, with as much shared as the way says."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from convserve import settings
from convserve.dense.crop_runs import CropRuns, Rooms
from convserve.dense.parts import Places
from convserve.dense.stream import check_rows
from convserve.dense.ways import Way, WayPlan
from convserve.engine.engine import Cancellation, Engine
from convserve.engine.executor import Memory
from convserve.engine.meter import Meter
from convserve.engine.source import ImageRows, empty_scores
from convserve.errors import MemoryBudgetError
from convserve.plan.budget import least_bytes
from convserve.plan.plan import Plan
from convserve.results import Geometry, PlanBytes, RunReport

__all__ = ["CropRows", "plan_crops"]

Pair = tuple[int, int]
Group = tuple[range, slice]
"""Along one axis: first pixels of crops that lie on one grid, and their positions in the map."""

# Positions along each axis of a grid that are computed together, the most first; fewer where they would hold more.
SIDES = (32, 16, 8, 4, 2, 1)
MOST_HELD_BYTES = 128 << 20
# Rows of the map that leave together: whoever reduces or sends them copies no more.
LEAVING_ROWS = 4


class CropRows:
    """Has the interface of a RowStream; crops run when the rows of a block of positions have come.

    height: of the image where it is known, which only the plan needs. score_bytes: what the caller holds of the map.
    meter: looks at the runs.
    Raises ShapeError, MemoryBudgetError.
    """

    def __init__(
        self,
        way: Way,
        image: ImageRows,
        *,
        classes: list[int] | None,
        labels: list[str],
        memory_budget: int | None = None,
        score_bytes: int = 0,
        height: int | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._way, self._image = way, image
        self.classes = list(range(way.slide.channels)) if classes is None else classes
        """The class index behind each score of a position."""
        self._labels, self._height = labels, height
        self.cols = way.slide.positions(way.slide.window[0], image.width, way.stride, way.edge)[1]
        # windows that leave the image are computed from values
        self._crops = CropRuns(way, 4 if way.edge == "pad" else image.rows.itemsize)
        own = self._crops.sharing.passage.stride
        self._together = math.lcm(way.stride[0], own[0]), math.lcm(way.stride[1], own[1])
        self._back = 1 if way.edge == "align" else 0
        self._next = self._seen = self._filled = 0
        self._meter, self._cancellation = meter or Meter(), Cancellation()
        for side in SIDES:
            # the most positions that fit, since what crops share is computed once for each block
            self._set_side(side)
            if self._held > MOST_HELD_BYTES and side != SIDES[-1]:
                continue
            try:
                self._plan(memory_budget, score_bytes)
                break
            except MemoryBudgetError:
                if side == SIDES[-1]:
                    raise
        self._memory: Memory | None = None

    # ---- blocks of positions

    def _set_side(self, side: int) -> None:
        self._columns = list(self._column_groups(side))
        grids = self._together[0] // self._way.stride[0]
        if self._height is not None:
            rows = -(-self.geometry(self._height).rows // grids)
            side = -(-rows // -(-rows // side))
        self._rows = side * grids
        self._shapes = self._block_shapes(side)
        self._held = self._held_bytes()

    def _plan(self, memory_budget: int | None, score_bytes: int) -> None:
        self._options: dict[str, Any] = {"memory_budget": memory_budget, "score_bytes": score_bytes + self._held}
        largest: Plan | None = None
        self.predicted_s = 0.0
        """Seconds that the map of an image of known height is predicted to take."""
        weights: dict[Engine, int] = {}
        for places, times in self._shapes.items():
            for engine, images, size, again in self._crops.runs(places):
                try:
                    plans = [executor.plan for executor in engine.groups(images, *size, **self._options)]
                except MemoryBudgetError as error:
                    raise self._refusal(memory_budget, score_bytes) from error
                self.predicted_s += sum(plan.predicted_s for plan in plans) * again * times
                weights[engine] = plans[0].weight_bytes
                largest = max(filter(None, [largest, *plans]), key=lambda plan: plan.arena_bytes + plan.scratch_bytes)
        assert largest is not None
        self._run_bytes = largest.arena_bytes + largest.scratch_bytes
        self.plan = PlanBytes(largest.arena_bytes, largest.scratch_bytes + self._held, sum(weights.values()))
        """What the largest run takes, with what is held beside it: rows, activations and a block of scores."""

    def _refusal(self, memory_budget: int | None, score_bytes: int) -> MemoryBudgetError:
        runs = (run for places in self._shapes for run in self._crops.runs(places))
        needed = score_bytes + self._held + max(least_bytes(engine.graph, *size) for engine, _, size, _ in runs)
        budget = memory_budget or self._way.engine.memory_budget or settings.get("MEMORY_BUDGET")
        return MemoryBudgetError(
            f"crops of {self._way.engine.graph.name} from an image {self._image.width} pixels wide take at least"
            f" {needed:,} bytes (arena, scratch, and the rows, activations and scores held);"
            f" the memory budget is {budget:,} bytes"
        )

    def _column_groups(self, side: int) -> Iterator[Group]:
        for pixels, at in self._groups(1, 0, self.cols, self._image.width):
            columns, blocks = range(*at.indices(self.cols)), -(-len(pixels) // side)
            bounds = [len(pixels) * number // blocks for number in range(blocks + 1)]
            for first, end in pairwise(bounds):
                some = columns[first:end]
                yield pixels[first:end], slice(some.start, some.stop, some.step)

    def _groups(self, axis: int, low: int, high: int, size: int | None) -> Iterator[Group]:
        """Yield the positions low..high of the map along an axis of that many pixels, grid by grid.

        size: None where no position is aligned to the image's end.
        """
        step, window, together = self._way.stride[axis], self._way.slide.window[axis], self._together[axis]
        regular, grids = high, together // step
        if self._way.edge == "align" and size is not None:
            regular = min(high, (size - window) // step + 1)
        for first in range(low, min(low + grids, regular)):
            yield range(first * step, (regular - 1) * step + 1, together), slice(first, regular, grids)
        if regular < high:
            assert size is not None
            yield range(size - window, size - window + 1, together), slice(regular, high)

    def _row_blocks(self, rows: int) -> Iterator[Pair]:
        return ((first, min(first + self._rows, rows)) for first in range(self._next, rows, self._rows))

    def _block_shapes(self, side: int) -> dict[Places, int]:
        # crops at the beginning of an image for each shape of block, and how many blocks have it
        columns, rows = Counter(len(pixels) for pixels, _ in self._columns), Counter([side])
        if self._height is not None:
            blocks = self._row_blocks(self.geometry(self._height).rows)
            rows = Counter(len(pixels) for block in blocks for pixels, _ in self._groups(0, *block, self._height))
        down, across = self._together
        return {
            (range(0, high * down, down), range(0, wide * across, across)): times * again
            for high, times in rows.items()
            for wide, again in columns.items()
        }

    def _buffer_shape(self) -> tuple[int, int, int]:
        rows = (self._rows - 1 + self._back) * self._way.stride[0] + self._way.slide.window[0]
        return rows, self._image.width, self._image.rows.shape[3]

    def _held_bytes(self) -> int:
        rooms = zip(*(self._crops.block(places).room_bytes for places in self._shapes), strict=True)
        self._room_bytes = tuple(max(sizes) for sizes in rooms)
        held, values = sum(self._room_bytes), math.prod(self._buffer_shape())
        if self._way.edge == "pad":
            held += 4 * values
        scores = max(len(down) * len(across) for down, across in self._shapes) * self._way.slide.channels
        scores += 2 * self._rows * self.cols * len(self.classes)
        return held + self._image.rows.itemsize * values + 4 * scores

    # ---- rows in, scores out

    @property
    def allocated_bytes(self) -> int:
        """What the largest run was given, and what is held beside it."""
        return self._meter.allocated_bytes + self._held

    def report(self, score_bytes: int) -> RunReport:
        """Return what was planned and what was measured, with the bytes of the map that the caller holds."""
        plan = PlanBytes(self.plan.arena_bytes, self.plan.scratch_bytes, self.plan.weight_bytes, score_bytes)
        return RunReport(plan, self.allocated_bytes + score_bytes, self._meter.report().seconds)

    def geometry(self, height: int) -> Geometry:
        """Return where the scores lie over an image of that height."""
        return self._way.geometry(height, self._image.width, classes=self.classes, labels=self._labels)

    def feed(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Take the next rows of the image and yield the blocks of scores that they complete.

        Raises ShapeError for rows of another width, channels or dtype, RunCancelled after cancel().
        """
        check_rows(rows, self._image)
        if self._memory is None:
            self._buffer = empty_scores(*self._buffer_shape(), dtype=self._image.rows.dtype)
            self._rooms = Rooms(self._room_bytes)
            self._memory = Memory(self._run_bytes)
        while len(rows):
            # between windows that lie further apart than they are high, rows are left out
            skipped = min(max(0, self._first_row - self._seen), len(rows))
            taken = min(len(self._buffer) - self._filled, len(rows) - skipped)
            self._buffer[self._filled : self._filled + taken] = rows[skipped : skipped + taken]
            self._filled += taken
            self._seen += skipped + taken
            rows = rows[skipped + taken :]
            if self._filled == len(self._buffer):
                yield from self._block(self._next + self._rows, None)

    def finish(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the blocks that remain after the last row. Raises ShapeError where not one window fitted."""
        if self._height is None:
            # blocks that were not planned, lower ones, run in the memory that is there
            self._options["memory_budget"] = self._run_bytes + self._options["score_bytes"]
        for _, end in list(self._row_blocks(self.geometry(self._seen).rows)):
            yield from self._block(end, self._seen)

    @property
    def _first_row(self) -> int:
        # of the image, in the buffer
        return max(0, self._next - self._back) * self._way.stride[0]

    def _block(self, end: int, height: int | None) -> Iterator[tuple[int, np.ndarray]]:
        # the scores from the next row of the map to `end`; then the buffer begins with the row behind
        first, begin = self._next, self._first_row
        block = empty_scores(end - first, self.cols, len(self.classes))
        options: Any = {**self._options, "meter": self._meter, "cancellation": self._cancellation}
        options |= {"memory": self._memory, "rooms": self._rooms}
        for down, rows in self._groups(0, first, end, height):
            at = slice(rows.start - first, rows.stop - first, rows.step)
            for across, columns in self._columns:
                region = self._region(range(down.start - begin, down.stop - begin, down.step), across)
                places = range(0, down[-1] - down[0] + 1, down.step), range(0, across[-1] - across[0] + 1, across.step)
                block[at, columns] = self._crops.scores(region, places, **options)[:, :, self.classes]
        self._next = end
        moved = min(self._first_row - begin, self._filled)
        self._filled -= moved
        for row in range(0, self._filled, max(1, moved)):
            kept = self._buffer[row + moved : min(row + moved, self._filled) + moved]
            self._buffer[row : row + len(kept)] = kept
        for row in range(0, len(block), LEAVING_ROWS):
            yield first + row, block[row : row + LEAVING_ROWS]

    def _region(self, down: range, across: range) -> ImageRows:
        window = self._way.slide.window
        height, width = down[-1] - down[0] + window[0], across[-1] - across[0] + window[1]
        part = self._buffer[: self._filled][down[0] : down[0] + height, across[0] : across[0] + width]
        if part.shape[:2] == (height, width):
            return self._image.of(part[None])
        values = np.zeros((1, height, width, self._way.engine.graph.input_volume.channels), np.float32)
        seen, table = values[0, : part.shape[0], : part.shape[1]], self._image.table
        for channel in range(seen.shape[2]):
            source = part[..., channel if table is None else self._image.channel_of[channel]]
            seen[..., channel] = source if table is None else table[channel][source]
        return ImageRows(values)

    def cancel(self) -> None:
        """Stop after the step in work; any thread may call it."""
        self._cancellation.cancel()

    def close(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
            del self._buffer, self._rooms

    def __enter__(self) -> "CropRows":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def plan_crops(way: Way, method: str, height: int, width: int, *, memory_budget: int | None = None) -> WayPlan:
    """Return what the crops of an image are predicted to take, under the name of the method that was asked for.

    Raises ShapeError, MemoryBudgetError.
    """
    channels, sharing = way.engine.graph.input_volume.channels, way.sharing
    assert sharing is not None
    none = ImageRows(np.empty((1, 0, width, channels), np.float32))
    crops = CropRows(way, none, classes=None, labels=[], memory_budget=memory_budget, height=height)
    positions = crops.geometry(height).rows * crops.cols
    note = sharing.note if method == "crops-shared" else ""
    return WayPlan(method, positions, crops.predicted_s, crops.plan, note)
