"""What a run gives back: predictions, score maps and their geometry; light to import, shared by engine and client."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from convserve.errors import InputError
from convserve.reduction import Reduction

if TYPE_CHECKING:
    from convserve.formats.mapping import Mapping

__all__ = ["Box", "Geometry", "PlanBytes", "Prediction", "Predictions", "RunReport", "ScoreMap", "SizedPlan", "Storage"]

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, bottom and right excluded."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class that a network gives an image: its label, its index in the output and its score."""

    label: str
    index: int
    score: float


class SizedPlan(Protocol):
    """Anything that says what a run takes, in bytes: the engine's plan, or what a server tells of its own."""

    @property
    def arena_bytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def score_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PlanBytes:
    """What a plan takes, in bytes: rings, packing panels, weights, and scores that are held rather than streamed."""

    arena_bytes: int = 0
    scratch_bytes: int = 0
    weight_bytes: int = 0
    score_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Arena + scratch + scores held; weights are counted apart, since they are mapped and shared."""
        return self.arena_bytes + self.scratch_bytes + self.score_bytes


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a call was planned to take, and what was measured.

    plan: of its largest run. measured_bytes: what that run was given for arena and scratch, and the scores held;
    it equals plan.total_bytes. seconds: from the call's beginning to its end.
    """

    plan: SizedPlan
    measured_bytes: int
    seconds: float


