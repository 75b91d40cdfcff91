import numpy as np

from convserve.engine.binding import Executor

DONE: int
NEEDS_ROWS: int
WROTE_ROWS: int
CANCELLED: int

class Memory:
    size_bytes: int
    def __init__(self, size_bytes: int) -> None: ...
    def close(self) -> None: ...

class Execution:
    executor: Executor
    memory: Memory
    def __init__(self, executor: Executor, memory: Memory) -> None: ...
    def set_source(
        self,
        rows: np.ndarray,
        *,
        begin: int = 0,
        table: np.ndarray | None = None,
        channel_of: tuple[int, ...] = (0, 1, 2, 3),
    ) -> None: ...
    def set_sink(
        self, number: int, rows: np.ndarray, *, begin: int = 0, chosen: np.ndarray | None = None
    ) -> None: ...
    def go_on_with(self, executor: Executor) -> None: ...
    def rows_done(self) -> list[int]: ...
    @property
    def rows_needed(self) -> int: ...
    @property
    def written(self) -> tuple[int, int, int]: ...
    def cancel(self) -> None: ...
    def advance(self, *, pause_after_write: bool = False) -> int: ...
