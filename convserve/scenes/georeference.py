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
    """matrix: float64 (4, 4), from (column, row, 0, 1) of the raster to ground coordinates; None where points tell.

    points: float64 (n, 6), (column, row, 0) of the raster and where on the ground each lies; none beside a matrix.
    keys: the tags GEO_KEYS. Raster coordinates count from the corner of the first pixel, or, where the keys say
    PixelIsPoint, from its centre.
    """

    matrix: np.ndarray | None
    keys: dict[int, Any] = field(default_factory=dict)
    points: np.ndarray = field(default_factory=lambda: np.empty((0, 6)))

    @classmethod
    def from_tags(cls, tags: Mapping[int, Any]) -> "GeoReference | None":
        """Return what the values of a TIFF's tags say; None where they give neither a transform nor points."""
        keys = {code: tags[code] for code in GEO_KEYS if code in tags}
        if TRANSFORMATION in tags and len(tags[TRANSFORMATION]) == 16:
            return cls(np.array(tags[TRANSFORMATION], np.float64).reshape(4, 4), keys)
        scale, points = tags.get(PIXEL_SCALE, ()), tags.get(TIEPOINT, ())
        if not scale and len(points) > 6 and len(points) % 6 == 0:
            return cls(None, keys, np.array(points, np.float64).reshape(-1, 6))
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
        if self.matrix is not None:
            return GeoReference(self.matrix @ inner, self.keys)
        points = self.points.copy()
        points[:, :2] = (points[:, :2] - inner[:2, 3]) / np.diag(inner)[:2]
        return GeoReference(None, self.keys, points)

    def to_dict(self) -> dict[str, Any]:
        """Return the matrix as "transform", or the points as "points", as plain data."""
        return {"points": self.points.tolist()} if self.matrix is None else {"transform": self.matrix.tolist()}

    def tags(self) -> list[tuple[int, int, int, Any, bool]]:
        """Return the tags (code, type, count, value, only once) of a TIFF that lies there."""
        found: list[tuple[int, Any]]
        if self.matrix is None:
            found = [(TIEPOINT, tuple(self.points.ravel())), *sorted(self.keys.items())]
            return [_tag(code, value) for code, value in found]
        shear = self.matrix - np.diag(np.diag(self.matrix))
        shear[:3, 3] = 0
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
