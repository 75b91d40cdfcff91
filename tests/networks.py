"""The networks that tests name: the onnx package's light models, VGG-16, and the trained ones of the shared data."""

from functools import cache
from pathlib import Path

import onnx
from builder import vgg16
from conftest import SHARED_DATA

from convserve.formats.onnx import load_onnx
from convserve.graph.ir import Graph
from convserve.graph.rewrites import rewrite

__all__ = ["LIGHT", "TRAINED", "light_path", "network"]

LIGHT = {
    "bvlc_alexnet": "AlexNet",
    "densenet121": "DenseNet-121",
    "inception_v1": "GoogLeNet",
    "inception_v2": "Inception v2",
    "resnet50": "ResNet-50",
    "shufflenet": "ShuffleNet",
    "squeezenet": "SqueezeNet",
    "vgg19": "VGG-19",
    "zfnet512": "ZFNet-512",
}
TRAINED = {
    "lenet": "lenet/lenet.onnx",
    "mnist": "mnist/mnist_ort.onnx",
    "cifar10_quick": "cifar10/cifar10_quick.onnx",
    "resnet20": "cifar10/resnet20.onnx",
    "squeezenet1.1": "squeezenet/squeezenet1.1.onnx",
}


def light_path(name: str) -> Path:
    """Where the onnx package keeps a light model."""
    return Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"


@cache
def network(name: str) -> Graph:
    """Return a named network as the engine gets it, rewritten but not packed; VGG-16 and light ones without weights."""
    if name == "vgg16":
        return rewrite(vgg16(), window=None)
    path = light_path(name) if name in LIGHT else SHARED_DATA / TRAINED[name]
    return rewrite(load_onnx(str(path)), window=None)
