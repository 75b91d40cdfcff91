"""The server as a process: health, signals, draining, ports, what it prints."""

import json
import os
import re
import signal
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
from serving import FakeModel, row_requests, running_server

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
def server_process(*options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [sys.executable, "-m", "convserve", "serve", "--port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"listening on (127\.0\.0\.1:\d+) with digits$", process.stdout.readline().strip())
            assert found, process.stderr and process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


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
    for options in (["--threads", "1"], ["--threads", "3"], ["--memory-budget", "300KiB"]):
        with server_process(*options) as (_, address), Client(address) as client:
            found = client.score_map(PAGE)
        assert np.array_equal(found.scores, local.scores)


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
    [("workers", 0), ("max_waiting", -1), ("stall_s", 0.0), ("message_bytes", 1 << 40), ("image_bytes", 5)],
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
