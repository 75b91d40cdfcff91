"""Rewrite that gives the padding of a Pad to the windows behind it, where that keeps what they compute."""

import math
from dataclasses import replace

from convserve.graph.ir import Graph, Node

__all__ = ["fold_pads"]

# results of which no value is below 0, and those that have none where their inputs have none
POSITIVE = ("Relu", "Sigmoid", "Softmax", "Softplus", "Exp", "Abs", "Sqrt", "GlobalLpPool", "LpPool")
KEEPING_SIGN = ("MaxPool", "AveragePool", "Concat", "ChannelShuffle", "Slice", "DepthToSpace", "SpaceToDepth")


def fold_pads(graph: Graph) -> Graph:
    """Drop each Pad that all its readers can do themselves, as pads of their own windows.

    Zeros before a convolution are its own padding; before an LpPool they add nothing, before an AveragePool they are
    what count_include_pad counts, and before a MaxPool they win nothing where no value is below 0. A Pad of minus
    infinity is the padding of a MaxPool.
    """
    if not any(node.op == "Pad" for node in graph.nodes):
        return graph
    producers, shown = graph.producers(), graph.output_tensors()
    nodes: list[Node | None] = list(graph.nodes)
    readers: dict[str, list[int]] = {}
    for place, node in enumerate(graph.nodes):
        for tensor in dict.fromkeys(node.inputs):
            readers.setdefault(tensor, []).append(place)
    folded = False
    for place, pad in reversed(list(enumerate(graph.nodes))):
        if pad.op != "Pad" or pad.output in shown or not _is_frame(pad):
            continue
        behind = [reader for index in readers.get(pad.output, ()) if (reader := nodes[index])]
        if not behind or not all(_takes(reader, pad, producers) for reader in behind):
            continue
        for index, reader in zip(readers[pad.output], behind, strict=True):
            nodes[index] = _padded(reader, pad)
        readers[pad.inputs[0]].remove(place)
        readers[pad.inputs[0]] += readers[pad.output]
        nodes[place], folded = None, True
    return replace(graph, nodes=[node for node in nodes if node]) if folded else graph


def _is_frame(pad: Node) -> bool:
    pads = pad.attrs["pads"]
    return pad.attrs["mode"] == "constant" and min(pads) >= 0 and not (pads[0] or pads[3])


def _summed(node: Node, pad: Node) -> tuple[int, ...]:
    around = pad.attrs["pads"][1:3] + pad.attrs["pads"][4:]
    return tuple(mine + more for mine, more in zip(node.attrs["pads"], around, strict=True))


def _takes(node: Node, pad: Node, producers: dict[str, Node]) -> bool:
    if node.inputs[0] != pad.output or pad.output in node.inputs[1:] or node.attrs.get("auto_pad") != "NOTSET":
        return False
    zeros = pad.attrs["value"] == 0
    if node.op in ("Conv", "LocallyConnected"):
        return zeros
    # a last window that is clipped, or one that has no pixel, is not the same with padding of its own
    if node.op not in ("MaxPool", "AveragePool", "LpPool") or node.attrs["ceil_mode"] or not _all_see(node, pad):
        return False
    if node.op == "MaxPool":
        return pad.attrs["value"] == -math.inf or (zeros and _is_positive(pad.inputs[0], producers))
    return zeros and (node.op == "LpPool" or node.attrs["count_include_pad"] or not any(node.attrs["pads"]))


def _all_see(node: Node, pad: Node) -> bool:
    (down, across), pads = node.attrs["kernel_shape"], _summed(node, pad)
    return node.attrs["dilations"] == (1, 1) and max(pads[0::2]) < down and max(pads[1::2]) < across


def _is_positive(tensor: str, producers: dict[str, Node]) -> bool:
    node = producers.get(tensor)
    if node is None:
        return False
    if node.op in POSITIVE or node.attrs.get("activation") == "relu":
        return True
    if node.op == "Clip":
        return min(node.attrs.get("min", -1.0), node.attrs.get("max", 0.0)) >= 0
    return node.op in KEEPING_SIGN and all(_is_positive(read, producers) for read in node.inputs)


def _padded(node: Node, pad: Node) -> Node:
    attrs = {**node.attrs, "pads": _summed(node, pad)}
    if node.op == "AveragePool":
        attrs["count_include_pad"] = True
    return node.changed(inputs=(pad.inputs[0], *node.inputs[1:]), attrs=attrs)
