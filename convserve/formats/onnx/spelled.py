"""An ONNX graph as those read it who look for what exporters spell out in several nodes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from convserve.errors import ModelError
from convserve.formats.onnx.constants import FOLDS, fold
from convserve.formats.onnx.reader import OnnxFile, opset_version
from convserve.formats.onnx.source import Source

__all__ = ["FileNodes", "attribute"]

_DEEPEST = 32


class FileNodes:
    """Nodes in order and by what they write, constants by name, and the names of the graph's inputs."""

    def __init__(
        self, nodes: Sequence[NodeProto], tensors: Mapping[str, TensorProto], inputs: Iterable[str], file: OnnxFile
    ) -> None:
        self.nodes = nodes
        self.inputs = set(inputs) - tensors.keys()
        self.writers = {name: node for node in nodes for name in node.output}
        self._tensors = tensors
        self._file = file
        self._opset = opset_version(file.model)
        self._known: dict[str, np.ndarray | None] = {}

    def constant(self, name: str) -> np.ndarray | None:
        """Return an initializer, or what nodes compute of constants alone; None for all else."""
        return self._constant(name, _DEEPEST)

    def _constant(self, name: str, deepest: int) -> np.ndarray | None:
        if name not in self._known:
            node = self.writers.get(name)
            if name in self._tensors:
                self._known[name] = self._file.array(self._tensors[name], f"the initializer '{name}'")
            elif node is None or not deepest or node.op_type not in FOLDS or node.domain not in ("", "ai.onnx"):
                return None
            else:
                self._known[name] = self._folded(node, deepest - 1)
        return self._known[name]

    def _folded(self, node: NodeProto, deepest: int) -> np.ndarray | None:
        inputs = [self._constant(name, deepest) for name in node.input if name]
        try:
            known = [array for array in inputs if array is not None]
            return None if len(known) < len(inputs) else fold(Source(node, self._opset, self._file), known)
        except ModelError:
            return None

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
