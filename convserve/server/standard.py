"""The services that every gRPC server should have: health, so that others know when to call, and reflection."""

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from convserve.wire import convserve_pb2 as pb

__all__ = ["CONVSERVE", "add_health", "add_reflection"]

CONVSERVE = pb.DESCRIPTOR.services_by_name["Convserve"].full_name
"""The service's full name."""


async def add_health(server: grpc.aio.Server, models: list[str]) -> aio.HealthServicer:
    """Serve grpc.health.v1 for the server (""), the service and each model, all of them SERVING."""
    health = aio.HealthServicer()
    for name in ("", CONVSERVE, *models):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(health, server)
    return health


def add_reflection(server: grpc.aio.Server) -> None:
    """Serve what the server's services and messages are."""
    reflection.enable_server_reflection((CONVSERVE, HEALTH, reflection.SERVICE_NAME), server)
