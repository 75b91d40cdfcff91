"""The table of a network, layer by layer: volumes, parameters, flops, receptive fields, and who sees padding."""

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from convserve.errors import ModelError
from convserve.formats.storage import weights_of
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import OPS, explicit_pads, infer_volumes, slides, weight_shape, windows
from convserve.graph.receptive import Field, clean_intervals, receptive_fields
from convserve.plan.report import mebibytes

__all__ = ["Description", "LayerDescription", "describe"]

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LayerDescription:
    """One layer as the engine runs it, for one image of the network's window; pairs are (vertical, horizontal).

    op: the operation with what makes it special: F kernel, S stride, P padding, D dilation, G groups, what is fused.
    values: float32 values of its volume that need memory of their own (a Concat's are those of its parts).
    parameters: weights and biases, as the network has them, not as the engine packs them.
    receptive_field, stride, offset: pixels that one position sees, from one to the next (rounded up), and from the
    image's corner to the first pixel that the first position sees (below 0: padding).
    padded: rows and columns of its volume (top, left, bottom, right) that see padding.
    """

    name: str
    op: str
    volume: Volume
    values: int
    weights: int
    parameters: int
    flops: int
    receptive_field: Pair
    stride: Pair
    offset: Pair
    padded: tuple[int, int, int, int]
    slides: bool

    @property
    def cells(self) -> int:
        """Positions of its volume."""
        return (self.volume.height or 0) * (self.volume.width or 0)

    @property
    def clean_cells(self) -> int:
        """Positions that see no padding, for which a dense pass and a crop agree."""
        top, left, bottom, right = self.padded
        return ((self.volume.height or 0) - top - bottom) * ((self.volume.width or 0) - left - right)

    @property
    def exactness(self) -> str:
        """Return "exact", or "padded" where some position sees padding."""
        return "padded" if any(self.padded) else "exact"

    def to_dict(self) -> dict[str, Any]:
        """Return the layer as plain data for JSON; its volume as [height, width, channels]."""
        volume = [self.volume.height, self.volume.width, self.volume.channels]
        found = {"cells": self.cells, "clean_cells": self.clean_cells, "exactness": self.exactness}
        return {**asdict(self), "volume": volume, **found}


