"""Averages over scales, positions and mirror images: against crops one by one, through the server, refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import CLASSIFIED, foreign_server
from PIL import Image
from runs import settings
from serving import running_server

import convserve
from convserve import Preprocess
from convserve.cli.main import main
from convserve.client import Client
from convserve.errors import (
    ConvserveError,
    InputError,
    MemoryBudgetError,
    RemoteError,
    RunCancelled,
    ShapeError,
    UnsupportedOpError,
)
from convserve.model import Cancellation
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT = BUNDLED / "digit.png"
PATTERN = "INPUT[13x13x3] -> CONV5-5 S2 P0 -> RELU -> FC-7"
STRIDE = 2
PREPROCESS = Preprocess(resize=15, crop=13, scale=1 / 64, mean=(1.5, 1.0, 2.0))
SCALES = [13, 17, 20]
MODEL = convserve.build(PATTERN, seed=5, preprocess=PREPROCESS)
ENDED = convserve.build(PATTERN + " -> SOFTMAX", seed=5, preprocess=PREPROCESS)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (31, 44, 3), np.uint8)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    digits = convserve.load(BUNDLED / "digits.convserve")
    with running_server({"digits": digits, "logits": MODEL, "ended": ENDED}) as address:
        yield address


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def crops_of(photograph: np.ndarray, scale: int, flip: bool) -> np.ndarray:
    """Return float64 (positions, 7): the logits of every crop at one scale, one by one."""
    height, width = photograph.shape[:2]
    size = (width * scale // min(height, width), height * scale // min(height, width))
    pixels = np.asarray(Image.fromarray(photograph).resize(size, Image.Resampling.BILINEAR))
    pixels = pixels[:, ::-1] if flip else pixels
    x = PREPROCESS.apply(np.ascontiguousarray(pixels))
    return np.array(
        [
            MODEL.run(np.ascontiguousarray(x[:, :, top : top + 13, left : left + 13]))[0]
            for top in range(0, x.shape[2] - 12, STRIDE)
            for left in range(0, x.shape[3] - 12, STRIDE)
        ],
        np.float64,
    )


def expected(photograph: np.ndarray, *, scales: list[int], flip: bool, average: str, ended: bool) -> np.ndarray:
    means = []
    for scale in scales:
        for mirrored in (False, True)[: 1 + flip]:
            crops = crops_of(photograph, scale, mirrored)
            means.append((crops if average == "logits" else softmax(crops)).mean(axis=0))
    mean = np.mean(means, axis=0)
    return softmax(mean) if average == "logits" and ended else mean


def scores_of(predictions: Any) -> np.ndarray:
    return np.array([one.score for one in sorted(predictions, key=lambda one: one.index)])


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_the_mean_is_that_of_all_crops(
    photograph: np.ndarray, address: str, average: str, flip: bool, ended: bool
) -> None:
    options: dict[str, Any] = {"scales": SCALES, "flip": flip, "average": average}
    found = (ENDED if ended else MODEL).classify(photograph, top=7, **options)
    wanted = expected(photograph, **options, ended=ended)
    assert np.abs(scores_of(found) - wanted).max() < 1e-6
    with Client(address) as client:
        far = client.classify([photograph], model="ended" if ended else "logits", top=7, **options)
    assert far == [found]


def test_probabilities_are_the_default_and_bits_do_not_depend_on_the_plan(photograph: np.ndarray) -> None:
    found = MODEL.classify(photograph, top=7, scales=SCALES)
    assert found == MODEL.classify(photograph, top=7, scales=SCALES, average="probabilities")
    assert abs(sum(one.score for one in found) - 1) < 1e-6
    for names in ({"PLAN": "off"}, {"POISON": 1}, {"THREADS": 1}):
        with settings(**names):
            assert convserve.build(PATTERN, seed=5, preprocess=PREPROCESS).classify(
                photograph, top=7, scales=SCALES
            ) == found
    both = MODEL.classify([photograph, photograph[:, ::-1]], top=7, scales=SCALES, flip=True)
    assert np.abs(scores_of(both[0]) - scores_of(both[1])).max() < 0.1


def test_the_mirror_image_alone_counts_at_the_window(photograph: np.ndarray) -> None:
    found = scores_of(MODEL.classify(photograph, top=7, flip=True, average="logits"))
    crop = PREPROCESS.apply(PREPROCESS.prepare(photograph))
    sides = [MODEL.run(np.ascontiguousarray(x))[0] for x in (crop, crop[..., ::-1])]
    assert np.abs(found - np.mean(sides, axis=0, dtype=np.float64)).max() < 1e-6
    given = scores_of(MODEL.classify(crop, top=7, flip=True, average="logits"))
    assert np.array_equal(given, found)


def test_a_mean_for_each_pixel_is_not_mirrored(photograph: np.ndarray) -> None:
    mean = np.random.default_rng(0).random((13, 13, 3), np.float32) * 100
    preprocess = Preprocess(resize=15, crop=13, mean=mean)
    model = convserve.build(PATTERN, seed=5, preprocess=preprocess)
    pixels = preprocess.prepare(photograph)
    sides = [model.run(preprocess.apply(np.ascontiguousarray(x)))[0] for x in (pixels, pixels[:, ::-1])]
    found = scores_of(model.classify(photograph, top=7, flip=True, average="logits"))
    assert np.allclose(found, np.mean(sides, axis=0), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="per-pixel mean"):
        model.classify(photograph, scales=[20])


def test_every_scale_fits_one_budget(photograph: np.ndarray) -> None:
    report = MODEL.classify(photograph, scales=[13, 60]).report
    assert report.measured_bytes == report.plan.total_bytes
    assert report.plan.score_bytes > 0
    within = MODEL.classify(photograph, scales=[13, 60], memory_budget=report.plan.total_bytes).report
    assert within.plan.total_bytes <= report.plan.total_bytes
    with pytest.raises(MemoryBudgetError):
        MODEL.classify(photograph, scales=[13, 60], memory_budget=500)


def test_a_cancelled_average_ends() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(RunCancelled):
        MODEL.classify(np.zeros((40, 40, 3), np.uint8), scales=[30], cancellation=cancellation)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scales": [12]}, ShapeError, "the image is 12x17 at its scale; the network's window is 13x13: give larger"),
        ({"scales": []}, InputError, r"scales is \[\]; it must be a list of 1 to 64 lengths in pixels"),
        ({"scales": 256}, InputError, "scales is 256; it must be a list"),
        ({"scales": [0]}, InputError, "scales has 0; a scale is a whole number of pixels from 1"),
        ({"scales": [20.5]}, InputError, r"scales has 20\.5"),
        ({"flip": 1}, InputError, "flip is 1; it must be True or False"),
        ({"scales": [20], "average": "mean"}, InputError, "average is 'mean'; allowed: probabilities, logits"),
        ({"average": "logits"}, InputError, r"there is one pass: give scales=\[...\] or flip=True too"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    photograph: np.ndarray, address: str, options: dict[str, Any], error: type[ConvserveError], message: str
) -> None:
    with pytest.raises(error, match=message):
        MODEL.classify(photograph, **options)
    with Client(address) as client, pytest.raises(error, match=message):
        client.classify(photograph, model="logits", **options)


def test_a_network_that_cannot_slide_is_told_of() -> None:
    model = convserve.build("INPUT[16x16x3] -> CONV3-4 -> LOCAL3-4 -> FC-7")
    picture = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(UnsupportedOpError, match=r"the image is 20x30 at its scale, and .*: classify without scales"):
        model.classify(picture, scales=[20])
    assert len(model.classify(picture[:16, :16], flip=True)) == 5


def test_float_images_have_no_scales() -> None:
    with pytest.raises(InputError, match="scales resize pixels"):
        MODEL.classify(np.zeros((1, 3, 20, 20), np.float32), scales=[20])


def test_a_server_that_does_not_average_is_found_out() -> None:
    class Old(ConvserveServicer):
        def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
            return CLASSIFIED

    with foreign_server(Old()) as address, Client(address) as client, pytest.raises(RemoteError, match="older than"):
        client.classify(DIGIT, scales=[28])


@pytest.mark.parametrize("remote", [False, True])
def test_the_command_line_averages(address: str, remote: bool, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--server", address, "--model", "digits"] if remote else []
    argv = ["classify", str(DIGIT), "--scales", "28,32", "--flip", "--average", "logits", "--top", "1", "--json"]
    assert main([*argv, *where]) == 0
    [found] = json.loads(capsys.readouterr().out)["images"]
    local = convserve.load(BUNDLED / "digits.convserve").classify(
        DIGIT, scales=[28, 32], flip=True, average="logits", top=1
    )
    assert found["predictions"][0]["score"] == pytest.approx(local[0].score)
    with pytest.raises(SystemExit) as ended:
        main(["classify", str(DIGIT), "--scales", "28,x"])
    assert ended.value.code == 2
    assert "'x' is no whole number from 1" in capsys.readouterr().err
