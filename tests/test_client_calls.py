"""The client's calls: deadlines, retries, streams in both directions, cancellation."""

import asyncio
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from foreign import CLASSIFIED, GEOMETRY, PLACE, Silent, foreign_server
from serving import FakeModel, running_server

import convserve
from convserve import errors
from convserve.client import AsyncClient, Client
from convserve.results import PlanBytes
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer
from convserve.wire.status import PUSHBACK_KEY

BUNDLED = Path(convserve.__file__).parent / "bundled"
PAGE = BUNDLED / "page.png"
NOTHING = np.zeros((2, 2, 1), np.uint8)
COMPLETION = codec.completion_to_message(PLACE, PlanBytes(), seconds=0.25, measured_bytes=7)
ROWS = pb.ScoreRows(rows=3, scores=bytes(3 * 4 * 2 * 4))


class Failing(ConvserveServicer):
    """Fails the first calls with a code, then answers."""

    def __init__(self, code: grpc.StatusCode, *, times: int, pushback: str | None = None, begun: bool = False) -> None:
        self.code, self.left, self.pushback, self.begun = code, times, pushback, begun
        self.calls: list[float] = []

    def _fail(self, context: grpc.ServicerContext) -> None:
        self.calls.append(time.monotonic())
        if self.left > 0:
            self.left -= 1
            if self.pushback is not None:
                context.set_trailing_metadata(((PUSHBACK_KEY, self.pushback),))
            context.abort(self.code, "not now")

    def Classify(self, request: Any, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self._fail(context)
        return CLASSIFIED

    def ScoreMap(self, requests: Any, context: grpc.ServicerContext) -> Iterator[pb.ScoreMapResponse]:
        if self.begun:
            yield GEOMETRY
        self._fail(context)
        # the image must come again whole, however often the call was made
        assert sum(request.rows.rows for request in requests) == 40
        yield GEOMETRY
        yield pb.ScoreMapResponse(rows=ROWS)
        yield pb.ScoreMapResponse(completion=COMPLETION)


# ---- retries


@pytest.mark.parametrize(
    ("code", "pushback"),
    [
        (grpc.StatusCode.UNAVAILABLE, None),
        (grpc.StatusCode.UNAVAILABLE, "20"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "20"),
    ],
)
def test_a_call_is_made_again_until_it_is_answered(code: grpc.StatusCode, pushback: str | None) -> None:
    servicer = Failing(code, times=2, pushback=pushback)
    with foreign_server(servicer) as address, Client(address) as client:
        assert client.classify(NOTHING) == []
        servicer.left = 2
        found = client.score_map(np.zeros((40, 40, 1), np.uint8))
    assert len(servicer.calls) == 6
    assert found.scores.shape == (3, 4, 2)


def test_the_asynchronous_client_tries_again_too() -> None:
    servicer = Failing(grpc.StatusCode.UNAVAILABLE, times=2)

    async def ask(address: str) -> Any:
        async with AsyncClient(address) as client:
            await client.classify(NOTHING)
            servicer.left = 2
            return await client.score_map(np.zeros((40, 40, 1), np.uint8))

    with foreign_server(servicer) as address:
        assert asyncio.run(ask(address)).rows == 3
    assert len(servicer.calls) == 6


@pytest.mark.parametrize(
    ("code", "pushback", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, errors.RemoteError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "-1", errors.ServerBusy),
        (grpc.StatusCode.UNAVAILABLE, "-1", errors.ServerUnavailable),
        (grpc.StatusCode.INTERNAL, None, errors.RemoteError),
        (grpc.StatusCode.INVALID_ARGUMENT, "20", errors.InputError),
    ],
)
def test_what_a_retry_does_not_mend_is_raised_at_once(
    code: grpc.StatusCode, pushback: str | None, error: type[Exception]
) -> None:
    servicer = Failing(code, times=9, pushback=pushback)
    with foreign_server(servicer) as address, Client(address) as client, pytest.raises(error, match="not now"):
        client.classify(NOTHING)
    assert len(servicer.calls) == 1


def test_the_pauses_grow_and_end() -> None:
    servicer = Failing(grpc.StatusCode.UNAVAILABLE, times=9)
    with (
        foreign_server(servicer) as address,
        Client(address, retries=3) as client,
        pytest.raises(errors.ServerUnavailable),
    ):
        client.classify(NOTHING)
    assert len(servicer.calls) == 4
    first, second, third = np.diff(servicer.calls)
    assert 0.05 <= first < second + 0.05 < third + 0.1


