"""Bad requests of the Open Inference Protocol: the right status, one clear sentence, and the next good one answered."""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference_calls import Calls, array_of, calls_of, request_of
from refusals import DIGIT, HUGE, INVALID, LIMITS, PAGE, refused
from serving import running_server

import convserve
from convserve.errors import ConvserveError
from convserve.wire.infer import MOST_ELEMENTS, MOST_TENSORS
from convserve.wire.infer_messages import request_from_message
from convserve.wire.open_inference import METHODS
from convserve.wire.open_inference import messages as oip

MISSING, TOO_LARGE = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
X = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)


@pytest.fixture(scope="module")
def limits() -> dict[str, int]:
    return LIMITS


@pytest.fixture(scope="module")
def good(model: convserve.Model, calls: Calls) -> Callable[[], None]:
    expected = model.run(X)
    return lambda: np.testing.assert_array_equal(array_of(calls.infer("image", X)), expected)


def tensor(datatype: str, shape: Any, raw: bytes, name: str = "image") -> Any:
    request = oip.ModelInferRequest(model_name="digits", raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def with_contents(datatype: str, shape: Any, **contents: Any) -> Any:
    request = oip.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype=datatype, shape=shape, contents=oip.InferTensorContents(**contents))
    return request


def changed(change: Callable[[Any], Any]) -> Any:
    request = request_of("image", X)
    change(request)
    return request


