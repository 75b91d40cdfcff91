"""What Prometheus reads: Triton's names under our prefix, and what else a server knows, collected when it is asked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from convserve.server.statistics import BOUNDS_S, REASONS, STAGES, ModelCounts, ServerCounts, Statistics

__all__ = ["METRICS", "METRICS_TYPE", "Family", "metrics_text"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PREFIX = "convserve_"

Samples = Iterator[tuple[str, dict[str, str], float]]


class Family(NamedTuple):
    """One metric. kind: counter, gauge or histogram; of_model or of_server gives its samples: suffix, labels, value."""

    name: str
    kind: str
    labels: str
    help: str
    of_model: Callable[[ModelCounts], Samples] | None = None
    of_server: Callable[[ServerCounts], Samples] | None = None


def _one(value: Callable[[ModelCounts], float]) -> Callable[[ModelCounts], Samples]:
    def samples(counts: ModelCounts) -> Samples:
        yield "", {}, value(counts)

    return samples


def _level(name: str) -> Callable[[ServerCounts], Samples]:
    def samples(counts: ServerCounts) -> Samples:
        yield "", {}, counts.levels.get(name, 0)

    return samples


def _failures(counts: ModelCounts) -> Samples:
    for reason in REASONS:
        yield "", {"reason": reason}, counts.reasons.get(reason, 0)


def _calls(counts: ServerCounts) -> Samples:
    for key, count in sorted(counts.calls.items()):
        protocol, method, status = key.split(" ")
        yield "", {"protocol": protocol, "method": method, "status": status}, count


def _histogram(bounds: Mapping[float, int], total: float, labels: dict[str, str]) -> Samples:
    count = 0
    for bound, more in bounds.items():
        count += more
        text = "+Inf" if bound == float("inf") else f"{bound:g}"
        yield "_bucket", {**labels, "le": text}, count
    yield "_count", labels, count
    yield "_sum", labels, total


def _stages(counts: ModelCounts) -> Samples:
    for stage in STAGES:
        one = counts.histograms[stage]
        bounds = dict(zip((*BOUNDS_S, float("inf")), one.buckets, strict=True))
        yield from _histogram(bounds, one.ns / 1e9, {"stage": stage})


def _batches(counts: ModelCounts) -> Samples:
    bounds = dict.fromkeys([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, float("inf")], 0)
    for images, stages in counts.batches.items():
        bounds[next(bound for bound in bounds if images <= bound)] += stages.compute_infer.count
    total = sum(images * stages.compute_infer.count for images, stages in counts.batches.items())
    yield from _histogram(bounds, total, {})


def _us(name: str, help_text: str, value: Callable[[ModelCounts], int]) -> Family:
    return Family(
        f"inference_{name}_duration_us",
        "counter",
        "model, version",
        f"microseconds of {help_text}, of requests that succeeded",
        _one(lambda counts: value(counts) // 1000),
    )


_MODEL = "model, version"

METRICS: tuple[Family, ...] = (
    Family(
        "inference_request_success", "counter", _MODEL, "requests that succeeded", _one(lambda one: one.success.count)
    ),
    Family("inference_request_failure", "counter", f"{_MODEL}, reason", "requests that failed", _failures),
    Family("inference_count", "counter", _MODEL, "images of requests that succeeded", _one(lambda one: one.images)),
    Family("inference_exec_count", "counter", _MODEL, "runs, each of one or more requests", _one(lambda one: one.runs)),
    _us("request", "requests from their message to their answer", lambda one: one.success.ns),
    _us("queue", "waiting", lambda one: one.queue.ns),
    _us("compute_input", "decoding and preprocessing", lambda one: one.stages.compute_input.ns),
    _us("compute_infer", "the network", lambda one: one.stages.compute_infer.ns),
    _us("compute_output", "making the answer", lambda one: one.stages.compute_output.ns),
    Family("stage_seconds", "histogram", f"{_MODEL}, stage", f"the same by stage: {', '.join(STAGES)}", _stages),
    Family("batch_images", "histogram", _MODEL, "images of runs", _batches),
    Family("score_map_positions", "counter", _MODEL, "positions of score maps", _one(lambda one: one.positions)),
    Family("run_planned_bytes", "gauge", _MODEL, "what the last run's plan takes", _one(lambda one: one.planned_bytes)),
    Family("run_measured_bytes", "gauge", _MODEL, "what the last run took", _one(lambda one: one.measured_bytes)),
    Family("run_peak_bytes", "gauge", _MODEL, "the most that a run has taken", _one(lambda one: one.peak_bytes)),
    Family(
        "calls", "counter", "protocol, method, status", "calls that ended, refused ones too", of_server=_calls
    ),
    *(
        Family(name, "gauge", "", text, of_server=_level(name))
        for name, text in (
            ("calls_in_work", "calls that run or wait"),
            ("memory_reserved_bytes", "bytes that calls hold of the memory budget"),
            ("memory_waiting_bytes", "bytes that calls wait for"),
            ("memory_budget_bytes", "the memory budget; 0: none"),
            ("memory_anonymous_bytes", "anonymous memory of the process, of all workers together"),
        )
    ),
)
"""Every metric beside the process's own (process_*: cpu, memory, files), which are of the worker that is asked."""


class _Collected(Collector):
    def __init__(self, models: Mapping[tuple[str, str], ModelCounts], server: ServerCounts) -> None:
        self._models, self._server = models, server

    def collect(self) -> Iterator[Metric]:
        for family in METRICS:
            # Triton's counters do not end in _total, as those of prometheus_client must: they go as untyped
            kind = "unknown" if family.kind == "counter" else family.kind
            metric = Metric(PREFIX + family.name, family.help, kind)
            if family.of_server is not None:
                self._add(metric, family.of_server(self._server), {})
            for (model, version), counts in self._models.items():
                if family.of_model is not None:
                    self._add(metric, family.of_model(counts), {"model": model, "version": version})
            yield metric

    def _add(self, metric: Metric, samples: Samples, labels: dict[str, str]) -> None:
        for suffix, more, value in samples:
            metric.add_sample(metric.name + suffix, {**labels, **more}, value)


async def metrics_text(statistics: Statistics, ready: Iterable[tuple[str, str]]) -> bytes:
    """Return all metrics as METRICS_TYPE, those of all workers together.

    ready: models and versions that have metrics even where nobody has asked them yet.
    """
    models = {key: await statistics.total(*key) for key in sorted({*ready, *statistics.known})}
    registry = CollectorRegistry()
    registry.register(_Collected(models, await statistics.server_total()))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
