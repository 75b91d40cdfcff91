"""Model: what a user holds. Run a network, classify images, make score maps, ask for plans."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from convserve import dense, settings
from convserve.averaging import Averaging
from convserve.dense import CropRows, MergedRows, MergedStream, RowStream, ScoreStream
from convserve.engine.engine import Cancellation, Engine
from convserve.engine.meter import Meter
from convserve.engine.source import ImageRows, tensor_rows
from convserve.errors import InputError, ShapeError
from convserve.formats.packing import is_winograd
from convserve.graph.ending import before_softmax, final_softmax, with_softmax
from convserve.graph.fingerprint import fingerprint
from convserve.graph.ir import Graph, Output
from convserve.graph.ops import infer_volumes
from convserve.images.decode import ImageSource
from convserve.images.preprocess import Preprocess
from convserve.inputs import Inputs
from convserve.plan.describe import Description
from convserve.plan.describe import describe as describe_graph
from convserve.plan.layout import Layout
from convserve.plan.plan import Plan
from convserve.plan.weights import WeightTable, weigh
from convserve.reduction import Reduction, checked_reduction
from convserve.results import Prediction, Predictions, RunReport, ScoreMap, Storage
from convserve.scenes import RowSource, is_output
from convserve.settings import parse_budget
from convserve.writing import write_map

__all__ = ["Cancellation", "Model"]


class Model:
    """A loaded network; may be used by any number of threads at once."""

    def __init__(
        self,
        graph: Graph,
        *,
        name: str,
        preprocess: Preprocess | None = None,
        labels: list[str] | None = None,
        threads: int | None = None,
        memory_budget: int | None = None,
        storage: Storage | None = None,
        evict_weights: bool = False,
    ) -> None:
        self.graph = graph
        self.name = name
        self.storage = storage
        """Where the weights lie; None where whoever made the graph knows."""
        self.labels = labels
        self.preprocess = preprocess
        self._options: dict[str, Any] = {"threads": threads, "memory_budget": memory_budget}
        self._options |= {"mapping": storage and storage.mapping, "evict_weights": evict_weights}
        self._engines: dict[tuple[str, tuple[str, ...]], Engine] = {}
        self._inputs = Inputs(graph.input_volume, preprocess)
        channels = graph.input_volume.channels
        if preprocess is not None and preprocess.channel_count != channels:
            gives = f'preprocess gives {preprocess.channel_count} channel(s) ("{preprocess.channels}")'
            raise InputError(f"{gives}; the network reads {channels}")
        if labels is not None and self.window is not None and len(labels) != self.classes:
            raise InputError(f"there are {len(labels)} labels, but the network has {self.classes} classes")

    @property
    def window(self) -> tuple[int, int] | None:
        """(height, width) that the network was made for; None where its file leaves them open."""
        height, width = self.graph.input_volume.height, self.graph.input_volume.width
        return None if height is None or width is None else (height, width)

    @property
    def memory_budget(self) -> int | None:
        """Bytes that each run may take; None where only CONVSERVE_MEMORY_BUDGET says."""
        budget: int | None = self._options["memory_budget"]
        return budget

    @property
    def algorithm(self) -> str:
        """ "gemm" where every sum has the same bits wherever its window lies, "winograd" where some layers run so."""
        return "winograd" if any(is_winograd(node) for node in self.graph.nodes) else "gemm"

    @property
    def classes(self) -> int:
        """Values of the first output for one image of the window's size."""
        return infer_volumes(self.graph)[self.graph.outputs[0].tensor].values

    @cached_property
    def fingerprint(self) -> str:
        """Digits that are the same for the same operations, weights and preprocessing, here and on a server."""
        return fingerprint(self.graph, None if self.preprocess is None else self.preprocess.to_dict())

    def engine(self, *outputs: str, scores: str = "raw") -> Engine:
        """Return what computes these outputs alone, default all; scores "softmax" and "logits" are of one output."""
        key = scores, outputs or tuple(output.name for output in self.graph.outputs)
        if key not in self._engines:
            endings = {"raw": lambda graph: graph, "softmax": with_softmax, "logits": before_softmax}
            graph = endings[scores](self.graph.showing([self._output(name) for name in key[1]]))
            self._engines[key] = Engine(graph, **self._options)
        return self._engines[key]

    def _output(self, name: str) -> Output:
        for output in self.graph.outputs:
            if output.name == name:
                return output
        known = ", ".join(output.name for output in self.graph.outputs)
        raise InputError(f"the network has no output {name!r}; it has {known}")

    # ---- tensors in, tensors out

    def run(
        self, x: np.ndarray, outputs: str | Sequence[str] | None = None, *, memory_budget: int | str | None = None
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Return the network's output for x, float32 (N, C, H, W), N free, in the shape that the network declares.

        A network that reads single pixels takes (N, C) too. outputs: a name or names instead of all; of one an array
        comes, of several a dict by name. Raises ShapeError, InputError, MemoryBudgetError.
        """
        return self.measure(x, outputs, memory_budget=memory_budget)[0]

    def measure(
        self,
        x: np.ndarray | list[ImageRows],
        outputs: str | Sequence[str] | None = None,
        *,
        cancellation: Cancellation | None = None,
        memory_budget: int | str | None = None,
    ) -> tuple[np.ndarray | dict[str, np.ndarray], RunReport]:
        """Return what run gives, and the report of it: what the run was planned to take, and what was measured.

        x may also be a list of what prepare gives. Another thread may end the run by cancellation: RunCancelled.
        """
        meter = Meter()
        engine = self.engine(*([outputs] if isinstance(outputs, str) else outputs or ()))
        budget = parse_budget(memory_budget)
        rows = self._inputs.batch(x) if isinstance(x, list) else tensor_rows(x, self.graph.input_volume)
        if rows is None:
            raise ShapeError("there are 0 images; a run has at least 1")
        found = engine.run(rows, cancellation=cancellation, meter=meter, memory_budget=budget)
        results = {output.name: output.shaped(found[output.name]) for output in engine.graph.outputs}
        return (results if len(results) > 1 else next(iter(results.values()))), meter.report()

    # ---- images in, predictions out

    def classify(
        self,
        images: ImageSource | ImageRows | Sequence[ImageSource | ImageRows],
        *,
        top: int = 5,
        scales: Sequence[int] | None = None,
        flip: bool = False,
        average: str | None = None,
        cancellation: Cancellation | None = None,
        memory_budget: int | str | None = None,
    ) -> Predictions | list[Predictions]:
        """Return the `top` classes of an image, best first; of a list of images, a list for each.

        Each is a list with a report: what the call was planned to take, and what was measured.

        An image is a path, encoded bytes, a PIL image or a uint8 array (H, W, C), resized and cropped as preprocess
        says to the window's size, or float32 (1, C, H, W), taken as already preprocessed. scales, flip: resize it so
        that its short side has each of these lengths instead, and count its mirror image too; a score is then the mean
        over all positions and passes, of average "probabilities" (the default) or "logits", before the softmax, which
        follows the mean in a network that has one. Another thread may end the run by cancellation. Raises ImageError,
        ShapeError, InputError, RunCancelled; UnsupportedOpError for scales of a network that cannot slide.
        """
        if not isinstance(top, int) or top < 1:
            raise InputError(f"top is {top!r}; it must be a whole number from 1")
        several = list(images) if isinstance(images, (list, tuple)) else None
        meter = Meter()
        every = [cast(ImageSource, images)] if several is None else several
        averaging = Averaging(scales=scales, flip=flip, average=average)
        options: dict[str, Any] = {"cancellation": cancellation or Cancellation(), "meter": meter}
        options["memory_budget"] = parse_budget(memory_budget)
        name, held, scores = self.graph.outputs[0].name, 0, cast(Iterable[np.ndarray], [])
        if averaging.asked:
            engine = self.engine(name, scores=averaging.scores)
            forms = (self._inputs.passes(image, averaging) for image in cast(list[ImageSource], every))
            scores, held = dense.mean_scores(engine, forms, ending=final_softmax(self.graph), **options)
        else:
            rows = self._inputs.batch([self.prepare(image) for image in every])
            scores = [] if rows is None else self.engine(name).run(rows, **options)[name].reshape(rows.count, -1)
        results: list[Predictions] = []
        for one in scores:
            order = np.argsort(-one, kind="stable")[:top]
            found = (Prediction(self._label(int(i)), int(i), float(one[i])) for i in order)
            results.append(Predictions(found, report=meter.report(score_bytes=held)))
        return results[0] if several is None else results

    def prepare(self, image: ImageSource | ImageRows) -> ImageRows:
        """Return an image as classify computes on it. Raises ImageError, ShapeError, InputError."""
        return image if isinstance(image, ImageRows) else self._inputs.at_window(image)

    def _label(self, index: int) -> str:
        return self.labels[index] if self.labels is not None and index < len(self.labels) else str(index)

    # ---- score maps

    def score_map(
        self,
        image: ImageSource | RowSource,
        *,
        stride: int | tuple[int, int] | None = None,
        classes: Sequence[int | str] | None = None,
        method: str = "auto",
        reduce: Reduction | None = None,
        edge: str = "none",
        output: str | os.PathLike[str] | None = None,
        resume: bool = False,
        memory_budget: int | str | None = None,
        progress: bool = False,
    ) -> ScoreMap:
        """Return the scores of the network at every window position of an image: float32 (rows, cols, classes).

        image: as for classify, never resized or cropped, or float32 (1, C, H, W), taken as already preprocessed.
        stride: pixels, default the network's output stride; a divisor or a multiple of it. classes: indices or labels
        to keep. method: "auto" slides the network, a finer stride by the faster of "shifted" passes and one "atrous"
        pass of dilated layers; "crops" runs every crop, at any stride, "crops-shared" gives the same and shares
        what neighbouring crops have in common. Without padding all give the same bits; docs/dense.md says how others
        differ. edge: where windows do not fill the image, "none", "pad" (zeros at the
        bottom and right) or "align" (the last windows at its end).
        reduce: what is kept of a position's scores, default all, as they are. progress: show a bar on stderr.
        output: which output of several; or a file (.npy .npz .zarr .tif): rows go there as they become final, the
        image is read by rows, memory depends on its width alone, and the result is a WrittenMap. resume: go on with
        what a run with the same arguments left. Raises InputError, UnsupportedOpError, MemoryBudgetError, OutputError.
        """
        reduce = checked_reduction(reduce)
        names = [shown.name for shown in self.graph.outputs]
        ways: Any = {"stride": stride, "method": method, "edge": edge}
        if output not in names and is_output(output):
            budget = parse_budget(memory_budget) or self.memory_budget or settings.get("MEMORY_BUDGET")
            told: Any = {"reduction": reduce, "resume": resume, "budget": budget, "progress": progress}
            return write_map(self, image, output, options={**ways, "classes": classes}, **told)
        if resume:
            raise InputError("resume goes on with a map on disk; give output=, a path that ends in .zarr for one")
        engine = self.engine(str(output or names[0]), scores=reduce.scores)
        chosen, labels = self._class_indices(engine, classes)
        kept: Any = {"reduce": reduce, "progress": progress, "memory_budget": parse_budget(memory_budget)}
        return dense.score_map(engine, self._inputs.whole(image), classes=chosen, labels=labels, **ways, **kept)

    def score_stream(
        self,
        image: ImageSource,
        *,
        stride: int | tuple[int, int] | None = None,
        classes: Sequence[int | str] | None = None,
        scores: str = "raw",
        method: str = "auto",
        edge: str = "none",
        output: str | None = None,
        memory_budget: int | str | None = None,
        layout: Layout | None = None,
    ) -> ScoreStream | MergedStream:
        """Return the stream of a score_map: geometry at once, then rows of scores as they become final.

        scores: "raw" or "softmax", as Reduction(scores=) tells; its apply() makes the rest of it of each block.
        """
        engine = self.engine(output or self.graph.outputs[0].name, scores=scores)
        chosen, labels = self._class_indices(engine, classes)
        rows, budget = self._inputs.whole(image), parse_budget(memory_budget)
        way = dense.choose_way(
            engine, method, stride, edge=edge, height=rows.height, width=rows.width, memory_budget=budget
        )
        return dense.open_stream(way, rows, classes=chosen, labels=labels, memory_budget=budget, layout=layout)

    def row_stream(
        self,
        width: int,
        *,
        dtype: str = "uint8",
        stride: int | tuple[int, int] | None = None,
        classes: Sequence[int | str] | None = None,
        scores: str = "raw",
        method: str = "auto",
        edge: str = "none",
        output: str | None = None,
        memory_budget: int | str | None = None,
    ) -> RowStream | MergedRows | CropRows:
        """Return a stream that takes an image's rows block by block: what stream() and the server feed.

        dtype: "uint8" rows are preprocessed, "float32" ones are taken as they are. scores: as for score_stream.
        The rest is as for score_map.
        """
        engine = self.engine(output or self.graph.outputs[0].name, scores=scores)
        chosen, labels = self._class_indices(engine, classes)
        if dtype not in ("uint8", "float32"):
            raise InputError(f"dtype is {dtype!r}; allowed: uint8, float32")
        if not isinstance(width, (int, np.integer)) or width < 1:
            raise InputError(f"width is {width!r}; it must be a whole number from 1")
        image = self._inputs.of_rows(np.empty((1, 0, width, self.graph.input_volume.channels), dtype))
        budget = parse_budget(memory_budget)
        way = dense.choose_way(engine, method, stride, edge=edge, width=width, memory_budget=budget)
        return dense.open_rows(way, image, classes=chosen, labels=labels, memory_budget=budget)

    def stream(
        self,
        *,
        rows: Iterable[np.ndarray] | RowSource,
        width: int | None = None,
        stride: int | tuple[int, int] | None = None,
        classes: Sequence[int | str] | None = None,
        reduce: Reduction | None = None,
        method: str = "auto",
        edge: str = "none",
        output: str | None = None,
        memory_budget: int | str | None = None,
    ) -> Iterator[Any]:
        """Yield blocks of score rows, float32 (k, cols, classes), of an image that comes as blocks of rows.

        rows: arrays (k, width, channels), uint8 to be preprocessed or float32 taken as they are, or what open_scene
        gives, which knows its width. Memory depends on the width alone. reduce: yield what it keeps instead, as
        dicts of its arrays by name. The rest is as for score_map. Raises ShapeError for rows of another form.
        """
        kept = checked_reduction(reduce)
        if isinstance(rows, RowSource):
            width, rows = rows.width, rows.pieces(self.graph.input_volume.channels)
        options: Any = {"stride": stride, "classes": classes, "method": method, "edge": edge, "output": output}
        options |= {"memory_budget": memory_budget, "scores": kept.scores}

        def opened(dtype: str) -> RowStream | MergedRows | CropRows:
            return self.row_stream(cast(int, width), dtype=dtype, **options)

        return dense.streamed(rows, opened, None if reduce is None else kept)

    def _class_indices(self, engine: Engine, classes: Sequence[int | str] | None) -> tuple[list[int] | None, list[str]]:
        # (indices to keep, or None for all; their labels)
        count = infer_volumes(engine.graph)[engine.graph.outputs[0].tensor].channels
        indices = None if classes is None else dense.class_indices(classes, count, self.labels or [])
        return indices, [self._label(index) for index in (range(count) if indices is None else indices)]

    # ---- plans

    def describe(self) -> Description:
        """Return the network's table: each layer's volume, parameters, flops, receptive field and exactness.

        Raises ModelError where its file leaves the input size open.
        """
        return replace(describe_graph(self.graph, name=self.name), storage=str(self.storage or ""))

    def weights(self) -> WeightTable:
        """Return what each layer's weights take, in bytes. Raises ModelError as describe does."""
        return weigh(self.graph, self.describe())

    def capacity(self, memory_budget: int | str | None = None) -> dense.Capacity:
        """Return what fits a budget, default the model's own: batch, width of a streamed image, side of a whole one.

        Raises ModelError as describe, InputError where no budget is given.
        """
        budget = parse_budget(memory_budget) or self.memory_budget or settings.get("MEMORY_BUDGET")
        if budget is None:
            raise InputError('there is no memory budget to fill; give memory_budget=, such as "64MiB"')
        engine = self.engine(self.graph.outputs[0].name)
        return dense.capacity(engine.graph, window=self.describe().window, budget_bytes=budget)

    def plan(
        self,
        height: int,
        width: int,
        *,
        batch: int = 1,
        memory_budget: int | str | None = None,
        hold_scores: bool = False,
        classes: Sequence[int | str] | None = None,
        reduce: Reduction | None = None,
        layout: Layout | None = None,
    ) -> Plan:
        """Return the plan of a run over `batch` images of height x width pixels, before anything is allocated.

        An image larger than the window is a score map; hold_scores: count into p.score_bytes what score_map holds,
        with its classes and reduce. layout: instead of the planner's. Raises ShapeError, InputError, MemoryBudgetError.
        """
        for what, size in (("height", height), ("width", width), ("batch", batch)):
            if not isinstance(size, (int, np.integer)) or size < 1:
                raise InputError(f"{what} is {size!r}; it must be a whole number from 1")
        budget, kept = parse_budget(memory_budget), checked_reduction(reduce)
        if (self.window != (height, width) and self.window is not None) or classes is not None or kept != Reduction():
            engine = self.engine(self.graph.outputs[0].name, scores=kept.scores)
            chosen, _ = self._class_indices(engine, classes)
            hold: Any = {"hold": kept if hold_scores else None, "classes": chosen}
            return dense.plan_map(engine, height, width, images=batch, memory_budget=budget, layout=layout, **hold)
        volumes = infer_volumes(self.graph, height, width)
        held = sum(volumes[output.tensor].values for output in self.graph.outputs) * 4 * batch * hold_scores
        options: dict[str, Any] = {"score_bytes": held, "layout": layout, "memory_budget": budget}
        return self.engine().executor(height, width, images=batch, **options).plan

    def release_idle(self) -> None:
        """Give the memory that is kept for coming runs back to the system."""
        for engine in list(self._engines.values()):
            engine.release_idle()

    def plan_ways(self, height: int, width: int, **options: Any) -> list[dense.WayPlan]:
        """Return what each way to a score map at a stride is predicted to take, as dense.plan_ways tells."""
        return dense.plan_ways(self.engine(self.graph.outputs[0].name), height, width, **options)
