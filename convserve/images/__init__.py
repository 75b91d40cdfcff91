"""Images in and pictures out: decoding, preprocessing, pictures of score maps."""

from convserve.images.decode import decode
from convserve.images.heatmap import argmax_map, heat_map
from convserve.images.pictures import draw_best, draw_map
from convserve.images.preprocess import Preprocess

__all__ = ["Preprocess", "argmax_map", "decode", "draw_best", "draw_map", "heat_map"]