@dataclass(frozen=True, slots=True)
class Description:
    """A network, layer by layer, the input first; str() is its table."""

    network: str
    layers: tuple[LayerDescription, ...]
    shown: LayerDescription
    """The layer that the first output shows."""
    weight_type: str
    """What its weights are stored as: "fp32", "fp16" or "bf16"; "mixed" where layers differ."""
    weight_bytes: int
    """Bytes of all that is stored of them: weights, biases, those transformed for Winograd."""
    storage: str = ""
    """Where the weights lie, for people."""

    @property
    def window(self) -> Pair:
        """(height, width) that the network was made for."""
        volume = self.layers[0].volume
        return volume.height or 0, volume.width or 0

    @property
    def values(self) -> int:
        """Values of all volumes, the input's included."""
        return sum(layer.values for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes of all volumes at once, in float32."""
        return 4 * self.values

    @property
    def weights(self) -> int:
        """Parameters without biases."""
        return sum(layer.weights for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations of one image, a multiplication and an addition counted as two."""
        return sum(layer.flops for layer in self.layers)

    @property
    def padded_by(self) -> str:
        """Name of the first layer that sees padding, "" where none before the first output does."""
        if self.shown.exactness == "exact":
            return ""
        return next(layer.name for layer in self.layers if layer.exactness == "padded")

    @property
    def stuck_at(self) -> str:
        """Name of the first layer that cannot slide over larger images, "" where all can."""
        return next((layer.name for layer in self.layers if not layer.slides), "")

    @property
    def exactness(self) -> str:
        """Return "exact" or "padded": what the first output's scores are to a dense pass."""
        return self.shown.exactness

    def table(self) -> str:
        """Return the table as aligned text, its totals below it."""
        head = ("layer", "operation", "volume", "values", "weights", "parameters", "flops", "field", "stride")
        rows: list[tuple[str, ...]] = [(*head, "offset", "clean cells")]
        rows += [_table_row(layer) for layer in self.layers]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                text.ljust(width) if column < 2 else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*lines, *self._totals()])

    def _totals(self) -> list[str]:
        height, width = self.window
        lines = [
            f"{self.network}: window {height}x{width}, output {self.shown.volume},"
            f" output stride {_pair_text(self.shown.stride)}, receptive field {_pair_text(self.shown.receptive_field)}",
            f"values {self.values:,} = {mebibytes(self.activation_bytes)};"
            f" parameters {self.parameters:,} = {mebibytes(4 * self.parameters)}, weights {self.weights:,} of them;"
            f" flops {_compact(self.flops)}",
        ]
        if self.stuck_at:
            lines.append(f"cannot slide over larger images: '{self.stuck_at}' needs the whole window")
        elif not self.padded_by:
            lines.append("exact: no score sees padding, so every score of a dense pass is its crop's")
        else:
            lines.append(
                f"padded: from '{self.padded_by}' on positions see padding, so a dense pass differs from crops"
            )
        held = f"; {self.storage}" if self.storage else ""
        lines.append(f"weights as packed: {self.weight_type}, {mebibytes(self.weight_bytes)}{held}")
        lines.append("(F filter or window, S stride, P padding, D dilation, G groups; clean cells see no padding)")
        return lines

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON."""
        return {
            "network": self.network,
            "window": self.window,
            "output": self.shown.name,
            "output_stride": self.shown.stride,
            "receptive_field": self.shown.receptive_field,
            "exactness": self.exactness,
            "padded_by": self.padded_by,
            "stuck_at": self.stuck_at,
            "values": self.values,
            "activation_bytes": self.activation_bytes,
            "weights": self.weights,
            "parameters": self.parameters,
            "weight_type": self.weight_type,
            "weight_bytes": self.weight_bytes,
            "flops": self.flops,
            "layers": [layer.to_dict() for layer in self.layers],
        }


def describe(graph: Graph, *, name: str = "") -> Description:
    """Return the description of a rewritten graph, packed or not, at its own window.

    name: default the graph's. Raises ModelError where the graph declares no input size.
    """
    if graph.input_volume.height is None or graph.input_volume.width is None:
        raise ModelError(
            f"the network '{name or graph.name}' declares no input size; give load(..., window=(height, width))"
        )
    volumes = infer_volumes(graph)
    fields, clean = receptive_fields(graph, volumes), clean_intervals(graph, volumes)

    def layer(node: Node | None, tensor: str) -> LayerDescription:
        ins = [volumes[source] for source in node.inputs] if node else []
        volume = volumes[tensor]
        (top, bottom), (left, right) = clean[tensor]
        vertical, horizontal = fields[tensor]
        weights, parameters = _parameters(node) if node else (0, 0)
        return LayerDescription(
            name=node.name if node else graph.input_name,
            op=_op_text(node, ins[0]) if node else "input",
            volume=volume,
            values=0 if node and node.op == "Concat" else volume.values,
            weights=weights,
            parameters=parameters,
            flops=OPS[node.op].flops(node, ins, volume) if node else 0,
            receptive_field=(vertical.size, horizontal.size),
            stride=(math.ceil(vertical.jump), math.ceil(horizontal.jump)),
            offset=(vertical.offset, horizontal.offset),
            padded=(top, left, (volume.height or 0) - bottom, (volume.width or 0) - right),
            slides=node is None or _slides(node, ins, fields),
        )

    layers = {graph.input_name: layer(None, graph.input_name)}
    layers |= {node.output: layer(node, node.output) for node in graph.nodes}
    stored_bytes = sum(array.nbytes for node in graph.nodes for array in node.params.values())
    shown = layers[graph.outputs[0].tensor]
    return Description(name or graph.name, tuple(layers.values()), shown, weights_of(graph), stored_bytes)


def _slides(node: Node, ins: list[Volume], fields: dict[str, tuple[Field, Field]]) -> bool:
    jumps: set[tuple[int | Fraction, int | Fraction]] = set()
    for number, tensor in enumerate(node.inputs):
        vertical, horizontal = windows(node, number, ins)
        jumps.add((fields[tensor][0].jump * vertical.stride, fields[tensor][1].jump * horizontal.stride))
    return slides(node) and len(jumps) == 1 and 0 not in jumps.pop()


def _parameters(node: Node) -> tuple[int, int]:
    """Return (weights, parameters) of a node; what is packed in panels is counted without their padding."""
    if node.op in ("Conv", "Gemm"):
        shape = weight_shape(node)
        weights = math.prod(shape)
        return weights, weights + (shape[0] if {"bias", "bias_panels"} & node.params.keys() else 0)
    weights = sum(node.params[name].size for name in ("weight", "scale") if name in node.params)
    return weights, sum(array.size for array in node.params.values())


def _op_text(node: Node, volume: Volume) -> str:
    parts = [node.op]
    if OPS[node.op].windowed:
        pads = explicit_pads(node, volume)
        parts.append("F" + _pair_text(node.attrs["kernel_shape"]))
        for letter, name in (("S", "strides"), ("D", "dilations")):
            if node.attrs[name] != (1, 1):
                parts.append(letter + _pair_text(node.attrs[name]))
        if any(pads):
            parts.append("P" + (str(pads[0]) if len(set(pads)) == 1 else ",".join(map(str, pads))))
        if node.attrs.get("group", 1) > 1:
            parts.append(f"G{node.attrs['group']}")
        if node.attrs.get("ceil_mode"):
            parts.append("ceil")
    if node.op == "Conv" and len(node.inputs) > 1:
        parts.append("+add")
    if node.attrs.get("activation"):
        parts.append("+" + node.attrs["activation"])
    return " ".join(parts)


def _table_row(layer: LayerDescription) -> tuple[str, ...]:
    return (
        layer.name if len(layer.name) <= 28 else "…" + layer.name[-27:],
        layer.op,
        str(layer.volume),
        f"{layer.values:,}",
        f"{layer.weights:,}",
        f"{layer.parameters:,}",
        _compact(layer.flops),
        _pair_text(layer.receptive_field),
        _pair_text(layer.stride),
        _pair_text(layer.offset),
        "all" if layer.exactness == "exact" else f"{layer.clean_cells} of {layer.cells}",
    )


def _pair_text(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _compact(count: int) -> str:
    """Return a count as "512", "3.70 k", "86.7 M" or "1,234 G"."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            share = count / size
            return f"{share:,.{2 if share < 10 else 1 if share < 100 else 0}f} {unit}"
    return str(count)
