"""Threads: as many as affinity mask and cgroups leave, where their caller may run, asleep between runs."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from runs import engine_of, run_engine, same_bits
from strategies import image
from test_engine import residual_net

import convserve
from convserve.engine import processors
from convserve.engine.processors import cgroup_limit
from convserve.engine.team import available_threads, thread_count

ROOT = Path(convserve.__file__).resolve().parents[1]
NET = ROOT / "convserve/bundled/digits.convserve"
CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
needs_two = pytest.mark.skipif(len(CPUS) < 2, reason="this process may use one processor only, or none can be chosen")


def in_a_process(script: str, *, cpus: list[int] | None = None) -> str:
    """Return what a script prints in a fresh interpreter that may use some processors only."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(NET)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "CONVSERVE_THREADS"},
        preexec_fn=None if cpus is None else lambda: os.sched_setaffinity(0, cpus),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- how many: cgroups in files of our own making


def system(tmp_path: Path, cgroups: str, **limits: str) -> Path:
    """Write proc/self/cgroup and limits: a group's path with _ for /, and the text of its file or files."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroups)
    for name, text in limits.items():
        group = tmp_path / "sys/fs/cgroup" / name.strip("_").replace("_", "/")
        group.mkdir(parents=True, exist_ok=True)
        if ";" in text:
            quota, period = text.split(";")
            (group / "cpu.cfs_quota_us").write_text(quota)
            (group / "cpu.cfs_period_us").write_text(period)
        else:
            (group / "cpu.max").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("cgroups", "limits", "expected"),
    [
        ("0::/\n", {"_": "150000 100000\n"}, 1.5),
        ("0::/\n", {"_": "max 100000\n"}, None),
        ("0::/\n", {"_": ""}, None),
        ("0::/\n", {"_": "nonsense here\n"}, None),
        ("0::/\n", {"_": "100000 0\n"}, None),
        ("0::/a/b\n", {"a_b": "max 100000", "a": "300000 100000", "_": "max 100000"}, 3.0),
        ("0::/a/b\n", {"a_b": "50000 100000", "a": "300000 100000"}, 0.5),
        ("0::/a/b\n", {"a_b": "500000 100000", "a": "300000 100000"}, 3.0),
        ("0::/host/path\n", {"_": "200000 100000"}, 2.0),
        ("0::/../outside\n", {"_": "200000 100000", "outside": "100000 100000"}, 2.0),
        ("4:cpu,cpuacct:/pod/one\n0::/\n", {"cpu,cpuacct_pod_one": "250000;100000", "cpu,cpuacct": "-1;100000"}, 2.5),
        ("4:cpu,cpuacct:/pod/one\n", {"cpu_pod_one": "-1;100000", "cpu_pod": "40000;20000"}, 2.0),
        ("4:cpu:/\n2:cpuset:/\n0::/\n", {"cpu": "-1;100000", "cpuset": "1;1"}, None),
        ("4:cpu:/a\n0::/a\n", {"cpu_a": "400000;100000", "unified_a": "300000 100000"}, 3.0),
        ("what is this\n", {}, None),
        ("", {}, None),
    ],
)
def test_the_smallest_limit_of_all_groups_around_holds(
    tmp_path: Path, cgroups: str, limits: dict[str, str], expected: float | None
) -> None:
    assert cgroup_limit(system(tmp_path, cgroups, **limits)) == expected


def test_no_cgroups_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path) is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 5), (1.5, 2), (0.2, 1), (3.0, 3), (64.0, 5)])
def test_threads_are_what_mask_and_limit_leave(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int
) -> None:
    monkeypatch.delenv("CONVSERVE_THREADS", raising=False)
    monkeypatch.setattr(processors, "cgroup_limit", lambda: limit)
    monkeypatch.setattr(processors, "affinity", lambda: frozenset({1, 2, 5, 6, 9}))
    processors.quota.cache_clear()
    try:
        assert available_threads() == thread_count() == expected
        assert thread_count(7) == 7
        monkeypatch.setenv("CONVSERVE_THREADS", "4")
        assert thread_count() == 4
    finally:
        monkeypatch.undo()
        processors.quota.cache_clear()
        available_threads()


INFO = "import sys; from convserve.__main__ import main; sys.exit(main(['info', '--json']))"


@needs_two
def test_info_tells_the_mask_that_a_process_was_started_with() -> None:
    for cpus in (CPUS[:1], CPUS[:2]):
        told = json.loads(in_a_process(INFO, cpus=cpus))["threads"]
        assert told["affinity"] == len(cpus)
        limit = told["cgroup_cpus"]
        expected = len(cpus) if limit is None else min(len(cpus), -(-limit // 1))
        assert told["available"] == told["run"] == expected


# ---- where


ABOUT = """
import os, sys, threading, time
import numpy as np, convserve
model = convserve.load(sys.argv[1])
x = np.random.default_rng(0).random((64, 1, 28, 28), np.float32)
def tasks():
    return {int(task) for task in os.listdir("/proc/self/task")}
def worker_since(before):
    for _ in range(200):   # a thread that was joined may take a moment to end
        new = tasks() - before
        if len(new) == 1:
            break
        time.sleep(0.01)
    (worker,) = new
    return worker
