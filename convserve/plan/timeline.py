"""A plan over time: which bytes of the arena each ring has, in which segments, and between which of their steps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convserve.plan.report import activation_bytes, pair_bytes

if TYPE_CHECKING:
    from convserve.plan.plan import Plan
    from convserve.plan.program import Operation, Tensor

__all__ = ["KINDS", "RingLife", "SegmentSpan", "Timeline", "timeline"]

KINDS = ("image", "convolution", "Winograd tiles", "pooling", "joined", "other")
"""What a ring holds, by who writes it."""


@dataclass(frozen=True, slots=True)
class RingLife:
    """One ring: bytes [offset, offset + size_bytes) of the arena, and when they are its own.

    reserved: from the beginning of its first to the end of its last segment; held: from the step that first writes
    it to the one that last reads it. Both in columns, as SegmentSpan has them. rows: held at once, of height.
    """

    name: str
    kind: str
    offset: int
    size_bytes: int
    rows: int
    height: int
    reserved: tuple[float, float]
    held: tuple[float, float]


@dataclass(frozen=True, slots=True)
class SegmentSpan:
    """One segment: columns [begin, end), one for each of its operations; steps: how many run in it."""

    begin: int
    end: int
    first: str
    last: str
    steps: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a picture of the arena shows; sizes in bytes, for all images of the plan."""

    title: str
    segments: tuple[SegmentSpan, ...]
    rings: tuple[RingLife, ...]
    arena_bytes: int
    scratch_bytes: int
    pair_bytes: int
    activation_bytes: int
    kinds: tuple[str, ...] = KINDS


def timeline(plan: "Plan") -> Timeline:
    """Return a plan over time. Within a segment its steps are spread evenly over its columns."""
    spans = _spans(plan)
    held = _held(plan, spans)
    makers = {op.output: op for op in plan.program.operations if op.output >= 0}
    rings = [
        RingLife(
            name=tensor.name,
            kind=_kind(tensor, makers.get(tensor.index)),
            offset=tensor.offset,
            size_bytes=tensor.ring_bytes * plan.images,
            rows=tensor.ring_rows,
            height=tensor.height,
            reserved=(spans[tensor.first_use].begin, spans[tensor.last_use].end),
            held=held[tensor.index],
        )
        for tensor in plan.program.tensors
        if tensor.root == tensor.index
    ]
    images = "" if plan.images == 1 else f"{plan.images} images of "
    return Timeline(
        title=f"{plan.name}, {images}{plan.height}x{plan.width}",
        segments=tuple(spans),
        rings=tuple(rings),
        arena_bytes=plan.arena_bytes,
        scratch_bytes=plan.scratch_bytes,
        pair_bytes=pair_bytes(plan),
        activation_bytes=activation_bytes(plan),
    )


def _spans(plan: "Plan") -> list[SegmentSpan]:
    steps = [0] * (plan.segment_of[-1] + 1)
    for block in plan.blocks:
        steps[block.segment] += block.repeats * len(block.steps)
    spans: list[SegmentSpan] = []
    for segment, count in enumerate(steps):
        members = [op for op in plan.program.operations if plan.segment_of[op.index] == segment]
        begin = spans[-1].end if spans else 0
        spans.append(SegmentSpan(begin, begin + len(members), members[0].name, members[-1].name, count))
    return spans


def _held(plan: "Plan", spans: list[SegmentSpan]) -> dict[int, tuple[float, float]]:
    # by root: columns from the first step that touches it to the end of the last one
    held: dict[int, tuple[float, float]] = {}
    done = [0] * len(spans)
    for block in plan.blocks:
        span = spans[block.segment]
        for number, step in enumerate(block.steps):
            operation = plan.operation(step)
            if operation is None:
                continue
            first = done[block.segment] + number
            last = first + (block.repeats - 1) * len(block.steps) + 1
            begin, end = (span.begin + (span.end - span.begin) * at / span.steps for at in (first, last))
            for root in {plan.program.tensors[index].root for index in _touched(operation)}:
                before = held.get(root, (begin, end))
                held[root] = min(before[0], begin), max(before[1], end)
        done[block.segment] += block.repeats * len(block.steps)
    return held


def _touched(operation: "Operation") -> list[int]:
    return [index for index in (*operation.inputs, operation.output) if index >= 0]


def _kind(tensor: "Tensor", maker: "Operation | None") -> str:
    if tensor.parts or maker is None:
        return "joined"
    if maker.kind == "Read":
        return "image"
    if maker.kind == "WinogradInput":
        return "Winograd tiles"
    if maker.kind in ("Conv", "WinogradOutput"):
        return "convolution"
    return "pooling" if "Pool" in maker.kind else "other"
