"""The gRPC server: serve(), Server and what they are made of, each loaded when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convserve.server.access import Access
    from convserve.server.limits import Limits
    from convserve.server.model_config import ModelConfig
    from convserve.server.model_folder import ModelFolder
    from convserve.server.repository import ModelState, Repository, Served, warm_up
    from convserve.server.serving import Server, serve
    from convserve.server.tls import Certificates

__all__ = [
    "Access",
    "Certificates",
    "Limits",
    "ModelConfig",
    "ModelFolder",
    "ModelState",
    "Repository",
    "Served",
    "Server",
    "serve",
    "warm_up",
]

# the command line reads the table of options, and needs neither the engine nor gRPC for it
_HOMES = {"Limits": "limits", "ModelConfig": "model_config", "ModelFolder": "model_folder"}
_HOMES |= dict.fromkeys(("ModelState", "Repository", "Served", "warm_up"), "repository")
_HOMES |= {"Access": "access", "Certificates": "tls"}
_HOMES |= dict.fromkeys(("Server", "serve"), "serving")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convserve.server' has no attribute {name!r}")
    return getattr(import_module(f"convserve.server.{_HOMES[name]}"), name)
