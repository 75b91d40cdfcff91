"""Metrics as Prometheus reads them: every kind of call counted, the documented table, all workers together."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import grpc
import numpy as np
import pytest
from inference_calls import calls_of
from prometheus_client.parser import text_string_to_metric_families
from rest_calls import Http, binary_body, json_body
from serving import image_requests, running, settled, stub_of
from test_access import SEES, tokens_file

import convserve
from convserve.client import Client
from convserve.server import Access, Server
from convserve.server.metrics import METRICS, PREFIX
from convserve.server.statistics import Histogram, ModelCounts, ServerCounts
from convserve.wire import convserve_pb2 as pb

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE = (BUNDLED / "digit.png").read_bytes(), (BUNDLED / "page.png").read_bytes()
X = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)

Metrics = dict[str, dict[tuple[tuple[str, str], ...], float]]


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(BUNDLED / "digits.convserve")


@pytest.fixture
def server(model: convserve.Model) -> Iterator[Server]:
    with running({"digits": model}, {"http_port": 0}) as server:
        yield server


def read(server: Server, **headers: str) -> Metrics:
    reply = Http(server.http_address).get("/metrics", **headers)
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: Metrics = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def of_digits(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics[PREFIX + name][tuple(sorted({"model": "digits", "version": "1", **labels}.items()))]


def test_every_kind_of_call_is_counted(server: Server, model: convserve.Model) -> None:
    http = Http(server.http_address)
    assert of_digits(read(server), "inference_request_success") == 0
    assert http.infer(json_body("image", X)).status == 200
    with calls_of(server.address) as calls:
        calls.infer("image", [DIGIT])
    body, headers = binary_body("image", [PAGE], parameters={"dense": True, "dense_stride": 2})
    assert http.infer(body, **headers).status == 200
    with Client(server.address) as client:
        client.classify([DIGIT, DIGIT, DIGIT], model="digits")
        client.classify(DIGIT, model="digits", flip=True)
    with stub_of(server.address) as stub:
        list(stub.ScoreMap(image_requests(PAGE, stride=(2, 2))))
        with pytest.raises(grpc.RpcError):
            list(stub.ScoreMap(image_requests(b"no image")))
    http.infer(json_body("cat", X)).refused(400)
    http.infer({**json_body("image", X), "parameters": {"timeout": 1}}).refused(504)
    # a call over HTTP has ended when its answer was sent, a moment after that came
    settled(lambda: int(sum(value for key, value in read(server)[PREFIX + "calls"].items() if "infer" in str(key))))
    found = read(server)
    assert of_digits(found, "inference_request_success") == 6
    assert of_digits(found, "inference_count") == 2 + 1 + 1 + 3 + 1 + 1
    assert of_digits(found, "inference_exec_count") >= 6
    assert of_digits(found, "inference_request_failure", reason="INVALID") == 2
    assert of_digits(found, "inference_request_failure", reason="CANCELED") == 1
    assert of_digits(found, "inference_request_failure", reason="BACKEND") == 0
    rows, cols = model.score_map(PAGE, stride=2).scores.shape[:2]
    assert of_digits(found, "score_map_positions") == 2 * rows * cols
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    took = {name: of_digits(found, f"inference_{name}_duration_us") for name in ("request", *parts)}
    assert sum(took[name] for name in parts) == pytest.approx(took["request"], abs=10)
    assert all(took[name] > 0 for name in ("request", "compute_input", "compute_infer"))
    for stage in ("queue", "prepare", "run", "encode"):
        assert of_digits(found, "stage_seconds_count", stage=stage) == 6
        assert of_digits(found, "stage_seconds_bucket", stage=stage, le="+Inf") == 6
    assert of_digits(found, "stage_seconds_sum", stage="run") == pytest.approx(took["compute_infer"] / 1e6, abs=1e-5)
    assert of_digits(found, "batch_images_count") == of_digits(found, "inference_exec_count")
    assert of_digits(found, "batch_images_bucket", le="1") < of_digits(found, "batch_images_bucket", le="4")
    assert of_digits(found, "run_peak_bytes") >= of_digits(found, "run_measured_bytes") > 0
    calls_ended = {
        tuple(dict(key)[name] for name in ("protocol", "method", "status")): value
        for key, value in found[PREFIX + "calls"].items()
    }
    assert calls_ended["http", "POST:/v2/models/{model}/infer", "200"] == 2
    assert calls_ended["http", "POST:/v2/models/{model}/infer", "504"] == 1
    assert calls_ended["grpc", "Classify", "OK"] == 2
    assert calls_ended["grpc", "ScoreMap", "INVALID_ARGUMENT"] == 1
    assert found[PREFIX + "memory_anonymous_bytes"][()] > 1 << 20
    assert found["process_cpu_seconds_total"][()] > 0


def test_the_documented_table_is_what_is_served(server: Server) -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert rows == [(one.name, one.kind, one.labels, one.help) for one in METRICS]
    with stub_of(server.address) as stub:
        stub.ListModels(pb.ListModelsRequest())
    found = read(server)
    names = {re.sub("_(bucket|count|sum)$", "", name) for name in found if "stage_" in name or "batch_" in name}
    names |= {name for name in found if name.startswith(PREFIX)}
    assert {PREFIX + one.name for one in METRICS} <= names
    for one in METRICS:
        if one.of_model is not None:
            samples = found[PREFIX + one.name + "_bucket" * (one.kind == "histogram")]
            labels = {name for key in samples for name, _ in key}
            assert labels - {"le"} == set(one.labels.split(", "))


def test_a_scraper_needs_a_right_of_its_own(model: convserve.Model, tmp_path: Path) -> None:
    path = Path(tokens_file(tmp_path))
    prometheus = '[clients.prometheus]\ntoken = "watches-0123456789abcdef"\nrights = ["metrics"]\n'
    path.write_text(path.read_text() + prometheus)
    with running({"digits": model}, {"http_port": 0, "access": Access(str(path))}) as server:
        http = Http(server.http_address)
        http.get("/metrics").refused(401)
        http.get("/metrics", authorization=f"Bearer {SEES}").refused(403, "'metrics'")
        http.get("/v2", authorization="Bearer watches-0123456789abcdef").refused(403, "'infer'")
        assert read(server, authorization="Bearer watches-0123456789abcdef")


def test_counts_of_workers_are_joined_by_way_of_json() -> None:
    first, second = ModelCounts(), ModelCounts(last_ms=5, planned_bytes=7, peak_bytes=9, positions=3)
    first.reasons["OTHER"] = 1
    second.reasons |= {"OTHER": 2, "INVALID": 1}
    second.histograms["run"].add(2_000_000)
    read_again = ModelCounts.from_dict(json.loads(json.dumps(asdict(second))))
    assert read_again == second
    first.join(read_again)
    assert first.reasons == {"OTHER": 3, "INVALID": 1}
    assert (first.planned_bytes, first.peak_bytes, first.positions) == (7, 9, 3)
    assert sum(first.histograms["run"].buckets) == 1
    server = ServerCounts({"grpc a OK": 1}, {"x": 2})
    server.join(ServerCounts({"grpc a OK": 1, "http b 200": 1}, {"x": 3}))
    assert server == ServerCounts({"grpc a OK": 2, "http b 200": 1}, {"x": 5})








@pytest.mark.parametrize(("ns", "bucket"), [(0, 0), (500_000, 0), (500_001, 1), (60_000_000_000, 14), (10**15, 15)])
def test_durations_lie_in_their_buckets(ns: int, bucket: int) -> None:
    found = Histogram()
    found.add(ns)
    assert [number for number, count in enumerate(found.buckets) if count] == [bucket]
