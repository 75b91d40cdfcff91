"""A server in a thread of the test, and a model that does what a test wants."""

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import grpc
import numpy as np

from convserve.engine.source import ImageRows
from convserve.results import Geometry, PlanBytes, Prediction, Predictions, RunReport
from convserve.server import Limits, Repository, Server
from convserve.wire import convserve_pb2 as pb
from convserve.wire import scene
from convserve.wire.convserve_pb2_grpc import ConvserveStub

PLAN = PlanBytes(arena_bytes=4096, scratch_bytes=512, weight_bytes=1 << 20, score_bytes=0)


@contextmanager
def running_server(
    models: dict[str, Any] | Repository, server_options: dict[str, Any] | None = None, **options: Any
) -> Iterator[str]:
    """Serve models on a free loopback port, yield its address, drain at the end. options: of Limits."""
    with running(models, server_options, **options) as server:
        yield server.address


@contextmanager
def running(
    models: dict[str, Any] | Repository, server_options: dict[str, Any] | None = None, **options: Any
) -> Iterator[Server]:
    """Do what running_server does, and yield the server."""
    state = SimpleNamespace()
    started = threading.Event()

    async def body() -> None:
        found = models if isinstance(models, Repository) else Repository(models)
        server = Server(found, port=0, limits=Limits(**options), **(server_options or {}))
        state.loop, state.stop = asyncio.get_running_loop(), asyncio.Event()
        await server.start()
        state.server = server
        started.set()
        await state.stop.wait()
        await server.drain(5)

    thread = threading.Thread(target=asyncio.run, args=(body(),), daemon=True)
    thread.start()
    assert started.wait(10), "the server did not start"
    try:
        yield state.server
    finally:
        state.loop.call_soon_threadsafe(state.stop.set)
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def process_of(
    *options: str, prefix: Sequence[str] = (), stderr: Any = subprocess.PIPE
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Serve on a free port in a process of its own, killed at the end; yield it and its address.

    prefix: a command that runs the command. stderr: a file for what a pipe that is not read could not hold.
    """
    command = [*prefix, sys.executable, "-m", "convserve", "serve", "--port", "0", *options]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"listening on (\S+) with", process.stdout.readline())
            assert found, process.stderr and process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


@contextmanager
def stub_of(address: str) -> Iterator[ConvserveStub]:
    """A channel of its own to a server."""
    with grpc.insecure_channel(address) as channel:
        yield ConvserveStub(channel)


def image_requests(file: bytes, **header: Any) -> Iterator[pb.ScoreMapRequest]:
    """The requests of an image file's score map."""
    yield scene.header_to_message(scene.SceneHeader(None, **header))
    yield from scene.pieces_to_messages(file)


def row_requests(
    pixels: np.ndarray, *, at_once: int = 7, tell_height: bool = True, **header: Any
) -> Iterator[pb.ScoreMapRequest]:
    """The requests of the score map of pixels (height, width, channels), at_once rows a message."""
    height, width, _ = pixels.shape
    known = {"width": width, "height": height if tell_height else 0, **header}
    yield scene.header_to_message(scene.SceneHeader(pixels.dtype.name, **known))
    for row in range(0, height, at_once):
        yield from scene.pixels_to_messages(row, pixels[row : row + at_once])


def kinds_of(responses: "list[pb.ScoreMapResponse]") -> list[str | None]:
    """What each response of a score map is."""
    return [response.WhichOneof("content") for response in responses]


def scores_of(responses: "list[pb.ScoreMapResponse]") -> bytes:
    """The scores of a whole answer, one after another."""
    assert kinds_of(responses)[0] == "geometry"
    assert kinds_of(responses)[-1] == "completion"
    return b"".join(response.rows.scores for response in responses[1:-1])


class FakeModel:
    """Has the interface of a Model that the server uses; each part can be replaced."""

    window = (28, 28)
    classes = 2
    labels: ClassVar[list[str]] = ["zero", "one"]
    memory_budget = None
    preprocess = None
    storage = None
    graph = SimpleNamespace(input_volume=SimpleNamespace(channels=1))

    def __init__(
        self,
        *,
        classify: Callable[[list[Any], int], list[list[Prediction]]] | None = None,
        stream: "Callable[[Any, Any], FakeStream] | None" = None,
    ) -> None:
        self._classify = classify or (lambda images, top: [[Prediction("zero", 0, 0.5)][:top]] * len(images))
        self._stream = stream or (lambda image, classes: FakeStream(rows=3))

    def classify(
        self, images: list[Any], *, top: int = 5, cancellation: Any = None, **averaging: Any
    ) -> list[Predictions]:
        return [Predictions(one, report=RunReport(PLAN, 4608, 0.25)) for one in self._classify(images, top)]

    def score_stream(self, image: Any, *, classes: Any = None, **options: Any) -> "FakeStream":
        return self._stream(image, classes)

    def row_stream(self, width: int, *, dtype: str, classes: Any = None, **options: Any) -> "FakeRows":
        return FakeRows(self._stream(None, classes))

    def prepare(self, image: Any) -> ImageRows:
        return ImageRows(np.zeros((1, *self.window, 1), np.uint8))

    def plan(self, height: int, width: int, *, batch: int = 1) -> Any:
        return SimpleNamespace(predicted_s=float(batch), threads=1)


class FakeStream:
    """A score stream of one row a block, which counts what was taken from it."""

    def __init__(self, *, rows: int, cols: int = 4, classes: int = 2, fail_at: int | None = None) -> None:
        self.geometry = Geometry(
            rows=rows, cols=cols, stride=(4, 4), window=(28, 28), classes=list(range(classes)), labels=["a"] * classes
        )
        self.plan = PLAN
        self.allocated_bytes = PLAN.total_bytes
        self.taken = 0
        self.closed = threading.Event()
        self.released = threading.Event()
        self._fail_at = fail_at

    def row(self, number: int) -> np.ndarray:
        shape = (1, self.geometry.cols, len(self.geometry.classes))
        return np.full(shape, number, np.float32)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        try:
            for number in range(self.geometry.rows):
                if number == self._fail_at:
                    raise ZeroDivisionError("a secret of the server")
                self.taken += 1
                yield number, self.row(number)
        finally:
            self.released.set()

    def close(self) -> None:
        self.closed.set()


class FakeRows:
    """A row stream that gives a row of a FakeStream for every row that it is fed, and the rest at the end."""

    def __init__(self, stream: FakeStream) -> None:
        self.plan, self.allocated_bytes = stream.plan, stream.allocated_bytes
        self._stream = stream
        self._rows = iter(stream)

    def geometry(self, height: int) -> Geometry:
        return self._stream.geometry

    def feed(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for _ in rows:
            yield from islice(self._rows, 1)

    def finish(self) -> Iterator[tuple[int, np.ndarray]]:
        yield from self._rows

    def cancel(self) -> None:
        self._stream.close()

    def close(self) -> None:
        self._rows.close()  # type: ignore[attr-defined]
        self._stream.released.set()


def settled(value: Callable[[], int], *, still_s: float = 0.4, limit_s: float = 10.0) -> int:
    """Return value() once it has not changed for still_s seconds."""
    end = time.monotonic() + limit_s
    last, since = value(), time.monotonic()
    while time.monotonic() - since < still_s:
        assert time.monotonic() < end, f"still changing after {limit_s} s"
        time.sleep(0.02)
        if value() != last:
            last, since = value(), time.monotonic()
    return last
