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
from convserve.server.port import reserved_port
from convserve.wire.open_inference import messages as oip

ROOT = Path(__file__).parents[1]
X = np.zeros((1, 3, 8, 8), np.float32)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shares connections among processes")


def eventually(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


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
