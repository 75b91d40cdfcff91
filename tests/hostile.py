"""A hostile client: requests with damaged fields or bytes, strange metadata, junk on the wire, idle connections."""

import math
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import numpy as np
from inference_calls import request_of
from refusals import DIGIT, PAGE
from serving import image_requests, row_requests

from convserve.wire import convserve_pb2 as pb
from convserve.wire.open_inference import METHODS, OPEN_INFERENCE

__all__ = ["JUNK", "REFUSALS", "Hostile", "connections", "damaged", "png_bomb", "seeds", "spoilt"]

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}
"""What a bad request may get: never INTERNAL or UNKNOWN, and no deadline is reached."""

X = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 40, 1), np.uint8)


# ---- damage


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Return the bytes cut short, or with some of them changed, doubled or taken out."""
    kind, at, count = random.integers(5), int(random.integers(len(content) or 1)), int(random.integers(1, 64))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + count :]
    if kind == 2:
        return content[: at + count] + content[at:]
    changed = bytearray(content)
    # headers decide most, so half of the changes fall there
    reach = min(len(content), 4096) if kind == 3 else len(content)
    for place in random.integers(reach or 1, size=int(random.integers(1, 8))) if content else ():
        changed[place] = random.integers(256)
    return bytes(changed)


def png_bomb(width: int, height: int, inflated: int = 0) -> bytes:
    """A PNG that claims a size, and so many zero bytes of rows, whatever the size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(inflated), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


WHOLE = (0, 1, -1, 2, 3, 27, 28, 1025, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, -(1 << 63))
REAL = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e308, math.inf, -math.inf, math.nan)
NAMES = ("digits", "image", "probabilities", "FP32", "BYTES", "UINT8", "true", "crops", "2,2", "1;2", "1")
WORSE = ("", " ", "\0", "../digits", "/etc/passwd", "a\nb", "-1", "nan", "9" * 5000, "n" * 100_000, "\u202e\U0001f600")
TEXTS = NAMES + WORSE
BYTES = (b"", b"\0", b"\xff" * 40, bytes(3136), bytes(784), DIGIT, PAGE[:3000], png_bomb(60_000, 60_000))


def _value(field: Any, random: np.random.Generator) -> Any:
    if field.type == field.TYPE_BOOL:
        return bool(random.integers(2))
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
        return REAL[random.integers(len(REAL))]
    if field.type == field.TYPE_STRING:
        return TEXTS[random.integers(len(TEXTS))]
    if field.type == field.TYPE_BYTES:
        return damaged(BYTES[random.integers(len(BYTES))], random)
    value = WHOLE[random.integers(len(WHOLE))]
    if field.type in (field.TYPE_UINT32, field.TYPE_UINT64):
        return value % (1 << (32 if field.type == field.TYPE_UINT32 else 64))
    wide = field.type in (field.TYPE_INT64, field.TYPE_SINT64)
    return value if wide or -(1 << 31) <= value < 1 << 31 else 99


def _places(message: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every field of a message and of those within it, set or not."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.type != field.TYPE_MESSAGE or field.message_type.GetOptions().map_entry:
            continue
        inner = getattr(message, field.name)
        for one in inner if field.is_repeated else [inner] if message.HasField(field.name) else []:
            yield from _places(one)


def _spoil(message: Any, field: Any, random: np.random.Generator) -> None:
    if field.type == field.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
        # of parameters, whose values are one of several types
        value = getattr(message, field.name)[TEXTS[random.integers(len(TEXTS))] or "dense"]
        kinds = [one for one in value.DESCRIPTOR.fields if one.type != one.TYPE_MESSAGE]
        kind = kinds[random.integers(len(kinds))]
        setattr(value, kind.name, _value(kind, random))
    elif field.is_repeated:
        values = getattr(message, field.name)
        if len(values) and random.integers(3) == 0:
            del values[random.integers(len(values)) :]
        elif field.type == field.TYPE_MESSAGE:
            values.add().CopyFrom(values[0]) if len(values) and random.integers(2) else values.add()
        elif len(values) and random.integers(2):
            values[random.integers(len(values))] = _value(field, random)
        else:
            values.extend([_value(field, random)] * int(random.choice([1, 2, 100])))
    elif random.integers(4) == 0:
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _value(field, random))


def spoilt(message: Any, random: np.random.Generator) -> bytes:
    """Return a message with some of its fields changed, as bytes; once in four, damaged as bytes too."""
    found = type(message)()
    found.CopyFrom(message)
    for _ in range(int(random.integers(1, 4))):
        # some messages have no field
        if places := list(_places(found)):
            _spoil(*places[random.integers(len(places))], random)
    content: bytes = found.SerializeToString()
    return damaged(content, random) if random.integers(4) == 0 else content


