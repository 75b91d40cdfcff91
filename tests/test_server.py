"""The server over a real socket: the answers of every method."""

import io
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from builder import Builder
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from PIL import Image
from serving import image_requests, kinds_of, row_requests, running_server, scores_of, stub_of

import convserve
from convserve.client import Client
from convserve.graph.ir import Volume
from convserve.images import decode
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub
from convserve.wire.description import description_from_message, summary_from_message

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE = BUNDLED / "digit.png", BUNDLED / "page.png"
PIXELS = decode(PAGE, channels="gray")


def padded_model() -> convserve.Model:
    build = Builder(Volume(3, 16, 16), seed=4, name="padded")
    x = build.conv(build.input, 6, 3, pads=1, activation="relu")
    x = build.pool("MaxPool", x, 2, strides=2)
    return convserve.load(build.graph(build.conv(x, 5, 8)))


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(BUNDLED / "digits.convserve")


@pytest.fixture(scope="module")
def padded() -> convserve.Model:
    return padded_model()


@pytest.fixture(scope="module")
def address(model: convserve.Model, padded: convserve.Model) -> Iterator[str]:
    with running_server({"digits": model, "padded": padded}) as address:
        yield address


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[ConvserveStub]:
    with stub_of(address) as stub:
        yield stub


def test_classify_answers_as_the_model_does(model: convserve.Model, stub: ConvserveStub) -> None:
    images = [pb.Image(encoded=DIGIT.read_bytes())] * 2
    response = stub.Classify(pb.ClassifyRequest(model="digits", images=images, top=3))
    local = model.classify(DIGIT, top=3)
    assert response.model == "digits"
    for classification in response.classifications:
        assert [(one.label, one.index, one.score) for one in classification.predictions] == [
            (one.label, one.index, one.score) for one in local
        ]
    plan = model.plan(28, 28, batch=2)
    assert (response.plan.arena, response.plan.scratch) == (plan.arena_bytes, plan.scratch_bytes)
    assert response.measured_bytes == plan.total_bytes
    assert response.plan.weights == plan.weight_bytes > 0
    assert response.seconds > 0


def test_top_is_five_unless_said(stub: ConvserveStub) -> None:
    response = stub.Classify(pb.ClassifyRequest(model="digits", images=[pb.Image(encoded=DIGIT.read_bytes())]))
    assert len(response.classifications[0].predictions) == 5


def test_preprocessed_values_are_taken_as_they_are(model: convserve.Model, stub: ConvserveStub) -> None:
    x = np.random.default_rng(3).random((1, 1, 28, 28), np.float32)
    tensor = pb.Tensor(layout=pb.FP32_NCHW, shape=x.shape, data=x.tobytes())
    response = stub.Classify(pb.ClassifyRequest(model="digits", images=[pb.Image(tensor=tensor)], top=11))
    scores = {one.index: one.score for one in response.classifications[0].predictions}
    y = model.run(x)
    assert isinstance(y, np.ndarray)
    assert [np.float32(scores[index]) for index in range(11)] == list(y.ravel())


# ---- score maps


def test_a_map_is_geometry_then_rows_in_order_then_completion(model: convserve.Model, stub: ConvserveStub) -> None:
    responses = list(stub.ScoreMap(image_requests(PAGE.read_bytes(), model="digits")))
    kinds = kinds_of(responses)
    assert kinds[0] == "geometry"
    assert kinds[-1] == "completion"
    assert set(kinds[1:-1]) == {"rows"}
    rows = [response.rows for response in responses[1:-1]]
    assert len(rows) > 1
    assert [one.first_row for one in rows] == list(np.cumsum([0, *(one.rows for one in rows[:-1])]))
    local = model.score_map(PAGE)
    assert scores_of(responses) == local.scores.tobytes()
    plan = model.score_stream(PAGE).plan
    assert responses[0].geometry.plan.arena == plan.arena_bytes
    completion = responses[-1].completion
    assert completion.rows == responses[0].geometry.rows == local.rows
    assert completion.plan == responses[0].geometry.plan
    block_bytes = completion.measured_bytes - plan.arena_bytes - plan.scratch_bytes
    assert 0 < block_bytes < local.scores.nbytes
    assert completion.seconds > 0


