"""Maps written to disk row by row: the bits of those in memory, also after an interruption; and what fails then."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import BUNDLED, NET, assert_same, leave_after, page

import convserve
from convserve import InputError, OutputError, Reduction, ShapeError
from convserve.scenes.array_files import ArrayFile
from convserve.scenes.record import RecordFile

PADDED = "INPUT[32x32x1] -> [CONV3-32 -> RELU -> POOL2]*2 -> [FC-16 -> RELU]*1 -> FC-5"
DEEP = "INPUT[64x64x1] -> [[CONV3-64 -> RELU]*2 -> POOL2]*2 -> [FC-16 -> RELU]*1 -> FC-5"
ENDINGS = (".npy", ".npz", ".zarr", ".tif")


@pytest.fixture(scope="module")
def digits() -> convserve.Model:
    return convserve.load(NET)


# ---- the same bits


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classes": [3]},
        {"reduce": Reduction(top=3)},
        {"reduce": Reduction(argmax=True), "stride": 2},
        {"reduce": Reduction(scores="softmax", dtype="uint8"), "stride": 8, "edge": "align"},
        {"reduce": Reduction(dtype="float16"), "edge": "pad"},
        {"reduce": Reduction(top=2), "method": "crops", "stride": 12},
    ],
    ids=str,
)
def test_a_written_map_has_the_bits_of_one_in_memory(
    tmp_path: Path, ending: str, options: Any, digits: convserve.Model
) -> None:
    found = digits.score_map(page(), output=tmp_path / f"map{ending}", **options)
    assert isinstance(found, convserve.WrittenMap)
    assert_same(found, digits.score_map(page(), **options))
    assert found.resumed_at == 0
    assert all(path.exists() for path in found.files.values())


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("rows", [1, 20, 29, 30])
def test_a_map_that_was_left_is_gone_on_with(
    tmp_path: Path, ending: str, rows: int, digits: convserve.Model
) -> None:
    options: Any = {"output": tmp_path / f"map{ending}", "reduce": Reduction(top=2)}
    wanted = digits.score_map(page(), reduce=Reduction(top=2))
    leave_after(rows, lambda: digits.score_map(page(), **options))
    found = digits.score_map(page(), resume=True, **options)
    assert rows <= found.resumed_at <= wanted.rows
    assert_same(found, wanted)
    # and again, where nothing is left to do
    assert_same(digits.score_map(page(), resume=True, **options), wanted)


@pytest.mark.parametrize("network", [PADDED, DEEP])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "method": "shifted"}, {"stride": 2, "method": "atrous"}])
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_padded_networks_go_on_with_the_same_bits(network: str, options: Any, data: st.DataObject) -> None:
    model = convserve.build(network)
    image = page(data.draw(st.integers(150, 330)), 100)
    wanted = model.score_map(image, **options)
    output = Path(os.environ["PYTEST_MAPS"]) / "map.npy"
    leave_after(data.draw(st.integers(1, wanted.rows)), lambda: model.score_map(image, output=output, **options))
    assert_same(model.score_map(image, output=output, resume=True, **options), wanted)


@pytest.fixture(autouse=True)
def folder_of_maps(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_MAPS", str(tmp_path_factory.getbasetemp()))


def test_only_the_rows_that_the_first_windows_need_are_read_again(
    tmp_path: Path, digits: convserve.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "map.npy"
    leave_after(20, lambda: digits.score_map(page(), output=output))
    source = convserve.open_scene(page())
    asked: list[int] = []
    read = source.read

    def recorded(first: int, count: int) -> np.ndarray:
        asked.append(first)
        return read(first, count)

    monkeypatch.setattr(source, "read", recorded)
    found = digits.score_map(source, output=output, resume=True)
    assert asked[0] == found.resumed_at * found.stride[0]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"stride": 2}, "stride"),
        ({"classes": [1, 2]}, "classes"),
        ({"reduce": Reduction(argmax=True)}, "argmax"),
        ({"image": page(151)}, "image"),
        ({"model": "INPUT[28x28x1] -> CONV5-8 -> FC-11"}, "network"),
    ],
    ids=str,
)
def test_another_runs_map_is_not_gone_on_with(
    tmp_path: Path, change: Any, name: str, digits: convserve.Model
) -> None:
    output = tmp_path / "map.npy"
    leave_after(5, lambda: digits.score_map(page(), output=output))
    before = output.read_bytes()
    model = convserve.build(change.pop("model")) if "model" in change else digits
    with pytest.raises(InputError, match=f"cannot be resumed: it was begun with {name} "):
        model.score_map(change.pop("image", page()), output=output, resume=True, **change)
    assert output.read_bytes() == before


def test_nothing_to_go_on_with_is_a_beginning(tmp_path: Path, digits: convserve.Model) -> None:
    assert digits.score_map(page(), output=tmp_path / "map.npy", resume=True).resumed_at == 0
    with pytest.raises(InputError, match="resume goes on with a map on disk"):
        digits.score_map(page(), resume=True)


def test_a_record_that_is_none_is_refused(tmp_path: Path, digits: convserve.Model) -> None:
    digits.score_map(page(), output=tmp_path / "map.npy")
    (tmp_path / "map.npy.json").write_text("{}")
    with pytest.raises(OutputError, match="cannot be resumed"):
        digits.score_map(page(), output=tmp_path / "map.npy", resume=True)


def test_a_map_that_was_changed_is_refused(tmp_path: Path, digits: convserve.Model) -> None:
    leave_after(5, lambda: digits.score_map(page(), output=tmp_path / "map.npy"))
    np.save(tmp_path / "map.npy", np.zeros(3))
    with pytest.raises(OutputError, match="of shape"):
        digits.score_map(page(), output=tmp_path / "map.npy", resume=True)


# ---- what lies on disk


def test_files_tell_what_they_hold(tmp_path: Path, digits: convserve.Model) -> None:
    wanted = digits.score_map(page(), reduce=Reduction(top=3))
    for ending in ENDINGS:
        digits.score_map(page(), reduce=Reduction(top=3), output=tmp_path / f"map{ending}")
    assert np.array_equal(np.load(tmp_path / "map.npy"), wanted.scores)
    assert np.array_equal(np.load(tmp_path / "map.indices.npy"), wanted.indices)
    told = json.loads((tmp_path / "map.npy.json").read_text())
    assert (told["rows_done"], told["geometry"]["labels"]) == (wanted.rows, wanted.labels)
    with np.load(tmp_path / "map.npz") as archive:
        assert np.array_equal(archive["scores"], wanted.scores)
        assert archive["window"].tolist() == list(wanted.window)
        assert str(archive["exactness"]) == wanted.exactness
    group = zarr.open_group(tmp_path / "map.zarr", mode="r")
    assert np.array_equal(group["indices"][:], wanted.indices)
    assert group.attrs["convserve"]["geometry"]["stride"] == list(wanted.stride)
    assert np.array_equal(tifffile.imread(tmp_path / "map.tif"), wanted.scores)
    assert np.array_equal(tifffile.imread(tmp_path / "map.indices.tif"), wanted.indices)
    assert sorted(path.name for path in tmp_path.iterdir() if ".part" in path.name) == []


def test_a_geotiff_keeps_its_place(tmp_path: Path, digits: convserve.Model) -> None:
    profile = {"driver": "GTiff", "height": 150, "width": 90, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    place = rasterio.Affine(2.0, 0, 500000, 0, -3.0, 4649776)
    with rasterio.open(tmp_path / "scene.tif", "w", transform=place, **profile) as scene:
        scene.write(page()[:, :, 0], 1)
    found = digits.score_map(tmp_path / "scene.tif", output=tmp_path / "map.tif")
    assert_same(found, digits.score_map(page()))
    with rasterio.open(tmp_path / "map.tif") as written:
        assert written.crs.to_epsg() == 32633
        assert written.count == len(found.classes)
        for row, col in ((0, 0), (found.rows - 1, 4)):
            top, left, bottom, right = found.box(row, col)
            assert written.xy(row, col) == pytest.approx(place * ((left + right) / 2, (top + bottom) / 2))
        assert np.array_equal(written.read().transpose(1, 2, 0), found.scores[:])


def test_another_folder_is_not_replaced_by_a_map(tmp_path: Path, digits: convserve.Model) -> None:
    (tmp_path / "map.zarr").mkdir()
    digits.score_map(page(), output=tmp_path / "map.zarr")
    digits.score_map(page(), output=tmp_path / "map.zarr", stride=8)
    shutil.rmtree(tmp_path / "map.zarr")
    (tmp_path / "map.zarr").mkdir()
    (tmp_path / "map.zarr" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already, and no score map"):
        digits.score_map(page(), output=tmp_path / "map.zarr")
    assert (tmp_path / "map.zarr" / "mine.txt").read_text() == "mine"


# ---- what fails


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 8 KiB; not for longer than that, since what pytest writes to may be a file as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ending", [".npy", ".tif", ".zarr"])
def test_on_a_full_disk_finished_rows_stay(
    tmp_path: Path, ending: str, digits: convserve.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, output = page(1500), tmp_path / f"map{ending}"
    wanted, written = digits.score_map(image), []
    if ending == ".zarr":
        monkeypatch.setattr("convserve.scenes.zarr_sink._CHUNK_BYTES", 4 * wanted.scores[0].nbytes)
        put, name = zarr.Array.__setitem__, "zarr.Array.__setitem__"
    else:
        put, name = ArrayFile._write_at, "convserve.scenes.array_files.ArrayFile._write_at"

    def full(*call: Any) -> Any:
        written.append(call)
        if len(written) > (100 if ending == ".tif" else 2):
            raise OSError(errno.ENOSPC, "full")
        return put(*call)

    with monkeypatch.context() as patch:
        patch.setattr(name, full)
        with pytest.raises(OutputError, match=r"after \d+ of 369 rows: No space left on device; finished rows stay"):
            digits.score_map(image, output=output)
    found = digits.score_map(image, output=output, resume=True)
    assert 0 < found.resumed_at < 369
    assert_same(found, wanted)


def test_a_file_that_may_not_grow_is_one_sentence(tmp_path: Path, digits: convserve.Model) -> None:
    for ending in ENDINGS:
        with small_files(), pytest.raises(OutputError, match="File too large"):
            digits.score_map(page(400, 400), output=tmp_path / f"map{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_folder_that_may_not_be_written_is_one_sentence(ending: str, digits: convserve.Model) -> None:
    with pytest.raises(OutputError, match=r"'/sys/map\..*' cannot be written: (Permission|Operation not|Read-only)"):
        digits.score_map(page(), output=f"/sys/map{ending}")


def test_a_record_that_cannot_be_replaced_is_one_sentence(
    tmp_path: Path, digits: convserve.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: RecordFile) -> None:
        raise OSError(errno.EROFS, "no")

    monkeypatch.setattr(RecordFile, "remove", refused)
    with pytest.raises(OutputError, match=r"'.*map\.npy' cannot be written: Read-only file system"):
        digits.score_map(page(), output=tmp_path / "map.npy")


def test_outputs_that_cannot_be_meant(tmp_path: Path, digits: convserve.Model) -> None:
    with pytest.raises(InputError, match="must end in"):
        digits.score_map(page(), output=tmp_path / "map.jpg")
    with pytest.raises(InputError, match="no such folder"):
        digits.score_map(page(), output=tmp_path / "none" / "map.npy")
    with pytest.raises(ShapeError, match="window"):
        digits.score_map(page(20), output=tmp_path / "map.npy")
    with pytest.raises(ShapeError, match="channel"):
        digits.score_map(np.zeros((50, 50, 6), np.uint8), output=tmp_path / "map.npy")
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_held_counts_into_the_budget(tmp_path: Path, digits: convserve.Model) -> None:
    with pytest.raises(convserve.MemoryBudgetError, match="is decoded as a whole and takes"):
        digits.score_map(BUNDLED / "page.png", output=tmp_path / "map.npy", memory_budget=1000)
