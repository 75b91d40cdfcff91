"""The client of a convserve server; imports neither the engine nor any model format."""

from convserve.client.client import Client
from convserve.results import Geometry, PlanBytes, Prediction, ScoreMap

__all__ = ["Client", "Geometry", "PlanBytes", "Prediction", "ScoreMap"]
