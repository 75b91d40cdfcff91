"""Which algorithm runs a convolution: a fixed rule of the layer's shape at the network's own window."""

from dataclasses import replace

from convserve.formats.packing import Packing
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import infer_volumes, weight_shape
from convserve.graph.receptive import clean_intervals

__all__ = ["ALGORITHMS", "choose_packing", "takes_winograd", "without_winograd"]

ALGORITHMS = ("auto", "gemm")

# Measured (benchmarks/winograd.py): below these the transforms, or reading four times the weights, cost what the
# saved products bring.
FEWEST_CHANNELS = {3: 32, 5: 16}
SMALLEST_SIDE = {3: 12, 5: 6}


def takes_winograd(node: Node, out: Volume) -> bool:
    """Whether "auto" runs a node as Winograd's F(4x4, 3x3) or F(2x2, 5x5).

    It does for filters of stride 1: 3x3 over 32 channels in and out of a group and 12x12 outputs, or over 16 and 64
    channels and 28x28 outputs; 5x5 over 16 channels in and out and 6x6 outputs.
    Never a matter of the machine, the image, the budget, the batch, the threads or the bands, since its sums
    differ from the GEMM's in their last bits.
    """
    if node.op != "Conv" or out.height is None or out.width is None or node.attrs["auto_pad"] != "NOTSET":
        return False
    outputs, channels, kernel_h, kernel_w = weight_shape(node)
    attrs = node.attrs
    plain = tuple(attrs["strides"]) == (1, 1) and tuple(attrs["dilations"]) == (1, 1)
    if not plain or kernel_h != kernel_w or kernel_h not in SMALLEST_SIDE:
        return False
    side, filters = min(out.height, out.width), outputs // attrs["group"]
    many = min(filters, channels) >= FEWEST_CHANNELS[kernel_h] or (channels >= 16 and filters >= 64 and side >= 28)
    return many and side >= SMALLEST_SIDE[kernel_h]


def choose_packing(graph: Graph, algorithm: str, *, weights: str | None = None) -> Packing:
    """Return how a rewritten graph is packed for "auto" or "gemm": which layers get transformed weights.

    weights: what panels are stored as, as in Packing.

    A network without padding stays with the GEMM under "auto" too: its score maps equal their crops bit for bit,
    which Winograd would not keep.
    """
    height, width = graph.input_volume.height, graph.input_volume.width
    if algorithm == "gemm" or height is None or width is None or not _sees_padding(graph):
        return Packing(weights=weights)
    volumes = infer_volumes(graph)
    transformed = frozenset(node.output for node in graph.nodes if takes_winograd(node, volumes[node.output]))
    return Packing(transformed, weights)


def _sees_padding(graph: Graph) -> bool:
    volumes = infer_volumes(graph)
    return any(
        rows != (0, volumes[tensor].height) or columns != (0, volumes[tensor].width)
        for tensor, (rows, columns) in clean_intervals(graph, volumes).items()
    )


def without_winograd(graph: Graph) -> Graph:
    """Return the graph without transformed weights: all of it runs as GEMMs."""
    nodes = [
        node.changed(params={name: array for name, array in node.params.items() if name != "winograd_panels"})
        for node in graph.nodes
    ]
    return replace(graph, nodes=nodes)
