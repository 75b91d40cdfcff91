"""The graph: volumes, nodes and outputs, as importers write it, rewrites change it and the planner reads it.

A Graph is a network from one image input to one or more outputs. Every tensor is a volume of
channels x height x width for one image; the batch is free and appears nowhere. Parameters are
float32 NumPy arrays in ONNX's layouts. A height or width of None is not known before an image comes.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from convserve.errors import ModelError

__all__ = ["Graph", "Node", "Output", "Volume"]


@dataclass(frozen=True, slots=True)
class Volume:
    """The size of one image's tensor: channels, height, width (None where the image decides)."""

    channels: int
    height: int | None
    width: int | None

    def __str__(self) -> str:
        return f"{self.height or '?'}x{self.width or '?'}x{self.channels}"

    @property
    def values(self) -> int:
        """Number of values; ModelError where a dimension is unknown."""
        if self.height is None or self.width is None:
            raise ModelError(f"the volume {self} has no fixed size")
        return self.channels * self.height * self.width


@dataclass(slots=True)
class Node:
    """One operation: its name in ops.OPS, the tensors it reads and the one it writes.

    attrs have ONNX's names and canonical types (see ops.py); params are float32 arrays.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op} '{self.name}'"

    def changed(self, **changes: Any) -> "Node":
        """Return a copy with the given fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Output:
    """One network output: its declared name, the tensor it shows, its declared shape without the batch.

    shape is (C,), (C, H, W) or any shape with as many values as the volume; the volume is laid out
    as C, H, W and reshaped. None stands for a size that the image decides; shape None: the volume's own. rows: how
    many of the first size belong to each image; 0 where all images are one row.
    """

    name: str
    tensor: str
    shape: tuple[int | None, ...] | None = None
    rows: int = 1

    def shaped(self, y: np.ndarray) -> np.ndarray:
        """Return volumes (N, C, H, W) in the declared shape, N * rows first, as far as the image decides it."""
        if self.shape is None:
            return y
        if not self.rows:
            return y.reshape(1, -1)
        sizes = [y.shape[0] * self.rows, *self.shape]
        if sizes.count(None) == 1:
            sizes[sizes.index(None)] = -1
        elif None in sizes:
            return y
        return y.reshape(sizes)  # type: ignore[arg-type]


@dataclass(slots=True)
class Graph:
    """A network: one image input, nodes in an order in which every tensor is written before it is read."""

    name: str
    input_name: str
    input_volume: Volume
    nodes: list[Node]
    outputs: list[Output]

    def producers(self) -> dict[str, Node]:
        """Return the node that writes each tensor (the input has none)."""
        return {node.output: node for node in self.nodes}

    def readers(self) -> dict[str, list[Node]]:
        """Return the nodes that read each tensor, in order; outputs of the network are not counted."""
        readers: dict[str, list[Node]] = {self.input_name: []}
        for node in self.nodes:
            readers.setdefault(node.output, [])
            for tensor in node.inputs:
                readers.setdefault(tensor, []).append(node)
        return readers

    def output_tensors(self) -> set[str]:
        """Return the tensors that the network shows."""
        return {output.tensor for output in self.outputs}

    def showing(self, outputs: list[Output]) -> "Graph":
        """Return the graph with these outputs, and only the nodes that they need."""
        wanted = {output.tensor for output in outputs}
        needed: list[Node] = []
        for node in reversed(self.nodes):
            if node.output in wanted:
                needed.append(node)
                wanted.update(node.inputs)
        return replace(self, nodes=needed[::-1], outputs=outputs)

    def check(self) -> None:
        """Raise ModelError unless every tensor is written once, before it is read, and every output exists."""
        known = {self.input_name}
        for node in self.nodes:
            for tensor in node.inputs:
                if tensor not in known:
                    raise ModelError(f"{node} reads the tensor '{tensor}', which nothing before it writes")
            if node.output in known:
                raise ModelError(f"{node} writes the tensor '{node.output}', which exists already")
            known.add(node.output)
        for output in self.outputs:
            if output.tensor not in known:
                raise ModelError(f"the output '{output.name}' shows the tensor '{output.tensor}', which nothing writes")
        if not self.outputs:
            raise ModelError(f"the network '{self.name}' has no output")
