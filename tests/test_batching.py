"""Dynamic batching: calls that wait together run together, each gets its own, and none waits for what it cannot use."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import running_server

import convserve
from convserve.client import Client
from convserve.errors import InputError, MemoryBudgetError, RunCancelled, ServerBusy
from convserve.server.admission import Admission
from convserve.server.batching import Batcher, Joint

NET = Path(convserve.__file__).parent / "bundled" / "digits.convserve"


class Call:
    """The part of a call's context that batching looks at: how much time it has left."""

    def __init__(self, left_s: float | None = None) -> None:
        self._end_s = None if left_s is None else time.monotonic() + left_s

    def time_remaining(self) -> float | None:
        return None if self._end_s is None else self._end_s - time.monotonic()


class Work:
    """Doubles each image, records what ran together; the first run waits until it is let go."""

    def __init__(self, *, hold: bool = True, refuse: Callable[[list[int]], Exception | None] = lambda _: None) -> None:
        self.runs: list[list[int]] = []
        self.began, self.go = threading.Event(), threading.Event()
        self.cancellation: Any = None
        self._refuse = refuse
        if not hold:
            self.go.set()

    def __call__(self, images: list[int], cancellation: Any) -> list[int]:
        self.runs.append(images)
        self.cancellation = cancellation
        self.began.set()
        assert self.go.wait(10)
        error = self._refuse(images)
        if error is not None:
            raise error
        return [2 * image for image in images]


