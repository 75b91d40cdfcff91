"""The Open Inference Protocol over gRPC: decode, call, encode."""

import asyncio
from contextlib import aclosing
from typing import Any

import grpc

from convserve.errors import ConvserveError, InputError, RunCancelled, ServerBusy, ServerUnavailable
from convserve.server.admission import Admission
from convserve.server.inference import Inference
from convserve.server.limits import Limits
from convserve.server.model_facts import config_of, index_of, metadata_of, server_metadata, statistics_of
from convserve.server.unread import COPIES, Unread
from convserve.wire.infer import LONGEST_ID
from convserve.wire.infer_messages import answer_to_message, request_from_bytes, request_from_message
from convserve.wire.open_inference import METHODS, OPEN_INFERENCE
from convserve.wire.open_inference import messages as oip

__all__ = ["REFUSED", "OpenInferenceService", "add_open_inference"]

REFUSED = {
    **{
        f"{kind}SharedMemory{action}": "there is no shared memory with clients; contents travel in messages"
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "traces are set up where the server is started",
    "LogSettings": "logs are set up where the server is started",
}
"""The protocol's methods that there are not, and why."""

_STREAM_WAIT_S = 1.0


class OpenInferenceService:
    """Answers from an Inference; a method for each of the protocol's."""

    def __init__(self, inference: Inference, admission: Admission, limits: Limits) -> None:
        self._inference = inference
        self._admission = admission
        self._repository = inference.repository
        self._limits = limits
        self._streams = 0
        self._most_streams = limits.max_running + limits.max_waiting
        self._idle: set[asyncio.Timeout] = set()
        self._draining = False

    def drain(self) -> None:
        """End streams that wait for a request, and the others when their request in work is answered."""
        self._draining = True
        for timeout in self._idle:
            timeout.reschedule(asyncio.get_running_loop().time())

    async def ServerLive(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer that the server runs."""
        await unread.message()
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer whether inferences are taken."""
        await unread.message()
        return oip.ServerReadyResponse(ready=self._repository.complete and not self._draining)

    async def ModelReady(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer whether there is such a model."""
        request = await unread.message()
        return oip.ModelReadyResponse(ready=self._repository.is_ready(request.name, request.version))

    async def ServerMetadata(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer with the server's name, version and extensions."""
        await unread.message()
        return server_metadata()

    async def ModelMetadata(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer with what a model reads and gives."""
        request = await unread.message()
        return metadata_of(self._repository.model(request.name, request.version), self._repository)

    async def ModelConfig(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer with the same in another form, the largest batch, and the forms in which images are taken."""
        request = await unread.message()
        return oip.ModelConfigResponse(config=config_of(self._repository.model(request.name, request.version)))

    async def ModelStatistics(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer with counts and durations of one model, or of all."""
        request = await unread.message()
        names = [request.name] if request.name else self._repository.names
        found = [self._repository.model(name, request.version) for name in names]
        counts = self._inference.statistics
        return oip.ModelStatisticsResponse(
            model_stats=[statistics_of(one, await counts.total(one.name, one.version)) for one in found]
        )

    async def RepositoryIndex(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer with the models and their states."""
        request = await unread.message()
        _check_repository(request)
        return index_of(self._repository, ready=request.ready)

    async def RepositoryModelLoad(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Load what the repository's folder has of a model by now; answer when it is served."""
        request = await unread.message()
        _check_repository(request)
        if request.parameters:
            raise InputError("a model is loaded as its folder has it; the request's parameters would change that")
        await asyncio.to_thread(self._repository.load, request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Unload a model; requests in work end on it."""
        request = await unread.message()
        _check_repository(request)
        await asyncio.to_thread(self._repository.unload, request.model_name)
        return oip.RepositoryModelUnloadResponse()

    async def ModelInfer(self, unread: Unread, context: grpc.aio.ServicerContext) -> Any:
        """Answer with a model's outputs, or with a score map."""
        async with self._admission.call(context) as held:
            request = await unread.message(held)
            return answer_to_message(await self._inference.infer(request, context, held))

    async def ModelStreamInfer(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """Answer one request after another, each in one part or in several.

        A request that fails is told in error_message, and the stream goes on.
        """
        if self._streams >= self._most_streams:
            raise ServerBusy(f"the server has {self._streams} streams open, and takes no more", _STREAM_WAIT_S)
        self._streams += 1
        try:
            while (request := await self._next(context)) is not grpc.aio.EOF:
                try:
                    if request is None:
                        raise InputError("the bytes that came are no request of ModelStreamInfer")
                    async with self._admission.call(context, open_ended=True) as held:
                        await held.resize(COPIES * request.ByteSize())
                        inference = request_from_message(request)
                        async with aclosing(self._inference.stream(inference, context, held)) as parts:
                            async for part in parts:
                                await self._write(context, infer_response=answer_to_message(part))
                except ConvserveError as error:
                    failed = oip.ModelInferResponse(id="" if request is None else request.id[:LONGEST_ID])
                    await self._write(context, error_message=str(error)[:2000], infer_response=failed)
        finally:
            self._streams -= 1

    async def _next(self, context: grpc.aio.ServicerContext) -> Any:
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                if self._draining:
                    raise TimeoutError
                self._idle.add(timeout)
                return await context.read()
        except TimeoutError:
            raise ServerUnavailable("the server is about to stop") from None
        finally:
            self._idle.discard(timeout)

    async def _write(self, context: grpc.aio.ServicerContext, **fields: Any) -> None:
        try:
            async with asyncio.timeout(self._limits.stall_s):
                await context.write(oip.ModelStreamInferResponse(**fields))
        except TimeoutError:
            raise RunCancelled(f"no answer was read for {self._limits.stall_s:g} s") from None


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise InputError(f"the repository is {request.repository_name[:100]!r}; there is one, which has no name")


def _refusing(text: str) -> grpc.RpcMethodHandler:
    async def refuse(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
        return b""

    return grpc.unary_unary_rpc_method_handler(refuse, request_deserializer=bytes, response_serializer=bytes)


def add_open_inference(service: OpenInferenceService, server: grpc.aio.Server) -> None:
    """Serve the protocol's methods; those that it has and convserve has not say so."""
    handlers = {name: _refusing(text) for name, text in REFUSED.items()}
    for name, method in METHODS.items():
        make = grpc.stream_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
        handlers[name] = make(
            getattr(service, name),
            request_deserializer=request_from_bytes if name == "ModelInfer" else method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(OPEN_INFERENCE, handlers),))
