"""A score map in work for a call: opened on an image or on rows to come, computed block by block."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from convserve.errors import InputError
from convserve.images import decode
from convserve.results import Geometry, SizedPlan
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.scene import SceneHeader

if TYPE_CHECKING:
    from convserve.dense import RowStream, ScoreStream
    from convserve.model import Model

__all__ = ["Scoring", "lowest_budget"]

# A height that stands for an unknown one: far above any network's window, so that only the ring's bottom is a guess.
_TALL = 1 << 40

Blocks = Generator[tuple[int, np.ndarray], None, None]


class Scoring:
    """The score map of one request. Methods that compute run on a thread, one at a time; cancel() from any."""

    def __init__(self, header: SceneHeader, model: "Model") -> None:
        self._header = header
        self._model = model
        self._budget = lowest_budget(header.memory_budget, model.memory_budget)
        self._cancelled = False
        self._stream: ScoreStream | RowStream | None = None
        self._stop: Callable[[], None] = lambda: None
        self._blocks: Blocks | None = None
        self._steps = (1, 1)
        self.geometry = Geometry(rows=0, cols=0, stride=(1, 1), window=(1, 1))
        """Of the map; rows 0 while the height is not known."""
        self.sent_bytes = 0
        """The largest block of scores so far."""

    @property
    def plan(self) -> SizedPlan:
        """What the run takes."""
        assert self._stream is not None
        return self._stream.plan

    @property
    def measured_bytes(self) -> int:
        """Allocated for arena, scratch and the scores of one block."""
        return self.plan.arena_bytes + self.plan.scratch_bytes + self.sent_bytes

    def open_image(self, image: bytes) -> None:
        """Decode an image file and plan its map. Raises ImageError, ShapeError, MemoryBudgetError, ModelError."""
        stream = self._model.score_stream(image, classes=self._header.classes, memory_budget=self._budget)
        self._keep(stream, stream.close)
        self._place(stream.geometry)
        self._blocks = cast(Blocks, iter(stream))

    def open_rows(self) -> None:
        """Plan a map for rows to come, and take its memory. Raises ShapeError, MemoryBudgetError, ModelError."""
        header = self._header
        stream = self._model.row_stream(
            header.width, dtype=header.dtype or "", classes=header.classes, memory_budget=self._budget
        )
        self._keep(stream, stream.cancel)
        self._place(stream.geometry(header.height or _TALL))
        if not header.height:
            self.geometry = replace(self.geometry, rows=0)

    def _keep(self, stream: "ScoreStream | RowStream", stop: Callable[[], None]) -> None:
        self._stream, self._stop = stream, stop
        if self._cancelled:
            stop()

    def _place(self, geometry: Geometry) -> None:
        self._steps = _steps(self._header.stride, geometry.stride)
        self.geometry = _coarser(geometry, self._steps)

    def feed(self, rows: np.ndarray) -> None:
        """Give the next rows; their scores come from next_rows()."""
        self._blocks = self._fed(cast("RowStream", self._stream), rows)

    def _fed(self, stream: "RowStream", rows: np.ndarray) -> Blocks:
        channels = self._model.graph.input_volume.channels
        if rows.shape[2] != channels:
            # gray to colour, colour to gray, transparency over white: as files are decoded
            rows = decode(rows, channels="gray" if channels == 1 else "rgb")
        yield from stream.feed(rows)

    def finish(self, height: int) -> None:
        """Say that the last row was fed; the rest of the scores comes from next_rows()."""
        stream = cast("RowStream", self._stream)
        self._blocks = cast(Blocks, stream.finish())
        if not self._header.height:
            self._place(stream.geometry(height))

    def next_rows(self) -> list[pb.ScoreMapResponse]:
        """Return the messages of the next block of scores; none where no more can be computed for now."""
        # encoded here, outside the event loop, and before the iteration may touch the array again
        for first, scores in cast(Blocks, self._blocks):
            found = self._kept(first, scores)
            self.sent_bytes = max(self.sent_bytes, scores.nbytes)
            if found:
                return found
        return []

    def _kept(self, first: int, scores: np.ndarray) -> list[pb.ScoreMapResponse]:
        down, across = self._steps
        begin = -(-first // down) * down
        scores = scores[begin - first :: down, ::across]
        return [pb.ScoreMapResponse(rows=rows) for rows in _messages(begin // down, scores)]

    def cancel(self) -> None:
        """Make the method in work end soon, with RunCancelled."""
        self._cancelled = True
        self._stop()

    def close(self) -> None:
        """Give the memory back; not while a method is in work."""
        self.cancel()
        if self._blocks is not None:
            self._blocks.close()
        if self._header.dtype is not None and self._stream is not None:
            cast("RowStream", self._stream).close()
        self._stream = self._blocks = None


def lowest_budget(*budgets: int | None) -> int | None:
    """Return the lowest memory budget that is given, in bytes: a request may lower the server's, never raise it."""
    return min((budget for budget in budgets if budget), default=None)


def _messages(first_row: int, scores: np.ndarray) -> Iterator[pb.ScoreRows]:
    return codec.rows_to_messages(first_row, scores) if len(scores) else iter(())


def _steps(stride: tuple[int, int] | None, own: tuple[int, int]) -> tuple[int, int]:
    # every how many rows and columns of the network's own positions are wanted
    if stride is None:
        return 1, 1
    if min(stride) < 1 or stride[0] % own[0] or stride[1] % own[1]:
        raise InputError(f"the stride is {stride}; a stream's must be a multiple of the network's, which is {own}")
    return stride[0] // own[0], stride[1] // own[1]


def _coarser(geometry: Geometry, steps: tuple[int, int]) -> Geometry:
    # at the wider stride; a ring's part of a position counts as a whole one
    if steps == (1, 1):
        return geometry
    down, across = steps
    rows, cols = -(-geometry.rows // down), -(-geometry.cols // across)
    top, left, bottom, right = geometry.ring
    ring = (
        min(rows, math.ceil(top / down)),
        min(cols, math.ceil(left / across)),
        min(rows, math.ceil(bottom / down)),
        min(cols, math.ceil(right / across)),
    )
    exactness = geometry.exactness
    if exactness != "exact":
        inside = ring[0] + ring[2] < rows and ring[1] + ring[3] < cols
        exactness = "interior-exact" if inside else "padded"
    stride = (geometry.stride[0] * down, geometry.stride[1] * across)
    return replace(geometry, rows=rows, cols=cols, stride=stride, ring=ring, exactness=exactness)
