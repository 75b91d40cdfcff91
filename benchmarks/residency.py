"""What of a process is resident, and the most of its anonymous memory while something runs, read from /proc."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

__all__ = ["Sampler", "anonymous_bytes", "proportional_bytes", "resident_memory"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_memory(pid: int) -> dict[str, int]:
    """Return a process's resident bytes: anonymous, file-backed, and the most that was resident at any time."""
    sizes = {**_kilobytes(pid, "smaps_rollup"), **_kilobytes(pid, "status")}
    anonymous = sizes["Anonymous"]
    return {
        "anonymous_bytes": anonymous,
        "file_bytes": sizes["Rss"] - anonymous,
        "high_water_bytes": sizes["VmHWM"],
    }


def proportional_bytes(pid: int) -> int:
    """Return the proportional set size: each page that processes share is divided among them."""
    return _kilobytes(pid, "smaps_rollup")["Pss"]


def anonymous_bytes(pid: int) -> int:
    """Return the resident anonymous bytes of a process, at the price of one short read."""
    fields = Path(f"/proc/{pid}/statm").read_bytes().split()
    return (int(fields[1]) - int(fields[2])) * _PAGE


def _kilobytes(pid: int, file: str) -> dict[str, int]:
    sizes = {}
    for line in Path(f"/proc/{pid}/{file}").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith("kB"):
            sizes[name] = int(rest.split()[0]) * 1024
    return sizes


class Sampler:
    """Reads the anonymous memory of processes every so many seconds, in a thread; a context manager.

    baseline_bytes: before; peak_bytes: the most that was seen; samples: how often it looked.
    """

    def __init__(self, *pids: int, every_s: float = 0.002) -> None:
        """pids: default this process, whose runs leave Python to the sampling thread."""
        self._pids: Sequence[int] = pids or (os.getpid(),)
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.baseline_bytes = self.peak_bytes = self.samples = 0

    def __enter__(self) -> "Sampler":
        self._thread.start()
        # the thread's own stack belongs to the baseline
        while not self.samples:
            self._stop.wait(0.001)
        self.baseline_bytes = self.peak_bytes = self._now()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _now(self) -> int:
        total = 0
        for pid in self._pids:
            with suppress(FileNotFoundError, ProcessLookupError, IndexError):
                total += anonymous_bytes(pid)
        return total

    def _watch(self) -> None:
        while not self._stop.is_set():
            now = self._now()
            self.samples += 1
            self.peak_bytes = max(self.peak_bytes, now)
            self._stop.wait(self._every_s)
