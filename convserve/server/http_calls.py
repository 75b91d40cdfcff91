"""What every HTTP call goes through: who may make it, its body, its exceptions as statuses, its line in the log."""

import asyncio
import json
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, NamedTuple, TypeVar

import grpc

from convserve.errors import ConvserveError, InputError, PermissionDeniedError, RunCancelled
from convserve.server.access import Access
from convserve.server.call_log import REQUEST_ID, REQUEST_ID_KEY, log_call, request_id_of
from convserve.server.failures import Failure, failure_of
from convserve.server.limits import Limits
from convserve.server.statistics import Statistics
from convserve.server.tracing import Ended, NoTracing
from convserve.wire.status import ERROR_KEY, HTTP_STATUS, PUSHBACK_KEY

__all__ = ["METRICS_METHOD", "Answer", "Endpoint", "Handler", "HttpCall", "Refused", "json_answer"]

Result = TypeVar("Result")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

METRICS_METHOD = "Metrics"
"""What asks for metrics, in the place of a method of the protocol."""

_PIECE_BYTES = 256 << 10
_PACE_BYTES = 1 << 20
_LINGER_S = 2.0
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Refused(ConvserveError):
    """A request that HTTP has a status of its own for."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class Answer:
    """A body in pieces, made as they are sent. length: of all pieces, None where it is not known."""

    pieces: Iterator[bytes]
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    length: int | None = None
    status: int = 200


def json_answer(text: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return the answer that is a JSON text."""
    return Answer(
        iter([text.encode()]), {"content-type": "application/json", **(headers or {})}, status=status
    )


class Handler(NamedTuple):
    """What answers a path's GET or POST. method: of the Open Inference Protocol, whose right the call takes.

    is_open: for those without a token too.
    """

    answer: "Callable[[HttpCall], Awaitable[Answer]]"
    method: str
    is_open: bool = False

    @property
    def is_quiet(self) -> bool:
        """Whether it leaves no line in the log, and no trace: what asks again and again whether all is well."""
        return self.is_open or self.method == METRICS_METHOD


