"""A server in a thread of the test, and a model that does what a test wants."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from convserve.results import Geometry, PlanBytes, Prediction
from convserve.server import Repository, Server

PLAN = PlanBytes(arena_bytes=4096, scratch_bytes=512, weight_bytes=1 << 20, score_bytes=0)


@contextmanager
def running_server(models: dict[str, Any], **options: Any) -> Iterator[str]:
    """Serve models on a free loopback port, yield its address, drain at the end."""
    state = SimpleNamespace()
    started = threading.Event()

    async def body() -> None:
        server = Server(Repository(models), port=0, **options)
        state.loop, state.stop = asyncio.get_running_loop(), asyncio.Event()
        state.address = await server.start()
        started.set()
        await state.stop.wait()
        await server.drain(5)

    thread = threading.Thread(target=asyncio.run, args=(body(),), daemon=True)
    thread.start()
    assert started.wait(10), "the server did not start"
    try:
        yield state.address
    finally:
        state.loop.call_soon_threadsafe(state.stop.set)
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


class FakeModel:
    """Has the interface of a Model that the server uses; each part can be replaced."""

    window = (28, 28)

    def __init__(
        self,
        *,
        classify: Callable[[list[Any], int], list[list[Prediction]]] | None = None,
        stream: "Callable[[Any, Any], FakeStream] | None" = None,
    ) -> None:
        self._classify = classify or (lambda images, top: [[Prediction("zero", 0, 0.5)][:top]] * len(images))
        self._stream = stream or (lambda image, classes: FakeStream(rows=3))

    def classify(self, images: list[Any], *, top: int = 5) -> list[list[Prediction]]:
        return self._classify(images, top)

    def score_stream(self, image: Any, *, classes: Any = None) -> "FakeStream":
        return self._stream(image, classes)

    def plan(self, height: int, width: int) -> PlanBytes:
        return PLAN


class FakeStream:
    """A score stream of one row a block, which counts what was taken from it."""

    def __init__(self, *, rows: int, cols: int = 4, classes: int = 2, fail_at: int | None = None) -> None:
        self.geometry = Geometry(
            rows=rows, cols=cols, stride=(4, 4), window=(28, 28), classes=list(range(classes)), labels=["a"] * classes
        )
        self.plan = PLAN
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
