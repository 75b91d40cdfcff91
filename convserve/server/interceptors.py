"""What every call goes through: who may make it, its exceptions as gRPC statuses, its line in the log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from convserve.errors import ConvserveError
from convserve.server.access import Access
from convserve.server.call_log import REQUEST_ID, REQUEST_ID_KEY, log_call, request_id_of
from convserve.server.failures import failure_of
from convserve.server.ledger import Ledger
from convserve.server.limits import Limits
from convserve.server.listening import Listeners
from convserve.server.statistics import Statistics
from convserve.server.tracing import Ended, NoTracing
from convserve.server.unread import Unread

__all__ = ["ErrorInterceptor"]

_MOST_LISTENERS = 64

_OURS = ("/convserve.", "/inference.")
_OPEN = "/grpc.health.v1."

Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]

def _none_if_garbled(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    # gRPC itself would answer UNKNOWN, and log a traceback that any stranger can cause
    def parse_or_none(data: bytes) -> Any:
        assert parse is not None
        try:
            return parse(data)
        except DecodeError:
            return None

    return parse_or_none


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    request_id: str
    client: str
    start_s: float
    metadata: Any


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps ConvserveError by wire.status; anything else is INTERNAL, its traceback logged and not sent.

    access: refuses calls without a token that has the right, except those of health. Methods with one request get it
    Unread, within limits and ledger; those that stream must read and write through their context, where a message that
    cannot be parsed reads as None.
    """

    def __init__(
        self, ledger: Ledger, limits: Limits, statistics: Statistics, access: Access | None = None,
        tracing: NoTracing | None = None,
    ) -> None:
        self._statistics, self._tracing = statistics, tracing or NoTracing()
        self._ledger, self._limits, self._access = ledger, limits, access
        self._listeners = Listeners(_MOST_LISTENERS)
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until none of our calls is in work."""
        await self._idle.wait()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the call's handler, with its exceptions mapped if it is ours; None where there is none."""
        handler = await continuation(handler_call_details)
        method, metadata = handler_call_details.method, handler_call_details.invocation_metadata or ()
        if handler is None:
            return None
        if method.startswith(_OPEN):
            return self._listeners.bounded(handler)
        request_id, start_s = request_id_of(metadata), time.monotonic()
        try:
            client = "" if self._access is None else self._access.client(metadata, method)
        except ConvserveError as error:
            # of any kind, since nothing of the request is read
            refused = self._reporting(_raising(error), _Call(method, request_id, "", start_s, metadata))
            return grpc.stream_stream_rpc_method_handler(refused)
        if not method.startswith(_OURS):
            return self._listeners.bounded(handler)
        call = _Call(method, request_id, client, start_s, metadata)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._reporting(cast(Behaviour, handler.stream_stream), call),
                request_deserializer=_none_if_garbled(handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        # as a stream of requests, since gRPC itself reads a single one before its method is called
        return grpc.stream_unary_rpc_method_handler(
            self._reporting(self._with_unread(handler, method), call), response_serializer=handler.response_serializer
        )

    def _with_unread(self, handler: grpc.RpcMethodHandler, method: str) -> Behaviour:
        answer = cast(Behaviour, handler.unary_unary)
        parse = cast(Callable[[bytes], Any], handler.request_deserializer)

        async def behaviour(_: object, context: grpc.aio.ServicerContext) -> Any:
            return await answer(Unread(context, parse, self._ledger, self._limits, method), context)

        return behaviour

    def _reporting(self, behaviour: Behaviour, call: _Call) -> Behaviour:
        async def reporting(request: Any, context: grpc.aio.ServicerContext) -> Any:
            REQUEST_ID.set(call.request_id)
            with self._tracing.call("grpc", call.method, call.request_id, call.metadata) as ended:
                return await logged(request, context, ended)

        async def logged(request: Any, context: grpc.aio.ServicerContext, ended: Ended) -> Any:
            status = grpc.StatusCode.OK.name
            try:
                return await mapped(request, context)
            except grpc.aio.AbortError:
                status = context.code().name
                raise
            except BaseException:
                # cancelled in work, or gone when its status was sent
                status = grpc.StatusCode.CANCELLED.name
                raise
            finally:
                seconds = time.monotonic() - call.start_s
                ended(status)
                self._statistics.count_call("grpc", call.method.rpartition("/")[2], status)
                log_call(
                    method=call.method, status=status, seconds=seconds, peer=context.peer(), client=call.client
                )

        async def mapped(request: Any, context: grpc.aio.ServicerContext) -> Any:
            own_trailer = (REQUEST_ID_KEY, call.request_id)
            context.set_trailing_metadata((own_trailer,))
            try:
                with self._counted():
                    return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                remaining = context.time_remaining()
                code, text, trailers = failure_of(
                    error, call.method, overdue=remaining is not None and remaining <= 0
                )
            # behind the except block, since a client that does not read holds this up, and its traceback the arrays
            await context.abort(code, text, trailing_metadata=(*trailers, own_trailer))

        return reporting


def _raising(error: Exception) -> Behaviour:
    async def behaviour(request: Any, context: grpc.aio.ServicerContext) -> Any:
        raise error

    return behaviour
