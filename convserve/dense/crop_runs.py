"""Crops that lie on one grid: what runs for them, in which memory, and their scores."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from convserve.dense.parts import MIDDLE, Parts, Piece, Places, middle_sizes, of_rows, pieces_of, put_together
from convserve.dense.ways import Way
from convserve.engine.engine import Engine
from convserve.engine.source import ImageRows, empty_scores
from convserve.graph.sharing import Passage, Sharing, Stretch

__all__ = ["CropRuns", "Rooms"]

Pair = tuple[int, int]

# Activations that crops are put together from before they run as one batch.
BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """What crops of one grid take: pieces that run together, of each stretch, and the rows of crops of a batch.

    room_bytes: what they need of each of the Rooms.
    """

    stretches: list[list[list[Piece]]]
    batch_rows: int
    room_bytes: tuple[int, int, int]


class Rooms:
    """Memory for a block: the input that is put together, and parts before and behind a stretch, in turn."""

    def __init__(self, sizes_bytes: tuple[int, ...]) -> None:
        self._rooms = [empty_scores(size, dtype=np.uint8) for size in sizes_bytes]

    def array(
        self, number: int, shape: tuple[int, ...], dtype: DTypeLike = np.float32, *, behind: int = 0
    ) -> np.ndarray:
        """Return an array in a room that begins that many bytes behind its beginning."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self._rooms[number][behind : behind + size].view(dtype).reshape(shape)


class CropRuns:
    """The engines of a way, and what they do with crops that lie on one grid."""

    def __init__(self, way: Way, itemsize: int) -> None:
        assert way.sharing is not None
        self.sharing: Sharing = way.sharing
        self._itemsize = itemsize
        self._channels = way.slide.channels
        self._output = way.engine.graph.outputs[0].name
        self._engines = [_engine_of(way.engine, stretch) for stretch in self.sharing.stretches]
        self._rest = way.engine
        if self.sharing.stretches:
            self._rest = way.engine.form(("rest", self.sharing.passage.tensor), lambda _: self.sharing.rest)
        self._blocks: dict[tuple[int, ...], Block] = {}

    def block(self, places: Places) -> Block:
        """Return what crops at these places take."""
        key = len(places[0]), len(places[1]), places[0].step, places[1].step
        if key not in self._blocks:
            self._blocks[key] = self._planned(places)
        return self._blocks[key]

    def _planned(self, places: Places) -> Block:
        found, rooms, item = [], [0, 0, 0], self._itemsize
        sizes = middle_sizes(self.sharing, places)
        for number, (stretch, middle) in enumerate(zip(self.sharing.stretches, sizes, strict=False)):
            runs = pieces_of(stretch, middle, places)
            copied = (_images(pieces) * math.prod(pieces[0].reads) for pieces in runs if not pieces[0].is_middle)
            behind = sum(_images(pieces) * math.prod(pieces[0].gives) for pieces in runs)
            rooms[0] = max(rooms[0], item * max(copied, default=0) * stretch.begin.volume.channels)
            rooms[1 + number % 2] = max(rooms[1 + number % 2], 4 * behind * stretch.end.volume.channels)
            found.append(runs)
            item = 4
        row = item * len(places[1]) * self.sharing.passage.volume.values
        rows = min(max(1, BATCH_BYTES // row), len(places[0]))
        return Block(found, rows, (max(rooms[0], rows * row), rooms[1], rooms[2]))

    def runs(self, places: Places) -> Iterator[tuple[Engine, int, Pair, int]]:
        """Yield the runs of a block: the engine, images, their (height, width), and how often."""
        block, passage = self.block(places), self.sharing.passage
        for engine, runs in zip(self._engines, block.stretches, strict=True):
            for pieces in runs:
                yield engine, _images(pieces), pieces[0].reads, 1
        rows, columns = len(places[0]), len(places[1])
        size = passage.size(0), passage.size(1)
        yield self._rest, block.batch_rows * columns, size, rows // block.batch_rows
        if rows % block.batch_rows:
            yield self._rest, rows % block.batch_rows * columns, size, 1

    def scores(self, region: ImageRows, places: Places, rooms: Rooms, **options: Any) -> np.ndarray:
        """Return the scores of all crops of a region of the image, float32 (rows, columns, channels).

        options: of Engine.run.
        """
        block = self.block(places)
        parts: Parts = {(MIDDLE, MIDDLE): region.rows[None]}
        of = region.of
        for number, stretch in enumerate(self.sharing.stretches):
            behind: Parts = {}
            filled = 0
            for pieces in block.stretches[number]:
                x = self._put_together(parts, stretch.begin, places, pieces, rooms)
                channels = stretch.end.volume.channels
                y = rooms.array(1 + number % 2, (_images(pieces), *pieces[0].gives, channels), behind=filled)
                filled += y.nbytes
                self._engines[number].run(of(x), into={stretch.end.tensor: y.transpose(0, 3, 1, 2)}, **options)
                for piece, images in _split(pieces, y):
                    behind[piece.kinds] = images[:, :, *piece.kept]
            parts, of = behind, ImageRows
        rows, columns, passage = len(places[0]), len(places[1]), self.sharing.passage
        scores = np.empty((rows, columns, self._channels), np.float32)
        size = passage.size(0), passage.size(1)
        wanted = (0, size[0]), (0, size[1])
        some = parts[MIDDLE, MIDDLE]
        for first in range(0, rows, block.batch_rows):
            batch = slice(first, min(first + block.batch_rows, rows))
            x = rooms.array(0, (batch.stop - first, columns, *size, some.shape[4]), some.dtype)
            put_together(of_rows(parts, batch), passage, (places[0][batch], places[1]), wanted, x)
            into = scores[batch].reshape(-1, self._channels, 1, 1)
            self._rest.run(of(x.reshape(-1, *x.shape[2:])), into={self._output: into}, **options)
        return scores

    def _put_together(
        self, parts: Parts, passage: Passage, places: Places, pieces: list[Piece], rooms: Rooms
    ) -> np.ndarray:
        # the images that pieces of one size read
        some = parts[MIDDLE, MIDDLE]
        if pieces[0].is_middle:
            return some[0]
        x = rooms.array(0, (_images(pieces), *pieces[0].reads, some.shape[4]), some.dtype)
        for piece, images in _split(pieces, x):
            put_together(parts, passage, places, piece.wanted, images)
        return x


def _engine_of(engine: Engine, stretch: Stretch) -> Engine:
    return engine.form(("shared", stretch.begin.tensor, stretch.end.tensor), lambda _: stretch.graph)


def _images(pieces: list[Piece]) -> int:
    return sum(math.prod(piece.counts) for piece in pieces)


def _split(pieces: list[Piece], images: np.ndarray) -> Iterator[tuple[Piece, np.ndarray]]:
    # the images of each piece, (rows, columns, height, width, channels)
    first = 0
    for piece in pieces:
        end = first + math.prod(piece.counts)
        yield piece, images[first:end].reshape(*piece.counts, *images.shape[1:])
        first = end
