"""The planner's two knobs, cuts and band heights, and the fixed heuristic that sets them."""

from dataclasses import dataclass

from convserve.graph.ir import Graph
from convserve.plan.program import Program, build_program
from convserve.plan.schedule import schedule

__all__ = ["BAND_ROWS", "HIGHER_BANDS", "Layout", "bands_of", "default_layout", "segments_of"]

BAND_ROWS = 4
# Higher bands give threads more to share, which tells in small networks, as long as the rings stay in the caches.
HIGHER_BANDS = (16, 8)
HIGHER_BANDS_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """The planner's two knobs.

    cuts: indices of the operations with which a new segment begins ("Write" goes with what it shows).
    band_rows: rows that one step of an operation computes, divided by its own stride so that its input's band
    is as high; in a segment of one operation it computes all. read_rows: image rows that one step reads, where
    that is not the same.
    """

    cuts: tuple[int, ...] = ()
    band_rows: int = 4
    read_rows: int | None = None


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
        stride = max([1, *(window.stride for window in operation.vertical)])
        whole = alone.get(segment_of[operation.index])
        repeat = max([1, *(window.repeat for window in operation.vertical)])
        rows = max(1, program.rows_of(operation) if whole else layout.band_rows // stride)
        bands.append(-(-rows // repeat) * repeat)
    bands[0] = layout.read_rows or bands[0]
    return bands


def _lives(program: Program) -> dict[int, tuple[int, int]]:
    # by root: the first and the last operation that touches it
    lives: dict[int, tuple[int, int]] = {}
    for operation in program.operations:
        for index in (*operation.inputs, operation.output):
            if index >= 0:
                root = program.tensors[index].root
                first, _ = lives.get(root, (operation.index, 0))
                lives[root] = first, operation.index
    return lives


def _full_bytes(program: Program, root: int) -> int:
    return program.tensors[root].row_pitch * program.tensors[root].height * 4


def default_layout(
    graph: Graph, height: int, width: int, *, band_rows: int | None = None, sink_rows: list[int] | None = None
) -> Layout:
    """Return the heuristic's layout: one banded segment, then one operation a segment.

    The cut between the two is where the arena is smallest: early volumes are large and want bands, late ones
    are small and may stay whole. Bands are of 16 or 8 rows where the arena of one image then stays within 4 MiB,
    else of 4, unless band_rows says otherwise.
    """
    if band_rows is not None:
        return _cut_layout(graph, height, width, band_rows, sink_rows)[0]
    for rows in HIGHER_BANDS:
        layout, size = _cut_layout(graph, height, width, rows, sink_rows)
        if size <= HIGHER_BANDS_BYTES:
            return layout
    return _cut_layout(graph, height, width, BAND_ROWS, sink_rows)[0]


def _cut_layout(
    graph: Graph, height: int, width: int, band_rows: int, sink_rows: list[int] | None
) -> tuple[Layout, int]:
    # the layout with the smallest arena and its bytes, from the ring heights of one simulation without any cut
    program = build_program(graph, height, width, sink_rows=sink_rows)
    count = len(program.operations)
    one = [0] * count
    schedule(program, one, bands_of(program, one, Layout((), band_rows)))
    lives = _lives(program)
    whole = [0] * (count + 1)
    for root, (first, last) in lives.items():
        for position in range(first, last + 1):
            whole[position] += _full_bytes(program, root)
    best_cut, best_bytes = 0, 1 << 62
    peak_after = 0
    for cut in range(count, -1, -1):
        peak_after = max(peak_after, whole[cut])
        banded = sum(
            program.tensors[root].ring_bytes if last < cut else _full_bytes(program, root)
            for root, (first, last) in lives.items()
            if first < cut
        )
        size = max(banded, peak_after)
        if size <= best_bytes:
            best_cut, best_bytes = cut, size
    return Layout(tuple(range(max(best_cut, 1), count)), band_rows), best_bytes
