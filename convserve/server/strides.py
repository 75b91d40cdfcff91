"""Score maps at another stride than the network's: which positions, and what of them sees padding."""

import math
from dataclasses import dataclass, replace

from convserve.errors import InputError
from convserve.results import Geometry

__all__ = ["MOST_PASSES", "Strides", "restrided", "strides_for"]

MOST_PASSES = 64
"""Shifted passes that one request may run in step; each has an arena of its own."""


@dataclass(frozen=True, slots=True)
class Strides:
    """How a wanted stride comes from the network's, (vertical, horizontal).

    pixels: between neighbouring positions of the map; finer: shifted passes that are merged; thin: every so many
    positions of the network that are kept.
    """

    pixels: tuple[int, int]
    finer: tuple[int, int]
    thin: tuple[int, int]

    @property
    def passes(self) -> int:
        """Passes that run in step."""
        return self.finer[0] * self.finer[1]


def strides_for(wanted: tuple[int, int] | None, own: tuple[int, int]) -> Strides:
    """Return how a stride is reached; InputError where it neither divides the network's nor is a multiple of it."""
    pixels = wanted or own
    if min(pixels) < 1 or any(step % base and base % step for step, base in zip(pixels, own, strict=True)):
        raise InputError(f"the stride is {pixels}; it must divide the network's, {own}, or be a multiple of it")
    finer = tuple(max(1, base // step) for step, base in zip(pixels, own, strict=True))
    thin = tuple(max(1, step // base) for step, base in zip(pixels, own, strict=True))
    strides = Strides(pixels, (finer[0], finer[1]), (thin[0], thin[1]))
    if strides.passes > MOST_PASSES:
        raise InputError(f"the stride is {pixels}; it takes {strides.passes} shifted passes, of {MOST_PASSES} at most")
    return strides


def restrided(geometry: Geometry, stride: tuple[int, int], height: int, width: int) -> Geometry:
    """Return the geometry of a map over the same image, of height x width pixels, at another stride.

    A position that is a part of the ring at one stride is one at the other: rings grow to whole positions.
    """
    own, window = geometry.stride, geometry.window
    if stride == own:
        return geometry
    rows, cols = (height - window[0]) // stride[0] + 1, (width - window[1]) // stride[1] + 1
    top, left, bottom, right = geometry.ring
    ring = (
        min(rows, math.ceil(top * own[0] / stride[0])),
        min(cols, math.ceil(left * own[1] / stride[1])),
        min(rows, math.ceil(bottom * own[0] / stride[0])),
        min(cols, math.ceil(right * own[1] / stride[1])),
    )
    exactness = geometry.exactness
    if exactness != "exact":
        inside = ring[0] + ring[2] < rows and ring[1] + ring[3] < cols
        exactness = "interior-exact" if inside else "padded"
    return replace(geometry, rows=rows, cols=cols, stride=stride, ring=ring, exactness=exactness)
