"""Transposed convolution: its geometry, and the convolutions, one for each phase of its strides, that it is made of.

Attributes as Conv's, and output_padding (rows, columns); the weight is (channels, filters of a group, kernel_h,
kernel_w). Output o of an axis is the sum of weight[k] * x[i] over all i*stride + k*dilation - pad_begin == o.
"""

import math
from dataclasses import dataclass

from convserve.errors import ModelError, ShapeError
from convserve.graph.ir import Node, Volume
from convserve.graph.window import Window, Windows

__all__ = ["Phase", "Phases", "phases", "transposed_flops", "transposed_volume", "transposed_windows"]


@dataclass(frozen=True, slots=True)
class Phase:
    """Outputs o with (o + pad_begin) % stride == r: a convolution of stride 1 by some of the taps, the last first."""

    taps: tuple[int, ...]
    dilation: int
    pad_begin: int
    pad_end: int

    @property
    def growth(self) -> int:
        """How many more outputs than inputs there are."""
        return self.pad_begin + self.pad_end - self.dilation * max(len(self.taps) - 1, 0)


@dataclass(frozen=True, slots=True)
class Phases:
    """One axis: a Phase for each r, with as many outputs each; of what they make together, cut and extra are cut off.

    extra is at the end, cut at the beginning.
    """

    phases: tuple[Phase, ...]
    cut: int
    extra: int


def phases(node: Node, axis: int) -> Phases:
    """Return the phases along an axis (0 rows, 1 columns), whatever the input's size."""
    stride, dilation = node.attrs["strides"][axis], node.attrs["dilations"][axis]
    kernel, before = node.attrs["kernel_shape"][axis], node.attrs["pads"][axis]
    behind = node.attrs["output_padding"][axis] - node.attrs["pads"][axis + 2]
    # output o + before = stride*i + r reads x[i + shift - t*step] by the tap first + t*every
    every, step = stride // math.gcd(stride, dilation), dilation // math.gcd(stride, dilation)
    found: list[tuple[tuple[int, ...], int]] = []
    for r in range(stride):
        first = next((k for k in range(every) if (k * dilation - r) % stride == 0), kernel)
        chosen = tuple(range(first, kernel, every))
        found.append((chosen, (r - first * dilation) // stride if chosen else 0))
    # with n inputs, stride*(n - 1) + end positions are needed from 0 on, and n + more of each phase are made
    end = dilation * (kernel - 1) + 1 + behind
    more = max((end - 1) // stride, *(-shift for _, shift in found))
    made = []
    for chosen, shift in found:
        reach = step * max(len(chosen) - 1, 0)
        begin = reach - shift
        made.append(Phase(chosen[::-1], step, begin, more - begin + reach))
    return Phases(tuple(made), before, stride * (more + 1) - end)


def _size(node: Node, axis: int, size: int | None) -> int | None:
    if size is None:
        return None
    attrs = node.attrs
    extent = attrs["dilations"][axis] * (attrs["kernel_shape"][axis] - 1) + 1
    pads = attrs["pads"][axis] + attrs["pads"][axis + 2]
    count: int = attrs["strides"][axis] * (size - 1) + extent + attrs["output_padding"][axis] - pads
    if count < 1:
        raise ShapeError(f"{node} leaves nothing of its input of {size} positions: pads {attrs['pads']}")
    return count


def transposed_volume(node: Node, ins: list[Volume]) -> Volume:
    """Return the volume of a ConvTranspose. Raises ModelError, ShapeError where weights or sizes do not fit."""
    shape, group = node.params["weight"].shape, node.attrs["group"]
    if shape[0] != ins[0].channels or shape[0] % group:
        raise ModelError(
            f"{node}: weights {shape} in {group} group(s) do not fit an input of {ins[0].channels} channels"
        )
    return Volume(shape[1] * group, _size(node, 0, ins[0].height), _size(node, 1, ins[0].width))


def transposed_windows(node: Node, ins: list[Volume]) -> Windows:
    """Return what a ConvTranspose reads: as many outputs as its stride read the same neighbourhood."""

    def along(axis: int) -> Window:
        stride, before = node.attrs["strides"][axis], node.attrs["pads"][axis]
        reach = node.attrs["dilations"][axis] * (node.attrs["kernel_shape"][axis] - 1)
        low, high = (before - reach) // stride, (stride - 1 + before) // stride
        return Window(kernel=high - low + 1, pad_begin=-low, pad_end=high, repeat=stride)

    return along(0), along(1)


def transposed_flops(node: Node, ins: list[Volume], out: Volume) -> int:
    """Return the products and sums of a ConvTranspose: every input value meets every weight of its channel."""
    return 2 * ins[0].values * math.prod(node.params["weight"].shape[1:])
