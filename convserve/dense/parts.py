"""What crops share of activations: their middle for all, borders for each row and column, and corners for each crop."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from convserve.graph.ops import infer_volumes
from convserve.graph.receptive import Interval
from convserve.graph.sharing import Passage, Sharing, Stretch

__all__ = ["MIDDLE", "Parts", "Piece", "Places", "middle_sizes", "of_rows", "pieces_of", "put_together"]

FIRST, MIDDLE, LAST = range(3)

Pair = tuple[int, int]
Wanted = tuple[Interval | None, Interval | None]
Parts = dict[Pair, np.ndarray]
"""Of one passage, by (vertical, horizontal) kind: arrays (rows, columns, height, width, channels), one for each row and
column of crops, or one for all of them along an axis on which its kind is MIDDLE."""
Places = tuple[range, range]
"""The first rows and the first columns of crops, in pixels from the first crop's."""

# The axes that taking windows leaves, in the order of a part's: along rows, and along columns.
_ORDER = ((2, 1, 5, 3, 4, 0), (0, 3, 2, 5, 4, 1))


@dataclass(frozen=True, slots=True)
class Piece:
    """What a stretch computes of one kind: the input positions that it wants of each crop, and what it keeps.

    counts: (rows, columns) of images, reads and gives: their (height, width) before and behind the stretch.
    """

    kinds: Pair
    wanted: Wanted
    counts: Pair
    reads: Pair
    gives: Pair
    kept: tuple[slice, slice]

    @property
    def is_middle(self) -> bool:
        """Whether it is the one that all crops share."""
        return self.wanted == (None, None)


def middle_sizes(sharing: Sharing, places: Places) -> Iterator[Pair]:
    """Yield the (height, width) of the middle before each stretch, and behind the last."""
    passages = [stretch.begin for stretch in sharing.stretches] + [sharing.passage]
    for passage in passages:
        yield (
            passage.size(0) + places[0][-1] // passage.stride[0],
            passage.size(1) + places[1][-1] // passage.stride[1],
        )


def pieces_of(stretch: Stretch, middle: Pair, places: Places) -> list[list[Piece]]:
    """Return the runs of a stretch over crops whose middle, before it, has that (height, width).

    Pieces of one size run together.
    """
    kinds: list[list[tuple[int, Interval | None]]] = [
        [(MIDDLE, None), *((kind, strip) for kind, strip in zip((FIRST, LAST), strips, strict=True) if strip)]
        for strips in stretch.strips
    ]
    found: dict[tuple[Pair, bool], list[Piece]] = {}
    for (down, rows), (across, columns) in product(*kinds):
        reads = _length(rows, middle[0]), _length(columns, middle[1])
        volume = infer_volumes(stretch.graph, *reads)[stretch.end.tensor]
        assert volume.height is not None
        assert volume.width is not None
        # the middle is read where it lies, what runs with others is put together
        found.setdefault((reads, (rows, columns) == (None, None)), []).append(
            Piece(
                (down, across),
                (rows, columns),
                (1 if rows is None else len(places[0]), 1 if columns is None else len(places[1])),
                reads,
                (volume.height, volume.width),
                (_kept(down, 0, stretch.end, volume.height), _kept(across, 1, stretch.end, volume.width)),
            )
        )
    return list(found.values())


def _length(wanted: Interval | None, middle: int) -> int:
    return middle if wanted is None else wanted[1] - wanted[0]


def _kept(kind: int, axis: int, passage: Passage, size: int) -> slice:
    # of what a strip gives: its inner end saw zeros where the crop has pixels
    first, last = passage.borders(axis)
    return {FIRST: slice(0, first), MIDDLE: slice(0, size), LAST: slice(size - last, size)}[kind]


def of_rows(parts: Parts, rows: slice) -> Parts:
    """Return the parts that some rows of crops are put together from."""
    return {kinds: part if kinds[0] == MIDDLE else part[rows] for kinds, part in parts.items()}


def put_together(parts: Parts, passage: Passage, places: Places, wanted: Wanted, into: np.ndarray) -> None:
    """Write the wanted positions of every crop into an array (rows, columns, height, width, channels).

    wanted: for each axis positions of the crops, or None for the middle that all share.
    """
    down, across = _slices(passage, 0, wanted[0]), _slices(passage, 1, wanted[1])
    for (kind_y, from_y, to_y), (kind_x, from_x, to_x) in product(down, across):
        part = parts[kind_y, kind_x]
        for axis, kind, source in ((0, kind_y, from_y), (1, kind_x, from_x)):
            if wanted[axis] is None:
                continue
            if kind == MIDDLE:
                part = _windows(part, axis, source, places[axis], passage.stride[axis])
            else:
                part = part[:, :, source] if axis == 0 else part[:, :, :, source]
        into[:, :, to_y, to_x] = part


def _slices(passage: Passage, axis: int, wanted: Interval | None) -> list[tuple[int, slice, slice]]:
    # (kind, positions of the part, positions of the result); those of the middle count from each crop's first
    if wanted is None:
        return [(MIDDLE, slice(None), slice(None))]
    (first, end), size = passage.clean[axis], passage.size(axis)
    found = []
    for kind, low, high, begin in ((FIRST, 0, first, 0), (MIDDLE, first, end, 0), (LAST, end, size, end)):
        low, high = max(low, wanted[0]), min(high, wanted[1])
        if low < high:
            found.append((kind, slice(low - begin, high - begin), slice(low - wanted[0], high - wanted[0])))
    return found


def _windows(part: np.ndarray, axis: int, positions: slice, places: range, stride: int) -> np.ndarray:
    """Return a view of the positions of each crop, where along the axis the part is one for all."""
    views = sliding_window_view(part, positions.stop - positions.start, axis=2 + axis)
    step = places.step // stride
    begin = places.start // stride + positions.start
    at = slice(begin, begin + (len(places) - 1) * step + 1, step)
    views = views[:, :, at] if axis == 0 else views[:, :, :, at]
    return views.transpose(_ORDER[axis])[..., 0]
