"""What GDAL reads and writes: the same pixels by either reader, what is missing is 0, maps lie where they belong."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.shutil import copy

import convserve
from convserve.errors import ImageError, InputError
from convserve.images import decode
from convserve.scenes import open_scene
from convserve.scenes.arrays import DecodedRows
from convserve.scenes.rasters import RasterRows
from convserve.scenes.tiff import TiffRows

NET = Path(convserve.__file__).parent / "bundled" / "digits.convserve"
READERS: Any = [TiffRows, RasterRows]


@pytest.fixture(autouse=True)
def _places_unknown() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


@pytest.fixture(scope="module")
def digits() -> convserve.Model:
    return convserve.load(NET)


def pixels(height: int = 150, width: int = 130, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    top = 256 if dtype == np.uint8 else 65536
    return np.random.default_rng(0).integers(0, top, (height, width, channels), dtype)


def write(path: Path, image: np.ndarray, *, mask: np.ndarray | None = None, **profile: Any) -> Path:
    height, width, count = image.shape
    shape = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": image.dtype}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **{**shape, **profile}) as file,
    ):
        file.write(image.transpose(2, 0, 1))
        if mask is not None:
            file.write_mask(mask)
    return path


def read(source: Any, first: int = 0) -> np.ndarray:
    with source:
        return np.concatenate(list(source.blocks(first)))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "options",
    [
        {"compress": "lzw", "predictor": 2},
        {"compress": "deflate", "tiled": True, "blockxsize": 32, "blockysize": 48},
        {"compress": "jpeg", "tiled": True, "blockxsize": 64, "blockysize": 64},
        {"compress": "zstd", "interleave": "band", "tiled": True, "blockxsize": 16, "blockysize": 32},
        {"bigtiff": "yes", "sparse_ok": True},
    ],
    ids=str,
)
def test_both_readers_give_the_pixels_of_gdal(tmp_path: Path, reader: Any, options: Any) -> None:
    path = write(tmp_path / "a.tif", pixels(), **{"photometric": "rgb", **options})
    with rasterio.open(path) as file:
        wanted = file.read().transpose(1, 2, 0)
    for first in (0, 5, 47, 149):
        assert np.array_equal(read(reader(path), first), wanted[first:])


def test_jpeg_tiles_are_read_as_pillow_reads_them_or_by_gdal(tmp_path: Path) -> None:
    yes = {"compress": "jpeg", "tiled": True, "blockxsize": 64, "blockysize": 64}
    path = write(tmp_path / "a.tif", pixels(), photometric="ycbcr", **yes)
    assert np.array_equal(read(open_scene(path)), decode(path))
    # which tifffile cannot decode
    path = write(tmp_path / "b.tif", pixels(), photometric="rgb", interleave="band", **yes)
    with pytest.raises(ImageError, match="is compressed by JPEG, which cannot be read"):
        TiffRows(path)
    with rasterio.open(path) as file:
        assert np.array_equal(read(open_scene(path)), file.read().transpose(1, 2, 0))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (5, np.uint8), (3, np.uint16), (6, np.float32)])
def test_bands_of_any_number_and_type(tmp_path: Path, reader: Any, channels: int, dtype: Any) -> None:
    image = pixels(60, 50, channels, dtype if dtype != np.float32 else np.uint16).astype(dtype)
    found = read(reader(write(tmp_path / "a.tif", image)))
    assert np.array_equal(found, (image / 257).round() if dtype == np.uint16 else image)


@pytest.mark.parametrize("reader", READERS)
def test_what_a_mask_hides_is_black(tmp_path: Path, reader: Any) -> None:
    mask = np.random.default_rng(1).random((150, 130)) < 0.7
    tiled = {"tiled": True, "blockxsize": 32, "blockysize": 32}
    for options in ({"compress": "lzw"}, tiled):
        path = write(tmp_path / "a.tif", pixels(), mask=mask, photometric="rgb", **options)
        wanted = np.where(mask[:, :, None], pixels(), 0)
        for first in (0, 33, 149):
            assert np.array_equal(read(reader(path), first), wanted[first:])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("dtype", "nothing"), [(np.uint8, 200), (np.uint16, 65535), (np.float32, -9999), (np.float32, np.nan)]
)
def test_pixels_all_of_whose_bands_have_the_value_for_no_data_are_black(
    tmp_path: Path, reader: Any, dtype: Any, nothing: float
) -> None:
    image = pixels(60, 50).astype(dtype)
    image[10:20, 5:30] = nothing
    image[30, 30, 0] = nothing
    path = write(tmp_path / "a.tif", image, nodata=nothing, photometric="rgb")
    wanted = image.copy() if dtype != np.uint16 else (image / 257).round().astype(np.uint8)
    wanted[10:20, 5:30] = 0
    assert np.array_equal(read(reader(path)), wanted, equal_nan=dtype == np.float32)


@pytest.mark.parametrize("reader", READERS)
def test_palettes_and_transparency(tmp_path: Path, reader: Any) -> None:
    colours = {index: (index, 255 - index, index // 2, 255) for index in range(256)}
    with rasterio.open(tmp_path / "p.tif", "w", driver="GTiff", width=50, height=60, count=1, dtype="uint8",
                       photometric="palette") as file:
        file.write_colormap(1, colours)
        file.write(pixels(60, 50, 1)[:, :, 0], 1)
    table = np.array([colours[index][:3] for index in range(256)], np.uint8)
    assert np.array_equal(read(reader(tmp_path / "p.tif")), table[pixels(60, 50, 1)[:, :, 0]])
    write(tmp_path / "a.tif", pixels(60, 50, 4), photometric="rgb", alpha="yes")
    write(tmp_path / "g.tif", pixels(60, 50, 2), photometric="minisblack", alpha="yes")
    for name in ("a.tif", "g.tif"):
        for channels in ("rgb", "gray"):
            with reader(tmp_path / name) as source:
                found = np.concatenate(list(source.pieces(3 if channels == "rgb" else 1)))
            assert np.array_equal(found, decode(tmp_path / name, channels=channels))


def test_transparency_that_is_multiplied_in_is_divided_out(tmp_path: Path) -> None:
    image = np.minimum(pixels(60, 50, 4), pixels(60, 50, 4)[:, :, 3:])
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=["assocalpha"])
    with TiffRows(tmp_path / "a.tif") as source:
        assert np.array_equal(np.concatenate(list(source.pieces(3))), decode(tmp_path / "a.tif"))


def test_other_formats_are_read_by_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jp2", pixels(), driver="JP2OpenJPEG", quality=100, reversible="yes")
    write(tmp_path / "a.img", pixels(), driver="HFA")
    write(tmp_path / "a.tif", pixels(), compress="deflate")
    copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    for ending in (".jp2", ".img", ".vrt"):
        with convserve.open_scene(tmp_path / f"a{ending}") as source:
            assert (type(source), source.held_bytes) == (RasterRows, 0)
        assert np.array_equal(read(open_scene(tmp_path / f"a{ending}"), 7), pixels()[7:])
    with rasterio.open(tmp_path / "bgr.img", "w", driver="HFA", width=130, height=150, count=3, dtype="uint8") as file:
        file.write(pixels().transpose(2, 0, 1))
    copy(tmp_path / "bgr.img", tmp_path / "bgr.vrt", driver="VRT")
    with rasterio.open(tmp_path / "bgr.vrt", "r+") as file:
        file.colorinterp = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    assert np.array_equal(read(open_scene(tmp_path / "bgr.vrt")), pixels()[:, :, ::-1])


def test_without_one_package_the_other_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.tif", pixels(), photometric="rgb")
    Image.fromarray(pixels()).save(tmp_path / "a.jp2")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tifffile", None)
        assert isinstance(open_scene(tmp_path / "a.tif"), RasterRows)
        patch.setitem(sys.modules, "rasterio", None)
        with pytest.raises(InputError, match=r"takes the package tifffile: pip install 'convserve\[scenes\]'"):
            open_scene(tmp_path / "a.tif")
        with pytest.raises(InputError, match=r"takes the package rasterio: pip install 'convserve\[geo\]'"):
            open_scene(tmp_path / "a.vrt")
        assert np.array_equal(read(open_scene(tmp_path / "a.jp2")), pixels())


def test_what_gdal_cannot_read_or_is_no_image_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.vrt").write_text("no raster at all")
    (tmp_path / "far.vrt").write_text(
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">none.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    write(tmp_path / "double.img", np.zeros((9, 9, 1)), driver="HFA")
    write(tmp_path / "cmyk.img", pixels(9, 9, 4), driver="HFA")
    copy(tmp_path / "cmyk.img", tmp_path / "cmyk.vrt", driver="VRT")
    with rasterio.open(tmp_path / "cmyk.vrt", "r+") as file:
        file.colorinterp = (ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black)
    for name, text in {
        "none.vrt": "No such file",
        "text.vrt": "not recognized",
        "far.vrt": r"row 0 of 9 on.*none\.tif",
        "double.img": "float64",
        "cmyk.vrt": "cyan",
    }.items():
        with pytest.raises(InputError, match=text) as raised:
            read(open_scene(tmp_path / name))
        assert "\n" not in str(raised.value)


def test_a_file_that_is_cut_short_names_the_row(tmp_path: Path) -> None:
    whole, cut = write(tmp_path / "a.tif", pixels(9000)), tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    got = []
    with RasterRows(cut) as source, pytest.raises(ImageError, match=r"cannot be read from row \d+ of 9000 on"):
        got.extend(source.blocks())
    rows = sum(map(len, got))
    assert np.array_equal(np.concatenate(got), pixels(9000)[:rows])
    assert 0 < rows < 9000


def test_a_tiff_that_is_stored_turned_is_decoded_whole(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(), extratags=[(274, 3, 1, 6, True)])
    with convserve.open_scene(tmp_path / "a.tif") as source:
        assert isinstance(source, DecodedRows)
        assert np.array_equal(np.concatenate(list(source)), pixels().transpose(1, 0, 2)[:, ::-1])


def test_cmyk_becomes_rgb_as_pillow_has_it(tmp_path: Path) -> None:
    Image.fromarray(pixels(60, 50, 4), "CMYK").save(tmp_path / "a.tif")
    assert np.array_equal(read(TiffRows(tmp_path / "a.tif")), decode(tmp_path / "a.tif"))


# ---- where maps lie

PLACES = {
    "north-up": rasterio.Affine(2.0, 0, 500000, 0, -3.0, 4649776),
    "south-up": rasterio.Affine(2.0, 0, 500000, 0, 3.0, 4649776),
    "turned": rasterio.Affine(1.7, 1.5, 500000, 1.0, -2.6, 4649776),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize("options", [{}, {"stride": (8, 2)}, {"edge": "pad", "stride": 8}], ids=str)
@pytest.mark.parametrize("ending", [".tif", ".vrt"])
def test_a_map_lies_where_its_windows_do(
    tmp_path: Path, place: str, point: bool, options: Any, ending: str, digits: convserve.Model
) -> None:
    image, transform = pixels(101, 90, 1), PLACES[place]
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=101, width=90, count=1, dtype="uint8", crs="EPSG:32633",
        transform=transform,
    ) as file:
        if point:
            file.update_tags(AREA_OR_POINT="Point")
        file.write(image[:, :, 0], 1)
    copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    found = digits.score_map(tmp_path / f"a{ending}", output=tmp_path / "map.tif", classes=[1, 2], **options)
    with rasterio.open(tmp_path / "a.tif") as scene, rasterio.open(tmp_path / "map.tif") as written:
        assert scene.transform.almost_equals(transform)
        assert written.crs == scene.crs
        assert (written.height, written.width, written.count) == (found.rows, found.cols, 2)
        assert np.array_equal(written.read().transpose(1, 2, 0), found.scores[:])
        for row, col in ((0, 0), (found.rows - 1, 0), (2, found.cols - 1)):
            top, left, bottom, right = found.box(row, col)
            assert written.xy(row, col) == pytest.approx(scene.transform @ ((left + right) / 2, (top + bottom) / 2))


def test_ground_control_points_go_along(tmp_path: Path, digits: convserve.Model) -> None:
    image = pixels(101, 90, 1)
    points = [
        GroundControlPoint(row, col, 500000 + 2 * col + 0.01 * row * col, 4649776 - 3 * row, 0)
        for row in (0, 50.5, 101)
        for col in (0, 45, 90)
    ]
    write(tmp_path / "a.tif", image, gcps=points, crs="EPSG:32633")
    copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    for ending in (".tif", ".vrt"):
        digits.score_map(tmp_path / f"a{ending}", output=tmp_path / "map.tif", stride=2)
        with rasterio.open(tmp_path / "map.tif") as written:
            carried, system = written.gcps
        assert system.to_epsg() == 32633
        for before, after in zip(points, carried, strict=True):
            assert (after.x, after.y) == (before.x, before.y)
            # the middle of the map's first pixel is that of its first window
            assert after.row == pytest.approx((before.row - 14) / 2 + 0.5)
            assert after.col == pytest.approx((before.col - 14) / 2 + 0.5)
    digits.score_map(tmp_path / "a.tif", output=tmp_path / "map.zarr")
    assert len(zarr.open_group(tmp_path / "map.zarr").attrs["convserve"]["points"]) == 9
