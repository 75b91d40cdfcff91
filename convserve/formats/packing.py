"""The packed form of weights: k-major panels of 16 output channels, and taps of depthwise convolutions.

    panels[g, p, k, lane] = weight[g*M/group + 16*p + lane, c, i, j],  k = (i*kw + j)*C/group + c
    taps[i*kw + j, c] = weight[c, 0, i, j]

Lanes behind a group's last channel are zero. A packed Conv node has the params "panels" and
"bias_panels", or "taps" and "bias" where it is depthwise, in place of "weight" and "bias", and the
attribute "weight_shape", the (M, C/group, kh, kw) of its weight.
"""

import math
from dataclasses import replace

import numpy as np

from convserve.errors import ModelError
from convserve.graph.ir import Graph, Node
from convserve.graph.ops import weight_shape

__all__ = [
    "ALIGNMENT",
    "PANEL",
    "aligned_empty",
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
]

PANEL = 16
ALIGNMENT = 64


def aligned_empty(shape: tuple[int, ...], *, alignment: int = ALIGNMENT) -> np.ndarray:
    """Return an uninitialised C-contiguous float32 array whose first byte lies at a multiple of alignment."""
    size = 4 * math.prod(shape)
    room = np.empty(size + alignment, np.uint8)
    begin = -room.ctypes.data % alignment
    return room[begin : begin + size].view(np.float32).reshape(shape)


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
    """Return the weight, float32 of the given shape (M, C/group, kh, kw), from its panels."""
    outputs, channels, kernel_h, kernel_w = shape
    group, count = panels.shape[:2]
    _check_groups(outputs, group)
    tiles = panels.reshape(group, count, kernel_h, kernel_w, channels, PANEL).transpose(0, 1, 5, 4, 2, 3)
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


# G of Lavin and Gray's F(4x4, 3x3), arXiv 1509.09308: points 0, 1, -1, 2, -2 and infinity
_WINOGRAD_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24


def pack_winograd(weight: np.ndarray) -> np.ndarray:
    """Return the transformed panels, float32 (36, panels, C, 16), of a weight (M, C, 3, 3): U = G w G^T.

    Computed in float64 and rounded once; panel p holds the output channels from 16p on, zeros behind the last.
    """
    outputs, channels = weight.shape[:2]
    count = _panel_count(outputs, 1)
    panels = aligned_empty((36, count, channels, PANEL))
    for p in range(count):
        part = weight[p * PANEL : (p + 1) * PANEL].astype(np.float64)
        points = np.einsum("xi,mcij,yj->xycm", _WINOGRAD_G, part, _WINOGRAD_G, optimize=True)
        panels[:, p, :, : len(part)] = points.reshape(36, channels, len(part))
        panels[:, p, :, len(part) :] = 0
    return panels


def winograd_shapes(node: Node) -> dict[str, tuple[int, ...]]:
    """Return the shape of the param that a Conv node run as Winograd has besides its others, by its name.

    Raises ModelError for a Conv that cannot be run so: another filter than 3x3, strides, dilations, groups.
    """
    outputs, channels, *kernel = weight_shape(node)
    attrs = node.attrs
    if kernel != [3, 3] or attrs["group"] != 1 or attrs["auto_pad"] != "NOTSET":
        raise ModelError(f"{node} has transformed weights; only 3x3 filters in one group can have them")
    if tuple(attrs["strides"]) != (1, 1) or tuple(attrs["dilations"]) != (1, 1):
        raise ModelError(f"{node} has transformed weights; only stride 1 and dilation 1 can have them")
    return {"winograd_panels": (36, _panel_count(outputs, 1), channels, PANEL)}


def is_winograd(node: Node) -> bool:
    """Tell whether a Conv node has transformed panels, so that it runs as Winograd's F(4x4, 3x3)."""
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


def pack_node(node: Node) -> Node:
    """Return a Conv node with packed params; any other node, and a packed one, as it is."""
    if node.op != "Conv" or is_packed(node):
        return node
    weight, group = node.params["weight"], node.attrs["group"]
    bias = node.params.get("bias")
    if bias is None:
        bias = np.zeros(weight.shape[0], np.float32)
    if is_depthwise(node):
        aligned_bias = aligned_empty(bias.shape)
        aligned_bias[...] = bias
        packed = {"taps": pack_depthwise(weight), "bias": aligned_bias}
    else:
        packed = {"panels": pack_conv(weight, group), "bias_panels": pack_bias(bias, group)}
    attrs = {**node.attrs, "weight_shape": tuple(map(int, weight.shape))}
    return node.changed(attrs=attrs, params=packed)


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


def pack_graph(graph: Graph) -> Graph:
    """Return the graph with every Conv packed, as the native container holds it; weights are copied once."""
    return replace(graph, nodes=[pack_node(node) for node in graph.nodes])


def unpack_graph(graph: Graph) -> Graph:
    """Return the graph with every Conv in ONNX's layout again."""
    return replace(graph, nodes=[unpack_node(node) for node in graph.nodes])