"""

FOLLOWS = ABOUT + """
first, second = sorted(os.sched_getaffinity(0))[:2]
before = tasks()
both = model.run(x)
worker = worker_since(before)
assert os.sched_getaffinity(worker) == {first, second}, "a worker may run wherever the process may"
assert os.sched_getaffinity(0) == {first, second}, "the caller stays where it was"
assert model.plan(28, 28).threads == 2
os.sched_setaffinity(0, {second})
assert np.array_equal(model.run(x), both)
assert model.plan(28, 28).threads == 1, "the mask is read anew"
os.sched_setaffinity(0, {first, second})
assert np.array_equal(model.run(x), both)
assert model.plan(28, 28).threads == 2
assert tasks() == before | {worker}, "one team, started once"
"""

PINNED_CALLER = ABOUT + """
mask = os.sched_getaffinity(0)
first, second = sorted(mask)[:2]
two = convserve.load(sys.argv[1], threads=2)
before = tasks()
def ask():
    os.sched_setaffinity(0, {first})
    two.run(x)
thread = threading.Thread(target=ask)
thread.start()
thread.join()
worker = worker_since(before)
assert os.sched_getaffinity(worker) == {first}, "the worker of a caller who is bound to one processor is too"
two.run(x)
assert os.sched_getaffinity(worker) == mask, "and goes where the next caller may"
"""


@needs_two
@pytest.mark.skipif(cgroup_limit() is not None, reason="a cgroup limits this process")
@pytest.mark.parametrize("script", [FOLLOWS, PINNED_CALLER], ids=["mask", "caller"])
def test_workers_run_where_their_caller_may(script: str) -> None:
    in_a_process(script, cpus=CPUS[:2])


# ---- how many at once


AT_ONCE = """
import os, sys, threading, time
import numpy as np, convserve
model = convserve.load(sys.argv[1], threads=int(os.environ["RUN_THREADS"]))
x = np.random.default_rng(0).random((256, 1, 28, 28), np.float32)
expected = model.run(x)
stop = time.monotonic() + 1.5
wrong = []
def ask():
    while time.monotonic() < stop:
        if not np.array_equal(model.run(x), expected):
            wrong.append(1)
threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads]
running = []
while time.monotonic() < stop:
    count = 0
    for task in os.listdir("/proc/self/task"):
        if int(task) == os.getpid():
            continue
        try:
            count += open(f"/proc/self/task/{task}/stat").read().rsplit(")", 1)[1].split()[0] == "R"
        except OSError:
            pass
    running.append(count)
    time.sleep(0.002)
[thread.join() for thread in threads]
assert not wrong
print(float(np.mean(running)))
"""


@needs_two
@pytest.mark.parametrize("threads", [1, 2])
def test_requests_from_many_threads_compute_on_no_more_than_there_are(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_THREADS", str(threads))
    # besides two that compute, some are on their way in or out of a run; without turns it would be all eight
    assert float(in_a_process(AT_ONCE, cpus=CPUS[:2])) <= 4


def test_runs_of_one_thread_and_of_several_take_turns() -> None:
    engine = engine_of(residual_net())
    x = image(engine.graph, seed=1)
    expected = run_engine(engine, x)
    wrong: list[int] = []

    def ask(threads: int) -> None:
        for _ in range(30):
            if not same_bits(run_engine(engine, x, threads=threads), expected):
                wrong.append(threads)

    asking = [threading.Thread(target=ask, args=(1 + number % 4,)) for number in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert not any(thread.is_alive() for thread in asking)
    assert not wrong


IDLE = ABOUT + """
convserve.load(sys.argv[1], threads=4).run(x)
time.sleep(0.05)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""


def test_threads_are_idle_between_runs() -> None:
    assert float(in_a_process(IDLE)) < 0.01


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_runs_can_run() -> None:
    model = convserve.load(NET, threads=2)
    x = np.random.default_rng(0).random((64, 1, 28, 28), np.float32)
    expected = model.run(x)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            model.run(x)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                fresh = convserve.load(NET, threads=2)
                os._exit(0 if np.array_equal(fresh.run(x), expected) else 1)
            deadline = time.monotonic() + 20
            while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            if ended[0] == 0:
                os.kill(child, 9)
                os.waitpid(child, 0)
            assert ended == (child, 0)
    finally:
        stop.set()
        for thread in asking:
            thread.join()


# ---- a run on each processor


def test_runs_about_counts_the_one_to_come_and_forgets() -> None:
    assert in_a_process("from convserve.engine.team import runs_about; print(runs_about(), runs_about())") == "1 1\n"


def test_in_a_crowd_each_run_has_one_thread_and_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = convserve.load(NET, threads=3)
    x = np.random.default_rng(0).standard_normal((2, 1, *model.window), np.float32)
    monkeypatch.setattr("convserve.engine.engine.runs_about", lambda: 1)
    monkeypatch.setattr("convserve.engine.engine.available_threads", lambda: 3)
    alone, report = model.measure(x)
    assert report.plan.threads == 3
    monkeypatch.setattr("convserve.engine.engine.runs_about", lambda: 3)
    beside_others, report = model.measure(x)
    assert report.plan.threads == 1
    assert same_bits(alone, beside_others)
