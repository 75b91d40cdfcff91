"""The Convserve service: decode the request, run the model outside the event loop, encode what comes."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, cast

import grpc

from convserve.averaging import Averaging
from convserve.errors import ConvserveError, InputError, MemoryBudgetError, RunCancelled, ShapeError
from convserve.images import ImageSource, decoding_bytes
from convserve.model import Cancellation
from convserve.results import Predictions
from convserve.server.admission import Admission, no_cancel
from convserve.server.incoming import Incoming, with_channels
from convserve.server.ledger import Reservation
from convserve.server.limits import Limits
from convserve.server.repository import READY, ModelState, Repository, Served
from convserve.server.runs import Runs
from convserve.server.scoring import Scoring, lowest_budget
from convserve.server.statistics import Record, Statistics
from convserve.server.unread import COPIES, Unread
from convserve.wire import codec, convserve_pb2_grpc
from convserve.wire import convserve_pb2 as pb
from convserve.wire.description import description_to_message, summary_to_message
from convserve.wire.reduction import reduction_from_message
from convserve.wire.scene import LARGEST_SIDE, SceneHeader

if TYPE_CHECKING:
    from convserve.engine.source import ImageRows
    from convserve.model import Model

__all__ = ["MOST_IMAGES", "ConvserveService"]

MOST_IMAGES = 1024
"""Images that one Classify request may hold."""

DEFAULT_TOP = 5
LONGEST_ASPECT = 4  # of images that are resized by their short side, where it is guessed what they take


class ConvserveService(convserve_pb2_grpc.ConvserveServicer):  # type: ignore[misc]
    """Answers from the models of a repository; whatever computes waits its turn in the admission."""

    def __init__(
        self, repository: Repository, admission: Admission, runs: Runs, limits: Limits, statistics: Statistics
    ) -> None:
        self._repository = repository
        self._statistics = statistics
        self._admission = admission
        self._limits = limits
        self._runs = runs

    async def Classify(
        self, unread: Unread, context: grpc.aio.ServicerContext
    ) -> pb.ClassifyResponse:
        """Answer with the best classes of each image."""
        async with self._admission.call(context) as held:
            return await self._classified(await unread.message(held), context, held)

    async def _classified(
        self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext, held: Reservation
    ) -> pb.ClassifyResponse:
        if not 1 <= len(request.images) <= MOST_IMAGES:
            raise InputError(f"the request has {len(request.images)} images; allowed: 1 to {MOST_IMAGES}")
        name, version, model = self._repository.model(request.model, request.version)
        averaging = codec.averaging_from_message(request)
        with self._statistics.recording(name, version) as record:
            found = await self._predictions(request, averaging, model, context, held, record)
            start_ns = time.perf_counter_ns()
            report = found[0].report
            record.planned_bytes, record.measured_bytes = report.plan.total_bytes, report.measured_bytes
            response = pb.ClassifyResponse(
                model=name,
                version=version,
                classifications=[codec.classification_to_message(one) for one in found],
                plan=codec.plan_to_message(report.plan),
                seconds=report.seconds,
                measured_bytes=report.measured_bytes,
                passes=averaging.passes,
            )
            record.stage("encode", start_ns)
        return response

    async def _predictions(
        self,
        request: pb.ClassifyRequest,
        averaging: Averaging,
        model: "Model",
        context: grpc.aio.ServicerContext,
        held: Reservation,
        record: Record,
    ) -> list[Predictions]:
        top = request.top or DEFAULT_TOP
        images = [codec.image_from_message(image) for image in request.images]
        if not averaging.asked:
            work = partial(_classified, top)
            return await self._runs.results(context, held, model, images, work, kind=top, record=record)
        # passes over images of many sizes: nothing that other calls could join
        most_bytes = await self._reserve_passes(held, images, averaging)
        cancellation = Cancellation()
        return await self._admission.compute(
            context, cancellation.cancel, _averaged, model, images, top, averaging, most_bytes, record, cancellation
        )

    async def _reserve_passes(
        self, held: Reservation, images: Sequence[ImageSource], averaging: Averaging
    ) -> int | None:
        ledger = self._admission.ledger
        if ledger.budget_bytes is None:
            return None
        # what each pass may take is half of what the images leave, since their sizes tell no more before they are read
        largest = max(averaging.scales or (0,))
        resized = 24 * LONGEST_ASPECT * largest * largest
        await held.resize(held.bytes + max(map(decoding_bytes, images)) + resized)
        most_bytes = (ledger.room_bytes(held.bytes) or 0) // 2
        await held.resize(held.bytes + most_bytes)
        return most_bytes

    async def ScoreMap(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """Write geometry, rows as they become final, and completion.

        The next part of the image is read when the last was computed, the next block computed when the last was
        written: neither image nor map gathers here, and a client that holds back holds no thread.
        """
        start = time.perf_counter()
        incoming = Incoming(context, stall_s=self._limits.stall_s)
        header = await incoming.header()
        name, version, model = self._repository.model(header.model, header.version)
        with self._statistics.recording(name, version) as record:
            await self._score_map(context, incoming, header, Served(name, version, model), record, start)

    async def _score_map(
        self,
        context: grpc.aio.ServicerContext,
        incoming: Incoming,
        header: SceneHeader,
        served: Served,
        record: Record,
        start: float,
    ) -> None:
        name, version, model = served
        if header.dtype is not None:
            header = with_channels(header, model.graph.input_volume.channels, longest_bytes=self._limits.message_bytes)
        async with self._admission.call(context, open_ended=True) as held, self._admission.score_map():
            scoring, start_ns = None, time.perf_counter_ns()
            try:
                if header.dtype is None:
                    # holding little and waiting for much, several would stand in each other's way
                    await held.resize(self._admission.map_bytes)
                    file = await incoming.file(self._limits.image_bytes, held)
                    decoding = decoding_bytes(file)
                    await held.resize(COPIES * len(file) + decoding)
                    scoring = Scoring(header, model, most_bytes=self._admission.ledger.room_bytes(decoding // 2))
                    await self._admission.compute(context, scoring.cancel, scoring.open_image, file)
                    del file
                    self._admission.map_bytes = max(held.bytes, scoring.taken_bytes)
                else:
                    scoring = Scoring(header, model, most_bytes=self._admission.ledger.room_bytes(held.bytes))
                    await self._admission.compute(context, scoring.cancel, scoring.open_rows)
                await held.resize(scoring.taken_bytes)
                record.stage("prepare", start_ns)
                start_ns = time.perf_counter_ns()
                geometry = codec.geometry_to_message(
                    scoring.geometry, scoring.plan, model=name, version=version, reduction=header.reduction
                )
                await self._write(context, pb.ScoreMapResponse(geometry=geometry))
                if header.dtype is not None:
                    height = 0
                    while (rows := await incoming.rows(header)) is not None:
                        height += len(rows)
                        await held.resize(scoring.taken_bytes + COPIES * rows.nbytes)
                        scoring.feed(rows)
                        await self._write_rows(context, scoring)
                    scoring.finish(height)
                await self._write_rows(context, scoring)
                completion = codec.completion_to_message(
                    scoring.geometry,
                    scoring.plan,
                    seconds=time.perf_counter() - start,
                    measured_bytes=scoring.measured_bytes,
                )
                record.stage("run", start_ns)
                record.images, record.positions = 1, scoring.geometry.rows * scoring.geometry.cols
                record.batches.append(1)
                record.planned_bytes, record.measured_bytes = scoring.plan.total_bytes, scoring.measured_bytes
            finally:
                if scoring is not None:
                    scoring.close()
            await self._write(context, pb.ScoreMapResponse(completion=completion))

    async def _write_rows(self, context: grpc.aio.ServicerContext, scoring: Scoring) -> None:
        while messages := await self._admission.compute(context, scoring.cancel, scoring.next_rows):
            for message in messages:
                await self._write(context, message)

    async def _write(self, context: grpc.aio.ServicerContext, message: pb.ScoreMapResponse) -> None:
        try:
            async with asyncio.timeout(self._limits.stall_s):
                await context.write(message)
        except TimeoutError:
            raise RunCancelled(f"no scores were read for {self._limits.stall_s:g} s") from None

    async def ListModels(
        self, unread: Unread, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """Answer with what each model is."""
        await unread.message()
        return pb.ListModelsResponse(models=[self._listed(state) for state in self._repository.index()])

    def _listed(self, state: ModelState) -> pb.ModelSummary:
        summary = pb.ModelSummary(name=state.name, version=state.version)
        if state.state == READY:
            with suppress(ConvserveError):
                # it may have gone since the index was made
                summary = _summary(self._repository.model(state.name, state.version))
        summary.state, summary.reason = state.state, state.reason
        return summary

    async def DescribeModel(
        self, unread: Unread, context: grpc.aio.ServicerContext
    ) -> pb.DescribeModelResponse:
        """Answer with one model's layers."""
        async with self._admission.call(context) as held:
            request = await unread.message(held)
            served = self._repository.model(request.model, request.version)
            return await self._admission.compute(context, no_cancel, _describe, served, request.fingerprint)

    async def PlanMemory(
        self, unread: Unread, context: grpc.aio.ServicerContext
    ) -> pb.PlanMemoryResponse:
        """Answer with what a run would take."""
        async with self._admission.call(context) as held:
            return await self._planned(await unread.message(held), context)

    async def _planned(
        self, request: pb.PlanMemoryRequest, context: grpc.aio.ServicerContext
    ) -> pb.PlanMemoryResponse:
        served = self._repository.model(request.model, request.version)
        for what, value in (("height", request.height), ("width", request.width), ("batch", request.batch or 1)):
            if not 1 <= value <= LARGEST_SIDE:
                raise ShapeError(f"{what} is {value}; allowed: 1 to {LARGEST_SIDE}")
        return await self._admission.compute(context, no_cancel, _plan, served, request)


