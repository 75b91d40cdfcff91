"""A server's repository: versions, policies, bad files, what lies outside, loading and unloading while it serves."""

import gc
import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from model_folders import add_version, put_garbage, put_network, repository, states
from serving import FakeModel

from convserve import errors, load
from convserve.server import ModelFolder, ModelState, Repository
from convserve.server.repository import LOADING, READY, UNAVAILABLE

X = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)


def scores(found: Repository, name: str = "net", version: str = "") -> bytes:
    y = found.model(name, version).model.run(X)
    assert isinstance(y, np.ndarray)
    return y.tobytes()


def scores_of_seed(folder: Path, seed: int) -> bytes:
    y = load(put_network(folder / f"{seed}.convserve", seed=seed)).run(X)
    assert isinstance(y, np.ndarray)
    return y.tobytes()


# ---- which versions


@pytest.mark.parametrize(
    ("policy", "served"),
    [(None, [10]), ("1", [10]), ("2", [10, 2]), ('"all"', [10, 2, 1]), ("[1, 2]", [2, 1]), ("9", [10, 2, 1])],
)
def test_the_policy_chooses_versions_by_number(tmp_path: Path, policy: str | None, served: list[int]) -> None:
    for version in (1, 2, 10):
        add_version(tmp_path, "net", version, seed=version)
    if policy is not None:
        (tmp_path / "net" / "config.toml").write_text(f"versions = {policy}\n")
    found = repository(tmp_path)
    assert states(found) == {f"net/{version}": READY for version in served}
    assert found.model("", "")[:2] == ("net", str(served[0]))
    assert scores(found) == scores_of_seed(tmp_path, served[0])
    for version in served:
        assert scores(found, "net", str(version)) == scores_of_seed(tmp_path, version)


def test_a_version_that_is_named_and_not_there_is_told(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1)
    (tmp_path / "net" / "config.toml").write_text("versions = [1, 7]\n")
    found = repository(tmp_path)
    assert states(found) == {"net/7": UNAVAILABLE, "net/1": READY}
    assert found.index()[0].reason == "there is no version 7 of the model 'net'"
    assert found.model("net").version == "1"


def test_folders_that_are_no_versions_and_names_that_are_none(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 3)
    for name in ("0", "01", "-1", "1.5", "x", "9" * 30):
        (tmp_path / "net" / name).mkdir()
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    found = repository(tmp_path)
    assert found.index() == [ModelState("empty", "", UNAVAILABLE, "it has no version"), ModelState("net", "3", READY)]
    assert found.names == ["net"]
    assert found.known == ["empty", "net"]


@pytest.mark.parametrize("version", ["0", "-1", "1.0", "latest", "٣", "1" * 400, " 1"])
def test_versions_that_are_none(tmp_path: Path, version: str) -> None:
    add_version(tmp_path, "net", 1)
    with pytest.raises(errors.InputError, match=r"the model's version is .*; allowed: whole numbers from 1"):
        repository(tmp_path).model("net", version)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1)
    add_version(tmp_path, "other", 1)
    found = repository(tmp_path)
    for name, version, said in (
        ("", "", "the request names no model; there is: net, other"),
        ("n" * 5000, "", "there is no model 'n{100}'; there is: net, other"),
        ("net", "2", "there is no version 2 of the model 'net'; there is: 1"),
        ("../net", "", "there is no model"),
    ):
        with pytest.raises(errors.ModelNotFoundError, match=said):
            found.model(name, version)


# ---- bad versions, and replaced ones


def test_a_bad_new_version_never_displaces_a_good_one(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1, seed=1)
    found = repository(tmp_path)
    put_garbage(add_version(tmp_path, "net", 2) / "model.convserve")
    found.refresh()
    assert states(found) == {"net/2": UNAVAILABLE, "net/1": READY}
    reason = found.index()[0].reason
    assert reason
    assert str(tmp_path) not in reason
    assert scores(found) == scores_of_seed(tmp_path, 1)
    with pytest.raises(errors.ModelError):
        found.load("net")
    assert scores(found) == scores_of_seed(tmp_path, 1)
    put_network(tmp_path / "net/2/model.convserve", seed=2)
    found.refresh()
    assert states(found) == {"net/2": READY}
    assert scores(found) == scores_of_seed(tmp_path, 2)


def test_a_server_that_starts_with_a_bad_new_version_takes_the_one_before(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1, seed=1)
    put_garbage(add_version(tmp_path, "net", 2) / "model.convserve")
    found = repository(tmp_path)
    assert found.model("net").version == "1"


