"""Ways to a score map: the stride that is wanted, the form of the network that slides, the passes, and their cost."""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from convserve.dense.sliding import Sliding, checked_stride, cropping, positions_along, sliding
from convserve.engine.engine import Engine
from convserve.errors import InputError, MemoryBudgetError, UnsupportedOpError
from convserve.graph.ir import Graph
from convserve.graph.restride import coarsened, extended, least_work
from convserve.graph.sharing import Sharing, sharing
from convserve.plan.plan import Plan, make_plan
from convserve.results import Geometry, PlanBytes

__all__ = [
    "EDGES",
    "METHODS",
    "MOST_PASSES",
    "Start",
    "Way",
    "WayPlan",
    "choose_way",
    "plan_way",
    "predicted_seconds",
    "sliding_ways",
]

METHODS = ("auto", "dense", "shifted", "atrous", "crops", "crops-shared")
EDGES = ("none", "pad", "align")

MOST_PASSES = 64
"""Shifted passes that rows to come may run in step; each has an arena of its own."""

# Positions beside the one at the window, of the image that methods are compared on where the image must not matter.
COMPARED_POSITIONS = 16

Pair = tuple[int, int]
_SHARINGS: "WeakKeyDictionary[Engine, dict[tuple[Pair, bool], Sharing]]" = WeakKeyDictionary()

