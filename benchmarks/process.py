"""The parent's side of a worker: start it, ask it, read its memory, end it."""

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.residency import resident_memory

__all__ = ["EngineProcess", "WorkerError"]

# PyTorch's threads would spin for milliseconds after a run, while another engine has its turn
SHORT_SPINS = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "0"}
ROOT = Path(__file__).resolve().parents[1]


class WorkerError(Exception):
    """A worker failed at what it was asked, ended, or did not answer in time."""


class EngineProcess:
    """A worker process with one engine and one network; a context manager that ends it."""

    def __init__(self, engine: str, path: Path, threads: int, shape: tuple[int, ...], timeout_s: float = 900) -> None:
        self.engine, self.timeout_s = engine, timeout_s
        size = "x".join(map(str, shape))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", engine, str(path), str(threads), size],
            cwd=ROOT,
            env={**SHORT_SPINS, **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        # one answer a command, so nothing is ever left in the buffer behind what select sees
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        try:
            self.version = self._answer()["ready"]
        except BaseException:
            self.close()
            raise

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not self._selector.select(self.timeout_s):
            raise WorkerError(f"{self.engine} did not answer within {self.timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the process of {self.engine} ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its answer. Raises WorkerError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"the process of {self.engine} has ended") from None
        return self._answer()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def memory(self) -> dict[str, int]:
        """Return what of the process is resident now."""
        return resident_memory(self._process.pid)

    def close(self) -> None:
        """End the process; what it was doing is lost."""
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    os.close(pipe.fileno())
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
