"""convserve verify: dense passes against crops, what it promises of each kind of network, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builder import Builder
from PIL import Image

import convserve
from convserve.cli.main import main
from convserve.cli.verify import compare
from convserve.formats.container_writer import write_container
from convserve.graph.ir import Volume
from convserve.model import Model
from convserve.results import PlanBytes, RunReport, ScoreMap

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE, NET = BUNDLED / "digit.png", BUNDLED / "page.png", BUNDLED / "digits.convserve"


@pytest.fixture
def padded_net(tmp_path: Path) -> Path:
    """Three classes from a padded convolution over windows of 12x12."""
    build = Builder(Volume(3, 12, 12), seed=3, name="padded")
    x = build.pool("MaxPool", build.conv(build.input, 8, 3, pads=1, activation="relu"), 2, strides=2)
    graph = build.graph(build.gemm(build.flatten(x), 3))
    write_container(tmp_path / "padded.convserve", convserve.load(graph).graph, preprocess=None, labels=None)
    return tmp_path / "padded.convserve"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(5).integers(0, 256, (25, 31, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def reports(capsys: pytest.CaptureFixture[str], *argv: Any) -> list[dict[str, Any]]:
    assert main(["verify", *map(str, argv), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found["images"], list)
    return found["images"]


def score_map(scores: Any) -> ScoreMap:
    array = np.asarray(scores, np.float32)
    rows, cols, classes = array.shape
    classes = list(range(classes))
    report = RunReport(PlanBytes(), 0, 0.0)
    return ScoreMap(rows=rows, cols=cols, stride=(2, 2), window=(4, 4), classes=classes, scores=array, report=report)


def test_an_exact_network_has_the_bits_of_its_crops(capsys: pytest.CaptureFixture[str]) -> None:
    page, digit = reports(capsys, NET, PAGE, DIGIT)
    assert (page["image"], page["positions"], page["stride"]) == (str(PAGE), 44 * 74, [4, 4])
    assert (page["exactness"], page["same_bits"], page["same_bits_positions"]) == ("exact", True, 44 * 74)
    assert (page["max_difference"], page["mean_difference"], page["top1_agreement"]) == (0, 0, 1)
    assert (digit["rows"], digit["cols"], digit["same_bits"]) == (1, 1, True)


@pytest.mark.parametrize("stride", [2, 8])
def test_finer_and_coarser_strides(stride: int, capsys: pytest.CaptureFixture[str]) -> None:
    page = reports(capsys, NET, PAGE, "--stride", stride)[0]
    assert page["stride"] == [stride, stride]
    assert page["rows"] == (200 - 28) // stride + 1
    assert page["same_bits"] is True


def test_a_padded_network_differs_and_that_is_no_failure(
    padded_net: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = reports(capsys, padded_net, photo)[0]
    assert found["exactness"] == "interior-exact"
    assert found["same_bits"] is False
    model = convserve.load(padded_net)
    dense, crops = (model.score_map(photo, method=method).scores for method in ("dense", "crops"))
    differences = np.abs(dense - crops)
    assert found["max_difference"] == differences.max() > 0
    assert found["mean_difference"] == pytest.approx(differences.mean(dtype=np.float64))
    row, col = found["max_difference_at"]
    assert differences[row, col].max() == differences.max()
    assert found["max_difference_box"] == [2 * row, 2 * col, 2 * row + 12, 2 * col + 12]
    assert found["top1_agreement"] == np.mean(dense.argmax(axis=2) == crops.argmax(axis=2))


def test_the_text_states_exactness_and_bits(padded_net: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(NET), str(DIGIT)]) == 0
    text = capsys.readouterr().out
    assert "  exact: every score is promised the bits of its crop's\n" in text
    assert "  all bits agree; difference: max 0, mean 0\n" in text
    assert "1x1 = 1 positions of 11 class(es) at stride 4x4" in text
    assert main(["verify", str(padded_net), str(photo)]) == 0
    text = capsys.readouterr().out
    assert "no equality is promised" in text
    assert "bits agree at" in text


def test_an_exact_network_that_differs_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true_map = Model.score_map

    def wrong_by_one_bit(self: Model, image: Any, **options: Any) -> ScoreMap:
        found = true_map(self, image, **options)
        if options["method"] == "auto":
            found.scores[3, 5, 7] = np.nextafter(found.scores[3, 5, 7], np.float32(2))
        return found

    monkeypatch.setattr(Model, "score_map", wrong_by_one_bit)
    assert main(["verify", str(NET), str(PAGE), "--json"]) == 1
    captured = capsys.readouterr()
    page = json.loads(captured.out)["images"][0]
    assert page["same_bits_positions"] == page["positions"] - 1
    assert page["max_difference_at"] == [3, 5]
    assert captured.err.startswith("convserve: digits is exact, but its dense pass differs")
    assert captured.err.count("\n") == 1


def test_a_picture_of_the_differences(
    padded_net: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "difference.png"
    assert main(["verify", str(padded_net), str(photo), "--plot", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int64)
    # the photo is drawn in gray; what has a hue are the differences
    assert np.ptp(pixels, axis=2).max() > 60


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([str(PAGE), "--plot", "a.jpg"], ".png"),
        ([str(PAGE), str(DIGIT), "--plot", "a.png"], "one image"),
        ([str(PAGE), "--method", "crops"], "crops"),
        ([str(PAGE), "--method", "guess"], "guess"),
        ([str(PAGE), "--stride", "3"], "stride is 3"),
        (["/no/such.png"], "/no/such.png"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(NET), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert text in captured.err


def test_no_image_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(NET)])
    assert ended.value.code == 2
    assert "IMAGE" in capsys.readouterr().err


def test_values_that_are_no_numbers() -> None:
    nan, inf = np.nan, np.inf
    same = compare(score_map([[[nan, inf, 1]]]), score_map([[[nan, inf, 1]]]))
    assert (same["same_bits"], same["max_difference"]) == (True, 0)
    for other in ([[[0, inf, 1]]], [[[nan, -inf, 1]]], [[[nan, 5, 1]]]):
        found = compare(score_map([[[nan, inf, 1]]]), score_map(other))
        assert found["same_bits"] is False
        assert found["max_difference"] is None
        assert json.dumps(found, allow_nan=False)


def test_zeros_of_either_sign_differ_in_bits_alone() -> None:
    found = compare(score_map([[[0.0, 1]], [[2, 3]]]), score_map([[[-0.0, 1]], [[2, 3]]]))
    assert (found["same_bits"], found["same_bits_positions"], found["max_difference"]) == (False, 1, 0)
