"""The cache of packed networks: packed once, found by content, safe against changes, damage, limits and company."""

import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_maker import drawn, made

import convserve
from convserve.cli.main import main
from convserve.errors import ModelFormatError, SettingError, UnsupportedOpError
from convserve.formats import cache as cache_module
from convserve.formats import container_writer, conversion
from convserve.formats.cache import Cache, standard_cache

ROOT = Path(__file__).parents[1]
X = drawn(2, 3, 20, 20)


def content(seed: int = 0, channels: int = 16) -> bytes:
    """An ONNX network of a padded 3x3 convolution and a classifier, some 60 KiB."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (channels, 3, 3, 3), "b": (channels,), "m": (5, channels * 20 * 20)}
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return made(
        ("Conv", "x w b", "c", {"pads": [1, 1, 1, 1]}),
        ("Flatten", "c", "f"),
        ("Gemm", "f m", "y", {"transB": 1}),
        weights=weights,
        shape=("N", 3, 20, 20),
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(cache_module, "SETTLED_NS", 0)
    return standard_cache()


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(content())
    return path


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were packed, one for each time."""
    made_here: list[Path] = []
    write = conversion.write_container

    def counted(path: Path, *args: Any, **options: Any) -> None:
        made_here.append(path)
        write(path, *args, **options)

    monkeypatch.setattr(conversion, "write_container", counted)
    return made_here


def test_a_second_load_maps_what_the_first_packed(store: Cache, net: Path, packings: list[Path]) -> None:
    first, second, private = convserve.load(net), convserve.load(net), convserve.load(net, cache=False)
    assert len(packings) == 1
    assert first.storage is not None
    assert first.storage == second.storage
    assert Path(str(first.storage.path)).parent == store.folder
    assert private.storage is not None
    assert private.storage.path is None
    assert private.storage.size_bytes == first.storage.size_bytes
    assert first.name == second.name == private.name == "net"
    wanted = private.run(X)
    assert first.run(X).tobytes() == second.run(X).tobytes() == wanted.tobytes()


