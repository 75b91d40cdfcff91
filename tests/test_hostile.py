"""Hostile clients: whatever they send or leave open, each gets its status, nothing stays, others are answered."""

import asyncio
import io
import itertools
import os
import re
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from hostile import JUNK, REFUSALS, Hostile, connections, png_bomb
from inference_calls import Calls, request_of
from PIL import Image
from refusals import DIGIT, INVALID, LIMITS, PAGE, check_that_it_goes_on, refused
from serving import image_requests, kinds_of, process_of, running_server, scores_of, settled, stub_of

import convserve
from convserve.server import incoming
from convserve.server.interceptors import _MOST_LISTENERS
from convserve.server.ledger import Ledger
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub
from convserve.wire.infer import LONGEST_ID
from convserve.wire.scene import SceneHeader, header_to_message

BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
PLACES = re.compile(r"/(tmp|root|home|usr|var|etc/)|0x[0-9a-f]{6}|\.py\b|Traceback|object at")
"""What no text for clients may have: paths, addresses, lines of code."""


@pytest.fixture(scope="module")
def limits() -> dict[str, int]:
    return LIMITS


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- any request


@pytest.mark.parametrize("seed", range(4))
def test_requests_with_damage_get_a_status_and_one_sentence(
    address: str, good: Callable[[], None], seed: int
) -> None:
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        # as a server has them that loads no models on request
        client = Hostile(channel, seed=seed, methods=lambda name: "Unload" not in name)
        for _ in range(60):
            method, code, said, sent = client.call()
            assert code in (*REFUSALS, grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED), (method, said, sent)
            assert not PLACES.search(said or "") or "/etc/passwd" in said, (method, said)
            assert "\n" not in (said or "")
    good()


# ---- bombs


def _resized(form: str, width: int, height: int) -> bytes:
    """A file of a tiny picture whose header claims another size."""
    stream = io.BytesIO()
    Image.new("L", (16, 16)).save(stream, form)
    data = bytearray(stream.getvalue())
    if form == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif form == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif form == "TIFF":
        for tag, value in ((256, width), (257, height)):
            at = data.index(struct.pack("<H", tag))
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    elif form == "PPM":
        data = bytearray(b"P5 %d %d 255\n" % (width, height))
    else:
        at = data.index(b"VP8 ") + 14
        data[at : at + 4] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    return bytes(data)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _frames(count: int) -> bytes:
    stream = io.BytesIO()
    first = Image.new("P", (40, 40))
    rest = [Image.new("P", (40, 40), number % 256) for number in range(1, count)]
    first.save(stream, "GIF", save_all=True, append_images=rest)
    return stream.getvalue()


TEXT_BOMB = PAGE[:33] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20), 9)) + PAGE[33:]
BOMBS = {
    "PNG": png_bomb(60_000, 60_000),
    "PNG, its rows too": png_bomb(60_000, 60_000, 1 << 20),
    "PNG of text": TEXT_BOMB,
    **{form: _resized(form, 40_000, 40_000) for form in ("JPEG", "GIF", "TIFF", "PPM", "BMP")},
    "TIFF, negative": _resized("TIFF", (1 << 32) - 1, (1 << 32) - 1),
    "BMP, negative": _resized("BMP", -40, 40),
    "JPEG, empty": _resized("JPEG", 0, 0),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_by_every_method(
    stub: ConvserveStub, calls: Calls, good: Callable[[], None], case: str
) -> None:
    file = BOMBS[case]
    assert len(file) < LIMITS["image_bytes"]
    tracked = _peak_bytes()
    for call in (
        lambda: stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=file)]), timeout=60),
        lambda: list(stub.ScoreMap(image_requests(file), timeout=60)),
        lambda: calls.ModelInfer(request_of("image", [file]), timeout=60),
        lambda: calls.ModelInfer(request_of("image", [file], dense=True), timeout=60),
    ):
        refused(call, INVALID, "image")
    assert _peak_bytes() - tracked < 200 << 20
    good()


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


