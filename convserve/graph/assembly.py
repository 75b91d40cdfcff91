"""Assembles a Graph layer by layer, with parameters from wherever the caller says: drawn, read, or none."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from convserve.errors import MemoryBudgetError, ModelError
from convserve.graph.fit import fitted
from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.graph.ops import OPS

__all__ = ["MOST_PARAMETERS", "Assembler", "Parameters", "no_parameters", "random_parameters"]

Parameters = Callable[[str, str, tuple[int, ...], float], np.ndarray]
"""Gives a parameter, float32 of a shape: (layer, parameter, shape, gain) -> array.

layer: the node's name. parameter: "weight" or "bias" of Conv (M, C/group, kh, kw), ConvTranspose (C, M/group, kh, kw),
LocallyConnected (oh, ow, group, C/group*kh*kw, M/group) and Gemm (M, K); "scale", "bias", "mean" or "var" of
BatchNormalization (C,); what else is asked for by name.
gain: by which a drawn layer may raise the power of what it reads.
"""

MOST_PARAMETERS = 1 << 30
"""Parameters of a network that is assembled, at most."""


def no_parameters(layer: str, parameter: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """Return zeros that take no memory, for graphs that are only measured."""
    return np.broadcast_to(np.float32(0), shape)


def random_parameters(seed: int) -> Parameters:
    """Return a source of random parameters that keep activations near 1; the same for a seed and a layer's name."""

    def draw(layer: str, parameter: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
        rng = np.random.default_rng([seed, *f"{layer}.{parameter}".encode()])
        if parameter == "weight":
            values = rng.standard_normal(shape, np.float32)
            taps = shape[3] if len(shape) == 5 else math.prod(shape[1:])
            values *= np.float32(math.sqrt(gain / taps))
            return values
        if parameter in ("scale", "var"):
            power = gain if parameter == "scale" else 1.0
            return (math.sqrt(power) * rng.uniform(0.8, 1.2, shape)).astype(np.float32)
        return np.float32(0.1) * rng.standard_normal(shape, np.float32)

    return draw


class Assembler:
    """A Graph in the making; every method adds a layer of a name and returns the tensor that it writes.

    Layers are added as fit says (graph.fit). Each method raises ShapeError or ModelError, and adds nothing, where
    a layer does not fit its input.
    """

    def __init__(
        self, name: str, volume: Volume, parameters: Parameters, *, input_name: str = "image", fit: str = "floor"
    ) -> None:
        self.name = name
        self.input = input_name
        self.volumes = {self.input: volume}
        self.nodes: list[Node] = []
        self.fit = fit
        self.parameter_count = 0
        self._parameters = parameters

    def add(
        self,
        op: str,
        name: str,
        inputs: str | tuple[str, ...],
        attrs: dict[str, Any] | None = None,
        params: dict[str, np.ndarray] | None = None,
    ) -> str:
        """Add any operation; attrs and params as graph.ops and graph.ir have them."""
        tensors = (inputs,) if isinstance(inputs, str) else inputs
        node = Node(op, name, tensors, name, attrs or {}, params or {})
        volumes: dict[str, Volume] = {}
        steps = fitted(node, self.volumes[tensors[0]], self.fit)
        for step in steps:
            ins = [volumes.get(tensor) or self.volumes[tensor] for tensor in step.inputs]
            volumes[step.output] = OPS[step.op].volume(step, ins)
        self.nodes += steps
        self.volumes |= volumes
        return name

    def drawn(self, name: str, shapes: dict[str, tuple[int, ...]], gain: float = 1.0) -> dict[str, np.ndarray]:
        """Return a layer's parameters of these shapes from their source; errors where they are too many."""
        count = self.parameter_count + sum(math.prod(shape) for shape in shapes.values())
        if count > MOST_PARAMETERS:
            raise ModelError(f"up to '{name}' the network has {count:,} parameters; allowed: {MOST_PARAMETERS:,}")
        self.parameter_count = count
        try:
            return {parameter: self._parameters(name, parameter, shape, gain) for parameter, shape in shapes.items()}
        except MemoryError:
            values = sum(math.prod(shape) for shape in shapes.values())
            raise MemoryBudgetError(f"the operating system refused {4 * values:,} bytes for '{name}'") from None

    def conv(
        self,
        x: str,
        name: str,
        filters: int,
        kernel_shape: tuple[int, int],
        *,
        strides: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilations: tuple[int, int] = (1, 1),
        group: int = 1,
        bias: bool = True,
        transposed: bool = False,
    ) -> str:
        """Add a Conv, or a ConvTranspose; bias=False: zeros that the parameters' source is not asked for."""
        channels = self._channels_of_group(x, name, filters, group)
        attrs = {**_window(kernel_shape, strides, pads, dilations), "group": group, "activation": ""}
        if transposed:
            params = self._weighted(name, (channels * group, filters // group, *kernel_shape), filters, bias)
            return self.add("ConvTranspose", name, x, attrs | {"output_padding": (0, 0)}, params)
        params = self._weighted(name, (filters, channels, *kernel_shape), filters, bias)
        return self.add("Conv", name, x, attrs, params)

    def _weighted(self, name: str, shape: tuple[int, ...], filters: int, bias: bool) -> dict[str, np.ndarray]:
        if bias:
            return self.drawn(name, {"weight": shape, "bias": (filters,)}, 2.0)
        return self.drawn(name, {"weight": shape}, 2.0) | {"bias": np.zeros(filters, np.float32)}

    def locally_connected(
        self,
        x: str,
        name: str,
        filters: int,
        kernel_shape: tuple[int, int],
        *,
        strides: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilations: tuple[int, int] = (1, 1),
        group: int = 1,
    ) -> str:
        """Add a LocallyConnected: a convolution with filters and biases of its own at each position."""
        taps = self._channels_of_group(x, name, filters, group) * math.prod(kernel_shape)
        attrs = {**_window(kernel_shape, strides, pads, dilations), "group": group, "activation": ""}
        volume = self.volumes[x]
        for step in fitted(Node("LocallyConnected", name, (x,), name, attrs), volume, self.fit):
            # how many positions there are depends on the window alone, as in a pooling
            volume = OPS["MaxPool"].volume(step, [volume])
        places = (volume.height or 1, volume.width or 1)
        shapes = {"weight": (*places, group, taps, filters // group), "bias": (*places, filters)}
        return self.add("LocallyConnected", name, x, attrs, self.drawn(name, shapes, 2.0))

    def _channels_of_group(self, x: str, name: str, filters: int, group: int) -> int:
        channels = self.volumes[x].channels
        if channels % group or filters % group:
            raise ModelError(f"'{name}': {group} groups divide {channels} channels and {filters} filters unevenly")
        return channels // group

    def pool(
        self,
        op: str,
        x: str,
        name: str,
        kernel_shape: tuple[int, int],
        *,
        strides: tuple[int, int],
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilations: tuple[int, int] = (1, 1),
        ceil_mode: bool = False,
        count_include_pad: bool = False,
    ) -> str:
        """Add a MaxPool, an AveragePool, which leaves the padding out or counts it, or an LpPool of the 2-norm."""
        attrs = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad, **({"p": 2} if op == "LpPool" else {})}
        return self.add(op, name, x, _window(kernel_shape, strides, pads, dilations) | attrs)

    def fully_connected(self, x: str, name: str, outputs: int, *, bias: bool = True) -> str:
        """Add a Gemm over the whole volume, behind a Flatten where that has more than one position. bias: as for conv.
        """
        volume = self.volumes[x]
        if (volume.height, volume.width) != (1, 1):
            x = self.add("Flatten", f"{name}.flatten", x, {"kernel_shape": (volume.height, volume.width)})
        params = self._weighted(name, (outputs, self.volumes[x].channels), outputs, bias)
        return self.add("Gemm", name, x, {}, params)

    def batch_normalization(self, x: str, name: str, *, epsilon: float = 1e-5, gain: float = 1.0) -> str:
        """Add a BatchNormalization over the channels."""
        channels = (self.volumes[x].channels,)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("scale", "bias", "mean", "var"), channels)
        return self.add("BatchNormalization", name, x, {"epsilon": epsilon}, self.drawn(name, shapes, gain))

    def graph(self, x: str) -> Graph:
        """Return the checked Graph that shows a tensor: as (C,) where it has one position, else as a volume."""
        volume = self.volumes[x]
        shape = (volume.channels,) if (volume.height, volume.width) == (1, 1) else None
        graph = Graph(self.name, self.input, self.volumes[self.input], self.nodes, [Output(x, x, shape)])
        graph.check()
        return graph


def _window(
    kernel_shape: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
) -> dict[str, Any]:
    return {
        "kernel_shape": kernel_shape,
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "auto_pad": "NOTSET",
    }
