"""Who may compute: a bounded number of calls, of open score maps and of threads, each first come, first served."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, Protocol, TypeVar

from convserve.errors import RunCancelled, ServerBusy

__all__ = ["Admission", "Timed"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAPS_PER_RUN = 2
REST_S = 0.5
# A refused client is told to wait about as long as a call took lately, in these bounds.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0


class Timed(Protocol):
    """A call that may have a deadline, as every gRPC context."""

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, None where there is none."""


class Admission:
    """The engine's queue, for use inside one event loop.

    A call is admitted while fewer than max_running + max_waiting others are; a score map holds memory from its
    first row to its last, so only some of the calls are maps at once; a thread is held for one block of rows, never
    while a client is waited for.
    """

    def __init__(self, *, max_running: int, max_waiting: int, on_rest: Callable[[], None] | None = None) -> None:
        """max_running: threads that compute at once. max_waiting: calls admitted beyond them. on_rest: called in the
        event loop when for REST_S there was no call, once after each time that there were some.
        """
        self._pool = ThreadPoolExecutor(max_running, thread_name_prefix="convserve-run")
        self._threads = asyncio.Semaphore(max_running)
        self._maps = asyncio.Semaphore(max_running * MAPS_PER_RUN)
        self._most = max_running + max_waiting
        self._mean_s = _SHORTEST_WAIT_S
        self._on_rest = on_rest
        self._rest: asyncio.TimerHandle | None = None
        self.calls = 0
        """Calls that run or wait."""

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Admit one call for the length of the block; ServerBusy where the queue is full."""
        if self.calls >= self._most:
            wait_s = min(max(self._mean_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
            raise ServerBusy(f"the server has {self.calls} calls running and waiting, and takes no more", wait_s)
        self.calls += 1
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        start = time.monotonic()
        try:
            yield
        finally:
            self.calls -= 1
            self._mean_s += (time.monotonic() - start - self._mean_s) / 8
            if not self.calls and self._on_rest is not None:
                self._rest = asyncio.get_running_loop().call_later(REST_S, self._on_rest)

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
        async with self.thread():
            remaining = context.time_remaining()
            if remaining is not None and remaining <= 0:
                raise RunCancelled("the deadline passed before the request's turn came", overdue=True)
            future = asyncio.wrap_future(self._pool.submit(work, *args, **kwargs))
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

    @asynccontextmanager
    async def thread(self) -> AsyncIterator[None]:
        """Wait for a thread, and hold its place for the length of the block, in which submit() begins at once."""
        async with self._threads:
            yield

    async def submit(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return what work gives on a thread that is held for it."""
        return await asyncio.wrap_future(self._pool.submit(work, *args, **kwargs))

    def close(self) -> None:
        """Free the threads, after the work that they have begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)
