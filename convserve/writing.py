"""From a source to a map on disk through a network of this process."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from convserve.errors import MemoryBudgetError
from convserve.graph.ir import Graph
from convserve.progress import ProgressBar
from convserve.reduction import Reduction
from convserve.results import Geometry, PlanBytes, RunReport, SizedPlan
from convserve.scenes import MapWriter, RowSource, WrittenMap, checked_channels, scene_rows, shared_facts

__all__ = ["write_map"]

class RowsScored(Protocol):
    """What a stream over rows to come offers, such as model.row_stream."""

    classes: list[int]

    @property
    def plan(self) -> SizedPlan: ...
    @property
    def allocated_bytes(self) -> int: ...
    def geometry(self, height: int) -> Geometry: ...
    def feed(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]: ...
    def finish(self) -> Iterator[tuple[int, np.ndarray]]: ...
    def close(self) -> None: ...


class Scorer(Protocol):
    """What of a model is used."""

    graph: Graph

    @property
    def fingerprint(self) -> str: ...
    @property
    def describe(self) -> Callable[[], Any]: ...
    @property
    def row_stream(self) -> Callable[..., RowsScored]: ...


def write_map(
    model: Scorer,
    image: Any,
    output: str | os.PathLike[str],
    *,
    options: dict[str, Any],
    reduction: Reduction,
    resume: bool = False,
    budget: int | None = None,
    progress: bool = False,
) -> WrittenMap:
    """Score the rows of an image that a map on disk lacks, write them as they become final, and return the map.

    image: as open_scene takes it. options: of model.row_stream, that a run must share to go on with the map. budget:
    bytes for the run and for what the source holds.
    Raises what open_scene, MapWriter and row_stream raise.
    """
    start = time.perf_counter()
    plan: SizedPlan = PlanBytes()
    allocated = 0
    channels = model.graph.input_volume.channels
    with scene_rows(image) as source:
        checked_channels(source, channels)
        facts = {"network": model.fingerprint, **shared_facts(options, reduction)}
        with MapWriter(output, source, fingerprint=facts, reduction=reduction, resume=resume) as writer:
            if writer.needs_rows:
                held = _budget_beside(source, budget)
                stream = model.row_stream(
                    source.width, dtype=source.dtype.name, scores=reduction.scores, memory_budget=held, **options
                )
                try:
                    plan = stream.plan
                    writer.begin(stream.geometry(source.height), model.describe().to_dict())
                    with ProgressBar("rows of scores", total=writer.missing_rows, enabled=progress) as bar:
                        for first, arrays in _scored(source, writer.first_pixel, stream, channels, reduction):
                            bar.advance(writer.add(first, arrays))
                    allocated = stream.allocated_bytes
                finally:
                    stream.close()
            return writer.finish(RunReport(plan, allocated, time.perf_counter() - start))


def _scored(
    source: RowSource, first_pixel: int, stream: RowsScored, channels: int, reduction: Reduction
) -> Iterator[tuple[int, dict[str, Any]]]:
    for piece in source.pieces(channels, first_pixel):
        for first, scores in stream.feed(piece):
            yield first, reduction.apply(scores, stream.classes)
    for first, scores in stream.finish():
        yield first, reduction.apply(scores, stream.classes)


def _budget_beside(source: RowSource, budget: int | None) -> int | None:
    # what is left beside the pixels that a source holds
    if budget is None or source.held_bytes < budget:
        return None if budget is None else budget - source.held_bytes
    raise MemoryBudgetError(
        f"{source.name} is decoded as a whole and takes {source.held_bytes} bytes; the memory budget is {budget} bytes."
        " A TIFF, a Zarr array or a .npy file is read by rows"
    )
