"""Turns exceptions of every call into gRPC statuses, in one place."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from convserve.errors import ConvserveError, InputError, ServerBusy
from convserve.wire.status import status_of, trailers_of

__all__ = ["ErrorInterceptor"]

# Trailing metadata travel in one HTTP/2 header block, which peers limit to some 8 KiB.
_LONGEST_TEXT = 2000

_MEMORY_WAIT_S = 1.0

_OURS = "/convserve."

_log = logging.getLogger("convserve.server")

Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]

_HANDLERS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def _none_if_garbled(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    # gRPC itself would answer UNKNOWN, and log a traceback that any stranger can cause
    def parse_or_none(data: bytes) -> Any:
        assert parse is not None
        try:
            return parse(data)
        except DecodeError:
            return None

    return parse_or_none


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps ConvserveError by wire.status; anything else is INTERNAL, its traceback logged and not sent.

    Methods that stream must read and write through their context; a message that cannot be parsed reads as None.
    """

    def __init__(self) -> None:
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
        if handler is None or not handler_call_details.method.startswith(_OURS):
            return handler
        kind, make = _HANDLERS[handler.request_streaming, handler.response_streaming]
        return make(
            self._reporting(getattr(handler, kind), handler_call_details.method),
            request_deserializer=_none_if_garbled(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _reporting(self, behaviour: Behaviour, method: str) -> Behaviour:
        async def reporting(request: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                with self._counted():
                    if request is None:
                        raise InputError(f"the bytes that came are no request of {method}")
                    return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except ConvserveError as error:
                remaining = context.time_remaining()
                code = status_of(error, overdue=remaining is not None and remaining <= 0)
                text, trailers = str(error)[:_LONGEST_TEXT], trailers_of(error)
            except MemoryError:
                _log.exception("%s failed", method)
                busy = ServerBusy("the server has not the memory for this request now", _MEMORY_WAIT_S)
                code, text, trailers = status_of(busy), str(busy), trailers_of(busy)
            except Exception:
                _log.exception("%s failed", method)
                code, text, trailers = grpc.StatusCode.INTERNAL, "internal error", ()
            # behind the except blocks, since a client that does not read holds this up, and its traceback the arrays
            await context.abort(code, text, trailing_metadata=trailers)

        return reporting