@pytest.mark.parametrize("tell_height", [True, False])
@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_rows_that_come_in_any_blocks_give_the_same_bits(
    model: convserve.Model, stub: ConvserveStub, at_once: int, tell_height: bool
) -> None:
    requests = row_requests(PIXELS, at_once=at_once, tell_height=tell_height, model="digits")
    responses = list(stub.ScoreMap(requests))
    local = model.score_map(PAGE)
    assert scores_of(responses) == local.scores.tobytes()
    assert responses[0].geometry.rows == (local.rows if tell_height else 0)
    assert responses[-1].completion.rows == local.rows


@pytest.mark.parametrize("tell_height", [True, False])
def test_float_rows_are_taken_as_they_are(model: convserve.Model, stub: ConvserveStub, tell_height: bool) -> None:
    x = np.random.default_rng(8).standard_normal((75, 61, 1)).astype(np.float32)
    responses = list(stub.ScoreMap(row_requests(x, tell_height=tell_height, model="digits")))
    assert scores_of(responses) == model.score_map(x.transpose(2, 0, 1)[None]).scores.tobytes()


@pytest.mark.parametrize("height", [17, 20, 48])
@pytest.mark.parametrize("tell_height", [True, False])
@pytest.mark.parametrize("stride", [None, (6, 4), (1, 2), (1, 6)])
def test_a_padded_network_tells_its_ring_at_the_end_at_the_latest(
    padded: convserve.Model, stub: ConvserveStub, height: int, tell_height: bool, stride: tuple[int, int] | None
) -> None:
    x = np.random.default_rng(8).standard_normal((height, 40, 3)).astype(np.float32)
    responses = list(stub.ScoreMap(row_requests(x, tell_height=tell_height, model="padded", stride=stride)))
    local = padded.score_map(x.transpose(2, 0, 1)[None], stride=stride)
    assert scores_of(responses) == local.scores.tobytes()
    geometry = codec.completed_geometry(
        codec.geometry_from_message(responses[0].geometry), responses[-1].completion
    )
    for name in ("rows", "cols", "stride", "window", "offset", "exactness", "ring", "classes", "labels"):
        assert getattr(geometry, name) == getattr(local, name), name
    if tell_height:
        assert vars(codec.geometry_from_message(responses[0].geometry)) == vars(geometry)


@pytest.mark.parametrize("stride", [(4, 4), (8, 4), (12, 20), (400, 400)])
@pytest.mark.parametrize("form", ["file", "rows"])
def test_a_coarser_stride_keeps_every_so_many_positions(
    model: convserve.Model, stub: ConvserveStub, stride: tuple[int, int], form: str
) -> None:
    options = {"model": "digits", "stride": stride, "classes": [3, "no digit"]}
    requests = image_requests(PAGE.read_bytes(), **options) if form == "file" else row_requests(PIXELS, **options)
    responses = list(stub.ScoreMap(requests))
    local = model.score_map(PAGE, stride=stride, classes=[3, "no digit"])
    assert scores_of(responses) == local.scores.tobytes()
    geometry = responses[0].geometry
    assert (geometry.rows, geometry.cols) == local.scores.shape[:2]
    assert (geometry.stride.vertical, geometry.stride.horizontal) == stride
    assert list(geometry.labels) == ["3", "no digit"]


