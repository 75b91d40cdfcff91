"""Several worker processes on one port: what they share, how they change together, and what happens when one dies."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from inference_calls import Calls
from model_folders import BUNDLED, add_version, put_garbage
from serving import FakeModel, process_of, running_server

from convserve.client import AsyncClient, Client
from convserve.errors import ConvserveError, InputError, ModelFormatError, ServerUnavailable
from convserve.server import supervisor
from convserve.server.control import Control
from convserve.server.port import reserved_port
from convserve.server.supervisor import Supervisor, divided, merged
from convserve.wire.open_inference import messages as oip

ROOT = Path(__file__).parents[1]
X = np.zeros((1, 3, 8, 8), np.float32)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shares connections among processes")


def eventually(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- the port


def test_a_reserved_port_is_nobody_elses() -> None:
    with reserved_port("127.0.0.1", 0) as port:
        assert port
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}; it is in use"):
            reserved_port("127.0.0.1", port).__enter__()
        for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, option, 1)
                if option == socket.SO_REUSEPORT:
                    other.bind(("127.0.0.1", port))
                    other.listen()
                    continue
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


# ---- workers that serve


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@contextmanager
def channels_of(address: str, count: int = 12) -> Iterator[list[grpc.Channel]]:
    """Channels with a connection each, so that each worker very likely has some of them."""
    found = [grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]
    try:
        yield found
    finally:
        for channel in found:
            channel.close()


def index_of(channel: grpc.Channel) -> list[tuple[str, str, str]]:
    models = Calls(channel).RepositoryIndex(oip.RepositoryIndexRequest()).models
    return [(one.name, one.version, one.state) for one in models]


def is_ready(channel: grpc.Channel, name: str) -> bool:
    return bool(Calls(channel).ModelReady(oip.ModelReadyRequest(name=name)).ready)


def health_of(channel: grpc.Channel, service: str = "") -> int:
    return int(HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status)


def test_workers_change_their_models_together(tmp_path: Path) -> None:
    root, log = tmp_path / "models", tmp_path / "log"
    add_version(root, "net", 1)
    options = ("--workers", "2", "--repository", str(root), "--log-format", "json")
    with (
        log.open("w") as stderr,
        process_of(*options, stderr=stderr) as (process, address),
        channels_of(address) as channels,
    ):
        def everywhere(*versions: tuple[str, str, str]) -> bool:
            return all(index_of(channel) == list(versions) for channel in channels)

        eventually(lambda: health_of(channels[0]) == 1)
        calls = [Calls(channel) for channel in channels]
        assert everywhere(("net", "1", "READY"))
        for one in calls:
            assert one.infer("x", X, model="net").model_version == "1"
        asked = [oip.ModelStatisticsRequest(name="net"), oip.ModelStatisticsRequest()]
        for one in calls:
            for request in asked:
                [found] = one.ModelStatistics(request).model_stats
                assert found.inference_count == found.inference_stats.success.count == len(calls)
                assert sum(batch.compute_infer.count for batch in found.batch_stats) == found.execution_count
        # load: of a new version, of one that is broken, of none
        add_version(root, "net", 2, seed=1)
        calls[0].RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="net"))
        assert everywhere(("net", "2", "READY"))
        assert {one.infer("x", X, model="net").model_version for one in calls} == {"2"}
        put_garbage(add_version(root, "net", 3) / "model.convserve")
        with pytest.raises(grpc.RpcError) as error:
            calls[1].RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="net"))
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert {one.infer("x", X, model="net").model_version for one in calls} == {"2"}
        with pytest.raises(grpc.RpcError) as error:
            calls[2].RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="none"))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        (root / "net" / "3").rename(root / ".net3")
        # unload, and a worker that dies: the one that takes its place leaves it unloaded
        calls[3].RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="net"))
        assert not any(is_ready(channel, "net") for channel in channels)
        assert {health_of(channel, "net") for channel in channels} == {2}
        before = workers_of(process)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(workers_of(process)) == 2 and before[0] not in workers_of(process))
        assert health_of(channels[0]) == 1
        add_version(root, "other", 1)
        process.send_signal(signal.SIGHUP)
        with channels_of(address) as later:
            eventually(lambda: all(is_ready(channel, "other") for channel in later))
            assert {health_of(channel, "other") for channel in later} == {1}
            assert not any(is_ready(channel, "net") for channel in later)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    said = log.read_text()
    for number in (1, 2):
        assert re.search(rf'"worker": {number}, .*"method": "/inference.GRPCInferenceService/ModelInfer"', said)
    assert re.search(r"worker \d \(process \d+\) was ended by SIGKILL; it begins again in 0.5 s", said)


def weights_in(pid: int, path: Path) -> dict[str, int]:
    """What of a file's mappings is resident in a process, by smaps' names, in KiB."""
    sizes: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.endswith("kB"):
            name, size, _ = line.split()
            sizes[name] = sizes.get(name, 0) + int(size)
    return sizes


def test_every_client_has_a_connection_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "convserve.calls")

    async def ask(address: str) -> None:
        async with AsyncClient(address) as one, AsyncClient(address) as other:
            await asyncio.gather(*(client.list_models() for client in (one, one, other)))

    with running_server({"fake": FakeModel()}) as address, Client(address) as one, Client(address) as other:
        for client in (one, one, other):
            client.list_models()
        asyncio.run(ask(address))
    peers = [vars(record)["peer"] for record in caplog.records if record.name == "convserve.calls"]
    assert (len(peers), len(set(peers))) == (6, 4)


def test_workers_hold_the_weights_once_and_go_when_their_supervisor_is_killed() -> None:
    with process_of("--workers", "2") as (process, _):
        workers = workers_of(process)
        assert len(workers) == 2
        for pid in workers:
            sizes = weights_in(pid, BUNDLED)
            assert sizes["Shared_Clean:"] > 0
            assert sizes["Private_Dirty:"] == sizes["Anonymous:"] == 0
        process.kill()

        def ended(pid: int) -> bool:
            try:
                return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except FileNotFoundError:
                return True

        eventually(lambda: all(map(ended, workers)))


def test_workers_share_the_http_port_too_also_when_begun_again() -> None:
    pytest.importorskip("uvicorn", reason="uvicorn, which serves HTTP, is not installed")
    with reserved_port("127.0.0.1", 0) as port:
        pass
    for _ in range(2):
        # the connections that the first server closed are still known to the system when the second begins
        with process_of("--workers", "2", "--http-port", str(port), "--log-calls") as (process, _):
            connections = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(12)]
            for one in connections:
                one.sendall(b"GET /v2/models/digits/stats HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                with one.makefile("rb") as answer:
                    assert answer.read().startswith(b"HTTP/1.1 200")
            process.terminate()
            assert process.wait(20) == 0
            for one in connections:
                one.close()
            assert process.stderr is not None
            assert set(re.findall(r"worker \d", process.stderr.read())) == {"worker 1", "worker 2"}


def test_counts_outlive_the_worker_that_counted() -> None:
    digit, asked = (BUNDLED.parent / "digit.png").read_bytes(), oip.ModelStatisticsRequest(name="digits")

    def counted(channel: grpc.Channel) -> int:
        [found] = Calls(channel).ModelStatistics(asked).model_stats
        return int(found.inference_count)

    with process_of("--workers", "2") as (process, address), channels_of(address) as channels:
        workers = workers_of(process)
        name = Calls(channels[0]).ModelMetadata(oip.ModelMetadataRequest(name="digits")).inputs[0].name
        for channel in channels:
            Calls(channel).infer(name, [digit])
        assert counted(channels[0]) == 12
        os.kill(workers[0], signal.SIGKILL)
        seen = set()

        def begun_again() -> bool:
            with channels_of(address, 1) as [channel], suppress(grpc.RpcError):
                seen.add(counted(channel))
            return len(workers_of(process)) == 2 and workers[0] not in workers_of(process)

        eventually(begun_again)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            begun_again()
        assert seen == {12}
        with channels_of(address) as later:
            for channel in later:
                Calls(channel).infer(name, [digit])
            eventually(lambda: {counted(channel) for channel in later} == {24})


def test_workers_that_cannot_begin_say_why_once() -> None:
    command = [sys.executable, "-m", "convserve", "serve", "--port", "0", "--workers", "2", "/nowhere/net.onnx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"convserve: worker \d: no model file at '/nowhere/net.onnx'\n", done.stderr)