Start = tuple[int, slice]
"""Of a pass along one axis: the pixel where it begins, and the positions of the map that it gives."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a map is computed: passes of one form of the network, each as many pixels further on as the map's stride.

    engine: of the form, which slides as `slide` says; shifts: passes (down, across). method: as in Geometry.
    sharing: how crops are computed, where they are.
    """

    method: str
    engine: Engine
    slide: Sliding
    stride: Pair
    shifts: Pair = (1, 1)
    edge: str = "none"
    sharing: Sharing | None = None

    @property
    def merges(self) -> bool:
        """Whether several passes make up the map."""
        return self.shifts != (1, 1) or self.edge == "align"

    def geometry(self, height: int, width: int, *, classes: list[int], labels: list[str] | None) -> Geometry:
        """Return where the scores of an image lie, and how exact they are. Raises ShapeError where no window fits."""
        rows, cols = self.slide.positions(height, width, self.stride, self.edge)
        ring = (*self._ring(0, height, rows), *self._ring(1, width, cols))
        ring = ring[0], ring[2], ring[1], ring[3]
        if not self.slide.padded_by:
            exactness = "exact"
        elif ring[0] + ring[2] < rows and ring[1] + ring[3] < cols:
            exactness = "interior-exact"
        else:
            exactness = "padded"
        return Geometry(
            rows=rows,
            cols=cols,
            stride=self.stride,
            window=self.slide.window,
            exactness=exactness,
            ring=ring,
            classes=classes,
            labels=labels,
            image=(height, width),
            edge=self.edge,
            method=self.method,
        )

    def _ring(self, axis: int, size: int, count: int) -> Pair:
        # each shifted pass sees padding before its own beginning, but all end with the image
        step, window, beyond = self.stride[axis], self.slide.window[axis], self.slide.beyond
        first = -(-beyond[axis] // self.slide.stride[axis]) * self.shifts[axis]
        clean = max(0, (size - window - beyond[2 + axis]) // step + 1)
        last = count - clean
        if self.edge == "align":
            # what lies at the image's end is a pass of its own, as high as the window
            regular = (size - window) // step + 1
            last = regular - min(clean, regular) + (count - regular if self.slide.padded_by else 0)
        return min(first, count), min(last, count)

    def starts(self, axis: int, size: int) -> list[Start]:
        """Return the passes along one axis of an image of that size: shifted ones, then the one at the image's end."""
        step, window, shifts = self.stride[axis], self.slide.window[axis], self.shifts[axis]
        count = positions_along(size, window, step, self.edge)
        regular = (size - window) // step + 1 if self.edge == "align" else count
        found = [(shift * step, slice(shift, regular, shifts)) for shift in range(min(shifts, regular))]
        return found + ([(size - window, slice(regular, count))] if count > regular else [])

    def extent(self, axis: int, positions: int) -> int | None:
        """Return the pixels that so many positions of a pass see; None where they see all to the image's end.

        Without the pixels behind them, which change nothing, most passes share one plan.
        """
        if self.slide.padded_by or self.edge == "pad":
            return None
        return (positions - 1) * self.slide.stride[axis] + self.slide.window[axis]


@dataclass(frozen=True, slots=True)
class WayPlan:
    """What a way is predicted to take: its passes, or crops, one after the other, each with the memory of the largest.

    note: what crops share, or why nothing, where they were asked to.
    """

    method: str
    passes: int
    predicted_s: float
    plan: Plan | PlanBytes
    note: str = ""


def sliding_ways(engine: Engine, stride: int | Pair | None, *, edge: str = "none") -> dict[str, Way]:
    """Return the ways, by method, in which a network that slides gives a map at a stride.

    One, "dense", at the network's own stride or a multiple of it; else "shifted", and "atrous" where the layers behind
    the strides can be dilated. Raises InputError, UnsupportedOpError as sliding does.
    """
    if edge not in EDGES:
        raise InputError(f"edge is {edge!r}; allowed: {', '.join(EDGES)}")
    slide = sliding(engine.graph)
    steps = checked_stride(stride, slide)
    down, across = (max(step // own, 1) for step, own in zip(steps, slide.stride, strict=True))
    shifts = max(slide.stride[0] // steps[0], 1), max(slide.stride[1] // steps[1], 1)

    def way(method: str, shifts: Pair) -> Way:
        reached = steps[0] * shifts[0], steps[1] * shifts[1]

        def make(graph: Graph) -> Graph:
            finest = min(reached[0], slide.stride[0]), min(reached[1], slide.stride[1])
            form = graph if finest == slide.stride else least_work(graph, finest)
            form = coarsened(form, (down, across))
            return extended(form, steps[0] - 1, steps[1] - 1) if edge == "pad" else form

        changed = reached != slide.stride or edge == "pad"
        form = engine.form((reached, steps if edge == "pad" else None), make) if changed else engine
        return Way(method, form, replace(slide, stride=reached), steps, shifts, edge)

    if shifts == (1, 1):
        return {"dense": way("dense", shifts)}
    found = {"shifted": way("shifted", shifts)}
    with suppress(UnsupportedOpError):
        found["atrous"] = way("atrous", (1, 1))
    return found


def choose_way(
    engine: Engine,
    method: str,
    stride: int | Pair | None,
    *,
    edge: str = "none",
    width: int,
    height: int | None = None,
    memory_budget: int | None = None,
) -> Way:
    """Return the way in which a map over an image is computed.

    "auto" takes à trous where else more than MOST_PASSES would run, otherwise what is predicted faster: for exact
    networks, which every way gives the same bits, over this image on this machine; for others by the shipped costs over
    an image of a fixed size, so that no image's size, machine, budget or number of threads decides what its scores are.
    height: None where it is not known yet. Raises InputError, UnsupportedOpError where the method is not there,
    ShapeError.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    if method in ("crops", "crops-shared"):
        return _cropped(engine, stride, edge=edge, shared=method == "crops-shared")
    ways = sliding_ways(engine, stride, edge=edge)
    if "dense" in ways:
        return ways["dense"]
    if method == "atrous" and "atrous" not in ways:
        # says at which stride there is none, and why
        steps, own = ways["shifted"].stride, sliding(engine.graph).stride
        least_work(engine.graph, (min(steps[0], own[0]), min(steps[1], own[1])))
    if method in ways:
        return ways[method]
    slide = ways["shifted"].slide
    if "atrous" not in ways or math.prod(ways["shifted"].shifts) > MOST_PASSES:
        return ways.get("atrous", ways["shifted"])
    if slide.padded_by:
        sides = tuple(side + COMPARED_POSITIONS * step for side, step in zip(slide.window, slide.stride, strict=True))
        return min(ways.values(), key=lambda way: _least_seconds(way, *sides))
    height = height or max(width, slide.window[0])
    return min(ways.values(), key=lambda way: predicted_seconds(way, height, width, memory_budget=memory_budget))


def _cropped(engine: Engine, stride: int | Pair | None, *, edge: str, shared: bool) -> Way:
    if edge not in EDGES:
        raise InputError(f"edge is {edge!r}; allowed: {', '.join(EDGES)}")
    slide = cropping(engine.graph)
    steps = checked_stride(stride, slide, free=True)
    known = _SHARINGS.setdefault(engine, {})
    if (steps, shared) not in known:
        known[steps, shared] = sharing(engine.graph, steps, shared=shared)
    found = known[steps, shared]
    return Way("crops-shared" if found.stretches else "crops", engine, slide, steps, edge=edge, sharing=found)


def predicted_seconds(way: Way, height: int, width: int, *, memory_budget: int | None = None) -> float:
    """Return what the passes of a way over an image are predicted to take; infinite where no plan fits the budget."""
    try:
        return plan_way(way, height, width, memory_budget=memory_budget).predicted_s
    except MemoryBudgetError:
        return math.inf


def plan_way(way: Way, height: int, width: int, *, memory_budget: int | None = None) -> "WayPlan":
    """Return what a way over an image is predicted to take. Raises ShapeError, MemoryBudgetError."""
    rows, cols = way.slide.positions(height, width, way.slide.stride)
    seen = way.extent(0, rows) or height, way.extent(1, cols) or width
    plan: Plan = way.engine.executor(*seen, sink_rows=[rows], memory_budget=memory_budget).plan
    passes = math.prod(way.shifts)
    return WayPlan(way.method, passes, plan.predicted_s * passes, plan)


def _least_seconds(way: Way, height: int, width: int) -> float:
    rows, _ = way.slide.positions(height, width)
    return make_plan(way.engine.graph, height, width, sink_rows=[rows]).predicted_s * math.prod(way.shifts)
