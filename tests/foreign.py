"""A server that answers as a test wants, with nothing of convserve's server in between."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from convserve.results import Geometry, PlanBytes
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer, add_ConvserveServicer_to_server

__all__ = ["CLASSIFIED", "GEOMETRY", "PLACE", "Silent", "foreign_server"]

PLACE = Geometry(rows=3, cols=4, stride=(4, 4), window=(28, 28), classes=[0, 1])
GEOMETRY = pb.ScoreMapResponse(geometry=codec.geometry_to_message(PLACE, PlanBytes(), model="m"))
CLASSIFIED = pb.ClassifyResponse(classifications=[pb.Classification()])


@contextmanager
def foreign_server(servicer: ConvserveServicer, *, port: int = 0) -> Iterator[str]:
    """Serve on loopback and yield the address; port 0 is a free one."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_ConvserveServicer_to_server(servicer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(0).wait()


class Silent(ConvserveServicer):
    """Answers nothing, or one geometry and then nothing, until the call ends."""

    def __init__(self, *, begun: bool = False) -> None:
        self.begun, self.ended = begun, threading.Event()

    def _wait(self, context: grpc.ServicerContext) -> None:
        ended = self.ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(10)

    def Classify(self, request: Any, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self._wait(context)
        return CLASSIFIED

    def ScoreMap(self, requests: Any, context: grpc.ServicerContext) -> Iterator[pb.ScoreMapResponse]:
        if self.begun:
            yield GEOMETRY
        self._wait(context)
