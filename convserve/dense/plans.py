"""What every way to a score map is predicted to take, beside one another."""

from contextlib import suppress
from typing import Any

from convserve.dense.crops import plan_crops
from convserve.dense.ways import WayPlan, choose_way, plan_way, sliding_ways
from convserve.engine.engine import Engine
from convserve.errors import MemoryBudgetError, UnsupportedOpError

__all__ = ["plan_ways"]


def plan_ways(
    engine: Engine,
    height: int,
    width: int,
    *,
    stride: int | tuple[int, int] | None = None,
    edge: str = "none",
    memory_budget: int | None = None,
) -> list[WayPlan]:
    """Return what each way over an image at a stride is predicted to take, first the one that "auto" takes.

    The last ones run crops, where the budget allows it; a network that cannot slide has only these. memory_budget:
    bytes. Raises InputError, ShapeError, MemoryBudgetError.
    """
    options: dict[str, Any] = {"height": height, "width": width, "edge": edge, "memory_budget": memory_budget}
    found = []
    with suppress(UnsupportedOpError):
        ways = sliding_ways(engine, stride, edge=edge)
        first = choose_way(engine, "auto", stride, **options)
        for method in sorted(ways, key=lambda method: method != first.method):
            found.append(plan_way(ways[method], height, width, memory_budget=memory_budget))
    for method in ("crops-shared", "crops"):
        way = choose_way(engine, method, stride, **options)
        try:
            found.append(plan_crops(way, method, height, width, memory_budget=memory_budget))
        except MemoryBudgetError:
            if not found:
                raise
    return found
