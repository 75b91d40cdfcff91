"""The bundled LeNet as a convserve graph, from the weights that training found."""

from pathlib import Path

import numpy as np

from convserve.formats.container_writer import write_container
from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.images import Preprocess
from training.digits import FIELD, LABELS

__all__ = ["FC_UNITS", "KERNEL", "MAPS", "digits_graph", "write_network"]

KERNEL = 5
MAPS = (16, 48)
FC_UNITS = 48


def _conv(name: str, tensor: str, weight: np.ndarray, bias: np.ndarray, activation: str) -> Node:
    attrs = {
        "kernel_shape": (weight.shape[2], weight.shape[3]),
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "auto_pad": "NOTSET",
        "group": 1,
        "activation": activation,
    }
    return Node("Conv", name, (tensor,), name, attrs, {"weight": weight, "bias": bias})


def _pool(name: str, tensor: str) -> Node:
    attrs = {
        "kernel_shape": (2, 2),
        "strides": (2, 2),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "auto_pad": "NOTSET",
        "ceil_mode": False,
    }
    return Node("MaxPool", name, (tensor,), name, attrs)


def digits_graph(weights: dict[str, np.ndarray]) -> Graph:
    """Return the network with its fully-connected layers as convolutions and a softmax behind them.

    weights: conv1, conv2 (M, C, 5, 5), fc1, fc2 (outputs, inputs), each with _weight and _bias.
    """
    fc1 = weights["fc1_weight"].reshape(FC_UNITS, MAPS[1], 4, 4)
    fc2 = weights["fc2_weight"].reshape(len(LABELS), FC_UNITS, 1, 1)
    nodes = [
        _conv("conv1", "image", weights["conv1_weight"], weights["conv1_bias"], "relu"),
        _pool("pool1", "conv1"),
        _conv("conv2", "pool1", weights["conv2_weight"], weights["conv2_bias"], "relu"),
        _pool("pool2", "conv2"),
        _conv("fc1", "pool2", fc1, weights["fc1_bias"], "relu"),
        _conv("fc2", "fc1", fc2, weights["fc2_bias"], ""),
        Node("Softmax", "probabilities", ("fc2",), "probabilities"),
    ]
    outputs = [Output("probabilities", "probabilities", (len(LABELS),))]
    return Graph("digits", "image", Volume(1, FIELD, FIELD), nodes, outputs)


def write_network(weights: dict[str, np.ndarray], path: Path) -> None:
    """Write the network with its labels and preprocessing as a native container."""
    preprocess = Preprocess(resize=FIELD, crop=FIELD, channels="gray", scale=1 / 255)
    write_container(path, digits_graph(weights), preprocess=preprocess, labels=LABELS)
