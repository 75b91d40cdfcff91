"""Turns exceptions of every call into gRPC statuses, in one place."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from convserve.errors import ConvserveError
from convserve.wire.status import ERROR_KEY, status_of

__all__ = ["ErrorInterceptor"]

# Trailing metadata travel in one HTTP/2 header block, which peers limit to some 8 KiB.
_LONGEST_TEXT = 2000

_log = logging.getLogger("convserve.server")

Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]

_HANDLERS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps ConvserveError by wire.status; anything else is INTERNAL, its traceback logged and not sent.

    Methods that stream must write through their context instead of yielding.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the call's handler with its exceptions mapped; None where there is no such method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind, make = _HANDLERS[handler.request_streaming, handler.response_streaming]
        return make(
            _reporting(getattr(handler, kind), handler_call_details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _reporting(behaviour: Behaviour, method: str) -> Behaviour:
    async def reporting(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except ConvserveError as error:
            remaining = context.time_remaining()
            code = status_of(error, overdue=remaining is not None and remaining <= 0)
            named = ((ERROR_KEY, type(error).__name__),)
            await context.abort(code, str(error)[:_LONGEST_TEXT], trailing_metadata=named)
        except Exception:
            _log.exception("%s failed", method)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return reporting
