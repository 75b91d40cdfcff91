"""Callers in a process of their own: what they are to ask of a network, and what came of it."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.process import ROOT, WorkerError
from benchmarks.serving_engines import Served, peers_python
from convserve.loading import load

__all__ = ["ask", "engine_core_s", "question_of"]

Row = dict[str, Any]


def question_of(folder: Path) -> Row:
    """Return what every caller of folder/net.convserve has to know."""
    graph = load(folder / "net.convserve").graph
    volume = graph.input_volume
    shape = [1, volume.channels, volume.height, volume.width]
    return {"model": "net", "input": graph.input_name, "shape": shape}


def ask(server: Served, asked: Row) -> Row:
    """Return what benchmarks/serving_load.py found, and the processor time of the server for each answer.

    Raises WorkerError where it failed, or where callers that wait for their answers got none.
    """
    before = server.processor_seconds()
    text = json.dumps({**asked, "address": server.address})
    command = [str(peers_python()), str(ROOT / "benchmarks" / "serving_load.py"), text]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise WorkerError(f"asking failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    found: Row = json.loads(done.stdout)
    if "rate" not in asked and not found["answered"]:
        raise WorkerError(f"nothing was answered; refused: {found['refused']}")
    found["processor_s"] = (server.processor_seconds() - before) / max(1, found["answered"])
    return found


def engine_core_s(folder: Path, batch: int, *, seconds: float = 1.0) -> float:
    """Return the processor time that the engine takes for an image of a batch, without any server.

    With one thread or all, whichever takes less: a server may run several networks at once.
    """
    _, *volume = question_of(folder)["shape"]
    x = np.random.default_rng(0).standard_normal((batch, *volume), np.float32)
    return min(_core_s(folder, x, threads, seconds / 2) for threads in (1, None)) / batch


def _core_s(folder: Path, x: np.ndarray, threads: int | None, seconds: float) -> float:
    model = load(folder / "net.convserve", threads=threads)
    model.run(x)
    runs, begin, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < begin + seconds:
        model.run(x)
        runs += 1
    return (time.process_time() - used) / runs
