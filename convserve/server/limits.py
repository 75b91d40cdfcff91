"""What a server takes at most: bytes, calls, threads, patience."""

from dataclasses import dataclass, replace

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
    "memory_budget": (16 << 20, 1 << 50),
}
"""The least and the most of each limit."""

MESSAGES_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A server's limits; InputError for values outside their range.

    message_bytes: longest request message. image_bytes: longest image file of a score map, which comes in
    several messages. max_running: threads that compute at once. max_waiting: calls that wait beyond them before
    further ones are refused. stall_s: seconds that a score map waits for its client to send or to read.
    max_batch: images of several calls that run together; None: as predicted times favour. max_delay_s: seconds that a
    call waits for others; None: a fifth of a run at most, while others are about. memory_budget: bytes of the process's
    anonymous memory; None for no bound.
    """

    message_bytes: int = 64 << 20
    image_bytes: int = 256 << 20
    max_running: int = 4
    max_waiting: int = 64
    stall_s: float = 60.0
    max_batch: int | None = None
    max_delay_s: float | None = None
    memory_budget: int | None = None

    def within(self, capacity_bytes: int | None) -> "Limits":
        """Return the limits of a server that can hold so many bytes of requests; None: any number.

        Messages are the shorter for it, so that several can come at once. Raises InputError where none fits.
        """
        if capacity_bytes is None:
            return self
        longest = min(self.message_bytes, capacity_bytes // MESSAGES_AT_ONCE)
        if longest < RANGES["message_bytes"][0]:
            raise InputError(
                f"the memory budget is {self.memory_budget} bytes, which leaves {capacity_bytes} for requests beside"
                " what the server takes at rest; give it more"
            )
        return replace(self, message_bytes=longest)

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} is {value}; allowed: {least} to {most}")
