"""Where an image's pixels lie on the ground, as the tags of a GeoTIFF tell it, and where the scores of its map lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["GeoReference"]

PIXEL_SCALE, TIEPOINT, TRANSFORMATION = 33550, 33922, 34264
"""Tags of the transform: ModelPixelScale, ModelTiepoint, ModelTransformation."""

GEO_KEYS = (34735, 34736, 34737)
"""GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams: the coordinate system, carried over as it is."""

_RASTER_TYPE, _POINT = 1025, 2

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class GeoReference:
    """matrix: float64 (4, 4), from (column, row, 0, 1) of the raster to ground coordinates; keys: the tags GEO_KEYS.

    Raster coordinates count from the corner of the first pixel, or, where the keys say PixelIsPoint, from its centre.
    """

    matrix: np.ndarray
    keys: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def from_tags(cls, tags: Mapping[int, Any]) -> "GeoReference | None":
        """Return what the values of a TIFF's tags say; None where they give no transform, or one of many points."""
        keys = {code: tags[code] for code in GEO_KEYS if code in tags}
        if TRANSFORMATION in tags and len(tags[TRANSFORMATION]) == 16:
            return cls(np.array(tags[TRANSFORMATION], np.float64).reshape(4, 4), keys)
        scale, points = tags.get(PIXEL_SCALE, ()), tags.get(TIEPOINT, ())
        if len(scale) != 3 or len(points) != 6:
            return None
        matrix = np.diag([scale[0], -scale[1], scale[2], 1.0])
        matrix[:3, 3] = np.array(points[3:]) - matrix[:3, :3] @ np.array(points[:3])
        return cls(matrix, keys)

    @property
    def is_point(self) -> bool:
        """Whether raster coordinates count from pixels' centres."""
        directory = self.keys.get(GEO_KEYS[0], ())
        return any(
            (directory[at], directory[at + 3]) == (_RASTER_TYPE, _POINT) for at in range(4, len(directory) - 3, 4)
        )

    def of_map(self, stride: Pair, window: Pair, offset: Pair) -> "GeoReference":
        """Return where the positions of a score map lie, (vertical, horizontal) pixels of the image as in Geometry.

        Each becomes a pixel as large as the stride, around the centre of its window.
        """
        # the position (column, row) of a raster, in coordinates of the other: at * stride + begin
        at = 0.5 if self.is_point else 0.0
        inner = np.eye(4)
        for axis, side in enumerate((1, 0)):
            corner = offset[side] + (window[side] - stride[side]) / 2
            inner[axis, axis] = stride[side]
            inner[axis, 3] = corner + at * stride[side] - at
        return GeoReference(self.matrix @ inner, self.keys)

    def tags(self) -> list[tuple[int, int, int, Any, bool]]:
        """Return the tags (code, type, count, value, only once) of a TIFF that lies there."""
        shear = self.matrix - np.diag(np.diag(self.matrix))
        shear[:3, 3] = 0
        found: list[tuple[int, Any]]
        if not shear[:3].any() and self.matrix[0, 0] > 0 > self.matrix[1, 1]:
            scale = (self.matrix[0, 0], -self.matrix[1, 1], self.matrix[2, 2])
            found = [(PIXEL_SCALE, scale), (TIEPOINT, (0.0, 0.0, 0.0, *self.matrix[:3, 3]))]
        else:
            found = [(TRANSFORMATION, tuple(self.matrix.ravel()))]
        found += sorted(self.keys.items())
        return [_tag(code, value) for code, value in found]


def _tag(code: int, value: Any) -> tuple[int, int, int, Any, bool]:
    # TIFF's types: 2 text, 3 SHORT, 12 DOUBLE
    if isinstance(value, str):
        return code, 2, len(value) + 1, value, True
    numbers = tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else (value,)
    if code == GEO_KEYS[0]:
        return code, 3, len(numbers), tuple(int(number) for number in numbers), True
    return code, 12, len(numbers), tuple(float(number) for number in numbers), True
