"""An ONNX graph as those read it who look for what exporters spell out in several nodes."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from onnx import NodeProto, helper

__all__ = ["FileNodes", "attribute"]

Constants = Callable[[str], np.ndarray | None]


class FileNodes:
    """Nodes in order and by what they write, constants by name, and the names of the graph's inputs."""

    def __init__(self, nodes: Sequence[NodeProto], constants: Constants, inputs: Collection[str]) -> None:
        self.nodes = nodes
        self.inputs = inputs
        self.writers = {name: node for node in nodes for name in node.output}
        self.constant = constants

    def before(self, name: str, *ops: str) -> NodeProto | None:
        """Return the node that writes a tensor, where it is one of these operations."""
        node = self.writers.get(name)
        return node if node is not None and node.op_type in ops else None

    def scalar(self, name: str) -> float | None:
        """Return a constant of one value."""
        array = self.constant(name)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def with_scalar(self, name: str, op: str) -> tuple[str, float] | None:
        """Return (tensor, constant) of a sum or product of the two, in either order."""
        node = self.before(name, op)
        if node is None or len(node.input) != 2:
            return None
        for tensor, constant in (node.input, node.input[::-1]):
            value = self.scalar(constant)
            if value is not None:
                return tensor, value
        return None

    def skipping(self, name: str, *ops: str) -> str:
        """Return the tensor before all nodes of these operations that lie one behind the other."""
        node = self.before(name, *ops)
        while node is not None:
            name = node.input[0]
            node = self.before(name, *ops)
        return name


def attribute(node: NodeProto, name: str) -> object:
    """Return an attribute's value, None where the file does not give it."""
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), None)
