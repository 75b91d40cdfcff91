"""Dynamic batching: what several calls ask of one model at the same time runs together, each with its own bits."""

import asyncio
import math
import time
from bisect import insort
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from convserve.errors import ConvserveError, RunCancelled, ServerBusy
from convserve.model import Cancellation
from convserve.server.admission import Admission, Timed

if TYPE_CHECKING:
    from convserve.model import Model

__all__ = ["SIZES", "Batcher", "Joint"]

SIZES = (1, 2, 4, 8, 16, 32)
LEAST_GAIN = 0.1
ENOUGH_GAIN = 0.85
DELAY_OF_RUN = 0.2
LONGEST_DELAY_S = 0.01
LANES = 2  # while one run's callers come back, the other's images are computed
LANES_ALONE = 256  # where joining gains nothing, the threads are the limit
DOUBT = 1.15  # an answer that comes too late has cost another one its time
SPARE_S = 0.05  # before the nearest deadline, beside twice the shortest run


class Joint(NamedTuple):
    """How a model's calls run: images of a run at most, and how many runs are in work at a time."""

    most: int
    lanes: int


@dataclass(slots=True, eq=False)
class _Part:
    """What one call asks for: images, and the future of their results."""

    images: Sequence[Any]
    priority: int
    number: int
    deadline_s: float | None
    results: "asyncio.Future[list[Any]]"

    def __lt__(self, other: "_Part") -> bool:
        return (self.priority, self.number) < (other.priority, other.number)


@dataclass(slots=True, eq=False)
class _Line:
    """Calls that may run together, in the order in which they shall; up to `lanes` runs of them are in work."""

    work: Callable[[list[Any], Cancellation], list[Any]]
    joint: Joint
    parts: list[_Part] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    running: set[asyncio.Task[None]] = field(default_factory=set)
    running_images: int = 0
    about: int = 0
    least_s: float = 0.0
    run_s: float = 0.0
    image_s: float = 0.0

    @property
    def images(self) -> int:
        return sum(len(part.images) for part in self.parts)

    def ran(self, images: int, seconds: float) -> None:
        """Count a run; run_s and image_s are means of the last ones."""
        self.least_s = min(self.least_s or seconds, seconds)
        self.run_s += (seconds - self.run_s) / 4 if self.run_s else seconds
        each_s = seconds / images
        self.image_s += (each_s - self.image_s) / 4 if self.image_s else each_s

    def answered_in_s(self, at_once: int) -> float:
        """Return how long a call that comes now is likely to take, with so many runs at once."""
        before = self.images + self.running_images / 2
        wait_s = before * self.image_s / min(at_once, self.joint.lanes)
        return DOUBT * (wait_s + self.run_s) if before else 0.0

    def take(self) -> list[_Part]:
        # the first part whatever its size, then those behind it that still fit: an even share for each run in work,
        # since of a large and a small one the small one is slow
        most = min(self.joint.most, math.ceil((self.images + self.running_images) / self.joint.lanes))
        self.about = max(self.about - 1, self.images + self.running_images)
        taken = [self.parts.pop(0)]
        count = len(taken[0].images)
        while self.parts and count + len(self.parts[0].images) <= most:
            taken.append(self.parts.pop(0))
            count += len(taken[-1].images)
        return taken


