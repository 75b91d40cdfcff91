"""What keeps worker processes together: the port, what is said, a supervisor of processes that serve nothing."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convserve.errors import ConvserveError, InputError, ModelFormatError, ServerUnavailable
from convserve.server import supervisor
from convserve.server.control import Control
from convserve.server.port import reserved_port
from convserve.server.supervisor import Supervisor, divided, merged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shares connections among processes")


# ---- the port


def test_a_reserved_port_is_nobody_elses() -> None:
    with reserved_port("127.0.0.1", 0) as port:
        assert port
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}; it is in use"):
            reserved_port("127.0.0.1", port).__enter__()
        with socket.socket() as worker, socket.socket() as other:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
    with reserved_port("127.0.0.1", port) as again:
        assert again == port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "localhost"])
def test_what_somebody_listens_on_is_not_reserved(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InputError, match="in use"):
        reserved_port(host, other.getsockname()[1]).__enter__()


@pytest.mark.parametrize("host", ["192.0.2.1", "no host", "999.1.1.1"])
def test_what_is_no_address_here(host: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"cannot listen on {host}:0")):
        reserved_port(host, 0).__enter__()


def test_systems_that_do_not_share_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match="--workers 1"):
        reserved_port("127.0.0.1", 0).__enter__()


# ---- what is said between supervisor and worker


def test_both_ends_ask_and_answer() -> None:
    async def body() -> None:
        order: list[int] = []

        async def twice(number: int) -> int:
            order.append(number)
            await asyncio.sleep(0.01 / number)
            return 2 * number

        async def refuse() -> None:
            raise ModelFormatError("no")

        async def fail() -> None:
            raise ValueError("a secret")

        ours, theirs = socket.socketpair()
        here, there = Control({"twice": twice}), Control({"twice": twice, "refuse": refuse, "fail": fail})
        await here.open(ours)
        await there.open(theirs)
        tasks = [asyncio.create_task(one.run()) for one in (here, there)]
        assert await asyncio.gather(*(here.ask("twice", number=number) for number in (1, 2, 3))) == [2, 4, 6]
        assert order == [1, 2, 3]
        assert await there.ask("twice", number=8) == 16
        with pytest.raises(ModelFormatError, match=r"^no$"):
            await here.ask("refuse")
        for wrong in ("fail", "unknown"):
            with pytest.raises(ConvserveError, match=r"^internal error$"):
                await here.ask(wrong)
        waiting = asyncio.create_task(there.ask("twice", number=0.001))
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        with pytest.raises(ServerUnavailable):
            await waiting
        await tasks[1]
        there.tell("twice", number=1)
        with pytest.raises(ServerUnavailable):
            await there.ask("twice", number=1)

    asyncio.run(body())


def state_of(*index: tuple[str, str, str], complete: bool = True) -> dict[str, Any]:
    return {
        "complete": complete,
        "known": list(dict.fromkeys(name for name, *_ in index)),
        "index": [[*one, "broken" if one[2] == "UNAVAILABLE" else ""] for one in index],
        "unloaded": [],
    }


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ([("a", "1", "READY")], [("a", "1", "READY")], [["a", "1", "READY", ""]]),
        ([("a", "1", "READY")], [("a", "1", "LOADING")], [["a", "1", "LOADING", ""]]),
        ([("a", "1", "READY")], [("a", "1", "UNAVAILABLE")], [["a", "1", "UNAVAILABLE", "broken"]]),
        ([("a", "1", "LOADING")], [("a", "1", "UNAVAILABLE")], [["a", "1", "LOADING", "broken"]]),
        ([("a", "2", "READY")], [("a", "1", "READY")], [["a", "2", "LOADING", ""], ["a", "1", "LOADING", ""]]),
        ([("a", "", "LOADING")], [("a", "1", "READY")], [["a", "1", "LOADING", ""]]),
        ([("a", "1", "READY")], None, [["a", "1", "LOADING", ""]]),
    ],
)
def test_a_model_is_ready_when_all_workers_have_it(first: Any, second: Any, together: Any) -> None:
    found = merged([state_of(*first), None if second is None else state_of(*second)])
    assert found == {"complete": second is not None, "known": ["a"], "index": together}
    assert not merged([state_of(*first), state_of(*first, complete=False)])["complete"]
    assert not merged([])["complete"]


def test_threads_queues_and_memory_are_divided(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("convserve.engine.processors.affinity", lambda: frozenset(range(8)))
    monkeypatch.setattr("convserve.engine.processors.quota", lambda _: 6)
    monkeypatch.delenv("CONVSERVE_THREADS", raising=False)
    given = {"threads": None, "max_running": 5, "max_waiting": 0, "memory_budget": None, "grace": 3.0}
    assert divided(given, 2) == {**given, "threads": 3, "max_running": 3}
    assert divided({**given, "memory_budget": 400 << 20}, 2)["memory_budget"] == 192 << 20
    with pytest.raises(InputError, match=rf"4 workers and what keeps them take at least {80 << 20}$"):
        divided({**given, "memory_budget": 64 << 20}, 4)
    assert divided({**given, "threads": 4}, 2)["threads"] == 4
    assert not caplog.records
    assert divided(given, 7)["threads"] == 1
    assert "7 workers share 6 processor(s)" in caplog.text
    monkeypatch.setenv("CONVSERVE_THREADS", "5")
    assert divided(given, 2)["threads"] is None


# ---- processes that serve nothing


def supervised(mode: str, *, count: int = 2, on_start: Callable[[str, str, list[str]], None] = lambda *_: None) -> None:
    command = [sys.executable, str(Path(__file__).with_name("worker_of_a_test.py")), mode]
    found = Supervisor(
        command, {"of": count}, count=count, host="127.0.0.1", port=0, grace_s=0.1, first_delay_s=0.001
    )
    asyncio.run(found.run(on_start))


def test_a_worker_that_cannot_begin_ends_the_server() -> None:
    with pytest.raises(ModelFormatError, match=r"^worker (\d): number \1 of 2 cannot$"):
        supervised("fails", on_start=lambda *_: pytest.fail("it did not begin"))


def test_a_process_that_is_no_worker() -> None:
    found = Supervisor(["/bin/false"], {}, count=2, host="127.0.0.1", port=0, grace_s=0.1)
    with pytest.raises(ConvserveError, match=r"^worker \d ended with code 1 before it served$"):
        asyncio.run(found.run(lambda *_: None))


def test_a_worker_that_dies_again_and_again_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConvserveError, match=r"^worker 1 was ended by SIGKILL, for the 5th time in a row; the server"):
        supervised("dies", count=1)
    assert len(re.findall(r"worker 1 \(process \d+\) was ended by SIGKILL; it begins again in", caplog.text)) == 4


def test_a_worker_that_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_LAST_WORDS_S", 0.1)
    supervised("mute", on_start=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert sorted(re.findall(r"worker \d did not end in time and is killed", caplog.text)) == [
        "worker 1 did not end in time and is killed",
        "worker 2 did not end in time and is killed",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(number: signal.Signals) -> None:
    began: list[tuple[str, str, list[str]]] = []

    def on_start(*told: Any) -> None:
        began.append(told)
        os.kill(os.getpid(), number)

    supervised("good", count=3, on_start=on_start)
    assert began == [("nowhere:1", "nowhere:2", ["none"])]
