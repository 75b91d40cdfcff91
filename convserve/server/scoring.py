"""A score map in work for a call: opened on an image or on rows to come, computed block by block."""

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from convserve import settings
from convserve.images import decode
from convserve.results import Geometry, SizedPlan
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.scene import SceneHeader

if TYPE_CHECKING:
    from convserve.dense import CropRows, MergedRows, MergedStream, RowStream, ScoreStream
    from convserve.model import Model

    Rows = RowStream | MergedRows | CropRows
    Stream = Rows | ScoreStream | MergedStream

__all__ = ["Scoring", "lowest_budget"]

# A height that stands for an unknown one: far above any network's window, so that only the ring's bottom is a guess.
_TALL = 1 << 40

_BLOCK_ROWS = 4
# scores, their encoded bytes, the message, and what gRPC sends of it
_BLOCK_COPIES = 4

Blocks = Generator[tuple[int, np.ndarray], None, None]


class Scoring:
    """The score map of one request. Methods that compute run on a thread, one at a time; cancel() from any."""

    def __init__(self, header: SceneHeader, model: "Model", *, most_bytes: int | None = None) -> None:
        """most_bytes: what the run may take whatever header and model say."""
        self._header = header
        self._model = model
        self._budget = lowest_budget(
            header.memory_budget, model.memory_budget, settings.get("MEMORY_BUDGET"), most_bytes
        )
        self._cancelled = False
        self._stream: Stream | None = None
        self._stop: Callable[[], None] = lambda: None
        self._release: Callable[[], None] = lambda: None
        self._blocks: Blocks | None = None
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
    def taken_bytes(self) -> int:
        """What the run takes, the image if it is here, and the blocks of scores on their way, guessed before the first.
        """
        place = self.geometry
        block = 4 * min(place.rows or _BLOCK_ROWS, _BLOCK_ROWS) * place.cols * len(place.classes)
        image = 0 if self._header.dtype else math.prod(place.image) * self._model.graph.input_volume.channels
        return image + self.plan.total_bytes + _BLOCK_COPIES * max(block, self.sent_bytes)

    @property
    def measured_bytes(self) -> int:
        """Allocated for arena, scratch and the scores of one block."""
        assert self._stream is not None
        return self._stream.allocated_bytes + self.sent_bytes

    def open_image(self, file: bytes) -> None:
        """Decode an image file and plan its map. Raises ImageError, ShapeError, MemoryBudgetError, ModelError."""
        stream = self._model.score_stream(file, **self._options())
        self._keep(stream, stream.close, lambda: None)
        self._blocks = cast(Blocks, iter(stream))
        self.geometry = stream.geometry

    def open_rows(self) -> None:
        """Plan a map for rows to come, and take its memory. Raises ShapeError, MemoryBudgetError, ModelError."""
        header = self._header
        stream = self._model.row_stream(header.width, dtype=header.dtype or "", **self._options())
        self._keep(stream, stream.cancel, stream.close)
        self.geometry = stream.geometry(header.height or _TALL)
        if not header.height:
            self.geometry = replace(self.geometry, rows=0, image=(0, header.width))

    def _options(self) -> dict[str, Any]:
        header = self._header
        return {
            "stride": header.stride,
            "method": header.method,
            "edge": header.edge,
            "classes": header.classes,
            "scores": header.reduction.scores,
            "memory_budget": self._budget,
        }

    def _keep(self, stream: "Stream", stop: Callable[[], None], release: Callable[[], None]) -> None:
        self._stream, self._stop, self._release = stream, stop, release
        if self._cancelled:
            stop()

    def feed(self, rows: np.ndarray) -> None:
        """Give the next rows; their scores come from next_rows()."""
        self._blocks = self._fed(cast("Rows", self._stream), rows)

    def _fed(self, stream: "Rows", rows: np.ndarray) -> Blocks:
        channels = self._model.graph.input_volume.channels
        if rows.shape[2] != channels:
            # gray to colour, colour to gray, transparency over white: as files are decoded
            rows = decode(rows, channels="gray" if channels == 1 else "rgb")
        yield from stream.feed(rows)

    def finish(self, height: int) -> None:
        """Say that the last row was fed; the rest of the scores comes from next_rows()."""
        stream = cast("Rows", self._stream)
        self._blocks = cast(Blocks, stream.finish())
        if not self._header.height:
            self.geometry = stream.geometry(height)

    def next_rows(self) -> list[pb.ScoreMapResponse]:
        """Return the messages of the next block of scores; none where no more can be computed for now."""
        # encoded here, outside the event loop, and before the iteration may touch the array again
        for first, scores in cast(Blocks, self._blocks):
            self.sent_bytes = max(self.sent_bytes, scores.nbytes)
            if len(scores):
                arrays = self._header.reduction.apply(scores, self.geometry.classes)
                return [pb.ScoreMapResponse(rows=rows) for rows in codec.rows_to_messages(first, arrays)]
        return []

    def cancel(self) -> None:
        """Make the method in work end soon, with RunCancelled."""
        self._cancelled = True
        self._stop()

    def close(self) -> None:
        """Give the memory back; not while a method is in work."""
        self.cancel()
        if self._blocks is not None:
            self._blocks.close()
        self._release()
        self._stream = self._blocks = None


def lowest_budget(*budgets: int | None) -> int | None:
    """Return the lowest memory budget that is given, in bytes: a request may lower the server's, never raise it."""
    return min((budget for budget in budgets if budget), default=None)
