"""Files that are cut off or written to while they are mapped: no process ends, and no answer comes of what was read."""

import gc
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from model_folders import put_network

import convserve
from convserve import errors
from convserve.engine.binding import Executor
from convserve.engine.engine import Engine
from convserve.formats.mapping import Mapping
from convserve.plan.layout import Layout

ROOT = Path(__file__).parents[1]
PAGE = mmap.PAGESIZE
CHANNELS = 2000
X = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)


def mapping_of(path: Path) -> Mapping:
    with path.open("rb") as stream:
        return Mapping(stream.fileno())


def mapping_in(model: convserve.Model) -> Mapping:
    assert model.storage is not None
    assert model.storage.mapping is not None
    return model.storage.mapping


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Return a network whose weights take many pages."""
    return put_network(tmp_path / "net.convserve", filters=CHANNELS)


# ---- one mapping


@pytest.mark.parametrize("left", [0, 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 50])
def test_what_a_file_has_no_more_reads_as_zero_and_is_known(tmp_path: Path, left: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x55" * (3 * PAGE + 100))
    cut, whole = mapping_of(path), mapping_of(Path(__file__))
    assert cut.is_intact
    os.truncate(path, left)
    assert not cut.is_intact
    assert not cut.was_cut
    found = bytes(memoryview(cut))
    assert found == b"\x55" * left + bytes(3 * PAGE + 100 - left)
    # what is left of the last page reads as zero without a signal
    assert cut.was_cut == (left <= 3 * PAGE)
    path.write_bytes(b"\x55" * (3 * PAGE + 100))
    assert not cut.is_intact
    assert bytes(memoryview(whole)) == Path(__file__).read_bytes()
    assert whole.is_intact


@pytest.mark.parametrize("how", ["renamed", "replaced", "removed", "its mode"])
def test_a_name_that_changes_is_no_change(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"abc")
    mapping = mapping_of(path)
    if how == "renamed":
        path.rename(other)
    elif how == "replaced":
        other.write_bytes(b"xyz")
        other.replace(path)
    elif how == "removed":
        path.unlink()
    else:
        path.chmod(0o400)
    mapping.check()
    assert bytes(memoryview(mapping)) == b"abc"


def test_a_file_that_was_renamed_and_cut_is_known(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * PAGE))
    mapping = mapping_of(path)
    told: list[int] = []
    mapping.listen(lambda: told.append(1))
    mapping.check()
    os.truncate(path.rename(tmp_path / "other"), PAGE)
    with pytest.raises(errors.ModelChangedError, match="written to or cut off"):
        mapping.check()
    assert told == [1]


def test_only_regular_files_with_content_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(OSError, match="it is empty"):
        mapping_of(tmp_path / "empty")
    read, write = os.pipe()
    with os.fdopen(read), os.fdopen(write), pytest.raises(OSError, match="no regular file"):
        Mapping(read)


def test_a_mapping_is_read_only_and_goes_with_its_last_view(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    array = np.frombuffer(memoryview(mapping_of(path)), np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    here = Path("/proc/self/maps")
    assert not here.exists() or str(path) in here.read_text()
    descriptors = len(os.listdir("/proc/self/fd"))
    del array
    assert str(path) not in here.read_text()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1


# ---- runs


@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_read_on_where_a_file_was_cut(net: Path, threads: int) -> None:
    model = convserve.load(net, threads=threads)
    expected = model.run(X)
    assert np.any(expected)
    engine = Engine(model.graph, threads=threads)
    unwatched = Executor(engine.executor(8, 8).plan, "portable")
    os.truncate(net, PAGE)
    scores = np.full((1, 1, 1, 3), np.nan, np.float32)
    with engine.execution(unwatched) as run:
        run.set_source(X.transpose(0, 2, 3, 1))
        run.set_sink(0, scores)
        run.advance()
    assert np.all(scores == 0)
    assert mapping_in(model).was_cut
    with pytest.raises(errors.ModelChangedError):
        model.run(X)


WAYS: dict[str, Callable[[convserve.Model], object]] = {
    "run": lambda model: model.run(X),
    "classify": lambda model: model.classify(X),
    "score_map": lambda model: model.score_map(np.zeros((1, 3, 20, 20), np.float32)),
    "finer": lambda model: model.score_map(np.zeros((1, 3, 20, 20), np.float32), method="crops", stride=1),
    "stream": lambda model: list(model.stream(width=20, rows=[np.zeros((20, 20, 3), np.float32)])),
}


@pytest.mark.parametrize("how", ["cut", "emptied", "written"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_refuses_a_file_that_changed(net: Path, way: str, how: str) -> None:
    model = convserve.load(net)
    WAYS[way](model)
    with net.open("r+b") as file:
        if how == "written":
            file.seek(PAGE * 8)
            file.write(b"other")
        else:
            file.truncate(0 if how == "emptied" else PAGE)
    with pytest.raises(errors.ModelChangedError) as error:
        WAYS[way](model)
    assert str(net.parent) not in str(error.value)


def test_a_run_that_was_left_and_entered_again(net: Path) -> None:
    model = convserve.load(net)
    engine = Engine(model.graph, mapping=mapping_in(model))
    executor = engine.executor(40, 8, sink_rows=[33], layout=Layout((), 1))
    scores = np.empty((1, 33, 1, 3), np.float32)
    with engine.execution(executor) as run:
        run.set_source(np.zeros((1, 40, 8, 3), np.float32))
        run.set_sink(0, scores)
        run.advance(pause_after_write=True)
        assert run.written[2] < 33
        os.truncate(net, PAGE)
        with pytest.raises(errors.ModelChangedError):
            run.advance(pause_after_write=True)


@pytest.mark.parametrize("how", ["cut", "written"])
def test_no_answer_comes_of_a_file_that_changes_while_it_is_read(net: Path, how: str) -> None:
    model = convserve.load(net, threads=2, evict_weights=True)
    expected = model.run(X)
    content = net.read_bytes()

    def change() -> None:
        if how == "cut":
            os.truncate(net, PAGE)
        else:
            with net.open("r+b") as file:
                file.seek(len(content) // 2)
                file.write(bytes(len(content) // 2))

    timer = threading.Timer(0.05, change)
    timer.start()
    with pytest.raises(errors.ModelChangedError):  # noqa: PT012
        while True:
            found = model.run(X)
            assert np.array_equal(found, expected)
    timer.join()


@pytest.mark.parametrize("cut_at", ["header", "weights"])
def test_a_container_that_is_cut_while_it_is_opened(
    net: Path, cut_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convserve.formats import container

    parse = container.parse_container

    def late(content: np.ndarray) -> container.Container:
        os.truncate(net, 4 if cut_at == "header" else net.stat().st_size - PAGE)
        return parse(content)

    monkeypatch.setattr(container, "parse_container", late)
    with pytest.raises(errors.ModelChangedError):
        convserve.load(net)


# ---- programs that hold us

HOST = """
import faulthandler, gc, mmap, os, resource, signal, sys
from pathlib import Path
import numpy as np

