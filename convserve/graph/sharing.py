"""What neighbouring crops share: stretches of the network, and the borders that each crop's own padding changes."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from convserve.errors import ModelError, ShapeError
from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.graph.ops import OPS, infer_volumes, slides, windows
from convserve.graph.receptive import Interval, clean_intervals
from convserve.graph.restride import as_gemm
from convserve.graph.window import Window

__all__ = ["Passage", "Sharing", "Stretch", "passages", "sharing"]

Pair = tuple[int, int]

# Positions along an axis of the map over which ways to share are compared.
COMPARED_POSITIONS = 8
# What a run costs beside its arithmetic, and a value that is read or written, in multiplications and sums.
RUN_FLOPS = 20_000_000
VALUE_FLOPS = 50
# Nothing is shared for less than this part of the work.
LEAST_GAIN = 0.1
# What of a layer's arithmetic Winograd's algorithm saves.
WINOGRAD_SAVES = 2.2


@dataclass(frozen=True, slots=True)
class Passage:
    """A tensor that every path goes through: its stride in pixels and its volume in a crop.

    clean: (rows, columns) of a crop's that see no padding. They have the values of a pass over the whole image.
    """

    tensor: str
    stride: Pair
    volume: Volume
    clean: tuple[Interval, Interval]

    def size(self, axis: int) -> int:
        """Return the positions along an axis of a crop."""
        size = self.volume.width if axis else self.volume.height
        assert size is not None
        return size

    def borders(self, axis: int) -> Pair:
        """Return how many of a crop's first and last positions see padding."""
        first, end = self.clean[axis]
        return first, self.size(axis) - end

    @property
    def shares(self) -> bool:
        """Whether there is anything between the borders."""
        return all(first < end for first, end in self.clean)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of a network from one passage to the next, as a graph of its own.

    strips: for each axis what of a crop's input gives the first border of its output, and the last one; None where
    there is no such border.
    """

    graph: Graph
    begin: Passage
    end: Passage
    strips: tuple[tuple[Interval | None, Interval | None], ...]


@dataclass(frozen=True, slots=True)
class Sharing:
    """How crops are computed: stretches that are shared, one after the other, and the rest, which each crop runs.

    passage: between the two. saved: how many times less arithmetic that is than without, for a few crops. note: what is
    shared, or why nothing is.
    """

    stretches: tuple[Stretch, ...]
    passage: Passage
    rest: Graph
    saved: float = 1.0
    note: str = ""


def sharing(graph: Graph, stride: Pair, *, shared: bool = True) -> Sharing:
    """Return how crops of a network, so many pixels apart, are computed with the least arithmetic.

    A rule of network and stride alone, so that no image, machine or budget decides which layers run as GEMMs, as all
    that is shared do. shared: False for the network on every crop.
    """
    every = list(passages(graph))
    alone = Sharing((), every[0], graph)
    if not shared:
        return alone
    usable = [passage for passage in every if passage.shares]
    if len(usable) == 1:
        return replace(alone, note=_why_not(graph))
    costs = _Costs(graph, usable)
    whole = costs.rest(0)
    least, chosen = (1 - LEAST_GAIN) * whole, [0]
    for steps in sorted({passage.stride for passage in usable}):
        together = math.lcm(stride[0], steps[0]), math.lcm(stride[1], steps[1])
        for found, way in _ways(costs, steps, together):
            if found < least:
                least, chosen = found, way
    if len(chosen) == 1:
        return replace(alone, note=f"crops of '{graph.name}' at that stride share less than sharing costs")
    stretches = tuple(costs.stretch(*pair) for pair in pairwise(chosen))
    last = usable[chosen[-1]]
    saved = whole / least
    note = f"crops share '{graph.name}' up to {last.tensor} ({last.volume}), in about {saved:.1f} times less arithmetic"
    return Sharing(stretches, last, _between(graph, last, None), saved, note)


def _ways(costs: "_Costs", steps: Pair, together: Pair) -> Iterator[tuple[float, list[int]]]:
    # the least work to share up to each passage, in passes over crops that lie `together` pixels apart
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
    for index, passage in enumerate(costs.passages):
        if not index or any(step % own for step, own in zip(steps, passage.stride, strict=True)):
            continue
        found = [(before + costs.shared(begin, index, together), way) for begin, (before, way) in best.items()]
        least, way = min(found, key=lambda pair: pair[0])
        best[index] = least, [*way, index]
        yield least + costs.rest(index), best[index][1]


class _Costs:
    """The work of stretches over a few crops, and of what each crop runs."""

    def __init__(self, graph: Graph, usable: list[Passage]) -> None:
        self.graph, self.passages = graph, usable
        self._stretches: dict[tuple[int, int], Stretch] = {}

    def stretch(self, begin: int, end: int) -> Stretch:
        """Return the stretch between two passages."""
        if (begin, end) not in self._stretches:
            self._stretches[begin, end] = _stretch(self.graph, self.passages[begin], self.passages[end])
        return self._stretches[begin, end]

    def rest(self, index: int) -> float:
        """Return the work of what crops run by themselves behind a passage, COMPARED_POSITIONS along both axes."""
        passage = self.passages[index]
        height, width = passage.volume.height, passage.volume.width
        assert height is not None
        assert width is not None
        return COMPARED_POSITIONS**2 * _work(_between(self.graph, passage, None), height, width) + RUN_FLOPS

    def shared(self, begin: int, end: int, together: Pair) -> float:
        """Return the work of a stretch for crops so many pixels apart, COMPARED_POSITIONS along both axes."""
        stretch = self.stretch(begin, end)
        sizes: list[list[tuple[int, int]]] = []
        for axis in range(2):
            whole = stretch.begin.size(axis) + (COMPARED_POSITIONS - 1) * (together[axis] // stretch.begin.stride[axis])
            strips = [(hi - lo, COMPARED_POSITIONS) for lo, hi in filter(None, stretch.strips[axis])]
            sizes.append([(whole, 1), *strips])
        return sum(
            rows * columns * _work(stretch.graph, height, width) + RUN_FLOPS
            for height, rows in sizes[0]
            for width, columns in sizes[1]
        )


def _work(graph: Graph, height: int, width: int) -> float:
    volumes = infer_volumes(graph, height, width)
    total = 0.0
    for node in graph.nodes:
        ins, out = [volumes[tensor] for tensor in node.inputs], volumes[node.output]
        flops = OPS[node.op].flops(node, ins, out)
        total += flops / WINOGRAD_SAVES if "winograd_panels" in node.params else flops
        total += VALUE_FLOPS * out.values
    return total + VALUE_FLOPS * volumes[graph.input_name].values


# ---- passages


def passages(graph: Graph) -> Iterator[Passage]:
    """Yield the image, and the tensors behind it that every path goes through, up to what cannot slide."""
    volumes = infer_volumes(graph)
    clean = clean_intervals(graph, volumes)
    last_reader = {tensor: index for index, node in enumerate(graph.nodes) for tensor in node.inputs}
    last_reader.update(dict.fromkeys(graph.output_tensors(), len(graph.nodes)))
    strides = {graph.input_name: (1, 1)}
    alive = {graph.input_name}
    yield Passage(graph.input_name, (1, 1), volumes[graph.input_name], clean[graph.input_name])
    for index, node in enumerate(graph.nodes):
        stride = _stride_behind(node, strides, volumes)
        if stride is None:
            return
        strides[node.output] = stride
        alive = {tensor for tensor in (*alive, node.output) if last_reader[tensor] > index}
        if alive == {node.output} and index + 1 < len(graph.nodes):
            yield Passage(node.output, stride, volumes[node.output], clean[node.output])


def _stride_behind(node: Node, strides: dict[str, Pair], volumes: dict[str, Volume]) -> Pair | None:
    # None where the node cannot slide
    if not slides(node):
        return None
    found = set()
    for number, tensor in enumerate(node.inputs):
        down, across = windows(node, number, [volumes[each] for each in node.inputs])
        if not down.stride or not across.stride:
            return None
        found.add((strides[tensor][0] * down.stride, strides[tensor][1] * across.stride))
    return found.pop() if len(found) == 1 else None


def _why_not(graph: Graph) -> str:
    first = graph.nodes[0]
    return (
        f"crops of '{graph.name}' share nothing: behind {first} there is no tensor that all paths go through and whose"
        " middle is the same in every crop"
    )


# ---- stretches


def _between(graph: Graph, begin: Passage, end: Passage | None) -> Graph:
    """Return the part of a graph behind a passage, up to another one or to its outputs."""
    tensors = [node.output for node in graph.nodes]
    first = tensors.index(begin.tensor) + 1 if begin.tensor in tensors else 0
    behind = len(tensors) if end is None else tensors.index(end.tensor) + 1
    outputs = graph.outputs if end is None else [Output(end.tensor, end.tensor)]
    return Graph(graph.name, begin.tensor, begin.volume, graph.nodes[first:behind], outputs)


def _stretch(graph: Graph, begin: Passage, end: Passage) -> Stretch:
    part = _between(graph, begin, end)
    part = replace(part, nodes=[as_gemm(node) for node in part.nodes])
    strips: list[tuple[Interval | None, Interval | None]] = []
    for axis in range(2):
        size = end.size(axis)
        first, last = end.borders(axis)
        before = behind = None
        whole = begin.size(axis)
        if first:
            before = 0, whole - _left_out(part, axis, begin, end, whole - _read(part, axis, (0, first))[1])
        if last:
            behind = _left_out(part, axis, begin, end, _read(part, axis, (size - last, size))[0]), whole
        strips.append((before, behind))
    return Stretch(part, begin, end, tuple(strips))


def _left_out(part: Graph, axis: int, begin: Passage, end: Passage, unread: int) -> int:
    """Return by how many positions of `unread` a strip is shorter than the crop.

    Whole steps, so that every layer's positions are those that it has in the crop, and so few that each has as many
    as it takes.
    """
    step = end.stride[axis] // begin.stride[axis]
    for spare in range(min(unread, begin.size(axis) - 1) // step * step, 0, -step):
        size = [begin.size(0), begin.size(1)]
        size[axis] -= spare
        with suppress(ShapeError, ModelError):
            volume = infer_volumes(part, *size)[end.tensor]
            if (volume.height, volume.width)[axis] == end.size(axis) - spare // step:
                return spare
    return 0


def _read(graph: Graph, axis: int, positions: Interval) -> Interval:
    """Return what of the input the given positions of the only output read, beyond its ends too."""
    volumes = infer_volumes(graph)
    wanted = {graph.outputs[0].tensor: positions}
    for node in reversed(graph.nodes):
        for number, tensor in enumerate(node.inputs):
            window: Window = windows(node, number, [volumes[each] for each in node.inputs])[axis]
            low, high = window.reads(*wanted[node.output])
            known = wanted.get(tensor, (low, high))
            wanted[tensor] = min(low, known[0]), max(high, known[1])
    return wanted[graph.input_name]
