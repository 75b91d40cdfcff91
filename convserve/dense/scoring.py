"""Score maps of whole images: the passes of the way that is chosen, merged, or the network on every crop."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from convserve.dense.crops import CropRows
from convserve.dense.merged import MergedStream, open_rows
from convserve.dense.sliding import sliding
from convserve.dense.stream import ScoreStream, block_bytes, counting_blocks
from convserve.dense.ways import Way, choose_way
from convserve.engine.engine import Engine
from convserve.engine.meter import Meter
from convserve.engine.source import ImageRows, empty_scores
from convserve.errors import InputError
from convserve.plan.layout import Layout
from convserve.plan.plan import Plan
from convserve.progress import ProgressBar
from convserve.reduction import Reduction
from convserve.results import Geometry, ScoreMap

__all__ = ["open_stream", "plan_map", "score_map"]


def open_stream(
    way: Way,
    image: ImageRows,
    *,
    classes: list[int] | None,
    labels: list[str],
    memory_budget: int | None = None,
    layout: Layout | None = None,
) -> ScoreStream | MergedStream:
    """Return the stream of a map over an image; classes None keeps all, labels are of those kept.

    Raises InputError for a layout of what is no single pass, ShapeError, MemoryBudgetError.
    """
    kept = list(range(way.slide.channels)) if classes is None else classes
    place = way.geometry(image.height, image.width, classes=kept, labels=labels)
    if way.merges or way.sharing:
        if layout is not None:
            raise InputError("a layout is for one pass; this map is made of several runs")
        options: dict[str, Any] = {"classes": classes, "labels": labels, "memory_budget": memory_budget}
        none = image.of(image.rows[:, :0])
        rows = CropRows(way, none, height=image.height, **options) if way.sharing else open_rows(way, none, **options)
        return MergedStream(rows, place, image)
    return _open_pass(way, image, place, classes, memory_budget=memory_budget, layout=layout)


def _open_pass(
    way: Way,
    view: ImageRows,
    place: Geometry,
    classes: list[int] | None,
    *,
    layout: Layout | None = None,
    meter: Meter | None = None,
    **options: Any,
) -> ScoreStream:
    # place: of the scores of this pass
    executor = way.engine.executor(view.height, view.width, sink_rows=[place.rows], layout=layout, **options)
    return ScoreStream(way.engine, executor, place, view, classes=classes, meter=meter)


def score_map(
    engine: Engine,
    image: ImageRows,
    *,
    stride: int | tuple[int, int] | None,
    classes: list[int] | None,
    labels: list[str],
    method: str,
    reduce: Reduction,
    edge: str = "none",
    memory_budget: int | None = None,
    progress: bool = False,
) -> ScoreMap:
    """Return the scores of the engine's only output at every window position of the image.

    method, edge: as ways.choose_way has them. reduce: what is kept, as rows leave; what is held of the scores is
    counted into the plan. progress: show a bar on stderr if it takes longer than a second.
    Raises InputError, ShapeError, UnsupportedOpError, MemoryBudgetError.
    """
    meter = Meter()
    way = choose_way(
        engine, method, stride, edge=edge, height=image.height, width=image.width, memory_budget=memory_budget
    )
    kept = list(range(way.slide.channels)) if classes is None else classes
    place = way.geometry(image.height, image.width, classes=kept, labels=labels)
    held = reduce.bytes_of(place.rows * place.cols, len(kept))
    options: dict[str, Any] = {"memory_budget": memory_budget, "score_bytes": held}
    # planned before the map is allocated: a budget may refuse them together
    streams: list[ScoreStream] | list[MergedStream]
    if way.sharing:
        none = image.of(image.rows[:, :0])
        rows = CropRows(way, none, classes=classes, labels=labels, height=image.height, meter=meter, **options)
        streams, places = [MergedStream(rows, place, image)], [(slice(None), slice(None))]
    else:
        options["meter"] = meter
        views = list(_passes(image, way, place))
        places = [where for _, _, where in views]

        def opened(score_bytes: int) -> list[ScoreStream]:
            options["score_bytes"] = score_bytes
            return [_open_pass(way, view, part, classes, **options) for view, part, _ in views]

        # a block is held whole before it is reduced
        streams = counting_blocks(opened, held, _largest)[0] if reduce.reduces else opened(held)
    arrays = {
        name: empty_scores(place.rows, place.cols, *shape, dtype=dtype)
        for name, dtype, shape in reduce.arrays(len(kept))
    }
    parts: list[tuple[ScoreStream | MergedStream, dict[str, np.ndarray]]] = [
        (stream, {name: array[where] for name, array in arrays.items()})
        for stream, where in zip([*streams], places, strict=True)
    ]
    with ProgressBar("rows of scores", total=sum(stream.geometry.rows for stream in streams), enabled=progress) as bar:
        for count in _score_passes(parts, reduce):
            bar.advance(count)
    score_bytes = options["score_bytes"]
    report = rows.report(score_bytes) if way.sharing else meter.report(score_bytes=score_bytes)
    return ScoreMap.over(place, arrays, report=report, reduction=reduce)


def _largest(streams: list[ScoreStream]) -> int:
    return max(stream.block_bytes for stream in streams)


def plan_map(
    engine: Engine,
    height: int,
    width: int,
    *,
    images: int = 1,
    classes: list[int] | None = None,
    hold: Reduction | None = None,
    memory_budget: int | None = None,
    layout: Layout | None = None,
) -> Plan:
    """Return the plan of the maps of so many images at the network's stride; hold: what of their scores is held.

    Raises ShapeError, UnsupportedOpError, MemoryBudgetError.
    """
    slide = sliding(engine.graph)
    rows, cols = slide.positions(height, width)
    kept = slide.channels if classes is None else len(classes)
    held = 0 if hold is None else hold.bytes_of(rows * cols, kept) * images
    options: dict[str, Any] = {"images": images, "sink_rows": [rows], "memory_budget": memory_budget, "layout": layout}

    def planned(score_bytes: int) -> Plan:
        plan: Plan = engine.executor(height, width, score_bytes=score_bytes, **options).plan
        return plan

    if hold is None or not hold.reduces:
        return planned(held)
    return counting_blocks(planned, held, lambda plan: block_bytes(plan, rows, cols, kept) * images)[0]


def _passes(
    image: ImageRows, way: Way, place: Geometry
) -> Iterator[tuple[ImageRows, Geometry, tuple[slice, slice]]]:
    # (part of the image, geometry of its scores, where they lie in the map) of each pass
    down, across = way.starts(0, image.height), way.starts(1, image.width)
    for (top, rows), (left, cols) in product(down, across):
        part = replace(place, rows=len(range(*rows.indices(place.rows))), cols=len(range(*cols.indices(place.cols))))
        view = image.rows[:, top:, left:][:, : way.extent(0, part.rows), : way.extent(1, part.cols)]
        yield image.of(view), part, (rows, cols)


def _score_passes(
    streams: list[tuple[ScoreStream | MergedStream, dict[str, np.ndarray]]], reduce: Reduction
) -> Iterator[int]:
    # yields the rows that each block brought
    for stream, parts in streams:
        direct = None if reduce.reduces else parts["scores"]
        for first, block in stream.blocks(direct):
            if direct is None:
                for name, array in reduce.apply(block, stream.geometry.classes).items():
                    parts[name][first : first + len(block)] = array
            yield len(block)
