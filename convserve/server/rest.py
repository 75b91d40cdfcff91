"""The Open Inference Protocol over REST: decode, call, encode; health and metrics beside it."""

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from convserve.errors import InputError, ShapeError
from convserve.server.access import Access
from convserve.server.admission import Admission
from convserve.server.http_calls import METRICS_METHOD, Answer, Endpoint, Handler, HttpCall, Refused, json_answer
from convserve.server.inference import Inference
from convserve.server.ledger import Reservation
from convserve.server.limits import Limits
from convserve.server.metrics import METRICS_TYPE, metrics_text
from convserve.server.open_inference import REFUSED, OpenInferenceService
from convserve.server.repository import READY, Served
from convserve.server.tracing import NoTracing
from convserve.server.unread import COPIES
from convserve.wire.infer import InferRequest, InferTensor, tensor_of
from convserve.wire.infer_json import (
    JSON_LENGTH,
    AnswerForm,
    answer_to_body,
    message_to_json,
    request_from_body,
)
from convserve.wire.open_inference import messages as oip

__all__ = ["application"]

_BINARY = "application/octet-stream"
_NO_PATH = "there is no such path"
_MODEL = "/v2/models/{model}"
_VERSION = "/versions/{version}"
_SMALL_BYTES = 64 << 10
# a body that is JSON is text, bytes of that text, text without its brackets, and values at some time
_JSON_COPIES = 6


def application(
    service: OpenInferenceService, inference: Inference, admission: Admission, limits: Limits, access: Access | None,
    tracing: NoTracing,
) -> Starlette:
    """Return the ASGI application of the protocol's paths, /healthz, /readyz and /metrics."""
    rest = _Rest(service, inference, admission, limits)
    paths: dict[str, dict[str, Handler]] = {
        "/healthz": {"GET": Handler(rest.live, "ServerLive", is_open=True)},
        "/readyz": {"GET": Handler(rest.ready, "ServerReady", is_open=True)},
        "/metrics": {"GET": Handler(rest.metrics, METRICS_METHOD)},
        "/v2": {"GET": rest.told("ServerMetadata")},
        "/v2/health/live": {"GET": Handler(rest.live, "ServerLive", is_open=True)},
        "/v2/health/ready": {"GET": Handler(rest.ready, "ServerReady", is_open=True)},
        "/v2/models/stats": {"GET": rest.told("ModelStatistics")},
        "/v2/repository/index": {"POST": Handler(rest.index, "RepositoryIndex")},
        "/v2/repository/models/{model}/load": {"POST": Handler(rest.load, "RepositoryModelLoad")},
        "/v2/repository/models/{model}/unload": {"POST": Handler(rest.unload, "RepositoryModelUnload")},
    }
    for model in (_MODEL, _MODEL + _VERSION):
        paths[model] = {"GET": rest.told("ModelMetadata")}
        paths[f"{model}/ready"] = {"GET": Handler(rest.model_ready, "ModelReady", is_open=True)}
        paths[f"{model}/config"] = {"GET": rest.told("ModelConfig", "config")}
        paths[f"{model}/stats"] = {"GET": rest.told("ModelStatistics")}
        paths[f"{model}/infer"] = {"POST": Handler(rest.infer, "ModelInfer")}
    for path in ("/v2/trace/setting", f"{_MODEL}/trace/setting"):
        paths[path] = _refusing(REFUSED["TraceSetting"])
    paths["/v2/logging"] = _refusing(REFUSED["LogSettings"])
    for kind in ("system", "cuda"):
        paths[f"/v2/{kind}sharedmemory/{{rest:path}}"] = _refusing(REFUSED["SystemSharedMemoryStatus"])
    make = partial(Endpoint, limits=limits, access=access, statistics=inference.statistics, tracing=tracing)
    routes = [Route(path, make(path, handlers=handlers)) for path, handlers in paths.items()]
    application = Starlette(routes=routes)
    application.router.redirect_slashes = False
    elsewhere = Handler(partial(_refuse, Refused(404, _NO_PATH)), "")
    application.router.default = make("elsewhere", handlers={"GET": elsewhere, "POST": elsewhere})
    return application


def _refusing(text: str) -> dict[str, Handler]:
    handler = Handler(partial(_refuse, Refused(501, text)), "")
    return {"GET": handler, "POST": handler}


async def _refuse(error: Refused, call: HttpCall) -> Answer:
    raise error


class _Read:
    """A message in the place of one that is still to be read."""

    def __init__(self, message: Any) -> None:
        self._message = message

    async def message(self) -> Any:
        """Return the message."""
        return self._message