class Batcher:
    """Joins calls, for use inside one event loop."""

    def __init__(
        self, admission: Admission, *, max_batch: int | None = None, max_delay_s: float | None = None
    ) -> None:
        """max_batch: images of a run at most; None: as many as the model's predicted times favour.

        max_delay_s: how long a call waits for others; None: a fifth of a run at most, for an even share of those about.
        """
        self._admission = admission
        self._max_batch, self._max_delay_s = max_batch, max_delay_s
        self._lines: dict[Hashable, _Line] = {}
        self._joints: WeakKeyDictionary[Any, Joint] = WeakKeyDictionary()
        self._number = 0

    def joint(self, model: "Model") -> Joint:
        """Return how a model's calls run together; plans, so not for the event loop.

        By default runs are the smallest that bring most of what large ones would, where that is worth the wait.
        """
        if model not in self._joints:
            most = self._max_batch or _size_that_pays(model)
            self._joints[model] = Joint(most, LANES if most > 1 else LANES_ALONE)
        return self._joints[model]

    def known(self, model: "Model") -> Joint | None:
        """Return what joint() has returned for a model, None where it has not been asked."""
        return self._joints.get(model)

    async def join(
        self,
        context: Timed,
        key: Hashable,
        images: Sequence[Any],
        work: Callable[[list[Any], Cancellation], list[Any]],
        *,
        joint: Joint,
        priority: int = 0,
    ) -> list[Any]:
        """Return work's results for the images of a call, which may have run with those of others of the same key.

        work: from a list of images to one result each, on a thread; key: what makes calls alike, so that either
        one's work will do. joint: of the model; a call with more images runs alone. priority: lower goes first.
        Raises ServerBusy where the call's deadline is too near for what waits before it; RunCancelled where it passes
        before the turn comes, or is nearer than a run is long.
        """
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(work, joint)
        remaining_s = context.time_remaining()
        if remaining_s is not None and 0 < remaining_s < (expected_s := line.answered_in_s(self._admission.runs)):
            raise ServerBusy(
                f"the deadline is in {remaining_s:.2f} s; with what waits before it the answer would take"
                f" {expected_s:.2f} s",
                expected_s - remaining_s,
            )
        deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
        self._number += 1
        part = _Part(images, priority, self._number, deadline_s, asyncio.get_running_loop().create_future())
        insort(line.parts, part)
        line.came.set()
        if len(line.running) < line.joint.lanes:
            # held here: an event loop keeps no task alive
            line.running.add(asyncio.create_task(self._serve(key, line)))
        try:
            return await part.results
        finally:
            # a call that left while it waited is not computed
            with suppress(ValueError):
                line.parts.remove(part)

    async def _serve(self, key: Hashable, line: _Line) -> None:
        try:
            while line.parts:
                await self._gather(line)
                if line.parts:
                    await self._run(line)
        finally:
            line.running.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            if not line.running:
                del self._lines[key]

    async def _gather(self, line: _Line) -> None:
        # those whose answers just left are likely to ask again: an even share of all is worth a short wait
        wanted, delay_s = line.joint.most, self._max_delay_s
        if delay_s is None:
            wanted = min(math.ceil(line.about / line.joint.lanes), line.joint.most)
            delay_s = min(DELAY_OF_RUN * line.run_s, LONGEST_DELAY_S)
        end_s = time.monotonic() + delay_s
        while line.parts and line.images < wanted:
            deadlines = [part.deadline_s for part in line.parts if part.deadline_s is not None]
            latest_s = min(deadlines, default=math.inf) - 2 * line.least_s - SPARE_S
            left_s = min(end_s, latest_s) - time.monotonic()
            if left_s <= 0:
                return
            line.came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await line.came.wait()

    async def _run(self, line: _Line) -> None:
        async with self._admission.run_place():
            self._drop_late(line)
            if not line.parts:
                return
            parts = line.take()
            try:
                await self._computed(line, parts)
            except ConvserveError as error:
                # what concerns one call is no reason to fail the others
                if len(parts) == 1:
                    _fail(parts[0], error)
                    return
                for part in parts:
                    try:
                        await self._computed(line, [part])
                    except Exception as own:
                        _fail(part, own)
            except Exception as error:
                for part in parts:
                    _fail(part, error)

    def _drop_late(self, line: _Line) -> None:
        # where others wait, what is likely to end too late takes their time; alone, only what cannot end in time does
        usual_s = line.run_s if len(line.parts) > 1 else line.least_s
        end_s = time.monotonic() + usual_s
        for part in [part for part in line.parts if (part.deadline_s or end_s) < end_s]:
            line.parts.remove(part)
            text = "the deadline passed, or was too near for a run, before the turn came"
            _fail(part, RunCancelled(text, overdue=True))

    async def _computed(self, line: _Line, parts: list[_Part]) -> None:
        waiting = [part for part in parts if not part.results.done()]
        if not waiting:
            return
        images = [image for part in waiting for image in part.images]
        cancellation = Cancellation()

        def left(_: "asyncio.Future[list[Any]]") -> None:
            if all(part.results.done() for part in waiting):
                cancellation.cancel()

        for part in waiting:
            part.results.add_done_callback(left)

        def work() -> tuple[list[Any], float]:
            # the queue of the threads may have held it up
            start_s = time.monotonic()
            if all(part.results.done() or (part.deadline_s or math.inf) < start_s for part in waiting):
                raise RunCancelled("the deadline passed before the run began", overdue=True)
            return line.work(images, cancellation), time.monotonic() - start_s

        line.running_images += len(images)
        try:
            results, seconds = await self._admission.run(work)
        finally:
            line.running_images -= len(images)
            for part in waiting:
                part.results.remove_done_callback(left)
        line.ran(len(images), seconds)
        for part in waiting:
            mine, results = results[: len(part.images)], results[len(part.images) :]
            if not part.results.done():
                part.results.set_result(mine)


def _fail(part: _Part, error: Exception) -> None:
    if not part.results.done():
        part.results.set_exception(error)


def _size_that_pays(model: "Model") -> int:
    """Return the images of a run."""
    seconds = []
    for size in SIZES if model.window is not None else ():
        try:
            plan = model.plan(*cast("tuple[int, int]", model.window), batch=size)
        except ConvserveError:
            # a batch beyond the model's memory budget
            break
        seconds.append(plan.predicted_s / size)
    if not seconds:
        return 1
    gain = seconds[0] - min(seconds)
    if gain < LEAST_GAIN * seconds[0]:
        return 1
    return next(n for n, each in zip(SIZES, seconds, strict=False) if seconds[0] - each >= ENOUGH_GAIN * gain)
