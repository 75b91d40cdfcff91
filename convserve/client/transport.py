"""Channels behind one interface of coroutines: one that waits in an event loop, one that blocks the thread.

The client's core is written once, as coroutines. Those of the blocking channel never wait, so drive() runs them,
and whatever awaits them, to their end without an event loop.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc

from convserve.errors import InputError
from convserve.wire.convserve_pb2_grpc import ConvserveStub

__all__ = ["Blocking", "Call", "Channel", "Waiting", "credentials", "drive", "driven"]

Result = TypeVar("Result")

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # a connection for each client, where gRPC would share one: a server's workers share connections, not calls
    ("grpc.use_local_subchannel_pool", 1),
    # a retry must find the channel ready to connect again, not in its own longer pause
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
]


class Call(Protocol):
    """A stream in both directions that is under way."""

    async def read(self) -> Any:
        """Return the next message, None at the end; raises grpc.RpcError."""

    def cancel(self) -> None:
        """End the call; any thread may."""


class Channel(Protocol):
    """A connection to one server."""

    async def unary(self, method: str, request: Any, timeout_s: float | None) -> Any:
        """Return the answer to a request; raises grpc.RpcError."""

    def stream(self, method: str, requests: AsyncIterator[Any], timeout_s: float | None) -> Call:
        """Begin a call that sends the requests while its answers are read."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def close(self) -> None:
        """End the connection; calls under way are cancelled."""


def drive(awaitable: Awaitable[Result]) -> Result:
    """Return what an awaitable gives that never waits; its exceptions pass through."""
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise RuntimeError("a blocking channel's coroutine has waited")


def driven(items: AsyncIterator[Result]) -> Iterator[Result]:
    """Yield the items of an asynchronous iterator that never waits."""
    while True:
        try:
            item = drive(items.__anext__())
        except StopAsyncIteration:
            return
        yield item


def credentials(
    tls: bool | str | os.PathLike[str] | bytes | None,
    certificate: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
) -> grpc.ChannelCredentials | None:
    """Return the credentials of an encrypted channel, None for plain text; InputError where they cannot be read.

    certificate: PEM files of the client's own certificate and of its key.
    """
    if tls is None or tls is False:
        if certificate is not None:
            raise InputError("a client's certificate is shown over TLS only: give tls as well")
        return None
    roots = None if tls is True else tls if isinstance(tls, bytes) else _pem(tls, "root certificates")
    if certificate is None:
        return grpc.ssl_channel_credentials(roots)
    chain, key = certificate
    return grpc.ssl_channel_credentials(roots, _pem(key, "key"), _pem(chain, "certificate"))


def _pem(path: str | os.PathLike[str], what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"the {what} {os.fspath(path)!r} cannot be read: {error.strerror}") from error


class Blocking:
    """The channel of the synchronous client."""

    def __init__(self, address: str, secret: grpc.ChannelCredentials | None, metadata: list[tuple[str, str]]) -> None:
        self._channel = (
            grpc.insecure_channel(address, options=_OPTIONS)
            if secret is None
            else grpc.secure_channel(address, secret, options=_OPTIONS)
        )
        self._stub, self._metadata = ConvserveStub(self._channel), metadata

    async def unary(self, method: str, request: Any, timeout_s: float | None) -> Any:
        """Block until the answer is there."""
        return getattr(self._stub, method)(request, timeout=timeout_s, metadata=self._metadata)

    def stream(self, method: str, requests: AsyncIterator[Any], timeout_s: float | None) -> Call:
        """Begin the call; a thread of gRPC takes the requests."""
        call = getattr(self._stub, method)(driven(requests), timeout=timeout_s, metadata=self._metadata)
        return _BlockingCall(call)

    async def sleep(self, seconds: float) -> None:
        """Block the thread."""
        time.sleep(seconds)

    async def close(self) -> None:
        """End the connection."""
        self._channel.close()


class _BlockingCall:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> Any:
        return next(self._call, None)

    def cancel(self) -> None:
        self._call.cancel()


class Waiting:
    """The channel of the asynchronous client; made in the event loop that uses it."""

    def __init__(self, address: str, secret: grpc.ChannelCredentials | None, metadata: list[tuple[str, str]]) -> None:
        self._address, self._secret, self._metadata = address, secret, metadata
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    def _method(self, name: str) -> Any:
        # gRPC binds a channel to the running loop, and there may be none yet where the client is made
        if self._channel is None:
            self._channel = (
                grpc.aio.insecure_channel(self._address, options=_OPTIONS)
                if self._secret is None
                else grpc.aio.secure_channel(self._address, self._secret, options=_OPTIONS)
            )
            self._stub = ConvserveStub(self._channel)
        return getattr(self._stub, name)

    async def unary(self, method: str, request: Any, timeout_s: float | None) -> Any:
        """Wait for the answer."""
        return await self._method(method)(request, timeout=timeout_s, metadata=self._metadata)

    def stream(self, method: str, requests: AsyncIterator[Any], timeout_s: float | None) -> Call:
        """Begin the call; a task of the loop takes the requests."""
        return _WaitingCall(self._method(method)(requests, timeout=timeout_s, metadata=self._metadata))

    async def sleep(self, seconds: float) -> None:
        """Wait in the loop."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """End the connection."""
        if self._channel is not None:
            await self._channel.close()


class _WaitingCall:
    def __init__(self, call: Any) -> None:
        self._call, self._responses = call, aiter(call)
        self._refusal: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    def _note(self, call: Any) -> None:
        # The status as it came: gRPC overwrites it with INTERNAL where a write fails since the server has refused
        # (github.com/grpc/grpc/issues/36066). It is there by now, so nothing waits.
        code = drive(call.code())
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            trailers, text = drive(call.trailing_metadata()), drive(call.details())
            self._refusal = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, text)

    async def read(self) -> Any:
        try:
            return await anext(self._responses, None)
        except grpc.aio.AioRpcError:
            if self._refusal is not None:
                raise self._refusal from None
            raise

    def cancel(self) -> None:
        self._call.cancel()
