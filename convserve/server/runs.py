"""Runs of whole networks for calls: images prepared, bytes reserved, joined with what others ask at the same time."""

import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from convserve.images import decoding_bytes
from convserve.model import Cancellation
from convserve.server.admission import Admission, Timed, no_cancel
from convserve.server.batching import SIZES, Batcher, Joint
from convserve.server.ledger import Reservation
from convserve.server.statistics import Record

if TYPE_CHECKING:
    from convserve.engine.source import ImageRows
    from convserve.images import ImageSource
    from convserve.model import Model

__all__ = ["Runs", "Work"]

Work = Callable[["Model", str | None, int | None, list["ImageRows"], Cancellation], list[Any]]

MARGIN = 1.05  # sizes between those that were planned


class _Ran(NamedTuple):
    """What work gave for one image of a run of so many."""

    result: Any
    is_first: bool
    images: int
    start_ns: int
    end_ns: int


class Runs:
    """For use inside one event loop."""

    def __init__(self, admission: Admission, batcher: Batcher) -> None:
        self._admission, self._batcher = admission, batcher
        self._ledger = admission.ledger
        self._bytes: WeakKeyDictionary[Model, dict[Hashable, int]] = WeakKeyDictionary()

    async def results(
        self,
        context: Timed,
        held: Reservation,
        model: "Model",
        images: "Sequence[ImageSource]",
        work: Work,
        *,
        kind: Hashable = None,
        only: str | None = None,
        budget: int | None = None,
        priority: int = 0,
        record: Record | None = None,
    ) -> list[Any]:
        """Return what work gives for each image.

        held: grows by what the images and their run take. kind: what else makes calls alike, so that one's work does
        for the others. only: the output that is computed, None for all. budget: bytes that the run may take.
        """
        record = record or Record()
        if self._ledger.budget_bytes is not None:
            await held.resize(held.bytes + _preparing_bytes(model, images))
        known = self._batcher.known(model)
        if known is not None and all(_is_values(image) for image in images):
            prepared, joint = _prepared(model, images, record), known
        else:
            prepared, joint = await self._admission.compute(
                context, no_cancel, self._prepared_and_joint, model, images, record
            )
        if self._ledger.budget_bytes is not None:
            budget = await self._reserve(context, held, model, prepared, joint, only, budget)
        key = (model, kind, only, budget, frozenset((one.rows.shape[1:], one.rows.dtype) for one in prepared))

        def joined(every: "list[ImageRows]", cancellation: Cancellation) -> list[_Ran]:
            start_ns = time.perf_counter_ns()
            found = work(model, only, budget, every, cancellation)
            end_ns = time.perf_counter_ns()
            return [_Ran(one, at == 0, len(found), start_ns, end_ns) for at, one in enumerate(found)]

        ran = await self._batcher.join(context, key, prepared, joined, joint=joint, priority=priority)
        record.stage("run", ran[0].start_ns, ran[0].end_ns)
        record.batches += [one.images for one in ran if one.is_first]
        return [one.result for one in ran]

    def _prepared_and_joint(
        self, model: "Model", images: "Sequence[ImageSource]", record: Record
    ) -> "tuple[list[ImageRows], Joint]":
        return _prepared(model, images, record), self._batcher.joint(model)

    async def _reserve(
        self,
        context: Timed,
        held: Reservation,
        model: "Model",
        images: "list[ImageRows]",
        joint: Joint,
        only: str | None,
        budget: int | None,
    ) -> int | None:
        # the usual plan, or the smallest one if that is free now or all that ever fits; the run's budget
        height, width, count = images[0].height, images[0].width, len(images)
        before = held.bytes
        options = (model, only, height, width, count, joint.most, budget)
        usual = await self._planned(context, ("usual", *options[1:]), _usual_bytes, *options)
        if held.try_resize(before + usual):
            return budget
        scores = 4 * count * model.classes if model.window else 0
        least = await self._planned(context, ("least", *options[1:4]), _least_bytes, model, only, height, width)
        capacity = self._ledger.capacity_bytes
        if least + scores < usual:
            if held.try_resize(before + least + scores):
                return least
            if capacity is not None and before + usual > capacity:
                await held.resize(before + least + scores)
                return least
        await held.resize(before + usual)
        return budget

    async def _planned(self, context: Timed, key: Hashable, plan: Callable[..., int], *options: Any) -> int:
        known = self._bytes.setdefault(options[0], {})
        if key not in known:
            known[key] = await self._admission.compute(context, no_cancel, plan, *options)
        return known[key]


def _names(only: str | None) -> tuple[str, ...]:
    return () if only is None else (only,)


def _is_values(image: Any) -> bool:
    return isinstance(image, np.ndarray) and image.dtype == np.float32


def _prepared(model: "Model", images: "Sequence[ImageSource]", record: Record) -> "list[ImageRows]":
    start = time.perf_counter_ns()
    prepared = [model.prepare(image) for image in images]
    record.images = len(prepared)
    record.stage("prepare", start)
    return prepared


def _preparing_bytes(model: "Model", images: "Sequence[ImageSource]") -> int:
    # one image is decoded at a time; what became of those before it stays
    decoded = max((decoding_bytes(image) for image in images), default=0)
    if not decoded or model.window is None:
        return decoded * len(images)
    return decoded + 4 * math.prod(model.window) * model.graph.input_volume.channels * len(images)


def _usual_bytes(
    model: "Model", only: str | None, height: int, width: int, count: int, most: int, budget: int | None
) -> int:
    if count > most:
        return model.engine(*_names(only)).run_bytes(count, height, width, memory_budget=budget)
    # a run of several calls' images takes no more than they have reserved together
    sizes = [size for size in SIZES if size <= most]
    shares = [model.engine(*_names(only)).run_bytes(size, height, width, memory_budget=budget) / size for size in sizes]
    return math.ceil((MARGIN if most > 1 else 1) * max(shares)) * count


def _least_bytes(model: "Model", only: str | None, height: int, width: int) -> int:
    return model.engine(*_names(only)).least_bytes(height, width)
