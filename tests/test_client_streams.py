"""The client's streams: rows in, scores out, geometry before them, cancellation, failing sources."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from foreign import GEOMETRY, PLACE, Silent, foreign_server
from PIL import Image
from serving import running_server

import convserve
from convserve import errors
from convserve.client import AsyncClient, Client
from convserve.results import PlanBytes
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer
from convserve.wire.status import ERROR_KEY

BUNDLED = Path(convserve.__file__).parent / "bundled"
PAGE = BUNDLED / "page.png"
NOTHING = np.zeros((2, 2, 1), np.uint8)
COMPLETION = codec.completion_to_message(PLACE, PlanBytes(), seconds=0.25, measured_bytes=7)
ROWS = pb.ScoreRows(rows=3, scores=bytes(3 * 4 * 2 * 4))


def blocks_of(page: np.ndarray, height: int) -> Iterator[np.ndarray]:
    for row in range(0, len(page), height):
        yield page[row : row + height]


@pytest.mark.parametrize("height", [1, 7, 64, 500])
def test_rows_in_and_scores_out(model: convserve.Model, address: str, page: np.ndarray, height: int) -> None:
    local = model.score_map(PAGE)
    with Client(address) as client:
        found = list(client.stream(width=page.shape[1], rows=blocks_of(page, height), classes=["3", 10]))
    assert np.array_equal(np.concatenate(found), local.scores[:, :, [3, 10]])


@pytest.mark.parametrize("stride", [2, (1, 4), (8, 2), 12])
def test_other_strides_are_the_local_ones(
    model: convserve.Model, address: str, page: np.ndarray, stride: int | tuple[int, int]
) -> None:
    part = np.ascontiguousarray(page[:60, :90])
    scores = model.score_map(part, stride=stride, classes=[3, 7]).scores
    with Client(address) as client:
        assert np.array_equal(client.score_map(part, stride=stride, classes=[3, 7]).scores, scores)
        found = list(client.stream(width=90, rows=blocks_of(part, 16), stride=stride, classes=[3, 7]))
    assert np.array_equal(np.concatenate(found), scores)


def test_float_rows_are_taken_as_they_are(model: convserve.Model, address: str) -> None:
    x = np.random.default_rng(5).random((1, 1, 60, 50), np.float32)
    with Client(address) as client:
        found = list(client.stream(width=50, rows=blocks_of(x[0].transpose(1, 2, 0), 9)))
    assert np.array_equal(np.concatenate(found), model.score_map(x).scores)


def test_rows_from_an_asynchronous_source(model: convserve.Model, address: str, page: np.ndarray) -> None:
    async def rows() -> AsyncIterator[np.ndarray]:
        for block in blocks_of(page, 16):
            await asyncio.sleep(0.001)
            yield block

    async def ask(source: Any) -> list[np.ndarray]:
        async with AsyncClient(address) as client:
            return [block async for block in client.stream(width=page.shape[1], rows=source, stride=8)]

    local = model.score_map(PAGE, stride=8).scores
    assert np.array_equal(np.concatenate(asyncio.run(ask(rows()))), local)
    assert np.array_equal(np.concatenate(asyncio.run(ask(blocks_of(page, 16)))), local)


def test_scores_come_while_rows_are_still_to_come(address: str, page: np.ndarray) -> None:
    came = threading.Event()

    def rows() -> Iterator[np.ndarray]:
        yield page[:100]
        assert came.wait(10), "no scores came before the last rows"
        yield page[100:]

    with Client(address) as client:
        for _ in client.stream(width=page.shape[1], rows=rows()):
            came.set()


def test_a_stream_knows_its_geometry_before_its_scores(
    model: convserve.Model, address: str, page: np.ndarray
) -> None:
    local = model.score_map(PAGE)
    with Client(address) as client, client.score_stream(page) as stream:
        assert (stream.geometry.rows, stream.geometry.cols) == (44, 74)
        assert stream.plan.arena_bytes > 0 == stream.seconds
        blocks = list(stream)
        assert list(stream) == []
        assert stream.seconds > 0
        assert stream.measured_bytes > 0
    assert [first for first, _ in blocks] == list(np.cumsum([0, *(len(block) for _, block in blocks[:-1])]))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), local.scores)


def test_a_closed_stream_ends_the_call_on_the_server() -> None:
    servicer = Silent(begun=True)
    with foreign_server(servicer) as address, Client(address) as client:
        stream = client.score_stream(NOTHING)
        threading.Timer(0.2, stream.close).start()
        with pytest.raises(errors.RunCancelled, match="closed after 0 rows"):
            next(stream)
        assert servicer.ended.wait(5)
        with pytest.raises(errors.RunCancelled):
            next(stream)


def test_leaving_a_loop_ends_the_call_on_the_server(address: str, page: np.ndarray) -> None:
    held = threading.Event()

    def rows() -> Iterator[np.ndarray]:
        yield page
        held.wait(10)

    async def ask() -> None:
        async with AsyncClient(address) as client:
            async with await client.score_stream(page) as stream:
                async for _ in stream:
                    break
            with pytest.raises(errors.RunCancelled):
                await anext(stream)

    with Client(address) as client:
        scores = client.stream(width=page.shape[1], rows=rows())
        next(scores)
        scores.close()  # type: ignore[attr-defined]
        held.set()
        assert client.classify(page[:28, :28])
    asyncio.run(ask())


@pytest.mark.parametrize("begun", [False, True])
def test_a_failing_source_fails_the_stream_with_its_own_error(address: str, page: np.ndarray, begun: bool) -> None:
    def rows() -> Iterator[np.ndarray]:
        if begun:
            yield page[:50]
        raise ZeroDivisionError("no more rows")

    async def ask() -> None:
        async with AsyncClient(address) as client:
            async for _ in client.stream(width=page.shape[1], rows=rows()):
                pass

    with Client(address) as client, pytest.raises(ZeroDivisionError, match="no more rows"):
        list(client.stream(width=page.shape[1], rows=rows()))
    with pytest.raises(ZeroDivisionError, match="no more rows"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "no rows"),
        ([np.zeros((4, 39, 1), np.uint8)], "39"),
        ([np.zeros((4, 40, 1), np.uint8), np.zeros((4, 41, 1), np.uint8)], "41"),
        ([np.zeros((4, 40, 1), np.uint8), np.zeros((4, 40, 1), np.float32)], "float32"),
        ([np.zeros((4, 40, 1), np.uint8), np.zeros((4, 40, 3), np.uint8)], "3 channel"),
        ([np.zeros((4, 40), np.uint8)], "uint8"),
        ([np.zeros((4, 40, 1), np.int64)], "int64"),
        ([b"rows"], "bytes"),
        ([np.zeros((4, 40, 1), np.uint8)], "28x28"),
    ],
)
def test_rows_of_another_form_are_refused(address: str, rows: list[Any], text: str) -> None:
    with Client(address) as client, pytest.raises(errors.ShapeError, match=text):
        list(client.stream(width=40, rows=rows))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pixels_of_any_image_become_what_the_network_reads(model: convserve.Model, address: str, mode: str) -> None:
    values = np.random.default_rng(7).integers(0, 256, (60, 50, len(mode) if mode != "L" else 1), np.uint8)
    picture = Image.fromarray(values[:, :, 0] if mode == "L" else values)
    assert picture.mode == mode
    local = model.score_map(values).scores
    with Client(address) as client:
        for image in (values, picture):
            assert np.array_equal(client.score_map(image).scores, local)
        with pytest.raises(errors.ShapeError, match="channels is 2"):
            client.score_map(values[:, :, [0, 0]])


def test_wrong_arguments_of_a_stream(address: str) -> None:
    async def nothing() -> AsyncIterator[np.ndarray]:
        yield NOTHING

    with Client(address) as client:
        for arguments in ({"width": 0, "rows": []}, {"width": 2, "rows": nothing()}, {"width": 2, "rows": 7}):
            with pytest.raises(errors.InputError):
                list(client.stream(**arguments))  # type: ignore[arg-type]
        for stride in (0, (4,), "4", 6):
            with pytest.raises(errors.InputError, match="stride"):
                client.score_map(PAGE, stride=stride)  # type: ignore[arg-type]
        with pytest.raises(errors.MemoryBudgetError, match="budget"):
            client.score_map(PAGE, memory_budget="1KiB")


def test_images_far_above_a_message_go_through(model: convserve.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(6).integers(0, 256, (700, 900, 1), np.uint8)
    local = model.score_map(image).scores
    monkeypatch.setattr("convserve.wire.scene.PIECE_BYTES", 1 << 16)
    # a message of the server holds a fifth of the image
    with running_server({"digits": model}, message_bytes=1 << 17) as address, Client(address) as client:
        assert np.array_equal(client.score_map(image).scores, local)


def test_the_servers_own_exceptions_arrive_in_the_middle_of_a_stream() -> None:
    class Servicer(ConvserveServicer):
        def ScoreMap(self, requests: Any, context: grpc.ServicerContext) -> Iterator[pb.ScoreMapResponse]:
            yield GEOMETRY
            context.set_trailing_metadata(((ERROR_KEY, "MemoryBudgetError"),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no memory is left")

    with (
        foreign_server(Servicer()) as address,
        Client(address) as client,
        pytest.raises(errors.MemoryBudgetError, match="no memory is left"),
    ):
        client.score_map(NOTHING)