@pytest.mark.parametrize("stride", [(1, 1), (2, 4), (1, 2), (2, 8), (12, 2)])
@pytest.mark.parametrize("form", ["file", "rows", "rows of an unknown height"])
@pytest.mark.parametrize("at_once", [1, 50])
def test_a_finer_stride_merges_shifted_passes_in_step(
    model: convserve.Model, stub: ConvserveStub, stride: tuple[int, int], form: str, at_once: int
) -> None:
    pixels = PIXELS[:67, :59]
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(file, "PNG")
    options: dict[str, Any] = {"model": "digits", "stride": stride, "classes": [3, 7]}
    if form == "file":
        requests = image_requests(file.getvalue(), **options)
    else:
        requests = row_requests(pixels, at_once=at_once, tell_height=form == "rows", **options)
    responses = list(stub.ScoreMap(requests))
    local = model.score_map(pixels, stride=stride, classes=[3, 7])
    assert scores_of(responses) == local.scores.tobytes()
    geometry = codec.completed_geometry(codec.geometry_from_message(responses[0].geometry), responses[-1].completion)
    assert (geometry.rows, geometry.cols, geometry.stride) == (local.rows, local.cols, local.stride)
    first_rows = [response.rows.first_row for response in responses[1:-1]]
    assert first_rows == list(np.cumsum([0, *(response.rows.rows for response in responses[1:-2])]))
    assert len(first_rows) > 1 or local.rows <= 4


@pytest.mark.parametrize("shape", [(28, 28), (29, 28), (28, 30), (31, 33)])
def test_a_finer_stride_over_an_image_of_few_positions(
    model: convserve.Model, stub: ConvserveStub, shape: tuple[int, int]
) -> None:
    pixels = PIXELS[: shape[0], : shape[1]]
    for tell_height in (True, False):
        requests = row_requests(pixels, at_once=3, tell_height=tell_height, model="digits", stride=(1, 1))
        local = model.score_map(pixels, stride=1)
        assert scores_of(list(stub.ScoreMap(requests))) == local.scores.tobytes()


def test_scores_come_before_the_image_has_ended(model: convserve.Model, stub: ConvserveStub) -> None:
    requests = list(row_requests(PIXELS, at_once=8, tell_height=False, model="digits"))
    seen = threading.Event()
    sent = []

    def half_then_the_rest() -> Iterator[pb.ScoreMapRequest]:
        for request in requests:
            if len(sent) == len(requests) // 2:
                assert seen.wait(20)
            sent.append(request)
            yield request

    call = stub.ScoreMap(half_then_the_rest())
    early = [next(call), next(call), next(call)]
    assert len(sent) <= len(requests) // 2
    seen.set()
    assert kinds_of(early) == ["geometry", "rows", "rows"]
    assert scores_of(early + list(call)) == model.score_map(PAGE).scores.tobytes()


def test_a_request_may_lower_the_memory_budget_and_not_raise_it(model: convserve.Model) -> None:
    small = convserve.load(BUNDLED / "digits.convserve", memory_budget="400KiB")
    with running_server({"small": small}) as address, stub_of(address) as stub:
        for budget, most in ((0, 400 << 10), (1 << 30, 400 << 10), (280 << 10, 280 << 10)):
            responses = list(stub.ScoreMap(row_requests(PIXELS, memory_budget=budget)))
            plan = responses[0].geometry.plan
            assert plan.arena + plan.scratch <= most
            assert scores_of(responses) == model.score_map(PAGE).scores.tobytes()
        with pytest.raises(grpc.RpcError) as error:
            list(stub.ScoreMap(row_requests(PIXELS, memory_budget=1000)))
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION


# ---- models and plans


def test_models_are_listed_as_they_are(model: convserve.Model, stub: ConvserveStub) -> None:
    models = [summary_from_message(one) for one in stub.ListModels(pb.ListModelsRequest()).models]
    assert models[0] == {
        "name": "digits",
        "version": "1",
        "state": "READY",
        "reason": None,
        "window": [28, 28],
        "channels": 1,
        "classes": 11,
        "labels": model.labels,
    }
    assert (models[1]["name"], models[1]["channels"], models[1]["labels"]) == ("padded", 3, None)


