"""The clients of a convserve server; they import neither the engine nor any model format."""

from convserve.client.client import AsyncClient, Client
from convserve.client.streams import AsyncScoreStream, ScoreStream
from convserve.results import Geometry, PlanBytes, Prediction, ScoreMap

__all__ = [
    "AsyncClient",
    "AsyncScoreStream",
    "Client",
    "Geometry",
    "PlanBytes",
    "Prediction",
    "ScoreMap",
    "ScoreStream",
]
