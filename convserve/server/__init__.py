"""The gRPC server: start(), serve() and what they are made of."""

from convserve.server.limits import Limits
from convserve.server.repository import Repository
from convserve.server.serving import Server, serve

__all__ = ["Limits", "Repository", "Server", "serve"]
