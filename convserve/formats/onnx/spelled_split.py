"""PyTorch's split as its newer exporter writes it without optimization: a sequence, and nodes that take of it."""

from collections.abc import Mapping

from onnx import NodeProto, helper

from convserve.formats.onnx.spelled import FileNodes, attribute

__all__ = ["spelled_split"]


def spelled_split(graph: FileNodes) -> Mapping[str, NodeProto]:
    """Return a Slice in place of each SequenceAt that takes of a SplitToSequence, by the name of what it writes.

    Its numbers are attributes, as before opset 10.
    """
    named = {node.output[0]: _named(graph, node) for node in graph.nodes if node.op_type == "SequenceAt"}
    return {name: node for name, node in named.items() if node is not None}


def _named(graph: FileNodes, node: NodeProto) -> NodeProto | None:
    split = graph.before(node.input[0], "SplitToSequence") if len(node.input) == 2 else None
    place = graph.scalar(node.input[1]) if split is not None else None
    sizes = graph.constant(split.input[1]) if split is not None and len(split.input) == 2 else None
    if split is None or place is None or sizes is None or sizes.ndim > 1 or not (sizes > 0).all():
        return None
    part, axis = int(place), attribute(split, "axis") or 0
    if sizes.ndim:
        if part not in range(-sizes.size, sizes.size):
            return None
        ends = sizes.cumsum().tolist()
        begin, end = ends[part] - int(sizes[part]), ends[part]
    elif part >= 0:
        # parts of one size, of which the last may be smaller
        begin, end = part * int(sizes), (part + 1) * int(sizes)
    else:
        return None
    return helper.make_node(
        "Slice", [split.input[0]], list(node.output), node.name, starts=[begin], ends=[end], axes=[axis]
    )
