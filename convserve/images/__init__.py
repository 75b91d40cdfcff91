"""Images in and pictures out: decoding, preprocessing, pictures of score maps."""

from convserve.images.decode import ImageSource, decode, decoding_bytes
from convserve.images.heatmap import argmax_map, heat_map
from convserve.images.pictures import draw_best, draw_map
from convserve.images.preprocess import Preprocess

__all__ = ["ImageSource", "Preprocess", "argmax_map", "decode", "decoding_bytes", "draw_best", "draw_map", "heat_map"]
