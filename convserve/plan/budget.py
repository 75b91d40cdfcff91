"""Which plan: the fixed heuristic for cuts and band heights, and the smaller plans that a budget may force."""

from convserve.errors import MemoryBudgetError
from convserve.graph.ir import Graph
from convserve.plan.plan import Layout, Plan, bands_of, make_plan
from convserve.plan.program import Program, build_program
from convserve.plan.schedule import schedule

__all__ = ["BAND_ROWS", "default_layout", "plan_within"]

BAND_ROWS = 4
# Higher bands give threads more to share, which tells in small networks, as long as the rings stay in the caches.
HIGHER_BANDS = (16, 8)
HIGHER_BANDS_BYTES = 4 << 20


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


def plan_within(
    graph: Graph,
    height: int,
    width: int,
    *,
    budget_bytes: int | None,
    score_bytes: int = 0,
    images: int = 1,
    threads: int = 1,
    sink_rows: list[int] | None = None,
    full_buffers: bool = False,
    poison: bool = False,
    streamed: bool = False,
) -> Plan:
    """Return the default plan, or the first of the smaller ones that fits in budget_bytes together with held scores.

    Smaller plans have lower bands, down to 1 row, then one thread. streamed: one segment, whose image comes in
    row by row. Raises MemoryBudgetError with the bytes that would have been enough.
    """
    smallest = 0
    default = None
    if not streamed and not full_buffers:
        default = default_layout(graph, height, width, sink_rows=sink_rows)
    highest = default.band_rows if default else BAND_ROWS
    rows = [band for band in (*HIGHER_BANDS, BAND_ROWS, 2, 1) if band <= highest]
    for band_rows, crew in [*((band, threads) for band in rows), (1, 1)]:
        layout = None
        if streamed:
            layout = Layout((), band_rows, read_rows=1)
        elif default and band_rows == highest:
            layout = default
        elif default:
            layout = default_layout(graph, height, width, band_rows=band_rows, sink_rows=sink_rows)
        plan = make_plan(
            graph,
            height,
            width,
            images=images,
            threads=crew,
            layout=layout,
            sink_rows=sink_rows,
            full_buffers=full_buffers and not streamed,
            poison=poison,
        )
        plan.score_bytes = score_bytes
        if budget_bytes is None or plan.total_bytes <= budget_bytes:
            return plan
        smallest = min(smallest, plan.total_bytes) if smallest else plan.total_bytes
    what = f"an image {width} pixels wide" if streamed else f"{images} image(s) of {height}x{width} pixels"
    raise MemoryBudgetError(
        f"{graph.name} over {what} takes at least {smallest:,} bytes"
        f" (arena, scratch and held scores); the memory budget is {budget_bytes:,} bytes"
    )