def test_more_rows_or_frames_than_a_picture_shows_are_not_read(stub: ConvserveStub, good: Callable[[], None]) -> None:
    long, frames = png_bomb(28, 28, 50 << 20), _frames(300)
    for file in (long, frames):
        request = pb.ClassifyRequest(images=[pb.Image(encoded=file)])
        assert len(stub.Classify(request, timeout=60).classifications) == 1
    good()


# ---- names and lists that are longer than anything


def test_more_classes_than_there_are(stub: ConvserveStub, calls: Calls, good: Callable[[], None]) -> None:
    refused(lambda: list(stub.ScoreMap(image_requests(PAGE, classes=[3] * 12))), INVALID, "12 classes", "has 11")
    many = ";".join(["3"] * 100_000)
    refused(lambda: calls.infer("image", [PAGE], dense=True, dense_classes=many), INVALID, "100000 classes")
    good()


def test_an_id_that_answers_would_repeat(calls: Calls, good: Callable[[], None]) -> None:
    x = np.zeros((1, 1, 28, 28), np.float32)
    request = request_of("image", x)
    request.id = "i" * LONGEST_ID
    assert calls.ModelInfer(request).id == request.id
    request.id += "i"
    refused(lambda: calls.ModelInfer(request), INVALID, "the request's id has 1025 characters")
    [answer] = calls.ModelStreamInfer(iter([request]), timeout=20)
    assert "1025 characters" in answer.error_message
    assert len(answer.infer_response.id) == LONGEST_ID
    good()


def test_ten_thousand_pieces_of_a_byte(stub: ConvserveStub, model: convserve.Model) -> None:
    file = DIGIT + bytes(10_000 - len(DIGIT))
    header = header_to_message(SceneHeader(None))
    pieces = (pb.ScoreMapRequest(piece=file[at : at + 1]) for at in range(len(file)))

    def requests() -> Iterator[pb.ScoreMapRequest]:
        yield header
        yield from pieces

    found = scores_of(list(stub.ScoreMap(requests(), timeout=120)))
    assert found == model.score_map(DIGIT).scores.tobytes()


# ---- patience