class HttpCall:
    """One request: its path, its headers, its body; a call without a deadline."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive, limits: Limits) -> None:
        self.path: Mapping[str, str] = scope.get("path_params", {})
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self.body_came = not self._has_body()
        self._stalled = False
        self.until_sent = AsyncExitStack()
        """What is held until the answer was sent."""
        self._receive = receive
        self._limits = limits

    def header(self, name: str) -> str | None:
        """Return the value of a header, by its name in lower case; the first of several."""
        return next((value for key, value in self.headers if key == name), None)

    def number(self, name: str) -> int | None:
        """Return a header's whole number; InputError for one that is none."""
        text = self.header(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise InputError(f"the header {name} is {text[:100]!r}; it must be a whole number")
        return int(text)

    def time_remaining(self) -> None:
        """Return None: HTTP has no deadlines, requests have their parameter timeout."""
        return

    def _has_body(self) -> bool:
        return self.header("transfer-encoding") is not None or self.header("content-length") not in (None, "0")

    def told_bytes(self) -> int | None:
        """Return how long the body is by its headers, None where they do not tell; Refused for one that is too long."""
        length = self.number("content-length")
        if length is not None and length > self._limits.message_bytes:
            raise self._too_long(self._limits.message_bytes)
        return None if self.header("content-encoding") or self.header("transfer-encoding") else length or 0

    def _too_long(self, most: int) -> Refused:
        return Refused(413, f"the request has a body of more than the {most} bytes that are allowed")

    async def body(self, most_bytes: int | None = None) -> memoryview:
        """Return the body, inflated; Refused where it does not come, or is longer than most_bytes or any message."""
        most = min(most_bytes or self._limits.message_bytes, self._limits.message_bytes)
        encoding = self.header("content-encoding") or "identity"
        if (self.told_bytes() or 0) > most:
            raise self._too_long(most)
        if encoding not in (*_WINDOW_BITS, "identity"):
            raise Refused(415, f"the request has the content-encoding {encoding[:100]!r}; allowed: gzip, deflate")
        inflate = zlib.decompressobj(_WINDOW_BITS[encoding]) if encoding in _WINDOW_BITS else None
        found = bytearray()
        while not self.body_came:
            part = await self._part(len(found) // _PACE_BYTES)
            if inflate is not None:
                part = await asyncio.to_thread(_inflated, inflate, part, most + 1 - len(found))
            found += part
            if len(found) > most:
                raise self._too_long(most)
        if inflate is not None and not inflate.eof:
            raise InputError(f"the request's body ends before its {encoding} does")
        return memoryview(found).toreadonly()

    async def _part(self, pace: int) -> bytes:
        # a client that sends a byte now and then is as slow as one that sends nothing
        if pace != getattr(self, "_pace", None):
            self._pace = pace
            self._latest_s = asyncio.get_running_loop().time() + self._limits.stall_s
        try:
            async with asyncio.timeout_at(self._latest_s):
                message = await self._receive()
        except TimeoutError:
            self._stalled = True
            raise Refused(408, f"no body, or no more of it, came for {self._limits.stall_s:g} s") from None
        if message["type"] != "http.request":
            raise RunCancelled("the client left before its request had come")
        self.body_came = not message.get("more_body", False)
        return message.get("body", b"")

    async def unless_gone(self, work: Awaitable[Result]) -> Result:
        """Return what work gives; cancel it where the client leaves. The body must have come."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise RunCancelled("the client left before its answer")
            return task.result()
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def linger(self) -> None:
        """Read on for a while what nobody wants, so that a client that is still sending comes to read its answer."""
        left = self._limits.message_bytes
        try:
            async with asyncio.timeout(_LINGER_S):
                while left > 0 and not (self.body_came or self._stalled):
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self.body_came = not message.get("more_body", False)
        except TimeoutError:
            return


def _inflated(inflate: Any, part: bytes, most: int) -> bytes:
    try:
        return bytes(inflate.decompress(part, most))
    except zlib.error as error:
        raise InputError(f"the request's body cannot be inflated: {error}") from None


class Endpoint:
    """An ASGI application that answers one path; its exceptions are mapped by wire.status."""

    def __init__(
        self,
        path: str,
        limits: Limits,
        access: Access | None,
        statistics: Statistics,
        tracing: NoTracing,
        handlers: Mapping[str, Handler],
    ) -> None:
        """handlers: by GET and POST. path: what the log says."""
        self._statistics, self._tracing = statistics, tracing
        self._quiet = NoTracing()
        self._path, self._limits, self._access, self._handlers = path, limits, access, handlers

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        verb = "GET" if scope["method"] == "HEAD" else scope["method"]
        handler = self._handlers.get(verb)
        name = f"{verb if verb in ('GET', 'POST') else 'other'} {self._path}"
        call = HttpCall(scope, receive, self._limits)
        request_id = request_id_of(call.headers)
        REQUEST_ID.set(request_id)
        tracing = self._quiet if handler is not None and handler.is_quiet else self._tracing
        with tracing.call("http", name, request_id, call.headers) as ended:
            await self._answer(scope, call, handler, name, request_id, send, ended)

    async def _answer(
        self,
        scope: Message,
        call: HttpCall,
        handler: Handler | None,
        name: str,
        request_id: str,
        send: Send,
        ended: Ended,
    ) -> None:
        start_s, client, status = time.monotonic(), "", 499
        answer: Answer | None = None
        try:
            try:
                client = self._client(call, handler)
                if handler is None:
                    raise Refused(405, f"{scope['method'][:20]} is none of {', '.join(self._handlers)}")
                answer = await handler.answer(call)
            except Exception as error:
                answer = _of_failure(error, failure_of(error, name))
            answer.headers[REQUEST_ID_KEY] = request_id
            await self._send(call, answer, send)
            status = answer.status
        finally:
            # what it held is gone when its bytes are given back
            answer = None
            await call.until_sent.aclose()
            ended(str(status))
            self._statistics.count_call("http", name.replace(" ", ":"), str(status))
            if handler is None or not handler.is_quiet or status >= 400:
                peer = "%s:%s" % (scope.get("client") or ("", ""))
                log_call(
                    method=name, status=str(status), seconds=time.monotonic() - start_s, peer=peer, client=client
                )

    def _client(self, call: HttpCall, handler: Handler | None) -> str:
        origin = call.header("origin")
        if origin is not None and origin.rpartition("/")[2] != call.header("host"):
            # a page of any site can make its visitors' browsers send to servers on their own machine
            raise PermissionDeniedError("the call comes from a page of another origin")
        if self._access is None or (handler is not None and handler.is_open):
            return ""
        return self._access.client(call.headers, handler.method if handler else "")

    async def _send(self, call: HttpCall, answer: Answer, send: Send) -> None:
        data, ended = await asyncio.to_thread(_gather, answer.pieces)
        length = len(data) if ended else answer.length
        headers = {**answer.headers, "date": formatdate(usegmt=True)}
        headers |= {} if length is None else {"content-length": str(length)}
        headers |= {} if call.body_came else {"connection": "close"}
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._wait(send({"type": "http.response.start", "status": answer.status, "headers": pairs}))
        while not ended:
            await self._wait(send({"type": "http.response.body", "body": data, "more_body": True}))
            data, ended = await asyncio.to_thread(_gather, answer.pieces)
        await self._wait(send({"type": "http.response.body", "body": data, "more_body": not call.body_came}))
        if not call.body_came:
            await call.linger()
            await self._wait(send({"type": "http.response.body", "body": b"", "more_body": False}))

    async def _wait(self, sending: Awaitable[None]) -> None:
        async with asyncio.timeout(self._limits.stall_s):
            await sending


def _gather(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Return some of the next pieces, and whether there are no more."""
    found, size = [], 0
    for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size >= _PIECE_BYTES:
            return b"".join(found), False
    return b"".join(found), True


def _of_failure(error: Exception, failure: Failure) -> Answer:
    if isinstance(error, Refused):
        return json_answer(json.dumps({"error": str(error)}), status=error.status)
    headers = {name: value for name, value in failure.trailers if name == ERROR_KEY}
    for name, value in failure.trailers:
        if name == PUSHBACK_KEY:
            headers["retry-after"] = str(max(1, math.ceil(int(value) / 1000)))
    if failure.code == grpc.StatusCode.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return json_answer(json.dumps({"error": failure.text}), status=HTTP_STATUS[failure.code], headers=headers)
