"""Rewrite of transposed convolutions: a convolution for each phase of the strides, spread over the pixels."""

from dataclasses import replace

import numpy as np

from convserve.graph.ir import Graph, Node
from convserve.graph.transposed import Phase, phases

__all__ = ["lower_conv_transpose"]


def lower_conv_transpose(graph: Graph) -> Graph:
    """Turn each ConvTranspose into Conv nodes, a Concat, a DepthToSpace and a Slice, as far as it needs them."""
    if not any(node.op == "ConvTranspose" for node in graph.nodes):
        return graph
    nodes = []
    for node in graph.nodes:
        nodes += _lowered(node) if node.op == "ConvTranspose" else [node]
    return replace(graph, nodes=nodes)


def _lowered(node: Node) -> list[Node]:
    rows, columns = phases(node, 0), phases(node, 1)
    strides = len(rows.phases), len(columns.phases)
    nodes: list[Node] = []
    parts: list[str] = []
    for down, vertical in enumerate(rows.phases):
        for across, horizontal in enumerate(columns.phases):
            name = f"{node.output}/phase{down},{across}"
            nodes += _phase_nodes(node, vertical, horizontal, name)
            parts.append(name)
    last = parts[0]
    if len(parts) > 1:
        joined, last = f"{node.output}/phases", f"{node.output}/spread"
        nodes.append(Node("Concat", joined, tuple(parts), joined))
        nodes.append(Node("DepthToSpace", last, (joined,), last, {"blocksize": strides, "mode": "DCR"}))
    if any((rows.cut, rows.extra, columns.cut, columns.extra)):
        attrs = {"starts": (0, rows.cut, columns.cut), "ends": (0, rows.extra, columns.extra), "steps": (1, 1, 1)}
        nodes.append(Node("Slice", node.name, (last,), node.output, attrs))
    else:
        nodes[-1] = nodes[-1].changed(name=node.name, output=node.output)
    return nodes


def _phase_nodes(node: Node, vertical: Phase, horizontal: Phase, name: str) -> list[Node]:
    group, activation = node.attrs["group"], node.attrs["activation"]
    weight, bias = node.params["weight"], node.params["bias"]
    pads = (vertical.pad_begin, horizontal.pad_begin, vertical.pad_end, horizontal.pad_end)
    if not vertical.taps or not horizontal.taps:
        return _bias_nodes(node, vertical, horizontal, name)
    taps = weight[:, :, vertical.taps][:, :, :, horizontal.taps]
    # from (channels, filters of a group, ...) to (filters, channels of a group, ...)
    taps = taps.reshape(group, -1, *taps.shape[1:]).swapaxes(1, 2)
    attrs = {
        "kernel_shape": (len(vertical.taps), len(horizontal.taps)),
        "strides": (1, 1),
        "pads": pads,
        "dilations": (vertical.dilation, horizontal.dilation),
        "group": group,
        "auto_pad": "NOTSET",
        "activation": activation,
    }
    params = {"weight": np.ascontiguousarray(taps.reshape(-1, *taps.shape[2:])), "bias": bias}
    return [Node("Conv", name, node.inputs, name, attrs, params)]


def _bias_nodes(node: Node, vertical: Phase, horizontal: Phase, name: str) -> list[Node]:
    """Return what gives the bias wherever no tap reaches: as many zeros as there are filters, and an Affine."""
    filters, channels = len(node.params["bias"]), node.params["weight"].shape[0]
    pads = (filters, 0, 0, -channels, vertical.growth, horizontal.growth)
    params = {"scale": np.ones(filters, np.float32), "shift": node.params["bias"]}
    zeros = f"{name}/zeros"
    return [
        Node("Pad", zeros, node.inputs, zeros, {"pads": pads, "mode": "constant", "value": 0.0}),
        Node("Affine", name, (zeros,), name, {"activation": node.attrs["activation"]}, params),
    ]
