"""Sources of rows: every kind gives the image's own pixels from any row on, or says in one sentence why not."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import convserve
from convserve import ImageError, InputError, ShapeError
from convserve.images import decode
from convserve.scenes import open_scene, overview
from convserve.scenes.georeference import GeoReference
from convserve.scenes.tiff import TiffRows
from convserve.scenes.tiff_page import PageRows

BUNDLED = Path(convserve.__file__).parent / "bundled"


def pixels(height: int = 150, width: int = 130, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    top = 256 if dtype == np.uint8 else 65536
    return np.random.default_rng(0).integers(0, top, (height, width, channels), dtype)


def read(image: Any, first: int = 0) -> np.ndarray:
    with convserve.open_scene(image) as source:
        blocks = list(source.blocks(first))
        assert all(block.flags.c_contiguous and block.dtype == source.dtype for block in blocks)
        assert all(block.shape[1:] == (source.width, source.channels) for block in blocks)
        return np.concatenate(blocks)


# ---- TIFF


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize("tile", [None, (32, 48)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_tiff_is_read_as_it_was_written(tmp_path: Path, compression: str, tile: Any, planar: str) -> None:
    image, path = pixels(), tmp_path / "scene.tif"
    tifffile.imwrite(
        path,
        image if planar == "contig" else image.transpose(2, 0, 1),
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        predictor=compression in ("zlib", "lzw"),
        tile=tile,
        rowsperstrip=None if tile else 17,
        bigtiff=compression is None,
        byteorder=">" if compression == "lzw" else "<",
    )
    for first in (0, 5, 31, 32, 149):
        assert np.array_equal(read(path, first), image[first:])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4), st.integers(1, 80), st.data())
def test_any_tiles_and_strips(height: int, width: int, channels: int, high: int, data: st.DataObject) -> None:
    image = pixels(height, width, channels)
    path = Path(os.environ["PYTEST_SCENES"]) / "any.tif"
    tiled = data.draw(st.booleans())
    tifffile.imwrite(
        path,
        image if channels > 1 else image[:, :, 0],
        photometric="rgb" if channels > 2 else "minisblack",
        tile=(16 * (1 + high % 3), 16 * (1 + high % 2)) if tiled else None,
        rowsperstrip=None if tiled else high,
        compression=data.draw(st.sampled_from([None, "zlib"])),
        planarconfig="contig" if channels > 1 else None,
    )
    first = data.draw(st.integers(0, height - 1))
    # of two samples the first is gray
    assert np.array_equal(read(path, first), image[first:, :, : 1 if channels == 2 else channels])


@pytest.fixture(autouse=True)
def folder_of_any(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SCENES", str(tmp_path_factory.getbasetemp()))


def test_pictures_that_pillow_writes_as_tiff_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    gray, colour = pixels(60, 50, 1)[:, :, 0], pixels(60, 50)
    pictures = {
        "gray": Image.fromarray(gray),
        "bits": Image.fromarray(gray).convert("1"),
        "palette": Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE),
        "deep": Image.fromarray(pixels(60, 50, 1, np.uint16)[:, :, 0]),
        "colour": Image.fromarray(colour),
    }
    for name, picture in pictures.items():
        path = tmp_path / f"{name}.tif"
        picture.save(path)
        found = read(path)
        assert np.array_equal(found, decode(path, channels="rgb" if found.shape[2] == 3 else "gray")), name


def test_white_may_be_zero(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(40, 30, 1)[:, :, 0], photometric="miniswhite")
    assert np.array_equal(read(tmp_path / "a.tif"), 255 - pixels(40, 30, 1))


def test_only_one_row_of_tiles_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(200, 130), tile=(32, 32), compression="zlib")
    read_rows: list[tuple[int, int]] = []
    tile_row = PageRows._tile_row

    def counted(self: PageRows, first: int, count: int) -> np.ndarray:
        read_rows.append((first, count))
        return tile_row(self, first, count)

    monkeypatch.setattr(PageRows, "_tile_row", counted)
    with convserve.open_scene(tmp_path / "a.tif") as source:
        blocks = source.blocks(70)
        next(blocks)
        # the first row is tried when the file is opened
        assert read_rows == [(0, 1), (70, 26)]
        next(blocks)
    assert read_rows == [(0, 1), (70, 26), (96, 32)]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_a_tiff_that_is_cut_short_names_the_row(tmp_path: Path, compression: str, tile: Any) -> None:
    path, image = tmp_path / "cut.tif", pixels(300, 130)
    tifffile.imwrite(path, image, tile=tile, rowsperstrip=None if tile else 32, compression=compression)
    os.truncate(path, path.stat().st_size // 2)
    got = []
    with (
        convserve.open_scene(path) as source,
        pytest.raises(ImageError, match=r"cannot be read from row \d+ of 300 on") as raised,
    ):
        got.extend(source.blocks())
    rows = sum(map(len, got))
    assert np.array_equal(np.concatenate(got) if got else image[:0], image[:rows])
    assert rows <= int(str(raised.value).split("from row ")[1].split()[0]) < 300
    assert "\n" not in str(raised.value)


def test_what_follows_the_first_image_may_be_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(2):
            writer.write(pixels(), photometric="rgb", compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        second = tiff.pages[1].offset
    os.truncate(path, second + 4)
    assert np.array_equal(read(TiffRows(path)), pixels())


def test_what_is_no_tiff_or_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_bytes(b"no tiff at all")
    tifffile.imwrite(tmp_path / "lab.tif", pixels(40, 30, 3), photometric="cielab")
    tifffile.imwrite(tmp_path / "double.tif", np.zeros((40, 30)))
    refused = {"text": "cannot be read", "none": "No such file", "double": "float64"}
    for name, text in refused.items():
        with pytest.raises(InputError, match=text):
            convserve.open_scene(tmp_path / f"{name}.tif")
    with pytest.raises(ImageError, match="CIELAB"):
        TiffRows(tmp_path / "lab.tif")
    # which Pillow converts
    assert np.array_equal(read(tmp_path / "lab.tif"), decode(tmp_path / "lab.tif"))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(), compression="lzw")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=r"takes the package tifffile: pip install 'convserve\[scenes\]'"):
        convserve.open_scene(tmp_path / "a.tif")


def test_a_compression_that_is_not_there_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(), compression="zstd")

    class Missing(dict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            raise KeyError(key)

    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", Missing())
    with pytest.raises(ImageError, match="ZSTD"):
        TiffRows(tmp_path / "a.tif")


def test_a_row_of_tiles_has_a_pixel_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(200, 130), tile=(32, 32), compression="zlib")
    monkeypatch.setenv("CONVSERVE_MAX_PIXELS", "4160")
    assert len(read(tmp_path / "a.tif")) == 200
    monkeypatch.setenv("CONVSERVE_MAX_PIXELS", "4159")
    with pytest.raises(ImageError, match="a row of tiles"):
        convserve.open_scene(tmp_path / "a.tif")


# ---- arrays, Zarr, pictures


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("order", ["hwc", "chw", "hw"])
def test_a_zarr_array_is_read_by_rows_of_chunks(tmp_path: Path, version: Any, order: str) -> None:
    image = pixels(channels=1 if order == "hw" else 3)
    stored = {"hwc": image, "chw": image.transpose(2, 0, 1), "hw": image[:, :, 0]}[order]
    chunks = {"hwc": (40, 50, 3), "chw": (3, 40, 50), "hw": (40, 50)}[order]
    array = zarr.create_array(tmp_path / "a.zarr", shape=stored.shape, dtype="u1", chunks=chunks, zarr_format=version)
    array[:] = stored
    for first in (0, 39, 149):
        assert np.array_equal(read(tmp_path / "a.zarr", first), image[first:])
    with convserve.open_scene(str(tmp_path / "a.zarr")) as source:
        assert [len(block) for block in source] == [40, 40, 40, 30]


def test_of_a_zarr_group_the_only_array_is_read_or_one_that_is_named(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("a", shape=(40, 30, 3), dtype="u1")[:] = pixels(40, 30)
    assert np.array_equal(read(tmp_path / "g.zarr"), pixels(40, 30))
    group.create_array("b", shape=(4, 3, 3), dtype="u1")
    with pytest.raises(ImageError, match="these arrays: a, b; give the path of one"):
        convserve.open_scene(tmp_path / "g.zarr")
    assert np.array_equal(read(tmp_path / "g.zarr" / "a"), pixels(40, 30))
    with pytest.raises(ImageError, match="cannot be read as a Zarr array"):
        convserve.open_scene(tmp_path / "none.zarr")


def test_arrays_and_their_files(tmp_path: Path) -> None:
    image = pixels()
    np.save(tmp_path / "a.npy", image)
    for source in (image, tmp_path / "a.npy", np.load(tmp_path / "a.npy", mmap_mode="r"), image.transpose(2, 0, 1)):
        assert np.array_equal(read(source, 7), image[7:])
    values = np.random.default_rng(0).random((1, 5, 40, 30), np.float32)
    assert np.array_equal(read(values), values[0].transpose(1, 2, 0))
    deep = pixels(40, 30, 1, np.uint16)
    assert np.array_equal(read(deep), decode(Image.fromarray(deep[:, :, 0]), channels="gray"))


def test_a_picture_is_decoded_and_counted() -> None:
    with convserve.open_scene(BUNDLED / "page.png") as source:
        assert source.held_bytes == source.height * source.width * source.channels
        assert np.array_equal(np.concatenate(list(source)), decode(BUNDLED / "page.png"))


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (np.zeros((4, 4), np.int32), InputError, "int32"),
        (np.zeros((4, 4, 2, 2), np.uint8), ShapeError, "shape"),
        (np.zeros((0, 4, 3), np.uint8), ShapeError, "shape"),
        ("nowhere.npy", ImageError, "No such file"),
        (12, InputError, "int"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        convserve.open_scene(image)


def test_a_row_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="row 150 does not exist"):
        next(convserve.open_scene(pixels()).blocks(150))


def test_rows_come_in_the_channels_of_a_network() -> None:
    image = pixels()
    source = convserve.open_scene(image)
    assert np.array_equal(np.concatenate(list(source.pieces(1, 20))), decode(image, channels="gray")[20:])
    assert np.array_equal(np.concatenate(list(source.below(20).pieces(1, 5))), decode(image, channels="gray")[25:])
    with pytest.raises(ShapeError, match="has 3 channel"):
        next(source.pieces(5))


# ---- georeference


def test_a_pixel_of_the_map_lies_where_its_windows_centre_does() -> None:
    # pixels of 2x3 ground units, the image's corner at (1000, 5000)
    tags = {33550: (2.0, 3.0, 0.0), 33922: (0.0, 0.0, 0.0, 1000.0, 5000.0, 0.0)}
    image = GeoReference.from_tags(tags)
    assert image is not None
    of_map = image.of_map((4, 8), (20, 24), (1, 2))
    for row, col in ((0, 0), (3, 5)):
        centre = of_map.matrix @ (col + 0.5, row + 0.5, 0, 1)
        top, left = 1 + 4 * row, 2 + 8 * col
        assert centre[:2] == pytest.approx((1000 + 2 * (left + 12), 5000 - 3 * (top + 10)))
    # where coordinates count from pixels' centres
    point = GeoReference.from_tags({**tags, 34735: (1, 1, 0, 1, 1025, 0, 1, 2)})
    assert point is not None
    assert point.is_point
    centre = point.of_map((4, 8), (20, 24), (1, 2)).matrix @ (5, 3, 0, 1)
    assert centre[:2] == pytest.approx((1000 + 2 * (2 + 40 + 12 - 0.5), 5000 - 3 * (1 + 12 + 10 - 0.5)))
    # a turned image
    turned = GeoReference.from_tags({34264: (0, 2, 0, 10, 2, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 1)})
    assert turned is not None
    assert turned.of_map((4, 8), (4, 8), (0, 0)).tags()[0][3] == (0, 8, 0, 10, 16, 0, 0, 20, *[0] * 7, 1)
    assert GeoReference.from_tags({33550: (1.0, 1.0)}) is None


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 90),
    channels=st.sampled_from([1, 3, 4]),
    longest=st.integers(1, 100),
)
@settings(deadline=None, max_examples=40)
def test_an_overview_is_the_mean_of_squares(height: int, width: int, channels: int, longest: int) -> None:
    image = pixels(height, width, channels)
    found, times = overview(open_scene(image), longest)
    assert times == max(1, max(height, width) // longest)
    assert found.shape == (-(-height // times), -(-width // times), 3)
    colours = decode(image, channels="rgb").astype(np.float64)
    for row in range(found.shape[0]):
        for col in range(found.shape[1]):
            square = colours[row * times : (row + 1) * times, col * times : (col + 1) * times]
            assert np.abs(found[row, col] - square.mean(axis=(0, 1))).max() <= 0.5


def test_values_that_are_no_pixels_have_no_overview() -> None:
    with pytest.raises(InputError, match="no pixels that a picture could show"):
        overview(open_scene(np.zeros((8, 8, 3), np.float32)), 4)