ONE = [1, 1, 28, 28]
TENSORS = {
    "no bytes": (tensor("FP32", ONE, b""), "3136"),
    "a byte too few": (tensor("FP32", ONE, bytes(3135)), "3135"),
    "a byte too many": (tensor("FP32", ONE, bytes(3137)), "3137"),
    "the bytes of half precision": (tensor("FP32", ONE, bytes(1568)), "1568"),
    "a negative size": (tensor("FP32", [-1, 1, 28, 28], bytes(3136)), "[-1, 1, 28, 28]"),
    "two negative sizes": (tensor("FP32", [1, 1, -28, -28], bytes(3136)), "at least 1"),
    "a size of 0": (tensor("FP32", [0, 1, 28, 28], b""), "at least 1"),
    "an overflowing shape": (tensor("FP32", [1 << 4, (1 << 60) + 2, 1, 1], bytes(128)), "bytes"),
    "a product that wraps to 0": (tensor("FP32", [1 << 32, 1 << 32, 1, 1], b""), "bytes"),
    "huge sizes": (tensor("UINT8", [HUGE, HUGE, HUGE, HUGE], bytes(1)), "bytes"),
    "no axes": (tensor("FP32", [], bytes(4)), "0 axes"),
    "many axes": (tensor("FP32", [1] * 100_000, bytes(4)), "100000 axes"),
    "another window": (tensor("FP32", [1, 1, 28, 27], bytes(4 * 28 * 27)), "(N, 1, 28, 28)"),
    "another number of channels": (tensor("FP32", [1, 3, 28, 28], bytes(3 * 3136)), "(N, 1, 28, 28)"),
    "axes in another order": (tensor("FP32", [1, 28, 28, 1], bytes(3136)), "(N, 1, 28, 28)"),
    "pixels of three axes": (tensor("UINT8", [28, 28, 1], bytes(784)), "[N, H, W, C]"),
    "pixels of two channels": (tensor("UINT8", [1, 28, 28, 2], bytes(1568)), ""),
    "many images": (tensor("FP16", [MOST_ELEMENTS + 1, 1, 1, 1], bytes(2 * MOST_ELEMENTS + 2)), "1025"),
    "an unknown datatype": (tensor("FLOAT", ONE, bytes(3136)), "FLOAT"),
    "a datatype in small letters": (tensor("fp32", ONE, bytes(3136)), "fp32"),
    "no datatype": (tensor("", ONE, bytes(3136)), "datatype"),
    "a giant datatype": (tensor("F" * 100_000, ONE, bytes(3136)), "FFFF"),
    "a datatype that no network reads": (tensor("FP64", ONE, bytes(6272)), "FP64"),
    "whole numbers": (tensor("INT32", ONE, bytes(3136)), "INT32"),
    "another name": (tensor("FP32", ONE, bytes(3136), "data"), "'data'"),
    "no name": (tensor("FP32", ONE, bytes(3136), ""), "''"),
    "a giant name": (tensor("FP32", ONE, bytes(3136), "n" * 1_000_000), "nnn"),
    "a name with a line's end": (tensor("FP32", ONE, bytes(3136), "a\n\x00b"), "a\\n"),
    "files that are none": (tensor("BYTES", [1], b"\x04\0\0\0none"), "image"),
    "a file without its length": (tensor("BYTES", [1], DIGIT), "bytes long"),
    "a length without its file": (tensor("BYTES", [1], b"\xff\xff\xff\xff"), "4294967295"),
    "half a length": (tensor("BYTES", [1], b"\x00\x00"), "end before"),
    "fewer files than the shape": (tensor("BYTES", [2], b"\x00\0\0\0"), "end before"),
    "more files than the shape": (tensor("BYTES", [1], b"\x00\0\0\0\x00\0\0\0"), "left behind"),
    "an empty file": (tensor("BYTES", [1], b"\x00\0\0\0"), ""),
    "many files": (tensor("BYTES", [1 << 40], b""), "1099511627776"),
    "files of a square": (tensor("BYTES", [2, 2], b"\x00\0\0\0" * 4), "[N] or [N, 1]"),
    "typed: too few": (with_contents("FP32", ONE, fp32_contents=[0.0] * 783), "783"),
    "typed: too many": (with_contents("FP32", ONE, fp32_contents=[0.0] * 785), "785"),
    "typed: another field": (with_contents("FP32", ONE, fp64_contents=[0.0] * 784), "fp64_contents"),
    "typed: two fields": (with_contents("UINT8", ONE, uint_contents=[0], int_contents=[0]), "int_contents"),
    "typed: half precision": (with_contents("FP16", ONE, uint_contents=[0] * 784), "raw"),
    "typed: more than a byte": (with_contents("UINT8", [1, 1, 1, 1], uint_contents=[256]), "256"),
    "typed: nothing": (with_contents("FP32", ONE), "784"),
    "neither raw nor typed": (changed(lambda r: r.ClearField("raw_input_contents")), "neither"),
    "raw and typed": (changed(lambda r: r.inputs[0].contents.fp32_contents.append(0)), "one of the two"),
    "raw and an empty typed": (changed(lambda r: r.inputs[0].contents.SetInParent()), "one of the two"),
    "more raw contents than inputs": (changed(lambda r: r.raw_input_contents.append(b"")), "2 raw contents"),
    "fewer raw contents than inputs": (changed(lambda r: r.inputs.add(name="b")), "2 inputs"),
    "no input": (changed(lambda r: (r.ClearField("inputs"), r.ClearField("raw_input_contents"))), "'image'"),
    "an input twice": (
        changed(lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(X.tobytes()))),
        "2 times",
    ),
    "many inputs": (changed(lambda r: [r.inputs.add() for _ in range(9999)]), str(MOST_TENSORS)),
    "many outputs": (changed(lambda r: [r.outputs.add(name="probabilities") for _ in range(9999)]), str(MOST_TENSORS)),
    "an input in shared memory": (
        changed(lambda r: r.inputs[0].parameters["shared_memory_region"].SetInParent()),
        "shared memory",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_bad_tensors(calls: Calls, good: Callable[[], None], case: str) -> None:
    request, text = TENSORS[case]
    refused(lambda: calls.ModelInfer(request, timeout=20), INVALID, text)
    good()


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown output": ({"outputs": {"logits": {}}}, "'logits'"),
    "classification below 0": ({"outputs": {"probabilities": {"classification": -1}}}, "-1"),
    "classification as text": ({"outputs": {"probabilities": {"classification": "3"}}}, "'3'"),
    "an output to shared memory": ({"outputs": {"probabilities": {"shared_memory_region": "a"}}}, "shared memory"),
    "no memory": ({"memory_limit_bytes": 0}, "memory_limit_bytes"),
    "memory as text": ({"memory_limit_bytes": "64MiB"}, "'64MiB'"),
    "a negative timeout": ({"timeout": -1}, "timeout"),
    "a negative priority": ({"priority": -1}, "priority"),
    "dense as a number": ({"dense": 1}, "dense"),
    "a stride without a map": ({"dense_stride": 4}, "dense: true"),
    "a misspelt parameter": ({"dense": True, "dense_strides": 4}, "dense_strides"),
    "a stride of 0": ({"dense": True, "dense_stride": 0}, "dense_stride"),
    "a stride that fits nothing": ({"dense": True, "dense_stride": 3}, "stride"),
    "three strides": ({"dense": True, "dense_stride": "1,2,3"}, "dense_stride"),
    "a stride of digits": ({"dense": True, "dense_stride": "9" * 5000}, "dense_stride"),
    "no classes": ({"dense": True, "dense_classes": ""}, "dense_classes"),
    "an unknown class": ({"dense": True, "dense_classes": "cat"}, "cat"),
    "a class beyond": ({"dense": True, "dense_classes": 11}, "11"),
    "best of no class": ({"dense": True, "dense_top": 0}, "top is 0"),
    "best of a text": ({"dense": True, "dense_top": "5"}, "top is '5'"),
    "a number for a flag": ({"dense": True, "dense_argmax": 1}, "dense_argmax"),
    "two reductions": ({"dense": True, "dense_argmax": True, "dense_top": 2}, "argmax"),
    "an unknown dtype": ({"dense": True, "dense_dtype": "int8"}, "'int8'; allowed: float32, float16, uint8"),
    "bytes without a range": ({"dense": True, "dense_dtype": "uint8"}, "value_range"),
    "half a range": ({"dense": True, "dense_dtype": "uint8", "dense_value_range": "1"}, "dense_value_range"),
    "a number for a range": ({"dense": True, "dense_dtype": "uint8", "dense_value_range": 1}, "dense_value_range"),
    "an endless range": ({"dense": True, "dense_dtype": "uint8", "dense_value_range": "0,inf"}, "value_range"),
    "an unknown method": ({"dense": True, "dense_method": "magic"}, "'magic'; allowed: auto"),
    "a long edge": ({"dense": True, "dense_edge": "e" * 5000}, "dense_edge"),
    "an unknown edge": ({"dense": True, "dense_edge": "wrap"}, "'wrap'; allowed: none, pad, align"),
    "an edge without a map": ({"dense_edge": "pad"}, "dense: true"),
    "classes of a map": ({"dense": True, "outputs": {"probabilities": {"classification": 1}}}, "classification"),
    "another output of a map": ({"dense": True, "outputs": {"logits": {}}}, "'logits'"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(calls: Calls, good: Callable[[], None], case: str) -> None:
    options, text = OPTIONS[case]
    refused(lambda: calls.infer("image", X, **options), INVALID, text)
    good()


def test_an_output_asked_for_twice(calls: Calls, good: Callable[[], None]) -> None:
    request = request_of("image", X, outputs={"probabilities": {}})
    request.outputs.add(name="probabilities")
    refused(lambda: calls.ModelInfer(request), INVALID, "twice")
    good()


MAPS = {
    "two images": (np.zeros((2, 40, 40, 1), np.uint8), "one image"),
    "two files": ([PAGE, PAGE], "one image"),
    "values of three axes": (np.zeros((1, 40, 40), np.float32), "one image"),
    "smaller than a window": (np.zeros((1, 20, 40, 1), np.uint8), "20"),
    "channels that no image has": (np.zeros((1, 40, 40, 7), np.uint8), "7"),
    "values of other channels": (np.zeros((1, 3, 40, 40), np.float32), "3"),
    "no image": ([b"none"], "image"),
}


@pytest.mark.parametrize("case", MAPS)
def test_bad_maps(calls: Calls, good: Callable[[], None], case: str) -> None:
    contents, text = MAPS[case]
    request = request_of("image", contents, dense=True)  # type: ignore[arg-type]
    refused(lambda: calls.ModelInfer(request), INVALID, text)
    [answer] = calls.ModelStreamInfer(iter([request]), timeout=20)
    assert text in answer.error_message
    good()


def test_a_map_that_no_answer_holds_comes_in_parts(calls: Calls, good: Callable[[], None]) -> None:
    pixels = np.zeros((1, 900, 900, 1), np.uint8)
    refused(lambda: calls.infer("image", pixels, dense=True), TOO_LARGE, "ModelStreamInfer", "2097152")
    *blocks, _ = calls.ModelStreamInfer(iter([request_of("image", pixels, dense=True)]), timeout=60)
    rows = (900 - 28) // 4 + 1
    assert sum(block.infer_response.outputs[0].shape[0] for block in blocks) == rows
    good()


def test_a_budget_that_nothing_fits(calls: Calls, good: Callable[[], None]) -> None:
    for contents, dense in ((X, {}), ([PAGE], {"dense": True})):
        refused(lambda: calls.infer("image", contents, memory_limit_bytes=10, **dense), TOO_LARGE, "10")  # noqa: B023
    good()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize(
    ("name", "version", "code"),
    [
        ("cats", "", MISSING),
        ("../digits", "", MISSING),
        ("d" * 1_000_000, "", MISSING),
        ("digits\x00", "", MISSING),
        ("digits", "2", MISSING),
        ("digits", "9" * 18, MISSING),
        ("digits", "9" * 20_000, INVALID),
        ("digits", "-1", INVALID),
        ("digits", "1.0", INVALID),
        ("digits", "latest", INVALID),
        ("digits", "\u0661", INVALID),
    ],
    ids=lambda value: str(value)[:12],
)
def test_models_and_versions_that_do_not_exist(
    calls: Calls, good: Callable[[], None], method: str, name: str, version: str, code: grpc.StatusCode
) -> None:
    fields = ("model_name", "model_version") if method == "ModelInfer" else ("name", "version")
    request = METHODS[method].request(**dict(zip(fields, (name, version), strict=True)))
    refused(lambda: getattr(calls, method)(request, timeout=20), code)
    good()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.streams])
