"""The engine of one network: plans by image size, executors bound to them, memory for runs, and the thread count."""

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np

from convserve import settings
from convserve.engine.binding import Executor
from convserve.engine.executor import CANCELLED, Execution, Memory
from convserve.engine.meter import Meter
from convserve.engine.plan_cache import PlanCache
from convserve.engine.source import ImageRows, empty_scores
from convserve.engine.team import available_threads, runs_about, thread_count
from convserve.errors import MemoryBudgetError, RunCancelled
from convserve.formats.mapping import Mapping
from convserve.graph.ir import Graph
from convserve.kernels import dispatch
from convserve.plan.budget import least_bytes, plan_within
from convserve.plan.layout import Layout
from convserve.plan.plan import make_plan
from convserve.plan.stored import costs_in_use

__all__ = ["Cancellation", "Engine"]

IDLE_BYTES = 16 << 20
# A batch runs in groups whose arena stays below this, since larger ones gain no more speed.
BATCH_ARENA_BYTES = 64 << 20
MOST_IMAGES = 256


class Cancellation:
    """Ends a run from another thread: cancel() stops it after the step in work, or before it began."""

    def __init__(self) -> None:
        self._cancelled = False
        self._stop: Callable[[], None] | None = None

    def watch(self, stop: Callable[[], None] | None) -> None:
        """Have cancel() call this from now on, which ends the run in work."""
        self._stop = stop
        if self._cancelled and stop is not None:
            stop()

    def cancel(self) -> None:
        """End the run, and those that follow it."""
        self._cancelled = True
        stop = self._stop
        if stop is not None:
            stop()


