"""Dense scoring: geometry and exactness, streams of rows, and maps of whole images."""

from convserve.dense.scoring import open_stream, score_map
from convserve.dense.sliding import Sliding, sliding
from convserve.dense.stream import RowStream, ScoreStream

__all__ = ["RowStream", "ScoreStream", "Sliding", "open_stream", "score_map", "sliding"]
