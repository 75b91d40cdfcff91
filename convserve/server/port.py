"""A port that several processes listen on together, and nobody else: who holds it, and for how long."""

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from convserve.errors import InputError

__all__ = ["reserved_port"]

_WILDCARDS = ("0.0.0.0", "::")
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Hold host:port for the length of the block, and yield its number: that of a free one where port is 0.

    Meanwhile sockets of this user with SO_REUSEPORT may listen there, and the system shares connections among them;
    all others are refused. InputError where somebody has the port, or the host is no address here.
    """
    if sys.platform != "linux":
        raise InputError("several workers share a port as Linux lets them; on this system serve with --workers 1")
    with ExitStack() as held:
        for family, address in _addresses(host, port):
            try:
                one = held.enter_context(_bound(family, address, port))
            except OSError as error:
                if error.errno in _NOT_HERE and family == socket.AF_INET6:
                    continue
                raise _refused(host, port) from None
            port = one.getsockname()[1]
        if not port:
            raise _refused(host, port)
        yield port


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if host in _WILDCARDS and socket.has_dualstack_ipv6():
        # gRPC listens on both families for either
        return [(socket.AF_INET6, "::")]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise _refused(host, port) from None
    return [(family, str(address[0])) for family, _, _, _, address in found]


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    one = socket.socket(family)
    try:
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address not in _WILDCARDS))
        # alone at first, or two servers would take the same port; connections that have just ended do not matter
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        one.close()
        raise
    return one


def _refused(host: str, port: int) -> InputError:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return InputError(f"cannot listen on {where}; it is in use, not allowed, or no address here")
