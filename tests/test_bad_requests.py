"""Every bad request over a real socket: the right status, one clear sentence, and the next good request answered."""

import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from refusals import DIGIT, HUGE, INVALID, LIMITS, PAGE, refused
from serving import FakeModel, image_requests, row_requests, running_server, scores_of, stub_of

import convserve
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub
from convserve.wire.scene import SceneHeader, header_to_message

MISSING = grpc.StatusCode.NOT_FOUND
ROWS = np.zeros((60, 40, 1), np.uint8)
HEADER = header_to_message(SceneHeader("uint8", width=40))


@pytest.fixture(scope="module")
def limits() -> dict[str, int]:
    return LIMITS


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has not a single row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(file: bytes) -> pb.Image:
    return pb.Image(encoded=file)


def tensor(layout: int, shape: tuple[int, ...], data: bytes) -> pb.Image:
    return pb.Image(tensor=pb.Tensor(layout=layout, shape=shape, data=data))  # type: ignore[arg-type]


# ---- images that are none, in both methods

FILES = {
    "text": (b"this is no image at all", "image"),
    "one byte": (b"\x89", "image"),
    "a truncated file": (PAGE[: len(PAGE) // 2], "image"),
    "a damaged file": (PAGE[:200] + bytes(100) + PAGE[300:], "image"),
    "a postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image"),
    "a bomb": (png_header(60_000, 60_000), "60000x60000"),
    "a wide bomb": (png_header((1 << 31) - 1, 1), "pixels"),
    "no rows": (png_header(0, 28), ""),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("method", ["classify", "map"])
def test_a_file_that_is_no_image(stub: ConvserveStub, good: Callable[[], None], case: str, method: str) -> None:
    file, text = FILES[case]
    if method == "classify":
        refused(lambda: stub.Classify(pb.ClassifyRequest(images=[encoded(file)])), INVALID, text)
    else:
        refused(lambda: list(stub.ScoreMap(image_requests(file))), INVALID, text)
    good()


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([], "0 images"),
        ([pb.Image()] * 1025, "1025 images"),
        ([pb.Image()], "empty"),
        ([encoded(b"")], "empty"),
        ([encoded(DIGIT), pb.Image()], "empty"),
        ([pb.Image(tensor=pb.Tensor())], "layout is 0"),
        ([tensor(3, (28, 28, 1), bytes(3136))], "layout is 3"),
        ([tensor(77, (28, 28, 1), bytes(784))], "layout is 77"),
        ([tensor(1, (28, 28), bytes(784))], "axes"),
        ([tensor(1, (28, 28, 1, 1), bytes(784))], "axes"),
        ([tensor(1, (28, 28, 1), bytes(783))], "783"),
        ([tensor(1, (28, 28, 1), bytes(785))], "785"),
        ([tensor(1, (28, 28, 2), bytes(1568))], ""),
        ([tensor(1, (0, 28, 1), b"")], "(0, 28, 1)"),
        ([tensor(1, (-28, -28, 1), bytes(784))], "(-28, -28, 1)"),
        ([tensor(1, (1 << 62, 4, 4), b"")], "4611686018427387904"),
        ([tensor(1, (1 << 32, 1 << 32, 1), b"")], "bytes"),
        ([tensor(1, (HUGE, HUGE, HUGE), bytes(1))], "bytes"),
        ([tensor(2, (1, 1, 28, 27), bytes(4 * 28 * 27))], "(N, 1, 28, 28)"),
        ([tensor(2, (1, 3, 28, 28), bytes(4 * 3 * 784))], "(N, 1, 28, 28)"),
        ([tensor(2, (2, 1, 28, 28), bytes(4 * 2 * 784))], "several"),
        ([tensor(2, (1, 1, 28, 28), bytes(784))], "3136"),
    ],
)
def test_bad_images_of_classify(
    stub: ConvserveStub, good: Callable[[], None], images: list[pb.Image], text: str
) -> None:
    refused(lambda: stub.Classify(pb.ClassifyRequest(images=images)), INVALID, text)
    good()


def test_a_message_longer_than_allowed(stub: ConvserveStub, good: Callable[[], None]) -> None:
    request = pb.ClassifyRequest(images=[encoded(bytes(3 << 20))])
    refused(lambda: stub.Classify(request), grpc.StatusCode.RESOURCE_EXHAUSTED)
    good()


def test_an_image_file_longer_than_allowed(stub: ConvserveStub, good: Callable[[], None]) -> None:
    refused(lambda: list(stub.ScoreMap(image_requests(bytes(3 << 20)))), INVALID, "1048576")
    good()


# ---- names


@pytest.mark.parametrize("name", ["cats", "digits ", "x" * 9000, "../digits", "a\nb"])
def test_an_unknown_model(stub: ConvserveStub, good: Callable[[], None], name: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: stub.Classify(pb.ClassifyRequest(model=name, images=[encoded(DIGIT)])),
        lambda: list(stub.ScoreMap(image_requests(DIGIT, model=name))),
        lambda: stub.DescribeModel(pb.DescribeModelRequest(model=name)),
        lambda: stub.PlanMemory(pb.PlanMemoryRequest(model=name, height=28, width=28)),
    ]
    for call in calls:
        refused(call, MISSING, "there is: digits")
    good()


