"""What became of the requests of each model: counts and durations, as the Open Inference Protocol's statistics."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Duration", "ModelCounts", "Record", "Stages", "Statistics"]


@dataclass(slots=True)
class Duration:
    """How often, and how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count once more."""
        self.count += 1
        self.ns += ns

    def join(self, other: "Duration") -> None:
        """Count what another one has counted as well."""
        self.count += other.count
        self.ns += other.ns


@dataclass(slots=True)
class Stages:
    """The stages of what was computed: decoding and preprocessing, the network, encoding."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, record: "Record") -> None:
        """Count a request that was computed."""
        self.compute_input.add(record.input_ns)
        self.compute_infer.add(record.infer_ns)
        self.compute_output.add(record.output_ns)

    def join(self, other: "Stages") -> None:
        """Count what another one has counted as well."""
        self.compute_input.join(other.compute_input)
        self.compute_infer.join(other.compute_infer)
        self.compute_output.join(other.compute_output)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Stages":
        """Return stages from what asdict() makes of them."""
        return cls(**{name: Duration(**duration) for name, duration in fields.items()})


@dataclass(slots=True)
class ModelCounts:
    """Of one version of a model. images: of requests that succeeded; batches: stages of its runs by their images."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    stages: Stages = field(default_factory=Stages)
    batches: dict[int, Stages] = field(default_factory=dict)
    images: int = 0
    runs: int = 0
    last_ms: int = 0

    def join(self, other: "ModelCounts") -> None:
        """Count what another one has counted as well."""
        for name in ("success", "fail", "queue"):
            getattr(self, name).join(getattr(other, name))
        self.stages.join(other.stages)
        for images, stages in other.batches.items():
            self.batches.setdefault(images, Stages()).join(stages)
        self.images += other.images
        self.runs += other.runs
        self.last_ms = max(self.last_ms, other.last_ms)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelCounts":
        """Return counts from what asdict() makes of them, also by way of JSON."""
        read: dict[str, Any] = {name: Duration(**fields[name]) for name in ("success", "fail", "queue")}
        read["stages"] = Stages.from_dict(fields["stages"])
        read["batches"] = {int(images): Stages.from_dict(stages) for images, stages in fields["batches"].items()}
        return cls(**{**fields, **read})


@dataclass(slots=True)
class Record:
    """What one request took, in nanoseconds; any thread may write it.

    images: the request's own; batch: those of the runs that began with one of them, several requests' together.
    """

    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    images: int = 0
    batches: list[int] = field(default_factory=list)


class Statistics:
    """The counts by (model, version), for use inside one event loop."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], ModelCounts] = {}
        self._gather: Callable[[str, str], Awaitable[list[Any]]] | None = None

    def of(self, model: str, version: str) -> ModelCounts:
        """Return the counts of one version of a model, zeros where there was no request yet."""
        return self._counts.setdefault((model, version), ModelCounts())

    def share(self, gather: Callable[[str, str], Awaitable[list[Any]]]) -> None:
        """Let total() ask all workers: gather(model, version) returns what asdict(of()) is in each of them."""
        self._gather = gather

    async def total(self, model: str, version: str) -> ModelCounts:
        """Return the counts of all workers of the server, of this process where it is alone."""
        if self._gather is None:
            return self.of(model, version)
        found = ModelCounts()
        for counts in await self._gather(model, version):
            found.join(ModelCounts.from_dict(counts))
        return found

    @contextmanager
    def recording(self, model: str, version: str) -> Iterator[Record]:
        """Count the request that the block answers; one that ends in an exception has failed."""
        counts, record, came = self.of(model, version), Record(), time.perf_counter_ns()
        try:
            yield record
        except BaseException:
            counts.fail.add(time.perf_counter_ns() - came)
            raise
        whole = time.perf_counter_ns() - came
        counts.success.add(whole)
        counts.last_ms = time.time_ns() // 1_000_000
        counts.images += record.images
        counts.runs += len(record.batches)
        counts.queue.add(max(0, whole - record.input_ns - record.infer_ns - record.output_ns))
        counts.stages.add(record)
        for images in record.batches:
            counts.batches.setdefault(images, Stages()).add(record)