class Engine:
    """Plans and runs a packed graph; may be used by any number of threads at once.

    mapping: the file of the weights, which every advance() checks. evict_weights: each run releases their pages after
    their last use.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int | None = None,
        memory_budget: int | None = None,
        mapping: Mapping | None = None,
        evict_weights: bool = False,
    ) -> None:
        self.graph = graph
        self._mapping, self._evict_weights = mapping, evict_weights
        self._threads = threads
        self.memory_budget = memory_budget
        self._lock = Lock()
        self._plans = PlanCache()
        self._idle: list[Memory] = []
        self._name: Hashable = None
        self._forms: dict[Hashable, Engine] = {}

    def form(self, name: Hashable, make: Callable[[Graph], Graph]) -> "Engine":
        """Return the engine of another form of the graph, made once for each name; plans share one limit of bytes."""
        with self._lock:
            found = self._forms.get(name)
        if found is None:
            found = Engine(
                make(self.graph),
                threads=self._threads,
                memory_budget=self.memory_budget,
                mapping=self._mapping,
                evict_weights=self._evict_weights,
            )
            found._plans, found._name = self._plans, (self._name, name)
            with self._lock:
                found = self._forms.setdefault(name, found)
        return found

    def executor(
        self,
        height: int,
        width: int,
        *,
        images: int = 1,
        sink_rows: list[int] | None = None,
        memory_budget: int | None = None,
        score_bytes: int = 0,
        layout: Layout | None = None,
        threads: int | None = None,
        streamed: bool = False,
    ) -> Executor:
        """Return the executor of the plan of a run over images of height x width pixels, from the cache or new.

        memory_budget (bytes): default the engine's; layout: cuts and band heights instead of the planner's;
        streamed: for rows that come one after another, in one segment.
        Raises ShapeError where the image does not fit, MemoryBudgetError where no plan fits the budget.
        """
        mode, poison, isa = settings.get("PLAN"), settings.get("POISON"), dispatch.active()
        budget = memory_budget or self.memory_budget or settings.get("MEMORY_BUDGET")
        crew = thread_count(threads or self._threads)
        rows = tuple(sink_rows) if sink_rows else None
        key = (self._name, height, width, images, rows, budget, score_bytes, layout, crew, streamed, mode, poison, isa)
        found = self._plans.find(key)
        if found is not None:
            return found
        shape: dict[str, Any] = {
            "images": images,
            "threads": crew,
            "sink_rows": sink_rows,
            "full_buffers": mode == "off",
            "poison": poison,
            "costs": costs_in_use(isa),
        }
        if layout is not None:
            plan = make_plan(self.graph, height, width, layout=layout, **shape)
            plan.score_bytes = score_bytes
        else:
            plan = plan_within(
                self.graph, height, width, budget_bytes=budget, score_bytes=score_bytes, streamed=streamed, **shape
            )
        if mode == "print":
            print(plan.table(), plan.steps(), sep="\n", file=sys.stderr)
        executor = Executor(plan, isa, self._mapping, evict_weights=self._evict_weights)
        self._plans.keep(key, executor)
        return executor

    @contextmanager
    def execution(
        self, executor: Executor, meter: Meter | None = None, memory: Memory | None = None
    ) -> Iterator[Execution]:
        """Give an Execution with memory for its run, and take the memory back afterwards.

        Memory of up to 16 MiB stays mapped for the next run at the network's own window; any other goes back to the
        system. memory: the caller's, at least as large as the plan says, which stays as it is.
        """
        own = memory is None
        if memory is None:
            memory = self._take(executor.plan.arena_bytes + executor.plan.scratch_bytes)
        if meter is not None:
            meter.look(executor.plan, memory.size_bytes)
        try:
            yield Execution(executor, memory)
        finally:
            window = self.graph.input_volume
            at_window = (executor.plan.height, executor.plan.width) == (window.height, window.width)
            if own and at_window:
                self._give(memory)
            elif own:
                memory.close()

    def run(
        self,
        image: ImageRows,
        *,
        cancellation: Cancellation | None = None,
        meter: Meter | None = None,
        memory_budget: int | None = None,
        score_bytes: int = 0,
        into: dict[str, np.ndarray] | None = None,
        memory: Memory | None = None,
    ) -> dict[str, np.ndarray]:
        """Return each output for the images, float32 (N, C, H, W), by name; large batches run in groups.

        meter: looks at the runs. memory_budget: bytes, default the engine's; score_bytes: what the caller holds of
        them. into: write to these, of any strides, instead of new ones. memory: as for execution. Raises RunCancelled
        where cancellation ended the run, MemoryBudgetError.
        """
        cancellation = cancellation or Cancellation()
        # where every processor has a run of its own, none is helped by the others' threads; memory that is given was
        # planned for all of them
        alone = memory is None and runs_about() >= max(2, available_threads())
        sizes: dict[str, Any] = {"memory_budget": memory_budget, "score_bytes": score_bytes}
        groups = self.groups(image.count, image.height, image.width, threads=1 if alone else None, **sizes)
        shown = groups[0].plan.program.shown()
        results = into or {
            output.name: empty_scores(image.count, tensor.volume.channels, tensor.height, tensor.width)
            for output, tensor in zip(self.graph.outputs, shown, strict=True)
        }
        first = 0
        for executor in groups:
            end = first + executor.plan.images
            with self.execution(executor, meter, memory) as run:
                run.set_source(image.rows[first:end], table=image.table, channel_of=image.channel_of)
                for number, output in enumerate(self.graph.outputs):
                    run.set_sink(number, results[output.name][first:end].transpose(0, 2, 3, 1))
                cancellation.watch(run.cancel)
                try:
                    if run.advance() == CANCELLED:
                        raise RunCancelled(f"the run was cancelled after {first} of {image.count} images")
                finally:
                    cancellation.watch(None)
            first = end
        return results

    def run_bytes(self, count: int, height: int, width: int, *, memory_budget: int | None = None) -> int:
        """Return what run takes for so many images, whatever runs are about: arena, scratch and what it returns."""
        largest = 0
        for threads in (1, None):
            plan = self.groups(count, height, width, memory_budget=memory_budget, threads=threads)[0].plan
            scores = sum(tensor.volume.channels * tensor.height * tensor.width for tensor in plan.program.shown())
            largest = max(largest, plan.arena_bytes + plan.scratch_bytes + 4 * scores * count)
        return largest

    def least_bytes(self, height: int, width: int) -> int:
        """Return the smallest memory budget of a run over an image of height x width pixels."""
        isa = dispatch.active()
        return least_bytes(
            self.graph,
            height,
            width,
            full_buffers=settings.get("PLAN") == "off",
            poison=settings.get("POISON"),
            costs=costs_in_use(isa),
        )

    def release_idle(self) -> None:
        """Give the memory that is kept for coming runs back to the system."""
        with self._lock:
            idle, self._idle = self._idle, []
            forms = list(self._forms.values())
        for memory in idle:
            memory.close()
        for form in forms:
            form.release_idle()

    def groups(self, count: int, height: int, width: int, **sizes: Any) -> list[Executor]:
        """Return the executors of the groups in which run computes so many images, one after another.

        sizes: memory_budget, score_bytes and threads, as for executor. Raises ShapeError, MemoryBudgetError.
        """
        executor = self.executor(height, width, **sizes)
        at_once = min(count, MOST_IMAGES, max(1, BATCH_ARENA_BYTES // executor.plan.arena_bytes))
        while at_once > 1:
            try:
                executor = self.executor(height, width, images=at_once, **sizes)
                break
            except MemoryBudgetError:
                at_once //= 2
        found = [executor] * (count // at_once)
        if count % at_once:
            found.append(self.executor(height, width, images=count % at_once, **sizes))
        return found

    def _take(self, size_bytes: int) -> Memory:
        with self._lock:
            for number, memory in enumerate(self._idle):
                if memory.size_bytes == size_bytes:
                    return self._idle.pop(number)
        return Memory(size_bytes)

    def _give(self, memory: Memory) -> None:
        dropped = []
        with self._lock:
            self._idle.append(memory)
            while sum(idle.size_bytes for idle in self._idle) > IDLE_BYTES:
                dropped.append(self._idle.pop(0))
        for old in dropped:
            old.close()
