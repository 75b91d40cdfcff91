"""Rewrites what exporters spell out, x times a gate made of x, as the one activation that it is."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from convserve.graph.ir import Graph, Node

__all__ = ["name_activations"]


class _Line(NamedTuple):
    """scale * tensor + shift, the same for all channels."""

    scale: float
    shift: float
    tensor: str


Producers = dict[str, Node]


def _line(node: Node) -> tuple[float, float] | None:
    """Return an Affine's scale and shift where all channels have the same."""
    if node.op != "Affine" or node.attrs["activation"]:
        return None
    scale, shift = node.params["scale"], node.params["shift"]
    if not scale.size or (scale != scale[0]).any() or (shift != shift[0]).any():
        return None
    return float(scale[0]), float(shift[0])


def _straight(tensor: str, producers: Producers) -> _Line:
    """Return a tensor as a line of the last one before it that is none."""
    scale, shift = 1.0, 0.0
    while tensor in producers and (line := _line(producers[tensor])):
        shift += scale * line[1]
        scale *= line[0]
        tensor = producers[tensor].inputs[0]
    return _Line(scale, shift, tensor)


def _near(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=1e-5, abs_tol=1e-7)


def _is_line_of(tensor: str, scale: float, shift: float, x: str, producers: Producers) -> bool:
    line = _straight(tensor, producers)
    return line.tensor == x and _near(line.scale, scale) and _near(line.shift, shift)


def _is_cubic(tensor: str, x: str, producers: Producers) -> bool:
    """Tell whether a tensor is sqrt(2 / pi) * (x + 0.044715 x^3)."""
    outer = _straight(tensor, producers)
    node = producers.get(outer.tensor)
    if not node or node.op != "Add" or not _near(outer.scale, math.sqrt(2 / math.pi)) or outer.shift:
        return False
    for linear, other in (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ():
        line = _straight(other, producers)
        power = producers.get(line.tensor)
        if linear == x and power and _near(line.scale, 0.044715) and not line.shift:
            return power.op == "Pow" and power.inputs[0] == x and power.attrs["exponent"] == 3
    return False


def _sigmoid(gate: Node, x: str, producers: Producers) -> tuple[str, dict[str, Any], float, float] | None:
    line = _straight(gate.inputs[0], producers)
    fits = line.tensor == x and not line.shift
    return ("Swish", {} if line.scale == 1 else {"alpha": line.scale}, 1.0, 0.0) if fits else None


def _hard_sigmoid(gate: Node, x: str, producers: Producers) -> tuple[str, dict[str, Any], float, float] | None:
    fits = gate.inputs[0] == x and _near(gate.attrs["alpha"], 1 / 6) and _near(gate.attrs["beta"], 0.5)
    return ("HardSwish", {}, 1.0, 0.0) if fits else None


def _clip(gate: Node, x: str, producers: Producers) -> tuple[str, dict[str, Any], float, float] | None:
    bounds = gate.attrs.get("min"), gate.attrs.get("max")
    fits = bounds == (0, 6) and _is_line_of(gate.inputs[0], 1, 3, x, producers)
    return ("HardSwish", {}, 1 / 6, 0.0) if fits else None


def _erf(gate: Node, x: str, producers: Producers) -> tuple[str, dict[str, Any], float, float] | None:
    fits = _is_line_of(gate.inputs[0], math.sqrt(0.5), 0, x, producers)
    return ("Gelu", {}, 0.5, 1.0) if fits else None


def _tanh(gate: Node, x: str, producers: Producers) -> tuple[str, dict[str, Any], float, float] | None:
    inner = producers.get(gate.inputs[0])
    if inner and inner.op == "Softplus" and inner.inputs[0] == x:
        return "Mish", {}, 1.0, 0.0
    return ("GeluTanh", {}, 0.5, 1.0) if _is_cubic(gate.inputs[0], x, producers) else None


# by the gate's operation: the activation, its attributes, and the factor and summand in factor * x * (gate + summand)
_GATES: dict[str, Callable[[Node, str, Producers], tuple[str, dict[str, Any], float, float] | None]] = {
    "Sigmoid": _sigmoid,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "Erf": _erf,
    "Tanh": _tanh,
}


def _named(product: Node, factor: float, producers: Producers) -> Node | None:
    """Return the activation that factor * a product is, or None."""
    if product.op != "Mul" or len(product.inputs) != 2 or product.attrs.get("activation"):
        return None
    for first, second in (product.inputs, product.inputs[::-1]):
        left, right = _straight(first, producers), _straight(second, producers)
        gate = producers.get(right.tensor)
        if left.shift or not right.scale or gate is None or gate.op not in _GATES:
            continue
        for x, scale in {(first, 1.0), (left.tensor, left.scale)}:
            found = _GATES[gate.op](gate, x, producers)
            if found and _near(factor * scale * right.scale, found[2]) and _near(right.shift / right.scale, found[3]):
                return Node(found[0], product.name, (x,), product.output, found[1])
    return None


def name_activations(graph: Graph) -> Graph:
    """Turn x * sigmoid(x), x * tanh(softplus(x)), x/2 * (1 + erf(x / sqrt(2))) and their like into one node each.

    Constants count as equal within 1e-5 of their value, since files hold them as float32. What lies between stays
    where something else reads it.
    """
    if not any(node.op in _GATES for node in graph.nodes):
        return graph
    producers, readers, shown = graph.producers(), graph.readers(), graph.output_tensors()
    changed: dict[str, Node] = {}
    for node in graph.nodes:
        line = _line(node)
        before = producers.get(node.inputs[0])
        if line and before and not line[1] and before.output not in shown and len(readers[before.output]) == 1:
            named = _named(before, line[0], producers)
        else:
            named = _named(node, 1.0, producers)
        if named:
            changed[node.output] = named.changed(output=node.output)
    if not changed:
        return graph
    nodes = [changed.get(node.output, node) for node in graph.nodes]
    return Graph(graph.name, graph.input_name, graph.input_volume, nodes, graph.outputs).showing(graph.outputs)
