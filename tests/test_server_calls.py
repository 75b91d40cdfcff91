"""The server over a real socket: statuses, the bounded queue, flow control, cancellation, stalled clients."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from serving import (
    FakeModel,
    FakeStream,
    image_requests,
    kinds_of,
    row_requests,
    running_server,
    settled,
    stub_of,
)

import convserve
from convserve import errors
from convserve.client import Client
from convserve.model import Cancellation
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub
from convserve.wire.status import ERROR_KEY, PUSHBACK_KEY

NET = Path(convserve.__file__).parent / "bundled" / "digits.convserve"
IMAGE = pb.Image(tensor=pb.Tensor(layout=pb.UINT8_HWC, shape=(2, 2, 1), data=bytes(4)))
REQUEST = pb.ClassifyRequest(model="fake", images=[IMAGE])


@contextmanager
def failing(raised: Exception) -> Iterator[ConvserveStub]:
    def classify(images: list[Any], top: int) -> Any:
        raise raised

    with running_server({"fake": FakeModel(classify=classify)}) as address, stub_of(address) as stub:
        yield stub


@contextmanager
def streaming(stream: FakeStream, **options: Any) -> Iterator[tuple[str, ConvserveStub]]:
    fake = FakeModel(stream=lambda image, classes: stream)
    with running_server({"fake": fake}, **options) as address, stub_of(address) as stub:
        yield address, stub


# ---- statuses


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (errors.ShapeError("a size"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ImageError("a picture"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ModelNotFoundError("a model"), grpc.StatusCode.NOT_FOUND),
        (errors.MemoryBudgetError("12 bytes"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.UnsupportedOpError("an op"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.RunCancelled("stopped"), grpc.StatusCode.CANCELLED),
    ],
)
def test_an_exception_of_ours_becomes_its_status_with_its_text(raised: Exception, code: grpc.StatusCode) -> None:
    with failing(raised) as stub, pytest.raises(grpc.RpcError) as error:
        stub.Classify(REQUEST)
    assert error.value.code() == code
    assert error.value.details() == str(raised)
    assert dict(error.value.trailing_metadata())[ERROR_KEY] == type(raised).__name__


def test_any_other_exception_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with failing(ZeroDivisionError("a secret path")) as stub, caplog.at_level(logging.ERROR, "convserve.server"):
        with pytest.raises(grpc.RpcError) as error:
            stub.Classify(REQUEST)
        assert error.value.code() == grpc.StatusCode.INTERNAL
        assert error.value.details() == "internal error"
    assert "a secret path" in caplog.text
    assert "Traceback" in caplog.text


def test_an_endless_text_is_cut_so_that_the_status_arrives() -> None:
    with failing(errors.InputError("x" * 100_000)) as stub, pytest.raises(grpc.RpcError) as error:
        stub.Classify(REQUEST)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert set(error.value.details()) == {"x"}


def test_an_exception_in_the_middle_of_a_map_is_told() -> None:
    stream = FakeStream(rows=9, fail_at=4)
    with streaming(stream) as (_, stub), pytest.raises(grpc.RpcError) as error:
        list(stub.ScoreMap(image_requests(b"file")))
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert error.value.details() == "internal error"
    assert stream.closed.is_set()


# ---- the queue


@contextmanager
def blocked(**options: Any) -> Iterator[tuple[str, threading.Event, list[str]]]:
    """A server whose model "slow" answers only after the event; the list has what was computed."""
    release, computed = threading.Event(), []

    def classify_on(name: str) -> Any:
        def classify(images: list[Any], top: int) -> Any:
            computed.append(name)
            if name == "slow":
                release.wait(20)
            return [[]] * len(images)

        return classify

    models = {name: FakeModel(classify=classify_on(name)) for name in ("slow", "fake")}
    with running_server(models, **options) as address:
        try:
            yield address, release, computed
        finally:
            release.set()


def slow_calls(stub: ConvserveStub, count: int, **options: Any) -> list[Any]:
    return [stub.Classify.future(pb.ClassifyRequest(model="slow", images=[IMAGE]), **options) for _ in range(count)]


def waits(call: Any) -> bool:
    """Tell whether a call is still not answered after a while; False where it was refused."""
    with suppress(grpc.FutureTimeoutError):
        return call.exception(0.3) is None
    return True


def until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    with blocked(max_running=1, max_waiting=2) as (address, release, computed), stub_of(address) as stub:
        calls = slow_calls(stub, 1)
        until(lambda: computed)
        calls += slow_calls(stub, 2)

        def refused() -> grpc.RpcError | None:
            try:
                stub.Classify(REQUEST, timeout=0.2)
            except grpc.RpcError as error:
                return error if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else None
            return None

        until(refused)
        error = refused()
        assert error is not None
        trailers = dict(error.trailing_metadata())
        assert 50 <= int(trailers[PUSHBACK_KEY]) <= 5000
        assert trailers[ERROR_KEY] == "ServerBusy"
        with pytest.raises(grpc.RpcError) as map_error:
            list(stub.ScoreMap(image_requests(b"file", model="fake")))
        assert map_error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        # what needs no engine is answered all the time
        assert len(stub.ListModels(pb.ListModelsRequest()).models) == 2
        release.set()
        assert [call.result(20).model for call in calls] == ["slow"] * 3
        assert stub.Classify(REQUEST).model == "fake"


def test_a_deadline_that_passes_in_the_queue_computes_nothing() -> None:
    with blocked(max_running=1) as (address, release, computed), stub_of(address) as stub:
        calls = slow_calls(stub, 1)
        until(lambda: computed)
        with pytest.raises(grpc.RpcError) as error:
            stub.Classify(REQUEST, timeout=0.3)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        release.set()
        assert calls[0].result(20).model == "slow"
        until(lambda: computed == ["slow"])
        assert stub.Classify(REQUEST).model == "fake"
        assert computed == ["slow", "fake"]


def test_a_call_that_is_cancelled_in_the_queue_gives_its_place_back() -> None:
    with blocked(max_running=1, max_waiting=1) as (address, release, computed), stub_of(address) as stub:
        calls = slow_calls(stub, 1)
        until(lambda: computed)
        for _ in range(20):
            with pytest.raises(grpc.RpcError) as error:
                stub.Classify(REQUEST, timeout=0.05)
            assert error.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        # as long as the last of them is still leaving, another is refused
        until(lambda: calls.extend(slow_calls(stub, 1)) or waits(calls[-1]))
        release.set()
        assert [call.result(20).model for call in (calls[0], calls[-1])] == ["slow"] * 2


def test_a_deadline_ends_the_call_and_the_server_goes_on() -> None:
    with blocked() as (address, _, _), stub_of(address) as stub:
        with pytest.raises(grpc.RpcError) as error:
            slow_calls(stub, 1, timeout=0.3)[0].result()
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert stub.Classify(REQUEST, timeout=10).model == "fake"


def test_a_cancellation_ends_runs_before_and_in_their_work() -> None:
    model = convserve.load(NET)
    images: list[Any] = [np.zeros((28, 28, 1), np.uint8)] * 3000
    before = Cancellation()
    before.cancel()
    with pytest.raises(errors.RunCancelled, match="0 of 3000 images"):
        model.classify(images, cancellation=before)
    start = time.monotonic()
    assert len(model.classify(images, cancellation=Cancellation())) == 3000
    whole_s = time.monotonic() - start
    during = Cancellation()
    timer = threading.Timer(whole_s / 3, during.cancel)
    timer.start()
    with suppress(errors.RunCancelled):
        model.classify(images, cancellation=during)
    timer.join()
    with pytest.raises(errors.RunCancelled):
        model.classify(images[:2], cancellation=during)
    assert model.classify(images[:2]) == model.classify(images[:2], cancellation=Cancellation())


def test_a_cancelled_classification_leaves_its_thread_to_others() -> None:
    model = convserve.load(NET)
    images = [pb.Image(tensor=pb.Tensor(layout=pb.UINT8_HWC, shape=(28, 28, 1), data=bytes(784)))] * 1000
    request = pb.ClassifyRequest(images=images)
    with running_server({"digits": model}, max_running=1) as address, stub_of(address) as stub:
        assert stub.Classify(request).classifications  # plans for the rest
        start = time.monotonic()
        assert stub.Classify(request).classifications
        whole_s = time.monotonic() - start
        for part in (0.05, 0.1, 0.2):
            start = time.monotonic()
            with pytest.raises(grpc.RpcError):
                stub.Classify(request, timeout=part * whole_s)
            assert stub.Classify(pb.ClassifyRequest(images=images[:1])).classifications
        assert len(stub.Classify(request).classifications) == 1000


# ---- flow control

WIDE = {"cols": 1 << 16, "classes": 2}  # half a MiB a row
MANY_ROWS = 400


def test_a_slow_reader_holds_the_run_back() -> None:
    stream = FakeStream(rows=MANY_ROWS, **WIDE)
    with streaming(stream) as (_, stub):
        call = stub.ScoreMap(image_requests(b"file"))
        for _ in range(3):
            next(call)
        # what has been taken and not read lies in transport windows, which grow to some MiB; the map has 200 MiB
        assert settled(lambda: stream.taken) < MANY_ROWS // 4
        rest = [response.rows.rows for response in call if response.WhichOneof("content") == "rows"]
        assert sum(rest) + 2 == MANY_ROWS


def test_a_slow_reader_holds_the_sender_back() -> None:
    stream = FakeStream(rows=MANY_ROWS, **WIDE)
    pixels = np.zeros((MANY_ROWS, 1 << 19, 1), np.uint8)
    sent = []

    def counted() -> Iterator[pb.ScoreMapRequest]:
        for request in row_requests(pixels, at_once=1):
            sent.append(len(sent))
            yield request

    with streaming(stream) as (_, stub):
        call = stub.ScoreMap(counted())
        for _ in range(3):
            next(call)
        assert settled(lambda: len(sent)) < 80
        assert settled(lambda: stream.taken) < MANY_ROWS // 4
        rest = [response.rows.rows for response in call if response.WhichOneof("content") == "rows"]
        assert sum(rest) + 2 == MANY_ROWS
        assert len(sent) == MANY_ROWS + 1


def test_slow_readers_leave_the_threads_to_others() -> None:
    streams = [FakeStream(rows=MANY_ROWS, **WIDE) for _ in range(2)]
    waiting = iter(streams)
    fake = FakeModel(stream=lambda image, classes: next(waiting))
    with running_server({"fake": fake}, max_running=1) as address, stub_of(address) as stub:
        calls = [stub.ScoreMap(image_requests(b"file")) for _ in streams]
        assert [next(call).WhichOneof("content") for call in calls] == ["geometry"] * 2
        settled(lambda: streams[0].taken + streams[1].taken)
        assert stub.Classify(REQUEST, timeout=5).model == "fake"
        for call in calls:
            call.cancel()
        assert all(stream.released.wait(10) for stream in streams)


@pytest.mark.parametrize("how", ["cancel", "deadline", "vanish"])
@pytest.mark.parametrize("form", ["file", "rows"])
def test_a_reader_that_goes_away_ends_the_run(how: str, form: str) -> None:
    stream = FakeStream(rows=MANY_ROWS, **WIDE)
    requests = image_requests(b"file") if form == "file" else row_requests(np.zeros((MANY_ROWS, 9, 1), np.uint8))
    with streaming(stream) as (address, stub):
        channel = grpc.insecure_channel(address)
        call = ConvserveStub(channel).ScoreMap(requests, timeout=1.0 if how == "deadline" else None)
        assert [next(call).WhichOneof("content") for _ in range(2)] == ["geometry", "rows"]
        if how == "cancel":
            call.cancel()
        elif how == "vanish":
            channel.close()
        assert stream.closed.wait(10)
        assert stream.released.wait(10)
        assert settled(lambda: stream.taken) < MANY_ROWS
        channel.close()
        assert stub.Classify(REQUEST).model == "fake"


def test_a_client_that_stops_reading_is_given_up() -> None:
    stream = FakeStream(rows=MANY_ROWS, **WIDE)
    with streaming(stream, stall_s=0.5) as (_, stub):
        call = stub.ScoreMap(image_requests(b"file"))
        next(call)
        assert stream.released.wait(10)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
        assert error.value.code() == grpc.StatusCode.CANCELLED
        assert error.value.details() == "no scores were read for 0.5 s"
        assert stub.Classify(REQUEST).model == "fake"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_client_that_stops_sending_is_given_up(after: int) -> None:
    stream, held = FakeStream(rows=9), threading.Event()

    def some() -> Iterator[pb.ScoreMapRequest]:
        for number, request in enumerate(row_requests(np.zeros((90, 4, 1), np.uint8))):
            if number == after:
                held.wait(20)
            yield request

    with streaming(stream, stall_s=0.3) as (_, stub):
        with pytest.raises(grpc.RpcError) as error:
            list(stub.ScoreMap(some()))
        held.set()
        assert error.value.code() == grpc.StatusCode.CANCELLED
        assert error.value.details() == "no part of the image came for 0.3 s"
        assert not after or stream.released.wait(10)
        assert stub.Classify(REQUEST).model == "fake"


def test_only_some_maps_are_open_at_once_and_the_others_wait() -> None:
    made: list[FakeStream] = []

    def stream(image: Any, classes: Any) -> FakeStream:
        made.append(FakeStream(rows=MANY_ROWS, **WIDE))
        return made[-1]

    with running_server({"fake": FakeModel(stream=stream)}, max_running=1) as address, stub_of(address) as stub:
        calls = [stub.ScoreMap(image_requests(b"file")) for _ in range(5)]
        assert settled(lambda: len(made)) == 2
        for call in calls:
            next(call)
            call.cancel()
        until(lambda: len(made) == 5 and all(one.released.is_set() or not one.taken for one in made))


# ---- storms


def test_a_storm_of_cancelled_calls_leaves_the_server_answering() -> None:
    model = convserve.load(NET)
    pixels = np.random.default_rng(2).integers(0, 256, (200, 150, 1), np.uint8)
    with running_server({"digits": model}, max_running=2, max_waiting=8) as address, stub_of(address) as stub:
        expected = model.score_map(pixels).scores.tobytes()

        def one(number: int) -> None:
            with grpc.insecure_channel(address) as channel:
                call = ConvserveStub(channel).ScoreMap(row_requests(pixels, at_once=1 + number % 20))
                # the queue may be full
                with suppress(grpc.RpcError):
                    for _ in range(number % 4):
                        next(call)
                call.cancel()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(120)))
        responses = list(stub.ScoreMap(row_requests(pixels)))
        assert kinds_of(responses)[-1] == "completion"
        assert b"".join(response.rows.scores for response in responses[1:-1]) == expected
        with Client(address) as client:
            assert client.classify(np.zeros((28, 28, 1), np.uint8))
