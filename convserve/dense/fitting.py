"""What fits a memory budget: images that run together, the width of a streamed image, the side of a whole one."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from convserve.dense.sliding import sliding
from convserve.dense.stream import ENDLESS
from convserve.errors import ModelError, UnsupportedOpError
from convserve.graph.ir import Graph
from convserve.plan.budget import least_bytes
from convserve.plan.report import mebibytes

__all__ = ["Capacity", "capacity", "largest"]

MOST_IMAGES = 1 << 16
MOST_PIXELS = (1 << 31) - 1
NEAR, FAR = 8, 24

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What fits budget_bytes: arena, scratch and scores held; 0 where not even one does.

    batch: images of the window's size that run together. stream_width: pixels of the widest image whose rows are
    streamed through, however high. square_side: pixels of the largest square image whose whole score map is held.
    The last two go in output strides, and are None where the network cannot slide.
    """

    budget_bytes: int
    window: Pair
    batch: int
    stream_width: int | None = None
    square_side: int | None = None

    def text(self) -> str:
        """Return one line for each."""
        lines = [
            f"{mebibytes(self.budget_bytes)} of arena, scratch and held scores are enough for",
            f"  a batch of {self.batch:,} image(s) of {self.window[0]}x{self.window[1]}",
        ]
        if self.stream_width is not None:
            lines.append(f"  rows of {self.stream_width:,} pixels that are streamed through, as many as come")
        if self.square_side is not None:
            lines.append(f"  a whole image of {self.square_side:,}x{self.square_side:,} pixels with its score map")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON."""
        return asdict(self)


def largest(fits: Callable[[int], bool], *, guess: int, most: int) -> int:
    """Return the largest number in 0..most that fits, -1 where none does, if all below one that fits do, too."""
    low, high = -1, most + 1
    at, step = min(max(guess, 0), most), max(1, guess // 32)
    while high - low > 1:
        if fits(at):
            low = at
        else:
            high = at
        if low >= 0 and high <= most:
            at = (low + high) // 2
            continue
        at = min(low + step, most) if low >= 0 else max(high - step, 0)
        step *= 2
    return low


def capacity(graph: Graph, *, window: Pair, budget_bytes: int) -> Capacity:
    """Return what runs of a graph with one output fit a budget, each in its smallest plan."""
    search = _Search(graph, budget_bytes)

    def batched(more: int) -> dict[str, Any]:
        return {"height": window[0], "width": window[1], "images": 1 + more}

    batch = 1 + search.largest(batched, MOST_IMAGES - 1)
    try:
        slide = sliding(graph)
    except (ModelError, UnsupportedOpError):
        return Capacity(budget_bytes, window, batch)
    across = slide.stride[1]

    def streamed(steps: int) -> dict[str, Any]:
        width = window[1] + steps * across
        rows, _ = slide.positions(ENDLESS, width)
        return {"height": ENDLESS, "width": width, "sink_rows": [rows], "streamed": True}

    def whole(steps: int) -> dict[str, Any]:
        side = max(window) + steps * across
        rows, cols = slide.positions(side, side)
        held = 4 * rows * cols * slide.channels
        return {"height": side, "width": side, "sink_rows": [rows], "score_bytes": held}

    widest = search.largest(streamed, (MOST_PIXELS - window[1]) // across)
    square = search.largest(whole, (MOST_PIXELS - max(window)) // across)
    return Capacity(
        budget_bytes,
        window,
        batch,
        stream_width=window[1] + widest * across if widest >= 0 else 0,
        square_side=max(window) + square * across if square >= 0 else 0,
    )


class _Search:
    """Asks the planner for the smallest plans, first near where two of them point."""

    def __init__(self, graph: Graph, budget_bytes: int) -> None:
        self.graph, self.budget_bytes = graph, budget_bytes

    def largest(self, shape: Callable[[int], dict[str, Any]], most: int) -> int:
        """Return the largest number in 0..most whose shape (arguments of least_bytes) fits, -1 where none does."""
        # rings grow by the same bytes each step, scores as they say
        near, far = (least_bytes(self.graph, **{**shape(number), "score_bytes": 0}) for number in (NEAR, FAR))
        slope = max(1, (far - near) // (FAR - NEAR))

        def seems_to_fit(number: int) -> bool:
            return near + slope * (number - NEAR) + int(shape(number).get("score_bytes", 0)) <= self.budget_bytes

        def fits(number: int) -> bool:
            return least_bytes(self.graph, **shape(number)) <= self.budget_bytes

        guess = largest(seems_to_fit, guess=self.budget_bytes // slope, most=most)
        return largest(fits, guess=guess, most=most)
