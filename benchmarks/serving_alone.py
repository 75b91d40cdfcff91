"""What is measured of our server alone: memory at rest, time to be ready, and requests beyond its capacity."""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.residency import Sampler
from benchmarks.serving_ask import ask, question_of
from benchmarks.serving_cases import Overload
from benchmarks.serving_engines import Served, running
from convserve.settings import parse_bytes

__all__ = ["idle", "overloaded", "starts"]

Row = dict[str, Any]

CALLERS = 8
REST_S = 1.0
PATIENCE = 4


def idle(folder: Path) -> Row:
    """Return what a server that has only loaded its network holds, and whether it has loaded the package onnx."""
    with running("convserve", folder) as server:
        time.sleep(REST_S)
        return {"anonymous_bytes": server.anonymous_bytes(), "imports_onnx": server.has_mapped("/onnx/")}


def starts(folder: Path, count: int) -> Row:
    """Return the seconds from the command to SERVING, of so many servers one after another."""
    seconds = []
    for _ in range(count):
        with running("convserve", folder) as server:
            seconds.append(server.start_s)
    return {"seconds": seconds, "best_s": min(seconds), "median_s": median(seconds)}


def overloaded(case: Overload, folder: Path, options: argparse.Namespace) -> Row:
    """Return what a server gives when more is asked than it can answer: goodput, refusals and memory.

    Capacity is what callers get that wait for their answers, measured before and after.
    """
    question = question_of(folder)
    with running("convserve", folder, "--memory-budget", case.memory_budget) as server:
        asking = {**question, "send": case.send, "callers": CALLERS}
        ask(server, {**asking, "seconds": 1.0})
        with Sampler(*server.pids(), every_s=0.01) as sampler:
            before = _capacity(server, asking, options)
            rate = case.times * before
            # on a slow machine a fixed deadline would be shorter than what a caller waits at capacity
            deadline_s = max(options.deadline, PATIENCE * CALLERS / before)
            load = {**question, "send": case.send, "rate": rate, "deadline_s": deadline_s}
            found = ask(server, {**load, "seconds": options.overload_seconds})
            after = _capacity(server, asking, options)
    latencies = sorted(found["latencies_s"]) or [float("nan")]
    goodput, capacity = found["answered"] / found["seconds"], (before + after) / 2
    return {
        "network": case.network,
        "send": case.send,
        "offered_per_second": rate,
        "seconds": options.overload_seconds,
        "deadline_s": deadline_s,
        "capacity_before": before,
        "capacity_after": after,
        "goodput": goodput,
        "share": goodput / capacity,
        "refused": found["refused"],
        "said": found["said"],
        "p50_s": latencies[len(latencies) // 2],
        "p99_s": latencies[int(0.99 * len(latencies))],
        "peak_bytes": sampler.peak_bytes,
        "budget_bytes": parse_bytes(case.memory_budget),
    }


def _capacity(server: Served, asking: Row, options: argparse.Namespace) -> float:
    turns = [ask(server, {**asking, "seconds": options.seconds}) for _ in range(options.rounds)]
    return median(turn["answered"] / turn["seconds"] for turn in turns)