def in_loop(body: Callable[[Batcher], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        admission = Admission(max_running=2, max_waiting=100)
        try:
            async with asyncio.timeout(20):
                await body(Batcher(admission, **options))
        finally:
            admission.close()

    asyncio.run(run())


async def begun(work: Work) -> None:
    while not work.began.is_set():
        await asyncio.sleep(0.001)


def ask(
    batcher: Batcher, work: Callable[..., Any], *images: int, key: str = "net", **options: Any
) -> "asyncio.Task[list[Any]]":
    call, joint = options.pop("call", Call()), Joint(options.pop("most", 4), options.pop("lanes", 1))
    return asyncio.create_task(batcher.join(call, key, images, work, joint=joint, **options))


def test_what_waits_runs_together_up_to_the_limit_and_everyone_gets_his_own() -> None:
    async def body(batcher: Batcher) -> None:
        work = Work()
        first = ask(batcher, work, 1)
        await begun(work)
        others = [ask(batcher, work, *images) for images in ((2, 3), (4,), (5, 6), (7,))]
        await asyncio.sleep(0.01)
        work.go.set()
        assert await first == [2]
        assert [await other for other in others] == [[4, 6], [8], [10, 12], [14]]
        assert work.runs == [[1], [2, 3, 4], [5, 6, 7]]

    in_loop(body)


def test_runs_in_work_have_even_shares_of_what_is_asked() -> None:
    async def body(batcher: Batcher) -> None:
        work = Work()
        tasks = [ask(batcher, work, 1, most=8, lanes=2)]
        await begun(work)
        tasks += [ask(batcher, work, image, most=8, lanes=2) for image in range(2, 9)]
        while len(work.runs) < 2:
            await asyncio.sleep(0.001)
        work.go.set()
        await asyncio.gather(*tasks)
        assert work.runs[:2] == [[1], [2, 3, 4, 5]]
        assert sorted(image for run in work.runs for image in run) == list(range(1, 9))

    in_loop(body)


def test_a_call_larger_than_the_limit_runs_alone() -> None:
    async def body(batcher: Batcher) -> None:
        work = Work()
        first = ask(batcher, work, 1)
        await begun(work)
        large, small = ask(batcher, work, *range(9)), ask(batcher, work, 50)
        await asyncio.sleep(0.01)
        work.go.set()
        assert await large == [2 * image for image in range(9)]
        assert await small == [100]
        await first
        assert work.runs == [[1], list(range(9)), [50]]

    in_loop(body)


def test_lower_priority_numbers_go_first_and_equal_ones_in_turn() -> None:
    async def body(batcher: Batcher) -> None:
        work = Work()
        tasks = [ask(batcher, work, 1, most=1)]
        await begun(work)
        tasks += [ask(batcher, work, image, most=1, priority=priority) for image, priority in ((2, 1), (3, 0), (4, 1))]
        await asyncio.sleep(0.01)
        work.go.set()
        await asyncio.gather(*tasks)
        assert work.runs == [[1], [3], [2], [4]]

    in_loop(body)


def test_other_keys_and_further_lanes_do_not_wait() -> None:
    async def body(batcher: Batcher) -> None:
        held, free = Work(), Work(hold=False)
        first = ask(batcher, held, 1)
        await begun(held)
        assert await ask(batcher, free, 2, key="other net") == [4]
        held.go.set()
        await first
        lanes = Work()
        tasks = [ask(batcher, lanes, image, key="lanes", most=1, lanes=2) for image in (1, 2, 3)]
        while len(lanes.runs) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert lanes.runs == [[1], [2]]
        lanes.go.set()
        await asyncio.gather(*tasks)

    in_loop(body)


def test_what_is_cancelled_while_it_waits_is_not_computed() -> None:
    async def body(batcher: Batcher) -> None:
        work = Work()
        first = ask(batcher, work, 1)
        await begun(work)
        gone, stays = ask(batcher, work, 2), ask(batcher, work, 3)
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        work.go.set()
        assert await stays == [6]
        await first
        assert work.runs == [[1], [3]]

    in_loop(body)


def test_a_run_is_cancelled_when_all_of_its_calls_are_gone() -> None:
    async def body(batcher: Batcher) -> None:
        work = Work()
        pair = [ask(batcher, work, 2, most=2), ask(batcher, work, 3, most=2)]
        await begun(work)
        pair[0].cancel()
        await asyncio.sleep(0.02)
        assert not work.cancellation._cancelled
        pair[1].cancel()
        await asyncio.sleep(0.02)
        assert work.cancellation._cancelled
        work.go.set()
        assert work.runs == [[2, 3]]

    in_loop(body, max_delay_s=10)


def test_an_error_of_one_call_is_its_own() -> None:
    def refuse(images: list[int]) -> Exception | None:
        return InputError("image 3 is bad") if 3 in images else None

    async def body(batcher: Batcher) -> None:
        work = Work(refuse=refuse)
        tasks = [ask(batcher, work, 1)]
        await begun(work)
        tasks += [ask(batcher, work, image) for image in (2, 3, 4)]
        await asyncio.sleep(0.01)
        work.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [found[0], found[1], found[3]] == [[2], [4], [8]]
        assert str(found[2]) == "image 3 is bad"

    in_loop(body)


def test_an_unforeseen_error_reaches_everyone_and_the_line_goes_on() -> None:
    def refuse(images: list[int]) -> Exception | None:
        return ZeroDivisionError() if 3 in images else None

    async def body(batcher: Batcher) -> None:
        work = Work(refuse=refuse)
        tasks = [ask(batcher, work, 1)]
        await begun(work)
        tasks += [ask(batcher, work, image) for image in (2, 3)]
        await asyncio.sleep(0.01)
        work.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in found[1:]] == [ZeroDivisionError] * 2
        assert await ask(batcher, work, 5) == [10]

    in_loop(body)


def test_a_deadline_that_no_run_could_meet_is_refused_before_it_is_computed() -> None:
    async def body(batcher: Batcher) -> None:
        work = Work()
        first = ask(batcher, work, 1)
        await begun(work)
        hopeless, patient = ask(batcher, work, 2, call=Call(0.16)), ask(batcher, work, 3, call=Call(30))
        await asyncio.sleep(0.1)
        # the shortest run so far took 0.1 s, and 0.06 are left
        work.go.set()
        with pytest.raises(RunCancelled, match="deadline"):
            await hopeless
        assert await patient == [6]
        await first
        assert work.runs == [[1], [3]]

    in_loop(body)


def test_a_call_waits_for_others_as_long_as_it_is_told_and_no_longer_than_its_deadline_allows() -> None:
    async def body(batcher: Batcher) -> None:
        work = Work(hold=False)
        tasks = [ask(batcher, work, 1, most=3)]
        await asyncio.sleep(0.03)
        assert work.runs == []
        tasks += [ask(batcher, work, 2, most=3), ask(batcher, work, 3, most=3)]
        await asyncio.gather(*tasks)
        assert work.runs == [[1, 2, 3]]
        start = time.monotonic()
        assert await ask(batcher, work, 4, most=3, call=Call(0.2)) == [8]
        assert time.monotonic() - start < 5

    in_loop(body, max_delay_s=10)


def planned(*seconds: float | None) -> Any:
    def plan(height: int, width: int, *, batch: int = 1) -> Any:
        each = seconds[batch.bit_length() - 1] if batch.bit_length() <= len(seconds) else seconds[-1]
        if each is None:
            raise MemoryBudgetError("too much")
        return SimpleNamespace(predicted_s=each * batch, threads=2)

    class Model:
        window = (8, 8)

    model = Model()
    model.plan = plan  # type: ignore[attr-defined]
    return model


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ((1.0, 1.0), 1),
        ((1.0, 0.97, 0.96, 0.95), 1),
        ((1.0, 0.7, 0.6, 0.55, 0.54), 4),
        ((1.0, 0.5, None), 2),
        ((None,), 1),
    ],
)
def test_batches_are_as_large_as_predictions_make_worth_while(seconds: tuple[float | None, ...], size: int) -> None:
    async def body(batcher: Batcher) -> None:
        assert batcher.joint(planned(*seconds)).most == size

    in_loop(body)


