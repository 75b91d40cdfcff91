"""What a server takes at most: bytes, calls, threads, patience."""

from dataclasses import dataclass

from convserve.errors import InputError

__all__ = ["RANGES", "Limits"]

RANGES: dict[str, tuple[float, float]] = {
    "message_bytes": (1 << 10, (1 << 31) - 1),
    "image_bytes": (1 << 10, 1 << 40),
    "max_running": (1, 256),
    "max_waiting": (0, 4096),
    "stall_s": (0.01, 86400),
    "max_batch": (1, 1024),
    "max_delay_s": (0, 60),
}
"""The least and the most of each limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A server's limits; InputError for values outside their range.

    message_bytes: longest request message. image_bytes: longest image file of a score map, which comes in
    several messages. max_running: threads that compute at once. max_waiting: calls that wait beyond them before
    further ones are refused. stall_s: seconds that a score map waits for its client to send or to read.
    max_batch: images of several calls that run together; None: as predicted times favour. max_delay_s: seconds that a
    call waits for others; None: a tenth of a run at most, while others are about.
    """

    message_bytes: int = 64 << 20
    image_bytes: int = 256 << 20
    max_running: int = 4
    max_waiting: int = 64
    stall_s: float = 60.0
    max_batch: int | None = None
    max_delay_s: float | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} is {value}; allowed: {least} to {most}")
