"""The command line around stored weights: import --weights, and verify --against, which shows what they cost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from onnx_writer import to_onnx
from PIL import Image

import convserve
from convserve.cli.agreement import compare_scores
from convserve.cli.main import main
from convserve.formats.storage import rounding_error, weights_of
from convserve.graph.ir import Graph, Volume


def network(*, size: int = 12, classes: int = 7, scale: float = 1.0) -> Graph:
    build = Builder(Volume(3, size, size), seed=3, name="net")
    x = build.pool("MaxPool", build.conv(build.input, 40, 3, pads=1, activation="relu"), 2, strides=2)
    graph = build.graph(build.gemm(build.flatten(x), classes))
    graph.nodes[0].params["weight"] *= np.float32(scale)
    return graph


@pytest.fixture
def original(tmp_path: Path) -> Path:
    onnx.save(to_onnx(network()), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(5)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    return paths


def ran(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    assert main([str(argument) for argument in argv]) == 0
    return capsys.readouterr().out


def imported(original: Path, weights: str, capsys: pytest.CaptureFixture[str], *options: str) -> Path:
    path = original.with_name(f"{weights}.convserve")
    ran(capsys, "import", original, "-o", path, "--weights", weights, *options)
    return path


@pytest.mark.parametrize("weights", ["fp16", "bf16"])
def test_import_stores_halves_and_says_how_far_they_are_rounded(
    weights: str, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact, path = convserve.load(original), original.with_name("half.convserve")
    told = ran(capsys, "import", original, "-o", path, "--weights", weights)
    model = convserve.load(path)
    assert weights_of(model.graph) == weights
    largest, relative = rounding_error(exact.graph.nodes, model.graph.nodes)
    assert f"{weights} weights, rounded by at most {largest:.2g} and by {relative:.2g} of their size" in told
    found = json.loads(ran(capsys, "import", original, "-o", path, "--weights", weights, "--json"))
    assert (found["weights"], found["max_rounding"], found["relative_rounding"]) == (weights, largest, relative)
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12), np.float32)
    assert np.array_equal(model.run(x), convserve.load(original, weights=weights).run(x))
    assert f"weights as packed: {weights}, " in ran(capsys, "describe", path)


def test_a_container_is_imported_again_with_all_that_it_holds(
    original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = original.with_name("labels.txt")
    labels.write_text("\n".join("abcdefg"))
    first, second = original.with_name("first.convserve"), original.with_name("second.convserve")
    ran(capsys, "import", original, "-o", first, "--labels", labels, "--scale", "0.5")
    ran(capsys, "import", first, "-o", second, "--weights", "fp16")
    model = convserve.load(second)
    assert (weights_of(model.graph), model.labels) == ("fp16", list("abcdefg"))
    assert model.preprocess == convserve.load(first).preprocess is not None
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32)
    assert np.array_equal(model.run(x), convserve.load(original, weights="fp16").run(x))


def test_import_keeps_float32_by_default(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = original.with_name("net.convserve")
    assert "rounded" not in ran(capsys, "import", original, "-o", path)
    assert weights_of(convserve.load(path).graph) == "fp32"
    found = json.loads(ran(capsys, "import", original, "-o", path, "--json"))
    assert (found["weights"], found["max_rounding"], found["relative_rounding"]) == ("fp32", 0, 0)


def test_a_weight_that_fits_no_half_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(to_onnx(network(scale=1e8)), tmp_path / "large.onnx")
    target = tmp_path / "large.convserve"
    assert main(["import", str(tmp_path / "large.onnx"), "-o", str(target), "--weights", "fp16"]) == 1
    said = capsys.readouterr().err
    assert "too large for fp16; bf16 can hold it" in said
    assert said.count("\n") == 1
    assert not target.exists()


def test_the_cache_keeps_each_type_apart(original: Path) -> None:
    types = ("fp32", "fp16", "bf16", "fp16", None)
    found = [weights_of(convserve.load(original, weights=weights).graph) for weights in types]
    assert found == ["fp32", "fp16", "bf16", "fp16", "fp32"]


def test_against_compares_on_images(original: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = imported(original, "bf16", capsys, "--scale", "0.01")
    # images may stand before and behind the options
    found = json.loads(ran(capsys, "verify", path, photos[0], "--against", original, photos[1], "--json"))
    assert [entry["input"] for entry in found["inputs"]] == [str(photo) for photo in photos]
    assert (found["weights"], found["against_weights"], found["compared"]) == ("bf16", "fp32", 2)
    preprocess = convserve.load(path).preprocess
    exact = convserve.load(original, preprocess=preprocess)
    for entry, photo in zip(found["inputs"], photos, strict=True):
        pixels = np.asarray(Image.open(photo), np.float32) * np.float32(0.01)
        x = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        left, right = convserve.load(path).run(x), exact.run(x)
        assert isinstance(left, np.ndarray)
        assert isinstance(right, np.ndarray)
        assert entry["max_difference"] == pytest.approx(np.abs(left - right).max(), rel=1e-3)
        assert entry["relative_difference"] == pytest.approx(entry["max_difference"] / np.abs(right).max(), rel=1e-3)
        assert entry["max_difference"] > 0
    assert found["max_difference"] == max(entry["max_difference"] for entry in found["inputs"])


def test_against_draws_the_same_inputs_again(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = imported(original, "fp16", capsys)
    options = ["--against", original, "--random", 3, "--json"]
    first, again = (json.loads(ran(capsys, "verify", path, *options)) for _ in range(2))
    assert first == again
    assert first["compared"] == len(first["inputs"]) == 3
    assert first["max_difference"] > 0
    assert first["relative_difference"] < 1e-2
    other = json.loads(ran(capsys, "verify", path, *options, "--seed", 1))
    assert other["max_difference"] != first["max_difference"]


def test_against_itself_nothing_differs(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ran(capsys, "verify", original, "--against", original, "--random", 2)
    assert text.count("the same best class, the same bits") == 2
    assert "all 2: difference at most 0, relative 0; the same best class in 100.00 %" in text


@pytest.mark.parametrize(
    ("other", "options", "text"),
    [
        ({"size": 14}, [], r"window (12, 12), but"),
        ({"classes": 8}, [], "classes 7, but"),
        ({}, ["--stride", "2"], "cannot be given with --against"),
        ({}, ["--plot", "a.png"], "cannot be given with --against"),
        ({}, ["/no/such.png"], "/no/such.png"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_code_1(
    other: dict[str, int],
    options: list[str],
    text: str,
    original: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    onnx.save(to_onnx(network(**other)), tmp_path / "other.onnx")
    assert main(["verify", str(original), "--against", str(tmp_path / "other.onnx"), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert text in captured.err


def test_differences_of_scores_that_are_no_numbers() -> None:
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    same = np.array([nan, inf, 1], np.float32)
    found = compare_scores(same, same)
    assert (found["max_difference"], found["same_bits"]) == (0, True)
    for other in ([0, inf, 1], [nan, -inf, 1], [nan, 5, 1]):
        found = compare_scores(np.array(other, np.float32), same)
        assert found["max_difference"] is None
        assert found["relative_difference"] is None
        assert json.dumps(found, allow_nan=False)
    zeros = np.zeros(3, np.float32)
    assert compare_scores(zeros, zeros)["relative_difference"] == 0
    found = compare_scores(np.array([1, 2, 3], np.float32), np.array([1, 4, 3], np.float32))
    assert (found["max_difference"], found["relative_difference"], found["same_top1"]) == (2, 0.5, False)
