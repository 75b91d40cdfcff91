"""Dense scoring: geometry and exactness, streams of rows, and maps of whole images."""

from convserve.dense.classes import class_indices
from convserve.dense.fitting import Capacity, capacity
from convserve.dense.scoring import open_stream, score_map
from convserve.dense.sliding import Sliding, sliding
from convserve.dense.stream import RowStream, ScoreStream
from convserve.reduction import Reduction

__all__ = [
    "Capacity",
    "Reduction",
    "RowStream",
    "ScoreStream",
    "Sliding",
    "capacity",
    "class_indices",
    "open_stream",
    "score_map",
    "sliding",
]