def test_no_name_where_there_are_several_models() -> None:
    with running_server({"one": FakeModel(), "two": FakeModel()}) as address, stub_of(address) as stub:
        refused(lambda: stub.Classify(pb.ClassifyRequest(images=[encoded(DIGIT)])), MISSING, "one, two")
        refused(lambda: list(stub.ScoreMap(image_requests(DIGIT))), MISSING, "one, two")
        assert stub.Classify(pb.ClassifyRequest(model="two", images=[encoded(DIGIT)])).model == "two"


@pytest.mark.parametrize("classes", [[11], [0, 1 << 31], ["eleven"], [""], [3, "no digits"]])
def test_classes_that_do_not_exist(stub: ConvserveStub, good: Callable[[], None], classes: list[Any]) -> None:
    refused(lambda: list(stub.ScoreMap(image_requests(PAGE, classes=classes))), INVALID, "class", "0 to 10")
    refused(lambda: list(stub.ScoreMap(row_requests(ROWS, classes=classes))), INVALID, "class", "0 to 10")
    good()


@pytest.mark.parametrize("method", ["Classify", "ListModels", "DescribeModel", "PlanMemory", "ScoreMap"])
def test_bytes_that_are_no_message(address: str, good: Callable[[], None], method: str) -> None:
    name = f"/convserve.v1.Convserve/{method}"
    with grpc.insecure_channel(address) as channel:
        if method == "ScoreMap":
            refused(lambda: list(channel.stream_stream(name)(iter([b"\xff\xff\xff"]))), INVALID, method)
            garbled = [HEADER.SerializeToString(), b"\x0a\xff\xff\xff\xff"]
            refused(lambda: list(channel.stream_stream(name)(iter(garbled))), INVALID, method)
        else:
            refused(lambda: channel.unary_unary(name)(b"\xff\xff\xff"), INVALID, method)
    good()


def test_a_method_that_is_not_there(address: str, good: Callable[[], None]) -> None:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/convserve.v1.Convserve/Train")
        refused(lambda: call(b""), grpc.StatusCode.UNIMPLEMENTED)
    good()


# ---- plans


@pytest.mark.parametrize("field", ["height", "width", "batch"])
@pytest.mark.parametrize("value", [-1, -HUGE - 1, 1 << 31, HUGE])
def test_plans_of_impossible_sizes(stub: ConvserveStub, good: Callable[[], None], field: str, value: int) -> None:
    request = pb.PlanMemoryRequest(**{"height": 28, "width": 28, "batch": 1, field: value})
    refused(lambda: stub.PlanMemory(request), INVALID, f"{field} is {value}")
    good()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.PlanMemoryRequest(height=0, width=28), INVALID),
        (pb.PlanMemoryRequest(height=27, width=28), INVALID),
        (pb.PlanMemoryRequest(height=28, width=1), INVALID),
        (pb.PlanMemoryRequest(height=300, width=300, memory_budget=1), grpc.StatusCode.FAILED_PRECONDITION),
        (
            pb.PlanMemoryRequest(height=(1 << 31) - 1, width=(1 << 31) - 1, batch=(1 << 31) - 1, hold_scores=True),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ],
)
def test_plans_that_nothing_fits(
    stub: ConvserveStub, good: Callable[[], None], request_: pb.PlanMemoryRequest, code: grpc.StatusCode
) -> None:
    refused(lambda: stub.PlanMemory(request_), code)
    good()


# ---- values and memory


def test_nan_comes_out_as_nan(model: convserve.Model, stub: ConvserveStub, good: Callable[[], None]) -> None:
    x = np.random.default_rng(1).random((90, 60, 1), np.float32)
    x[45, 30] = np.nan
    field = x[31:59, 16:44].transpose(2, 0, 1)[None]
    request = pb.ClassifyRequest(images=[tensor(pb.FP32_NCHW, field.shape, field.tobytes())], top=11)
    found = stub.Classify(request).classifications[0].predictions
    assert all(math.isnan(one.score) for one in found)
    scores = np.frombuffer(scores_of(list(stub.ScoreMap(row_requests(x)))), np.float32)
    local = model.score_map(x.transpose(2, 0, 1)[None]).scores
    assert np.isnan(local).any()
    assert not np.isnan(local).all()
    assert np.array_equal(scores, local.ravel(), equal_nan=True)
    good()


@pytest.mark.parametrize("raised", [MemoryError(), np.exceptions.AxisError("x"), RecursionError()])
def test_an_allocation_that_fails(raised: Exception) -> None:
    failing = True

    def classify(images: list[Any], top: int) -> Any:
        if failing:
            raise raised
        return [[]]

    def stream(image: Any, classes: Any) -> Any:
        raise raised

    with (
        running_server({"fake": FakeModel(classify=classify, stream=stream)}) as address,
        stub_of(address) as stub,
    ):
        short = isinstance(raised, MemoryError)
        code = grpc.StatusCode.RESOURCE_EXHAUSTED if short else grpc.StatusCode.INTERNAL
        refused(lambda: stub.Classify(pb.ClassifyRequest(images=[encoded(DIGIT)])), code)
        refused(lambda: list(stub.ScoreMap(image_requests(DIGIT))), code)
        refused(lambda: list(stub.ScoreMap(row_requests(ROWS))), code)
        failing = False
        assert stub.Classify(pb.ClassifyRequest(images=[encoded(DIGIT)])).model == "fake"
