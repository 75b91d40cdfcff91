"""Rewrites that fold arithmetic with constants away: identities, batch normalization, scale and shift."""

from dataclasses import replace

import numpy as np

from convserve.graph.ir import Graph, Node

__all__ = ["drop_identities", "fold_affine", "lower_batch_normalization"]

_NORMALIZATIONS = ("GroupNormalization", "LayerNormalization")
_NEVER_ACTIVE = ("Gemm", *_NORMALIZATIONS)


def drop_identities(graph: Graph) -> Graph:
    """Let the readers of each Identity, and the outputs that show it, take its input instead."""
    instead: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple(instead.get(tensor, tensor) for tensor in node.inputs)
        if node.op == "Identity":
            instead[node.output] = inputs[0]
        else:
            nodes.append(node if inputs == node.inputs else node.changed(inputs=inputs))
    if not instead:
        return graph
    outputs = [replace(output, tensor=instead.get(output.tensor, output.tensor)) for output in graph.outputs]
    return replace(graph, nodes=nodes, outputs=outputs)


def lower_batch_normalization(graph: Graph) -> Graph:
    """Turn each BatchNormalization into the Affine that it is at inference."""
    if not any(node.op == "BatchNormalization" for node in graph.nodes):
        return graph
    nodes = [_lowered(node) if node.op == "BatchNormalization" else node for node in graph.nodes]
    return replace(graph, nodes=nodes)


def _lowered(node: Node) -> Node:
    wide = {name: array.astype(np.float64) for name, array in node.params.items()}
    with np.errstate(all="ignore"):
        scale = wide["scale"] / np.sqrt(wide["var"] + node.attrs["epsilon"])
        shift = wide["bias"] - wide["mean"] * scale
    params = {"scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}
    return node.changed(op="Affine", attrs={"activation": ""}, params=params)


def fold_affine(graph: Graph) -> Graph:
    """Fold chains of Affine nodes into the Conv, ConvTranspose, Gemm, Affine or normalization before them.

    Only where nothing else reads in between.
    """
    readers, shown = graph.readers(), graph.output_tensors()
    folded: set[str] = set()
    nodes = []
    for node in graph.nodes:
        if node.output in folded:
            continue
        chain = _affines_behind(node, readers, shown)
        folded.update(affine.output for affine in chain)
        nodes.append(_with_affines(node, chain) if chain else node)
    return replace(graph, nodes=nodes) if folded else graph


def _affines_behind(node: Node, readers: dict[str, list[Node]], shown: set[str]) -> list[Node]:
    chain: list[Node] = []
    last = node
    while _takes_affine(last) and last.output not in shown and len(readers[last.output]) == 1:
        reader = readers[last.output][0]
        if reader.op != "Affine" or (node.op in _NEVER_ACTIVE and reader.attrs["activation"]):
            break
        chain.append(reader)
        last = reader
    return chain


def _takes_affine(node: Node) -> bool:
    takes = node.op in ("Conv", "ConvTranspose", "Affine", *_NEVER_ACTIVE)
    return takes and not node.attrs.get("activation") and len(node.inputs) == 1


def _with_affines(node: Node, chain: list[Node]) -> Node:
    channels = chain[0].params["scale"].shape[0]
    scale, shift = np.ones(channels), np.zeros(channels)
    for affine in ([node] if node.op == "Affine" else []) + chain:
        factor = affine.params["scale"].astype(np.float64)
        scale, shift = scale * factor, shift * factor + affine.params["shift"].astype(np.float64)
    if node.op == "Affine":
        params = {"scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}
    elif node.op in _NORMALIZATIONS:
        params = {
            "scale": (node.params["scale"].astype(np.float64) * scale).astype(np.float32),
            "bias": (node.params["bias"].astype(np.float64) * scale + shift).astype(np.float32),
        }
    else:
        params = {
            "weight": (node.params["weight"] * _by_filter(node, scale)).astype(np.float32),
            "bias": (node.params["bias"].astype(np.float64) * scale + shift).astype(np.float32),
        }
    attrs = dict(node.attrs)
    if node.op not in _NEVER_ACTIVE:
        attrs["activation"] = chain[-1].attrs["activation"]
    return node.changed(output=chain[-1].output, attrs=attrs, params={**node.params, **params})


def _by_filter(node: Node, scale: np.ndarray) -> np.ndarray:
    """Return one value per filter in a shape that multiplies the node's weight."""
    shape = node.params["weight"].shape
    if node.op != "ConvTranspose":
        return scale.reshape(-1, *(1,) * (len(shape) - 1))
    group = node.attrs["group"]
    return np.repeat(scale.reshape(group, -1), shape[0] // group, axis=0)[:, :, None, None]
