"""Inference by the Open Inference Protocol, whatever brought the request: values or images in, outputs or maps out."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from convserve.errors import InputError, ShapeError
from convserve.model import Cancellation
from convserve.results import RunReport
from convserve.server.admission import Admission, Timed
from convserve.server.dense_inference import dense_parts, is_dense, memory_limit, whole_map
from convserve.server.ledger import Reservation
from convserve.server.limits import Limits
from convserve.server.repository import Repository
from convserve.server.runs import Runs
from convserve.server.scoring import lowest_budget
from convserve.server.statistics import Record, Statistics
from convserve.wire.infer import MOST_ELEMENTS, InferAnswer, InferRequest, InferTensor, RequestedOutput

if TYPE_CHECKING:
    from convserve.engine.source import ImageRows
    from convserve.model import Model

__all__ = ["Inference"]


class Inference:
    """Answers from the models of a repository; whatever computes waits its turn in the admission."""

    def __init__(
        self,
        repository: Repository,
        admission: Admission,
        runs: Runs,
        limits: Limits,
        statistics: Statistics,
    ) -> None:
        self.repository = repository
        self.statistics = statistics
        self._admission = admission
        self._runs = runs
        self._limits = limits

    async def infer(self, request: InferRequest, context: Timed, held: Reservation) -> InferAnswer:
        """Return the whole answer. held: the admitted call's reservation, which grows.

        Raises what the model raises, ServerBusy, and InputError for a bad request.
        """
        if not is_dense(request):
            return await self._outputs(request, context, held)
        async with aclosing(self._score_map(request, context, held, most_bytes=self._limits.message_bytes)) as parts:
            return whole_map([part async for part in parts])

    async def stream(
        self, request: InferRequest, context: Timed, held: Reservation
    ) -> AsyncGenerator[InferAnswer, None]:
        """Yield the answer in parts, computed as they are taken; the last has the parameter triton_final_response."""
        if not is_dense(request):
            answer = await self._outputs(request, context, held)
            yield _with(answer, triton_final_response=True)
            return
        async with aclosing(self._score_map(request, context, held)) as parts:
            async for part in parts:
                yield part

    async def _score_map(
        self, request: InferRequest, context: Timed, held: Reservation, *, most_bytes: int | None = None
    ) -> AsyncGenerator[InferAnswer, None]:
        name, version, model = self.repository.model(request.model, request.version)
        context = _Deadline.of(request, context)
        with self.statistics.recording(name, version) as record:
            tensor = _input_of(request, model)
            first = InferAnswer(model=name, version=version, id=request.id)
            parts = dense_parts(
                first,
                request,
                tensor,
                model,
                self._admission,
                context,
                held,
                self._limits,
                record,
                most_bytes=most_bytes,
            )
            async with aclosing(parts):
                async for part in parts:
                    yield part

    async def _outputs(self, request: InferRequest, context: Timed, held: Reservation) -> InferAnswer:
        name, version, model = self.repository.model(request.model, request.version)
        context = _Deadline.of(request, context)
        with self.statistics.recording(name, version) as record:
            tensor = _input_of(request, model)
            wanted = _wanted_of(request, model)
            priority = _priority_of(request)
            # every network of outputs that is run stays planned: one for each output, and one for all of them
            only = wanted[0].name if len(wanted) == 1 else None
            budget = lowest_budget(memory_limit(request), model.memory_budget)
            images = _images_of(tensor)
            found = await self._runs.results(
                context, held, model, images, _run, only=only, budget=budget, priority=priority, record=record
            )
            outputs, parameters = _encoded(found, wanted, model.labels, record)
        return InferAnswer(model=name, version=version, id=request.id, parameters=parameters, outputs=outputs)


class _Deadline:
    """A call's deadline, or its request's own timeout where that is sooner."""

    def __init__(self, context: Timed, seconds: float) -> None:
        self._context = context
        self._end = time.monotonic() + seconds

    @classmethod
    def of(cls, request: InferRequest, context: Timed) -> Timed:
        microseconds = request.parameters.get("timeout", 0)
        if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
            raise InputError(f"timeout is {microseconds!r}; it must be a whole number of microseconds")
        return cls(context, microseconds / 1e6) if microseconds else context

    def time_remaining(self) -> float | None:
        remaining = self._context.time_remaining()
        own = self._end - time.monotonic()
        return own if remaining is None else min(own, remaining)


def _with(answer: InferAnswer, **parameters: bool | int | str) -> InferAnswer:
    return InferAnswer(
        model=answer.model,
        version=answer.version,
        id=answer.id,
        parameters={**answer.parameters, **parameters},
        outputs=answer.outputs,
    )


def _input_of(request: InferRequest, model: "Model") -> InferTensor:
    reads = model.graph.input_name
    if not request.inputs:
        raise InputError(f"the request has no input; the network reads {reads!r}")
    for tensor in request.inputs:
        if tensor.name != reads:
            raise InputError(f"the network has no input {tensor.name[:100]!r}; it reads {reads!r}")
    if len(request.inputs) > 1:
        raise InputError(f"the input {reads!r} came {len(request.inputs)} times; a request has it once")
    return request.inputs[0]


def _wanted_of(request: InferRequest, model: "Model") -> Sequence[RequestedOutput]:
    known = [output.name for output in model.graph.outputs]
    for number, one in enumerate(request.outputs):
        if one.name not in known:
            raise InputError(f"the network has no output {one.name[:100]!r}; it has {', '.join(known)}")
        if any(one.name == other.name for other in request.outputs[:number]):
            raise InputError(f"the output {one.name!r} is asked for twice; a request names it once")
    return request.outputs or [RequestedOutput(name) for name in known]


def _priority_of(request: InferRequest) -> int:
    priority = request.parameters.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or priority < 0:
        raise InputError(f"priority is {priority!r}; it must be a whole number, of which 1 comes first")
    return max(0, priority - 1)


class _Found(NamedTuple):
    """What the network gave for one image of a run."""

    outputs: dict[str, np.ndarray]
    report: RunReport


def _run(
    model: "Model", only: str | None, budget: int | None, images: "list[ImageRows]", cancellation: Cancellation
) -> list[_Found]:
    found, report = model.measure(images, only, cancellation=cancellation, memory_budget=budget)
    arrays = found if isinstance(found, dict) else {only or model.graph.outputs[0].name: found}
    return [
        _Found({name: array[at : at + 1] for name, array in arrays.items()}, report) for at in range(len(images))
    ]


def _encoded(
    found: list[_Found], wanted: Sequence[RequestedOutput], labels: list[str] | None, record: Record
) -> tuple[list[InferTensor], dict[str, bool | int | str]]:
    start = time.perf_counter_ns()
    outputs = []
    for one in wanted:
        parts = [image.outputs[one.name] for image in found]
        outputs.append(_output(one, parts[0] if len(parts) == 1 else np.concatenate(parts), labels))
    record.stage("encode", start)
    report = found[0].report
    record.planned_bytes, record.measured_bytes = report.plan.total_bytes, report.measured_bytes
    return outputs, {"planned_bytes": record.planned_bytes, "measured_bytes": record.measured_bytes}


def _images_of(tensor: InferTensor) -> Sequence[np.ndarray | bytes]:
    count = tensor.shape[0]
    if count > MOST_ELEMENTS:
        raise ShapeError(f"the input {tensor.name!r} has {count} images; allowed: 1 to {MOST_ELEMENTS}")
    if isinstance(tensor.contents, list):
        if tensor.shape not in ((count,), (count, 1)):
            raise ShapeError(
                f"the input {tensor.name!r}, BYTES, has the shape {list(tensor.shape)}; it must be [N] or [N, 1]"
            )
        return tensor.contents
    if tensor.datatype == "UINT8":
        if len(tensor.shape) != 4:
            raise ShapeError(
                f"the input {tensor.name!r}, UINT8, has the shape {list(tensor.shape)}; it must be [N, H, W, C]"
            )
        return list(tensor.contents)
    values = tensor.contents.astype(np.float32, copy=False)
    return [values[number : number + 1] for number in range(count)]


def _output(wanted: RequestedOutput, array: np.ndarray, labels: list[str] | None) -> InferTensor:
    if not wanted.classification:
        return InferTensor(wanted.name, "FP32", array.shape, array)
    scores = array.reshape(len(array), -1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, : wanted.classification]
    names = labels if labels is not None and len(labels) == scores.shape[1] else None
    texts = [
        f"{scores[image, index]:f}:{index}{'' if names is None else ':' + names[index]}".encode()
        for image, indices in enumerate(best)
        for index in indices
    ]
    return InferTensor(wanted.name, "BYTES", best.shape, texts)
