"""Builds Graphs layer by layer: for random networks, for named ones, for single operations."""

from collections.abc import Callable
from typing import Any

import numpy as np

from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.graph.ops import OPS, infer_volumes

__all__ = ["Builder", "he", "no_memory", "pair", "vgg16"]

Draw = Callable[[tuple[int, ...], int], np.ndarray]


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def he(seed: int) -> Draw:
    """Return a source of weights that keep activations near 1: normal with deviation sqrt(2 / fan-in)."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    return draw


def no_memory(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """Weights for graphs that are only planned: one zero, seen as the whole shape."""
    return np.broadcast_to(np.float32(0), shape)


class Builder:
    """A Graph in the making; every method adds one node and returns the name of the tensor that it writes."""

    def __init__(self, volume: Volume, *, seed: int = 0, draw: Draw | None = None, name: str = "built") -> None:
        self.input = "x"
        self.volumes = {self.input: volume}
        self.nodes: list[Node] = []
        self.name = name
        self.draw = draw or he(seed)

    def add_node(
        self,
        op: str,
        inputs: str | tuple[str, ...],
        attrs: dict[str, Any] | None = None,
        params: dict[str, np.ndarray] | None = None,
    ) -> str:
        """Add a node; ShapeError or ModelError, and nothing added, where its inputs do not fit it."""
        tensors = (inputs,) if isinstance(inputs, str) else inputs
        name = f"{op.lower()}{len(self.nodes)}"
        node = Node(op, name, tensors, name, attrs or {}, params or {})
        self.volumes[name] = OPS[op].volume(node, [self.volumes[tensor] for tensor in tensors])
        self.nodes.append(node)
        return name

    def conv(
        self,
        x: str,
        filters: int,
        kernel: int | tuple[int, int],
        *,
        strides: int | tuple[int, int] = 1,
        pads: int | tuple[int, int, int, int] = 0,
        dilations: int | tuple[int, int] = 1,
        group: int = 1,
        auto_pad: str = "NOTSET",
        activation: str = "",
        residual: str | None = None,
    ) -> str:
        kernel_shape = pair(kernel)
        shape = (filters, self.volumes[x].channels // group, *kernel_shape)
        attrs = {
            **window_attrs(kernel_shape, strides, pads, dilations, auto_pad),
            "group": group,
            "activation": activation,
        }
        fan_in = int(np.prod(shape[1:]))
        params = {"weight": self.draw(shape, fan_in), "bias": self.draw((filters,), 50)}
        return self.add_node("Conv", (x,) if residual is None else (x, residual), attrs, params)

    def locally_connected(
        self,
        x: str,
        filters: int,
        kernel: int | tuple[int, int],
        *,
        strides: int | tuple[int, int] = 1,
        pads: int | tuple[int, int, int, int] = 0,
        dilations: int | tuple[int, int] = 1,
        group: int = 1,
        auto_pad: str = "NOTSET",
        activation: str = "",
    ) -> str:
        attrs = window_attrs(pair(kernel), strides, pads, dilations, auto_pad)
        volume = OPS["MaxPool"].volume(Node("MaxPool", x, (x,), x, attrs), [self.volumes[x]])
        taps = self.volumes[x].channels // group * attrs["kernel_shape"][0] * attrs["kernel_shape"][1]
        places = (volume.height, volume.width)
        params = {
            "weight": self.draw((*places, group, taps, filters // group), taps),
            "bias": self.draw((*places, filters), 50),
        }
        return self.add_node("LocallyConnected", x, {**attrs, "group": group, "activation": activation}, params)

    def pool(
        self,
        op: str,
        x: str,
        kernel: int | tuple[int, int],
        *,
        strides: int | tuple[int, int] = 1,
        pads: int | tuple[int, int, int, int] = 0,
        dilations: int | tuple[int, int] = 1,
        auto_pad: str = "NOTSET",
        ceil_mode: bool = False,
        count_include_pad: bool = False,
        **more: int,
    ) -> str:
        attrs = {
            **more,
            **window_attrs(pair(kernel), strides, pads, dilations, auto_pad),
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        }
        return self.add_node(op, x, attrs)

    def gemm(self, x: str, outputs: int) -> str:
        inputs = self.volumes[x].channels
        params = {"weight": self.draw((outputs, inputs), inputs), "bias": self.draw((outputs,), 50)}
        return self.add_node("Gemm", x, {}, params)

    def flatten(self, x: str) -> str:
        volume = self.volumes[x]
        return self.add_node("Flatten", x, {"kernel_shape": (volume.height, volume.width)})

    def affine(self, x: str, *, activation: str = "") -> str:
        channels = self.volumes[x].channels
        params = {"scale": 1 + self.draw((channels,), 50), "shift": self.draw((channels,), 50)}
        return self.add_node("Affine", x, {"activation": activation}, params)

    def normalization(self, op: str, x: str, **attrs: Any) -> str:
        """Add a GroupNormalization or LayerNormalization with a scale and bias of each channel."""
        channels = self.volumes[x].channels
        params = {"scale": 1 + self.draw((channels,), 50), "bias": self.draw((channels,), 20)}
        return self.add_node(op, x, {"epsilon": 1e-5, **attrs}, params)

    def batch_normalization(self, x: str, *, epsilon: float = 1e-5) -> str:
        channels = self.volumes[x].channels
        params = {name: self.draw((channels,), 20) for name in ("bias", "mean")}
        params |= {"scale": 1 + self.draw((channels,), 50), "var": 0.5 + np.abs(self.draw((channels,), 4))}
        return self.add_node("BatchNormalization", x, {"epsilon": epsilon}, params)

    def activation(self, op: str, x: str, **parameters: float) -> str:
        """Add an activation; PRelu gets slopes of its own."""
        params = {"slope": self.draw((self.volumes[x].channels,), 4)} if op == "PRelu" else {}
        return self.add_node(op, x, parameters, params)

    def lrn(self, x: str, size: int, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> str:
        return self.add_node("LRN", x, {"size": size, "alpha": alpha, "beta": beta, "bias": bias})

    def join(self, op: str, *tensors: str, activation: str = "") -> str:
        """Add a combination (Add, Mul, Max, ...) or a Concat of several tensors."""
        return self.add_node(op, tensors, {} if op == "Concat" else {"activation": activation})

    def simple(self, op: str, x: str, **attrs: Any) -> str:
        """Add an operation of one input without parameters: Relu, Softmax, Identity, ChannelShuffle, Global*."""
        return self.add_node(op, x, attrs)

    def graph(self, *tensors: str) -> Graph:
        """Return the checked Graph that shows these tensors, without the nodes that none of them needs."""
        needed, nodes = set(tensors), []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                nodes.append(node)
        outputs = [Output(tensor, tensor) for tensor in tensors]
        graph = Graph(self.name, self.input, self.volumes[self.input], nodes[::-1], outputs)
        graph.check()
        infer_volumes(graph)
        return graph


def window_attrs(
    kernel_shape: tuple[int, int],
    strides: int | tuple[int, int],
    pads: int | tuple[int, int, int, int],
    dilations: int | tuple[int, int],
    auto_pad: str,
) -> dict[str, Any]:
    return {
        "kernel_shape": kernel_shape,
        "strides": pair(strides),
        "pads": (pads,) * 4 if isinstance(pads, int) else pads,
        "dilations": pair(dilations),
        "auto_pad": auto_pad,
    }


def vgg16(*, draw: Draw = no_memory, size: int = 224, channels: int = 64) -> Graph:
    """VGG-16 as the notes describe it: 3x3 convolutions with padding 1, 2x2 pools, 4096-4096-1000 after pool5."""
    build = Builder(Volume(3, size, size), draw=draw, name="vgg16")
    x = build.input
    for block, convolutions in enumerate((2, 2, 3, 3, 3)):
        for _ in range(convolutions):
            x = build.conv(x, min(channels << block, 8 * channels), 3, pads=1, activation="relu")
        x = build.pool("MaxPool", x, 2, strides=2)
    x = build.simple("Relu", build.gemm(build.flatten(x), 64 * channels))
    x = build.simple("Relu", build.gemm(x, 64 * channels))
    return build.graph(build.simple("Softmax", build.gemm(x, 1000)))
