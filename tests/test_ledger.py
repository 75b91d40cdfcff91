"""Admission in bytes: who gets them, who waits, who is refused, and that no more is held than there is."""

import asyncio
import mmap
from collections.abc import Awaitable, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve.errors import MemoryBudgetError, ServerBusy
from convserve.server.ledger import SPARE_BYTES, Ledger, anonymous_bytes

BASE = 1000
ROOM = 100


@pytest.fixture(autouse=True, scope="module")
def looks_again_soon() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convserve.server.ledger.AGAIN_S", 0.001)
        yield


def ledger_of(*, used: Callable[[], int] = lambda: BASE, relieve: Callable[[], None] = lambda: None) -> Ledger:
    """Return a ledger with ROOM bytes for reservations, in a process that takes BASE at rest."""
    return Ledger(BASE + SPARE_BYTES + ROOM, used=used, relieve=relieve)


def in_loop(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await body()

    asyncio.run(bounded())


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_without_a_budget_everything_is_counted_and_nothing_waits() -> None:
    async def body() -> None:
        ledger = Ledger()
        one = ledger.open()
        await one.resize(1 << 60)
        assert ledger.reserved_bytes == 1 << 60
        assert ledger.capacity_bytes is None
        one.close()
        assert ledger.reserved_bytes == 0

    in_loop(body)


def test_what_never_fits_is_refused_with_its_size_and_what_there_is() -> None:
    async def body() -> None:
        with pytest.raises(MemoryBudgetError, match="takes 101 bytes; the server's memory budget leaves 100 "):
            await ledger_of().open().resize(ROOM + 1)

    in_loop(body)


def test_reservations_wait_in_the_order_in_which_they_came_even_where_a_later_one_would_fit() -> None:
    async def body() -> None:
        ledger, order = ledger_of(), []

        async def hold(name: str, size: int) -> None:
            one = ledger.open()
            await one.resize(size)
            order.append(name)
            await turn()
            one.close()

        first = ledger.open()
        await first.resize(60)
        waiting = [asyncio.create_task(hold(*each)) for each in (("large", 90), ("small", 10), ("other", 20))]
        await turn()
        assert order == []
        assert ledger.waiting_bytes == 120
        first.close()
        await asyncio.gather(*waiting)
        assert order == ["large", "small", "other"]
        assert ledger.reserved_bytes == ledger.waiting_bytes == 0

    in_loop(body)


def test_whoever_holds_and_needs_more_comes_before_whoever_begins() -> None:
    async def body() -> None:
        ledger = ledger_of()
        growing, busy, new = ledger.open(), ledger.open(), ledger.open()
        await growing.resize(10)
        await busy.resize(80)
        begins = asyncio.create_task(new.resize(50))
        await turn()
        grows = asyncio.create_task(growing.resize(60))
        await turn()
        busy.close()
        await grows
        assert not begins.done()
        growing.close()
        await begins

    in_loop(body)


def test_where_all_wait_for_one_another_the_youngest_is_refused_and_the_oldest_goes_on() -> None:
    async def body() -> None:
        ledger = ledger_of()
        old, young = ledger.open(), ledger.open()
        await old.resize(40)
        await young.resize(40)
        grows = asyncio.create_task(old.resize(90))
        await turn()
        assert not grows.done()
        with pytest.raises(ServerBusy) as error:
            await young.resize(90)
        assert error.value.wait_s
        young.close()
        await grows

    in_loop(body)


def test_who_leaves_while_waiting_lets_the_next_one_in() -> None:
    async def body() -> None:
        ledger = ledger_of()
        first, second, third = ledger.open(), ledger.open(), ledger.open()
        await first.resize(60)
        leaves = asyncio.create_task(second.resize(80))
        await turn()
        stays = asyncio.create_task(third.resize(40))
        await turn()
        assert not stays.done()
        leaves.cancel()
        await stays
        assert ledger.waiting_bytes == 0

    in_loop(body)


def test_memory_beyond_all_reservations_counts_and_is_given_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convserve.server.ledger.LEAST_SURPLUS_BYTES", 1)

    async def body() -> None:
        used, given_back = [BASE], []

        def relieve() -> None:
            given_back.append(used[0])
            used[0] = BASE

        ledger = ledger_of(used=lambda: used[0], relieve=relieve)
        first = ledger.open()
        await first.resize(10)
        used[0] = BASE + 70
        assert ledger.open().try_resize(30)
        assert given_back == []
        assert ledger.open().try_resize(40)
        assert given_back == [BASE + 70]

    in_loop(body)


def test_what_the_last_calls_left_makes_a_request_wait_its_turn_rather_than_refuses_it_for_good() -> None:
    async def body() -> None:
        used = [BASE]
        ledger = ledger_of(used=lambda: used[0])
        assert ledger.capacity_bytes == ROOM
        used[0] = BASE + 50
        with pytest.raises(ServerBusy):
            await ledger.open().resize(80)
        used[0] = BASE
        await ledger.open().resize(80)

    in_loop(body)


@given(st.lists(st.tuples(st.integers(0, 110), st.integers(0, 110), st.integers(0, 3), st.booleans()), max_size=12))
def test_never_more_than_there_is_and_everyone_comes_to_an_end(
    calls: list[tuple[int, int, int, bool]],
) -> None:
    async def body() -> None:
        ledger, ended = ledger_of(), []

        async def call(first: int, then: int, turns: int, leaves: bool) -> None:
            one = ledger.open()
            try:
                for size in (first, then):
                    await one.resize(size)
                    assert one.bytes == size
                    assert ledger.reserved_bytes <= ROOM
                    for _ in range(turns):
                        await asyncio.sleep(0)
                if leaves:
                    raise asyncio.CancelledError
            except (MemoryBudgetError, ServerBusy, asyncio.CancelledError):
                pass
            finally:
                one.close()
                ended.append(one)

        await asyncio.gather(*(call(*each) for each in calls))
        assert len(ended) == len(calls)
        assert ledger.reserved_bytes == ledger.waiting_bytes == 0

    in_loop(body)


def test_the_process_tells_what_it_takes() -> None:
    before = anonymous_bytes()
    # not of the heap, which may have as much that is free
    with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"x" * len(block))
        assert anonymous_bytes() - before > 24 << 20


@pytest.mark.parametrize("left", [0, ROOM])
def test_who_waits_alone_gets_an_answer_also_where_memory_comes_back_late(left: int) -> None:
    async def body() -> None:
        extra = [0]
        ledger = ledger_of(used=lambda: BASE + extra[0])
        first, second = ledger.open(), ledger.open()
        await first.resize(ROOM)
        extra[0] = ROOM
        waiting = asyncio.ensure_future(second.resize(ROOM))
        await turn()
        first.close()
        await turn()
        assert not waiting.done()
        # the process gives back what the first one took, all of it or nothing, and no call tells the ledger
        extra[0] = left
        if left:
            with pytest.raises(ServerBusy, match="held by what it did last"):
                await waiting
        else:
            await waiting
            assert ledger.reserved_bytes == ROOM

    in_loop(body)


def test_who_is_cancelled_in_the_moment_of_its_turn_holds_nothing_up() -> None:
    async def body() -> None:
        ledger = ledger_of()
        first, second, third = ledger.open(), ledger.open(), ledger.open()
        await first.resize(ROOM)
        waiting = [asyncio.ensure_future(one.resize(ROOM)) for one in (second, third)]
        await turn()
        waiting[0].cancel()
        first.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        second.close()
        await waiting[1]
        assert ledger.reserved_bytes == ROOM

    in_loop(body)
