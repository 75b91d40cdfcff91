"""What a score map keeps of its scores: the best classes of each position, softmax or raw, and the type of a number."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.errors import InputError

__all__ = ["DTYPES", "KINDS", "ArraySpec", "Reduction", "checked_reduction"]

KINDS = ("raw", "softmax")
DTYPES = ("float32", "float16", "uint8")

ArraySpec = tuple[str, np.dtype[Any], tuple[int, ...]]
"""(name, dtype, shape of one position) of an array that a reduced map has."""

# Positions are sorted in parts of so many values, so that what sorting takes does not grow with the map.
_SORTED_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """What is kept of the scores of each position, computed as rows leave; every row by itself, so bits never differ.

    scores: "raw", what the network gives, or "softmax" over all its classes (of a network that ends in a softmax
    already, what it gives). top: the best so many of the classes kept, best first, with the class index of each.
    argmax: the class index of the best alone. dtype: "float32"; "float16", rounded to the nearest, infinite above
    65504; or "uint8", round(255 * (score - low) / (high - low)), clipped, of value_range (low, high): by default
    (0, 1) for softmax, and to be given for raw scores.

    Of equal scores that with the class earlier in `classes` is better. NaN is better than any number, so that it is
    seen; as uint8 it is 0. Raises InputError for values outside their range.
    """

    top: int | None = None
    argmax: bool = False
    scores: str = "raw"
    dtype: str = "float32"
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        top: Any = self.top
        if top is not None and (not isinstance(top, int | np.integer) or isinstance(top, bool) or top < 1):
            raise InputError(f"top is {top!r}; it must be a whole number from 1, or None for all classes")
        if not isinstance(self.argmax, bool | np.bool_):
            raise InputError(f"argmax is {self.argmax!r}; it must be True or False")
        if self.scores not in KINDS:
            raise InputError(f"scores is {self.scores!r}; allowed: {', '.join(KINDS)}")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.argmax and (top is not None or self.dtype != "float32" or self.value_range is not None):
            raise InputError("argmax keeps no scores; it cannot be given together with top, dtype or value_range")
        object.__setattr__(self, "top", None if top is None else int(top))
        object.__setattr__(self, "argmax", bool(self.argmax))
        object.__setattr__(self, "value_range", self._checked_range())

    def _checked_range(self) -> tuple[float, float] | None:
        ends: Any = self.value_range
        if self.dtype != "uint8":
            if ends is not None:
                raise InputError(f"value_range goes with dtype uint8; dtype is {self.dtype}")
            return None
        if ends is None:
            if self.scores == "raw":
                raise InputError('dtype is uint8; raw scores have no range of their own: give value_range=(low, high)')
            return 0.0, 1.0
        numbers = isinstance(ends, tuple | list) and all(isinstance(end, int | float | np.number) for end in ends)
        if not numbers or len(ends) != 2 or not all(map(math.isfinite, ends)) or not ends[0] < ends[1]:
            raise InputError(f"value_range is {ends!r}; it must be two finite numbers, the lower first")
        return float(ends[0]), float(ends[1])

    @property
    def reduces(self) -> bool:
        """Whether anything is left to do to the scores that a network, or its softmax, gives."""
        return self.argmax or self.top is not None or self.dtype != "float32"

    def arrays(self, classes: int) -> list[ArraySpec]:
        """Return the arrays that a map of so many kept classes has: "scores", "indices" or both, in this order.

        A map is (rows, cols, *shape of one position). top is cut to the classes that there are.
        """
        if self.argmax:
            return [("indices", np.dtype(np.int32), ())]
        kept = classes if self.top is None else min(self.top, classes)
        specs: list[ArraySpec] = [("scores", np.dtype(self.dtype), (kept,))]
        if self.top is not None:
            specs.append(("indices", np.dtype(np.int32), (kept,)))
        return specs

    def bytes_of(self, positions: int, classes: int) -> int:
        """Return what the arrays of so many positions take, in bytes."""
        return positions * sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in self.arrays(classes))

    def apply(self, scores: np.ndarray, classes: list[int]) -> dict[str, np.ndarray]:
        """Return the arrays of a block of rows, by name, of its float32 scores (rows, cols, classes).

        classes: the class index behind each entry of the last axis. The scores stay as they are, and may be viewed.
        """
        if self.argmax:
            best = np.argmax(scores, axis=2)
            return {"indices": np.asarray(classes, np.int32)[best]}
        if self.top is None:
            return {"scores": self._converted(scores)}
        order = _best_first(scores, min(self.top, len(classes)))
        values = np.take_along_axis(scores, order, axis=2)
        return {"scores": self._converted(values), "indices": np.asarray(classes, np.int32)[order]}

    def _converted(self, values: np.ndarray) -> np.ndarray:
        if self.value_range is None:
            with np.errstate(over="ignore"):
                return values.astype(self.dtype, copy=False)
        low, high = self.value_range
        shares = (values.astype(np.float64) - low) / (high - low)
        return np.rint(np.nan_to_num(shares.clip(0, 1)) * 255).astype(np.uint8)


def _best_first(scores: np.ndarray, count: int) -> np.ndarray:
    # The places, (rows, cols, count), of the highest scores. Each score becomes a key of its own: its order above,
    # its place, counted from the end, below; so no two keys are equal, and any way to sort gives the same.
    rows, cols, classes = scores.shape
    flat = np.ascontiguousarray(scores).reshape(rows * cols, classes)
    places = np.empty((rows * cols, count), np.int64)
    below = np.arange(classes - 1, -1, -1, dtype=np.int64)
    step = max(1, _SORTED_AT_ONCE // classes)
    for begin in range(0, len(flat), step):
        part = flat[begin : begin + step]
        # -0.0 becomes 0.0, and a NaN the largest there is
        bits = np.where(np.isnan(part), np.float32(np.nan), part + np.float32(0)).view(np.int32)
        ordered = np.where(np.isnan(part), np.int32(2**31 - 1), bits ^ ((bits >> 31) & np.int32(2**31 - 1)))
        keys = (ordered.astype(np.int64) << 32) + below
        keys.partition(classes - count, axis=1)
        best = np.sort(keys[:, classes - count :], axis=1)[:, ::-1]
        places[begin : begin + step] = classes - 1 - (best & 0xFFFFFFFF)
    return places.reshape(rows, cols, count)


def checked_reduction(reduce: Any) -> Reduction:
    """Return a caller's reduction, by default one that keeps everything; InputError for anything else."""
    if reduce is None:
        return Reduction()
    if not isinstance(reduce, Reduction):
        raise InputError(f"reduce is {reduce!r}; it must be a convserve.Reduction, such as Reduction(top=5)")
    return reduce
