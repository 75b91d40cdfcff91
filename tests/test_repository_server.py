"""A server whose models come from a repository: health, versions in requests, polling, SIGHUP."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from model_folders import add_version, put_garbage, put_network, repository
from serving import process_of, running_server

from convserve import errors
from convserve.client import Client
from convserve.server import ModelFolder, Repository

STATUS = health_pb2.HealthCheckResponse
X = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)


def eventually(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not so within {limit_s} s"
        time.sleep(0.02)


def states(client: Client) -> list[tuple[str, str, str]]:
    return [(one["name"], one["version"], one["state"]) for one in client.list_models()]


def test_a_request_may_name_a_version_in_every_method(tmp_path: Path) -> None:
    for version in (1, 2):
        add_version(tmp_path, "net", version, seed=version)
    (tmp_path / "net" / "config.toml").write_text("versions = 'all'")
    with running_server(found := repository(tmp_path)) as address, Client(address) as client:
        assert states(client) == [("net", "2", "READY"), ("net", "1", "READY")]
        scores = []
        for version in ("1", "2", ""):
            local = found.model("net", version).model
            assert client.classify(X, version=version)[0].score == local.classify(X)[0].score
            remote = client.score_map(X, model="net", version=version)
            assert np.array_equal(remote.scores, local.score_map(X).scores)
            with client.score_stream(X, version=version) as stream:
                scores.append(np.concatenate([block for _, block in stream]).tobytes())
            assert client.describe(version=version)["version"] == (version or "2")
            assert client.plan(8, 8, version=version).weight_bytes > 0
        assert scores[0] != scores[1] == scores[2]
        for wrong, error in (("3", errors.ModelNotFoundError), ("x", errors.InputError)):
            with pytest.raises(error):
                client.classify(X, version=wrong)
            with pytest.raises(error):
                client.score_map(X, version=wrong)


def test_health_follows_the_repository(tmp_path: Path) -> None:
    path = add_version(tmp_path, "net", 1) / "model.convserve"
    put_garbage(add_version(tmp_path, "bad", 1) / "model.convserve")
    found = Repository(folder=ModelFolder(tmp_path))
    with found._changing, running_server(found) as address, grpc.insecure_channel(address) as channel:
        # the lock is held, so nothing is loaded yet
        stub, names = HealthStub(channel), ("", "net", "bad")
        watches = {name: stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names}
        assert [next(watch).status for watch in watches.values()] == [STATUS.NOT_SERVING] * 3
        with Client(address, retries=0) as client:
            with pytest.raises(errors.ServerUnavailable, match="is being loaded"):
                client.classify(X, model="net")
            assert states(client) == [("bad", None, "LOADING"), ("net", None, "LOADING")]
        found._changing.release()
        try:
            assert next(watches[""]).status == next(watches["net"]).status == STATUS.SERVING
            with Client(address) as client:
                assert client.classify(X, model="net")
                assert states(client) == [("bad", "1", "UNAVAILABLE"), ("net", "1", "READY")]
                assert client.list_models()[0]["reason"]
            found.unload("net")
            assert next(watches["net"]).status == STATUS.NOT_SERVING
            put_network(path, seed=3)
            found.load("net")
            assert next(watches["net"]).status == STATUS.SERVING
        finally:
            found._changing.acquire()
        for watch in watches.values():
            watch.cancel()


def test_polling_finds_new_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convserve.server.serving.SETTLED_S", 0)
    add_version(tmp_path, "net", 1)
    with (
        running_server(repository(tmp_path), {"poll_s": 0.05}) as address,
        Client(address) as client,
    ):
        (tmp_path / ".new").mkdir()
        add_version(tmp_path / ".new", "net", 2)
        (tmp_path / ".new" / "net" / "2").rename(tmp_path / "net" / "2")
        eventually(lambda: states(client) == [("net", "2", "READY")])


def test_sighup_reads_the_repository_again(tmp_path: Path) -> None:
    with process_of("--repository", str(tmp_path)) as (process, address), Client(address) as client:
        assert states(client) == []
        with pytest.raises(errors.ModelNotFoundError):
            client.classify(X)
        add_version(tmp_path, "net", 1)
        process.send_signal(signal.SIGHUP)
        eventually(lambda: states(client) == [("net", "1", "READY")])
        assert client.classify(X)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_file_that_is_cut_off_ends_its_model_alone(tmp_path: Path) -> None:
    path = add_version(tmp_path, "cut", 1) / "model.convserve"
    add_version(tmp_path, "whole", 1)
    with process_of("--repository", str(tmp_path)) as (process, address), Client(address, retries=0) as client:
        eventually(lambda: {one[2] for one in states(client)} == {"READY"})
        assert client.classify(X, model="cut")
        os.truncate(path, 4096)
        for _ in range(2):
            with pytest.raises((errors.ServerUnavailable, errors.ModelNotFoundError)):
                client.classify(X, model="cut")
        assert client.classify(X, model="whole")
        assert states(client)[0] == ("cut", "1", "UNAVAILABLE")
        # still no network
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "renaming" not in (client.list_models()[0]["reason"] or "renaming"))
        assert states(client)[0] == ("cut", "1", "UNAVAILABLE")
        put_network(path)
        process.send_signal(signal.SIGHUP)
        eventually(lambda: states(client)[0] == ("cut", "1", "READY"))
        assert client.classify(X, model="cut")


@pytest.mark.parametrize("how", ["cut", "written"])
def test_a_file_that_changes_while_runs_read_it(tmp_path: Path, how: str) -> None:
    path = add_version(tmp_path, "net", 1, filters=20_000) / "model.convserve"
    add_version(tmp_path, "whole", 1)
    images = np.random.default_rng(2).standard_normal((40, 3, 8, 8)).astype(np.float32)
    single = [images[number : number + 1] for number in range(40)]
    with (
        process_of("--repository", str(tmp_path), "--threads", "1") as (process, address),
        Client(address, retries=0) as client,
    ):
        eventually(lambda: {one[2] for one in states(client)} == {"READY"})
        answers = {name: client.classify(single, model=name) for name in ("net", "whole")}

        def ask() -> errors.ConvserveError | None:
            for _ in range(400):
                try:
                    found = client.classify(single, model="net")
                except (errors.ModelChangedError, errors.ServerUnavailable, errors.ModelNotFoundError) as error:
                    return error
                assert found == answers["net"]
            return None

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            other = [client.classify(single, model="whole")]
            if how == "cut":
                os.truncate(path, 4096)
            else:
                with path.open("r+b") as file:
                    file.seek(path.stat().st_size // 2)
                    file.write(bytes(4096))
            ended = [one.result() for one in asking]
            other += [client.classify(single, model="whole") for _ in range(3)]
        assert all(one is not None and str(tmp_path) not in str(one) for one in ended)
        assert all(one == answers["whole"] for one in other)
        assert states(client) == [("net", "1", "UNAVAILABLE"), ("whole", "1", "READY")]
        assert "replace files by renaming" in client.list_models()[0]["reason"]
        put_network(path, filters=20_000)
        process.send_signal(signal.SIGHUP)
        eventually(lambda: states(client)[0] == ("net", "1", "READY"))
        assert client.classify(single, model="net") == answers["net"]


def test_loads_and_unloads_from_many_sides_while_others_ask(tmp_path: Path) -> None:
    for name in ("a", "b"):
        add_version(tmp_path, name, 1)
    found = repository(tmp_path)
    expected = found.model("b").model.classify(X)[0].score

    def change(number: int) -> None:
        (found.unload if number % 2 else found.load)("a")

    with running_server(found) as address, Client(address) as client, ThreadPoolExecutor(4) as pool:
        changes = [pool.submit(change, number) for number in range(24)]
        while not all(one.done() for one in changes):
            assert client.classify(X, model="b")[0].score == expected
            try:
                assert client.classify(X, model="a")[0].score == expected
            except errors.ModelNotFoundError:
                continue
        for one in changes:
            one.result()
        found.load("a")
        assert client.classify(X, model="a")[0].score == expected


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("empty", "the repository has no model; a version is NAME/VERSION/model.convserve"),
        ("models/small", "without a version: 1; a version is NAME/VERSION/model.convserve"),
        ("models", None),
    ],
)
def test_a_folder_one_level_off_is_told(
    folder: str, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(tmp_path / "models", "small", 1)
    (tmp_path / "empty").mkdir()
    models = repository(tmp_path / folder)
    models.refresh()
    told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(told) == (said is not None)
    assert said is None or told[0].startswith(said)
