"""The table of layers: Caffe's types, and the function that writes each into the graph."""

from collections.abc import Callable

from convserve.formats.caffe.context import Context
from convserve.formats.caffe.layer import Layer
from convserve.formats.caffe.layers_shapes import SHAPES
from convserve.formats.caffe.layers_values import VALUES
from convserve.formats.caffe.layers_windows import WINDOWS
from convserve.formats.views import View

__all__ = ["LAYERS", "SOURCES", "TRAINING"]

LAYERS: dict[str, Callable[[Context, Layer], View | list[View]]] = {**WINDOWS, **VALUES, **SHAPES}
"""What runs, by type."""

SOURCES = (
    "AnnotatedData",
    "Data",
    "DummyData",
    "HDF5Data",
    "ImageData",
    "MemoryData",
    "WindowData",
)
"""Layers that feed the images of a training."""

TRAINING = (
    "Accuracy",
    "ContrastiveLoss",
    "EuclideanLoss",
    "HDF5Output",
    "HingeLoss",
    "InfogainLoss",
    "MultinomialLogisticLoss",
    "SigmoidCrossEntropyLoss",
    "SoftmaxWithLoss",
)
"""Layers that measure a network while it is trained; it runs without them."""
