"""Dense scoring: geometry and exactness, streams of rows, and maps of whole images."""

from convserve.dense.averages import mean_scores
from convserve.dense.classes import class_indices
from convserve.dense.crops import CropRows
from convserve.dense.fitting import Capacity, capacity
from convserve.dense.merged import MergedRows, MergedStream, open_rows, streamed
from convserve.dense.plans import plan_ways
from convserve.dense.scoring import open_stream, plan_map, score_map
from convserve.dense.sliding import Sliding, sliding
from convserve.dense.stream import RowStream, ScoreStream
from convserve.dense.ways import (
    EDGES,
    METHODS,
    MOST_PASSES,
    Way,
    WayPlan,
    choose_way,
    plan_way,
    predicted_seconds,
    sliding_ways,
)
from convserve.reduction import Reduction

__all__ = [
    "EDGES",
    "METHODS",
    "MOST_PASSES",
    "Capacity",
    "CropRows",
    "MergedRows",
    "MergedStream",
    "Reduction",
    "RowStream",
    "ScoreStream",
    "Sliding",
    "Way",
    "WayPlan",
    "capacity",
    "choose_way",
    "class_indices",
    "mean_scores",
    "open_rows",
    "open_stream",
    "plan_map",
    "plan_way",
    "plan_ways",
    "predicted_seconds",
    "score_map",
    "sliding",
    "sliding_ways",
    "streamed",
]