def test_a_limit_that_is_given_stands_above_predictions() -> None:
    async def body(batcher: Batcher) -> None:
        assert batcher.joint(planned(1.0, 1.0)).most == 16

    in_loop(body, max_batch=16)


def test_joined_calls_of_a_server_get_the_bits_that_they_get_alone() -> None:
    model = convserve.load(NET)
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (28, 28), np.uint8) for _ in range(24)]
    runs: list[int] = []

    class Counted(type(model)):  # type: ignore[misc]
        def classify(self, images: list[Any], **options: Any) -> Any:
            runs.append(len(images))
            return super().classify(images, **options)

    served = convserve.load(NET)
    served.__class__ = Counted
    with (
        running_server({"digits": served}, max_batch=8, max_delay_s=0.2) as address,
        Client(address, timeout=30) as client,
        ThreadPoolExecutor(24) as threads,
    ):
        found = list(threads.map(lambda image: client.classify(image, top=11), images))
    assert max(runs) > 1
    assert max(runs) <= 8
    assert sum(runs) == 24
    for image, predictions in zip(images, found, strict=True):
        assert list(predictions) == list(model.classify(image, top=11))


def test_a_deadline_that_the_queue_does_not_leave_is_refused_when_the_call_comes() -> None:
    async def body(batcher: Batcher) -> None:
        runs: list[list[int]] = []

        def slow(images: list[int], _: Any) -> list[int]:
            time.sleep(0.05)
            runs.append(images)
            return images

        tasks = [ask(batcher, slow, image, most=1) for image in range(40)]
        while len(runs) < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(ServerBusy, match=r"the deadline is in 0\.[0-9]+ s; with what waits before it") as error:
            await ask(batcher, slow, 99, most=1, call=Call(left_s=0.3))
        assert error.value.wait_s is not None
        assert error.value.wait_s > 0
        await asyncio.gather(*tasks)
        assert [image for run in runs for image in run] == list(range(40))

    in_loop(body)
