"""The planner's search: over all cuts and band heights, the layout predicted fastest within each of some limits.

A layout is a row of segments, and both its bytes and its seconds come from theirs: the most of the ones, the sum of
the others. So the best row within a limit is a shortest path over the places where the network may be cut. Ring
heights are taken from one simulation of the uncut network for each band height.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from convserve.plan.cost import Banded, banded, first_seconds, passed_seconds, segment_seconds, work_of
from convserve.plan.costs import CostTable
from convserve.plan.layout import Layout, bands_of
from convserve.plan.program import Program
from convserve.plan.schedule import schedule

__all__ = ["BAND_HEIGHTS", "NEAR_FASTEST", "Found", "Search"]

BAND_HEIGHTS = (1, 2, 4, 8, 16, 32)
STEP = 2**0.25  # from one limit of bytes to the next
# Predicted: what is measured then stays within 1.05.
NEAR_FASTEST = 1.03


@dataclass(frozen=True, slots=True)
class Found:
    """A layout, with the bytes of its rings and the seconds as the search estimates them."""

    layout: Layout
    ring_bytes: float
    seconds: float


class Search:
    """All segments of a program, each in all band heights, for so many images and threads.

    What begins with operation i and ends before operation j in height h takes bytes_of[h, i, j] and
    seconds_of[h, i, j]. Writes count with what is before them. The program's rings are left as simulated last.
    """

    def __init__(self, program: Program, *, images: int, threads: int, table: CostTable) -> None:
        self.count = sum(operation.kind != "Write" for operation in program.operations)
        tallest = max(tensor.height for tensor in program.tensors)
        self.heights = [height for height in BAND_HEIGHTS if height < 2 * tallest]
        works = [work_of(operation, program) for operation in program.operations]
        rings, brief, costs = [], [], []
        for height in self.heights:
            bands = _simulate(program, height)
            rings.append([float(tensor.ring_bytes * images) for tensor in program.rings()])
            brief.append([tensor.brief for tensor in program.rings()])
            costs.append([banded(work, rows, images, threads, table) for work, rows in zip(works, bands, strict=True)])
        whole = [banded(work, work.rows, images, threads, table) for work in works[: self.count]]
        self.first_s = first_seconds(works, threads, table)
        self.passed_s = np.array(passed_seconds(program, images, threads))
        self.bytes_of = np.full((len(self.heights), self.count, self.count + 1), np.inf)
        self.seconds_of = np.full((len(self.heights), self.count, self.count + 1), np.inf)
        full = [tensor.row_pitch * tensor.height * 4.0 * images for tensor in program.rings()]
        lives = program.lives()
        for number in range(len(self.heights)):
            self._measure(number, full, rings[number], brief[number], lives, costs[number], table)
        # one operation computes all its rows at once, from and to whole tensors
        for index, cost in enumerate(whole):
            size = sum(mine for mine, (first, last) in zip(full, lives, strict=True) if first <= index <= last)
            self.bytes_of[:, index, index + 1] = size
            self.seconds_of[:, index, index + 1] = segment_seconds(cost, size, table)

    def _measure(
        self,
        number: int,
        full: list[float],
        rings: list[float],
        brief: list[bool],
        lives: list[tuple[int, int]],
        costs: list[Banded],
        table: CostTable,
    ) -> None:
        # all segments in one height; only arrays of one dimension, since NumPy's loops over others crash without memory
        sums = [np.zeros(self.count + 1) for _ in Banded._fields]
        for field, column in zip(sums, zip(*costs, strict=True), strict=True):
            field[1:] = list(accumulate(column[: self.count]))
        steps = [cost.steps for cost in costs]
        born: list[list[int]] = [[] for _ in range(self.count)]
        dead: list[list[int]] = [[] for _ in range(self.count)]
        for root, (first, last) in enumerate(lives):
            born[first].append(root)
            dead[last].append(root)
        # live[j]: of what is alive in [begin, j]; a tensor counts whole, one that lives nowhere else as its ring, and
        # of brief rings the largest
        live, largest_brief, most_steps = np.zeros(self.count), np.zeros(self.count), np.zeros(self.count)
        for begin in reversed(range(self.count)):
            for root in dead[begin]:
                live[lives[root][0] :] += full[root]
            for root in born[begin]:
                live[lives[root][1] :] -= full[root] - (0.0 if brief[root] else rings[root])
                if brief[root]:
                    largest_brief[lives[root][1] :] = np.maximum(largest_brief[lives[root][1] :], rings[root])
            most_steps[begin:] = np.maximum(most_steps[begin:], steps[begin])
            part = Banded(most_steps[begin:], *(field[begin + 1 :] - field[begin] for field in sums[1:]))
            held = live[begin:] + largest_brief[begin:]
            self.bytes_of[number, begin, begin + 1 :] = held
            self.seconds_of[number, begin, begin + 1 :] = segment_seconds(part, held, table)
            self.seconds_of[number, begin, begin + 1 :] += self.passed_s[begin] + self.passed_s[begin + 1 :]

    def _within(self, most_bytes: float) -> Found:
        # the fastest row of segments of at most so many bytes each, of which there is one
        allowed = np.where(self.bytes_of <= most_bytes, self.seconds_of, np.inf)
        cost = allowed.min(0)
        best, come_from = np.full(self.count + 1, np.inf), np.zeros(self.count + 1, int)
        best[0] = 0.0
        for end in range(1, self.count + 1):
            through = best[:end] + cost[:end, end]
            come_from[end] = through.argmin()
            best[end] = through[come_from[end]]
        segments = []
        end = self.count
        while end:
            begin = int(come_from[end])
            segments.append((begin, end, int(allowed[:, begin, end].argmin())))
            end = begin
        segments.reverse()
        layout = Layout(
            tuple(begin for begin, _, _ in segments[1:]),
            tuple(1 if end - begin == 1 else self.heights[height] for begin, end, height in segments),
        )
        taken = max(self.bytes_of[height, begin, end] for begin, end, height in segments)
        return Found(layout, float(taken), float(best[-1]) + self.first_s)

    def _least_bytes(self) -> float:
        # the least that the largest segment of any row takes
        sizes = self.bytes_of.min(0)
        least = np.zeros(self.count + 1)
        for end in range(1, self.count + 1):
            least[end] = np.maximum(least[:end], sizes[:end, end]).min()
        return float(least[-1])

    def frontier(self) -> Iterator[Found]:
        """Yield the fastest layout within each limit, smallest first, up to the fastest of all."""
        limit = self._least_bytes()
        here = self._within(limit)
        yield here
        fastest = self._within(np.inf)
        while limit < fastest.ring_bytes:
            limit = max(limit * STEP, here.ring_bytes + 1)
            found = self._within(limit)
            if found.seconds < here.seconds:
                here = found
                yield here

    def near_fastest(self) -> Found:
        """Return the smallest layout predicted to take at most NEAR_FASTEST times as long as the fastest."""
        fastest = self._within(np.inf)
        low, high = self._least_bytes(), fastest.ring_bytes
        best = self._within(low)
        if best.seconds <= NEAR_FASTEST * fastest.seconds:
            return best
        best = fastest
        while low * 1.01 < high:
            middle = (low + high) / 2
            here = self._within(middle)
            if here.seconds <= NEAR_FASTEST * fastest.seconds:
                best, high = here, here.ring_bytes
            else:
                low = middle
        return best


def _simulate(program: Program, height: int) -> list[int]:
    # ring heights of the uncut network; returns the rows of each operation's steps
    program.forget()
    one = [0] * len(program.operations)
    bands = bands_of(program, one, Layout((), height))
    schedule(program, one, bands)
    return bands
