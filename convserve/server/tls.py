"""A server's certificate, its key, and the authority of its clients, read again when their files change."""

import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from convserve.errors import InputError

__all__ = ["Certificates"]

Read = TypeVar("Read")

_log = logging.getLogger("convserve.server")


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: the server's certificate with its chain, its key, and roots of its clients' certificates.

    client_ca: only clients with a certificate of these roots may connect (mutual TLS); None: anybody may.
    """

    cert: str
    key: str
    client_ca: str | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Return gRPC's credentials. InputError where a file cannot be read, or key and certificate do not fit.

        Whoever connects after the files have changed sees the new ones; as long as those do not fit, the old ones stay.
        """
        first, changed = self._watched(self._read)
        return grpc.dynamic_ssl_server_credentials(
            first,
            changed,  # type: ignore[arg-type]  # None stands for no change
            require_client_authentication=self.client_ca is not None
        )

    def context(self) -> ssl.SSLContext:
        """Return the same for servers that are not gRPC's."""
        first, changed = self._watched(self._context)
        current = first

        def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            # called at the beginning of each handshake, whether or not the client names a server
            nonlocal current
            current = changed() or current
            connection.context = current

        first.sni_callback = choose  # type: ignore[assignment]
        return first

    def _watched(self, read: Callable[[], Read]) -> tuple[Read, Callable[[], Read | None]]:
        """Return what is read now, and a function that returns it again where the files have changed and fit."""
        stamps = self._stamps()

        def changed() -> Read | None:
            # gRPC calls it on a thread of its own, before each handshake
            nonlocal stamps
            now = self._stamps()
            if now == stamps:
                return None
            stamps = now
            try:
                found = read()
            except InputError as error:
                _log.error("%s; the certificate of before stays", error)
                return None
            _log.info("the certificate was read again")
            return found

        return read(), changed

    def _stamps(self) -> list[tuple[int, ...] | None]:
        found: list[tuple[int, ...] | None] = []
        for path in (self.cert, self.key, self.client_ca):
            try:
                status = None if path is None else os.stat(path)
            except OSError:
                status = None
            found.append(status and (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return found

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._context()
        roots = None if self.client_ca is None else Path(self.client_ca).read_bytes()
        pair = (Path(self.key).read_bytes(), Path(self.cert).read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # an encrypted key is refused rather than asked for at a terminal
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise InputError(
                f"the certificate {self.cert!r} with the key {self.key!r} cannot be used: {_reason(error)}"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            except (OSError, ValueError) as error:
                raise InputError(
                    f"the clients' authority {self.client_ca!r} cannot be used: {_reason(error)}"
                ) from None
        return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no PEM file").replace("_", " ").lower()
    return (isinstance(error, OSError) and error.strerror) or "no PEM file"
