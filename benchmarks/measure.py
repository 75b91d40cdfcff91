"""One comparison: several engines with one network, threads and batch; outputs checked, then runs taken in turn."""

import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import ENGINES
from benchmarks.machine import stolen_seconds
from benchmarks.process import EngineProcess, WorkerError

__all__ = ["LARGEST_DIFFERENCE", "compare", "ratios", "statistics_of"]

LARGEST_DIFFERENCE = 1e-3
"""Outputs that differ by more than this share of the largest value are not those of the same network."""


def compare(
    files: dict[str, Path],
    *,
    threads: int,
    shape: tuple[int, ...],
    runs: int,
    warm_runs: int,
    folder: Path,
) -> dict[str, Any]:
    """Return the result of one comparison as JSON.

    files: by engine, what it reads; shape: (N, C, H, W) of the input; folder: for outputs on their way here.
    An engine that fails has {"error": text} instead of times; outputs are compared with the first peer's.
    """
    found: dict[str, dict[str, Any]] = {}
    stolen, begun = stolen_seconds(), time.perf_counter()
    with ExitStack() as stack:
        processes: dict[str, EngineProcess] = {}
        outputs: dict[str, np.ndarray] = {}
        for engine, path in files.items():
            try:
                process = stack.enter_context(EngineProcess(engine, path, threads, shape))
                found[engine] = _loaded(process, warm_runs)
                process.ask("output", file=str(folder / f"{engine}.npy"))
                outputs[engine] = np.load(folder / f"{engine}.npy")
                processes[engine] = process
            except WorkerError as error:
                found[engine] = {"error": str(error)}
        for engine, difference in _differences(outputs).items():
            found[engine]["difference"] = difference
            if not difference <= LARGEST_DIFFERENCE:
                found[engine]["error"] = f"its output differs by {difference:.1e} of the largest value"
                del processes[engine]
        for engine, seconds in _take_turns(processes, runs, found).items():
            found[engine] |= statistics_of(seconds, shape[0])
            found[engine]["memory"]["after_runs"] = processes[engine].memory()
    ratios(found)
    took = time.perf_counter() - begun
    return {
        "threads": threads,
        "batch": shape[0],
        "runs": runs,
        "seconds": took,
        "stolen_share": (stolen_seconds() - stolen) / took,
        "engines": found,
    }


def _loaded(process: EngineProcess, warm_runs: int) -> dict[str, Any]:
    before = process.memory()
    loaded = process.ask("load")
    memory = {"before_load": before, "after_load": process.memory()}
    warm = process.ask("warm", runs=max(1, warm_runs))
    return {
        "version": process.version,
        "facts": loaded["facts"],
        "load_s": loaded["seconds"],
        "first_answer_s": loaded["seconds"] + warm["seconds"],
        "idle_cpu_ms": 1e3 * warm["idle_cpu_seconds"],
        "memory": memory,
    }


def _differences(outputs: dict[str, np.ndarray]) -> dict[str, float]:
    """Return by engine the largest difference from the first peer's output, relative to the largest value there."""
    peers = [engine for engine in outputs if engine != "convserve"]
    if not peers:
        return {}
    expected = outputs[peers[0]].astype(np.float64)
    found = {}
    for engine, output in outputs.items():
        if output.shape != expected.shape or not np.isfinite(output).all():
            found[engine] = float("inf")
        else:
            found[engine] = float(np.abs(output - expected).max() / np.abs(expected).max())
    return found


def _take_turns(
    processes: dict[str, EngineProcess], runs: int, found: dict[str, dict[str, Any]]
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {engine: [] for engine in processes}
    for _ in range(runs):
        for engine in list(seconds):
            try:
                seconds[engine].append(processes[engine].ask("run")["seconds"])
            except WorkerError as error:
                found[engine]["error"] = str(error)
                del seconds[engine]
    return seconds


def statistics_of(seconds: list[float], batch: int) -> dict[str, Any]:
    """Return best and median milliseconds of runs, images per second of the best and of the median one, and all."""
    best, median = min(seconds), statistics.median(seconds)
    return {
        "best_ms": 1e3 * best,
        "median_ms": 1e3 * median,
        "images_per_s": batch / best,
        "median_images_per_s": batch / median,
        "times_ms": [round(1e3 * one, 4) for one in seconds],
    }


def ratios(engines: dict[str, dict[str, Any]]) -> None:
    """Add to each engine that has times: the time of the fastest peer over its own, of best and of median runs."""
    timed = {engine: one for engine, one in engines.items() if "best_ms" in one}
    peers = [engine for engine in timed if engine != "convserve" and engine in ENGINES]
    for time_name, ratio_name in (("best_ms", "ratio"), ("median_ms", "median_ratio")):
        fastest = min((timed[peer][time_name] for peer in peers), default=None)
        for one in timed.values():
            one[ratio_name] = None if fastest is None else fastest / one[time_name]
