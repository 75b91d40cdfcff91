"""Which algorithm runs a convolution: a fixed rule of the layer's shape at the network's own window."""

from dataclasses import replace

from convserve.formats.packing import pack_winograd, unpack_node
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import infer_volumes, weight_shape
from convserve.graph.receptive import clean_intervals

__all__ = ["ALGORITHMS", "choose_algorithms", "takes_winograd", "without_winograd"]

ALGORITHMS = ("auto", "gemm")

# Measured (benchmarks/winograd.py): below these the transforms, or reading four times the weights, cost what the
# saved products bring.
FEWEST_CHANNELS = 32
SMALLEST_SIDE = 12


def takes_winograd(node: Node, out: Volume) -> bool:
    """Whether "auto" runs a node as Winograd's F(4x4, 3x3): 3x3, stride 1, 32 channels in and out, 12x12 outputs.

    Never a matter of the machine, the image, the budget, the batch, the threads or the bands, since its sums
    differ from the GEMM's in their last bits.
    """
    if node.op != "Conv" or out.height is None or out.width is None or node.attrs["auto_pad"] != "NOTSET":
        return False
    outputs, channels, kernel_h, kernel_w = weight_shape(node)
    attrs = node.attrs
    plain = attrs["group"] == 1 and tuple(attrs["strides"]) == (1, 1) and tuple(attrs["dilations"]) == (1, 1)
    side = min(out.height, out.width)
    large = min(outputs, channels) >= FEWEST_CHANNELS or (channels >= 16 and outputs >= 64 and side >= 28)
    return plain and large and side >= SMALLEST_SIDE and (kernel_h, kernel_w) == (3, 3)


def choose_algorithms(graph: Graph, algorithm: str) -> Graph:
    """Return a packed graph whose nodes have what the algorithm runs them with: "auto" or "gemm".

    A network without padding stays with the GEMM under "auto" too: its score maps equal their crops bit for bit,
    which Winograd would not keep.
    """
    height, width = graph.input_volume.height, graph.input_volume.width
    if algorithm == "gemm" or height is None or width is None or not _sees_padding(graph):
        return without_winograd(graph)
    volumes = infer_volumes(graph)
    nodes = [
        _with_winograd(node) if takes_winograd(node, volumes[node.output]) else node
        for node in graph.nodes
    ]
    return replace(graph, nodes=nodes)


def _sees_padding(graph: Graph) -> bool:
    volumes = infer_volumes(graph)
    return any(
        rows != (0, volumes[tensor].height) or columns != (0, volumes[tensor].width)
        for tensor, (rows, columns) in clean_intervals(graph, volumes).items()
    )


def _with_winograd(node: Node) -> Node:
    return node.changed(params={**node.params, "winograd_panels": pack_winograd(unpack_node(node).params["weight"])})


def without_winograd(graph: Graph) -> Graph:
    """Return the graph without transformed weights: all of it runs as GEMMs."""
    nodes = [
        node.changed(params={name: array for name, array in node.params.items() if name != "winograd_panels"})
        for node in graph.nodes
    ]
    return replace(graph, nodes=nodes)
