"""From an image's bytes to a network's input: resize, crop, channel order, scale, mean and standard deviation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from convserve.errors import InputError, ModelFormatError, ShapeError
from convserve.images.decode import CHANNELS, check_pixels

__all__ = ["Preprocess"]

_LARGEST_SIDE = 1 << 20
_FIELDS = ("resize", "crop", "channels", "scale", "mean", "std")


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked_size(name: str, value: Any) -> int | tuple[int, int] | None:
    if value is None:
        return None
    is_pair = isinstance(value, (list, tuple))
    sides = tuple(value) if is_pair else (value,)
    if len(sides) != (2 if is_pair else 1) or not all(_is_whole(side) and 1 <= side <= _LARGEST_SIDE for side in sides):
        raise InputError(
            f"{name} is {value!r}; allowed: a whole number from 1 to {_LARGEST_SIDE}, (height, width) of such, or None"
        )
    return (int(sides[0]), int(sides[1])) if is_pair else int(sides[0])


def _checked_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"{name} is {value!r}; it must be a number")
    if not math.isfinite(value):
        raise InputError(f"{name} is {value!r}; it must be finite")
    return float(value)


def _checked_per_channel(name: str, value: Any, channels: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        value = value.tolist()
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * channels
    if len(numbers) != channels:
        raise InputError(f"{name} has {len(numbers)} values, but the network reads {channels} channel(s)")
    return tuple(_checked_number(name, number) for number in numbers)


def _checked_mean_image(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[2] != channels or 0 in image.shape:
        raise InputError(f"the per-pixel mean has shape {image.shape}; it must be (height, width, {channels})")
    if image.dtype.kind not in "fiu" or not np.isfinite(image).all():
        raise InputError("the per-pixel mean must hold finite numbers")
    copy = np.array(image, np.float32, order="C")
    copy.flags.writeable = False
    return copy


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, slots=True, eq=False)
class Preprocess:
    """What is done to an image before the network sees it: value = (byte * scale - mean) / std.

    resize: the short side, in pixels, or (height, width); crop: a centred square or (height, width);
    channels: "rgb", "bgr" or "gray", the order the network reads; mean, std: one number, or one for each
    channel in the network's order, on the scaled range; mean may also be an array (height, width,
    channels), a mean per pixel, which cannot slide over larger images. Raises InputError for values
    outside their range.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    channels: str = "rgb"
    scale: float = 1.0
    mean: float | tuple[float, ...] | np.ndarray | None = None
    std: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.channels, str) or self.channels not in CHANNELS:
            raise InputError(f"channels is {self.channels!r}; allowed: {', '.join(CHANNELS)}")
        count = CHANNELS[self.channels]
        mean: np.ndarray | tuple[float, ...] | None
        if isinstance(self.mean, np.ndarray) and self.mean.ndim == 3:
            mean = _checked_mean_image(self.mean, count)
        else:
            mean = _checked_per_channel("mean", self.mean, count)
        std = _checked_per_channel("std", self.std, count)
        if std is not None and min(std) <= 0:
            raise InputError(f"std is {self.std!r}; each value must be above 0")
        checked = {
            "resize": _checked_size("resize", self.resize),
            "crop": _checked_size("crop", self.crop),
            "scale": _checked_number("scale", self.scale),
            "mean": mean,
            "std": std,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Preprocess):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _FIELDS)

    def __hash__(self) -> int:
        mean = self.mean.tobytes() if isinstance(self.mean, np.ndarray) else self.mean
        return hash((self.resize, self.crop, self.channels, self.scale, mean, self.std))

    @property
    def channel_count(self) -> int:
        """Channels of the network's input: 1 for "gray", else 3."""
        return CHANNELS[self.channels]

    @property
    def slides(self) -> bool:
        """Whether each value depends on its byte and channel alone, not on its place in the window."""
        return not isinstance(self.mean, np.ndarray)

    def source_channels(self) -> tuple[int, ...]:
        """Return, for each channel of the network, the channel of the decoded image that it reads."""
        return {"rgb": (0, 1, 2), "bgr": (2, 1, 0), "gray": (0,)}[self.channels]

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return a decoded image, uint8 (H, W, C), resized (bilinear, antialiased) and cropped, as uint8.

        Raises ShapeError where the crop is larger than the image, ImageError where resizing
        would make more pixels than CONVSERVE_MAX_PIXELS.
        """
        self._check_image(image)
        image = self._resized(image)
        if self.crop is None:
            return image
        height, width = _sides(self.crop)
        if height > image.shape[0] or width > image.shape[1]:
            raise ShapeError(
                f"the image has {image.shape[0]}x{image.shape[1]} pixels before the crop; "
                f"it must have at least the crop's {height}x{width}"
            )
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return np.ascontiguousarray(image[top : top + height, left : left + width])

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if self.resize is None:
            return image
        if isinstance(self.resize, int):
            short = min(height, width)
            size = (max(1, height * self.resize // short), max(1, width * self.resize // short))
        else:
            size = self.resize
        if size == (height, width):
            return image
        check_pixels(*size, f"the resized image (from {height}x{width})")
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        return np.ascontiguousarray(resized.reshape(*size, -1))

    def table(self) -> np.ndarray:
        """Return the value of each byte, float32 (C, 256), C the network's channels in its order.

        Computed in float64 and rounded once. Raises InputError for a mean per pixel.
        """
        if isinstance(self.mean, np.ndarray):
            raise InputError("a per-pixel mean has no table of values: it depends on the place in the window")
        mean = np.zeros(self.channel_count) if self.mean is None else np.array(self.mean, np.float64)
        std = np.ones(self.channel_count) if self.std is None else np.array(self.std, np.float64)
        scaled = np.arange(256, dtype=np.float64) * self.scale
        return ((scaled - mean[:, None]) / std[:, None]).astype(np.float32)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the network's input, float32 (1, C, H, W), of a decoded image, uint8 (H, W, C), not resized.

        Raises ShapeError where a mean per pixel has another height or width than the image.
        """
        self._check_image(image)
        planes = image[:, :, self.source_channels()].transpose(2, 0, 1)
        if not isinstance(self.mean, np.ndarray):
            table = self.table()
            return np.stack([table[channel][plane] for channel, plane in enumerate(planes)])[None]
        if self.mean.shape[:2] != image.shape[:2]:
            raise ShapeError(
                f"the image has {image.shape[0]}x{image.shape[1]} pixels, "
                f"but the per-pixel mean has {self.mean.shape[0]}x{self.mean.shape[1]}"
            )
        std = np.ones(self.channel_count) if self.std is None else np.array(self.std, np.float64)
        values = planes * self.scale - self.mean.transpose(2, 0, 1).astype(np.float64)
        return np.ascontiguousarray((values / std[:, None, None])[None], np.float32)

    def _check_image(self, image: np.ndarray) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channel_count or 0 in image.shape:
            raise ShapeError(
                f"the image is {image.dtype} of shape {image.shape}; "
                f"it must be uint8 (height, width, {self.channel_count}), as decode gives it"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; only a per-pixel mean stays a float32 array (H, W, C)."""
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in _FIELDS}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocess":
        """Return the Preprocess of what to_dict gave. Raises ModelFormatError for other names or values."""
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown:
            raise ModelFormatError(
                f"the preprocessing has the unknown entry {unknown[0]!r}; known: {', '.join(_FIELDS)}"
            )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        try:
            return cls(**values)
        except InputError as error:
            raise ModelFormatError(f"the preprocessing is wrong: {error}") from error
