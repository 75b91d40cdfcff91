"""The HTTP port: one socket, uvicorn in the server's own event loop, patience with slow clients, and draining."""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from convserve.errors import InputError
from convserve.server.tls import Certificates

__all__ = ["HttpListener"]

MOST_CONNECTIONS = 1000
"""Connections beyond which requests are answered with 503."""

PATIENCE_S = 20.0
"""Seconds that a connection may be without a whole request line and headers, or take to be closed."""

_LARGEST_HEADERS_BYTES = 16 << 10
_READ_BYTES = 64 << 10


class _PatientProtocol(H11Protocol):
    """Closes connections on which no request begins: idle ones, and those whose headers never end."""

    _looking: asyncio.TimerHandle | None = None
    _seen: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # what comes before there is room for it: asyncio reads 256 KiB at a time
        transport.max_size = _READ_BYTES
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._looking is not None:
            self._looking.cancel()

    def _look_later(self) -> None:
        self._looking = self.loop.call_later(PATIENCE_S, self._look)

    def _look(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing():
            # what a client does not read would keep it for ever
            self.transport.abort()
            return
        if is_idle and self.cycle is self._seen:
            self.transport.close()
        self._seen = self.cycle
        self._look_later()


class HttpListener:
    """Serves an ASGI application on a port, inside one event loop."""

    def __init__(
        self,
        application: Any,
        *,
        host: str,
        port: int,
        certificates: Certificates | None = None,
        shares_port: bool = False,
    ) -> None:
        """Prepare; port 0 takes a free one. host, shares_port: as Server takes them."""
        self._application, self._host, self._port = application, host.strip("[]"), port
        self._certificates, self._shares_port = certificates, shares_port
        self._server: uvicorn.Server | None = None
        self._socket: socket.socket | None = None

    async def start(self) -> str:
        """Listen, and return the address as host:port; InputError where that is not possible."""
        wanted = f"[{self._host}]" if ":" in self._host else self._host
        try:
            family, *_, place = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            # by its protocol asyncio knows that answers shall not wait for acknowledgements (TCP_NODELAY)
            self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._shares_port:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self._host != "::"))
            self._socket.bind(place)
        except OSError as error:
            self._close()
            raise InputError(
                f"cannot listen on {wanted}:{self._port} for HTTP; it is in use, not allowed, or no address here"
            ) from error
        address = f"{wanted}:{self._socket.getsockname()[1]}"
        await self._serve(self._socket)
        return address

    async def _serve(self, listening: socket.socket) -> None:
        config = uvicorn.Config(
            self._application,
            http=_PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            # exceptions are told and logged before they come there
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            h11_max_incomplete_event_size=_LARGEST_HEADERS_BYTES,
        )
        config.load()
        config.ssl = None if self._certificates is None else self._certificates.context()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listening])
        self._server = server

    async def drain(self, grace_s: float) -> None:
        """Take no more connections, let calls in work end within grace_s seconds, cancel the rest."""
        if self._server is not None:
            self._server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]
            await self._server.shutdown(sockets=[self._socket] if self._socket else None)
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
