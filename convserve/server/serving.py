"""One listening server: its address, its threads, its limits, and how it drains."""

import asyncio
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from convserve.errors import InputError
from convserve.server.interceptors import ErrorInterceptor
from convserve.server.repository import Repository
from convserve.server.service import ConvserveService
from convserve.wire.convserve_pb2_grpc import add_ConvserveServicer_to_server

__all__ = ["MESSAGE_BYTES", "Server", "serve"]

MESSAGE_BYTES = 64 << 20
"""Longest request by default, in bytes."""

WORKERS = 4
CALLS_AT_ONCE = 256


class Server:
    """A gRPC server over a repository, to be used inside one event loop."""

    def __init__(
        self,
        repository: Repository,
        *,
        host: str = "127.0.0.1",
        port: int = 8500,
        message_bytes: int = MESSAGE_BYTES,
        workers: int = WORKERS,
    ) -> None:
        """Prepare a server on host:port; port 0 takes a free one.

        message_bytes: longest request. workers: requests that compute at the same time.
        """
        if not 0 <= port <= 65535:
            raise InputError(f"port is {port}; allowed: 0 to 65535")
        self._host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        self._wanted_port = port
        self._message_bytes = message_bytes
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="convserve-run")
        self._service = ConvserveService(repository, self._pool)
        self._server: grpc.aio.Server | None = None
        self.address = ""
        """host:port that the server listens on, known after start()."""

    async def start(self) -> str:
        """Listen, and return the address as host:port; InputError where that is not possible."""
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            # without so_reuseport=0 two servers would share a port without a word
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._message_bytes),
                ("grpc.max_send_message_length", -1),
            ],
            maximum_concurrent_rpcs=CALLS_AT_ONCE,
        )
        add_ConvserveServicer_to_server(self._service, server)
        wanted = f"{self._host}:{self._wanted_port}"
        try:
            port = server.add_insecure_port(wanted)
        except RuntimeError as error:
            raise InputError(f"cannot listen on {wanted}; it is in use, not allowed, or no address here") from error
        await server.start()
        self._server = server
        self.address = f"{self._host}:{port}"
        return self.address

    async def drain(self, grace_s: float = 30.0) -> None:
        """Refuse new calls, let those in work end within grace_s seconds, cancel the rest, free the threads."""
        if self._server is not None:
            await self._server.stop(grace_s)
        self._pool.shutdown(wait=True, cancel_futures=True)


def serve(
    repository: Repository,
    *,
    host: str = "127.0.0.1",
    port: int = 8500,
    message_bytes: int = MESSAGE_BYTES,
    grace_s: float = 30.0,
    on_start: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. on_start is called with host:port once it listens."""
    asyncio.run(_serve(Server(repository, host=host, port=port, message_bytes=message_bytes), grace_s, on_start))


async def _serve(server: Server, grace_s: float, on_start: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    on_start(await server.start())
    await stop.wait()
    await server.drain(grace_s)
