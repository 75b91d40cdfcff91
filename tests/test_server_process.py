"""The server as a process: health, signals, draining, ports, what it prints."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from serving import FakeModel, process_of, row_requests, running_server

import convserve
from convserve import errors
from convserve.client import Client
from convserve.server import Limits, Repository, Server
from convserve.wire.convserve_pb2_grpc import ConvserveStub

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE = BUNDLED / "digit.png", BUNDLED / "page.png"
STATUS = health_pb2.HealthCheckResponse


@contextmanager
def server_process(
    *options: str, address_space: int | None = None
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    prefix = [] if address_space is None else ["prlimit", f"--as={address_space}"]
    with process_of(*options, prefix=prefix) as (process, address):
        yield process, address


# ---- health


@pytest.mark.parametrize("service", ["", "convserve.v1.Convserve", "digits"])
def test_health_of_the_server_the_service_and_each_model(service: str) -> None:
    with running_server({"digits": FakeModel()}) as address, grpc.insecure_channel(address) as channel:
        assert HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status == STATUS.SERVING


def test_health_of_what_is_not_there() -> None:
    request = health_pb2.HealthCheckRequest(service="cats")
    with running_server({"digits": FakeModel()}) as address, grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as error:
            HealthStub(channel).Check(request)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        watch = HealthStub(channel).Watch(request)
        assert next(watch).status == STATUS.SERVICE_UNKNOWN
        watch.cancel()


def test_sigterm_says_not_serving_first_and_a_watch_holds_nothing_up() -> None:
    with server_process() as (process, address), grpc.insecure_channel(address) as channel:
        watches = [HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "digits")]
        assert [next(watch).status for watch in watches] == [STATUS.SERVING] * 2
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert [next(watch).status for watch in watches] == [STATUS.NOT_SERVING] * 2
        assert process.wait(20) == 0
        assert time.monotonic() - start < 5


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_with_0(number: signal.Signals) -> None:
    with server_process() as (process, address):
        with Client(address) as client:
            assert client.classify(DIGIT)[0].label == "3"
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_sigterm_lets_a_map_in_work_end_and_refuses_new_calls() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (1500, 1500, 1), np.uint8)
    rest = threading.Event()

    def requests() -> Iterator[Any]:
        for number, request in enumerate(row_requests(pixels, at_once=50)):
            if number == 15:
                rest.wait(20)
            yield request

    with server_process() as (process, address), grpc.insecure_channel(address) as channel:
        call = ConvserveStub(channel).ScoreMap(requests())
        geometry = next(call).geometry
        next(call)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with Client(address, timeout=2) as client, pytest.raises(errors.ServerUnavailable):
            client.classify(DIGIT)
        assert process.poll() is None
        rest.set()
        responses = list(call)
        assert sum(response.rows.rows for response in responses) < geometry.rows
        assert responses[-1].completion.rows == geometry.rows
        assert process.wait(20) == 0


def test_the_streamed_map_has_the_local_bits_with_other_threads_and_budget() -> None:
    local = convserve.load(BUNDLED / "digits.convserve").score_map(PAGE)
    for options in (["--threads", "1"], ["--threads", "3"], ["--run-memory-budget", "300KiB"]):
        with server_process(*options) as (_, address), Client(address) as client:
            found = client.score_map(PAGE)
        assert np.array_equal(found.scores, local.scores)


# ---- memory and strangers

MEBIBYTE = 1 << 20


def resident_bytes(process: "subprocess.Popen[str]") -> int:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell resident memory by /proc")
@pytest.mark.parametrize("how", ["killed", "cancelled", "silent", "unread"])
def test_a_client_that_disappears_gives_the_memory_back(how: str) -> None:
    script = (
        "import sys, time, grpc, numpy as np\n"
        "from convserve.wire import scene\n"
        "from convserve.wire.convserve_pb2_grpc import ConvserveStub\n"
        "rows = np.zeros((80, 150_000, 1), np.uint8)\n"
        "def requests():\n"
        "    yield scene.header_to_message(scene.SceneHeader('uint8', width=150_000))\n"
        "    yield from scene.pixels_to_messages(0, rows)\n"
        "    time.sleep(60 if sys.argv[2] != 'unread' else 0)\n"
        "channel = grpc.insecure_channel(sys.argv[1], options=[('grpc.max_receive_message_length', -1)])\n"
        "call = ConvserveStub(channel).ScoreMap(requests())\n"
        "next(call); next(call); print('in work', flush=True)\n"
        "time.sleep(0.7)\n"
        "if sys.argv[2] == 'cancelled': call.cancel()\n"
        "time.sleep(60)\n"
    )
    with server_process("--stall-timeout", "1") as (process, address), Client(address) as client:
        client.classify(DIGIT)
        before = resident_bytes(process)
        arguments = [sys.executable, "-c", script, address, how]
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
            try:
                assert other.stdout is not None
                assert other.stdout.readline() == "in work\n"
                assert resident_bytes(process) > before + 120 * MEBIBYTE
                assert client.classify(DIGIT)[0].label == "3"
                if how == "killed":
                    other.kill()
                end = time.monotonic() + 15
                # what remains are the allocator's reserves and the engine's memory for the next small run
                while resident_bytes(process) > before + 70 * MEBIBYTE:
                    assert time.monotonic() < end, f"{resident_bytes(process) - before} bytes are still held"
                    time.sleep(0.1)
            finally:
                other.kill()
        assert client.classify(DIGIT)[0].label == "3"


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit, which limits a process, is not installed")
def test_memory_that_the_system_refuses() -> None:
    requests = row_requests(np.zeros((1, 1, 1), np.uint8), width=20_000_000)
    with server_process(address_space=2 << 30) as (_, address):
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
            list(ConvserveStub(channel).ScoreMap(iter([next(requests)])))
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert re.search(r"refused [\d,]+ bytes", error.value.details())
        with Client(address) as client:
            assert client.classify(DIGIT)[0].label == "3"


def test_strangers_that_speak_no_grpc() -> None:
    with server_process() as (_, address), Client(address) as client:
        host, _, port = address.rpartition(":")
        for number in range(60):
            said = [b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(90), os.urandom(3000)]
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(said[number % 4])
        assert client.classify(DIGIT)[0].label == "3"


# ---- starting


def test_two_servers_do_not_share_a_port() -> None:
    with server_process() as (_, address):
        port = address.rpartition(":")[2]
        second = subprocess.run(
            [sys.executable, "-m", "convserve", "serve", "--port", port],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
    assert second.returncode == 1
    assert second.stdout == ""
    assert "cannot listen on 127.0.0.1:" + port in second.stderr


def test_serve_prints_json_on_request() -> None:
    net = f"numbers={BUNDLED}/digits.convserve"
    command = [sys.executable, "-m", "convserve", "serve", "--port", "0", "--json", net]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = "".join(iter(process.stdout.readline, "}\n")) + "}"
        process.terminate()
        assert process.wait(20) == 0
    assert json.loads(text)["models"] == ["numbers"]


@pytest.mark.parametrize(
    ("limit", "value"),
    [("max_running", 0), ("max_waiting", -1), ("stall_s", 0.0), ("message_bytes", 1 << 40), ("image_bytes", 5)],
)
def test_limits_out_of_their_range(limit: str, value: float) -> None:
    with pytest.raises(errors.InputError, match=rf"{limit} is .*; allowed: "):
        Limits(**{limit: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [[], [""], ["a\nb"]])
def test_a_repository_has_models_with_names(names: list[str]) -> None:
    with pytest.raises(errors.InputError):
        Repository({name: FakeModel() for name in names})  # type: ignore[misc]


def test_a_port_is_a_port() -> None:
    with pytest.raises(errors.InputError, match="65536"):
        Server(Repository({"fake": FakeModel()}), port=65536)  # type: ignore[dict-item]