@pytest.mark.parametrize(("piece", "trickles"), [(b"", True), (b"a", True), (b"a" * (20 << 10), False)])
def test_a_file_that_trickles_in_gives_its_place_to_others(
    piece: bytes, trickles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a clock on which a piece comes each second
    seconds = itertools.count()
    monkeypatch.setattr(incoming, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    requests = itertools.chain([pb.ScoreMapRequest(piece=piece)] * 100, [grpc.aio.EOF])

    class Trickling:
        async def read(self) -> Any:
            return next(requests)

    async def received() -> bytes:
        return await incoming.Incoming(Trickling(), stall_s=60).file(1 << 30, Ledger().open())  # type: ignore[arg-type]

    if trickles:
        with pytest.raises(convserve.errors.RunCancelled, match="more slowly than 16384 bytes a second"):
            asyncio.run(received())
        assert next(seconds) < 65
    else:
        assert len(asyncio.run(received())) == 2000 << 10


def test_listeners_leave_places_to_calls(model: convserve.Model) -> None:
    with running_server({"digits": model}) as address, grpc.insecure_channel(address) as channel:
        health, done = HealthStub(channel), threading.Event()

        def asked() -> Iterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            done.wait(30)

        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(_MOST_LISTENERS - 1)]
        watches.append(ServerReflectionStub(channel).ServerReflectionInfo(asked()))
        for watch in watches:
            assert next(watch)
        refused(lambda: next(health.Watch(health_pb2.HealthCheckRequest())), BUSY, "64 streams open")
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        check_that_it_goes_on(ConvserveStub(channel), model)
        for watch in watches:
            watch.cancel()
        done.set()
        end = time.monotonic() + 20
        while True:
            watch = health.Watch(health_pb2.HealthCheckRequest())
            with suppress(grpc.RpcError):
                next(watch)
                watch.cancel()
                break
            assert time.monotonic() < end


# ---- cancelled at every stage


STAGES = ("before anything is read", "while it is read", "while it is decoded", "while it waits", "while it runs",
    "while its answer is written")  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("protocol", ["ours", "open inference"])
def test_a_call_may_be_cancelled_at_every_stage(
    model: convserve.Model, page: np.ndarray, stage: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def held(name: str, owner: Any) -> None:
        before = getattr(owner, name)

        def hold(*args: Any, **options: Any) -> Any:
            reached.set()
            assert go_on.wait(30)
            return before(*args, **options)

        monkeypatch.setattr(owner, name, hold)

    if stage == "while it is decoded":
        held("score_stream", model)
    elif stage == "while it runs":
        from convserve.server.scoring import Scoring

        held("next_rows", Scoring)

    def sent() -> Iterator[Any]:
        if stage == "before anything is read":
            reached.set()
            go_on.wait(30)
        ours = protocol == "ours"
        requests = list(image_requests(PAGE)) if ours else [request_of("image", [PAGE], dense=True, dense_stride=4)]
        for request in requests:
            yield request
            if stage == "while it is read":
                reached.set()
                go_on.wait(30)

    with running_server({"digits": model}, max_running=1, max_waiting=3) as address, ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(address))
        method = ConvserveStub(channel).ScoreMap if protocol == "ours" else Calls(channel).ModelStreamInfer
        if stage == "while it waits":
            held("score_stream", model)
            first = method(sent())
            assert reached.wait(20)
        call = method(sent())
        if stage == "while its answer is written":
            next(call)
        elif stage != "while it waits":
            assert reached.wait(20)
        call.cancel()
        assert call.code() == grpc.StatusCode.CANCELLED
        go_on.set()
        if stage == "while it waits":
            assert list(first)
        monkeypatch.undo()
        with stub_of(address) as stub:
            # every place is free again
            for _ in range(3):
                check_that_it_goes_on(stub, model)
            assert scores_of(list(stub.ScoreMap(image_requests(PAGE)))) == model.score_map(PAGE).scores.tobytes()


def test_storms_of_connections_and_cancelled_calls_leave_nothing(model: convserve.Model) -> None:
    expected = model.score_map(PAGE).scores.tobytes()
    with running_server({"digits": model}, max_running=2, max_waiting=8) as address, stub_of(address) as stub:
        check_that_it_goes_on(stub, model)
        before, threads = descriptors(), threading.active_count()

        def one(number: int) -> None:
            with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                calls = Calls(channel)
                if number % 3 == 0:
                    call = ConvserveStub(channel).ScoreMap(image_requests(PAGE))
                elif number % 3 == 1:
                    call = calls.ModelStreamInfer(iter([request_of("image", [PAGE], dense=True)] * 3))
                else:
                    call = calls.ModelInfer.future(request_of("image", [DIGIT]))
                # the queue may be full
                with suppress(grpc.RpcError):
                    for _ in range(number % 3 != 2 and number % 4):
                        next(call)
                call.cancel()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(240)))
        # the streams that were left are counted down, or this one would be refused
        for _ in range(3):
            check_that_it_goes_on(stub, model)
        responses = list(stub.ScoreMap(image_requests(PAGE)))
        assert kinds_of(responses)[-1] == "completion"
        assert scores_of(responses) == expected
        assert settled(descriptors) <= before + 4
        assert threading.active_count() <= threads + 4


# ---- below gRPC


@pytest.mark.parametrize("kind", JUNK)
def test_what_is_no_grpc_disturbs_nobody(address: str, good: Callable[[], None], kind: str) -> None:
    random = np.random.default_rng(len(kind))
    with connections(address, *(JUNK[kind](random) for _ in range(8))):
        good()
    good()


def test_idle_connections_leave_room(address: str, good: Callable[[], None]) -> None:
    before = descriptors()
    # each is two descriptors of this process
    with connections(address, *[b""] * 200):
        good()
    good()
    assert settled(descriptors) <= before + 4


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit, which limits a process, is not installed")
def test_more_connections_than_a_process_has_descriptors_at_first() -> None:
    limited = process_of(prefix=["prlimit", "--nofile=64:1024"])
    with limited as (_, address), connections(address, *[b""] * 200), convserve.Client(address, retries=0) as client:
        assert client.classify(DIGIT)[0].label == "3"
