"""One engine with one network in a process of its own: commands come as JSON lines on stdin, answers go to stdout.

{"do": "load"}                  -> {"seconds": ..., "facts": {...}}
{"do": "warm", "runs": n}       -> {"seconds": of the first run, "idle_cpu_seconds": used in the REST_S after the last}
{"do": "run"}                   -> {"seconds": ...}; a run that takes less than BRIEF_S follows one without a clock,
                                   since others have had the caches
{"do": "output", "file": path}  -> {"shape": [...]}: the output of one more run, as .npy
Every answer to a command that failed is {"error": text}; the end of stdin ends the process.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.engines import ENGINES, Opened

__all__ = ["BRIEF_S", "REST_S", "Worker", "main"]

BRIEF_S = 0.1
REST_S = 0.05


class Worker:
    """What the process holds: the input, the opened network, and how long its last run took."""

    def __init__(self, engine: str, path: Path, threads: int, shape: tuple[int, ...]) -> None:
        self.kind, self.path, self.threads = ENGINES[engine], path, threads
        self.x = np.random.default_rng(1).standard_normal(shape, np.float32)
        self.opened: Opened | None = None
        self.kind.load_library()
        self.last_s = 0.0

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what a command says and return its answer."""
        if command["do"] == "load":
            start = time.perf_counter()
            self.opened = self.kind.open(self.path, self.threads, self.x)
            return {"seconds": time.perf_counter() - start, "facts": self.opened.facts}
        assert self.opened is not None
        if command["do"] == "warm":
            first = self._timed()
            for _ in range(command["runs"] - 1):
                self._timed()
            used = time.process_time()
            time.sleep(REST_S)
            return {"seconds": first, "idle_cpu_seconds": time.process_time() - used}
        if command["do"] == "output":
            found = np.array(self.opened.run(self.x))
            np.save(command["file"], found)
            return {"shape": list(found.shape)}
        if self.last_s < BRIEF_S:
            self._timed()
        return {"seconds": self._timed()}

    def _timed(self) -> float:
        assert self.opened is not None
        start = time.perf_counter()
        self.opened.run(self.x)
        self.last_s = time.perf_counter() - start
        return self.last_s


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _answers() -> IO[str]:
    """Return where answers go, and let everything else that prints go to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Answer commands until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("path", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("shape", help="such as 1x3x224x224")
    options = parser.parse_args()
    answers = _answers()

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    shape = tuple(int(size) for size in options.shape.split("x"))
    try:
        worker = Worker(options.engine, options.path, options.threads, shape)
        say({"ready": worker.kind.version()})
    except Exception as error:
        say({"error": _told(error)})
        return
    for line in sys.stdin:
        try:
            say(worker.answer(json.loads(line)))
        except Exception as error:
            say({"error": _told(error)})


if __name__ == "__main__":
    main()