@pytest.mark.parametrize("name", ["digits", "padded"])
def test_a_description_is_the_models_own(
    model: convserve.Model, padded: convserve.Model, stub: ConvserveStub, name: str
) -> None:
    found = description_from_message(stub.DescribeModel(pb.DescribeModelRequest(model=name)))
    asked = {"digits": model, "padded": padded}[name]
    described = asked.describe().to_dict()

    def as_json(value: object) -> object:
        if isinstance(value, dict):
            return {key: as_json(one) for key, one in value.items()}
        return [as_json(one) for one in value] if isinstance(value, tuple | list) else value

    for key, value in described.items():
        if key != "network":
            assert found[key] == as_json(value), key
    assert found["preprocess"] == (as_json(asked.preprocess.to_dict()) if asked.preprocess else None)
    assert len(found["layers"]) > 3


@pytest.mark.parametrize("size", [(28, 28), (400, 300), (16384, 16384)])
@pytest.mark.parametrize("hold_scores", [False, True])
def test_plans_are_the_models_own(
    model: convserve.Model, stub: ConvserveStub, size: tuple[int, int], hold_scores: bool
) -> None:
    request = pb.PlanMemoryRequest(model="digits", height=size[0], width=size[1], hold_scores=hold_scores)
    response = stub.PlanMemory(request)
    plan = model.plan(*size, hold_scores=hold_scores)
    assert response.total == plan.total_bytes
    assert codec.plan_from_message(response.plan).total_bytes == plan.total_bytes
    assert response.plan.weights == plan.weight_bytes
    assert response.threads == plan.threads
    assert bool(response.plan.scores) == hold_scores


def test_a_plan_that_does_not_fit_names_the_bytes_that_would_do(stub: ConvserveStub) -> None:
    request = pb.PlanMemoryRequest(model="digits", height=400, width=400, memory_budget=4096)
    with pytest.raises(grpc.RpcError) as error:
        stub.PlanMemory(request)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    found = re.search(r"at least ([\d,]+) bytes", error.value.details())
    assert found
    enough = int(found[1].replace(",", ""))
    request.memory_budget = enough
    assert stub.PlanMemory(request).total <= enough


# ---- many at once


def test_a_thousand_mixed_requests_of_eight_threads_get_the_answers_of_one(model: convserve.Model) -> None:
    rng = np.random.default_rng(11)
    fields = [rng.integers(0, 256, (28, 28, 1), np.uint8) for _ in range(10)]
    pages = [rng.integers(0, 256, (40 + 9 * n, 90 - 7 * n, 1), np.uint8) for n in range(6)]
    predictions = [model.classify(field) for field in fields]
    maps = [model.score_map(page).scores.tobytes() for page in pages]
    total = model.plan(300, 200).total_bytes

    def ask(number: int) -> bool:
        page = pages[number % 6]
        match number % 5:
            case 0:
                return scores_of(list(stub.ScoreMap(row_requests(page, at_once=1 + number % 40)))) == maps[number % 6]
            case 1:
                rows = row_requests(page, tell_height=False)
                return scores_of(list(stub.ScoreMap(rows))) == maps[number % 6]
            case 2:
                return stub.PlanMemory(pb.PlanMemoryRequest(height=300, width=200)).total == total
        return client.classify(fields[number % 10]) == predictions[number % 10]

    with (
        running_server({"digits": model}) as address,
        Client(address) as client,
        stub_of(address) as stub,
        ThreadPoolExecutor(8) as pool,
    ):
        assert all(pool.map(ask, range(1000)))


# ---- reflection


def test_reflection_tells_services_and_messages(address: str) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="convserve.v1.Convserve"),
    ]
    with grpc.insecure_channel(address) as channel:
        services, files = ServerReflectionStub(channel).ServerReflectionInfo(iter(requests))
    names = {service.name for service in services.list_services_response.service}
    assert names == {
        "convserve.v1.Convserve",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }
    found = [FileDescriptorProto.FromString(file) for file in files.file_descriptor_response.file_descriptor_proto]
    methods = {method.name for file in found for service in file.service for method in service.method}
    assert methods == {"Classify", "ScoreMap", "ListModels", "DescribeModel", "PlanMemory"}