def test_a_file_that_is_replaced_is_loaded_anew_and_a_bad_one_is_not(tmp_path: Path) -> None:
    path = add_version(tmp_path, "net", 1, seed=1) / "model.convserve"
    found = repository(tmp_path)
    put_network(path, seed=2)
    assert scores(found) == scores_of_seed(tmp_path, 1)
    found.refresh()
    assert scores(found) == scores_of_seed(tmp_path, 2)
    put_garbage(path)
    found.refresh()
    assert scores(found) == scores_of_seed(tmp_path, 2)
    [state] = found.index()
    assert state.state == READY
    assert state.reason


@pytest.mark.parametrize("how", ["cut", "emptied", "written", "grown"])
def test_a_file_that_is_written_to_while_it_is_served_is_not_read_again(tmp_path: Path, how: str) -> None:
    path = add_version(tmp_path, "net", 1, seed=1) / "model.convserve"
    found = repository(tmp_path)
    scores(found)
    with path.open("r+b") as file:
        if how in ("cut", "emptied"):
            file.truncate(0 if how == "emptied" else 5000)
        else:
            file.seek(-8 if how == "written" else 0, os.SEEK_END)
            file.write(b"12345678")
    with pytest.raises(errors.ServerUnavailable, match="damaged on the server"):
        found.model("net")
    assert states(found) == {"net/1": UNAVAILABLE}
    assert "replace files by renaming" in found.index()[0].reason
    with pytest.raises(errors.ModelNotFoundError):
        found.model("net")
    put_network(path, seed=2)
    found.refresh()
    assert scores(found) == scores_of_seed(tmp_path, 2)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_removed_or_replaced_is_served_on(tmp_path: Path, how: str) -> None:
    path = add_version(tmp_path, "net", 1, seed=1) / "model.convserve"
    found = repository(tmp_path)
    if how == "removed":
        path.unlink()
    else:
        put_network(path, seed=2)
    assert scores(found) == scores_of_seed(tmp_path, 1)


def test_an_unchanged_folder_is_not_loaded_again(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1)
    put_garbage(add_version(tmp_path, "bad", 1) / "model.convserve")
    found = repository(tmp_path)
    before, index = found.model("net").model, found.index()
    changes: list[int] = []
    found.listen(lambda: changes.append(1))
    found.refresh()
    assert found.model("net").model is before
    assert found.index() == index
    assert not changes


def test_a_network_that_does_not_run_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_version(tmp_path, "net", 1, seed=1)
    found = repository(tmp_path)
    (add_version(tmp_path, "net", 2, seed=2) / "config.toml").write_text('memory_budget = "1KiB"\n')
    found.refresh()
    assert states(found) == {"net/2": UNAVAILABLE, "net/1": READY}
    assert "budget" in found.index()[0].reason
    (tmp_path / "net/2/config.toml").write_text('memory_budget = "1KiB"\nwarm_up = false\n')
    found.refresh()
    assert states(found) == {"net/2": READY}


def test_files_that_are_still_being_written_wait_for_the_next_poll(tmp_path: Path) -> None:
    path = add_version(tmp_path, "net", 1) / "model.convserve"
    found = Repository(folder=ModelFolder(tmp_path))
    found.refresh(settled_s=3600)
    assert found.names == []
    found.refresh()
    assert found.names == ["net"]
    put_garbage(path)
    found.refresh(settled_s=3600)
    assert [one.reason for one in found.index()] == [""]


def test_a_model_whose_folder_goes_is_served_no_more(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1)
    add_version(tmp_path, "other", 1)
    found = repository(tmp_path)
    os.rename(tmp_path / "net", tmp_path / ".net")
    found.refresh()
    assert found.known == ["other"]


# ---- what a client may ask while things change


def test_before_the_first_load_a_request_is_told_to_wait(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1)
    found = Repository(folder=ModelFolder(tmp_path))
    assert not found.complete
    assert found.index() == [ModelState("net", "", LOADING)]
    with pytest.raises(errors.ServerUnavailable, match="'net' is being loaded"):
        found.model("net")
    found.refresh()
    assert found.complete
    assert found.model("net").version == "1"


def test_unloaded_until_it_is_loaded_again(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1, seed=1)
    found = repository(tmp_path)
    found.unload("net")
    assert found.index() == [ModelState("net", "1", UNAVAILABLE, "unloaded")]
    found.refresh()
    with pytest.raises(errors.ModelNotFoundError, match="'net' is not loaded"):
        found.model("net")
    found.load("net")
    assert scores(found) == scores_of_seed(tmp_path, 1)


