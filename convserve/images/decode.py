"""Images of any common form as uint8 arrays: files, encoded bytes, Pillow images, arrays."""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from convserve import settings
from convserve.errors import ImageError, InputError

__all__ = ["CHANNELS", "ImageSource", "check_pixels", "decode", "decoding_bytes"]

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray

# Only formats whose decoders run inside this process: EPS, for one, would start a foreign program.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_OPENING = threading.Lock()
BAND_BYTES = 1 << 20


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def check_pixels(height: int, width: int, what: str) -> None:
    """Raise ImageError where height x width is empty or above the setting MAX_PIXELS."""
    limit = settings.get("MAX_PIXELS")
    if height < 1 or width < 1:
        raise ImageError(f"{what} has {height}x{width} pixels; it needs at least 1x1")
    if height * width > limit:
        raise ImageError(
            f"{what} has {height}x{width} = {height * width} pixels; at most {limit} are allowed (CONVSERVE_MAX_PIXELS)"
        )


@contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Lift Pillow's pixel limit while a header is read: check_pixels has the caller's, before anything is inflated."""
    with _OPENING:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _scaled_to_bytes(image: Image.Image, what: str) -> Image.Image:
    """Return the 8-bit gray image of one whose values run to 65535; Pillow itself would clip them at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{what} has gray values from {values.min()} to {values.max()}; allowed: 0 to 65535")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _flattened(image: Image.Image, what: str, *, gray: bool) -> Image.Image:
    """Return the image in mode L or RGB: transparency over white, 16 bits scaled to 8."""
    if image.mode in _SIXTEEN_BITS:
        image = _scaled_to_bytes(image, what)
    elif image.mode == "F":
        raise ImageError(f"{what} has floating-point pixels, which have no fixed range; give 8-bit or 16-bit pixels")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    wanted = "L" if gray else "RGB"
    if gray and image.mode not in ("L", "1", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == wanted else image.convert(wanted)


def _array_of(image: Image.Image, what: str, *, gray: bool) -> np.ndarray:
    check_pixels(image.height, image.width, what)
    try:
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return _pixels(_flattened(image, what, gray=gray))
    except ImageError:
        raise
    # Pillow's decoders raise whatever their parsers meet: OSError, SyntaxError, ValueError, struct.error, KeyError.
    except Exception as error:
        raise ImageError(f"{what} cannot be decoded: {error}") from error


def _pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image in mode L or RGB, band by band: Pillow needs twice the room of what it copies."""
    channels = len(image.getbands())
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    rows = max(1, BAND_BYTES // (image.width * channels))
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        band = np.asarray(image.crop((0, top, image.width, bottom)))
        pixels[top:bottom] = band.reshape(bottom - top, image.width, channels)
    return pixels


def _from_stream(stream: Any, what: str, *, gray: bool) -> np.ndarray:
    try:
        with _own_pixel_limit():
            image = Image.open(stream, formats=_formats())
    except Image.UnidentifiedImageError:
        known = ", ".join(_formats())
        raise ImageError(f"{what} is in no image format that convserve reads ({known})") from None
    except Exception as error:
        raise ImageError(f"{what} cannot be decoded: {error}") from error
    with image:
        return _array_of(image, what, gray=gray)


def _from_array(array: np.ndarray, *, gray: bool) -> np.ndarray:
    if array.dtype != np.uint8:
        raise ImageError(f"the image array has dtype {array.dtype}; it must be uint8")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"the image array has shape {array.shape}; it must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    check_pixels(array.shape[0], array.shape[1], "the image array")
    if array.shape[2] == (1 if gray else 3):
        return np.ascontiguousarray(array)
    image = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))
    return _array_of(image, "the image array", gray=gray)


def decode(source: ImageSource, *, channels: str = "rgb") -> np.ndarray:
    """Return an image as uint8 (H, W, C), C-contiguous: C is 3, in the order R G B, or 1 for "gray".

    source is a path, encoded bytes, a Pillow image or a uint8 array (H, W) or (H, W, C). channels is
    "rgb", "bgr" or "gray"; "bgr" decodes as "rgb" does, since the order a network wants is applied
    with its values (Preprocess.source_channels). EXIF orientation is applied, transparency lies over
    white, 16-bit gray is scaled to 8. Raises ImageError for what cannot be decoded or has more pixels
    than CONVSERVE_MAX_PIXELS, which the header alone decides; InputError for other channels or sources.
    """
    if channels not in CHANNELS:
        raise InputError(f"channels is {channels!r}; allowed: {', '.join(CHANNELS)}")
    gray = channels == "gray"
    if isinstance(source, np.ndarray):
        return _from_array(source, gray=gray)
    if isinstance(source, Image.Image):
        return _array_of(source, "the image", gray=gray)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_stream(io.BytesIO(source), f"the image of {len(source)} bytes", gray=gray)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"the image is of type {type(source).__name__}; allowed: a path, bytes, a Pillow image or a uint8 array"
        )
    try:
        with Path(source).open("rb") as stream:
            return _from_stream(stream, f"the image '{os.fspath(source)}'", gray=gray)
    except OSError as error:
        raise ImageError(f"the image '{os.fspath(source)}' cannot be read: {error.strerror or error}") from error


def decoding_bytes(source: ImageSource) -> int:
    """Return what decoding and resizing takes at its peak, in bytes, beside the source; 0 for what decode refuses.

    Of encoded bytes it is told by the header: Pillow's pixels, those of each conversion, and the array.
    """
    if isinstance(source, np.ndarray):
        return 0 if source.dtype == np.float32 else 12 * source.shape[0] * (source.shape[1] if source.ndim > 1 else 1)
    if not isinstance(source, (bytes, bytearray, memoryview)):
        return 0
    try:
        with _own_pixel_limit():
            image = Image.open(io.BytesIO(source), formats=_formats())
        with image:
            check_pixels(image.height, image.width, "the image")
            plain = image.mode in ("1", "L", "RGB") and "transparency" not in image.info
            # libwebp and OpenJPEG have planes of their own; a turned image lies beside the first one
            each = 12 if plain and image.format not in ("WEBP", "JPEG2000") else 26
            return (each + 4 * ("exif" in image.info)) * image.height * image.width
    except Exception:
        # whatever is wrong with it, decode says so
        return 0
