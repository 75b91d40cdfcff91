"""Measures a call: the memory that its runs were given, beside what their plans said, and its time."""

import time
from dataclasses import replace

from convserve.plan.plan import Plan
from convserve.results import RunReport

__all__ = ["Meter"]


class Meter:
    """Begins at once; looks at every run of a call, which follow one another; then gives the report."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._plan: Plan | None = None
        self.allocated_bytes = 0
        """What the largest run so far was given."""

    def look(self, plan: Plan, allocated_bytes: int) -> None:
        """Count a run that begins: what counts is the largest."""
        if allocated_bytes > self.allocated_bytes:
            self._plan, self.allocated_bytes = plan, allocated_bytes

    def report(self, *, score_bytes: int = 0) -> RunReport:
        """Return the plan of the largest run, the bytes that it was given and those of scores held, and the time."""
        assert self._plan is not None
        plan = replace(self._plan, score_bytes=score_bytes)
        return RunReport(plan, self.allocated_bytes + score_bytes, time.perf_counter() - self._start)
