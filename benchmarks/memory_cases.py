"""The cases of the memory benchmark: what runs, in which sizes, and the figure that each has to reach."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["FULL", "SHORT", "Case"]

MIB = 1 << 20
SLACK_BYTES = 2 * MIB
"""What a run may take beside its plan: Python's own objects."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case. figure: the entry of a row that is judged, against limits by algorithm, in its unit.

    kind: of benchmarks.memory_worker, or "server", "servers". size: (height, width) of the image. peer_network: what
    peers run beside it, over peer_size.
    """

    key: str
    title: str
    kind: str
    network: str
    size: tuple[int, int]
    figure: str
    limits: dict[str, float] = field(default_factory=dict)
    smallest: bool = False
    algorithms: tuple[str, ...] = ("gemm", "auto")
    runs: int = 5
    peer_network: str = ""
    peer_size: tuple[int, int] = (224, 224)

    def judged(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with its figure, its limit, and whether plan, measurement and limit agree."""
        value = self._value(row)
        limit = self.limits.get(row["algorithm"])
        kept = row.get("allocated_bytes", row.get("planned_bytes")) == row.get("planned_bytes")
        # what is sampled may miss a short peak, never exceed the plan
        if self.kind in ("run", "map") and "taken_bytes" in row:
            # the block of scores that is read, and the one that is written next, are in the reader's hands
            beside = SLACK_BYTES + 2 * row.get("block_bytes", 0)
            kept = kept and row["taken_bytes"] <= row["planned_bytes"] + beside
        return {**row, "figure": value, "limit": limit, "met": kept and (limit is None or value <= limit)}

    def _value(self, row: dict[str, Any]) -> float:
        if self.figure == "returned":
            return float(row["after_bytes"] / row["before_bytes"])
        if self.figure == "evicted":
            return float(row["evicted_s"] / row["kept_s"])
        if self.figure == "default":
            return float(row["default_s"] / row["fastest_s"])
        if self.figure == "beside_file":
            return float(row["proportional_bytes"] - row["file_bytes"]) / MIB
        return float(row[self.figure]) / MIB


def _cases(
    large: str, middle: str, *, map_side: int, measured_side: int, stream: tuple[int, int], dense: str, few: bool
) -> tuple[Case, ...]:
    title = {"vgg16": "VGG-16", "resnet50": "ResNet-50"}
    big, mid = title.get(large, large), title.get(middle, middle)
    window, whole, part = (224, 224), (map_side, map_side), (measured_side, measured_side)
    runs, times = (1, 20) if few else (10, 1000)

    def at_most(gemm: float | None, auto: float | None) -> dict[str, float]:
        limits = {"gemm": gemm, "auto": auto}
        return {name: limit for name, limit in limits.items() if limit is not None and not few}

    return (
        Case(
            "smallest", f"{big} {window[0]}, smallest plan", "run", large, window, "planned_bytes",
            at_most(3.5, 6), smallest=True, runs=runs,
        ),
        Case(
            "default", f"{big} {window[0]}, default plan", "run", large, window, "planned_bytes",
            at_most(8, 16), runs=runs, peer_network=large,
        ),
        Case(
            "middle", f"{mid} {window[0]}, default plan", "run", middle, window, "planned_bytes",
            at_most(6, 8), runs=runs, peer_network=middle,
        ),
        Case(
            "map-plan", f"{big} {map_side}x{map_side} map streamed, smallest plan", "plan", large, whole,
            "planned_bytes", at_most(64, 160), smallest=True,
        ),
        Case(
            "map", f"{big} {measured_side}x{measured_side} map streamed, smallest plan", "map", large, part,
            "planned_bytes", smallest=True, runs=1, peer_network=dense, peer_size=part,
        ),
        Case(
            "stream", f"{big} {stream[1]} wide, {stream[0]:,} rows streamed: whole process", "stream", large, stream,
            "process_bytes", at_most(400, 700),
        ),
        Case(
            "returned", f"{big}: resident after a {map_side}x{map_side} map, against before", "returned", large, whole,
            "returned", at_most(None, 1.01), algorithms=("auto",),
        ),
        Case(
            "evicted", f"{big}, weights evicted: what of them a run leaves resident", "evicted", large, window,
            "evicted_bytes", algorithms=("auto",), runs=runs,
        ),
        Case(
            "evicted-price", f"{big}, weights evicted: time against kept", "evicted", large, window,
            "evicted", algorithms=("auto",), runs=runs,
        ),
        Case(
            "layouts", f"{big}: time of the default plan against the fastest", "layouts", large, window,
            "default", at_most(1.05, 1.05), runs=runs,
        ),
        Case(
            "layouts-middle", f"{mid}: time of the default plan against the fastest", "layouts", middle, window,
            "default", at_most(1.05, 1.05), runs=runs,
        ),
        Case(
            "server", f"a server of {big} after {times:,} classifications: anonymous", "server", large, window,
            "anonymous_bytes", at_most(None, 90), algorithms=("auto",), runs=times,
        ),
        Case(
            "servers", f"two servers of {big}: proportional set, beyond one file", "servers", large, window,
            "beside_file", at_most(None, 200), algorithms=("auto",),
        ),
    )  # fmt: skip


FULL = _cases(
    "vgg16", "resnet50", map_side=4096, measured_side=1024, stream=(2048, 16384), dense="vgg16-1024", few=False
)
SHORT = _cases(
    "squeezenet", "shufflenet", map_side=320, measured_side=256, stream=(288, 512), dense="", few=True
)
