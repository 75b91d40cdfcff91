"""The planner's knobs: where a network is cut into segments, how high the bands of each are, how much is blocked."""

from dataclasses import dataclass

from convserve.plan.program import WINOGRAD_GROUP, Program

__all__ = ["Layout", "bands_of", "segments_of"]

# Rows of scores that are handed over at a time, so that what a stream gathers stays small.
WRITE_ROWS = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """The planner's knobs.

    cuts: indices of the operations with which a new segment begins ("Write" goes with what it shows).
    band_rows: rows that one step of an operation computes, divided by its own stride so that its input's band
    is as high, for all segments or one number for each; an operation that is a segment of its own
    computes all; scores are handed over by 4 rows at most.
    read_rows: image rows that one step reads, where that is not the same. group_tiles: tiles that a Winograd layer
    multiplies at a time, which its scratch grows with.
    """

    cuts: tuple[int, ...] = ()
    band_rows: int | tuple[int, ...] = 4
    read_rows: int | None = None
    group_tiles: int = WINOGRAD_GROUP


def segments_of(program: Program, cuts: tuple[int, ...]) -> list[int]:
    """Return the segment of every operation; a Write belongs to the segment before it."""
    segment, segments = 0, []
    wanted = set(cuts)
    for operation in program.operations:
        if operation.index in wanted and operation.index and operation.kind != "Write":
            segment += 1
        segments.append(segment)
    return segments


def bands_of(program: Program, segment_of: list[int], layout: Layout) -> list[int]:
    """Return the rows of each operation's steps."""
    alone: dict[int, bool] = {}
    for operation in program.operations:
        if operation.kind != "Write":
            segment = segment_of[operation.index]
            alone[segment] = segment not in alone
    bands = []
    for operation in program.operations:
        segment = segment_of[operation.index]
        height = layout.band_rows if isinstance(layout.band_rows, int) else layout.band_rows[segment]
        stride = max([1, *(window.stride for window in operation.vertical)])
        repeat = max([1, *(window.repeat for window in operation.vertical)])
        rows = max(1, program.rows_of(operation) if alone.get(segment) else height // stride)
        if operation.kind == "Write":
            rows = min(rows, WRITE_ROWS)
        bands.append(-(-rows // repeat) * repeat)
    bands[0] = layout.read_rows or bands[0]
    return bands
