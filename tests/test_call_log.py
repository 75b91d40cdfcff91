"""A server's log: one line a call with its request id, the status of every end, JSON lines."""

import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from serving import FakeModel, FakeStream, image_requests, process_of, running_server, stub_of

from convserve import errors
from convserve.client import Client
from convserve.server.access import Access
from convserve.wire import convserve_pb2 as pb

IMAGES = [pb.Image(tensor=pb.Tensor(layout=pb.UINT8_HWC, shape=(1, 1, 1), data=b"a"))]


class Lines(logging.Handler):
    """Keeps what is logged of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def logged() -> Iterator[list[Any]]:
    lines, logger = Lines(), logging.getLogger("convserve.calls")
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield lines.records
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


def failing(images: list[Any], top: int) -> Any:
    raise ZeroDivisionError


def test_one_line_for_each_call_with_its_status() -> None:
    models = {"fake": FakeModel(), "failing": FakeModel(classify=failing)}
    with logged() as records, running_server(models) as address, stub_of(address) as stub:
        stub.ListModels(pb.ListModelsRequest())
        list(stub.ScoreMap(image_requests(b"file", model="fake")))
        for model in ("none", "failing"):
            with pytest.raises(grpc.RpcError):
                stub.Classify(pb.ClassifyRequest(model=model, images=IMAGES))
    said = [(one.method.rpartition("/")[2], one.status) for one in records]
    assert said == [("ListModels", "OK"), ("ScoreMap", "OK"), ("Classify", "NOT_FOUND"), ("Classify", "INTERNAL")]
    assert all(0 <= one.seconds < 30 and "127.0.0.1" in one.peer and one.client == "" for one in records)


def test_a_call_that_is_cancelled_in_work_is_logged_as_such() -> None:
    stream = FakeStream(rows=100_000, cols=2000)
    with logged() as records, running_server({"fake": FakeModel(stream=lambda *_: stream)}) as address:
        with stub_of(address) as stub:
            call = stub.ScoreMap(image_requests(b"file", model="fake"))
            next(call)
            call.cancel()
        assert stream.released.wait(10)
    assert [one.status for one in records] == ["CANCELLED"]


def test_the_request_id_is_the_clients_or_a_new_one() -> None:
    given = ["abc-123", "x" * 128, "x" * 129, "two words", "", None]
    with logged() as records, running_server({"fake": FakeModel()}) as address, stub_of(address) as stub:
        told = []
        for request_id in given:
            metadata = None if request_id is None else [("x-request-id", request_id)]
            _, call = stub.ListModels.with_call(pb.ListModelsRequest(), metadata=metadata)
            told.append(dict(call.trailing_metadata())["x-request-id"])
        with pytest.raises(grpc.RpcError) as error:
            stub.Classify(pb.ClassifyRequest(), metadata=[("x-request-id", "of-an-error")])
        assert ("x-request-id", "of-an-error") in [tuple(one) for one in error.value.trailing_metadata()]
        assert dict(error.value.trailing_metadata())["convserve-error"] == "InputError"
    assert told[:2] == given[:2]
    assert all(len(one) == 16 for one in told[2:])
    assert len(set(told)) == len(told)
    assert len(records) == len(given) + 1


def test_refused_calls_are_logged_and_the_others_with_their_client(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text("[clients.camera]\ntoken = '0123456789abcdef'\n")
    with (
        logged() as records,
        running_server({"fake": FakeModel()}, {"access": Access(str(path))}) as address,
    ):
        for token in ("0123456789abcdef", "wrong"):
            with Client(address, token=token) as client:
                try:
                    client.list_models()
                except errors.AuthenticationError:
                    continue
    assert [(one.status, one.client) for one in records] == [("OK", "camera"), ("UNAUTHENTICATED", "")]


def test_json_lines_of_a_process(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("[clients.camera]\ntoken = '0123456789abcdef'\n")
    tokens.chmod(0o600)
    options = ["--log-format", "json", "--tokens", str(tokens), "--host", "0.0.0.0"]
    with process_of(*options) as (process, address):
        port = address.rpartition(":")[2]
        with stub_of(f"127.0.0.1:{port}") as stub:
            metadata = [("authorization", "Bearer 0123456789abcdef"), ("x-request-id", "one")]
            stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
            tokens.write_text("[clients.other]\ntoken = 'fedcba9876543210'\n")
            process.send_signal(signal.SIGHUP)
            other = [("authorization", "Bearer fedcba9876543210"), ("x-request-id", "two")]
            end = time.monotonic() + 20
            while True:
                try:
                    stub.ListModels(pb.ListModelsRequest(), metadata=other)
                    break
                except grpc.RpcError:
                    assert time.monotonic() < end
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    [warning] = [line for line in lines if line["level"] == "WARNING"]
    assert warning["message"] == "listening beyond this machine, on 0.0.0.0, without TLS"
    calls = {line["request_id"]: line for line in lines if line["logger"] == "convserve.calls"}
    assert calls["one"]["client"] == "camera"
    assert calls["two"]["client"] == "other"
    assert calls["one"]["status"] == "OK"
    assert calls["one"]["method"] == "/convserve.v1.Convserve/ListModels"
    assert calls["one"]["seconds"] < 30
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in lines)
