"""What became of the requests of each model: counts and durations, for the protocol's statistics and for metrics."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from convserve.errors import ConvserveError, InputError, MemoryBudgetError, RunCancelled, ServerBusy
from convserve.server.admission import Admission
from convserve.server.ledger import anonymous_bytes

__all__ = [
    "BOUNDS_S",
    "REASONS",
    "STAGES",
    "Duration",
    "Histogram",
    "ModelCounts",
    "Record",
    "ServerCounts",
    "Stages",
    "Statistics",
    "levels_of",
]

STAGES = ("queue", "prepare", "run", "encode")
"""What a request goes through: it waits, its image is decoded, the network runs, its answer is made."""

BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds of a histogram's buckets; one more has what is longer."""

REASONS = ("BACKEND", "CANCELED", "INVALID", "OTHER", "REJECTED")
"""Why requests fail: the server's own fault, client or deadline, the request, the model, memory or queue."""

_BOUNDS_NS = [round(bound * 1e9) for bound in BOUNDS_S]


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
class Histogram:
    """How many durations lie in each bucket, and the nanoseconds of all."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more."""
        self.buckets[bisect_left(_BOUNDS_NS, ns)] += 1
        self.ns += ns

    def join(self, other: "Histogram") -> None:
        """Count what another one has counted as well."""
        self.buckets = [mine + its for mine, its in zip(self.buckets, other.buckets, strict=True)]
        self.ns += other.ns


def _histograms() -> dict[str, Histogram]:
    return {stage: Histogram() for stage in STAGES}


