"""Which algorithm runs a convolution: a fixed rule of the layer's shape at the network's own window."""

from dataclasses import replace

from convserve.formats.packing import is_winograd, pack_winograd, unpack_node
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import infer_volumes, weight_shape

__all__ = ["ALGORITHMS", "choose_algorithms", "takes_winograd"]

ALGORITHMS = ("auto", "gemm")

# Measured: below these the transforms cost what the saved products bring.
FEWEST_CHANNELS = 64
SMALLEST_SIDE = 14


def takes_winograd(node: Node, out: Volume) -> bool:
    """Whether "auto" runs a node as Winograd's F(4x4, 3x3): 3x3, stride 1, 64 channels in and out, 14x14 outputs.

    Never a matter of the machine, the image, the budget, the batch, the threads or the bands, since its sums
    differ from the GEMM's in their last bits.
    """
    if node.op != "Conv" or out.height is None or out.width is None or node.attrs["auto_pad"] != "NOTSET":
        return False
    outputs, channels, kernel_h, kernel_w = weight_shape(node)
    attrs = node.attrs
    plain = attrs["group"] == 1 and tuple(attrs["strides"]) == (1, 1) and tuple(attrs["dilations"]) == (1, 1)
    large = min(outputs, channels) >= FEWEST_CHANNELS and min(out.height, out.width) >= SMALLEST_SIDE
    return plain and large and (kernel_h, kernel_w) == (3, 3)


def choose_algorithms(graph: Graph, algorithm: str) -> Graph:
    """Return a packed graph whose nodes have what the algorithm runs them with: "auto" or "gemm".

    A node that already has transformed weights (from a container) keeps them under "auto".
    """
    height, width = graph.input_volume.height, graph.input_volume.width
    if algorithm == "gemm":
        return replace(graph, nodes=[_without_winograd(node) for node in graph.nodes])
    if height is None or width is None:
        return graph
    volumes = infer_volumes(graph)
    nodes = [
        _with_winograd(node) if takes_winograd(node, volumes[node.output]) and not is_winograd(node) else node
        for node in graph.nodes
    ]
    return replace(graph, nodes=nodes)


def _with_winograd(node: Node) -> Node:
    return node.changed(params={**node.params, "winograd_panels": pack_winograd(unpack_node(node).params["weight"])})


def _without_winograd(node: Node) -> Node:
    if not is_winograd(node):
        return node
    return node.changed(params={name: array for name, array in node.params.items() if name != "winograd_panels"})
