"""The server over a real socket: answers, errors, flow control, cancellation, draining."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from serving import FakeModel, FakeStream, running_server, settled

import convserve
from convserve import errors
from convserve.client import Client
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub
from convserve.wire.status import ERROR_KEY

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE = BUNDLED / "digit.png", BUNDLED / "page.png"
IMAGE = pb.Image(tensor=pb.Tensor(layout=pb.UINT8_HWC, shape=(2, 2, 1), data=bytes(4)))
SMALL = pb.Image(tensor=pb.Tensor(layout=pb.FP32_NCHW, shape=(1, 1, 2, 2), data=bytes(16)))


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(BUNDLED / "digits.convserve")


@pytest.fixture(scope="module")
def address(model: convserve.Model) -> Iterator[str]:
    with running_server({"digits": model}) as address:
        yield address


@contextmanager
def stub_of(address: str) -> Iterator[ConvserveStub]:
    with grpc.insecure_channel(address) as channel:
        yield ConvserveStub(channel)


@contextmanager
def failing(raised: Exception) -> Iterator[ConvserveStub]:
    def classify(images: list[Any], top: int) -> Any:
        raise raised

    with running_server({"fake": FakeModel(classify=classify)}) as address, stub_of(address) as stub:
        yield stub


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()


# ---- answers


def test_classify_answers_as_the_model_does(model: convserve.Model, address: str) -> None:
    with stub_of(address) as stub:
        response = stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=DIGIT.read_bytes())] * 2, top=3))
    local = model.classify(DIGIT, top=3)
    assert response.model == "digits"
    for classification in response.classifications:
        assert [(one.label, one.index, one.score) for one in classification.predictions] == [
            (one.label, one.index, one.score) for one in local
        ]
    plan = model.plan(28, 28)
    assert (response.plan.arena, response.plan.scratch) == (plan.arena_bytes, plan.scratch_bytes)
    assert response.plan.weights == plan.weight_bytes > 0
    assert response.seconds > 0


def test_top_is_five_unless_said(address: str) -> None:
    with stub_of(address) as stub:
        response = stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=DIGIT.read_bytes())]))
    assert len(response.classifications[0].predictions) == 5


def test_preprocessed_values_are_taken_as_they_are(model: convserve.Model, address: str) -> None:
    x = np.random.default_rng(3).random((1, 1, 28, 28), np.float32)
    tensor = pb.Tensor(layout=pb.FP32_NCHW, shape=x.shape, data=x.tobytes())
    with stub_of(address) as stub:
        response = stub.Classify(pb.ClassifyRequest(images=[pb.Image(tensor=tensor)], top=11))
    scores = {one.index: one.score for one in response.classifications[0].predictions}
    y = model.run(x)
    assert isinstance(y, np.ndarray)
    assert [np.float32(scores[index]) for index in range(11)] == list(y.ravel())


def test_a_stream_is_geometry_then_rows_in_order_then_completion(model: convserve.Model, address: str) -> None:
    request = pb.ScoreMapRequest(header=pb.ScoreMapHeader(), image=pb.Image(encoded=PAGE.read_bytes()))
    with stub_of(address) as stub:
        responses = list(stub.ScoreMap(request))
    kinds = [response.WhichOneof("content") for response in responses]
    assert kinds[0] == "geometry"
    assert kinds[-1] == "completion"
    assert set(kinds[1:-1]) == {"rows"}
    rows = [response.rows for response in responses[1:-1]]
    assert len(rows) > 1
    assert [one.first_row for one in rows] == list(np.cumsum([0, *(one.rows for one in rows[:-1])]))
    local = model.score_map(PAGE)
    assert b"".join(one.scores for one in rows) == local.scores.tobytes()
    assert responses[0].geometry.plan.arena == model.score_stream(PAGE).plan.arena_bytes


def test_eight_threads_get_the_answers_of_one(model: convserve.Model, address: str) -> None:
    rng = np.random.default_rng(11)
    fields = [rng.integers(0, 256, (28, 28, 1), np.uint8) for _ in range(10)]
    pages = [rng.integers(0, 256, (40 + 9 * n, 90 - 7 * n, 1), np.uint8) for n in range(6)]
    predictions = [model.classify(field) for field in fields]
    maps = [model.score_map(page).scores for page in pages]

    def ask(number: int) -> bool:
        if number % 3:
            return client.classify(fields[number % 10]) == predictions[number % 10]
        return np.array_equal(client.score_map(pages[number % 6]).scores, maps[number % 6])

    with Client(address) as client, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(240)))


# ---- errors


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (errors.ShapeError("a size"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ImageError("a picture"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ModelNotFoundError("a model"), grpc.StatusCode.NOT_FOUND),
        (errors.MemoryBudgetError("12 bytes"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.RunCancelled("stopped"), grpc.StatusCode.CANCELLED),
        (errors.UnsupportedOpError("an op"), grpc.StatusCode.INTERNAL),
    ],
)
def test_an_exception_of_ours_becomes_its_status_with_its_text(raised: Exception, code: grpc.StatusCode) -> None:
    with failing(raised) as stub, pytest.raises(grpc.RpcError) as error:
        stub.Classify(pb.ClassifyRequest(images=[IMAGE]))
    assert code_of(error) == code
    assert error.value.details() == str(raised)
    assert dict(error.value.trailing_metadata())[ERROR_KEY] == type(raised).__name__


def test_any_other_exception_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with failing(ZeroDivisionError("a secret path")) as stub, caplog.at_level(logging.ERROR, "convserve.server"):
        with pytest.raises(grpc.RpcError) as error:
            stub.Classify(pb.ClassifyRequest(images=[IMAGE]))
        assert code_of(error) == grpc.StatusCode.INTERNAL
        assert error.value.details() == "internal error"
    assert "a secret path" in caplog.text
    assert "Traceback" in caplog.text


def test_an_endless_text_is_cut_so_that_the_status_arrives() -> None:
    with failing(errors.InputError("x" * 100_000)) as stub, pytest.raises(grpc.RpcError) as error:
        stub.Classify(pb.ClassifyRequest(images=[IMAGE]))
    assert code_of(error) == grpc.StatusCode.INVALID_ARGUMENT
    assert set(error.value.details()) == {"x"}


def test_an_exception_in_the_middle_of_a_stream_is_told() -> None:
    stream = FakeStream(rows=9, fail_at=4)
    with (
        running_server({"fake": FakeModel(stream=lambda image, classes: stream)}) as address,
        stub_of(address) as stub,
    ):
        call = stub.ScoreMap(pb.ScoreMapRequest(image=IMAGE))
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    assert code_of(error) == grpc.StatusCode.INTERNAL
    assert error.value.details() == "internal error"
    assert stream.closed.is_set()


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (pb.ClassifyRequest(), grpc.StatusCode.INVALID_ARGUMENT, "0 images"),
        (pb.ClassifyRequest(images=[pb.Image()] * 1025), grpc.StatusCode.INVALID_ARGUMENT, "1025 images"),
        (pb.ClassifyRequest(images=[pb.Image()]), grpc.StatusCode.INVALID_ARGUMENT, "empty"),
        (pb.ClassifyRequest(images=[pb.Image(encoded=b"GIF89a")]), grpc.StatusCode.INVALID_ARGUMENT, "image"),
        (pb.ClassifyRequest(images=[SMALL]), grpc.StatusCode.INVALID_ARGUMENT, "(N, 1, 28, 28)"),
        (pb.ClassifyRequest(model="x" * 9000, images=[IMAGE]), grpc.StatusCode.NOT_FOUND, "digits"),
        (
            pb.ClassifyRequest(images=[pb.Image(tensor=pb.Tensor(layout=1, shape=(2**62, 4, 4), data=b""))]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "shape",
        ),
    ],
)
def test_bad_classify_requests(address: str, request_: pb.ClassifyRequest, code: grpc.StatusCode, text: str) -> None:
    with stub_of(address) as stub:
        with pytest.raises(grpc.RpcError) as error:
            stub.Classify(request_)
        assert code_of(error) == code
        assert text in error.value.details()
        assert stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=DIGIT.read_bytes())])).classifications


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (pb.ScoreMapRequest(), "no image"),
        (pb.ScoreMapRequest(image=pb.Image()), "empty"),
        (pb.ScoreMapRequest(image=IMAGE), "28x28"),
        (
            pb.ScoreMapRequest(
                image=pb.Image(encoded=PAGE.read_bytes()), header=pb.ScoreMapHeader(classes=[pb.ClassChoice(index=11)])
            ),
            "class 11",
        ),
    ],
)
def test_bad_score_map_requests(address: str, request_: pb.ScoreMapRequest, text: str) -> None:
    with stub_of(address) as stub, pytest.raises(grpc.RpcError) as error:
        list(stub.ScoreMap(request_))
    assert code_of(error) == grpc.StatusCode.INVALID_ARGUMENT
    assert text in error.value.details()


def test_a_nameless_request_to_several_models_is_told_their_names() -> None:
    with running_server({"one": FakeModel(), "two": FakeModel()}) as address, stub_of(address) as stub:
        assert stub.Classify(pb.ClassifyRequest(model="two", images=[IMAGE])).model == "two"
        with pytest.raises(grpc.RpcError) as error:
            stub.Classify(pb.ClassifyRequest(images=[IMAGE]))
    assert code_of(error) == grpc.StatusCode.NOT_FOUND
    assert "one, two" in error.value.details()


def test_a_request_longer_than_allowed_is_refused_and_the_server_goes_on() -> None:
    with running_server({"fake": FakeModel()}, message_bytes=1 << 20) as address, stub_of(address) as stub:
        with pytest.raises(grpc.RpcError) as error:
            stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=bytes(2 << 20))]))
        assert code_of(error) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Classify(pb.ClassifyRequest(images=[IMAGE])).model == "fake"


def test_a_deadline_ends_the_call_and_the_server_goes_on() -> None:
    release = threading.Event()

    def slow(images: list[Any], top: int) -> Any:
        release.wait(20)
        return [[]] * len(images)

    with running_server({"slow": FakeModel(classify=slow), "fake": FakeModel()}) as address, stub_of(address) as stub:
        with pytest.raises(grpc.RpcError) as error:
            stub.Classify(pb.ClassifyRequest(model="slow", images=[IMAGE]), timeout=0.3)
        assert code_of(error) == grpc.StatusCode.DEADLINE_EXCEEDED
        assert stub.Classify(pb.ClassifyRequest(model="fake", images=[IMAGE]), timeout=10).model == "fake"
        release.set()


# ---- flow control and cancellation

WIDE = {"cols": 1 << 16, "classes": 2}  # half a MiB a row
MANY_ROWS = 400


@contextmanager
def wide_stream() -> Iterator[tuple[ConvserveStub, FakeStream]]:
    stream = FakeStream(rows=MANY_ROWS, **WIDE)
    fake = FakeModel(stream=lambda image, classes: stream)
    with running_server({"fake": fake}) as address, stub_of(address) as stub:
        yield stub, stream


def test_a_slow_reader_holds_the_run_back() -> None:
    with wide_stream() as (stub, stream):
        call = stub.ScoreMap(pb.ScoreMapRequest(image=IMAGE))
        for _ in range(3):
            next(call)
        # what has been taken and not read lies in transport windows of a few MiB; the map has 200 MiB
        assert settled(lambda: stream.taken) < 40
        rest = [response.rows.rows for response in call if response.WhichOneof("content") == "rows"]
        assert sum(rest) + 2 == MANY_ROWS


@pytest.mark.parametrize("how", ["cancel", "deadline", "vanish"])
def test_a_reader_that_goes_away_ends_the_run(how: str) -> None:
    stream = FakeStream(rows=MANY_ROWS, **WIDE)
    fake = FakeModel(stream=lambda image, classes: stream)
    with running_server({"fake": fake}) as address:
        channel = grpc.insecure_channel(address)
        timeout = 1.0 if how == "deadline" else None
        call = ConvserveStub(channel).ScoreMap(pb.ScoreMapRequest(image=IMAGE), timeout=timeout)
        assert [next(call).WhichOneof("content") for _ in range(2)] == ["geometry", "rows"]
        if how == "cancel":
            call.cancel()
        elif how == "vanish":
            channel.close()
        assert stream.closed.wait(10)
        assert stream.released.wait(10)
        assert settled(lambda: stream.taken) < MANY_ROWS
        channel.close()
        with Client(address) as client:
            assert client.classify(np.zeros((2, 2, 1), np.uint8))


def test_a_storm_of_cancelled_calls_leaves_the_server_answering(model: convserve.Model, address: str) -> None:
    request = pb.ScoreMapRequest(image=pb.Image(encoded=PAGE.read_bytes()))
    with stub_of(address) as stub:
        for number in range(60):
            call = stub.ScoreMap(request)
            if number % 2:
                next(call)
            call.cancel()
        assert list(stub.ScoreMap(request))[-1].WhichOneof("content") == "completion"


# ---- the process


@contextmanager
def server_process(*options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [sys.executable, "-m", "convserve", "serve", "--port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"listening on (127\.0\.0\.1:\d+) with digits$", process.stdout.readline().strip())
            assert found, process.stderr and process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_0(number: signal.Signals) -> None:
    with server_process() as (process, address):
        with Client(address) as client:
            assert client.classify(DIGIT)[0].label == "3"
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_sigterm_lets_a_map_in_work_end_and_refuses_new_calls() -> None:
    image = np.random.default_rng(5).integers(0, 256, (1500, 1500, 1), np.uint8)
    with server_process() as (process, address), grpc.insecure_channel(address) as channel:
        tensor = pb.Tensor(layout=pb.UINT8_HWC, shape=image.shape, data=image.tobytes())
        call = ConvserveStub(channel).ScoreMap(pb.ScoreMapRequest(image=pb.Image(tensor=tensor)))
        geometry = next(call).geometry
        next(call)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with Client(address, timeout=5) as client, pytest.raises(errors.ServerUnavailable):
            client.classify(DIGIT)
        assert process.poll() is None
        responses = list(call)
        assert sum(response.rows.rows for response in responses) < geometry.rows
        assert responses[-1].WhichOneof("content") == "completion"
        assert process.wait(20) == 0


def test_the_streamed_map_has_the_local_bits_with_other_threads_and_budget(model: convserve.Model) -> None:
    local = model.score_map(PAGE)
    for options in (["--threads", "1"], ["--threads", "3"], ["--memory-budget", "300KiB"]):
        with server_process(*options) as (_, address), Client(address) as client:
            found = client.score_map(PAGE)
        assert np.array_equal(found.scores, local.scores)


def test_two_servers_do_not_share_a_port() -> None:
    with server_process() as (_, address):
        port = address.rpartition(":")[2]
        second = subprocess.run(
            [sys.executable, "-m", "convserve", "serve", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
    assert second.returncode == 1
    assert second.stdout == ""
    assert "cannot listen on 127.0.0.1:" + port in second.stderr


def test_serve_prints_json_on_request() -> None:
    command = [sys.executable, "-m", "convserve", "serve", "--port", "0", "--json", f"a=b={BUNDLED}/digits.convserve"]
    with subprocess.Popen(
        [*command[:-1], f"numbers={BUNDLED}/digits.convserve"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        text = "".join(iter(process.stdout.readline, "}\n")) + "}"
        process.terminate()
        assert process.wait(20) == 0
    assert json.loads(text)["models"] == ["numbers"]