@pytest.mark.parametrize("name", ["", ".", "..", "../net", "net/1", "/etc", "nett", "\0", "n" * 10_000])
def test_load_and_unload_take_only_names_that_are_there(tmp_path: Path, name: str) -> None:
    add_version(tmp_path / "inside", "net", 1)
    add_version(tmp_path, "net", 1)
    found = repository(tmp_path / "inside")
    for ask in (found.load, found.unload):
        with pytest.raises(errors.ModelNotFoundError) as error:
            ask(name)
        assert len(str(error.value)) < 500
    assert found.names == ["net"]


def test_given_models_stay(tmp_path: Path) -> None:
    add_version(tmp_path, "net", 1)
    found = Repository({"fake": FakeModel()}, ModelFolder(tmp_path))  # type: ignore[dict-item]
    assert found.model("fake").version == "1"
    with pytest.raises(errors.InputError, match="was given when the server began"):
        found.unload("fake")
    found.load("fake")
    found.refresh()
    assert found.names == ["fake", "net"]
    with pytest.raises(errors.InputError, match="two networks are called 'net'"):
        Repository({"net": FakeModel()}, ModelFolder(tmp_path))  # type: ignore[dict-item]


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell mappings by /proc")
def test_unloading_gives_the_memory_back_when_the_last_request_has_ended(tmp_path: Path) -> None:
    path = add_version(tmp_path, "net", 1, filters=20_000) / "model.convserve"
    found = repository(tmp_path)
    scores(found)
    found.unload("net")
    gc.collect()
    before = resident_bytes()
    for _ in range(3):
        found.load("net")
        in_flight = found.model("net")
        expected = in_flight.model.run(X)
        assert mapped(path)
        assert resident_bytes() > before + path.stat().st_size // 2
        found.unload("net")
        assert mapped(path)
        assert np.array_equal(in_flight.model.run(X), expected)
        gone = weakref.ref(in_flight.model)
        del in_flight
        assert gone() is None
        assert not mapped(path)
    assert resident_bytes() < before + path.stat().st_size // 4


def test_requests_never_miss_a_model_that_is_replaced_all_the_time(tmp_path: Path) -> None:
    path = add_version(tmp_path, "net", 1, seed=0) / "model.convserve"
    known = {scores_of_seed(tmp_path, seed) for seed in range(4)}
    found = repository(tmp_path)
    stop, failures = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                assert scores(found) in known
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(12):
        put_network(path, seed=number % 4)
        if number % 3 == 1:
            put_garbage(path)
        found.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


# ---- nothing from outside


@pytest.mark.parametrize("how", ["file", "version", "model", "hard link", "labels", "fifo", "folder"])
def test_links_that_lead_out_of_the_repository(tmp_path: Path, how: str) -> None:
    root = tmp_path / "inside"
    outside = add_version(tmp_path / "outside", "net", 1)
    (outside / "labels.txt").write_text("a\nb\nc\n")
    inside = root / "net" / "1"
    inside.parent.mkdir(parents=True)
    if how == "model":
        inside.parent.rmdir()
        inside.parent.symlink_to(outside.parent)
    elif how == "version":
        inside.symlink_to(outside)
    else:
        inside.mkdir()
        model = inside / "model.convserve"
        if how == "file":
            model.symlink_to(outside / "model.convserve")
        elif how == "hard link":
            os.link(outside / "model.convserve", model)
        elif how == "fifo":
            os.mkfifo(model)
        elif how == "folder":
            model.mkdir()
        else:
            put_network(model)
            (inside / "labels.txt").symlink_to(outside / "labels.txt")
    found = repository(root)
    assert found.names == []
    assert all(one.state == UNAVAILABLE and str(tmp_path) not in one.reason for one in found.index())


def test_links_within_the_repository_are_followed(tmp_path: Path) -> None:
    # as Kubernetes mounts volumes
    data = add_version(tmp_path / ".data", "net", 1, seed=1)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "1").symlink_to(data)
    assert scores(repository(tmp_path)) == scores_of_seed(tmp_path, 1)


def test_reasons_have_no_path(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    inside = tmp_path / "net" / "1" / "model.onnx"
    said = folder._without_paths(f"'{inside}': not ONNX; '/root/.cache/convserve/4f.convserve' has 16/8 bytes, /x too")
    assert said == "'net/1/model.onnx': not ONNX; '4f.convserve' has 16/8 bytes, /x too"


@pytest.mark.parametrize("path", ["missing", "file"])
def test_a_repository_is_a_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.InputError, match="cannot be read"):
        ModelFolder(tmp_path / path)