def seeds(model: str = "digits") -> dict[str, list[list[Any]]]:
    """Return by method what good clients send, each a list of messages: what is spoilt."""
    pixels = pb.Tensor(layout=pb.UINT8_HWC, shape=[28, 28, 1], data=bytes(784))
    reduction = pb.Reduction(top=3, softmax=True, number=pb.FLOAT16)
    first, *pieces = image_requests(PAGE, model=model, stride=(4, 4), classes=[1, "3"])
    first.header.reduction.CopyFrom(reduction)
    plan = pb.PlanMemoryRequest(model=model, height=100, width=100, batch=3, hold_scores=True, memory_budget=1 << 20)
    ours: dict[str, list[list[Any]]] = {
        "Classify": [
            [pb.ClassifyRequest(model=model, images=[pb.Image(encoded=DIGIT)], top=3, version="1")],
            [pb.ClassifyRequest(images=[pb.Image(tensor=pixels)], scales=[40], flip=True, average=pb.LOGITS)],
        ],
        "PlanMemory": [[plan]],
        "DescribeModel": [[pb.DescribeModelRequest(model=model, version="1")]],
        "ListModels": [[pb.ListModelsRequest()]],
        "ScoreMap": [[first, *pieces], list(row_requests(PIXELS, edge="pad")), list(row_requests(PIXELS, at_once=60))],
    }
    best = {"probabilities": {"classification": 3}}
    inferences = [
        request_of("image", X, outputs=best, timeout=10**7, priority=1),
        request_of("image", X[:1], typed=True, memory_limit_bytes=1 << 20),
        request_of("image", PIXELS[None], dense=True, dense_stride="2,2", dense_classes="1;2"),
        request_of("image", [DIGIT, DIGIT]),
    ]
    theirs: dict[str, list[list[Any]]] = {}
    for name, method in METHODS.items():
        request = method.request()
        for field in ("name", "model_name"):
            if field in request.DESCRIPTOR.fields_by_name:
                setattr(request, field, model)
        theirs[name] = [[request]]
    theirs["ModelInfer"] = [[one] for one in inferences]
    theirs["ModelStreamInfer"] = [inferences]
    return {f"/convserve.v1.Convserve/{name}": sent for name, sent in ours.items()} | {
        f"/{OPEN_INFERENCE}/{name}": sent for name, sent in theirs.items()
    }


# ---- calls


class Hostile:
    """Makes bad calls over one channel, drawn by a seed."""

    def __init__(self, channel: grpc.Channel, *, seed: int = 0, methods: Callable[[str], bool] = lambda name: True):
        self.channel = channel
        self._random = np.random.default_rng(seed)
        self._seeds = {name: sent for name, sent in seeds().items() if methods(name)}

    def _metadata(self) -> list[tuple[str, str | bytes]]:
        random = self._random
        size = int(random.integers(1, 5000))
        known: list[list[tuple[str, str | bytes]]] = [
            [("x-request-id", "~" * (size % 300))],
            [("x-request-id", "a"), ("x-request-id", "b")],
            [("some-bin", random.bytes(size))],
            [("authorization", "Bearer " + "x" * size)],
            [("k" * (size % 200 + 1), "v" * size)],
        ]
        at = random.integers(3 * len(known))
        return known[at] if at < len(known) else []

    def call(self) -> tuple[str, grpc.StatusCode, str, list[bytes]]:
        """Make one bad call, perhaps cancelled; return method, status, its text, and the messages that were sent."""
        random = self._random
        method = list(self._seeds)[random.integers(len(self._seeds))]
        good = self._seeds[method][random.integers(len(self._seeds[method]))]
        sent = [one.SerializeToString() for one in good]
        at = int(random.integers(len(sent)))
        sent[at] = spoilt(good[at], random)
        if len(sent) > 1 and random.integers(4) == 0:
            random.shuffle(sent)
        cancels = random.integers(10) == 0
        # a unary method is called as one of several messages, too
        call = self.channel.stream_stream(method)(iter(sent), timeout=600, metadata=self._metadata())
        with suppress(grpc.RpcError):
            for _ in call:
                if cancels:
                    call.cancel()
        return method.rpartition("/")[2], call.code(), call.details(), sent


# ---- below gRPC


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_OPENED = _PREFACE + _frame(4, 0, 0, b"")
_HEADERS = b"\x83\x86\x44\x0a/convserve\x41\x01x"

JUNK: dict[str, Callable[[np.random.Generator], bytes]] = {
    "nothing": lambda random: b"",
    "bytes": lambda random: random.bytes(3000),
    "HTTP/1": lambda random: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a TLS hello": lambda random: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.bytes(508),
    "half a preface": lambda random: _PREFACE[: int(random.integers(1, len(_PREFACE)))],
    "bytes behind the preface": lambda random: _PREFACE + random.bytes(3000),
    "frames of any kind": lambda random: _OPENED + b"".join(
        _frame(int(random.integers(12)), int(random.integers(256)), int(random.integers(10)), random.bytes(40))
        for _ in range(30)
    ),
    "pings": lambda random: _OPENED + _frame(6, 0, 0, bytes(8)) * 500,
    "settings": lambda random: _OPENED + _frame(4, 0, 0, b"\x00\x04\x7f\xff\xff\xff") * 500,
    "headers without end": lambda random: _OPENED + _frame(1, 0, 1, b"\x82") + _frame(9, 0, 1, b"\0\1a\1b" * 100) * 300,
    "a header table that grows": lambda random: _OPENED + _frame(1, 4, 1, b"\x3f\xe1\xff\xff\xff\x0f" + b"\x82" * 50),
    "streams that are reset": lambda random: _OPENED + b"".join(
        _frame(1, 4, stream, _HEADERS) + _frame(3, 0, stream, struct.pack(">I", 8)) for stream in range(1, 601, 2)
    ),
    "streams that stay open": lambda random: _OPENED + b"".join(
        _frame(1, 4, stream, _HEADERS) for stream in range(1, 1201, 2)
    ),
    "a message longer than it says": lambda random: _OPENED + _frame(1, 4, 1, _HEADERS) + _frame(
        0, 0, 1, b"\0\xff\xff\xff\xff" + bytes(5000)
    ),
}  # fmt: skip
"""What may come on a connection that is no gRPC, by name."""


@contextmanager
def connections(address: str, *said: bytes) -> Iterator[list[socket.socket]]:
    """Open a connection for each, send it, and keep all open for the length of the block."""
    host, _, port = address.rpartition(":")
    found: list[socket.socket] = []
    try:
        for content in said:
            found.append(socket.create_connection((host, int(port)), timeout=10))
            with suppress(OSError):
                # closed by the server while we send
                found[-1].sendall(content)
        yield found
    finally:
        for one in found:
            one.close()
