"""convserve health: exit codes for probes, what it says of a server that does not serve, and waiting for one."""

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from model_folders import add_version
from serving import running_server

import convserve
from convserve.cli.main import main
from convserve.server import ModelFolder, Repository


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_a_server_and_a_model_that_serve(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", address]) == 0
    assert capsys.readouterr().out == f"{address} is serving\n"
    assert main(["health", address, "--model", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"address": address, "model": "digits", "status": "SERVING"}


def test_a_model_that_is_not_there(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", address, "--model", "cats"]) == 1
    assert capsys.readouterr().err == f"convserve: the server at {address} has no model 'cats'\n"


def test_models_that_are_not_loaded_yet(
    tmp_path: Path, model: convserve.Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(tmp_path, "small", 1)
    monkeypatch.setattr("convserve.server.repository.Repository.refresh", lambda self, **options: None)
    with running_server(Repository({"digits": model}, ModelFolder(tmp_path))) as address:
        assert main(["health", address]) == 1
        assert main(["health", address, "--model", "small"]) == 1
        assert main(["health", address, "--model", "digits"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("says NOT_SERVING")
    assert second.endswith("says NOT_SERVING of the model 'small'")


def test_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", f"127.0.0.1:{free_port()}"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_a_server_without_health(capsys: pytest.CaptureFixture[str]) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert main(["health", f"127.0.0.1:{port}"]) == 1
    assert "does not offer grpc.health.v1" in capsys.readouterr().err
    server.stop(None)


def test_a_server_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert main(["health", f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.2"]) == 1
    assert "did not answer within 0.2 s" in capsys.readouterr().err


def test_waiting_until_models_are_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(tmp_path, "small", 1)
    asked, refresh = threading.Event(), Repository.refresh

    def later(self: Repository) -> None:
        assert asked.wait(20)
        refresh(self)

    def sleep(seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        asked.set()
        sleep(seconds)

    monkeypatch.setattr("convserve.server.repository.Repository.refresh", later)
    with running_server(Repository({}, ModelFolder(tmp_path))) as address:
        monkeypatch.setattr("convserve.cli.health.time.sleep", sleep)
        assert main(["health", address, "--wait", "60"]) == 0
    assert asked.is_set()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["localhost", "", "localhost:", "localhost:http"])
def test_an_address_has_a_port(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", text]) == 1
    assert "it must be a host and a port" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--timeout", "-1"], ["--wait", "nan"], ["--wait", "soon"]])
def test_wrong_usage(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["health", *option])
    assert ended.value.code == 2
    assert "is no number of seconds" in capsys.readouterr().err