@dataclass(slots=True)
class ModelCounts:
    """Of one version of a model. images: of requests that succeeded; batches: stages of its runs by their images.

    reasons: of requests that failed. positions: of score maps. planned_bytes, measured_bytes: of the last run;
    peak_bytes: the most that one has taken.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    stages: Stages = field(default_factory=Stages)
    batches: dict[int, Stages] = field(default_factory=dict)
    images: int = 0
    runs: int = 0
    last_ms: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=_histograms)
    positions: int = 0
    planned_bytes: int = 0
    measured_bytes: int = 0
    peak_bytes: int = 0

    def join(self, other: "ModelCounts") -> None:
        """Count what another one has counted as well."""
        for name in ("success", "fail", "queue"):
            getattr(self, name).join(getattr(other, name))
        self.stages.join(other.stages)
        for images, stages in other.batches.items():
            self.batches.setdefault(images, Stages()).join(stages)
        self.images += other.images
        self.runs += other.runs
        if other.last_ms >= self.last_ms:
            self.planned_bytes, self.measured_bytes = other.planned_bytes, other.measured_bytes
        self.last_ms = max(self.last_ms, other.last_ms)
        _join(self.reasons, other.reasons)
        for stage, histogram in other.histograms.items():
            self.histograms[stage].join(histogram)
        self.positions += other.positions
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelCounts":
        """Return counts from what asdict() makes of them, also by way of JSON."""
        read: dict[str, Any] = {name: Duration(**fields[name]) for name in ("success", "fail", "queue")}
        read["stages"] = Stages.from_dict(fields["stages"])
        read["batches"] = {int(images): Stages.from_dict(stages) for images, stages in fields["batches"].items()}
        read["histograms"] = {stage: Histogram(**one) for stage, one in fields["histograms"].items()}
        return cls(**{**fields, **read})


def _join(counts: dict[str, int], others: Mapping[str, int]) -> None:
    for name, count in others.items():
        counts[name] = counts.get(name, 0) + count


@dataclass(slots=True)
class ServerCounts:
    """Of a server. calls: those that ended, by protocol, method and status with a space between; levels: how it stands
    now, by names that metrics have.
    """

    calls: dict[str, int] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)

    def join(self, other: "ServerCounts") -> None:
        """Count what another process of the same server has counted as well."""
        _join(self.calls, other.calls)
        _join(self.levels, other.levels)


@dataclass(slots=True)
class Record:
    """What one request took; any thread may write it.

    images: the request's own; batches: those of the runs that began with one of them, several requests' together.
    spans: stages with where they begin and end, as time.perf_counter_ns() tells.
    """

    images: int = 0
    batches: list[int] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    positions: int = 0
    planned_bytes: int = 0
    measured_bytes: int = 0

    def stage(self, name: str, start_ns: int, end_ns: int | None = None) -> None:
        """Tell a stage that began at start_ns and ends now, or at end_ns."""
        self.spans.append((name, start_ns, time.perf_counter_ns() if end_ns is None else end_ns))

    def _ns(self, name: str) -> int:
        return sum(end - start for stage, start, end in self.spans if stage == name)

    @property
    def input_ns(self) -> int:
        """Nanoseconds of decoding and preprocessing."""
        return self._ns("prepare")

    @property
    def infer_ns(self) -> int:
        """Nanoseconds of the network."""
        return self._ns("run")

    @property
    def output_ns(self) -> int:
        """Nanoseconds of what makes the answer."""
        return self._ns("encode")


def _reason(error: BaseException) -> str:
    if isinstance(error, ServerBusy | MemoryBudgetError):
        return "REJECTED"
    if isinstance(error, RunCancelled | asyncio.CancelledError | GeneratorExit):
        return "CANCELED"
    if isinstance(error, InputError):
        return "INVALID"
    return "OTHER" if isinstance(error, ConvserveError) else "BACKEND"


def levels_of(admission: Admission) -> dict[str, int]:
    """Return how a server stands now, by names that metrics have."""
    ledger = admission.ledger
    return {
        "calls_in_work": admission.calls,
        "memory_reserved_bytes": ledger.reserved_bytes,
        "memory_waiting_bytes": ledger.waiting_bytes,
        "memory_budget_bytes": ledger.budget_bytes or 0,
        "memory_anonymous_bytes": anonymous_bytes(),
    }


class Statistics:
    """The counts by (model, version), for use inside one event loop."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], ModelCounts] = {}
        self._gather: Callable[[str, str], Awaitable[list[Any]]] | None = None
        self._server = ServerCounts()
        self.levels: Callable[[], dict[str, int]] = dict
        """Tells how this process stands now, by the names of metrics."""
        self.on_record: Callable[[str, str, Record, int], None] | None = None
        """Called with a model, its version, what a request took, and when it came, whether it succeeded or not."""

    @property
    def known(self) -> list[tuple[str, str]]:
        """The models and versions of which there are counts."""
        return list(self._counts)

    def count_call(self, protocol: str, method: str, status: str) -> None:
        """Count a call that ended, whatever it was about."""
        key = f"{protocol} {method} {status}"
        self._server.calls[key] = self._server.calls.get(key, 0) + 1

    def server(self) -> ServerCounts:
        """Return the counts of this process, and how it stands now."""
        self._server.levels = self.levels()
        return self._server

    def told(self, model: str, version: str) -> dict[str, Any]:
        """Return of() as plain data, for other processes; server() where there is no model's name."""
        return asdict(self.of(model, version) if model else self.server())

    def go_on(self, told: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
        """Count on from what told() was of each model and version in a process that has ended."""
        for model, version, counts in told:
            if model:
                self.of(model, version).join(ModelCounts.from_dict(counts))
            else:
                self._server.join(ServerCounts(calls=dict(counts["calls"])))

    async def server_total(self) -> ServerCounts:
        """Return server() of all workers together, of this process where it is alone."""
        if self._gather is None:
            return self.server()
        found = ServerCounts()
        for counts in await self._gather("", ""):
            found.join(ServerCounts(**counts))
        return found

    def of(self, model: str, version: str) -> ModelCounts:
        """Return the counts of one version of a model, zeros where there was no request yet."""
        return self._counts.setdefault((model, version), ModelCounts())

    def share(self, gather: Callable[[str, str], Awaitable[list[Any]]]) -> None:
        """Let total() ask all workers: gather(model, version) returns what told() is in each of them."""
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
        except BaseException as error:
            counts.fail.add(time.perf_counter_ns() - came)
            reason = _reason(error)
            counts.reasons[reason] = counts.reasons.get(reason, 0) + 1
            raise
        finally:
            if self.on_record is not None:
                self.on_record(model, version, record, came)
        whole = time.perf_counter_ns() - came
        counts.success.add(whole)
        counts.last_ms = time.time_ns() // 1_000_000
        counts.images += record.images
        counts.runs += len(record.batches)
        counts.positions += record.positions
        counts.planned_bytes, counts.measured_bytes = record.planned_bytes, record.measured_bytes
        counts.peak_bytes = max(counts.peak_bytes, record.measured_bytes)
        stages = {"prepare": record.input_ns, "run": record.infer_ns, "encode": record.output_ns}
        stages["queue"] = max(0, whole - sum(stages.values()))
        for stage, ns in stages.items():
            counts.histograms[stage].add(ns)
        counts.queue.add(stages["queue"])
        counts.stages.add(record)
        for images in record.batches:
            counts.batches.setdefault(images, Stages()).add(record)
