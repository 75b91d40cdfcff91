"""Executors that are kept for the next run of the same kind, as many as a limit of bytes allows."""

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

from convserve import settings
from convserve.engine.binding import Executor
from convserve.plan.plan import Plan

__all__ = ["PlanCache", "plan_bytes"]

# Bytes of one listed step, one operation and one tensor: Python's objects, and the structures of the executor.
STEP_BYTES = 95 + 64
OPERATION_BYTES = 1200 + 320
TENSOR_BYTES = 300


def plan_bytes(plan: Plan) -> int:
    """Return roughly how many bytes a plan and its executor take, beside the weights."""
    listed = sum(len(block.steps) for block in plan.blocks)
    operations, tensors = len(plan.program.operations), len(plan.program.tensors)
    return STEP_BYTES * listed + OPERATION_BYTES * operations + TENSOR_BYTES * tensors


class PlanCache:
    """Executors by what they were made for, the last used kept longest; may be used by any number of threads.

    Together they take at most CONVSERVE_PLAN_CACHE bytes by plan_bytes; the newest is kept whatever it takes.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[Hashable, Executor] = OrderedDict()
        self.size_bytes = 0

    def find(self, key: Hashable) -> Executor | None:
        """Return the executor kept under a key, or None."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, key: Hashable, executor: Executor) -> None:
        """Keep an executor, and let go of those not used for longest until the limit is kept."""
        most = settings.get("PLAN_CACHE")
        with self._lock:
            before = self._kept.pop(key, None)
            self.size_bytes += plan_bytes(executor.plan) - (plan_bytes(before.plan) if before is not None else 0)
            self._kept[key] = executor
            while self.size_bytes > most and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self.size_bytes -= plan_bytes(dropped.plan)

    def __len__(self) -> int:
        return len(self._kept)
