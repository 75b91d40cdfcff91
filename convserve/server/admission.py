"""Who may compute: a bounded number of calls, of bytes, of open score maps and of threads, first come, first served."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, Protocol, TypeVar

from convserve.engine.team import available_threads
from convserve.errors import RunCancelled, ServerBusy
from convserve.server.ledger import Ledger, Reservation

__all__ = ["Admission", "Timed", "no_cancel"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAPS_PER_RUNNING = 2
REST_S = 0.5
# A refused client is told to wait about as long as a call took lately, in these bounds.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0


class Timed(Protocol):
    """A call that may have a deadline, as every gRPC context."""

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, None where there is none."""


def no_cancel() -> None:
    """Stand for cancel in Admission.compute(): what takes milliseconds need not end early."""
    return


class Admission:
    """The engine's queue, for use inside one event loop.

    A call is admitted while fewer than max_running + max_waiting others are, and not where it is unlikely to end by its
    deadline. It reserves bytes before it takes them. A score map holds memory from its first row to its last, so only
    some of the calls are maps at once; a thread is held for one block of rows, never while a client is waited for.
    Networks run on as many threads as there are processors, with one run more in the queue so that none falls idle.
    """

    def __init__(
        self,
        *,
        max_running: int,
        max_waiting: int,
        ledger: Ledger | None = None,
        on_rest: Callable[[], None] | None = None,
    ) -> None:
        """max_running: threads that work at once. max_waiting: calls admitted beyond them. ledger: default without
        a budget. on_rest: called in the event loop when for REST_S there was no call, once after each time that there
        were some.
        """
        self.runs = min(max_running, available_threads())
        """Networks that run at once."""
        self._pool = ThreadPoolExecutor(max_running, thread_name_prefix="convserve-work")
        self._threads = asyncio.Semaphore(max_running)
        self._run_pool = ThreadPoolExecutor(self.runs, thread_name_prefix="convserve-run")
        self._runs = asyncio.Semaphore(self.runs + 1)
        self._maps = asyncio.Semaphore(max_running * MAPS_PER_RUNNING)
        self._most = max_running + max_waiting
        self._mean_s = _SHORTEST_WAIT_S
        self._gap_s = 0.0
        self._ended_s = 0.0
        self._on_rest = on_rest
        self._rest: asyncio.TimerHandle | None = None
        self.ledger = ledger or Ledger()
        """The bytes that calls hold."""
        self.map_bytes = 0
        """What the last score map of an image file took: the guess for the next one, before its file is read."""
        self._brief = 0
        self.calls = 0
        """Calls that run or wait."""

    @asynccontextmanager
    async def call(self, context: Timed, *, open_ended: bool = False) -> AsyncIterator[Reservation]:
        """Admit one call for the length of the block, and give it a reservation, of no bytes yet.

        open_ended: it lasts as long as its client makes it, and tells nothing about the others. Raises ServerBusy where
        the queue is full, or so long that the call's deadline would pass.
        """
        wait_s = min(max(self._mean_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
        if self.calls >= self._most:
            raise ServerBusy(f"the server has {self.calls} calls running and waiting, and takes no more", wait_s)
        remaining_s, expected_s = context.time_remaining(), self._brief * self._gap_s
        if not open_ended and remaining_s is not None and 0 < remaining_s < expected_s:
            raise ServerBusy(
                f"the {self._brief} calls before this one take about {expected_s:.1f} s, longer than its deadline is",
                wait_s,
            )
        self.calls += 1
        self._brief += not open_ended
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        start_s, answered = time.monotonic(), False
        reservation = self.ledger.open()
        try:
            yield reservation
            answered = True
        finally:
            reservation.close()
            self.calls -= 1
            if not open_ended:
                self._brief -= 1
                if answered:
                    self._ended(start_s)
            if not self.calls and self._on_rest is not None:
                self._rest = asyncio.get_running_loop().call_later(REST_S, self._on_rest)

    def _ended(self, start_s: float) -> None:
        now_s = time.monotonic()
        self._mean_s += (now_s - start_s - self._mean_s) / 8
        # from one call's end to the next one's, as long as there was one to work on
        self._gap_s += (now_s - max(start_s, self._ended_s) - self._gap_s) / 16
        self._ended_s = now_s

    @asynccontextmanager
    async def score_map(self) -> AsyncIterator[None]:
        """Wait until one more score map may be open, and hold its place for the length of the block."""
        async with self._maps:
            yield

    async def compute(
        self,
        context: Timed,
        cancel: Callable[[], None],
        work: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Wait for a thread and return what work gives on it; cancel, called from here, makes work end early.

        A call that is cancelled leaves only when its work has, so that what work uses can be freed then. Raises
        RunCancelled where the call's deadline passed while it waited.
        """
        async with self._threads:
            remaining = context.time_remaining()
            if remaining is not None and remaining <= 0:
                raise RunCancelled("the deadline passed before the request's turn came", overdue=True)
            return await _ended_with(self._pool.submit(work, *args, **kwargs), cancel)

    @asynccontextmanager
    async def run_place(self) -> AsyncIterator[None]:
        """Wait until a network may run, and hold its place for the length of the block, in which run() begins soon."""
        async with self._runs:
            yield

    async def run(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return what work gives on a thread of those that run networks."""
        return await asyncio.wrap_future(self._run_pool.submit(work, *args, **kwargs))

    def close(self) -> None:
        """Free the threads, after the work that they have begun."""
        for pool in (self._pool, self._run_pool):
            pool.shutdown(wait=True, cancel_futures=True)


async def _ended_with(submitted: "Future[Result]", cancel: Callable[[], None]) -> Result:
    future = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancel()
        while not future.done():
            # a second cancellation changes nothing: the thread is busy until it returns
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()
        raise
    finally:
        # an exception's traceback holds this frame, and what the work was about with it
        del future, submitted