def _summary(served: Served) -> pb.ModelSummary:
    model = served.model
    known = model.window is not None
    return summary_to_message(
        served.name,
        version=served.version,
        window=model.window,
        channels=model.graph.input_volume.channels,
        classes=model.classes if known else 0,
        labels=model.labels,
    )


def _describe(served: Served, fingerprint: bool) -> pb.DescribeModelResponse:
    model = served.model
    preprocess = None if model.preprocess is None else model.preprocess.to_dict()
    known = model.fingerprint if fingerprint else None
    return description_to_message(_summary(served), model.describe().to_dict(), preprocess, known)


def _plan(served: Served, request: pb.PlanMemoryRequest) -> pb.PlanMemoryResponse:
    model = served.model
    plan = model.plan(
        request.height,
        request.width,
        batch=request.batch or 1,
        memory_budget=lowest_budget(request.memory_budget, model.memory_budget),
        hold_scores=request.hold_scores,
        classes=codec.classes_from_message(request.classes),
        reduce=reduction_from_message(request.reduction) if request.HasField("reduction") else None,
    )
    if plan.total_bytes >= 1 << 63:
        raise MemoryBudgetError(f"a run over {request.height}x{request.width} pixels takes {plan.total_bytes} bytes")
    return pb.PlanMemoryResponse(
        model=served.name,
        version=served.version,
        plan=codec.plan_to_message(plan),
        total=plan.total_bytes,
        threads=plan.threads,
    )


def _classified(
    top: int,
    model: "Model",
    only: str | None,
    budget: int | None,
    images: "list[ImageRows]",
    cancellation: Cancellation,
) -> list[Predictions]:
    found = model.classify(images, top=top, cancellation=cancellation, memory_budget=budget)
    return cast(list[Predictions], found)


def _averaged(
    model: "Model",
    images: Sequence[ImageSource],
    top: int,
    averaging: Averaging,
    budget: int | None,
    record: Record,
    cancellation: Cancellation,
) -> list[Predictions]:
    start_ns = time.perf_counter_ns()
    found = model.classify(images, top=top, cancellation=cancellation, memory_budget=budget, **asdict(averaging))
    record.stage("run", start_ns)
    record.images = len(images)
    record.batches.append(len(images))
    return cast(list[Predictions], found)
