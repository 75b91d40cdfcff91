"""How an image's scores are averaged: over scales, over its mirror image, and before or after the softmax."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.errors import InputError

__all__ = ["AVERAGES", "Averaging"]

AVERAGES = ("probabilities", "logits")
_MOST_SCALES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """What a classification is the mean of: every position of the image at each scale, as it is and mirrored.

    scales: lengths of the short side in pixels; None for the window alone, as preprocessing crops it. flip: the mirror
    image counts as much. average: "probabilities", after the softmax (one is added where the network has none), or
    "logits", before it. The mean is one over the positions of a pass, then over the passes, which all count alike.
    Raises InputError for values outside their range.
    """

    scales: Sequence[int] | None = None
    flip: bool = False
    average: str | None = None

    def __post_init__(self) -> None:
        scales: Any = self.scales
        if scales is not None:
            if not isinstance(scales, list | tuple) or not 1 <= len(scales) <= _MOST_SCALES:
                raise InputError(f"scales is {scales!r}; it must be a list of 1 to {_MOST_SCALES} lengths in pixels")
            for scale in scales:
                if not isinstance(scale, int | np.integer) or isinstance(scale, bool) or not 1 <= scale < 1 << 20:
                    raise InputError(f"scales has {scale!r}; a scale is a whole number of pixels from 1 to {1 << 20}")
            object.__setattr__(self, "scales", tuple(map(int, scales)))
        if not isinstance(self.flip, bool | np.bool_):
            raise InputError(f"flip is {self.flip!r}; it must be True or False")
        object.__setattr__(self, "flip", bool(self.flip))
        if self.average is not None and self.average not in AVERAGES:
            raise InputError(f"average is {self.average!r}; allowed: {', '.join(AVERAGES)}")
        if self.average is not None and self.passes == 1 and scales is None:
            raise InputError(f"average is {self.average!r}, but there is one pass: give scales=[...] or flip=True too")

    @property
    def asked(self) -> bool:
        """Whether anything is averaged."""
        return self.scales is not None or self.flip

    @property
    def passes(self) -> int:
        """Passes over each image."""
        return len(self.scales or (0,)) * (1 + self.flip)

    @property
    def scores(self) -> str:
        """What of the network is averaged: "softmax" or "logits"."""
        return "logits" if self.average == "logits" else "softmax"
