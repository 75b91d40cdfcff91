"""Rewrites that put activations and residual sums into the epilogue of the node before them."""

from dataclasses import replace

from convserve.graph.ir import Graph, Node
from convserve.graph.ops import COMBINATIONS
from convserve.graph.rewrite_windows import known_volumes

__all__ = ["fuse_activation", "fuse_residual"]

ACTIVATIONS = {"Relu": "relu"}
TAKE_ACTIVATION = ("Conv", "ConvTranspose", "LocallyConnected", "Affine", *COMBINATIONS)


def fuse_activation(graph: Graph) -> Graph:
    """Let a Conv, Affine or combination apply the activation behind it, where nothing else reads what lies between."""
    readers, shown = graph.readers(), graph.output_tensors()
    fused: set[str] = set()
    nodes = []
    for node in graph.nodes:
        if node.output in fused:
            continue
        behind = readers[node.output]
        alone = len(behind) == 1 and node.output not in shown and behind[0].op in ACTIVATIONS
        if alone and node.op in TAKE_ACTIVATION and not node.attrs["activation"]:
            fused.add(behind[0].output)
            attrs = {**node.attrs, "activation": ACTIVATIONS[behind[0].op]}
            node = node.changed(output=behind[0].output, attrs=attrs)
        nodes.append(node)
    return replace(graph, nodes=nodes) if fused else graph


def fuse_residual(graph: Graph, *, window: tuple[int, int] | None = None) -> Graph:
    """Let a Conv add the other summand of the Add behind it: Conv(x, residual), in the Add's place.

    Both summands must have one size at the window (or both an open one) and the Conv no activation and no
    other reader. Of two such Convs the later one takes the sum.
    """
    if not any(node.op == "Add" for node in graph.nodes):
        return graph
    readers, shown = graph.readers(), graph.output_tensors()
    volumes = known_volumes(graph, window)
    places = {node.output: place for place, node in enumerate(graph.nodes)}
    nodes: list[Node | None] = list(graph.nodes)
    for place, node in enumerate(graph.nodes):
        if node.op != "Add" or len(set(node.inputs)) != 2 or len(node.inputs) != 2 or not volumes:
            continue
        if volumes[node.inputs[0]] != volumes[node.inputs[1]]:
            continue
        candidates = []
        for tensor in node.inputs:
            conv = nodes[places[tensor]] if tensor in places else None
            if conv is not None and _takes_residual(conv) and len(readers[tensor]) == 1 and tensor not in shown:
                candidates.append(places[tensor])
        if not candidates:
            continue
        chosen = max(candidates)
        conv = nodes[chosen]
        assert conv is not None
        residual = next(tensor for tensor in node.inputs if tensor != conv.output)
        attrs = {**conv.attrs, "activation": node.attrs["activation"]}
        nodes[place] = conv.changed(inputs=(*conv.inputs, residual), output=node.output, attrs=attrs)
        nodes[chosen] = None
    kept = [node for node in nodes if node is not None]
    return replace(graph, nodes=kept) if len(kept) < len(nodes) else graph


def _takes_residual(node: Node) -> bool:
    return node.op == "Conv" and len(node.inputs) == 1 and not node.attrs["activation"]
