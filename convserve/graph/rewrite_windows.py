"""Rewrites that make what looks at the whole window slide: flattening, global pooling, automatic padding."""

from dataclasses import replace

import numpy as np

from convserve.errors import ModelError, ShapeError
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import explicit_pads, infer_volumes

__all__ = ["flatten_to_conv", "global_pooling_to_window", "known_volumes", "resolve_auto_pad"]


def known_volumes(graph: Graph, window: tuple[int, int] | None) -> dict[str, Volume]:
    """Return every tensor's volume at the window, or at the graph's own input size; none where that is open.

    Raises ShapeError where a layer does not fit the window.
    """
    height, width = window or (graph.input_volume.height, graph.input_volume.width)
    try:
        return infer_volumes(graph, height, width)
    except ShapeError:
        if height is None or width is None:
            return {}
        raise


def resolve_auto_pad(graph: Graph, *, window: tuple[int, int] | None = None) -> Graph:
    """Replace automatic padding by the explicit pads that it has at the window."""
    automatic = [node for node in graph.nodes if node.attrs.get("auto_pad", "NOTSET") != "NOTSET"]
    if not automatic:
        return graph
    volumes = known_volumes(graph, window)
    resolved = {}
    for node in automatic:
        try:
            pads = explicit_pads(node, volumes.get(node.inputs[0], Volume(1, None, None)))
        except ShapeError:
            continue
        resolved[node.output] = node.changed(attrs={**node.attrs, "auto_pad": "NOTSET", "pads": pads})
    if not resolved:
        return graph
    return replace(graph, nodes=[resolved.get(node.output, node) for node in graph.nodes])


def global_pooling_to_window(graph: Graph, *, window: tuple[int, int] | None = None) -> Graph:
    """Turn global pooling into pooling with stride 1 over the size that its input has at the window."""
    pooled = {"GlobalAveragePool": "AveragePool", "GlobalMaxPool": "MaxPool", "GlobalLpPool": "LpPool"}
    if not any(node.op in pooled for node in graph.nodes):
        return graph
    volumes = known_volumes(graph, window)
    changed = {}
    for node in graph.nodes:
        volume = volumes.get(node.inputs[0])
        if node.op in pooled and volume and volume.height is not None and volume.width is not None:
            attrs = {
                "kernel_shape": (volume.height, volume.width),
                "strides": (1, 1),
                "pads": (0, 0, 0, 0),
                "dilations": (1, 1),
                "auto_pad": "NOTSET",
                "ceil_mode": False,
                "count_include_pad": False,
                **node.attrs,
            }
            changed[node.output] = node.changed(op=pooled[node.op], attrs=attrs)
    if not changed:
        return graph
    return replace(graph, nodes=[changed.get(node.output, node) for node in graph.nodes])


def flatten_to_conv(graph: Graph) -> Graph:
    """Turn each Gemm into a Conv: of the flattened window's size behind a Flatten, else 1x1.

    Activations, Identity and Affine nodes between Flatten and Gemm move before the flattening, if their parameters
    are the same for all pixels of a channel. A Flatten that nothing reads any more is dropped.
    """
    if not any(node.op == "Gemm" for node in graph.nodes):
        return graph
    producers, readers, shown = graph.producers(), graph.readers(), graph.output_tensors()
    changed: dict[str, Node] = {}
    for gemm in graph.nodes:
        if gemm.op != "Gemm":
            continue
        flatten, between = _flatten_before(gemm, producers, readers, shown)
        if flatten is None:
            changed[gemm.output] = _as_conv(gemm, (1, 1), gemm.inputs[0])
            continue
        tensor = flatten.inputs[0]
        for node in between:
            changed[node.output] = _unflattened(node, flatten).changed(inputs=(tensor,))
            tensor = node.output
        changed[gemm.output] = _as_conv(gemm, flatten.attrs["kernel_shape"], tensor)
    nodes = [changed.get(node.output, node) for node in graph.nodes]
    read = {tensor for node in nodes for tensor in node.inputs} | shown
    was_read = {tensor for tensor, by in readers.items() if by}
    return replace(
        graph,
        nodes=[node for node in nodes if node.op != "Flatten" or node.output in read or node.output not in was_read],
    )


def _flatten_before(
    gemm: Node, producers: dict[str, Node], readers: dict[str, list[Node]], shown: set[str]
) -> tuple[Node | None, list[Node]]:
    """Return the Flatten that a Gemm reads, and the movable nodes between the two, in order."""
    between: list[Node] = []
    node = producers.get(gemm.inputs[0])
    while node is not None and node.op in ("Identity", "Affine", "PRelu", *ACTIVATIONS):
        if node.output in shown or len(readers[node.output]) != 1:
            return None, []
        between.insert(0, node)
        node = producers.get(node.inputs[0])
    if node is None or node.op != "Flatten" or any(not _same_for_pixels(inner, node) for inner in between):
        return None, []
    return node, between


def _by_channel(array: np.ndarray, flatten: Node) -> np.ndarray:
    kernel = flatten.attrs["kernel_shape"]
    return array.reshape(-1, kernel[0] * kernel[1])


def _same_for_pixels(node: Node, flatten: Node) -> bool:
    tables = [_by_channel(array, flatten) for array in node.params.values()]
    return all(np.array_equal(table, np.repeat(table[:, :1], table.shape[1], axis=1)) for table in tables)


def _unflattened(node: Node, flatten: Node) -> Node:
    return node.changed(params={name: _by_channel(array, flatten)[:, 0] for name, array in node.params.items()})


def _as_conv(gemm: Node, kernel: tuple[int, int], tensor: str) -> Node:
    outputs, inputs = gemm.params["weight"].shape
    if inputs % (kernel[0] * kernel[1]):
        raise ModelError(f"{gemm}: weights for {inputs} inputs do not fit a window of {kernel[0]}x{kernel[1]}")
    weight = gemm.params["weight"].reshape(outputs, -1, *kernel)
    attrs = {
        "kernel_shape": kernel,
        "strides": (1, 1),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
        "group": 1,
        "auto_pad": "NOTSET",
        "activation": gemm.attrs.get("activation", ""),
    }
    return gemm.changed(op="Conv", inputs=(tensor,), attrs=attrs, params={**gemm.params, "weight": weight})
