"""A request that is read from the wire when there is room for it, not when it comes."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from convserve.errors import InputError, RunCancelled
from convserve.server.ledger import Ledger, Reservation
from convserve.server.limits import Limits

__all__ = ["COPIES", "Unread"]

COPIES = 2
"""A message lies in memory so often while it is read: as it came and as one piece, or that and its parsed parts."""


class Unread:
    """The one message of a call, still with its sender; gRPC's flow control keeps all but its beginning there."""

    def __init__(
        self,
        context: grpc.aio.ServicerContext,
        parse: Callable[[bytes], Any],
        ledger: Ledger,
        limits: Limits,
        method: str,
    ) -> None:
        self._context, self._parse, self._ledger, self._limits = context, parse, ledger, limits
        self._method = method

    async def message(self, held: Reservation | None = None) -> Any:
        """Return the parsed message, its bytes added to what is held; without held it is taken to be short-lived.

        While it comes, the longest that is allowed is reserved. Raises InputError, ServerBusy, MemoryBudgetError, and
        RunCancelled where nothing comes for as long as a client may stall.
        """
        if held is None:
            held = self._ledger.open()
            try:
                return await self.message(held)
            finally:
                held.close()
        before = held.bytes
        await held.resize(before + COPIES * self._limits.message_bytes)
        try:
            async with asyncio.timeout(self._limits.stall_s):
                data = await self._context.read()
        except TimeoutError:
            raise RunCancelled(f"the request's message did not come for {self._limits.stall_s:g} s") from None
        if data is grpc.aio.EOF:
            raise InputError(f"the call of {self._method} ended before its request came")
        held.try_resize(before + COPIES * len(data))
        try:
            return self._parse(data)
        except DecodeError:
            raise InputError(f"the bytes that came are no request of {self._method}") from None
