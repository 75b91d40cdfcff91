"""The HTTP port: long bodies and slow ones, clients that leave, tokens, TLS, the end of the server."""

import asyncio
import gzip
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rest_calls import JSON_LENGTH, LONGEST_BODY, Http, binary_body, json_body
from serving import FakeModel, FakeStream, running, settled
from test_access import BOTH, LOADS, SEES, tokens_file
from test_call_log import logged
from test_server_tls import authority

import convserve
from convserve import errors
from convserve.engine.source import ImageRows
from convserve.server import Access, Certificates, Repository, Server, http_listener

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT = (BUNDLED / "digit.png").read_bytes()
X = np.zeros((1, 1, 28, 28), np.float32)
MOST = LONGEST_BODY


# ---- lengths and time


def raw(http: Http, data: bytes, *, more: bytes = b"", pause_s: float = 0.0) -> bytes:
    """What comes back on a connection of its own until it is closed."""
    host, _, port = http._address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.sendall(data)
        if more:
            time.sleep(pause_s)
            connection.sendall(more)
        found = b""
        while part := connection.recv(1 << 16):
            found += part
    return found


POST = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n"


def test_bodies_longer_than_a_message(http: Http) -> None:
    http.infer(b" " * (MOST + 1)).refused(413, str(MOST))
    http.infer(gzip.compress(b" " * (MOST + 1)), content_encoding="gzip").refused(413, str(MOST))
    http.infer(gzip.compress(bytes(1 << 28)), content_encoding="gzip").refused(413, str(MOST))
    chunks = b"".join(b"400\r\n" + b" " * 1024 + b"\r\n" for _ in range(MOST // 1024 + 1)) + b"0\r\n\r\n"
    said = raw(http, POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert said.startswith(b"HTTP/1.1 413")
    # nothing of it is waited for
    said = raw(http, POST + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413")


def test_compressed_bodies_that_are_none(http: Http) -> None:
    body, headers = binary_body("image", X)
    http.infer(body, content_encoding="gzip", **headers).refused(400, "inflated")
    http.infer(gzip.compress(body)[:-9], content_encoding="gzip", **headers).refused(400, "ends before")
    http.infer(body, content_encoding="br", **headers).refused(415, "'br'")


def test_slow_bodies_end(http: Http) -> None:
    assert raw(http, POST + b"Content-Length: 10\r\n\r\nabc").startswith(b"HTTP/1.1 408")
    assert raw(http, POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n").startswith(b"HTTP/1.1 408")


def test_connections_without_a_request_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "PATIENCE_S", 0.2)
    with running({"digits": FakeModel()}, {"http_port": 0}) as server:
        http = Http(server.http_address)
        assert raw(http, b"") == b""
        assert raw(http, b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: ") == b""
        # a second request that does not end, behind one that was answered
        answered = raw(http, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2 HTTP/1.1\r\n")
        assert answered.startswith(b"HTTP/1.1 200")
        assert http.get("/v2").status == 200


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with running({"digits": FakeModel()}, {"http_port": 0}) as server:
        host, _, port = server.http_address.rpartition(":")
        with closing(socket.create_connection((host, int(port)), timeout=10)):
            assert server._http is not None
            assert server._http._server is not None
            connections = server._http._server.server_state.connections
            assert settled(lambda: len(connections)) == 1
            [connection] = connections
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_clients_that_come_and_go_leave_nothing() -> None:
    slow = Slow()
    slow.graph = Named(FakeStream(rows=1)).graph
    body, headers = files()
    head = POST + f"{JSON_LENGTH}: {headers[JSON_LENGTH]}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with running({"digits": slow}, {"http_port": 0}, max_running=2, max_waiting=300) as server:
        host, _, port = server.http_address.rpartition(":")
        whole = head + body
        for number in range(120):
            with closing(socket.create_connection((host, int(port)), timeout=10)) as connection:
                connection.sendall(whole[: len(whole) * number // 100])
        slow.may_end.set()
        assert settled(lambda: server._admission.calls) == 0
        assert server._admission.ledger.reserved_bytes == 0
        assert Http(server.http_address).get("/v2/health/ready").status == 200


IMAGE = b"Content-Type: image/png\r\nContent-Length: 100000"


def test_what_a_body_takes_is_reserved_before_it_is_read() -> None:
    with running({"digits": FakeModel()}, {"http_port": 0}, message_bytes=1 << 20) as server:
        host, _, port = server.http_address.rpartition(":")
        ledger = server._admission.ledger
        chunked = b"Transfer-Encoding: chunked"
        for headers, least in [(b"Content-Length: 100000", 800_000), (IMAGE, 200_000), (chunked, 2 << 20)]:
            with closing(socket.create_connection((host, int(port)), timeout=10)) as connection:
                connection.sendall(POST + headers + b"\r\n\r\n")
                assert settled(lambda: ledger.reserved_bytes) == least
            assert settled(lambda: ledger.reserved_bytes) == 0


def test_bytes_that_are_no_http(http: Http) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\0" * 100 + b"\r\n\r\n"):
        assert raw(http, data).startswith(b"HTTP/1.1 400")
    assert raw(http, POST + b"Content-Length: -1\r\n\r\n").startswith(b"HTTP/1.1 400")
    both = b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
    assert raw(http, POST + both).startswith(b"HTTP/1.1 400")
    assert raw(http, b"GET /" + b"x" * 20_000).startswith(b"HTTP/1.1 400")


def test_a_page_of_another_origin_is_refused(http: Http) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        http.get("/v2", origin=origin).refused(403, "origin")
    assert http.get("/v2", origin=f"http://{http._address}").status == 200


# ---- what the server does


class Slow(FakeModel):
    """A model whose preparation waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_end = threading.Event(), threading.Event()

    def prepare(self, image: Any) -> ImageRows:
        self.began.set()
        assert self.may_end.wait(20)
        raise errors.ImageError("it was only a test")


class Named(FakeModel):
    """A fake model with what the protocol asks of a graph."""

    def __init__(self, stream: FakeStream) -> None:
        super().__init__(stream=lambda *_: stream)
        self.graph = SimpleNamespace(
            input_name="image", input_volume=self.graph.input_volume, outputs=[SimpleNamespace(name="y")]
        )


def files(count: int = 1) -> tuple[bytes, dict[str, str]]:
    return binary_body("image", [DIGIT] * count)


def test_a_full_queue_says_when_to_come_back() -> None:
    slow = Slow()
    slow.graph = Named(FakeStream(rows=1)).graph
    with running({"digits": slow}, {"http_port": 0}, max_running=1, max_waiting=0) as server:
        http = Http(server.http_address)
        body, headers = files()
        replies: list[Any] = []
        first = threading.Thread(target=lambda: replies.append(http.infer(body, **headers)))
        first.start()
        assert slow.began.wait(10)
        busy = http.infer(body, **headers)
        slow.may_end.set()
        first.join(10)
    busy.refused(429, "takes no more")
    assert int(busy.headers["retry-after"]) >= 1
    assert busy.headers["convserve-error"] == "ServerBusy"
    replies[0].refused(400, "only a test")


def test_a_client_that_leaves_ends_its_run() -> None:
    stream = FakeStream(rows=1_000_000, cols=2)
    models: Any = {"digits": Named(stream)}
    with logged() as records, running(models, {"http_port": 0}) as server:
        host, _, port = server.http_address.rpartition(":")
        body, headers = binary_body("image", [DIGIT], parameters={"dense": True})
        head = POST + f"{JSON_LENGTH}: {headers[JSON_LENGTH]}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with closing(socket.create_connection((host, int(port)))) as connection:
            connection.sendall(head + body)
            settled(lambda: min(stream.taken, 1), still_s=0.2)
            assert stream.taken
        assert stream.closed.wait(10)
        assert stream.released.wait(10)
    assert [one.status for one in records] == ["499"]


def test_failures_of_the_server_are_not_told() -> None:
    models: Any = {"digits": Named(FakeStream(rows=3, fail_at=1))}
    with logged() as records, running(models, {"http_port": 0}) as server:
        body, headers = binary_body("image", [DIGIT], parameters={"dense": True})
        reply = Http(server.http_address).infer(body, x_request_id="mine", **headers)
    assert reply.json == {"error": "internal error"}
    assert reply.status == 500
    assert reply.headers["x-request-id"] == "mine"
    assert [(one.method, one.status) for one in records] == [("POST /v2/models/{model}/infer", "500")]


def test_deadlines_that_pass(http: Http) -> None:
    http.infer({**json_body("image", X), "parameters": {"timeout": 1}}).refused(504, "deadline")


class Loading(Repository):
    """A repository of which not every model was tried."""

    complete = False  # type: ignore[assignment]


def test_models_that_are_being_loaded() -> None:
    with running(Loading({"digits": FakeModel()}), {"http_port": 0}) as server:
        http = Http(server.http_address)
        for path in ("/readyz", "/v2/health/ready"):
            assert http.get(path)[::2] == (503, b'{"ready": false}')
        assert http.get("/healthz").status == 200


def test_tokens_and_rights(tmp_path: Path) -> None:
    access = Access(tokens_file(tmp_path))
    with logged() as records, running({"digits": FakeModel()}, {"http_port": 0, "access": access}) as server:
        http = Http(server.http_address)
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"):
            assert http.get(path).status == 200
        for path in ("/v2", "/v2/models/digits", "/nowhere", "/v2/models/stats"):
            refused = http.get(path)
            refused.refused(401, "token")
            assert refused.headers["www-authenticate"] == "Bearer"
        http.get("/v2", authorization="Bearer wrong").refused(401)
        assert http.get("/v2", authorization=f"Bearer {SEES}").status == 200
        http.get("/v2", authorization=f"Bearer {LOADS}").refused(403, "'infer'")
        http.post("/v2/repository/models/digits/unload", authorization=f"Bearer {SEES}").refused(403, "'control'")
        http.post("/v2/repository/models/digits/unload", authorization=f"Bearer {BOTH}").refused(400, "stays")
        # a body that nobody may send is not read
        http.infer(b" " * 3_000_000, authorization="Bearer wrong").refused(401)
    clients = {one.client for one in records if one.status == "200"}
    assert clients == {"sees"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes certificates, is absent")
def test_tls_with_files_that_change(tmp_path: Path) -> None:
    for name in ("first", "second", "clients", "others"):
        authority(tmp_path, name)
    for kind in ("pem", "key"):
        shutil.copy(tmp_path / f"first.{kind}", tmp_path / f"now.{kind}")
    shutil.copy(tmp_path / "clients.pem", tmp_path / "ca.pem")
    certificates = Certificates(*(str(tmp_path / name) for name in ("now.pem", "now.key", "ca.pem")))

    def http(server: Server, trusted: str, own: str | None) -> Http:
        context = ssl.create_default_context(cafile=str(tmp_path / f"{trusted}.pem"))
        if own:
            context.load_cert_chain(tmp_path / f"{own}.pem", tmp_path / f"{own}.key")
        return Http("localhost:" + server.http_address.rpartition(":")[2], context)

    def refused(server: Server, trusted: str, own: str | None) -> None:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            http(server, trusted, own).get("/v2")

    with running({"digits": FakeModel()}, {"http_port": 0, "certificates": certificates}) as server:
        assert http(server, "first", "clients").get("/v2").status == 200
        refused(server, "second", "clients")
        refused(server, "first", "others")
        refused(server, "first", None)
        shutil.copy(tmp_path / "others.pem", tmp_path / "ca.pem")
        for kind in ("pem", "key"):
            shutil.copy(tmp_path / f"second.{kind}", tmp_path / f"now.{kind}")
        assert http(server, "second", "others").get("/v2").status == 200
        refused(server, "first", "others")
        refused(server, "second", "clients")
        (tmp_path / "now.pem").write_text("garbage")
        assert http(server, "second", "others").get("/v2").status == 200


# ---- the end


def test_calls_in_work_end_before_the_server_does() -> None:
    slow = Slow()
    slow.graph = Named(FakeStream(rows=1)).graph
    body, headers = files()
    replies: list[Any] = []
    with running({"digits": slow}, {"http_port": 0}) as server:
        http = Http(server.http_address)
        first = threading.Thread(target=lambda: replies.append(http.infer(body, **headers)))
        first.start()
        assert slow.began.wait(10)
        threading.Timer(0.5, slow.may_end.set).start()
    first.join(10)
    replies[0].refused(400, "only a test")
    with pytest.raises(ConnectionError):
        http.get("/healthz")


def test_the_command_serves_both_and_ends_well() -> None:
    command = [sys.executable, "-m", "convserve", "serve", "--port", "0", "--http-port", "0"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().rpartition("; HTTP on ")[2].strip()
            assert Http(address).get("/v2/models/digits/ready").status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_ports_that_cannot_be_taken(http: Http) -> None:
    models = Repository({"digits": FakeModel()})
    with pytest.raises(errors.InputError, match=f"cannot listen on {http._address} for HTTP; it is in use"):
        asyncio.run(Server(models, port=0, http_port=int(http._address.rpartition(":")[2])).start())
    with pytest.raises(errors.InputError, match="http_port is 65536; allowed: 0 to 65535"):
        Server(models, port=0, http_port=65536)


def test_the_packages_are_named_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(errors.InputError, match=r"pip install 'convserve\[http\]'"):
        Server(Repository({"digits": FakeModel()}), http_port=0)
