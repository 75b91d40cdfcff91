"""Layer normalisation, which exports of opsets before 17 write as nine nodes, as the one that it is."""

from collections.abc import Mapping

from onnx import NodeProto, helper

from convserve.formats.onnx.spelled import FileNodes, attribute

__all__ = ["spelled_layer_normalization"]


def spelled_layer_normalization(graph: FileNodes) -> Mapping[str, NodeProto]:
    """Return a LayerNormalization in place of each (x - mean) / sqrt(variance + epsilon), by what it writes.

    It says at "axes" over which axes mean and variance are taken, any, and has neither scale nor bias: these are left
    to the nodes behind it.
    """
    quotients = [node for node in graph.nodes if node.op_type == "Div" and len(node.input) == 2]
    named = {node.output[0]: _named(graph, node) for node in quotients}
    return {name: node for name, node in named.items() if node is not None}


def _named(graph: FileNodes, quotient: NodeProto) -> NodeProto | None:
    root = graph.before(quotient.input[1], "Sqrt")
    added = graph.with_scalar(root.input[0], "Add") if root is not None else None
    variance = _mean(graph, added[0]) if added else None
    square = graph.before(variance[0], "Pow", "Mul") if variance else None
    centred = _centred(graph, quotient.input[0])
    if added is None or variance is None or square is None or centred is None or len(square.input) != 2:
        return None
    factors = square.input if square.op_type == "Mul" else square.input[:1]
    if square.op_type == "Pow" and graph.scalar(square.input[1]) != 2:
        return None
    x, axes = centred
    if variance[1] != axes or any(_centred(graph, factor) != centred for factor in factors):
        return None
    return helper.make_node(
        "LayerNormalization", [x], list(quotient.output), quotient.name, axes=axes, epsilon=added[1]
    )


def _centred(graph: FileNodes, name: str) -> tuple[str, list[int]] | None:
    """Return (x, axes) of a tensor that is x less its mean over axes."""
    difference = graph.before(name, "Sub")
    mean = _mean(graph, difference.input[1]) if difference is not None and len(difference.input) == 2 else None
    return mean if difference is not None and mean is not None and mean[0] == difference.input[0] else None


def _mean(graph: FileNodes, name: str) -> tuple[str, list[int]] | None:
    """Return (x, axes) of a tensor that is the mean of x over axes, which it keeps."""
    node = graph.before(name, "ReduceMean")
    if node is None or not node.input or attribute(node, "keepdims") == 0:
        return None
    axes = graph.constant(node.input[1]) if len(node.input) == 2 else attribute(node, "axes")
    listed = [int(axis) for axis in axes] if axes is not None else []  # type: ignore[attr-defined]
    return (node.input[0], listed) if listed else None
