"""What the engine does at its limits: memory that is refused, forks, many threads, sources that begin too late."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import convserve
from convserve.engine.engine import Engine
from convserve.errors import MemoryBudgetError

NET = Path(convserve.__file__).parent / "bundled" / "digits.convserve"


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(NET, threads=2)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, 1, height, width), np.float32)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_map_that_no_machine_can_hold_is_refused_in_one_sentence(model: convserve.Model) -> None:
    endless = as_strided(np.zeros(1, np.float32), (1, 1, 10**6, 10**6), (0, 0, 0, 0))
    with pytest.raises(MemoryBudgetError, match=r"refused [\d,]+ bytes for \d+x\d+x11 scores"):
        model.score_map(endless)
    assert model.score_map(image(40, 40)).scores.shape == (4, 4, 11)


def test_a_plan_of_a_million_by_a_million_is_made_and_counted_in_64_bits(model: convserve.Model) -> None:
    plan = model.plan(10**6, 10**6)
    assert 10**6 * 4 < plan.arena_bytes < 10**6 * 4 * 2000
    assert sum(len(block.steps) for block in plan.blocks) < 1000


def test_memory_goes_back_to_the_system_after_a_large_run(model: convserve.Model) -> None:
    wide = image(64, 200_000)
    model.score_map(wide, classes=[0])
    before = resident_bytes()
    stream = model.score_stream(wide, classes=[0])
    assert stream.plan.arena_bytes > 100 << 20
    peak = max(resident_bytes() for _ in stream)
    assert peak > before + (32 << 20)
    assert resident_bytes() < before + (8 << 20)


REFUSED = """
import resource, sys
import numpy as np, convserve
from convserve.errors import MemoryBudgetError
model = convserve.load(sys.argv[1], threads=1)
x = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
before = model.run(x)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
wide = np.zeros((1, 1, 40, 100_000), np.float32)
try:
    model.score_map(wide, classes=[0])
except MemoryBudgetError as error:
    print(error)
assert np.array_equal(model.run(x), before)
print("goes on")
"""


def test_memory_that_the_system_refuses_ends_one_run_and_not_the_next() -> None:
    told = subprocess.run(
        [sys.executable, "-c", REFUSED, str(NET)], capture_output=True, text=True, timeout=60, check=True
    )
    first, last = told.stdout.strip().splitlines()
    assert "the operating system refused" in first
    assert last == "goes on"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_runs_with_threads_of_its_own(model: convserve.Model) -> None:
    x = image(28, 28).repeat(32, axis=0)
    expected = model.run(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(model.run(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_source_that_begins_behind_the_rows_needed_is_an_error() -> None:
    engine = Engine(convserve.load(NET).graph, threads=1)
    executor = engine.executor(28, 28)
    with engine.execution(executor) as run:
        run.set_source(np.zeros((1, 4, 28, 1), np.float32), begin=24)
        run.set_sink(0, np.empty((1, 1, 1, 11), np.float32))
        with pytest.raises(ValueError, match="row 0 is needed"):
            run.advance()


def test_eight_threads_get_the_answers_of_one(model: convserve.Model) -> None:
    images = [image(28, 28 + 4 * width) for width in range(8)]
    expected = [model.score_map(x).scores for x in images]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for turn in range(20):
            which = (number + turn) % len(images)
            if not np.array_equal(model.score_map(images[which]).scores, expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
