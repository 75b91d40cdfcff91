"""Tells a service manager that the server is ready, as systemd's sd_notify(3) has it: one datagram, no library."""

import logging
import os
import socket
from collections.abc import Mapping

__all__ = ["notify_ready"]

_log = logging.getLogger("convserve.server")


def notify_ready(environ: Mapping[str, str] = os.environ) -> None:
    """Send READY=1 to the socket that NOTIFY_SOCKET names: a path, or @name for an abstract one; else do nothing.

    A socket that cannot be reached is told in the log, and nothing else comes of it.
    """
    name = environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
            one.connect("\0" + name[1:] if name.startswith("@") else name)
            one.sendall(b"READY=1\n")
    except OSError as error:
        _log.warning("the service manager could not be told that the server is ready: %s", error)
