"""Decoding and preprocessing: every source form, every field, every refusal."""

import dataclasses
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convserve.errors import ImageError, InputError, ModelFormatError, ShapeError
from convserve.images import Preprocess, decode


def pattern(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    pixels = pattern()
    image = Image.fromarray(pixels)
    path = tmp_path / "image.png"
    image.save(path)
    data = encoded(image)
    for source in (path, str(path), data, bytearray(data), memoryview(data), image, pixels, np.asfortranarray(pixels)):
        array = decode(source)
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert np.array_equal(array, pixels)


def test_bgr_decodes_as_rgb_does() -> None:
    assert np.array_equal(decode(pattern(), channels="bgr"), pattern())


def test_gray_is_the_luma_of_colour_and_colour_repeats_gray() -> None:
    pixels = pattern()
    luma = decode(pixels, channels="gray")
    assert luma.shape == (6, 9, 1)
    assert np.abs(luma[:, :, 0] - pixels @ [0.299, 0.587, 0.114]).max() <= 1
    gray = pattern(channels=1)
    assert np.array_equal(decode(gray, channels="gray"), gray)
    assert np.array_equal(decode(gray[:, :, 0], channels="gray"), gray)
    assert np.array_equal(decode(gray), np.repeat(gray, 3, axis=2))


def test_transparency_lies_over_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 255, 128
    assert decode(pixels)[0, :, 0].tolist() == [255, 0, 127]
    assert decode(pixels, channels="gray")[0, :, 0].tolist() == [255, 0, 127]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode(encoded(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode(encoded(palette, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "LAB"])
@pytest.mark.parametrize("channels", ["rgb", "gray"])
def test_every_mode_becomes_eight_bit_pixels(mode: str, channels: str) -> None:
    image = Image.new("RGB", (5, 4), (204, 204, 204))
    image = image.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (5, 4), (200, 128, 128))
    array = decode(image, channels=channels)
    assert array.shape == (4, 5, 3 if channels == "rgb" else 1)
    if mode not in ("1", "LAB"):
        assert np.abs(array.astype(int) - 204).max() <= 2


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    data = encoded(Image.fromarray(values))
    assert decode(data, channels="gray")[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert decode(data)[0, :, 2].tolist() == [0, 0, 1, 128, 255]


def test_values_without_a_range_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point pixels"):
        decode(Image.fromarray(np.ones((2, 2), np.float32)))
    with pytest.raises(ImageError, match="gray values from -1 to 70000"):
        decode(Image.fromarray(np.array([[-1, 70000]], np.int32)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_orientation_is_applied(orientation: int) -> None:
    upright = pattern(4, 7)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(decode(data), upright)


def test_a_claim_of_too_many_pixels_is_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encoded(Image.new("L", (1, 1))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")

    def inflated(*_: object) -> None:
        raise AssertionError("the image was inflated")

    monkeypatch.setattr(Image.Image, "load", inflated)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", inflated)
    with pytest.raises(ImageError, match="60000x60000 = 3600000000 pixels; at most 268435456 are allowed"):
        decode(bytes(data))


def test_the_limit_of_pixels_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSERVE_MAX_PIXELS", "53")
    image = Image.fromarray(pattern())
    for source in (image, encoded(image), pattern()):
        with pytest.raises(ImageError, match="6x9 = 54 pixels; at most 53"):
            decode(source)
    monkeypatch.setenv("CONVSERVE_MAX_PIXELS", "54")
    assert decode(encoded(image)).shape == (6, 9, 3)


def test_our_limit_and_not_pillow_s_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encoded(Image.fromarray(pattern()))).shape == (6, 9, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"the image of {len(data)} bytes"):
        decode(data)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"image\.png"):
        decode(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_truncated_image_is_refused(form: str) -> None:
    data = encoded(Image.fromarray(pattern(60, 90)), form)
    assert decode(data).shape == (60, 90, 3)
    for share in (0.1, 0.5, 0.8):
        with pytest.raises(ImageError):
            decode(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_images_are_decoded_or_refused_and_never_anything_else(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"]))
    damaged = bytearray(encoded(Image.fromarray(pattern(8, 8)), form))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = decode(bytes(damaged))
    except ImageError:
        return
    assert array.dtype == np.uint8
    assert array.shape[2] == 3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32; it must be uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\); it must be"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "has 0x4 pixels"),
    ],
)
def test_arrays_of_other_forms_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(array)


def test_other_sources_and_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of type int; allowed: a path"):
        decode(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="channels is 'cmyk'; allowed: rgb, bgr, gray"):
        decode(pattern(), channels="cmyk")
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        decode(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        decode(tmp_path)


def test_the_table_is_the_formula_rounded_once() -> None:
    preprocess = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    table = preprocess.table()
    assert table.shape == (3, 256)
    assert table.dtype == np.float32
    for channel, byte in ((0, 0), (1, 100), (2, 255)):
        mean, std = (0.485, 0.456, 0.406)[channel], (0.229, 0.224, 0.225)[channel]
        assert table[channel, byte] == np.float32((byte * (1 / 255) - mean) / std)


@pytest.mark.parametrize(("channels", "order"), [("rgb", (0, 1, 2)), ("bgr", (2, 1, 0)), ("gray", (0,))])
def test_apply_looks_each_byte_up_in_its_channel_s_row(channels: str, order: tuple[int, ...]) -> None:
    mean = (104.0, 117.0, 123.0)[: len(order)]
    preprocess = Preprocess(channels=channels, mean=mean)
    assert preprocess.source_channels() == order
    image = pattern(channels=len(order))
    values = preprocess.apply(image)
    assert values.shape == (1, len(order), 6, 9)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    for place, source in enumerate(order):
        assert np.array_equal(values[0, place], preprocess.table()[place][image[:, :, source]])
        assert np.array_equal(values[0, place], image[:, :, source] - np.float32(mean[place]))


def test_a_mean_per_pixel_is_subtracted_and_cannot_slide() -> None:
    mean = np.random.default_rng(1).random((6, 9, 3), np.float32) * 200
    preprocess = Preprocess(channels="bgr", scale=0.5, mean=mean, std=2.0)
    assert not preprocess.slides
    image = pattern()
    expected = (image[:, :, ::-1] * 0.5 - mean.astype(np.float64)) / 2
    assert np.array_equal(preprocess.apply(image)[0], expected.transpose(2, 0, 1).astype(np.float32))
    with pytest.raises(InputError, match="per-pixel mean has no table"):
        preprocess.table()
    with pytest.raises(ShapeError, match="7x9 pixels, but the per-pixel mean has 6x9"):
        preprocess.apply(pattern(7, 9))
    mean[:] = 0
    assert preprocess.mean.any()


def test_prepare_resizes_the_short_side_then_crops_the_middle() -> None:
    assert Preprocess(resize=12).prepare(pattern(6, 9)).shape == (12, 18, 3)
    assert Preprocess(resize=12).prepare(pattern(9, 6)).shape == (18, 12, 3)
    assert Preprocess(resize=(5, 4)).prepare(pattern(6, 9)).shape == (5, 4, 3)
    image = pattern(8, 11, 1)
    assert np.array_equal(Preprocess(channels="gray", crop=(4, 5)).prepare(image), image[2:6, 3:8])
    assert np.array_equal(Preprocess(resize=8, channels="gray").prepare(image), image)
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 10, axis=0)
    shrunk = Preprocess(resize=(1, 10), channels="gray").prepare(ramp)
    assert np.abs(shrunk[0, 1:-1, 0] - ramp[0].reshape(10, 10).mean(axis=1)[1:-1]).max() <= 1


def test_prepare_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShapeError, match="6x9 pixels before the crop; it must have at least the crop's 7x7"):
        Preprocess(crop=7).prepare(pattern())
    with pytest.raises(ShapeError, match=r"shape \(6, 9, 1\); it must be uint8 \(height, width, 3\)"):
        Preprocess().prepare(pattern(channels=1))
    monkeypatch.setenv("CONVSERVE_MAX_PIXELS", "100000")
    with pytest.raises(ImageError, match="the resized image"):
        Preprocess(resize=256, crop=224).prepare(pattern(1, 1000))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": "bgra"}, "channels is 'bgra'; allowed: rgb, bgr, gray"),
        ({"channels": ["rgb"]}, "allowed: rgb, bgr, gray"),
        ({"resize": 0}, "resize is 0; allowed: a whole number from 1"),
        ({"resize": 2.5}, "resize is 2.5"),
        ({"resize": True}, "resize is True"),
        ({"crop": (1, 2, 3)}, r"crop is \(1, 2, 3\)"),
        ({"crop": (5,)}, r"crop is \(5,\)"),
        ({"crop": "224"}, "crop is '224'"),
        ({"scale": float("nan")}, "scale is nan; it must be finite"),
        ({"scale": "1/255"}, "scale is '1/255'; it must be a number"),
        ({"mean": (1, 2)}, r"mean has 2 values, but the network reads 3 channel\(s\)"),
        ({"mean": (1, 2, "x")}, "mean is 'x'; it must be a number"),
        ({"channels": "gray", "mean": (1, 2, 3)}, r"reads 1 channel\(s\)"),
        ({"std": (1, 0, 1)}, "each value must be above 0"),
        ({"std": float("inf")}, "std is inf"),
        ({"mean": np.zeros((2, 2, 1))}, r"shape \(2, 2, 1\); it must be \(height, width, 3\)"),
        ({"mean": np.full((2, 2, 3), np.nan)}, "must hold finite numbers"),
    ],
)
def test_fields_outside_their_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess(**fields)


def test_preprocess_is_frozen_compares_by_value_and_survives_its_dict() -> None:
    preprocess = Preprocess(resize=256, crop=(224, 200), channels="bgr", scale=2, mean=(1, 2, 3), std=4)
    assert preprocess.std == (4.0, 4.0, 4.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        preprocess.scale = 1.0  # type: ignore[misc]
    again = Preprocess.from_dict(preprocess.to_dict())
    assert again == preprocess
    assert hash(again) == hash(preprocess)
    assert again != Preprocess(resize=256)
    assert preprocess != 3
    image_mean = Preprocess(mean=np.ones((2, 2, 3)))
    assert Preprocess.from_dict(image_mean.to_dict()) == image_mean != Preprocess()
    assert len({image_mean, Preprocess(mean=np.ones((2, 2, 3))), Preprocess()}) == 2


def test_a_dict_with_other_entries_is_no_preprocessing() -> None:
    with pytest.raises(ModelFormatError, match="unknown entry 'pickle'"):
        Preprocess.from_dict({"pickle": 1})
    with pytest.raises(ModelFormatError, match="the preprocessing is wrong: scale is"):
        Preprocess.from_dict({"scale": []})
    with pytest.raises(ModelFormatError, match="the preprocessing is wrong: mean"):
        Preprocess.from_dict({"mean": {"tensor": "x"}})
