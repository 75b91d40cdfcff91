"""PyTorch's local response normalisation, which it exports as nine nodes, as the one LRN node that it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from convserve.formats.onnx.spelled import FileNodes, attribute

__all__ = ["spelled_lrn"]


def _window(graph: FileNodes, pool: NodeProto, pad: NodeProto) -> int | None:
    """Return the size of a mean over neighbours along axis 2, as many on either side, zeros behind the ends."""
    kernel = list(attribute(pool, "kernel_shape") or [])  # type: ignore[call-overload]
    numbers = [attribute(pool, name) or [fill] for name, fill in (("strides", 1), ("pads", 0), ("dilations", 1))]
    plain = [set(found) <= {fill} for found, fill in zip(numbers, (1, 0, 1), strict=True)]  # type: ignore[call-overload]
    if len(kernel) < 2 or kernel[1:] != [1] * (len(kernel) - 1) or kernel[0] % 2 == 0 or not all(plain):
        return None
    pads = attribute(pad, "pads") if len(pad.input) < 2 else graph.constant(pad.input[1])
    value = graph.scalar(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else attribute(pad, "value")
    if pads is None or value or attribute(pad, "mode") not in (None, b"constant") or len(pad.input) > 3:
        return None
    rank, half = len(kernel) + 2, kernel[0] // 2
    wanted = np.zeros((2, rank))
    wanted[:, 2] = half
    return kernel[0] if np.array_equal(np.asarray(pads).reshape(-1), wanted.reshape(-1)) else None


def _channels(graph: FileNodes, lifted: NodeProto) -> int | None:
    """Return the channels that lie at axis 2 behind a node which puts an axis of 1 before them; 0: any number."""
    if lifted.op_type == "Unsqueeze":
        axes = attribute(lifted, "axes") if len(lifted.input) < 2 else graph.constant(lifted.input[1])
        return 0 if axes is not None and np.asarray(axes).reshape(-1).tolist() == [1] else None
    shape = graph.constant(lifted.input[1]) if len(lifted.input) > 1 else None
    sizes = [] if shape is None else shape.reshape(-1).tolist()
    return int(sizes[2]) if len(sizes) in (4, 5) and sizes[1] == 1 and sizes[2] > 0 else None


def _named(graph: FileNodes, quotient: NodeProto) -> NodeProto | None:
    """Return the LRN that x / (bias + alpha * mean)^beta is, where mean is that of x^2 over channels; or None."""
    x, divisor = quotient.input
    power = graph.before(divisor, "Pow")
    beta = graph.scalar(power.input[1]) if power is not None else None
    added = graph.with_scalar(power.input[0], "Add") if power is not None else None
    scaled = graph.with_scalar(added[0], "Mul") if added else None
    if scaled is None or added is None or beta is None:
        return None
    pool = graph.before(graph.skipping(scaled[0], "Squeeze", "Reshape"), "AveragePool")
    pad = graph.before(pool.input[0], "Pad") if pool is not None else None
    lifted = graph.before(pad.input[0], "Unsqueeze", "Reshape") if pad is not None else None
    if pool is None or pad is None or lifted is None:
        return None
    square = graph.before(lifted.input[0], "Mul", "Pow")
    size, channels = _window(graph, pool, pad), _channels(graph, lifted)
    if square is None or size is None or channels is None or square.input[0] != x:
        return None
    if square.input[1] != x and not (square.op_type == "Pow" and graph.scalar(square.input[1]) == 2):
        return None
    attributes: dict[str, Any] = {"size": size, "alpha": scaled[1], "beta": beta, "bias": added[1]}
    return helper.make_node("LRN", [x], list(quotient.output), quotient.name, **attributes, channels=channels)


def spelled_lrn(graph: FileNodes) -> Mapping[str, NodeProto]:
    """Return the LRN node in place of each quotient that is one, by the name of what it writes.

    The node says at "channels" how many there have to be, 0 where any number fits. Windows of an even size stay what
    they are: PyTorch's begin one channel before ONNX's.
    """
    quotients = [node for node in graph.nodes if node.op_type == "Div" and len(node.input) == 2]
    named = {node.output[0]: _named(graph, node) for node in quotients if graph.before(node.input[1], "Pow")}
    return {name: node for name, node in named.items() if node is not None}
