"""Class scores of an image as the mean over positions and passes, each pass in a plan of its own."""

from collections.abc import Iterable

import numpy as np

from convserve.dense.stream import ScoreStream, counting_blocks
from convserve.dense.ways import choose_way
from convserve.engine.engine import Cancellation, Engine
from convserve.engine.meter import Meter
from convserve.engine.source import ImageRows
from convserve.errors import ShapeError, UnsupportedOpError
from convserve.graph.ending import final_softmax
from convserve.graph.ir import Node
from convserve.results import Geometry

__all__ = ["mean_scores"]


def mean_scores(
    engine: Engine,
    images: Iterable[list[ImageRows]],
    *,
    ending: Node | None,
    meter: Meter,
    cancellation: Cancellation,
    memory_budget: int | None = None,
) -> tuple[list[np.ndarray], int]:
    """Return each image's mean scores, float32 (classes,), of the engine's only output, and the bytes held at most.

    images: the forms of each, at least as large as the window; the mean is one over the positions of a form, summed
    row by row from left to right in float64, then over the forms. Each has its own plan, within the budget.
    ending: the softmax that an engine of logits left out, done to the mean.
    Raises ShapeError for a form smaller than the window, UnsupportedOpError for a larger one where the network
    cannot slide, MemoryBudgetError, RunCancelled.
    """
    left_out = ending is not None and final_softmax(engine.graph) is None
    found, most = [], 0
    for forms in images:
        means = []
        for form in forms:
            mean, held = _mean(engine, form, meter, cancellation, memory_budget)
            means.append(mean)
            most = max(most, held)
        scores = np.mean(means, axis=0)
        if ending is not None and left_out:
            shifted = scores - scores.max()
            logarithms = shifted - np.log(np.exp(shifted).sum())
            scores = logarithms if ending.op == "LogSoftmax" else np.exp(logarithms)
        found.append(scores.astype(np.float32))
    return found, most


def _mean(
    engine: Engine, form: ImageRows, meter: Meter, cancellation: Cancellation, memory_budget: int | None
) -> tuple[np.ndarray, int]:
    # (the mean over positions, float64; bytes of scores held)
    window = engine.graph.input_volume
    if (form.height, form.width) == (window.height, window.width):
        found = engine.run(form, meter=meter, cancellation=cancellation, memory_budget=memory_budget)
        return next(iter(found.values())).reshape(-1).astype(np.float64), 0
    place = _geometry(engine, form)

    def opened(score_bytes: int) -> ScoreStream:
        executor = engine.executor(
            form.height, form.width, sink_rows=[place.rows], memory_budget=memory_budget, score_bytes=score_bytes
        )
        return ScoreStream(engine, executor, place, form, classes=None, meter=meter)

    stream, held = counting_blocks(opened, 0, lambda stream: stream.block_bytes)
    total = np.zeros(len(place.classes))
    cancellation.watch(stream.close)
    try:
        for _, block in stream:
            for row in block:
                total += row.sum(axis=0, dtype=np.float64)
    finally:
        cancellation.watch(None)
    return total / (stream.geometry.rows * stream.geometry.cols), held


def _geometry(engine: Engine, form: ImageRows) -> Geometry:
    size = f"{form.height}x{form.width}"
    try:
        way = choose_way(engine, "dense", None, height=form.height, width=form.width)
    except UnsupportedOpError as error:
        reason = str(error).split(";")[0]
        raise UnsupportedOpError(f"the image is {size} at its scale, and {reason}: classify without scales") from None
    height, width = way.slide.window
    if form.height < height or form.width < width:
        raise ShapeError(
            f"the image is {size} at its scale; the network's window is {height}x{width}: give larger scales"
        )
    return way.geometry(form.height, form.width, classes=list(range(way.slide.channels)), labels=None)