def is_caught():
    caught = next(line for line in open("/proc/self/status") if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGBUS - 1) & 1)

def foreign():
    path = Path(sys.argv[1] + ".other")
    path.write_bytes(bytes(8192))
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    os.truncate(path, 0)
    return view[5000]

import convserve
assert not is_caught()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
x = np.zeros((1, 3, 8, 8), np.float32)
def cut(model):
    os.truncate(sys.argv[1], 4096)
    values = model.graph.nodes[-1].params["panels"]
    return float(values.sum())
"""

PROGRAMS = {
    "a handler only while something is mapped": (
        "model = convserve.load(sys.argv[1]); model.run(x); assert is_caught()\n"
        "del model; gc.collect(); assert not is_caught()\n"
        "model = convserve.load(sys.argv[1]); assert is_caught(); assert cut(model) == 0",
        0,
        "",
    ),
    "switched off": (
        "os.environ['CONVSERVE_CATCH_SIGBUS'] = 'off'\n"
        "model = convserve.load(sys.argv[1]); assert not is_caught(); cut(model)",
        -signal.SIGBUS,
        "",
    ),
    "another's file ends it as before": ("model = convserve.load(sys.argv[1]); foreign()", -signal.SIGBUS, ""),
    "another's handler sees what is not ours": (
        "faulthandler.enable(); model = convserve.load(sys.argv[1]); assert cut(model) == 0; foreign()",
        -signal.SIGBUS,
        "Bus error",
    ),
    "another's handler comes back": (
        "faulthandler.enable(); model = convserve.load(sys.argv[1]); del model; gc.collect(); foreign()",
        -signal.SIGBUS,
        "Bus error",
    ),
    "a handler put over ours stays": (
        "model = convserve.load(sys.argv[1]); faulthandler.enable(); del model; gc.collect()\n"
        "model = convserve.load(sys.argv[1]); foreign()",
        -signal.SIGBUS,
        "Bus error",
    ),
    "a signal that is sent ends it": (
        "model = convserve.load(sys.argv[1]); os.kill(os.getpid(), signal.SIGBUS); print('lives')",
        -signal.SIGBUS,
        "",
    ),
    "a signal that is sent and ignored": (
        "signal.signal(signal.SIGBUS, signal.SIG_IGN); model = convserve.load(sys.argv[1])\n"
        "os.kill(os.getpid(), signal.SIGBUS); assert cut(model) == 0",
        0,
        "",
    ),
    "a child of a fork": (
        "model = convserve.load(sys.argv[1])\n"
        "if not os.fork(): os._exit(cut(model) != 0)\n"
        "assert os.wait()[1] == 0; mapping = model.storage.mapping\n"
        "assert not mapping.was_cut; assert not mapping.is_intact",
        0,
        "",
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell handlers by /proc")
@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_keeps_its_own_way_with_the_signal(net: Path, case: str) -> None:
    program, code, said = PROGRAMS[case]
    done = subprocess.run(
        [sys.executable, "-c", HOST + program, str(net)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert said or not done.stderr
    assert done.stdout == ""


def test_many_come_and_go_while_others_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number + 1]) * 3 * PAGE)
    wrong: list[object] = []

    def work(path: Path) -> None:
        for number in range(100):
            draft = path.with_suffix(f".{number}")
            draft.write_bytes(path.read_bytes())
            mapping = mapping_of(draft)
            values = np.frombuffer(memoryview(mapping), np.uint8)
            if number % 2:
                os.truncate(draft, PAGE)
            whole = int(np.count_nonzero(values)) == 3 * PAGE
            if whole == bool(number % 2) or mapping.was_cut != bool(number % 2):
                wrong.append((path, number))
            draft.unlink()

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
