"""Images in and pictures out: decoding, preprocessing, heat maps."""

from convserve.images.decode import decode
from convserve.images.heatmap import argmax_map, heat_map
from convserve.images.preprocess import Preprocess

__all__ = ["Preprocess", "argmax_map", "decode", "heat_map"]
