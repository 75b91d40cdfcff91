"""The Open Inference Protocol over a real socket: the answers of every method."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from builder import Builder
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from inference_calls import Calls, array_of, calls_of, request_of, set_parameters, strings_of
from model_folders import add_version, put_garbage
from PIL import Image
from refusals import refused
from serving import running_server

import convserve
from convserve.graph.ir import Volume
from convserve.images import decode
from convserve.server import ModelFolder, Repository
from convserve.wire.infer_messages import request_from_message
from convserve.wire.open_inference import FILE, OPEN_INFERENCE
from convserve.wire.open_inference import messages as oip

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE = (BUNDLED / "digit.png").read_bytes(), (BUNDLED / "page.png").read_bytes()
PIXELS = decode(PAGE, channels="gray")


def two_outputs() -> convserve.Model:
    build = Builder(Volume(3, 12, 10), seed=4, name="two")
    x = build.conv(build.input, 6, 3, pads=1, activation="relu")
    return convserve.load(build.graph(build.conv(x, 5, (12, 10)), build.pool("MaxPool", x, 2, strides=2)))


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(BUNDLED / "digits.convserve")


@pytest.fixture(scope="module")
def two() -> convserve.Model:
    return two_outputs()


@pytest.fixture(scope="module")
def address(model: convserve.Model, two: convserve.Model) -> Iterator[str]:
    with running_server({"digits": model, "two": two}) as address:
        yield address


@pytest.fixture(scope="module")
def calls(address: str) -> Iterator[Calls]:
    with calls_of(address) as calls:
        yield calls


def digits(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 1, 28, 28), np.float32)


# ---- the server and its models


def test_the_server_and_its_models_are_ready(calls: Calls) -> None:
    assert calls.ServerLive(oip.ServerLiveRequest()).live
    assert calls.ServerReady(oip.ServerReadyRequest()).ready
    for name, version, ready in [("digits", "", True), ("two", "1", True), ("two", "2", False), ("cats", "", False)]:
        assert calls.ModelReady(oip.ModelReadyRequest(name=name, version=version)).ready == ready


def test_the_server_tells_its_version_and_extensions(calls: Calls) -> None:
    told = calls.ServerMetadata(oip.ServerMetadataRequest())
    assert (told.name, told.version) == ("convserve", convserve.__version__)
    assert "statistics" in told.extensions


def test_metadata_and_configuration_tell_what_a_model_reads_and_gives(calls: Calls, two: convserve.Model) -> None:
    told = calls.ModelMetadata(oip.ModelMetadataRequest(name="two"))
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [
        (two.graph.input_name, "FP32", [-1, 3, 12, 10])
    ]
    first, second = (output.name for output in two.graph.outputs)
    assert [(one.name, list(one.shape)) for one in told.outputs] == [(first, [-1, 5, 1, 1]), (second, [-1, 6, 6, 5])]
    assert list(told.versions) == ["1"]
    config = calls.ModelConfig(oip.ModelConfigRequest(name="two")).config
    assert [list(one.dims) for one in config.input] == [[3, 12, 10]]
    assert [list(one.dims) for one in config.output] == [[5, 1, 1], [6, 6, 5]]
    assert config.max_batch_size > 1
    assert "UINT8" in config.parameters["input_pixels"].string_value


def test_the_index_has_every_model(calls: Calls) -> None:
    models = calls.RepositoryIndex(oip.RepositoryIndexRequest(ready=True)).models
    assert [(one.name, one.version, one.state) for one in models] == [("digits", "1", "READY"), ("two", "1", "READY")]


def test_models_are_loaded_and_unloaded_while_others_answer(tmp_path: Path, model: convserve.Model) -> None:
    add_version(tmp_path, "small", 2, seed=1)
    bad = add_version(tmp_path, "bad", 1)
    put_garbage(bad / "model.convserve")
    models = Repository({"digits": model}, ModelFolder(tmp_path))
    models.refresh()
    x = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    with running_server(models) as address, calls_of(address) as calls:

        def states(*, ready: bool = False) -> dict[str, str]:
            index = calls.RepositoryIndex(oip.RepositoryIndexRequest(ready=ready)).models
            assert all(bool(one.reason) == (one.state != "READY") for one in index)
            assert not any(str(tmp_path) in one.reason for one in index)
            return {f"{one.name}/{one.version}": one.state for one in index}

        before = {"digits/1": "READY", "small/2": "READY", "bad/1": "UNAVAILABLE"}
        assert states() == before
        assert "bad/1" not in states(ready=True)
        add_version(tmp_path, "small", 3, seed=2)
        assert states() == before
        first = calls.infer("x", x, model="small")
        calls.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="small"), timeout=20)
        second = calls.infer("x", x, model="small")
        assert (first.model_version, second.model_version) == ("2", "3")
        assert first.raw_output_contents != second.raw_output_contents
        assert calls.ModelMetadata(oip.ModelMetadataRequest(name="small")).versions[-1] == "3"
        unload = oip.RepositoryModelUnloadRequest(model_name="small")
        unload.parameters["unload_dependents"].bool_param = False
        calls.RepositoryModelUnload(unload, timeout=20)
        assert not calls.ModelReady(oip.ModelReadyRequest(name="small")).ready
        refused(lambda: calls.infer("x", x, model="small"), grpc.StatusCode.NOT_FOUND, "not loaded")
        load = oip.RepositoryModelLoadRequest
        refused(lambda: calls.RepositoryModelLoad(load(model_name="bad")), grpc.StatusCode.FAILED_PRECONDITION)
        for name in ("cats", "../small", "", "/etc"):
            request = load(model_name=name)
            refused(lambda: calls.RepositoryModelLoad(request), grpc.StatusCode.NOT_FOUND)  # noqa: B023
        replaced = load(model_name="small")
        replaced.parameters["config"].string_param = "{}"
        refused(lambda: calls.RepositoryModelLoad(replaced), grpc.StatusCode.INVALID_ARGUMENT, "parameters")
        calls.RepositoryModelLoad(load(model_name="small"), timeout=20)
        assert calls.infer("x", x, model="small").raw_output_contents == second.raw_output_contents


def test_statistics_count_images_runs_and_failures(model: convserve.Model) -> None:
    with running_server({"digits": model}) as address, calls_of(address) as calls:
        calls.infer("image", digits(3))
        calls.infer("image", [DIGIT])
        with pytest.raises(Exception, match="no input"):
            calls.infer("picture", [DIGIT])
        calls.infer("image", [PAGE], dense=True)
        [told] = calls.ModelStatistics(oip.ModelStatisticsRequest()).model_stats
        again = calls.ModelStatistics(oip.ModelStatisticsRequest(name="digits", version="1")).model_stats
    assert list(again) == [told]
    assert (told.name, told.version, told.inference_count, told.execution_count) == ("digits", "1", 5, 3)
    stats = told.inference_stats
    assert (stats.success.count, stats.fail.count) == (3, 1)
    assert stats.success.ns >= sum(
        part.ns for part in (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    )
    assert {one.batch_size: one.compute_infer.count for one in told.batch_stats} == {1: 2, 3: 1}
    assert told.last_inference > 1_600_000_000_000
    assert model.storage is not None
    assert told.memory_usage[0].byte_size == model.storage.size_bytes


# ---- values and images in, outputs out


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_values_are_taken_as_they_are(calls: Calls, model: convserve.Model, count: int, typed: bool) -> None:
    x = digits(count)
    response = calls.infer("image", x, typed=typed)
    assert np.array_equal(array_of(response, "probabilities"), model.run(x))
    assert (response.model_name, response.model_version) == ("digits", "1")
    planned, measured = (response.parameters[f"{kind}_bytes"].int64_param for kind in ("planned", "measured"))
    assert planned == measured == model.plan(28, 28, batch=count).total_bytes


def test_half_precision_values_are_widened(calls: Calls, model: convserve.Model) -> None:
    x = digits(2).astype(np.float16)
    assert np.array_equal(array_of(calls.infer("image", x)), model.run(x.astype(np.float32)))


@pytest.mark.parametrize("typed", [False, True])
def test_files_and_pixels_are_preprocessed(calls: Calls, model: convserve.Model, typed: bool) -> None:
    local = {one.index: np.float32(one.score) for one in model.classify(BUNDLED / "digit.png", top=11)}  # type: ignore[union-attr]
    expected = np.array([[local[index] for index in range(11)]] * 2)
    pixels = decode(DIGIT, channels="gray")[None].repeat(2, axis=0)
    for contents in ([DIGIT, DIGIT], pixels, pixels.repeat(3, axis=3)):
        assert np.array_equal(array_of(calls.infer("image", contents, typed=typed)), expected)


def test_ids_are_echoed_and_versions_may_be_named(calls: Calls) -> None:
    for version in ("", "1"):
        request = request_of("image", digits(1))
        request.id, request.model_version = "a request of mine", version
        assert calls.ModelInfer(request).id == "a request of mine"


def test_only_the_outputs_asked_for_come_in_their_order(calls: Calls, two: convserve.Model) -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 12, 10)).astype(np.float32)
    local: Any = two.run(x)
    first, second = local
    for wanted in ([], [first], [second], [second, first]):
        outputs: dict[str, dict[str, Any]] = {name: {} for name in wanted}
        response = calls.infer(two.graph.input_name, x, model="two", outputs=outputs)
        assert [one.name for one in response.outputs] == (wanted or [first, second])
        for name in wanted or [first, second]:
            assert np.array_equal(array_of(response, name), local[name])


def test_classification_gives_value_index_and_label(calls: Calls, model: convserve.Model, two: convserve.Model) -> None:
    for top, expected in ((2, 2), (11, 11), (1000, 11)):
        response = calls.infer("image", [DIGIT], outputs={"probabilities": {"classification": top}})
        local: Any = model.classify(BUNDLED / "digit.png", top=expected)
        assert strings_of(response) == [[f"{one.score:f}:{one.index}:{one.label}" for one in local]]
    x = np.random.default_rng(3).standard_normal((2, 3, 12, 10)).astype(np.float32)
    name = two.graph.outputs[0].name
    texts = strings_of(calls.infer(two.graph.input_name, x, model="two", outputs={name: {"classification": 1}}))
    best = two.run(x, name).reshape(2, 5)  # type: ignore[union-attr]
    assert texts == [[f"{row.max():f}:{row.argmax()}"] for row in best]


def test_nan_and_infinity_go_through(calls: Calls, model: convserve.Model) -> None:
    x = digits(3)
    x[0, 0, 5, 5], x[1, 0, 3, 3] = np.nan, np.inf
    assert np.array_equal(array_of(calls.infer("image", x)), model.run(x), equal_nan=True)


def test_parameters_that_others_mean_change_nothing(calls: Calls, model: convserve.Model) -> None:
    x = digits(1)
    options: dict[str, Any] = {"priority": 3, "timeout": 20_000_000, "headers": "none", "sequence_id": 4}
    assert np.array_equal(array_of(calls.infer("image", x, **options)), model.run(x))


def test_a_call_may_lower_its_memory(calls: Calls, model: convserve.Model) -> None:
    x = digits(4)
    whole = calls.infer("image", x)
    limit = model.plan(28, 28).total_bytes
    small = calls.infer("image", x, memory_limit_bytes=limit)
    assert small.parameters["measured_bytes"].int64_param <= limit < whole.parameters["measured_bytes"].int64_param
    assert small.raw_output_contents == whole.raw_output_contents


# ---- score maps


def contents_of(form: str) -> Any:
    if form == "values":
        return np.random.default_rng(8).standard_normal((1, 1, 75, 61)).astype(np.float32)
    return [PAGE] if form == "file" else PIXELS[None]


@pytest.mark.parametrize("form", ["file", "pixels", "values"])
@pytest.mark.parametrize("options", [{}, {"dense_stride": 2}, {"dense_stride": "8,4", "dense_classes": "3; no digit"}])
def test_a_score_map_is_one_output(calls: Calls, model: convserve.Model, form: str, options: dict[str, Any]) -> None:
    contents = contents_of(form)
    response = calls.infer("image", contents, dense=True, **options)
    image = contents if form == "values" else BUNDLED / "page.png"
    stride = {2: 2, "8,4": (8, 4)}.get(options.get("dense_stride", 0))
    local = model.score_map(image, stride=stride, classes=[3, "no digit"] if "dense_classes" in options else None)
    assert np.array_equal(array_of(response, "probabilities"), local.scores)
    told = {name: one.int64_param or one.string_param for name, one in response.parameters.items()}
    assert (told["rows"], told["cols"]) == local.scores.shape[:2]
    for name in ("stride", "window", "offset", "ring"):
        assert told[name] == ",".join(map(str, getattr(local, name)))
    assert told["exactness"] == local.exactness
    assert told.get("classes") == ("3,10" if "dense_classes" in options else None)
    assert told["measured_bytes"] > 0


def test_a_stream_gives_a_map_in_blocks_and_goes_on(calls: Calls, model: convserve.Model) -> None:
    requests = [request_of("image", contents, dense=True) for contents in ([PAGE], PIXELS[None])]
    requests += [request_of("picture", digits(1)), request_of("image", digits(1))]
    for number, request in enumerate(requests):
        request.id = str(number)
    answers = list(calls.ModelStreamInfer(iter(requests), timeout=20))
    local = model.score_map(BUNDLED / "page.png").scores
    for number in ("0", "1"):
        *blocks, last = [one.infer_response for one in answers if one.infer_response.id == number]
        assert len(blocks) > 1
        assert np.array_equal(np.concatenate([array_of(block) for block in blocks]), local)
        rows = [block.outputs[0].shape[0] for block in blocks]
        assert [block.parameters["first_row"].int64_param for block in blocks] == list(np.cumsum([0, *rows[:-1]]))
        assert not last.outputs
        assert last.parameters["triton_final_response"].bool_param
    failed, good = answers[-2:]
    assert failed.infer_response.id == "2"
    assert "picture" in failed.error_message
    assert good.error_message == ""
    assert np.array_equal(array_of(good.infer_response), model.run(digits(1)))
    assert good.infer_response.parameters["triton_final_response"].bool_param


def test_a_padded_map_of_photos_in_colour(calls: Calls, two: convserve.Model) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (40, 50, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    name = two.graph.outputs[0].name
    local = two.score_map(file.getvalue(), output=name)
    for contents in ([file.getvalue()], photo[None]):
        request = request_of(two.graph.input_name, contents, model="two", dense=True, outputs={name: {}})  # type: ignore[arg-type]
        assert np.array_equal(array_of(calls.ModelInfer(request)), local.scores)


# ---- what others see of it


def test_reflection_tells_the_service(address: str, calls: Calls) -> None:
    stub = ServerReflectionStub(calls._channel)
    ask = reflection_pb2.ServerReflectionRequest
    requests = iter([ask(list_services=""), ask(file_containing_symbol=OPEN_INFERENCE)])
    listed, described = stub.ServerReflectionInfo(requests, timeout=10)
    assert OPEN_INFERENCE in {one.name for one in listed.list_services_response.service}
    assert described.file_descriptor_response.file_descriptor_proto == [FILE.SerializeToString()]


FOREIGN = """
from google.protobuf import descriptor_pb2, descriptor_pool
def foreign():
    # as tritonclient and kserve do: their own file of the protocol, in the pool of all generated modules
    proto = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
    for name in ("ModelInferRequest", "ServerLiveRequest", "ModelConfig"):
        proto.message_type.add(name=name).field.add(name="other", number=1, type=9, label=1)
    proto.service.add(name="GRPCInferenceService")
    descriptor_pool.Default().Add(proto)
    descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
def ours():
    from convserve.wire.infer_messages import request_from_message
    from convserve.wire.open_inference import messages
    assert messages.ModelInferRequest(id="a").id == "a"
"""


@pytest.mark.parametrize("order", ["ours(); foreign()", "foreign(); ours()"])
def test_another_package_of_the_same_name_may_be_in_the_process(order: str) -> None:
    done = subprocess.run([sys.executable, "-c", FOREIGN + order], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_default_pool_stays_free() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")


def test_parameters_of_every_kind_can_be_read() -> None:
    request = request_of("image", digits(1))
    set_parameters(request.parameters, {"a": True, "b": -3, "c": "text", "d": 0.5})
    request.parameters["e"].uint64_param = 1 << 63
    request.parameters["empty"].SetInParent()
    found = request_from_message(request).parameters
    assert found == {"a": True, "b": -3, "c": "text", "d": 0.5, "e": 1 << 63}
