"""The client: what it imports, what it sends, how it reads answers and errors."""

import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from serving import FakeModel, FakeStream, running_server

import convserve
from convserve import errors
from convserve.client import Client
from convserve.client.exchange import MapCollector, image_to_message
from convserve.images import decode
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer, add_ConvserveServicer_to_server

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE = BUNDLED / "digit.png", BUNDLED / "page.png"
NOTHING = np.zeros((2, 2, 1), np.uint8)


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(BUNDLED / "digits.convserve")


@pytest.fixture(scope="module")
def client(model: convserve.Model) -> Iterator[Client]:
    with running_server({"digits": model}) as address, Client(address) as client:
        yield client


@contextmanager
def foreign_server(servicer: ConvserveServicer) -> Iterator[str]:
    """A server that answers as the test wants, with nothing of ours in between."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_ConvserveServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


# ---- imports


def imported(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_client_imports_no_engine_and_no_model_format() -> None:
    modules = imported("import convserve.client; convserve.Client('localhost:1')")
    assert "convserve.client.client" in modules
    unwanted = ("convserve.engine", "convserve.kernels", "convserve.plan", "convserve.model", "convserve.formats")
    assert not {name for name in modules if name.startswith(unwanted)}
    assert not modules & {"onnx", "PIL", "safetensors", "rich"}


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    assert {name for name in imported("import convserve") if name.startswith("convserve")} == {"convserve"}


def test_every_public_name_exists() -> None:
    for name in convserve.__all__:
        assert getattr(convserve, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = convserve.nonsense  # type: ignore[attr-defined]


# ---- answers


def kinds_of(path: Path) -> list[Any]:
    data = path.read_bytes()
    picture = Image.open(io.BytesIO(data))
    return [path, str(path), data, bytearray(data), memoryview(data), picture, decode(path, channels="gray")]


def test_every_kind_of_image_gives_the_local_answer(model: convserve.Model, client: Client) -> None:
    local = model.classify(DIGIT)
    kinds = kinds_of(DIGIT)
    for image in kinds:
        assert client.classify(image) == local
    assert client.classify(kinds) == [local] * len(kinds)
    assert client.classify([]) == []


def test_preprocessed_values_give_the_local_answer(model: convserve.Model, client: Client) -> None:
    x = np.random.default_rng(1).random((1, 1, 28, 28), np.float32)
    assert client.classify(x) == model.classify(x)
    wide = np.random.default_rng(2).random((1, 1, 40, 50), np.float32)
    assert np.array_equal(client.score_map(wide).scores, model.score_map(wide).scores)


@pytest.mark.parametrize("progress", [False, True])
def test_a_score_map_has_every_field_of_the_local_one(model: convserve.Model, client: Client, progress: bool) -> None:
    local, found = model.score_map(PAGE), client.score_map(PAGE, progress=progress)
    assert np.array_equal(found.scores, local.scores)
    assert found.scores.dtype == np.float32
    for name in ("rows", "cols", "stride", "window", "offset", "exactness", "ring", "classes", "labels", "covered"):
        assert getattr(found, name) == getattr(local, name), name
    assert found.box(3, -1) == local.box(3, -1)
    assert found.plan.total_bytes == found.plan.arena_bytes + found.plan.scratch_bytes > 0
    assert found.seconds > 0


def test_a_score_map_equals_the_network_on_every_crop(model: convserve.Model, client: Client) -> None:
    found = client.score_map(PAGE)
    assert model.preprocess is not None
    values = model.preprocess.apply(decode(PAGE, channels="gray"))
    crops = np.lib.stride_tricks.sliding_window_view(values[0, 0], (28, 28))[::4, ::4]
    y = model.run(np.ascontiguousarray(crops).reshape(-1, 1, 28, 28))
    assert isinstance(y, np.ndarray)
    assert np.array_equal(found.scores, y.reshape(found.scores.shape))


def test_chosen_classes_by_label_and_index(model: convserve.Model, client: Client) -> None:
    local, found = model.score_map(PAGE), client.score_map(PAGE, classes=["no digit", 3])
    assert (found.classes, found.labels) == ([10, 3], ["no digit", "3"])
    assert np.array_equal(found.scores, local.scores[:, :, [10, 3]])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_a_pillow_image_of_any_mode_arrives_as_it_is_decoded_here(mode: str) -> None:
    ramp = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    picture = Image.fromarray(np.asarray(ramp, np.uint16) * 257) if mode == "I;16" else ramp.convert(mode)
    assert picture.mode == mode
    sent = image_to_message(picture)
    assert np.array_equal(decode(sent.encoded, channels="gray"), decode(picture, channels="gray"))


def test_a_turned_photograph_arrives_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(stream, "PNG", exif=exif)
    picture = Image.open(stream)
    sent = image_to_message(picture)
    assert decode(sent.encoded, channels="gray").shape == (6, 4, 1)
    assert np.array_equal(decode(sent.encoded, channels="gray"), decode(stream.getvalue(), channels="gray"))


# ---- errors


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda client: client.classify(b"no image"), errors.ImageError, "8 bytes"),
        (lambda client: client.classify("/no/such/file.png"), errors.ImageError, "/no/such/file.png"),
        (lambda client: client.classify(42), errors.InputError, "int"),
        (lambda client: client.classify(np.zeros((3, 3), np.int32)), errors.InputError, "int32"),
        (lambda client: client.classify(NOTHING, top=0), errors.InputError, "top is 0"),
        (lambda client: client.score_map(NOTHING, timeout=-1), errors.InputError, "timeout is -1"),
        (lambda client: client.classify(NOTHING, model="vgg"), errors.ModelNotFoundError, "digits"),
        (lambda client: client.score_map(NOTHING), errors.ShapeError, "28x28"),
        (lambda client: client.score_map(PAGE, classes=["ten"]), errors.InputError, "'ten'"),
        (lambda client: client.score_map(PAGE, classes=[]), errors.InputError, "classes"),
    ],
)
def test_errors_are_those_of_the_tree(client: Client, call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as raised:
        call(client)
    assert type(raised.value) is error


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with Client("127.0.0.1:1", timeout=5) as client, pytest.raises(errors.ServerUnavailable, match=r"127\.0\.0\.1:1"):
        client.classify(NOTHING)


def test_the_timeout_of_client_and_of_call() -> None:
    stopped = FakeStream(rows=1 << 30, cols=1)
    fake = FakeModel(stream=lambda image, classes: stopped)
    with running_server({"fake": fake}) as address:
        with Client(address, timeout=0.5) as client, pytest.raises(errors.RunCancelled, match=r"0\.5 s"):
            client.score_map(NOTHING)
        with Client(address) as client, pytest.raises(errors.RunCancelled, match=r"0\.25 s"):
            client.score_map(NOTHING, timeout=0.25)


@pytest.mark.parametrize(
    "arguments", [{"address": ""}, {"address": "x:1", "timeout": 0}, {"address": "x:1", "tls": "/no/roots.pem"}]
)
def test_wrong_options_of_a_client(arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.InputError):
        Client(**arguments)


def test_a_refusal_of_grpc_itself_is_a_remote_error() -> None:
    with (
        running_server({"fake": FakeModel()}, message_bytes=1 << 16) as address,
        Client(address) as client,
        pytest.raises(errors.RemoteError, match="RESOURCE_EXHAUSTED"),
    ):
        client.classify(bytes(1 << 17))


def test_the_token_is_sent() -> None:
    seen = {}

    class Servicer(ConvserveServicer):
        def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
            seen.update(context.invocation_metadata())
            return pb.ClassifyResponse(classifications=[pb.Classification()])

    with foreign_server(Servicer()) as address, Client(address, token="abc") as client:
        client.classify(NOTHING)
    assert seen["authorization"] == "Bearer abc"


def test_answers_for_another_number_of_images_are_refused() -> None:
    class Servicer(ConvserveServicer):
        def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
            return pb.ClassifyResponse()

    with foreign_server(Servicer()) as address, Client(address) as client, pytest.raises(errors.RemoteError):
        client.classify(NOTHING)


STREAM = FakeStream(rows=3)
GEOMETRY = pb.ScoreMapResponse(geometry=codec.geometry_to_message(STREAM.geometry, STREAM.plan, model="m"))
ROWS = [
    pb.ScoreMapResponse(rows=message) for first, scores in STREAM for message in codec.rows_to_messages(first, scores)
]
END = pb.ScoreMapResponse(completion=pb.Completion(seconds=0.25))


def collected(responses: list[pb.ScoreMapResponse]) -> convserve.ScoreMap:
    collector = MapCollector()
    for response in responses:
        collector.add(response)
    return collector.result()


def test_a_whole_stream_is_a_map() -> None:
    found = collected([GEOMETRY, *ROWS, END])
    assert np.array_equal(found.scores, np.concatenate([STREAM.row(number) for number in range(3)]))
    assert found.seconds == 0.25
    assert found.plan == STREAM.plan


@pytest.mark.parametrize(
    "responses",
    [
        [],
        [END],
        [GEOMETRY],
        [GEOMETRY, END],
        [GEOMETRY, *ROWS],
        [GEOMETRY, *ROWS[:2], END],
        [GEOMETRY, ROWS[1], ROWS[0], ROWS[2], END],
        [GEOMETRY, ROWS[0], *ROWS, END],
        [GEOMETRY, *ROWS, ROWS[2], END],
        [GEOMETRY, GEOMETRY, *ROWS, END],
        [*ROWS, END],
        [GEOMETRY, pb.ScoreMapResponse(), END],
    ],
)
def test_a_stream_that_is_not_whole_or_not_in_order_is_refused(responses: list[pb.ScoreMapResponse]) -> None:
    with pytest.raises(errors.RemoteError):
        collected(responses)


def test_a_map_that_no_memory_holds_is_refused() -> None:
    huge = pb.ScoreMapResponse(geometry=GEOMETRY.geometry)
    huge.geometry.rows, huge.geometry.cols = 1 << 40, 1 << 40
    with pytest.raises(errors.MemoryBudgetError):
        collected([huge])
