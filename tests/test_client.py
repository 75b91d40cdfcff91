"""The client: what it imports, what it sends, how it reads answers and errors."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from foreign import foreign_server
from PIL import Image
from serving import running_server

import convserve
from convserve import errors
from convserve.averaging import Averaging
from convserve.client import AsyncClient, Client
from convserve.client.answers import MapCollector, MapReader
from convserve.client.requests import classify_requests, image_message, scene_of
from convserve.images import decode
from convserve.results import Geometry, PlanBytes
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer

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


def test_every_kind_of_image_gives_the_local_score_map(model: convserve.Model, client: Client) -> None:
    local = model.score_map(PAGE).scores
    gray = decode(PAGE, channels="gray")
    for image in [*kinds_of(PAGE), gray[:, :, 0], np.asfortranarray(gray)]:
        assert np.array_equal(client.score_map(image).scores, local), type(image)


def test_long_lists_are_parted_and_answered_in_order(
    model: convserve.Model, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list(np.random.default_rng(4).integers(0, 256, (7, 28, 28, 1), np.uint8))
    whole = client.classify(images)
    for name, value in (("GROUP_IMAGES", 3), ("GROUP_BYTES", 2000)):
        with monkeypatch.context() as patch:
            patch.setattr(f"convserve.client.requests.{name}", value)
            groups = [len(one.images) for one in classify_requests(images, model="", top=1, averaging=Averaging())]
            assert len(groups) > 2
            assert sum(groups) == 7
            assert client.classify(images) == whole == model.classify(images)


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
    wanted = decode(picture, channels="gray")
    assert np.array_equal(decode(image_message(picture).encoded, channels="gray"), wanted)
    sent = scene_of(picture)
    [piece] = sent.pieces()
    rows = np.frombuffer(piece.rows.pixels, np.uint8).reshape(sent.height, sent.width, sent.channels)
    assert np.array_equal(decode(rows, channels="gray"), wanted)


def test_a_turned_photograph_arrives_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(stream, "PNG", exif=exif)
    picture = Image.open(stream)
    sent = image_message(picture)
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


@pytest.mark.parametrize(
    "arguments", [
        {"address": ""},
        {"address": "x:1", "timeout": 0},
        {"address": "x:1", "tls": "/no/roots.pem"},
        {"address": "x:1", "retries": -1},
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_wrong_options_of_a_client(kind: type, arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.InputError):
        kind(**arguments)


def test_a_closed_client_says_so() -> None:
    client = Client("127.0.0.1:1")
    client.close()
    with pytest.raises(errors.InputError, match="closed"):
        client.list_models()


def test_a_request_that_is_too_long_is_a_remote_error_and_not_tried_again(model: convserve.Model) -> None:
    with (
        running_server({"digits": model}, message_bytes=1 << 16) as address,
        Client(address) as client,
        pytest.raises(errors.RemoteError, match="RESOURCE_EXHAUSTED") as raised,
    ):
        client.classify(bytes(1 << 17))
    assert type(raised.value) is errors.RemoteError


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


PLACE = Geometry(rows=3, cols=4, stride=(4, 4), window=(28, 28), classes=[0, 1], labels=["a", "b"])
PLAN = PlanBytes(arena_bytes=4096, scratch_bytes=512, weight_bytes=1 << 20)
SCORES = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
GEOMETRY = pb.ScoreMapResponse(geometry=codec.geometry_to_message(PLACE, PLAN, model="m"))
ROWS = [
    pb.ScoreMapResponse(rows=message)
    for row in range(3)
    for message in codec.rows_to_messages(row, {"scores": SCORES[row : row + 1]})
]
END = pb.ScoreMapResponse(completion=codec.completion_to_message(PLACE, PLAN, seconds=0.25, measured_bytes=77))


def collected(responses: list[pb.ScoreMapResponse]) -> convserve.ScoreMap:
    reader = MapReader(responses[0] if responses else pb.ScoreMapResponse(), convserve.Reduction())
    collector = MapCollector(reader.geometry, reader.reduction)
    for response in responses[1:]:
        if block := reader.read(response):
            collector.add(*block)
    reader.end()
    return collector.result(reader.geometry, reader.report)


def test_a_whole_stream_is_a_map() -> None:
    found = collected([GEOMETRY, *ROWS, END])
    assert np.array_equal(found.scores, SCORES)
    assert found.seconds == 0.25
    assert found.plan == PLAN


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
        [GEOMETRY, *ROWS, END, END],
        [GEOMETRY, *ROWS, END, ROWS[2]],
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


# ---- questions about models


def test_models_descriptions_and_plans_are_the_local_ones(model: convserve.Model, client: Client) -> None:
    [summary] = client.list_models()
    assert (summary["name"], tuple(summary["window"]), summary["labels"]) == ("digits", model.window, model.labels)
    described, local = client.describe(model="digits"), model.describe().to_dict()
    assert described["flops"] == local["flops"] > 0
    assert [layer["name"] for layer in described["layers"]] == [layer["name"] for layer in local["layers"]]
    assert described["preprocess"]["channels"] == "gray"
    plan, here = client.plan(200, 320, batch=2, hold_scores=True), model.plan(200, 320, batch=2, hold_scores=True)
    for name in ("arena_bytes", "scratch_bytes", "weight_bytes", "score_bytes", "total_bytes"):
        assert getattr(plan, name) == getattr(here, name), name


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda client: client.describe(model="vgg"), errors.ModelNotFoundError, "digits"),
        (lambda client: client.plan(0, 28), errors.InputError, "height is 0"),
        (lambda client: client.plan(20, 28), errors.ShapeError, "28x28"),
        (lambda client: client.plan(2000, 2000, memory_budget="1KiB"), errors.MemoryBudgetError, "budget"),
        (lambda client: client.plan(28, 28, memory_budget="lots"), errors.SettingError, "lots"),
    ],
)
def test_questions_that_have_no_answer(client: Client, call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as raised:
        call(client)
    assert type(raised.value) is error


# ---- in an event loop


def test_the_asynchronous_client_gives_the_same_answers(model: convserve.Model, client: Client) -> None:
    async def ask(address: str) -> list[Any]:
        async with AsyncClient(address) as waiting:
            found = await asyncio.gather(
                waiting.classify(DIGIT),
                waiting.classify([DIGIT, DIGIT], top=2),
                waiting.score_map(PAGE),
                waiting.list_models(),
                waiting.describe(),
                waiting.plan(200, 320),
            )
            with pytest.raises(errors.ModelNotFoundError):
                await waiting.classify(DIGIT, model="vgg")
            return found

    with running_server({"digits": model}) as address:
        one, two, page, models, described, plan = asyncio.run(ask(address))
    assert one == client.classify(DIGIT)
    assert two == client.classify([DIGIT, DIGIT], top=2)
    assert np.array_equal(page.scores, model.score_map(PAGE).scores)
    assert (models, described, plan) == (client.list_models(), client.describe(), client.plan(200, 320))
