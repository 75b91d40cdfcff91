"""The gRPC server: start(), serve() and what they are made of."""

from convserve.server.repository import Repository
from convserve.server.serving import MESSAGE_BYTES, Server, serve

__all__ = ["MESSAGE_BYTES", "Repository", "Server", "serve"]
