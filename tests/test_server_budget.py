"""--memory-budget: the process of a server stays under it, whatever is asked; what does not fit is told so."""

import asyncio
import io
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from serving import process_of

import convserve
from benchmarks.residency import Sampler
from convserve.client import Client
from convserve.engine.source import ImageRows
from convserve.errors import ConvserveError, InputError, MemoryBudgetError, ServerBusy
from convserve.images import decoding_bytes
from convserve.images.decode import decode
from convserve.server import Limits, Repository, Server
from convserve.server.admission import Admission
from convserve.server.batching import Batcher
from convserve.server.heap import trim_heap
from convserve.server.ledger import SPARE_BYTES, Ledger
from convserve.server.runs import Runs

MIB = 1 << 20
BUDGET = 112 * MIB


def picture(height: int, width: int, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 50, width // 50), np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(pixels).resize((width, height)).convert(mode)
    image.save(stream, str(options.pop("format", "PNG")), **options)  # type: ignore[arg-type]
    return stream.getvalue()


def digits(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 1, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {}),
        ("RGB", {}),
        ("RGBA", {}),
        ("P", {"transparency": 0}),
        ("I;16", {}),
        ("RGB", {"format": "JPEG"}),
        ("RGB", {"format": "JPEG", "progressive": True}),
        ("CMYK", {"format": "JPEG"}),
        ("RGB", {"format": "WEBP", "method": 0}),
        ("RGB", {"format": "JPEG2000"}),
    ],
)
def test_decoding_takes_no_more_than_its_header_told(mode: str, options: dict[str, object]) -> None:
    small, file = picture(100, 100, mode, **options), picture(1600, 2000, mode, **options)
    decode(small)
    trim_heap()
    told = decoding_bytes(file)
    with Sampler(every_s=0.0005) as sampler:
        decode(file)
    assert told >= sampler.peak_bytes - sampler.baseline_bytes
    assert told <= 40 * 1600 * 2000


def test_a_server_under_load_stays_under_its_budget_and_answers() -> None:
    scene, photo = picture(1200, 1600), picture(900, 1200, "RGBA")
    too_large = picture(3000, 4000, "RGBA", format="WEBP", quality=1, method=0)
    expected = convserve.load("convserve/bundled/digits.convserve").run(digits(1))
    found: Counter[str] = Counter()
    wrong: list[object] = []
    with process_of("--memory-budget", str(BUDGET)) as (process, address):
        asked: list[Callable[[Client], object]] = [
            lambda client: client.score_map(scene, classes=[0, 1]),
            lambda client: client.classify(photo),
            lambda client: client.classify([photo] * 8),
            lambda client: client.classify(list(digits(200)[:, None])),
            lambda client: client.classify(too_large),
        ]

        def ask(first: int) -> None:
            with Client(address, retries=20) as client:
                for number in range(first, first + 2 * len(asked)):
                    try:
                        asked[number % len(asked)](client)
                        found["ok"] += 1
                    except ConvserveError as error:
                        found[type(error).__name__] += 1
                        if not isinstance(error, MemoryBudgetError | ServerBusy):
                            wrong.append(error)

        with Client(address) as client, Sampler(process.pid, every_s=0.001) as sampler:
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            assert [len(one) for one in client.classify(list(digits(3)[:, None]))] == [5, 5, 5]
            best = client.classify(digits(1))[0]
        assert best.index == int(np.argmax(expected))
    assert wrong == []
    assert found["ok"] >= 60
    assert found["MemoryBudgetError"] == 20, "384 MiB never fit"
    assert 20 * MIB < sampler.peak_bytes <= BUDGET


def test_a_budget_below_what_the_server_takes_at_rest_is_told_at_the_start() -> None:
    model = convserve.load("convserve/bundled/digits.convserve")
    with pytest.raises(InputError, match="the memory budget is 16777216 bytes, which leaves 0 for requests"):
        Server(Repository({"digits": model}), limits=Limits(memory_budget=16 * MIB))


class Planned:
    """A model of which one knows what a run takes: usually 100 bytes, 10 at least."""

    window, classes, memory_budget = None, 1, None

    def engine(self, *_: str) -> "Planned":
        return self

    def prepare(self, image: np.ndarray) -> ImageRows:
        return ImageRows(image)

    def run_bytes(self, *_: object, **__: object) -> int:
        return 100

    def least_bytes(self, *_: object) -> int:
        return 10


@pytest.mark.parametrize(("room", "held_by_others", "budget"), [(100, 0, None), (50, 0, 10), (120, 60, 10)])
def test_the_smallest_plan_is_run_where_the_usual_one_does_not_fit(
    room: int, held_by_others: int, budget: int | None
) -> None:
    ledger = Ledger(SPARE_BYTES + room, used=lambda: 0, relieve=lambda: None)
    admission = Admission(max_running=1, max_waiting=1, ledger=ledger)
    budgets: list[int | None] = []

    def work(_: object, __: object, limit: int | None, images: list[Any], ___: object) -> list[int]:
        budgets.append(limit)
        return [0] * len(images)

    async def body() -> None:
        others = ledger.open()
        await others.resize(held_by_others)
        call = SimpleNamespace(time_remaining=lambda: None)
        async with admission.call(call) as held:
            image = np.zeros((1, 1, 1, 1), np.float32)
            await Runs(admission, Batcher(admission)).results(call, held, cast(Any, Planned()), [image], work)
            assert held.bytes == (100 if budget is None else budget)

    try:
        asyncio.run(body())
    finally:
        admission.close()
    assert budgets == [budget]
