"""Which plan fits a budget: the default one, or the smaller ones that it may force."""

from convserve.errors import MemoryBudgetError
from convserve.graph.ir import Graph
from convserve.plan.layout import BAND_ROWS, HIGHER_BANDS, Layout, default_layout
from convserve.plan.plan import Plan, make_plan

__all__ = ["plan_within"]


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
