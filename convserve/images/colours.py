"""Colours for score maps: a scale of steadily growing lightness, and hues for classes, mixed in Oklab."""

import numpy as np

__all__ = ["class_colours", "colour_scale", "from_oklab", "to_oklab"]

# From night blue over violet, red and orange to a pale yellow; lightness grows from each to the next.
_ANCHORS = ((13, 17, 38), (59, 38, 122), (158, 40, 118), (230, 84, 70), (250, 166, 60), (255, 244, 190))

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def to_oklab(colours: np.ndarray) -> np.ndarray:
    """Return sRGB colours, (..., 3) in 0..255, as Oklab lightness, a, b."""
    values = np.asarray(colours, np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """Return Oklab colours, (..., 3), as uint8 sRGB, clipped to what sRGB can show."""
    cube_roots = np.asarray(lab, np.float64) @ np.linalg.inv(_TO_LAB).T
    linear = np.clip(cube_roots**3 @ np.linalg.inv(_TO_LMS).T, 0, 1)
    values = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(values * 255).astype(np.uint8)


def colour_scale(steps: int = 256) -> np.ndarray:
    """Return uint8 (steps, 3): sRGB colours from the lowest to the highest score."""
    anchors = to_oklab(np.array(_ANCHORS))
    # Equal steps of distance in Oklab are equal steps to the eye.
    lengths = np.linalg.norm(np.diff(anchors, axis=0), axis=1)
    places = np.concatenate([[0], np.cumsum(lengths)]) / lengths.sum()
    wanted = np.linspace(0, 1, steps)
    return from_oklab(np.stack([np.interp(wanted, places, anchors[:, axis]) for axis in range(3)], axis=1))


def class_colours(count: int) -> np.ndarray:
    """Return uint8 (count, 3): hues around the circle at one chroma, neighbours apart in lightness too."""
    angle = 2 * np.pi * (np.arange(count) + 0.08) / max(count, 1)
    lightness = np.where(np.arange(count) % 2 == 0, 0.72, 0.82)
    return from_oklab(np.stack([lightness, 0.145 * np.cos(angle), 0.145 * np.sin(angle)], axis=1))
