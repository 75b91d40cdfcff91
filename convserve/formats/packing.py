"""The packed form of weights: k-major panels of 16 output channels, and taps of depthwise convolutions.

    panels[g, p, k, lane] = weight[g*M/group + 16*p + lane, c, i, j],  k = (i*kw + j)*C/group + c
    taps[i*kw + j, c] = weight[c, 0, i, j]

Lanes behind a group's last channel are zero. A packed Conv node has the params "panels" and
"bias_panels", or "taps" and "bias" where it is depthwise, in place of "weight" and "bias", and the
attribute "weight_shape", the (M, C/group, kh, kw) of its weight.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from convserve.errors import ModelError
from convserve.formats.storage import WEIGHT_TYPES, aligned_empty, narrowed, stored_type, widened
from convserve.graph.ir import Graph, Node
from convserve.graph.ops import weight_shape

__all__ = [
    "PANEL",
    "WINOGRAD_REACH",
    "Packing",
    "is_depthwise",
    "is_packed",
    "is_winograd",
    "pack_bias",
    "pack_conv",
    "pack_depthwise",
    "pack_graph",
    "pack_node",
    "pack_winograd",
    "packed_shapes",
    "unpack_bias",
    "unpack_conv",
    "unpack_depthwise",
    "unpack_graph",
    "unpack_node",
    "winograd_shapes",
    "winograd_tile",
]

PANEL = 16
PIECE_BYTES = 8 << 20


def _panel_count(channels: int, group: int) -> int:
    return -(-(channels // group) // PANEL)


def _check_groups(channels: int, group: int) -> None:
    if group < 1 or channels % group:
        raise ModelError(f"{channels} output channels cannot be divided into {group} group(s)")


def is_depthwise(node: Node) -> bool:
    """Tell whether a Conv node (packed or not) has one filter for each input channel and no other."""
    if node.op != "Conv":
        return False
    outputs, inputs_per_group = weight_shape(node)[:2]
    group = node.attrs["group"]
    return bool(group > 1 and inputs_per_group == 1 and group == outputs)


def is_packed(node: Node) -> bool:
    """Tell whether a Conv node holds its weight in packed form."""
    return "panels" in node.params or "taps" in node.params


def pack_conv(weight: np.ndarray, group: int) -> np.ndarray:
    """Return the panels, float32 (group, panels, k, 16), 64-byte aligned, of a weight (M, C/group, kh, kw).

    Raises ModelError where M is no multiple of group.
    """
    outputs, channels, kernel_h, kernel_w = weight.shape
    _check_groups(outputs, group)
    per_group = outputs // group
    count = _panel_count(outputs, group)
    panels = aligned_empty((group, count, kernel_h, kernel_w, channels, PANEL))
    # One panel at a time keeps both sides of the transposition within the cache.
    for g in range(group):
        for p in range(count):
            first = g * per_group + p * PANEL
            lanes = min(PANEL, per_group - p * PANEL)
            panels[g, p, ..., :lanes] = weight[first : first + lanes].transpose(2, 3, 1, 0)
            panels[g, p, ..., lanes:] = 0
    return panels.reshape(group, count, kernel_h * kernel_w * channels, PANEL)


def unpack_conv(panels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weight, float32 of the given shape (M, C/group, kh, kw), from its panels as they are stored."""
    outputs, channels, kernel_h, kernel_w = shape
    group, count = panels.shape[:2]
    _check_groups(outputs, group)
    tiles = widened(panels).reshape(group, count, kernel_h, kernel_w, channels, PANEL).transpose(0, 1, 5, 4, 2, 3)
    lanes = tiles.reshape(group, count * PANEL, channels, kernel_h, kernel_w)
    return np.ascontiguousarray(lanes[:, : outputs // group]).reshape(shape)


def pack_bias(bias: np.ndarray, group: int) -> np.ndarray:
    """Return float32 (group, panels*16), 64-byte aligned, of a bias (M,): each group's channels, then zeros.

    Raises ModelError where M is no multiple of group.
    """
    outputs = bias.shape[0]
    _check_groups(outputs, group)
    packed = aligned_empty((group, _panel_count(outputs, group) * PANEL))
    packed[:, : outputs // group] = bias.reshape(group, -1)
    packed[:, outputs // group :] = 0
    return packed


def unpack_bias(packed: np.ndarray, outputs: int) -> np.ndarray:
    """Return the bias, float32 (M,), from its packed form (group, panels*16); outputs is M."""
    return np.ascontiguousarray(packed[:, : outputs // packed.shape[0]]).reshape(outputs)


def pack_depthwise(weight: np.ndarray) -> np.ndarray:
    """Return the taps, float32 (kh*kw, C), 64-byte aligned, of a depthwise weight (C, 1, kh, kw)."""
    channels, _, kernel_h, kernel_w = weight.shape
    taps = aligned_empty((kernel_h * kernel_w, channels))
    taps[...] = weight.reshape(channels, -1).T
    return taps


def unpack_depthwise(taps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weight, float32 of the given shape (C, 1, kh, kw), from its taps (kh*kw, C)."""
    return np.ascontiguousarray(taps.T).reshape(shape)


# Winograd's tiles are of 6x6 inputs for any filter, so that points and input transform are the same
WINOGRAD_REACH = 6
_POINTS = np.array([0.0, 1, -1, 2, -2])
_SPREADS = np.array([4.0, -6, -6, 24, 24])


def winograd_tile(node: Node) -> int:
    """Return how many outputs along one axis a Winograd tile of a Conv node has: 4 for 3x3 filters, 2 for 5x5."""
    return WINOGRAD_REACH + 1 - weight_shape(node)[2]


def _winograd_g(kernel: int) -> np.ndarray:
    # G of Lavin and Gray, arXiv 1509.09308: powers of the points over the products of their distances, and infinity
    finite = _POINTS[:, None] ** np.arange(kernel) / _SPREADS[:, None]
    return np.vstack([finite, np.eye(kernel)[-1]])


def pack_winograd(weight: np.ndarray, group: int = 1) -> np.ndarray:
    """Return the transformed panels, float32 (36, group*panels, C/group, 16), of a weight (M, C/group, r, r).

    U = G w G^T, computed in float64 and rounded once; panel p of a group holds its output channels from 16p on,
    zeros behind the last.
    """
    outputs, channels, kernel, _ = weight.shape
    count = _panel_count(outputs, group)
    transform = _winograd_g(kernel)
    panels = aligned_empty((36, group * count, channels, PANEL))
    for g, filters in enumerate(np.split(weight, group)):
        for p in range(count):
            part = filters[p * PANEL : (p + 1) * PANEL].astype(np.float64)
            points = np.einsum("xi,mcij,yj->xycm", transform, part, transform, optimize=True)
            panels[:, g * count + p, :, : len(part)] = points.reshape(36, channels, len(part))
            panels[:, g * count + p, :, len(part) :] = 0
    return panels


def winograd_shapes(node: Node) -> dict[str, tuple[int, ...]]:
    """Return the shape of the param that a Conv node run as Winograd has besides its others, by its name.

    Raises ModelError for a Conv that cannot be run so: another filter than 3x3 or 5x5, strides, dilations.
    """
    outputs, channels, *kernel = weight_shape(node)
    attrs = node.attrs
    _check_groups(outputs, attrs["group"])
    if kernel not in ([3, 3], [5, 5]) or attrs["auto_pad"] != "NOTSET":
        raise ModelError(f"{node} has transformed weights; only 3x3 and 5x5 filters can have them")
    if tuple(attrs["strides"]) != (1, 1) or tuple(attrs["dilations"]) != (1, 1):
        raise ModelError(f"{node} has transformed weights; only stride 1 and dilation 1 can have them")
    group = attrs["group"]
    return {"winograd_panels": (36, group * _panel_count(outputs, group), channels, PANEL)}


def is_winograd(node: Node) -> bool:
    """Tell whether a Conv node has transformed panels, so that it runs as Winograd's F(4x4, 3x3) or F(2x2, 5x5)."""
    return "winograd_panels" in node.params


def packed_shapes(node: Node) -> dict[str, tuple[int, ...]]:
    """Return the shape of each param that a Conv node has in packed form, by its name.

    Raises ModelError where the output channels are no multiple of the groups.
    """
    outputs, channels, kernel_h, kernel_w = weight_shape(node)
    group = node.attrs["group"]
    _check_groups(outputs, group)
    if is_depthwise(node):
        return {"taps": (kernel_h * kernel_w, outputs), "bias": (outputs,)}
    count = _panel_count(outputs, group)
    return {"panels": (group, count, kernel_h * kernel_w * channels, PANEL), "bias_panels": (group, count * PANEL)}


def _bias_of(node: Node) -> np.ndarray:
    bias = node.params.get("bias")
    return np.zeros(weight_shape(node)[0], np.float32) if bias is None else bias


def _aligned(array: np.ndarray) -> np.ndarray:
    copy = aligned_empty(array.shape)
    copy[...] = array
    return copy


_PACKED: dict[str, Callable[[Node], np.ndarray]] = {
    "panels": lambda node: pack_conv(node.params["weight"], node.attrs["group"]),
    "bias_panels": lambda node: pack_bias(_bias_of(node), node.attrs["group"]),
    "taps": lambda node: pack_depthwise(node.params["weight"]),
    "bias": lambda node: _aligned(_bias_of(node)),
}


def pack_node(node: Node) -> Node:
    """Return a Conv node with packed params; any other node, and a packed one, as it is."""
    if node.op != "Conv" or is_packed(node):
        return node
    attrs = {**node.attrs, "weight_shape": tuple(map(int, weight_shape(node)))}
    return node.changed(attrs=attrs, params={name: _PACKED[name](node) for name in packed_shapes(node)})


def unpack_node(node: Node) -> Node:
    """Return a Conv node with the params "weight" (M, C/group, kh, kw) and "bias" (M,); any other as it is."""
    if node.op != "Conv" or not is_packed(node):
        return node
    shape = weight_shape(node)
    if "taps" in node.params:
        weight, bias = unpack_depthwise(node.params["taps"], shape), node.params["bias"]
    else:
        weight = unpack_conv(node.params["panels"], shape)
        bias = unpack_bias(node.params["bias_panels"], shape[0])
    attrs = {name: value for name, value in node.attrs.items() if name != "weight_shape"}
    return node.changed(attrs=attrs, params={"weight": weight, "bias": bias})


@dataclass(frozen=True, slots=True)
class Packing:
    """How a graph's layers are packed.

    transformed: outputs of the nodes that get Winograd's panels too. weights: what panels are stored as, "fp32",
    "fp16" or "bf16", rounded to nearest, ties to even; None: as they are. Winograd's panels stay float32, made of the
    stored weights: rounding them as well multiplies the error and saves no time.
    """

    transformed: frozenset[str] = field(default_factory=frozenset)
    weights: str | None = None

    def outline(self, graph: Graph) -> Graph:
        """Return the packed graph with the shapes and types of what is not packed yet: values that take no memory."""
        return replace(graph, nodes=[self._outlined(node) for node in graph.nodes])

    def _outlined(self, node: Node) -> Node:
        if node.op != "Conv":
            return node
        dtypes = {"panels": WEIGHT_TYPES[self._stored_as(node)]}
        nothing = {name: np.zeros((), dtypes.get(name, np.float32)) for name in self._shapes(node)}
        params = {name: np.broadcast_to(nothing[name], shape) for name, shape in self._shapes(node).items()}
        attrs = {**node.attrs, "weight_shape": tuple(map(int, weight_shape(node)))}
        return node.changed(attrs=attrs, params=params | self._kept(node))

    def _shapes(self, node: Node) -> dict[str, tuple[int, ...]]:
        transforms = node.output in self.transformed or is_winograd(node)
        return packed_shapes(node) | (winograd_shapes(node) if transforms else {})

    def _stored_as(self, node: Node) -> str:
        return self.weights or (stored_type(node.params["panels"]) if "panels" in node.params else "fp32")

    def _kept(self, node: Node) -> dict[str, np.ndarray]:
        """Return the params that are packed already as they have to be."""
        if not is_packed(node):
            return {}
        if "panels" not in node.params or stored_type(node.params["panels"]) == self._stored_as(node):
            return node.params
        return {name: array for name, array in node.params.items() if name not in ("panels", "winograd_panels")}

    def pieces(self, node: Node) -> Iterator[np.ndarray]:
        """Yield the values of a node's packed params one behind the other, in the outline's order.

        A piece may be a part of a large param. Who keeps none of them holds little memory at a time. Raises
        ModelError for a weight that is too large for the type that it is stored as.
        """
        if node.op != "Conv":
            yield from node.params.values()
            return
        kept, stored = self._kept(node), self._stored_as(node)
        for name in self._shapes(node):
            if name in kept:
                yield kept[name]
            elif name == "panels":
                for values in _panel_pieces(node):
                    yield _rounded(node, values, stored)
            elif name == "winograd_panels":
                weight = widened(_rounded(node, unpack_node(node).params["weight"], stored))
                yield pack_winograd(weight, node.attrs["group"])
            else:
                yield _PACKED[name](node)


def _rounded(node: Node, values: np.ndarray, weights: str) -> np.ndarray:
    if weights == "fp32":
        return values
    stored = narrowed(values, weights)
    lost = np.isinf(widened(stored)) & np.isfinite(values)
    if lost.any():
        hint = "bf16" if weights == "fp16" else "fp32"
        raise ModelError(f"{node} has the weight {values[lost][0]:g}, too large for {weights}; {hint} can hold it")
    return stored


def _panel_pieces(node: Node) -> Iterator[np.ndarray]:
    if is_packed(node):
        panels = node.params["panels"]
        yield from (widened(panels[place]) for place in np.ndindex(panels.shape[:2]))
        return
    weight, group = node.params["weight"], node.attrs["group"]
    per_group = weight.shape[0] // group
    filter_bytes = 4 * math.prod(weight.shape[1:])
    channels = max(1, PIECE_BYTES // (filter_bytes * PANEL)) * PANEL
    for g in range(group):
        for first in range(0, per_group, channels):
            begin = g * per_group + first
            yield pack_conv(weight[begin : begin + min(channels, per_group - first)], 1)


def pack_graph(graph: Graph) -> Graph:
    """Return the graph with every Conv packed, as the native container holds it; weights are copied once."""
    return replace(graph, nodes=[pack_node(node) for node in graph.nodes])


def unpack_graph(graph: Graph) -> Graph:
    """Return the graph with every Conv in ONNX's layout again."""
    return replace(graph, nodes=[unpack_node(node) for node in graph.nodes])