class Predictions(list[Prediction]):
    """The classes of one image, best first, with the report of the call that found them; equal to a plain list."""

    def __init__(self, predictions: Iterable[Prediction], *, report: RunReport) -> None:
        super().__init__(predictions)
        self.report = report


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a model's weights lie: size_bytes of the file path, mapped and shared, or of private memory, and why there.

    path, mapping: None where the memory is private; private_because is "" where it is not. mapping: how the file is
    mapped, which every run checks.
    """

    size_bytes: int
    path: str | None = None
    private_because: str = ""
    mapping: "Mapping | None" = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        size = f"{self.size_bytes / (1 << 20):.2f} MiB"
        if self.path is not None:
            return f"{size} mapped from {self.path}, shared with other processes"
        return f"{size} of private memory ({self.private_because})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Geometry:
    """Where the scores of a map lie over its image; known before the first score.

    rows, cols: score positions. stride, window, offset: (vertical, horizontal) pixels between neighbouring
    positions, that one score sees, and from the image's corner to the first window's corner.
    exactness: "exact" (every score has the bits of its crop), "interior-exact" (outside the ring a score does
    not depend on where the image ends) or "padded" (the ring covers everything).
    ring: (top, left, bottom, right) in score positions. classes: class index behind each entry of the
    scores' last axis. labels: their names, in the same order, or None.
    image: (height, width) in pixels, 0 while unknown. edge: what was done where windows do not fill the image, "none";
    "pad", windows may leave it at the bottom and right, where they see zeros; or "align", the last row and column of
    windows lie at its end, nearer to the ones before than the stride. method: "dense" (one pass at the network's own
    stride or a coarser one), "shifted", "atrous", "crops" or "crops-shared" (crops that share what they can).
    """

    rows: int
    cols: int
    stride: tuple[int, int]
    window: tuple[int, int]
    offset: tuple[int, int] = (0, 0)
    exactness: str = "exact"
    ring: tuple[int, int, int, int] = (0, 0, 0, 0)
    classes: list[int] = field(default_factory=list)
    labels: list[str] | None = None
    image: tuple[int, int] = (0, 0)
    edge: str = "none"
    method: str = "dense"

    def box(self, i: int, j: int) -> Box:
        """Return the pixels (top, left, bottom, right) that the score at row i, column j sees.

        Negative i and j count from the end; InputError where the position does not exist.
        """
        row, col = (i + self.rows if i < 0 else i), (j + self.cols if j < 0 else j)
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise InputError(f"score position ({i}, {j}) does not exist; the map has {self.rows}x{self.cols} positions")
        top, left = self._begin(0, row, self.rows), self._begin(1, col, self.cols)
        return top, left, top + self.window[0], left + self.window[1]

    def _begin(self, axis: int, position: int, count: int) -> int:
        begin = self.offset[axis] + position * self.stride[axis]
        if self.edge == "align" and position == count - 1 and self.image[axis]:
            return self.image[axis] - self.window[axis]
        return begin

    def label_of(self, index: int) -> str:
        """Return the label of a class index, such as those of a reduced map's indices; InputError for one not kept."""
        if index not in self.classes:
            raise InputError(f"the class {index} is none of the {len(self.classes)} that the map keeps")
        return str(index) if self.labels is None else self.labels[self.classes.index(index)]

    @property
    def covered(self) -> Box:
        """The part of the image, in pixels, that at least one window sees (empty where the map is)."""
        if not self.rows or not self.cols:
            return self.offset[0], self.offset[1], self.offset[0], self.offset[1]
        top, left, bottom, right = self.box(0, 0)[:2] + self.box(-1, -1)[2:]
        height, width = self.image
        return top, left, min(bottom, height or bottom), min(right, width or right)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoreMap(Geometry):
    """Class scores at every window position of an image: scores is float32 (rows, cols, classes).

    A reduced map has scores of another type or of the best classes alone, best first, and the class index behind
    each in indices, int32 (rows, cols, top); by argmax it has indices (rows, cols) and scores (rows, cols, 0).
    report: what the run was planned to take, what it took, and how long.
    """

    scores: np.ndarray
    report: RunReport
    indices: np.ndarray | None = None
    reduction: Reduction = field(default_factory=Reduction)

    @property
    def plan(self) -> SizedPlan:
        """What the run was planned to take, in bytes."""
        return self.report.plan

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.report.seconds

    def upsample(self, height: int, width: int) -> np.ndarray:
        """Return the scores over the whole image as float32 (height, width, classes), whatever size is wanted.

        Each score stands at its window's centre; between centres values are bilinear, beyond the outermost ones
        constant. `covered` says which part of the image windows saw. Raises InputError for sizes below 1, and where
        only the best classes of each position were kept.
        """
        for name, size in (("height", height), ("width", width)):
            if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
                raise InputError(f"{name} is {size!r}; it must be a whole number from 1")
        if self.indices is not None:
            raise InputError("a map of each position's best classes cannot be upsampled: positions differ in them")
        above, down = self._between(0, int(height))
        before, across = self._between(1, int(width))
        behind = np.minimum(before + 1, self.cols - 1)
        found = np.empty((height, width, self.scores.shape[2]), np.float32)
        for row in range(height):
            first, second = self.scores[above[row]], self.scores[min(above[row] + 1, self.rows - 1)]
            line = _mixed(first.astype(np.float32), second, down[row])
            found[row] = _mixed(line[before], line[behind], across[:, None])
        return found

    def _between(self, axis: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        # of each pixel wanted along an axis: the position before it, and the share of the next one
        count = self.cols if axis else self.rows
        starts = np.array([self._begin(axis, position, count) for position in range(count)])
        centres = starts + self.window[axis] / 2
        pixels = self.image[axis] or self.covered[2 + axis]
        at = (np.arange(size) + 0.5) * pixels / size
        before = np.clip(np.searchsorted(centres, at, "right") - 1, 0, max(count - 2, 0))
        behind = np.minimum(before + 1, count - 1)
        gaps = np.maximum(centres[behind] - centres[before], 1)
        return before, np.clip((at - centres[before]) / gaps, 0, 1).astype(np.float32)

    @classmethod
    def over(
        cls, geometry: Geometry, arrays: dict[str, np.ndarray], *, report: RunReport, reduction: Reduction
    ) -> "ScoreMap":
        """Return the map that has this geometry, and the arrays that its reduction names."""
        scores = arrays.get("scores")
        if scores is None:
            scores = np.empty((geometry.rows, geometry.cols, 0), np.float32)
        return cls(
            **vars(geometry), scores=scores, indices=arrays.get("indices"), report=report, reduction=reduction
        )


def _mixed(first: np.ndarray, second: np.ndarray, share: Any) -> np.ndarray:
    mixed: np.ndarray = (1 - share) * first + share * second
    return mixed
