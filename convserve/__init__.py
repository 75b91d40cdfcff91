"""convserve: ConvNet inference and dense score maps on CPUs, in the memory you set. The public names."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convserve.client import AsyncClient, Client
    from convserve.errors import (
        AuthenticationError,
        ConvserveError,
        ImageError,
        InputError,
        MemoryBudgetError,
        ModelError,
        ModelFormatError,
        ModelNotFoundError,
        OutputError,
        PatternError,
        PermissionDeniedError,
        RemoteError,
        RunCancelled,
        ServerBusy,
        ServerUnavailable,
        SettingError,
        ShapeError,
        UnsupportedOpError,
    )
    from convserve.images import Preprocess
    from convserve.loading import build, load
    from convserve.model import Model
    from convserve.reduction import Reduction
    from convserve.results import Geometry, Prediction, Predictions, RunReport, ScoreMap
    from convserve.scenes import RowSource, WrittenMap, open_scene

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ConvserveError",
    "Geometry",
    "ImageError",
    "InputError",
    "MemoryBudgetError",
    "Model",
    "ModelError",
    "ModelFormatError",
    "ModelNotFoundError",
    "OutputError",
    "PatternError",
    "PermissionDeniedError",
    "Prediction",
    "Predictions",
    "Preprocess",
    "Reduction",
    "RemoteError",
    "RowSource",
    "RunCancelled",
    "RunReport",
    "ScoreMap",
    "ServerBusy",
    "ServerUnavailable",
    "SettingError",
    "ShapeError",
    "UnsupportedOpError",
    "WrittenMap",
    "__version__",
    "build",
    "load",
    "open_scene",
]

__version__ = "0.1.0"

# Loaded at first use, so that the client needs neither the engine nor its compiled kernels.
_HOMES = {
    "AsyncClient": "convserve.client",
    "Client": "convserve.client",
    "Geometry": "convserve.results",
    "Model": "convserve.model",
    "Prediction": "convserve.results",
    "Predictions": "convserve.results",
    "Preprocess": "convserve.images",
    "Reduction": "convserve.reduction",
    "RowSource": "convserve.scenes",
    "RunReport": "convserve.results",
    "ScoreMap": "convserve.results",
    "WrittenMap": "convserve.scenes",
    "build": "convserve.loading",
    "load": "convserve.loading",
    "open_scene": "convserve.scenes",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'convserve' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "convserve.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
