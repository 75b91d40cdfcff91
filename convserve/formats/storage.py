"""How weights lie in memory: aligned, as float32 or as one of the halves that kernels widen while they read.

float16 is NumPy's. bfloat16, which NumPy lacks, is the upper half of a float32's bits, as uint16.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import DTypeLike

from convserve.graph.ir import Graph, Node

__all__ = [
    "ALIGNMENT",
    "WEIGHT_TYPES",
    "aligned_empty",
    "narrowed",
    "rounding_error",
    "stored_type",
    "weights_of",
    "widened",
]

ALIGNMENT = 64
WEIGHT_TYPES: dict[str, np.dtype] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "bf16": np.dtype("<u2")}
"""The types that weights can be stored as, by the names that users give them."""

_CHUNK = 1 << 18


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """Return an uninitialised C-contiguous array whose first byte lies at a multiple of 64."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    room = np.empty(size + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    return room[begin : begin + size].view(dtype).reshape(shape)


def stored_type(array: np.ndarray) -> str:
    """Return the name in WEIGHT_TYPES of what an array of weights is stored as; KeyError for any other dtype."""
    return _NAMES[array.dtype]


_NAMES = {dtype: name for name, dtype in WEIGHT_TYPES.items()}


def narrowed(array: np.ndarray, weights: str) -> np.ndarray:
    """Return a new aligned array of float32 values stored as `weights`: rounded to nearest, ties to even.

    What lies beyond the type's range becomes infinite; NaN stays NaN.
    """
    values = np.ascontiguousarray(array, np.float32).reshape(-1)
    stored = aligned_empty(array.shape, WEIGHT_TYPES[weights])
    out = stored.reshape(-1)
    for begin in range(0, values.size, _CHUNK):
        part = values[begin : begin + _CHUNK]
        with np.errstate(over="ignore", under="ignore"):
            out[begin : begin + _CHUNK] = _upper_halves(part) if weights == "bf16" else part
    return stored


def _upper_halves(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    nearest = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, nearest).astype(np.uint16)


def widened(array: np.ndarray) -> np.ndarray:
    """Return stored weights as float32, exactly; what is float32 already as it is."""
    if stored_type(array) == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def weights_of(graph: Graph) -> str:
    """Return what a packed graph's panels are stored as: "fp32", "fp16", "bf16", or "mixed"."""
    found = {stored_type(node.params["panels"]) for node in graph.nodes if "panels" in node.params}
    return found.pop() if len(found) == 1 else "mixed" if found else "fp32"


def rounding_error(exact: Iterable[Node], stored: Iterable[Node]) -> tuple[float, float]:
    """Return how far the panels of a graph's packed nodes are from those of another's, of the same layers.

    The largest difference of a weight, and the root of the mean square of all over that of the exact weights.
    """
    largest = total = size = 0.0
    for node, other in zip(exact, stored, strict=True):
        if "panels" not in node.params:
            continue
        values, found = node.params["panels"].reshape(-1), other.params["panels"].reshape(-1)
        for begin in range(0, values.size, _CHUNK):
            before = widened(values[begin : begin + _CHUNK]).astype(np.float64)
            difference = widened(found[begin : begin + _CHUNK]) - before
            largest = max(largest, float(np.abs(difference).max()))
            total += float(difference @ difference)
            size += float(before @ before)
    return largest, math.sqrt(total / size) if size else 0.0
