"""PyTorch's as_strided, which it exports as places in a flat tensor, as the Reshape that it is where they count up."""

import math
from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, helper

from convserve.formats.onnx.source import LARGEST
from convserve.formats.onnx.spelled import FileNodes, attribute

__all__ = ["spelled_reshape"]


def spelled_reshape(graph: FileNodes) -> Mapping[str, NodeProto]:
    """Return the Reshape in place of each Gather that takes all values of a flat tensor, one after another.

    By the name of what it writes. Exports of networks with channels last have such Gathers, since PyTorch says there
    how an average over height and width lies in memory.
    """
    found = {}
    for gather in graph.nodes:
        flat = graph.before(gather.input[0], "Reshape") if gather.op_type == "Gather" and gather.input else None
        if flat is None or len(gather.input) != 2 or attribute(gather, "axis") not in (None, 0):
            continue
        to = graph.constant(flat.input[1]) if len(flat.input) == 2 else None
        shape = _counted(graph, gather.input[1]) if to is not None and to.reshape(-1).tolist() == [-1] else None
        if shape is not None:
            # the node goes where the Gather was; its shape is an attribute, as before opset 5
            reshape = helper.make_node("Reshape", [flat.input[0]], list(gather.output), gather.name, shape=shape)
            found[gather.output[0]] = reshape
    return found


def _counted(graph: FileNodes, name: str) -> list[int] | None:
    """Return the shape of whole numbers that count up from 0, -1 first where there are so many as the batch decides."""
    places = graph.constant(name)
    if places is None:
        found = _by_image(graph, name)
        if found is None or found[0] != found[1].size:
            return None
        first, places = -1, found[1]
    else:
        first = places.shape[0] if places.ndim else 0
    counts = np.array_equal(places.reshape(-1), np.arange(places.size))
    return [first, *places.shape[1:]] if counts and places.size else None


def _by_image(graph: FileNodes, name: str) -> tuple[int, np.ndarray] | None:
    """Return (step, places) of a tensor that is number * step + places for the images by number, axis 0; or None."""
    chain: list[tuple[str, np.ndarray]] = []
    while (node := graph.before(name, "Mul", "Add", "Unsqueeze")) is not None and len(node.input) == 2:
        # the constant may come first, but for axes
        name, other = node.input
        value = graph.constant(other)
        if value is None and node.op_type != "Unsqueeze":
            name, value = other, graph.constant(name)
        if value is None:
            return None
        chain.append((node.op_type, value))
    numbers = graph.before(name, "Range")
    if numbers is None or len(numbers.input) != 3 or not _is_batch(graph, numbers.input[1]):
        return None
    if (graph.scalar(numbers.input[0]), graph.scalar(numbers.input[2])) != (0, 1):
        return None
    step, places = 1, np.zeros(1, np.int64)
    for op, value in reversed(chain):
        if op == "Unsqueeze":
            axes = value.reshape(-1).tolist()
            if not axes or min(axes) < 1 or max(axes) >= places.ndim + len(axes) or len(set(axes)) < len(axes):
                return None
            places = np.expand_dims(places, tuple(axes))
        elif value.ndim > places.ndim or value.dtype.kind != "i":
            return None
        elif op == "Add":
            try:
                size = math.prod(np.broadcast_shapes(places.shape, value.shape))
            except ValueError:
                return None
            if size > LARGEST:
                return None
            places = places + value
        elif value.size == 1:
            step, places = step * int(value.reshape(())), places * value
        else:
            return None
        if places.shape[0] != 1:
            return None
    return step, places


def _is_batch(graph: FileNodes, name: str) -> bool:
    """Tell whether a tensor is the first size of an input."""
    node = graph.before(graph.skipping(name, "Squeeze", "Reshape", "Cast"), "Shape", "Gather")
    if node is not None and node.op_type == "Gather":
        first = len(node.input) == 2 and graph.scalar(node.input[1]) == 0 and attribute(node, "axis") in (None, 0)
        node = graph.before(node.input[0], "Shape") if first else None
    elif node is not None and attribute(node, "end") != 1:
        return False
    return node is not None and node.input[0] in graph.inputs and attribute(node, "start") in (None, 0)
