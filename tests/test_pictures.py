"""Pictures of whole score maps: reduced or not they show the same, contact sheets show the crops, legends have room."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import convserve
from convserve import Reduction, ScoreMap
from convserve.cli.main import main
from convserve.errors import InputError
from convserve.images import argmax_map, decode, draw_best, draw_map
from convserve.images.contact import Found, contact_sheet, cut_out
from convserve.images.legend import _ticks
from convserve.images.pictures import best_positions, save_picture
from convserve.results import PlanBytes, RunReport

BUNDLED = Path(convserve.__file__).parent / "bundled"
PAGE = BUNDLED / "page.png"


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(BUNDLED / "digits.convserve")


def made(scores: np.ndarray, labels: list[str], **fields: Any) -> ScoreMap:
    rows, cols = scores.shape[:2]
    fields = {"stride": (4, 4), "window": (8, 8), "classes": list(range(len(labels))), **fields}
    report = RunReport(PlanBytes(), 0, 0.0)
    return ScoreMap(rows=rows, cols=cols, labels=labels, scores=scores, report=report, **fields)


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_a_reduced_map_is_drawn_as_the_whole_one(model: convserve.Model) -> None:
    whole = model.score_map(PAGE)
    picture = draw_map(whole, PAGE, background="no digit")
    for reduce in (Reduction(top=1), Reduction(top=3, scores="softmax")):
        reduced = model.score_map(PAGE, reduce=reduce)
        assert same(draw_map(reduced, PAGE, background="no digit"), picture)
        assert same(draw_best(reduced, PAGE, background="no digit"), draw_best(whole, PAGE, background="no digit"))
    for reduce in (Reduction(top=1, dtype="float16"), Reduction(scores="softmax", dtype="uint8")):
        near = np.asarray(draw_map(model.score_map(PAGE, reduce=reduce), PAGE, background="no digit"), np.int64)
        assert np.abs(near - np.asarray(picture)).mean() < 1
    winners = model.score_map(PAGE, reduce=Reduction(argmax=True), classes=["3", "7", "no digit"])
    assert draw_map(winners, PAGE, background="no digit").width == picture.width
    seven = draw_map(model.score_map(PAGE, classes=["7"]), PAGE, value_range=(0, 1))
    bytes_ = model.score_map(PAGE, classes=["7"], reduce=Reduction(scores="softmax", dtype="uint8"))
    assert np.abs(np.asarray(draw_map(bytes_, PAGE, value_range=(0, 1)), np.int64) - np.asarray(seven)).mean() < 1


def test_best_positions_are_the_highest_and_apart() -> None:
    scores = np.zeros((12, 12, 1), np.float32)
    scores[2:5, 2:5], scores[8:11, 7:10] = 0.5, 0.75
    scores[3, 3], scores[9, 8], scores[0, 11] = 0.625, 0.875, np.nan
    found = made(scores, ["n01440764 tench, Tinca tinca"])
    best = best_positions(found, most=2)
    assert best == [
        Found((36, 32, 44, 40), "tench, Tinca tinca", 0.875),
        Found((12, 12, 20, 20), "tench, Tinca tinca", 0.625),
    ]
    assert len(best_positions(found, threshold=0.8)) == 1
    assert not any(np.isnan(one.score) for one in best_positions(found, most=100))
    boxes = [one.box for one in best_positions(found, most=100)]
    assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 4 for a in boxes for b in boxes if a != b)


@pytest.mark.parametrize(("window", "channels"), [(8, 3), (150, 1), (900, 3)])
def test_a_contact_sheet_shows_the_crops_in_their_order(window: int, channels: int) -> None:
    image = np.zeros((window * 2, window * 3, channels), np.uint8)
    places = [(top, left) for top in (0, window) for left in (0, window, 2 * window)]
    for number, (top, left) in enumerate(places):
        image[top : top + window, left : left + window] = 40 + 30 * number
    positions = [Found((top, left, top + window, left + window), "a label " * 20, 0.5) for top, left in places]
    crops = cut_out(convserve.open_scene(image), [one.box for one in positions])
    for crop, (top, left) in zip(crops, places, strict=True):
        assert np.array_equal(crop, decode(image)[top : top + window, left : left + window])
    sheet = np.asarray(contact_sheet(crops, positions, columns=4)).astype(int)
    tile = window if 96 <= window <= 384 else 224
    for number in range(6):
        top, left = 16 + number // 4 * (tile + 54 + 16), 16 + number % 4 * (tile + 16)
        assert (sheet[top : top + tile, left : left + tile] == 40 + 30 * number).all()


def test_a_crop_that_leaves_the_image_is_dark_there() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    for box, dark, bright in (((-50, 0, 50, 100), (20, 50), (80, 50)), ((50, 60, 150, 160), (20, 60), (20, 20))):
        crops = cut_out(convserve.open_scene(image), [box])
        sheet = np.asarray(contact_sheet(crops, [Found(box, "a", 1.0)])).astype(int)
        assert sheet[16 + dark[0], 16 + dark[1]].max() < 5
        assert sheet[16 + bright[0], 16 + bright[1]].min() > 195
    assert not cut_out(convserve.open_scene(image), [(120, 0, 130, 10), (-20, 0, -10, 10), (0, 200, 10, 210)])[0].any()


def test_a_contact_sheet_of_a_scene_is_read_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = np.repeat(decode(PAGE, channels="gray"), 3, axis=2)
    np.save(tmp_path / "page.npy", np.vstack([page, page]))
    Image.fromarray(np.vstack([page, page])).save(tmp_path / "page.png")
    sheets = []
    for name in ("page.png", "page.npy"):
        for output in ("map.zarr", "map.npy"):
            sheet = str(tmp_path / f"{name}.png")
            command = ["score-map", str(tmp_path / name), "-o", str(tmp_path / output), "--contact-sheet", sheet]
            assert main(command) == 0
            sheets.append(Image.open(sheet))
        # from here on nothing can be decoded as a whole
        monkeypatch.setattr("convserve.scenes.source.PIECE_PIXELS", 5000)
        monkeypatch.setenv("CONVSERVE_MAX_PIXELS", "20000")
    assert all(same(sheets[0], sheet) for sheet in sheets)


def test_an_aligned_last_window_is_drawn_where_it_lies() -> None:
    image = np.full((63, 71, 3), 60, np.uint8)
    for several in (False, True):
        scores = np.zeros((12, 14, 1 + several), np.float32)
        scores[-1, -1] = (0, 1) if several else 1
        place: dict[str, Any] = {"image": (63, 71), "edge": "align", "stride": (5, 5), "window": (8, 8)}
        found = made(scores, ["nothing", "seen"] if several else ["seen"], **place)
        assert found.box(-1, -1) == (55, 63, 63, 71)
        picture = np.asarray(draw_map(found, image, side=710, background="nothing" if several else None)).astype(int)
        marked = np.ptp(picture[:630], axis=2) > 30
        rows, cols = np.nonzero(marked)
        # the margins at the map's end are those at its beginning; a winner's window is drawn as well
        margin = 0 if several else round((8 - 5) / 2 * 10)
        assert (rows.max(), cols.max()) == (630 - 1 - margin, 710 - 1 - margin)
        assert marked[590, 670]


def test_many_classes_share_a_colour_and_a_line_of_the_legend() -> None:
    rng = np.random.default_rng(0)
    image = np.full((300, 300, 3), 90, np.uint8)
    winners = rng.integers(0, 200, (60, 60))
    winners[:, :30] = rng.integers(0, 5, (60, 30))
    labels = [f"class {number}, of a long name" for number in range(200)]
    place: dict[str, Any] = {"stride": (4, 4), "window": (40, 40)}
    picture = argmax_map(image, winners, np.ones(winners.shape, np.float32), labels, **place)
    few = argmax_map(image, winners % 5, np.ones(winners.shape, np.float32), labels[:5], **place)
    assert few.width == picture.width == 1200
    assert picture.height <= 1200 + 9 * 22 + 1
    pixels = np.asarray(picture)[1200:].reshape(-1, 3)
    assert (pixels == (128, 132, 142)).all(axis=1).any()


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0, 1), (0.0, 0.697), (-3.2, 17.5), (1e-6, 3e-6), (1000, 1003)):
        ticks = _ticks(low, high)
        assert 2 <= len(ticks) <= 7
        assert low - 1e-9 * abs(high) <= min(ticks) <= max(ticks) <= high * (1 + 1e-9)
    assert _ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


@pytest.mark.parametrize(("height", "width"), [(9, 8), (40, 3000), (3000, 40)])
def test_images_of_every_form_are_drawn(height: int, width: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    rows, cols = (height - 8) // 4 + 1, max(0, (width - 8) // 4) + 1
    found = made(np.random.default_rng(2).random((rows, cols, 30), np.float32), [f"label {n}" for n in range(30)])
    for side in (None, 64, 1000):
        assert draw_map(found, image, side=side, threshold=0.9).mode == "RGB"
    one = made(found.scores[:, :, :1], ["only"])
    assert max(draw_map(one, image, side=500).size) >= 500
    assert draw_best(found, image, threshold=0.9, most=3).mode == "RGB"


def test_what_cannot_be_drawn_is_told(model: convserve.Model, tmp_path: Path) -> None:
    winners = model.score_map(PAGE, reduce=Reduction(argmax=True))
    with pytest.raises(InputError, match="an argmax map has no scores"):
        best_positions(winners)
    with pytest.raises(InputError, match="a value range is for a heat map of one class"):
        draw_map(winners, PAGE, value_range=(0, 1))
    with pytest.raises(InputError, match="the background 'none' is none of the classes: 0, 1"):
        draw_map(winners, PAGE, background="none")
    with pytest.raises(InputError, match="no score reaches the threshold"):
        draw_best(model.score_map(PAGE, classes=["7"]), PAGE, threshold=1.5)
    with pytest.raises(InputError, match=r"the picture '.*' cannot be written"):
        save_picture(Image.new("RGB", (2, 2)), tmp_path / "no" / "picture.png")


def test_the_command_line_draws_and_reduces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heat, sheet, arrays = (str(tmp_path / name) for name in ("seven.jpg", "best.png", "top.npz"))
    drawing = ["--side", "640", "--opacity", "0.5", "--value-range", "0", "1", "--contact-sheet", sheet, "--best", "4"]
    assert main(["score-map", str(PAGE), "-o", heat, "--classes", "7", *drawing]) == 0
    assert f"wrote {heat}\nwrote {sheet}" in capsys.readouterr().out
    page = decode(PAGE, channels="gray")
    with Image.open(heat) as picture:
        assert max(picture.size[0], round(640 * page.shape[0] / page.shape[1])) == 640
    with Image.open(sheet) as picture:
        assert picture.width > 2 * 112
    assert main(["score-map", str(PAGE), "-o", arrays, "--top", "2", "--softmax", "--dtype", "float16"]) == 0
    with np.load(arrays) as found:
        assert found["scores"].dtype == np.float16
        assert found["indices"].shape == found["scores"].shape == (44, 74, 2)
    assert main(["score-map", str(PAGE), "-o", arrays, "--argmax"]) == 0
    with np.load(arrays) as found:
        assert found["indices"].shape == (44, 74)
        assert "scores" not in found
    assert main(["score-map", str(PAGE), "-o", arrays, "--dtype", "uint8", "--value-range", "0", "0.5"]) == 0
    with np.load(arrays) as found:
        assert found["scores"].dtype == np.uint8
        assert found["scores"].max() == 255
    capsys.readouterr()
