"""Score maps of whole images: shifted passes merged to a finer stride, or the network on every crop."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from convserve.dense.sliding import Sliding, checked_stride, cropping, geometry, sliding
from convserve.dense.stream import ScoreStream
from convserve.engine.engine import Engine
from convserve.engine.meter import Meter
from convserve.engine.source import ImageRows, empty_scores
from convserve.errors import InputError
from convserve.plan.layout import Layout
from convserve.progress import ProgressBar
from convserve.reduction import Reduction
from convserve.results import Geometry, ScoreMap

__all__ = ["METHODS", "open_stream", "score_map"]

METHODS = ("auto", "dense", "crops")


def open_stream(
    engine: Engine,
    slide: Sliding,
    image: ImageRows,
    *,
    classes: list[int] | None,
    labels: list[str],
    memory_budget: int | None = None,
    score_bytes: int = 0,
    layout: Layout | None = None,
    meter: Meter | None = None,
) -> ScoreStream:
    """Return the stream of one dense pass at the output stride; classes None keeps all, labels are of those kept.

    score_bytes: what the caller holds of the map, counted into the plan. meter: looks at the run.
    Raises ShapeError, MemoryBudgetError.
    """
    kept = list(range(slide.channels)) if classes is None else classes
    place = geometry(engine.graph, slide, image.height, image.width, classes=kept, labels=labels)
    executor = engine.executor(
        image.height,
        image.width,
        sink_rows=[place.rows],
        memory_budget=memory_budget,
        score_bytes=score_bytes,
        layout=layout,
    )
    return ScoreStream(engine, executor, place, image, classes=classes, meter=meter)


def score_map(
    engine: Engine,
    image: ImageRows,
    *,
    stride: int | tuple[int, int] | None,
    classes: list[int] | None,
    labels: list[str],
    method: str,
    reduce: Reduction,
    memory_budget: int | None = None,
    progress: bool = False,
) -> ScoreMap:
    """Return the scores of the engine's only output at every window position of the image.

    method: "auto" and "dense" slide the network, a finer stride by shifted passes; "crops" runs every crop.
    reduce: what is kept, as rows leave; what is held of the scores is counted into the plan.
    progress: show a bar on stderr if it takes longer than a second.
    Raises InputError, ShapeError, UnsupportedOpError, MemoryBudgetError.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    meter = Meter()
    crops = method == "crops"
    slide = cropping(engine.graph) if crops else sliding(engine.graph)
    steps = checked_stride(stride, slide, free=crops)
    kept = list(range(slide.channels)) if classes is None else classes
    place = geometry(engine.graph, slide, image.height, image.width, classes=kept, labels=labels, stride=steps)
    held = reduce.bytes_of(place.rows * place.cols, len(kept))
    options: dict[str, Any] = {"memory_budget": memory_budget, "score_bytes": held}
    # planned before the map is allocated: a budget may refuse them together
    if crops:
        options["score_bytes"] += 4 * place.cols * len(kept) if reduce.reduces else 0
        engine.executor(*slide.window, **options)
    else:
        options["meter"] = meter
        views = list(_passes(image, slide, steps, place))
        while True:
            streams = [
                (open_stream(engine, slide, view, classes=classes, labels=labels, **options), where)
                for view, where in views
            ]
            # a block is held whole before it is reduced; a tighter budget makes it smaller, never larger
            block = max(stream.block_bytes for stream, _ in streams) if reduce.reduces else 0
            if held + block <= options["score_bytes"]:
                break
            options["score_bytes"] = held + block
    arrays = {
        name: empty_scores(place.rows, place.cols, *shape, dtype=dtype)
        for name, dtype, shape in reduce.arrays(len(kept))
    }
    if crops:
        total, work = place.rows, _score_crops(engine, image, place, arrays, reduce, meter=meter, **options)
    else:
        total = sum(stream.geometry.rows for stream, _ in streams)
        parts = [(stream, {name: array[where] for name, array in arrays.items()}) for stream, where in streams]
        work = _score_passes(parts, slide, steps, reduce)
    with ProgressBar("rows of scores", total=total, enabled=progress) as bar:
        for rows in work:
            bar.advance(rows)
    report = meter.report(score_bytes=options["score_bytes"])
    return ScoreMap.over(place, arrays, report=report, reduction=reduce)


def _passes(
    image: ImageRows, slide: Sliding, steps: tuple[int, int], place: Geometry
) -> Iterator[tuple[ImageRows, tuple[slice, slice]]]:
    # (part of the image, where its scores lie in the map) of each shifted pass
    finer = [max(own // step, 1) for own, step in zip(slide.stride, steps, strict=True)]
    for down in range(finer[0]):
        for across in range(finer[1]):
            if down >= place.rows or across >= place.cols:
                continue
            view = image.rows[:, down * steps[0] :, across * steps[1] :]
            if not slide.padded_by:
                # pixels behind the last whole window change nothing; without them most passes share one plan
                rows, cols = slide.positions(*view.shape[1:3])
                height = (rows - 1) * slide.stride[0] + slide.window[0]
                width = (cols - 1) * slide.stride[1] + slide.window[1]
                view = view[:, :height, :width]
            yield image.of(view), (slice(down, None, finer[0]), slice(across, None, finer[1]))


def _score_passes(
    streams: list[tuple[ScoreStream, dict[str, np.ndarray]]], slide: Sliding, steps: tuple[int, int], reduce: Reduction
) -> Iterator[int]:
    # yields the rows that each block brought; a coarser stride keeps every so many of them
    down, across = (max(step // own, 1) for own, step in zip(slide.stride, steps, strict=True))
    for stream, parts in streams:
        direct = parts["scores"] if not reduce.reduces and down == across == 1 else None
        for first, block in stream.blocks(direct):
            if direct is None:
                begin = -(-first // down)
                kept = block[begin * down - first :: down, ::across]
                for name, array in reduce.apply(kept, stream.geometry.classes).items():
                    parts[name][begin : begin + len(kept)] = array
            yield len(block)


def _score_crops(
    engine: Engine,
    image: ImageRows,
    place: Geometry,
    arrays: dict[str, np.ndarray],
    reduce: Reduction,
    **options: Any,
) -> Iterator[int]:
    # the windows are views of the image: no crop is copied
    windows = np.lib.stride_tricks.sliding_window_view(image.rows[0], place.window, axis=(0, 1))
    windows = windows[:: place.stride[0], :: place.stride[1]].transpose(0, 1, 3, 4, 2)
    name = engine.graph.outputs[0].name
    for row in range(place.rows):
        values = engine.run(image.of(windows[row]), **options)[name]
        scores = values.reshape(1, place.cols, -1)[:, :, place.classes]
        for part, array in reduce.apply(scores, place.classes).items():
            arrays[part][row] = array[0]
        yield 1