def test_no_retries_where_none_are_wanted_or_the_time_is_too_short() -> None:
    servicer = Failing(grpc.StatusCode.UNAVAILABLE, times=9)
    with foreign_server(servicer) as address:
        with Client(address, retries=0) as client, pytest.raises(errors.ServerUnavailable):
            client.classify(NOTHING)
        assert len(servicer.calls) == 1
        servicer.pushback = "700"
        with Client(address, timeout=0.5) as client, pytest.raises(errors.ServerUnavailable):
            client.classify(NOTHING)
        assert len(servicer.calls) == 2


def test_nothing_is_tried_again_once_an_answer_has_begun() -> None:
    servicer = Failing(grpc.StatusCode.UNAVAILABLE, times=9, begun=True)
    with foreign_server(servicer) as address, Client(address) as client, pytest.raises(errors.ServerUnavailable):
        client.score_map(np.zeros((40, 40, 1), np.uint8))
    assert len(servicer.calls) == 1


def test_a_server_that_starts_late_is_waited_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    servicer = Failing(grpc.StatusCode.UNAVAILABLE, times=0)
    result: list[Any] = []
    with Client(f"127.0.0.1:{port}", retries=20) as client:
        thread = threading.Thread(target=lambda: result.append(client.classify(NOTHING)))
        thread.start()
        time.sleep(0.5)
        with foreign_server(servicer, port=port):
            thread.join(10)
    assert result == [[]]


def test_a_busy_server_is_asked_again_after_the_time_that_it_tells() -> None:
    begun, release = threading.Event(), threading.Event()

    def classify(images: list[Any], top: int) -> list[list[Any]]:
        begun.set()
        assert release.wait(10)
        return [[] for _ in images]

    with (
        running_server({"slow": FakeModel(classify=classify)}, max_running=1, max_waiting=0) as address,
        Client(address, retries=50) as client,
    ):
        first = threading.Thread(target=lambda: client.classify(NOTHING))
        first.start()
        assert begun.wait(10)
        with Client(address, retries=0) as impatient, pytest.raises(errors.ServerBusy) as raised:
            impatient.classify(NOTHING)
        assert raised.value.wait_s is not None
        threading.Timer(0.3, release.set).start()
        assert client.classify(NOTHING) == []
        first.join(10)


def test_rows_that_cannot_come_again_are_not_asked_for_twice() -> None:
    taken = []

    def rows() -> Iterator[np.ndarray]:
        for number in range(100):
            taken.append(number)
            yield np.zeros((1, 2, 1), np.uint8)

    class Servicer(ConvserveServicer):
        calls = 0

        def ScoreMap(self, requests: Any, context: grpc.ServicerContext) -> Iterator[pb.ScoreMapResponse]:
            self.calls += 1
            for _ in range(3):
                next(requests)
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield GEOMETRY

    servicer = Servicer()
    with foreign_server(servicer) as address, Client(address) as client, pytest.raises(errors.ServerUnavailable):
        list(client.stream(width=2, rows=rows()))
    assert servicer.calls == 1
    assert taken == list(range(len(taken)))


def test_a_refusal_arrives_as_it_was_sent_however_much_of_the_image_was_on_its_way(address: str) -> None:
    image = np.zeros((3000, 1000, 3), np.float32).transpose(2, 0, 1)[None]

    async def ask() -> None:
        async with AsyncClient(address) as client:
            for _ in range(20):
                with pytest.raises(errors.ShapeError, match="channels is 3"):
                    await client.score_map(image)

    asyncio.run(ask())
    with Client(address) as client:
        for _ in range(20):
            with pytest.raises(errors.ShapeError, match="channels is 3"):
                client.score_map(image)


# ---- deadlines


@pytest.mark.parametrize("begun", [False, True])
def test_the_timeout_of_client_and_of_call(begun: bool) -> None:
    with foreign_server(Silent(begun=begun)) as address:
        with Client(address, timeout=0.5) as client:
            with pytest.raises(errors.RunCancelled, match=r"0\.5 s"):
                client.score_map(NOTHING)
            with pytest.raises(errors.RunCancelled, match=r"0\.5 s"):
                client.classify(NOTHING)
        with Client(address) as client, pytest.raises(errors.RunCancelled, match=r"0\.25 s"):
            client.score_map(NOTHING, timeout=0.25)


def test_the_timeout_of_the_asynchronous_client() -> None:
    async def ask(address: str) -> None:
        async with AsyncClient(address, timeout=0.3) as client:
            with pytest.raises(errors.RunCancelled, match=r"0\.3 s"):
                await client.score_map(NOTHING)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.score_map(NOTHING, timeout=math.inf), 0.2)

    servicer = Silent(begun=True)
    with foreign_server(servicer) as address:
        asyncio.run(ask(address))
        assert servicer.ended.wait(5)
