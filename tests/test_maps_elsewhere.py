"""Maps written by rows through a server and from the command line, and pictures drawn from rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from interrupted import NET, assert_same, leave_after, page, stop_after
from PIL import Image
from serving import running_server

import convserve
from convserve import InputError, Reduction
from convserve.cli.main import main
from convserve.scenes.writer import MapWriter


@pytest.fixture(scope="module")
def digits() -> convserve.Model:
    return convserve.load(NET)


def test_a_stream_takes_a_source(digits: convserve.Model) -> None:
    with convserve.open_scene(page()) as source:
        assert np.array_equal(np.concatenate(list(digits.stream(rows=source))), digits.score_map(page()).scores)


def test_an_image_that_only_a_source_reads_is_scored_in_memory_too(tmp_path: Path, digits: convserve.Model) -> None:
    np.save(tmp_path / "page.npy", page())
    assert_same(digits.score_map(tmp_path / "page.npy"), digits.score_map(page()))


def test_what_is_held_has_a_pixel_limit_and_what_is_read_by_rows_has_none(
    tmp_path: Path, digits: convserve.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "page.tif", page()[:, :, 0], tile=(32, 32))
    wanted = digits.score_map(tmp_path / "page.tif")
    monkeypatch.setenv("CONVSERVE_MAX_PIXELS", "5000")
    with pytest.raises(InputError, match="CONVSERVE_MAX_PIXELS"):
        digits.score_map(tmp_path / "page.tif")
    assert_same(digits.score_map(tmp_path / "page.tif", output=tmp_path / "map.npy"), wanted)


def test_through_a_server_rows_go_to_disk_and_on(tmp_path: Path, digits: convserve.Model) -> None:
    tifffile.imwrite(tmp_path / "page.tif", page()[:, :, 0], tile=(32, 32), compression="zlib")
    wanted = digits.score_map(page(), reduce=Reduction(top=2), stride=2)
    options: Any = {"output": tmp_path / "map.zarr", "reduce": Reduction(top=2), "stride": 2}
    with running_server({"digits": digits}) as address, convserve.Client(address) as client:
        assert_same(client.score_map(tmp_path / "page.tif", reduce=Reduction(top=2), stride=2), wanted)
        leave_after(20, lambda: client.score_map(tmp_path / "page.tif", **options))
        found = client.score_map(tmp_path / "page.tif", resume=True, **options)
        assert 20 <= found.resumed_at < wanted.rows
        assert_same(found, wanted)
        assert_same(client.score_map(tmp_path / "page.tif", resume=True, **options), wanted)
        with convserve.open_scene(tmp_path / "page.tif") as source:
            assert np.array_equal(np.concatenate(list(client.stream(rows=source))), digits.score_map(page()).scores)


def test_a_run_goes_on_through_a_server_and_here_with_the_same_weights_only(
    tmp_path: Path, digits: convserve.Model
) -> None:
    pattern = "INPUT[28x28x1] -> CONV5-8 P0 -> RELU -> FC-11"
    models = {f"seed{seed}": convserve.build(pattern, seed=seed) for seed in (0, 1)}
    image, output = page(400), tmp_path / "map.npy"
    wanted = models["seed0"].score_map(image)
    with running_server(models) as address, convserve.Client(address) as client:
        kinds = [client.describe(model=name, fingerprint=True)["fingerprint"] for name in models]
        assert kinds == [model.fingerprint for model in models.values()]
        assert len(set(kinds)) == 2
        assert client.describe(model="seed0")["fingerprint"] is None
        leave_after(20, lambda: client.score_map(image, model="seed0", output=output))
        with pytest.raises(InputError, match="it was begun with network"):
            client.score_map(image, model="seed1", output=output, resume=True)
        with pytest.raises(InputError, match="it was begun with network"):
            models["seed1"].score_map(image, output=output, resume=True)
        leave_after(40, lambda: models["seed0"].score_map(image, output=output, resume=True))
        found = client.score_map(image, model="seed0", output=output, resume=True)
    assert found.resumed_at >= 40
    assert_same(found, wanted)


def test_the_command_line_is_interrupted_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, digits: convserve.Model
) -> None:
    np.save(tmp_path / "page.npy", page())
    argv = ["score-map", str(tmp_path / "page.npy"), "-o", str(tmp_path / "map.zarr"), "--net", str(NET)]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # before there is anything to go on with
        patch.setattr(MapWriter, "begin", interrupted)
        assert main(argv) == 130
        assert capsys.readouterr().err == ""
    with monkeypatch.context() as patch:
        stop_after(5, patch, KeyboardInterrupt)
        assert main(argv) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert main([*argv, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed_at"] >= 5
    assert np.array_equal(zarr.open_group(tmp_path / "map.zarr")["scores"][:], digits.score_map(page()).scores)
    assert main([*argv[:3], str(tmp_path / "map.png"), "--resume"]) == 1
    assert "--resume goes on with arrays" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [["--class", "3"], ["--background", "no digit"]])
def test_a_picture_of_a_scene_is_drawn_from_its_rows(tmp_path: Path, wanted: list[str]) -> None:
    image = np.repeat(page(200, 320), 3, axis=2)
    tifffile.imwrite(tmp_path / "scene.tif", image, tile=(64, 64))
    Image.fromarray(image).save(tmp_path / "scene.png")
    for ending in (".tif", ".png"):
        command = ["score-map", str(tmp_path / f"scene{ending}"), "-o", str(tmp_path / f"map{ending}.png")]
        assert main([*command, *wanted, "--net", str(NET)]) == 0
    pictures = [np.asarray(Image.open(tmp_path / f"map{ending}.png")) for ending in (".tif", ".png")]
    assert np.array_equal(*pictures)


def test_a_huge_scene_is_shrunk_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.repeat(page(256, 3 * 2560), 3, axis=2)
    np.save(tmp_path / "scene.npy", image)
    monkeypatch.setenv("CONVSERVE_MAX_PIXELS", "1000000")  # nothing may be decoded whole
    command = ["score-map", str(tmp_path / "scene.npy"), "-o", str(tmp_path / "map.png"), "--class", "3"]
    assert main([*command, "--net", str(NET)]) == 0
    assert Image.open(tmp_path / "map.png").width == 2560
