"""The client over TLS: roots from a file or from bytes, and a server that it does not trust."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from foreign import CLASSIFIED

from convserve import errors
from convserve.client import AsyncClient, Client
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer, add_ConvserveServicer_to_server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes certificates, is absent")

NOTHING = np.zeros((2, 2, 1), np.uint8)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate of its own authority for localhost; return (key, certificate)."""
    key, found = folder / f"{name}.key", folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(found)]
    subprocess.run(command, check=True, capture_output=True)
    return key, found


class Servicer(ConvserveServicer):
    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}

    def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self.metadata.update(context.invocation_metadata())
        return CLASSIFIED


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path, Servicer]]:
    """(address, the server's certificate, a foreign one, what the server saw)."""
    folder = tmp_path_factory.mktemp("tls")
    key, own = certificate(folder, "own")
    _, other = certificate(folder, "other")
    server, servicer = grpc.server(futures.ThreadPoolExecutor(2)), Servicer()
    add_ConvserveServicer_to_server(servicer, server)
    pair = (key.read_bytes(), own.read_bytes())
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield f"localhost:{port}", own, other, servicer
    server.stop(0).wait()


def test_roots_from_a_file_and_from_bytes(secured: tuple[str, Path, Path, Servicer]) -> None:
    address, own, _, servicer = secured

    async def ask() -> Any:
        async with AsyncClient(address, tls=own) as client:
            return await client.classify(NOTHING)

    for roots in (own, str(own), own.read_bytes()):
        with Client(address, tls=roots, token="abc") as client:
            assert client.classify(NOTHING) == []
    assert servicer.metadata["authorization"] == "Bearer abc"
    assert asyncio.run(ask()) == []


@pytest.mark.parametrize("tls", ["other", "system", "none"])
def test_a_server_that_is_not_trusted_hears_nothing(secured: tuple[str, Path, Path, Servicer], tls: str) -> None:
    address, _, other, servicer = secured
    servicer.metadata.clear()
    roots = {"other": other, "system": True, "none": None}[tls]
    with (
        Client(address, tls=roots, token="abc", retries=0, timeout=5) as client,  # type: ignore[arg-type]
        pytest.raises(errors.ServerUnavailable),
    ):
        client.classify(NOTHING)
    assert not servicer.metadata
