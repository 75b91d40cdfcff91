"""Between a supervisor and its workers: a connection on which either side asks the other, many questions at a time."""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

from convserve import errors
from convserve.errors import ConvserveError, ServerUnavailable

__all__ = ["Control"]

LONGEST_LINE_BYTES = 256 << 20

_log = logging.getLogger("convserve.server")

Handler = Callable[..., Awaitable[Any]]


class Control:
    """One end of the connection, for use inside one event loop.

    A message is a line of JSON: {"ask": number, "what": name, "with": arguments}, where number null wants no answer,
    and {"answer": number, "result": value} or {"answer": number, "error": [class, text]}. What is told, or asked, is
    begun by the other side in the order in which it was sent.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        """handlers: what answers each question, called with its arguments; a ConvserveError is raised over there."""
        self._handlers = handlers
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, end: socket.socket) -> None:
        """Take over an end; from then on something can be told, and be asked while run() runs."""
        self._reader, self._writer = await asyncio.open_connection(sock=end, limit=LONGEST_LINE_BYTES)

    async def run(self) -> None:
        """Answer until the other side has closed its end or has gone; whatever waits for an answer then fails."""
        assert self._reader is not None
        assert self._writer is not None
        try:
            while line := await self._reader.readline():
                self._take(json.loads(line))
        except ConnectionError:
            # ended while something was on its way
            pass
        finally:
            writer, self._writer = self._writer, None
            writer.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(_gone())

    async def ask(self, what: str, /, **arguments: Any) -> Any:
        """Return what the other side's handler returns, or raise what it raises; ServerUnavailable where it is gone."""
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            if not self._send({"ask": number, "what": what, "with": arguments}):
                raise _gone()
            return await waiting
        finally:
            del self._waiting[number]

    def tell(self, what: str, /, **arguments: Any) -> None:
        """Let the other side's handler know; nothing comes back, also where it has gone."""
        self._send({"ask": None, "what": what, "with": arguments})

    def _send(self, message: dict[str, Any]) -> bool:
        if self._writer is None or self._writer.is_closing():
            return False
        self._writer.write(json.dumps(message).encode() + b"\n")
        return True

    def _take(self, message: dict[str, Any]) -> None:
        if "what" in message:
            task = asyncio.get_running_loop().create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        waiting = self._waiting.get(message["answer"])
        if waiting is None or waiting.done():
            # who asked does not wait any more
            return
        if "error" in message:
            kind, text = message["error"]
            waiting.set_exception(getattr(errors, kind)(text))
        else:
            waiting.set_result(message["result"])

    async def _answer(self, message: dict[str, Any]) -> None:
        try:
            answer = {"result": await self._handlers[message["what"]](**message["with"])}
        except ConvserveError as error:
            answer = {"error": [type(error).__name__, str(error)]}
        except Exception:
            _log.exception("%s failed", message["what"])
            answer = {"error": [ConvserveError.__name__, "internal error"]}
        if message["ask"] is not None:
            self._send({"answer": message["ask"], **answer})


def _gone() -> ConvserveError:
    return ServerUnavailable("the process that was asked has ended")