def test_bytes_that_are_no_message(calls: Calls, good: Callable[[], None], name: str) -> None:
    for garbage in (b"\xff" * 40, b"\x0b" * 5000, b"\x2a\xff\xff\xff\xff\x0f"):
        refused(lambda: calls.raw(name)(garbage, timeout=20), INVALID, name)  # noqa: B023
    good()


def test_bytes_that_are_no_message_in_a_stream(calls: Calls, model: convserve.Model) -> None:
    stream = calls._channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer", None, oip.ModelStreamInferResponse.FromString
    )
    bad, answer = stream(iter([b"\xff" * 40, request_of("image", X).SerializeToString()]), timeout=20)
    assert "no request" in bad.error_message
    assert np.array_equal(array_of(answer.infer_response), model.run(X))


@pytest.mark.parametrize(
    "name", ["SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "TraceSetting", "LogSettings"]
)
def test_what_is_not_offered_says_so(calls: Calls, name: str) -> None:
    refused(lambda: calls.raw(name)(b"\x0a\x03abc", timeout=20), grpc.StatusCode.UNIMPLEMENTED)


def test_a_message_longer_than_allowed(calls: Calls, good: Callable[[], None]) -> None:
    x = np.zeros((1000, 1, 28, 28), np.float32)
    refused(lambda: calls.infer("image", x), grpc.StatusCode.RESOURCE_EXHAUSTED)
    good()


def test_a_repository_of_another_name(calls: Calls) -> None:
    refused(lambda: calls.RepositoryIndex(oip.RepositoryIndexRequest(repository_name="/etc")), INVALID, "/etc")


# ---- patience


def test_a_deadline_and_a_timeout_of_the_request(calls: Calls, good: Callable[[], None]) -> None:
    refused(lambda: calls.infer("image", X, timeout=1), grpc.StatusCode.DEADLINE_EXCEEDED)
    good()


def test_a_thousand_tiny_requests_of_one_stream(calls: Calls, model: convserve.Model) -> None:
    requests = (oip.ModelInferRequest(id=str(number)) for number in range(1000))
    answers = list(calls.ModelStreamInfer(requests, timeout=60))
    assert [one.infer_response.id for one in answers] == [str(number) for number in range(1000)]
    assert all("input" in one.error_message for one in answers)


def test_streams_that_only_stay_open_are_bounded_and_disturb_nobody(model: convserve.Model) -> None:
    with running_server({"digits": model}, max_running=1, max_waiting=2) as address, calls_of(address) as calls:
        done = threading.Event()

        def silent() -> Iterator[Any]:
            yield request_of("image", X)
            done.wait(30)

        streams = [calls.ModelStreamInfer(silent()) for _ in range(3)]
        for stream in streams:
            assert next(stream).error_message == ""
        refused(lambda: list(calls.ModelStreamInfer(silent())), grpc.StatusCode.RESOURCE_EXHAUSTED, "streams")
        assert np.array_equal(array_of(calls.infer("image", X)), model.run(X))
        streams[0].cancel()
        refusals = 0
        while True:
            stream = calls.ModelStreamInfer(iter([request_of("image", X)]), timeout=20)
            with suppress(grpc.RpcError):
                list(stream)
            if stream.code() == grpc.StatusCode.OK:
                break
            assert stream.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            refusals += 1
            assert refusals < 1000
        done.set()


def test_streams_that_wait_end_when_the_server_stops(model: convserve.Model) -> None:
    done = threading.Event()

    def silent() -> Iterator[Any]:
        yield request_of("image", X)
        done.wait(30)

    with running_server({"digits": model}) as address:
        channel = grpc.insecure_channel(address)
        stream = Calls(channel).ModelStreamInfer(silent())
        next(stream)
    refused(lambda: next(stream), grpc.StatusCode.UNAVAILABLE, "stop")
    done.set()
    channel.close()


def test_a_storm_of_cancelled_calls_leaves_the_server_answering(address: str, good: Callable[[], None]) -> None:
    def storm(seed: int) -> None:
        with calls_of(address) as calls:
            for number in range(20):
                if (seed + number) % 2:
                    calls.ModelInfer.future(request_of("image", [PAGE], dense=True, dense_stride=1)).cancel()
                else:
                    stream = calls.ModelStreamInfer(iter([request_of("image", [PAGE], dense=True)] * 3))
                    if number % 4:
                        next(stream)
                    stream.cancel()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(storm, range(6)))
    for _ in range(5):
        good()


# ---- any bytes and any shapes


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    datatype=st.sampled_from(["FP32", "FP16", "UINT8", "BYTES", "BOOL", "x"]),
    shape=st.lists(st.integers(-(1 << 63), HUGE) | st.integers(-1, 5), max_size=6),
    raw=st.binary(max_size=64),
    typed=st.booleans(),
)
def test_any_tensor_is_taken_or_refused(datatype: str, shape: list[int], raw: bytes, typed: bool) -> None:
    request = tensor(datatype, shape, raw)
    if typed:
        request.ClearField("raw_input_contents")
        request.inputs[0].contents.bytes_contents.append(raw)
    said = ""
    try:
        [found] = request_from_message(request).inputs
    except ConvserveError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert len(said) < 1000
    elif isinstance(found.contents, np.ndarray):
        assert found.shape == tuple(shape)
        assert found.contents.nbytes == len(raw)
    else:
        assert len(found.contents) == math.prod(shape)
