"""Streams that only listen, health watches and reflection: so many at once, since they never end by themselves."""

import inspect
from collections.abc import AsyncIterator
from typing import Any

import grpc

__all__ = ["Listeners"]


class Listeners:
    """Counts open streams of methods that are not ours; those beyond the limit get RESOURCE_EXHAUSTED.

    Health needs no token, so without a limit any stranger could take all the places of the server's calls.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    def bounded(self, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """Return the handler, counted where it streams."""
        if not handler.response_streaming:
            return handler
        kind = "stream_stream" if handler.request_streaming else "unary_stream"
        behaviour: Any = getattr(handler, kind)
        make = getattr(grpc, f"{kind}_rpc_method_handler")

        async def counted(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            if self._open >= self._most:
                text = f"the server has {self._open} streams open that listen to health or reflection"
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            self._open += 1
            try:
                if inspect.isasyncgenfunction(behaviour):
                    async for one in behaviour(request, context):
                        yield one
                else:
                    await behaviour(request, context)
            finally:
                self._open -= 1

        found: grpc.RpcMethodHandler = make(
            counted, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
        return found
