"""Which plan fits a budget: the fastest of those that lie along the way from the smallest to the fastest of all."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from convserve.errors import MemoryBudgetError
from convserve.formats.algorithms import without_winograd
from convserve.formats.packing import is_winograd
from convserve.graph.ir import Graph
from convserve.plan.costs import CostTable, shipped_table
from convserve.plan.layout import Layout
from convserve.plan.plan import Plan, make_plan
from convserve.plan.program import build_program
from convserve.plan.search import BAND_HEIGHTS, NEAR_FASTEST, Search

__all__ = ["least_bytes", "plan_within"]

FEWEST_TILES = 14
UNCUT = Layout((), 1)
STREAM_BAND_HEIGHTS = tuple(rows for rows in BAND_HEIGHTS if rows <= 8)  # higher ones hold scores back


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
    costs: CostTable | None = None,
) -> Plan:
    """Return the plan that is predicted fastest among those that fit in budget_bytes together with held scores.

    Without a budget: the smallest that is predicted to be nearly as fast as the fastest (NEAR_FASTEST). streamed: one
    segment, whose image comes in row by row; full_buffers: one plan, every tensor whole. Raises MemoryBudgetError
    with the bytes that would have been enough, and those under algorithm="gemm".
    """
    options: dict[str, Any] = {
        "images": images,
        "sink_rows": sink_rows,
        "full_buffers": full_buffers and not streamed,
        "poison": poison,
        "costs": costs or shipped_table(),
    }
    if budget_bytes is None and not streamed:
        plan = make_plan(graph, height, width, threads=threads, **options)
        plan.score_bytes = score_bytes
        return plan
    smallest = _smallest(graph, height, width, streamed=streamed, **options)
    smallest.score_bytes = score_bytes
    if budget_bytes is not None and smallest.total_bytes > budget_bytes:
        what = f"an image {width} pixels wide" if streamed else f"{images} image(s) of {height}x{width} pixels"
        text = (
            f"{graph.name} over {what} takes at least {smallest.total_bytes:,} bytes"
            f" (arena, scratch and held scores); the memory budget is {budget_bytes:,} bytes"
        )
        if any(is_winograd(node) for node in graph.nodes):
            gemm = _smallest(without_winograd(graph), height, width, streamed=streamed, **options)
            if gemm.total_bytes + score_bytes < smallest.total_bytes:
                text += f'; algorithm="gemm" takes at least {gemm.total_bytes + score_bytes:,} bytes'
        raise MemoryBudgetError(text)
    plans = [smallest]
    for layout in _layouts(graph, height, width, threads=threads, streamed=streamed, **options):
        plans.append(make_plan(graph, height, width, threads=threads, layout=layout, **options))
        plans[-1].score_bytes = score_bytes
    if budget_bytes is None:
        enough = NEAR_FASTEST * min(plan.predicted_s for plan in plans)
        return min((plan for plan in plans if plan.predicted_s <= enough), key=lambda plan: plan.total_bytes)
    fitting = [plan for plan in plans if plan.total_bytes <= budget_bytes]
    return min(fitting, key=lambda plan: (plan.predicted_s, plan.total_bytes))


def least_bytes(graph: Graph, height: int, width: int, *, score_bytes: int = 0, **options: Any) -> int:
    """Return the smallest budget that plan_within does not refuse; options as there, without budget and threads."""
    return _smallest(graph, height, width, **options).total_bytes + score_bytes


def _smallest(graph: Graph, height: int, width: int, *, streamed: bool = False, **options: Any) -> Plan:
    # on one thread, with little scratch: cut where the search says, or not at all, which leaves no gaps in the arena
    layouts: list[Layout | None] = [None]
    if not options.get("full_buffers"):
        first = next(_layouts(graph, height, width, threads=1, streamed=streamed, **options))
        layouts = [
            replace(layout, group_tiles=FEWEST_TILES)
            for layout in dict.fromkeys((first, replace(UNCUT, read_rows=first.read_rows)))
        ]
    plans = [make_plan(graph, height, width, threads=1, layout=layout, **options) for layout in layouts]
    return min(plans, key=lambda plan: plan.total_bytes)


def _layouts(
    graph: Graph,
    height: int,
    width: int,
    *,
    threads: int,
    streamed: bool,
    images: int = 1,
    sink_rows: list[int] | None = None,
    costs: CostTable | None = None,
    full_buffers: bool = False,
    **_: Any,
) -> Iterator[Layout]:
    # the layouts that a budget may choose from, smallest first, which do not depend on it
    if full_buffers:
        return
    if streamed:
        for rows in STREAM_BAND_HEIGHTS:
            yield Layout((), rows, read_rows=1)
        return
    program = build_program(graph, height, width, sink_rows=sink_rows)
    search = Search(program, images=images, threads=threads, table=costs or shipped_table())
    yield from (found.layout for found in search.frontier())
    yield search.near_fastest().layout
