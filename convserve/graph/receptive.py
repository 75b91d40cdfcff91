"""Receptive-field algebra: which pixels each tensor's positions see, and which of them see padding."""

import math
from dataclasses import dataclass
from fractions import Fraction

from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import Window, windows

__all__ = ["Field", "Interval", "clean_intervals", "receptive_fields"]

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Field:
    """What a tensor's positions see along one axis: o sees the pixels [o*jump + offset, o*jump + offset + size).

    Pixels outside the image are padding. A jump of 0 is a tensor all of whose positions see the same pixels; one
    that is no whole number, or belongs to several positions that see the same, says how far they move on average.
    """

    size: int = 1
    jump: int | Fraction = 1
    offset: int = 0

    def through(self, window: Window) -> "Field":
        """Return the field of what reads this tensor through a window."""
        jump = Fraction(self.jump * window.stride, window.repeat)
        return Field(
            math.ceil(self.size + (window.extent - 1) * self.jump),
            int(jump) if jump.denominator == 1 else jump,
            math.floor(self.offset - window.pad_begin * self.jump),
        )

    def joined(self, other: "Field") -> "Field":
        """Return the smallest field that covers two that are read together."""
        offset = min(self.offset, other.offset)
        end = max(self.offset + self.size, other.offset + other.size)
        return Field(end - offset, max(self.jump, other.jump), offset)


def receptive_fields(graph: Graph, volumes: dict[str, Volume]) -> dict[str, tuple[Field, Field]]:
    """Return the (vertical, horizontal) field of every tensor; volumes as infer_volumes gives them."""
    fields = {graph.input_name: (Field(), Field())}
    for node in graph.nodes:
        ins = [volumes[tensor] for tensor in node.inputs]
        found: tuple[Field, Field] | None = None
        for number, tensor in enumerate(node.inputs):
            vertical, horizontal = windows(node, number, ins)
            along_y, along_x = fields[tensor][0].through(vertical), fields[tensor][1].through(horizontal)
            found = (found[0].joined(along_y), found[1].joined(along_x)) if found else (along_y, along_x)
        assert found is not None
        fields[node.output] = found
    return fields


def _clean(interval: Interval, window: Window, size: int, positions: int) -> Interval:
    # the outputs all of whose taps lie within the interval of an input of that size
    low, high = interval
    if not window.stride:
        return (0, positions) if (low, high) == (0, size) else (positions, positions)
    first = math.ceil((low + window.pad_begin) / window.stride) * window.repeat
    last = (high - window.extent + window.pad_begin) // window.stride * window.repeat + window.repeat - 1
    first = min(max(first, 0), positions)
    return first, max(min(last + 1, positions), first)


def clean_intervals(graph: Graph, volumes: dict[str, Volume]) -> dict[str, tuple[Interval, Interval]]:
    """Return the rows and columns [first, end) of every tensor that see no padding, empty where all do.

    Padding is what a convolution adds and what a pooling window leaves out at the image's border. volumes as
    infer_volumes gives them, of known height and width.
    """

    def size(volume: Volume, axis: int) -> int:
        found = volume.width if axis else volume.height
        assert found is not None
        return found

    clean = {graph.input_name: ((0, size(volumes[graph.input_name], 0)), (0, size(volumes[graph.input_name], 1)))}
    for node in graph.nodes:
        ins, out = [volumes[tensor] for tensor in node.inputs], volumes[node.output]
        found = [(0, size(out, 0)), (0, size(out, 1))]
        for number, tensor in enumerate(node.inputs):
            for axis, window in enumerate(windows(node, number, ins)):
                first, end = _clean(clean[tensor][axis], window, size(ins[number], axis), size(out, axis))
                first = max(first, found[axis][0])
                found[axis] = first, max(min(end, found[axis][1]), first)
        clean[node.output] = found[0], found[1]
    return clean
