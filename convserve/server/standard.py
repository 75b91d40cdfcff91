"""The services that every gRPC server should have: health, so that others know when to call, and reflection."""

import asyncio
from collections.abc import Sequence

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection, reflection_pb2

from convserve.server.repository import Repository
from convserve.wire import convserve_pb2 as pb
from convserve.wire.open_inference import FILE, OPEN_INFERENCE

__all__ = ["CONVSERVE", "Health", "add_reflection"]

_STATUS = health_pb2.HealthCheckResponse

CONVSERVE = pb.DESCRIPTOR.services_by_name["Convserve"].full_name
"""The service's full name."""


class Health:
    """grpc.health.v1 for the server (""), its services, and each model of a repository by name."""

    def __init__(self, server: grpc.aio.Server, repository: Repository, services: Sequence[str]) -> None:
        self._servicer = aio.HealthServicer()
        self._repository = repository
        self._services = ("", *services)
        self._told: dict[str, bool] = {}
        self._telling = asyncio.Lock()
        add_HealthServicer_to_server(self._servicer, server)

    async def tell(self) -> None:
        """Say how it stands: the server and its services serve once every model was tried, a model while it is ready.

        Nothing is said again once drain() was called.
        """
        async with self._telling:
            ready = set(self._repository.names)
            states = dict.fromkeys(self._services, self._repository.complete)
            states |= {name: name in ready for name in {*self._repository.known, *self._told} if name not in states}
            for name, serves in states.items():
                if self._told.get(name) != serves:
                    self._told[name] = serves
                    await self._servicer.set(name, _STATUS.SERVING if serves else _STATUS.NOT_SERVING)

    async def drain(self) -> None:
        """Say NOT_SERVING of everything, for good."""
        await self._servicer.enter_graceful_shutdown()


def add_reflection(server: grpc.aio.Server) -> None:
    """Serve what the server's services and messages are."""
    pool = DescriptorPool()
    for module in (pb, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.Add(FILE)
    names = (CONVSERVE, OPEN_INFERENCE, HEALTH, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=pool)
