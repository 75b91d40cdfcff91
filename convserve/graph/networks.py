"""The networks that are built in, by name: sequential ones in the pattern language, those with branches by code.

All give class scores, before any softmax, and but for "lenet" and "alexnet" are defined as torchvision defines them;
their layers have the names of torchvision's parameters (docs/patterns.md has the table).
"""

import re

from convserve.errors import InputError
from convserve.graph.assembly import Parameters
from convserve.graph.ir import Graph
from convserve.graph.networks_branched import RESIDUAL_NETWORKS, googlenet, resnet
from convserve.graph.patterns import pattern_graph

__all__ = ["NETWORKS", "PATTERNS", "is_network", "network_graph"]


def _vgg(*depths: int, normalized: bool = False) -> str:
    layers = "-> BN -> RELU" if normalized else "-> RELU"
    stages = [f"[CONV3-{min(64 << stage, 512)} {layers}]*{depth} -> POOL2" for stage, depth in enumerate(depths)]
    return f"INPUT[224x224x3] -> {' -> '.join(stages)} -> [FC-4096 -> RELU -> DROPOUT]*2 -> FC-1000"


_VGG = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}

PATTERNS = {
    "lenet": "INPUT[28x28x1] -> [CONV5-20 P0 -> POOL2] -> [CONV5-50 P0 -> POOL2] -> FC-500 -> RELU -> FC-10",
    "alexnet": "INPUT[227x227x3] -> CONV11-96 S4 -> RELU -> LRN5 -> POOL3 S2"
    " -> CONV5-256 G2 -> RELU -> LRN5 -> POOL3 S2"
    " -> CONV3-384 -> RELU -> CONV3-384 G2 -> RELU -> CONV3-256 G2 -> RELU -> POOL3 S2"
    " -> [FC-4096 -> RELU -> DROPOUT]*2 -> FC-1000",
    "alexnet-torchvision": "INPUT[224x224x3] -> CONV11-64 S4 P2 -> RELU -> POOL3 S2 -> CONV5-192 -> RELU -> POOL3 S2"
    " -> CONV3-384 -> RELU -> [CONV3-256 -> RELU]*2 -> POOL3 S2"
    " -> [DROPOUT -> FC-4096 -> RELU]*2 -> FC-1000",
    "zfnet": "INPUT[224x224x3] -> CONV7-96 S2 P1 -> RELU -> POOL3 S2 CEIL -> LRN5"
    " -> CONV5-256 S2 -> RELU -> POOL3 S2 CEIL -> LRN5"
    " -> [CONV3-384 -> RELU]*2 -> CONV3-256 -> RELU -> POOL3 S2"
    " -> [FC-4096 -> RELU -> DROPOUT]*2 -> FC-1000",
    **{name: _vgg(*depths) for name, depths in _VGG.items()},
    **{f"{name}_bn": _vgg(*depths, normalized=True) for name, depths in _VGG.items()},
}
"""The sequential networks that are built in, in the pattern language."""

NETWORKS = (*PATTERNS, "googlenet", *RESIDUAL_NETWORKS)
"""Names of all networks that are built in."""


def is_network(text: str) -> bool:
    """Tell whether a text means a network that is built, not a file: a name of NETWORKS, or a pattern."""
    return text in NETWORKS or re.match(r"\s*INPUT\s*(\[|->)", text, re.IGNORECASE) is not None


def network_graph(text: str, parameters: Parameters, *, fit: str = "floor", classes: int | None = None) -> Graph:
    """Return the graph of a built-in network or of a pattern, not rewritten yet, with parameters from their source.

    classes: how many a built-in network tells apart, if not as many as it was published with; a pattern says it itself.
    Raises InputError for another name, PatternError for a wrong pattern, ShapeError where fit refuses a layer.
    """
    if text in RESIDUAL_NETWORKS:
        return resnet(text, parameters, fit=fit, classes=classes or 1000)
    if text == "googlenet":
        return googlenet(parameters, fit=fit, classes=classes or 1000)
    if text in PATTERNS:
        pattern = PATTERNS[text] if classes is None else re.sub(r"FC-\d+$", f"FC-{classes}", PATTERNS[text])
        return pattern_graph(pattern, parameters, name=text, fit=fit)
    if not is_network(text):
        raise InputError(
            f"{text!r} is no built-in network; there are {', '.join(NETWORKS)}, and patterns such as"
            ' "INPUT[32x32x3] -> [CONV3-32 -> RELU]*2 -> POOL2 -> FC-10"'
        )
    return pattern_graph(text, parameters, fit=fit)
