"""Traces: a span for each call under its caller's, its stages in it, errors, and a server that does without."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference_calls import calls_of
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rest_calls import Http, json_body
from serving import image_requests, running, settled, stub_of

import convserve
from convserve import errors
from convserve.client import Client
from convserve.server import Server
from convserve.server.tracing import Tracing, tracing_to

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT = (BUNDLED / "digit.png").read_bytes()
X = np.zeros((2, 1, 28, 28), np.float32)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def server(exporter: InMemorySpanExporter) -> Iterator[Server]:
    model = convserve.load(BUNDLED / "digits.convserve")
    with running({"digits": model}, {"http_port": 0, "tracing": Tracing(exporter, at_once=True)}) as server:
        yield server


def spans_of(exporter: InMemorySpanExporter, name: str) -> tuple[Any, list[Any]]:
    """The only span of that name, and those in it, by where they begin."""
    settled(lambda: len(exporter.get_finished_spans()), still_s=0.1)
    spans = exporter.get_finished_spans()
    [found] = [span for span in spans if span.name == name]
    inner = [span for span in spans if span.parent and span.parent.span_id == found.context.span_id]
    return found, sorted(inner, key=lambda span: span.start_time)


def check_stages(span: Any, inner: list[Any], *stages: str) -> None:
    assert [one.name for one in inner if one.name != "wait"] == list(stages)
    for before, after in pairwise(inner):
        assert before.start_time <= before.end_time <= after.start_time
    assert span.start_time <= span.end_time


def test_an_inference_over_grpc_has_its_stages(server: Server, exporter: InMemorySpanExporter) -> None:
    with calls_of(server.address) as calls:
        calls.infer("image", [DIGIT])
    span, inner = spans_of(exporter, "inference.GRPCInferenceService/ModelInfer")
    check_stages(span, inner, "prepare", "run", "encode")
    assert span.kind.name == "SERVER"
    assert span.parent is None
    assert span.attributes["rpc.method"] == "ModelInfer"
    assert span.attributes["rpc.grpc.status"] == "OK"
    assert span.attributes["convserve.model.name"] == "digits"
    assert span.attributes["convserve.model.version"] == "1"
    assert span.attributes["convserve.images"] == 1
    assert span.resource.attributes["service.name"] == "convserve"


def test_an_inference_over_http_goes_on_with_its_callers_trace(server: Server, exporter: InMemorySpanExporter) -> None:
    http = Http(server.http_address)
    assert http.infer(json_body("image", X), traceparent=PARENT, x_request_id="mine").status == 200
    span, inner = spans_of(exporter, "POST /v2/models/{model}/infer")
    check_stages(span, inner, "prepare", "run", "encode")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["convserve.request_id"] == "mine"
    assert span.attributes["convserve.images"] == 2


def test_our_own_calls_leave_traces_too(server: Server, exporter: InMemorySpanExporter) -> None:
    with Client(server.address) as client:
        client.classify(DIGIT, model="digits")
    with stub_of(server.address) as stub:
        list(stub.ScoreMap(image_requests(DIGIT), metadata=[("traceparent", PARENT)]))
    check_stages(*spans_of(exporter, "convserve.v1.Convserve/Classify"), "prepare", "run", "encode")
    span, inner = spans_of(exporter, "convserve.v1.Convserve/ScoreMap")
    check_stages(span, inner, "prepare", "run")
    assert f"{span.context.trace_id:032x}" == TRACE


def test_what_fails_and_what_asks_for_health(server: Server, exporter: InMemorySpanExporter) -> None:
    http = Http(server.http_address)
    http.infer(json_body("cat", X), traceparent="garbage").refused(400)
    http.get("/v2/trace/setting").refused(501)
    for path in ("/healthz", "/readyz", "/metrics", "/v2/health/live"):
        assert http.get(path).status == 200
    with calls_of(server.address) as calls, pytest.raises(grpc.RpcError):
        calls.infer("cat", X)
    bad, _ = spans_of(exporter, "POST /v2/models/{model}/infer")
    assert (bad.attributes["http.response.status_code"], bad.status.status_code.name) == (400, "UNSET")
    missing, _ = spans_of(exporter, "GET /v2/trace/setting")
    assert missing.status.status_code.name == "ERROR"
    same, _ = spans_of(exporter, "inference.GRPCInferenceService/ModelInfer")
    assert (same.attributes["rpc.grpc.status"], same.status.status_code.name) == ("INVALID_ARGUMENT", "UNSET")
    assert len([span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]) == 3


def test_traces_reach_a_collector() -> None:
    bodies: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        model = convserve.load(BUNDLED / "digits.convserve")
        tracing = tracing_to(f"http://127.0.0.1:{collector.server_port}")
        with running({"digits": model}, {"tracing": tracing}) as server, calls_of(server.address) as calls:
            calls.infer("image", X)
        collector.shutdown()
    assert [path for path, _ in bodies] == ["/v1/traces"]
    assert b"ModelInfer" in bodies[0][1]


def test_traces_on_the_console(capfd: pytest.CaptureFixture[str]) -> None:
    model = convserve.load(BUNDLED / "digits.convserve")
    with running({"digits": model}, {"tracing": tracing_to("console")}) as server, calls_of(server.address) as calls:
        calls.infer("image", X)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert {line["name"] for line in lines} >= {"inference.GRPCInferenceService/ModelInfer", "run"}


def test_the_packages_are_named_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(errors.InputError, match=r"pip install 'convserve\[otel\]'"):
        tracing_to("console")


def test_nothing_of_it_is_imported_where_it_is_not_asked_for() -> None:
    code = (
        "import sys, convserve.cli.serve, convserve.server.serving, convserve.server.tracing;"
        "found = {name.partition('.')[0] for name in sys.modules};"
        "print(sorted(found & {'opentelemetry', 'uvicorn', 'starlette', 'prometheus_client'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
