"""The bytes of a network's weights, layer by layer: panels for the GEMM, transformed panels, and the rest."""

from dataclasses import asdict, dataclass
from typing import Any

from convserve.graph.ir import Graph, Node
from convserve.plan.describe import Description
from convserve.plan.report import mebibytes

__all__ = ["LayerWeights", "WeightTable", "weigh"]

_DIRECT = ("panels", "taps", "weight")
_TRANSFORMED = ("winograd_panels",)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """What one layer keeps. parameters: weights and biases as the network has them.

    direct_bytes: its weights as the GEMM reads them, in panels of 16 output channels. transformed_bytes: those that
    Winograd reads, beside them. other_bytes: biases, scales, shifts.
    """

    name: str
    op: str
    parameters: int
    direct_bytes: int
    transformed_bytes: int
    other_bytes: int

    @property
    def total_bytes(self) -> int:
        """All bytes of the layer."""
        return self.direct_bytes + self.transformed_bytes + self.other_bytes


@dataclass(frozen=True, slots=True)
class WeightTable:
    """The layers of a network that have parameters; str() is the table."""

    network: str
    layers: tuple[LayerWeights, ...]

    @property
    def total(self) -> LayerWeights:
        """The sums over all layers."""
        names = ("parameters", "direct_bytes", "transformed_bytes", "other_bytes")
        return LayerWeights("total", "", *(sum(getattr(layer, name) for layer in self.layers) for name in names))

    def table(self) -> str:
        """Return the table as aligned text, its totals below it."""
        head = ("layer", "operation", "parameters", "in panels", "transformed", "other", "bytes")
        rows: list[tuple[str, ...]] = [head]
        for one in (*self.layers, self.total):
            sizes = (one.parameters, one.direct_bytes, one.transformed_bytes, one.other_bytes, one.total_bytes)
            rows.append((one.name[:28], one.op, *(f"{size:,}" for size in sizes)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                text.ljust(width) if column < 2 else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        total = self.total
        lines.append(
            f"{self.network}: {total.parameters:,} parameters = {mebibytes(4 * total.parameters)} in float32;"
            f" kept {mebibytes(total.total_bytes)}, of which {mebibytes(total.transformed_bytes)} for Winograd"
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON."""
        layers = [{**asdict(layer), "total_bytes": layer.total_bytes} for layer in self.layers]
        total = {name: value for name, value in asdict(self.total).items() if name not in ("name", "op")}
        return {"network": self.network, **total, "total_bytes": self.total.total_bytes, "layers": layers}


def weigh(graph: Graph, description: Description) -> WeightTable:
    """Return the weights of a graph, packed or not; description: of the same graph."""
    layers = [
        LayerWeights(
            name=layer.name,
            op=layer.op,
            parameters=layer.parameters,
            direct_bytes=_bytes_of(node, _DIRECT),
            transformed_bytes=_bytes_of(node, _TRANSFORMED),
            other_bytes=_bytes_of(node) - _bytes_of(node, _DIRECT + _TRANSFORMED),
        )
        for node, layer in zip(graph.nodes, description.layers[1:], strict=True)
        if node.params
    ]
    return WeightTable(description.network, tuple(layers))


def _bytes_of(node: Node, names: tuple[str, ...] | None = None) -> int:
    return sum(array.nbytes for name, array in node.params.items() if names is None or name in names)
