"""What the benchmark of servers asks: networks, callers and what they send, and what is to be reached."""

from dataclasses import dataclass

from benchmarks.networks import title_of

__all__ = ["CASES", "KEYS", "OVERLOADS", "Case", "Overload", "title_of_load"]

_SENDS = {"tensor": "float32 tensors", "jpeg": "photographs"}


@dataclass(frozen=True, slots=True)
class Case:
    """Callers of one network, in each of these numbers, that ask again when they are answered.

    send: what a caller sends; where we take photographs, peers are sent what the caller has decoded. at_least: ratios
    to peers of requests a second by the most callers; lower_p99: whether the latency is judged as well.
    """

    key: str
    network: str
    callers: tuple[int, ...]
    at_least: dict[str, float]
    lower_p99: bool = False
    send: str = "tensor"


@dataclass(frozen=True, slots=True)
class Overload:
    """Requests that come faster than the server can answer, and the memory that it may take."""

    key: str
    network: str
    memory_budget: str
    times: float = 3.0
    send: str = "tensor"


CASES = (
    Case("squeezenet", "squeezenet", (1, 8), {"mlserver": 4.0, "simple": 1.1}, lower_p99=True),
    Case("squeezenet-jpeg", "squeezenet", (8,), {"simple": 1.2}, send="jpeg"),
    Case("alexnet", "alexnet", (1, 8), {"simple": 3.0}),
    Case("vgg16", "vgg16", (1, 8), {"simple": 1.8}),
)
OVERLOADS = (
    Overload("overload", "vgg16", "256MiB"),
    Overload("overload-jpeg", "squeezenet", "128MiB", send="jpeg"),
)
KEYS = (*(case.key for case in CASES), *(case.key for case in OVERLOADS), "idle", "start")
"""Of the cases, and of what is measured of a server alone."""


def title_of_load(network: str, callers: int, send: str) -> str:
    """Return how tables call it."""
    return f"{title_of(network)}, {callers} caller{'s' if callers > 1 else ''}, {_SENDS[send]}"
