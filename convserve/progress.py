"""Progress bars on stderr, for what takes longer than a second."""

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBar"]

SILENT_S = 1.0
"""Seconds of work before a bar appears."""


class ProgressBar:
    """A context manager: a bar with rows per second and time left, unless the work ends within a second.

    what: the text before the bar. total: rows in all, None where nobody knows yet. enabled=False never shows it.
    unit: what is counted. The bar disappears with the context; one thread advances it.
    """

    def __init__(self, what: str, *, total: int | None = None, enabled: bool = True, unit: str = "rows") -> None:
        self.total = total
        self.done = 0
        self._what, self._unit, self._enabled = what, unit, enabled
        self._lock = threading.Lock()
        self._begin = 0.0
        self._timer: threading.Timer | None = None
        self._shown: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> "ProgressBar":
        self._begin = time.monotonic()
        if self._enabled:
            # not left to advance(): the first row may be the one that takes long
            self._timer = threading.Timer(SILENT_S, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._enabled = False
            if self._shown is not None:
                self._shown[0].stop()
                self._shown = None

    def advance(self, count: int) -> None:
        """Count rows that are done."""
        self.done += count
        self._update()

    @property
    def shown(self) -> bool:
        """Whether the bar is on the screen."""
        return self._shown is not None

    def text(self) -> str:
        """Return what stands behind the bar: rows done, rows per second, time left."""
        rate = self.done / max(time.monotonic() - self._begin, 1e-9)
        of = "" if self.total is None else f" of {self.total}"
        text = f"{self.done}{of} {self._unit}, {rate:.1f}/s"
        if self.total is None or not self.done:
            return text
        left = round(max(self.total - self.done, 0) / rate)
        hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
        return f"{text}, {hours}:{minutes:02}:{seconds:02} left" if hours else f"{text}, {minutes}:{seconds:02} left"

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        with self._lock:
            if not self._enabled:
                return
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
                transient=True,
            )
            task = bar.add_task(self._what, total=self.total, completed=self.done, text=self.text())
            bar.start()
            self._shown = bar, task

    def _update(self) -> None:
        with self._lock:
            if self._shown is not None:
                bar, task = self._shown
                bar.update(task, total=self.total, completed=self.done, text=self.text())
