"""The gRPC server: start(), serve() and what they are made of."""

from convserve.server.limits import Limits
from convserve.server.model_config import ModelConfig
from convserve.server.model_folder import ModelFolder
from convserve.server.repository import ModelState, Repository, Served
from convserve.server.serving import Server, serve

__all__ = ["Limits", "ModelConfig", "ModelFolder", "ModelState", "Repository", "Served", "Server", "serve"]