def test_a_known_file_is_not_read_again(store: Cache, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convserve.load(net)
    monkeypatch.setitem(convserve.load.__globals__, "_onnx_file", None)
    convserve.load(net)
    code = (
        f"import sys, convserve; convserve.load({str(net)!r}); print('google.protobuf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_copy_of_a_network_shares_its_packed_form(store: Cache, net: Path, packings: list[Path]) -> None:
    copy = net.with_name("other.onnx")
    copy.write_bytes(net.read_bytes())
    one, other = convserve.load(net), convserve.load(copy)
    assert len(packings) == 1
    assert one.storage == other.storage
    assert other.name == "other"


def same_size_and_times(path: Path, new: bytes) -> None:
    before = path.stat()
    assert len(new) == before.st_size
    with path.open("r+b") as stream:
        stream.write(new)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_with_its_times(path: Path, new: bytes) -> None:
    before = path.stat()
    draft = path.with_suffix(".draft")
    draft.write_bytes(new)
    os.utime(draft, ns=(before.st_atime_ns, before.st_mtime_ns))
    draft.replace(path)


@pytest.mark.parametrize("change", [Path.write_bytes, same_size_and_times, replaced_with_its_times])
def test_a_changed_file_is_never_taken_for_the_old_one(
    change: Callable[[Path, bytes], None], store: Cache, net: Path
) -> None:
    old = convserve.load(net).run(X)
    time.sleep(0.02)  # the system's clock for files goes in steps of some milliseconds
    change(net, content(seed=1))
    new = convserve.load(net).run(X)
    assert not np.array_equal(old, new)
    assert np.array_equal(new, convserve.load(net, cache=False).run(X))


def test_a_file_that_was_just_written_is_hashed_again(
    store: Cache, net: Path, packings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SETTLED_NS", 10**12)
    convserve.load(net)
    assert not list(store.folder.glob("*.known"))
    convserve.load(net)
    assert len(packings) == 1


@pytest.mark.parametrize("options", [{"algorithm": "gemm"}, {"window": (20, 20)}])
def test_options_that_shape_the_packed_form_have_their_own(
    options: dict[str, Any], store: Cache, net: Path, packings: list[Path]
) -> None:
    convserve.load(net)
    convserve.load(net, **options)
    convserve.load(net, **options, labels=list("abcde"))
    assert len(packings) == 2


def test_other_code_packs_again(
    store: Cache, net: Path, packings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    convserve.load(net)
    monkeypatch.setattr(cache_module, "_code_digest", lambda: b"other")
    convserve.load(net)
    assert len(packings) == 2


def test_external_data_is_part_of_the_content(store: Cache, tmp_path: Path, packings: list[Path]) -> None:
    model = onnx.load_model_from_string(content())
    path = tmp_path / "split.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="split.bin", size_threshold=0)
    assert (tmp_path / "split.bin").stat().st_size > 20000
    old = convserve.load(path).run(X)
    assert np.array_equal(old, convserve.load(content()).run(X))
    convserve.load(path)
    assert len(packings) == 1
    time.sleep(0.02)
    data = tmp_path / "split.bin"
    same_size_and_times(data, (np.frombuffer(data.read_bytes(), np.float32) * 2).tobytes())
    new = convserve.load(path).run(X)
    assert len(packings) == 2
    assert not np.array_equal(old, new)
    (tmp_path / "split.bin").unlink()
    with pytest.raises(ModelFormatError, match="missing"):
        convserve.load(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def flip(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(-64, os.SEEK_END)
        stream.write(b"\x7f\x7f\x7f\x7f")


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("which", ["*.convserve", "*.json", "*.known"])
def test_whatever_is_damaged_is_made_again(
    which: str, damage: Callable[[Path], None], store: Cache, net: Path
) -> None:
    wanted = convserve.load(net).run(X)
    time.sleep(0.02)
    (path,) = store.folder.glob(which)
    if damage is cut and which != "*.convserve":
        path.write_text(path.read_text()[:-9])
    else:
        damage(path)
    model = convserve.load(net)
    assert model.storage is not None
    assert model.storage.path is not None
    assert model.run(X).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("record", ["[]", '{"files": 3, "digest": 4}', '{"files": {}, "digest": "zz"}', "\xff"])
def test_a_record_of_another_form_is_not_believed(record: str, store: Cache, net: Path, packings: list[Path]) -> None:
    convserve.load(net)
    (known,) = store.folder.glob("*.known")
    known.write_bytes(record.encode("latin-1"))
    convserve.load(net)
    assert len(packings) == 1


def test_what_cannot_be_imported_leaves_nothing(store: Cache, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(made(("Det", "x", "y")))
    with pytest.raises(UnsupportedOpError):
        convserve.load(path)
    assert store.entries() == []


def test_a_file_that_is_written_to_while_it_is_packed_is_refused(
    store: Cache, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = container_writer.write_container

    def touched(*args: Any, **options: Any) -> None:
        os.utime(net)
        write(*args, **options)

    monkeypatch.setattr(conversion, "write_container", touched)
    with pytest.raises(ModelFormatError, match="written to while it was read"):
        convserve.load(net)
    monkeypatch.undo()


def test_threads_and_processes_pack_once(store: Cache, net: Path, packings: list[Path]) -> None:
    code = f"import convserve; print(convserve.load({str(net)!r}).storage.path)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    models: list[Any] = []
    threads = [threading.Thread(target=lambda: models.append(convserve.load(net))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    paths = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert paths == {model.storage.path for model in models}
    assert len(paths) == 1
    assert len(packings) <= 1
    assert len({model.run(X).tobytes() for model in models}) == 1
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]


def test_the_limit_removes_what_was_used_longest_ago(
    store: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"net{number}.onnx" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(content(number))
    models = [convserve.load(path) for path in paths[:2]]
    for age, entry in enumerate(store.entries()):
        os.utime(entry.path.with_suffix(".json"), (0, 10**9 - age))
    convserve.load(paths[0])
    size = store.entries()[0].size_bytes
    monkeypatch.setenv("CONVSERVE_CACHE_BYTES", str(size * 5 // 2))
    convserve.load(paths[2])
    assert {Path(entry.source).name for entry in store.entries()} == {"net0.onnx", "net2.onnx"}
    # who has it mapped keeps it
    assert np.array_equal(models[1].run(X), convserve.load(paths[1], cache=False).run(X))


def test_a_network_above_the_limit_takes_private_memory_and_says_so(
    store: Cache, net: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CONVSERVE_CACHE_BYTES", "4KiB")
    model = convserve.load(net)
    assert "CONVSERVE_CACHE_BYTES allows 4,096" in str(model.storage)
    assert "net.onnx take private memory" in caplog.text
    assert "of private memory" in model.describe().table()
    assert store.entries() == []


def test_where_the_folder_cannot_be_written_memory_is_private(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = convserve.load(net)
    assert model.storage is not None
    assert model.storage.path is None
    assert "the cache cannot be used: Not a directory" in caplog.text
    assert model.run(X).shape == (2, 5)


def test_a_full_disk_leaves_no_draft(
    store: Cache, net: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container_writer.os, "fsync", full)
    model = convserve.load(net)
    assert "No space left on device" in str(model.storage)
    assert not list(store.folder.glob(".*"))
    assert store.entries() == []


def test_the_setting_switches_it_off(store: Cache, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_CACHE", "off")
    assert "CONVSERVE_CACHE is off" in str(convserve.load(net).storage)
    assert not store.folder.exists()
    monkeypatch.setenv("CONVSERVE_CACHE", "maybe")
    with pytest.raises(SettingError, match="one of on, off"):
        convserve.load(net)


def test_a_folder_of_other_modes_is_the_users_own(store: Cache, net: Path) -> None:
    convserve.load(net)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


def test_a_relative_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert standard_cache().folder == tmp_path / ".cache" / "convserve"


def test_the_command_lists_and_clears(store: Cache, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.startswith("0 network(s)")
    convserve.load(net)
    assert main(["cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["source"] for one in found["networks"]] == [str(net)]
    assert found["path"] == str(store.folder)
    assert main(["cache"]) == 0
    assert str(net) in capsys.readouterr().out
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out == f"{store.folder}\n"
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 network(s)")
    assert list(store.folder.iterdir()) == []


def test_abandoned_drafts_are_removed(store: Cache, net: Path) -> None:
    store.folder.mkdir(parents=True)
    old, new = store.folder / ".a.convserve.1", store.folder / ".b.convserve.2"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 7200))
    convserve.load(net)
    assert not old.exists()
    assert new.exists()