class _Rest:
    """Answers from the service that gRPC calls have, and from its Inference."""

    def __init__(
        self, service: OpenInferenceService, inference: Inference, admission: Admission, limits: Limits
    ) -> None:
        self._limits = limits
        self._service, self._inference, self._admission = service, inference, admission
        self._repository = inference.repository

    def told(self, method: str, field: str = "") -> Handler:
        """Return what answers as a method of the service does that asks for a model, or for none."""

        async def answer(call: HttpCall) -> Answer:
            request = getattr(oip, f"{method}Request")()
            if "model" in call.path:
                request.name, request.version = call.path["model"], call.path.get("version", "")
            message = await self._ask(method, request)
            return json_answer(json.dumps(message_to_json(getattr(message, field) if field else message)))

        return Handler(answer, method)

    async def _ask(self, method: str, request: Any) -> Any:
        # the context is gRPC's, and these methods do not look at it
        return await getattr(self._service, method)(_Read(request), None)

    async def live(self, call: HttpCall) -> Answer:
        """Answer that the server runs."""
        return json_answer('{"live": true}')

    async def ready(self, call: HttpCall) -> Answer:
        """Answer whether inferences are taken."""
        is_ready = (await self._ask("ServerReady", oip.ServerReadyRequest())).ready
        return json_answer(json.dumps({"ready": is_ready}), status=200 if is_ready else 503)

    async def model_ready(self, call: HttpCall) -> Answer:
        """Answer that a model is ready; where there is none the exception says so."""
        return json_answer(json.dumps({"name": self._served(call).name, "ready": True}))

    def _served(self, call: HttpCall) -> Served:
        return self._repository.model(call.path["model"], call.path.get("version", ""))

    async def metrics(self, call: HttpCall) -> Answer:
        """Answer with the server's metrics as Prometheus reads them."""
        ready = [(one.name, one.version) for one in self._repository.index() if one.state == READY]
        text = await metrics_text(self._inference.statistics, ready)
        return Answer(iter([text]), {"content-type": METRICS_TYPE})

    async def index(self, call: HttpCall) -> Answer:
        """Answer with the models and their states."""
        request = oip.RepositoryIndexRequest()
        ready = (await _small(call)).get("ready", False)
        if not isinstance(ready, bool):
            raise InputError(f"ready is {str(ready)[:100]!r}; it must be true or false")
        request.ready = ready
        message = await self._ask("RepositoryIndex", request)
        return json_answer(json.dumps(message_to_json(message.models)))

    async def load(self, call: HttpCall) -> Answer:
        """Load a model as its folder has it."""
        if (await _small(call)).get("parameters"):
            raise InputError("a model is loaded as its folder has it; the request's parameters would change that")
        await self._ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=call.path["model"]))
        return json_answer("{}")

    async def unload(self, call: HttpCall) -> Answer:
        """Unload a model."""
        await _small(call)
        await self._ask("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=call.path["model"]))
        return json_answer("{}")

    async def infer(self, call: HttpCall) -> Answer:
        """Answer with a model's outputs, or with a score map."""
        served = self._served(call)
        held = await call.until_sent.enter_async_context(self._admission.call(call))
        request, form = await self._asked(call, served, held)
        answer = await call.unless_gone(self._inference.infer(request, call, held))
        del request
        json_bytes, length, pieces = answer_to_body(answer, form)
        if json_bytes is None:
            return Answer(pieces)
        return Answer(pieces, {"content-type": _BINARY, JSON_LENGTH.lower(): str(json_bytes)}, length)

    async def _asked(self, call: HttpCall, served: Served, held: Reservation) -> tuple[InferRequest, AnswerForm]:
        name, version = call.path["model"], call.path.get("version", "")
        json_length = call.number(JSON_LENGTH.lower())
        is_file = (call.header("content-type") or "").startswith("image/") and not json_length
        if is_file:
            json_length = 0

        def taken_bytes(length: int) -> int:
            return COPIES * length + _JSON_COPIES * (length if json_length is None else min(json_length, length))

        told = call.told_bytes()
        # all at once where that is known, since calls that hold some and wait for more stand in each other's way
        await held.resize(COPIES * self._limits.message_bytes if told is None else taken_bytes(told))
        body = await call.body()
        await held.resize(taken_bytes(len(body)))
        if json_length == 0:
            tensor = _alone(served, body, is_file=is_file)
            return InferRequest(model=name, version=version, inputs=[tensor]), AnswerForm({})
        asked = await asyncio.to_thread(request_from_body, body, json_length, model=name, version=version)
        held.try_resize(COPIES * len(body))
        return asked


def _alone(served: Served, body: memoryview, *, is_file: bool) -> InferTensor:
    """Return the input that is a whole body: an image file, or values of the network's own size."""
    name, volume = served.model.graph.input_name, served.model.graph.input_volume
    if is_file:
        return InferTensor(name, "BYTES", (1,), [bytes(body)])
    if volume.height is None or volume.width is None:
        raise ShapeError("the network takes images of any size; values without JSON do not tell theirs")
    size = 4 * volume.channels * volume.height * volume.width
    return tensor_of(
        name, "FP32", (len(body) // size or 1, volume.channels, volume.height, volume.width), bytes(body)
    )


async def _small(call: HttpCall) -> Mapping[str, Any]:
    """Return the object of a body of a few values, an empty one where there is no body."""
    body = bytes(await call.body(_SMALL_BYTES))
    try:
        found = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise InputError("the request's body is no JSON") from None
    if not isinstance(found, dict):
        raise InputError("the request's body must be a JSON object")
    return found
