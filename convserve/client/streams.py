"""Score maps on their way: what is sent, and the blocks of rows that come back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

import grpc

from convserve.client.answers import MapReader, error_from_call
from convserve.client.transport import Call, drive
from convserve.errors import RunCancelled
from convserve.results import Geometry, PlanBytes, RunReport
from convserve.wire import convserve_pb2 as pb

__all__ = ["AsyncScoreStream", "Outgoing", "ScoreStream"]


class Outgoing:
    """The requests of one call: the header, then the image's pieces; a failure of theirs ends the call."""

    def __init__(
        self, header: pb.ScoreMapRequest, pieces: AsyncIterator[pb.ScoreMapRequest], *, once: bool = False
    ) -> None:
        """once: the pieces cannot be made again."""
        self.failure: Exception | None = None
        self._header, self._pieces, self._once = header, pieces, once
        self._taken = 0
        self._call: Call | None = None

    @property
    def repeatable(self) -> bool:
        """Whether another call may send the same; of what cannot be made again nothing may have been taken."""
        return not (self._once and self._taken)

    def begun(self, call: Call) -> None:
        """Take the call that is ended where the pieces fail."""
        self._call = call
        if self.failure is not None:
            call.cancel()

    async def messages(self) -> AsyncIterator[pb.ScoreMapRequest]:
        """Yield the requests."""
        yield self._header
        try:
            # counted before, since taking a piece reads the source
            self._taken += 1
            async for piece in self._pieces:
                yield piece
        except Exception as error:
            # not left to gRPC, which would log it and tell the reader nothing
            self.failure = error
            if self._call is not None:
                self._call.cancel()


class AsyncScoreStream:
    """A score map on its way from a server: `async for first_row, scores in stream`, once.

    scores are float32 (k, cols, classes), or a dict of what a reduction keeps.
    close() cancels it on the server too; it is also an asynchronous context
    manager that closes. Raises RunCancelled after close(), and what score_map raises.
    """

    def __init__(
        self,
        reader: MapReader,
        call: Call,
        sent: Outgoing,
        address: str,
        timeout_s: float | None,
        *,
        plain: bool,
    ) -> None:
        """plain: give scores as arrays rather than in dicts."""
        self._plain = plain
        self._reader, self._call, self._sent = reader, call, sent
        self._address, self._timeout_s = address, timeout_s
        self._closed = self._ended = False

    @property
    def geometry(self) -> Geometry:
        """Where the scores lie; rows is 0 until the end where the image's height is not known before."""
        return self._reader.geometry

    @property
    def plan(self) -> PlanBytes:
        """What the run takes on the server, in bytes."""
        return self._reader.plan

    @property
    def measured_bytes(self) -> int:
        """What the run took on the server for arena, scratch and scores; 0 before the end."""
        return self._reader.measured_bytes

    @property
    def seconds(self) -> float:
        """How long the server took; 0 before the end."""
        return self._reader.seconds

    @property
    def report(self) -> RunReport:
        """All three together."""
        return self._reader.report

    def __aiter__(self) -> "AsyncScoreStream":
        return self

    async def __anext__(self) -> tuple[int, Any]:
        if self._ended:
            raise StopAsyncIteration
        while (message := await self._message()) is not None:
            block = self._reader.read(message)
            if block is not None:
                return block[0], block[1]["scores"] if self._plain else block[1]
        self._reader.end()
        self._ended = True
        raise StopAsyncIteration

    async def _message(self) -> pb.ScoreMapResponse | None:
        try:
            if self._closed:
                raise RunCancelled(f"the score map was closed after {self._reader.done_rows} rows")
            message: pb.ScoreMapResponse | None = await self._call.read()
        except (grpc.RpcError, asyncio.CancelledError) as error:
            if self._sent.failure is not None:
                raise self._sent.failure from None
            if self._closed:
                raise RunCancelled(f"the score map was closed after {self._reader.done_rows} rows") from None
            if isinstance(error, asyncio.CancelledError):
                raise
            raise error_from_call(error, address=self._address, timeout_s=self._timeout_s) from error
        if self._sent.failure is not None:
            raise self._sent.failure
        return message

    def close(self) -> None:
        """Cancel the rest, here and on the server; closing twice, or after the end, does nothing."""
        if not self._ended:
            self._closed = True
            self._call.cancel()

    async def __aenter__(self) -> "AsyncScoreStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ScoreStream:
    """A score map on its way from a server: `for first_row, scores in stream`, once.

    scores are float32 (k, cols, classes), or a dict of what a reduction keeps.
    close() cancels it on the server too, from any thread; it is also a context
    manager that closes. Raises RunCancelled after close(), and what score_map raises.
    """

    def __init__(self, stream: AsyncScoreStream) -> None:
        self._stream = stream

    @property
    def geometry(self) -> Geometry:
        """Where the scores lie."""
        return self._stream.geometry

    @property
    def plan(self) -> PlanBytes:
        """What the run takes on the server, in bytes."""
        return self._stream.plan

    @property
    def measured_bytes(self) -> int:
        """What the run took on the server for arena, scratch and scores; 0 before the end."""
        return self._stream.measured_bytes

    @property
    def seconds(self) -> float:
        """How long the server took; 0 before the end."""
        return self._stream.seconds

    @property
    def report(self) -> RunReport:
        """All three together."""
        return self._stream.report

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        try:
            return drive(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Cancel the rest, here and on the server; closing twice, or after the end, does nothing."""
        self._stream.close()

    def __enter__(self) -> "ScoreStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
