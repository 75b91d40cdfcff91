"""Peaks measured while running, not read from the plan: anonymous memory stays below baseline + planned + 2 MiB."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convserve
from benchmarks.residency import Sampler, anonymous_bytes, proportional_bytes, resident_memory

MIB = 1 << 20
SLACK = 2 * MIB
ROOT = Path(__file__).parents[1]
KINDS = ("classify", "batch", "score_map", "budget", "shifted", "stream")


@pytest.fixture(scope="module", params=KINDS)
def found(request: pytest.FixtureRequest) -> dict[str, int]:
    return sampled(request.param)


def sampled(kind: str) -> dict[str, int]:
    command = [sys.executable, "tests/peak_worker.py", kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    sizes: dict[str, int] = json.loads(done.stdout)
    return sizes


def test_a_run_takes_no_more_than_was_planned(found: dict[str, int]) -> None:
    assert found["samples"] > 20
    assert found["peak"] <= found["baseline"] + found["planned"] + SLACK
    assert found["measured"] == found["planned"]


def test_the_sampler_sees_what_a_run_takes(found: dict[str, int]) -> None:
    # the memory of small runs stays mapped between them
    if found["planned"] > 16 * MIB:
        assert found["peak"] >= found["baseline"] + 0.8 * found["planned"]


def test_what_a_run_took_is_given_back(found: dict[str, int]) -> None:
    assert found["after"] <= found["baseline"] + SLACK


def test_what_a_scene_takes_does_not_grow_with_its_height() -> None:
    low, high = (sampled(kind) for kind in ("low_scene", "high_scene"))
    assert low["planned"] == high["planned"]
    # beside the plan a row of tiles, decoded and as gray
    assert low["peak"] <= low["baseline"] + low["planned"] + 2 * SLACK
    assert high["peak"] - high["baseline"] <= low["peak"] - low["baseline"] + SLACK


# ---- the instruments


def test_the_sampler_catches_a_peak_that_has_passed() -> None:
    with Sampler(every_s=0.001) as sampler:
        # not from the heap, where earlier tests may have left room
        mapping = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        taken = np.frombuffer(mapping, np.uint8)
        taken[:] = 1
        high = anonymous_bytes(os.getpid())
        while sampler.peak_bytes < high:
            pass
        del taken
        mapping.close()
    # what earlier tests left in the heap may come or go meanwhile
    assert 24 * MIB < sampler.peak_bytes - sampler.baseline_bytes < 48 * MIB
    assert anonymous_bytes(os.getpid()) < sampler.peak_bytes - 16 * MIB


def test_three_ways_to_read_memory_agree() -> None:
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        exact = resident_memory(process.pid)
        assert anonymous_bytes(process.pid) == pytest.approx(exact["anonymous_bytes"], abs=MIB)
        assert 0 < proportional_bytes(process.pid) <= exact["anonymous_bytes"] + exact["file_bytes"]
        process.communicate(b"\n")


def test_large_scores_go_back_with_their_array() -> None:
    model = convserve.load(Path(convserve.__file__).parent / "bundled" / "digits.convserve", threads=1)
    page = np.zeros((1000, 1000, 1), np.uint8)
    model.score_map(page)
    pid = os.getpid()
    before = anonymous_bytes(pid)
    found = model.score_map(page)
    assert found.scores.nbytes > 2 * MIB
    assert anonymous_bytes(pid) > before + found.scores.nbytes - MIB
    del found
    assert anonymous_bytes(pid) < before + MIB // 4
