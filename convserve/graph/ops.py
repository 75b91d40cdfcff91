"""The flat table of operations: volume, window over the input, parameters, flops and what sliding does to each.

Attributes are canonical: kernel_shape, strides, dilations are (vertical, horizontal); pads is
(top, left, bottom, right); auto_pad is "NOTSET", "SAME_UPPER" or "SAME_LOWER" (VALID is NOTSET without
pads); ceil_mode and count_include_pad are bools; activation is "" or "relu".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from convserve.errors import ModelError, ShapeError
from convserve.graph import moves, transposed
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.window import POINT, Window, Windows

__all__ = [
    "COMBINATIONS",
    "LARGEST_P",
    "LARGEST_SIDE",
    "OPS",
    "OpSpec",
    "Window",
    "explicit_pads",
    "infer_volumes",
    "output_shapes",
    "slides",
    "weight_shape",
    "windows",
]

COMBINATIONS = ("Add", "Sub", "Mul", "Div", "Max", "Min")
"""Arithmetic of several tensors, from the first to the last, with an activation behind it."""

LARGEST_P = 64
"""The highest norm that is pooled by: |x|^p takes so many multiplications."""

LARGEST_SIDE = 1 << 40
"""Pixels of an image's longest side: what is planned for it still counts in 64 bits."""


def weight_shape(node: Node) -> tuple[int, ...]:
    """Return the shape of a node's weight in ONNX's layout, whether it lies there so or packed."""
    if "weight_shape" in node.attrs:
        return node.attrs["weight_shape"]
    return node.params["weight"].shape


def _size(dim: int | None) -> int:
    if dim is None:
        raise ShapeError("the image's height and width must be known here")
    return dim


def explicit_pads(node: Node, volume: Volume) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right) of a convolution or pooling over an input volume.

    SAME pads so that the output has ceil(input / stride) positions; an odd pixel goes to the end
    (SAME_UPPER) or the beginning (SAME_LOWER), as ONNX says.
    """
    if node.attrs["auto_pad"] == "NOTSET":
        return node.attrs["pads"]
    begins, ends = [], []
    for axis, dim in enumerate((volume.height, volume.width)):
        stride = node.attrs["strides"][axis]
        extent = node.attrs["dilations"][axis] * (node.attrs["kernel_shape"][axis] - 1) + 1
        if stride == 1:
            total = extent - 1
        else:
            size = _size(dim)
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if node.attrs["auto_pad"] == "SAME_UPPER" else large)
        ends.append(large if node.attrs["auto_pad"] == "SAME_UPPER" else small)
    return begins[0], begins[1], ends[0], ends[1]


def _sliding_windows(node: Node, volume: Volume) -> Windows:
    top, left, bottom, right = explicit_pads(node, volume)
    kernel, stride, dilation = node.attrs["kernel_shape"], node.attrs["strides"], node.attrs["dilations"]
    return (
        Window(kernel[0], stride[0], top, bottom, dilation[0]),
        Window(kernel[1], stride[1], left, right, dilation[1]),
    )


def positions(size: int | None, window: Window, *, ceil_mode: bool = False, what: str = "window") -> int | None:
    """Return how many output positions fit: (W - F + 2P)/S + 1 of the notes, rounded down, or up with ceil_mode.

    With ceil_mode a last window that would begin behind the input's end is dropped, as ONNX does.
    Raises ShapeError where not one position fits.
    """
    if size is None:
        return None
    free = size + window.pad_begin + window.pad_end - window.extent
    count = (-(-free // window.stride) if ceil_mode else free // window.stride) + 1
    if ceil_mode and (count - 1) * window.stride >= size + window.pad_begin:
        count -= 1
    if free < 0 or count < 1:
        raise ShapeError(
            f"{what} covers {window.extent} positions, but its input has {size}"
            f" (with padding {size + window.pad_begin + window.pad_end})"
        )
    return count


def _slid(node: Node, volume: Volume, channels: int) -> Volume:
    vertical, horizontal = _sliding_windows(node, volume)
    ceil_mode = node.attrs.get("ceil_mode", False)
    what = f"{node}: the window"
    return Volume(
        channels,
        positions(volume.height, vertical, ceil_mode=ceil_mode, what=what),
        positions(volume.width, horizontal, ceil_mode=ceil_mode, what=what),
    )


def _conv_volume(node: Node, ins: list[Volume]) -> Volume:
    shape, group = weight_shape(node), node.attrs["group"]
    if shape[1] * group != ins[0].channels or shape[0] % group:
        raise ModelError(
            f"{node}: weights {shape} in {group} group(s) do not fit an input of {ins[0].channels} channels"
        )
    out = _slid(node, ins[0], shape[0])
    for residual in ins[1:]:
        pairs = ((residual.channels, out.channels), (residual.height, out.height), (residual.width, out.width))
        if any(its != mine and None not in (its, mine) for its, mine in pairs):
            raise ShapeError(f"{node}: the residual volume {residual} does not fit its output {out}")
    return out


def _whole(volume: Volume) -> Windows:
    return Window(kernel=_size(volume.height), stride=0), Window(kernel=_size(volume.width), stride=0)


def _flatten_volume(node: Node, ins: list[Volume]) -> Volume:
    kernel = node.attrs["kernel_shape"]
    return Volume(
        ins[0].channels * kernel[0] * kernel[1],
        positions(ins[0].height, Window(kernel[0]), what=f"{node}: the window"),
        positions(ins[0].width, Window(kernel[1]), what=f"{node}: the window"),
    )


def _gemm_volume(node: Node, ins: list[Volume]) -> Volume:
    outputs, inputs = weight_shape(node)
    if inputs != ins[0].channels:
        raise ModelError(f"{node}: weights for {inputs} inputs, but it reads {ins[0].channels} values")
    return Volume(outputs, ins[0].height, ins[0].width)


def _broadcast_volume(node: Node, ins: list[Volume]) -> Volume:
    sizes = []
    for axis in ("channels", "height", "width"):
        dims = {getattr(volume, axis) for volume in ins}
        larger = dims - {1}
        if len(larger) > 1 or (axis == "channels" and len(dims) > 1):
            raise ModelError(f"{node}: volumes {' and '.join(map(str, ins))} do not fit together")
        sizes.append(larger.pop() if larger else 1)
    return Volume(*sizes)


def _concat_volume(node: Node, ins: list[Volume]) -> Volume:
    if len({(volume.height, volume.width) for volume in ins}) > 1:
        raise ModelError(f"{node}: volumes {' and '.join(map(str, ins))} cannot be joined along their channels")
    return Volume(sum(volume.channels for volume in ins), ins[0].height, ins[0].width)


def _same(node: Node, ins: list[Volume]) -> Volume:
    return ins[0]


def _grouped(node: Node, ins: list[Volume]) -> Volume:
    if ins[0].channels % node.attrs["group"]:
        raise ModelError(f"{node} cannot divide {ins[0].channels} channels into {node.attrs['group']} groups")
    return ins[0]


def _local_volume(node: Node, ins: list[Volume]) -> Volume:
    rows, columns, group, taps, filters = node.params["weight"].shape
    out = _slid(node, ins[0], group * filters)
    if node.attrs["group"] != group or taps * group != ins[0].channels * math.prod(node.attrs["kernel_shape"]):
        raise ModelError(
            f"{node}: weights {node.params['weight'].shape} do not fit an input of {ins[0].channels} channels, windows "
            f"of {node.attrs['kernel_shape']} and {node.attrs['group']} group(s)"
        )
    if (out.height or rows, out.width or columns) != (rows, columns):
        raise ShapeError(f"{node} has filters for {rows}x{columns} positions, its input has {out.height}x{out.width}")
    return Volume(out.channels, rows, columns)


def _no_flops(node: Node, ins: list[Volume], out: Volume) -> int:
    return 0


def _flops_per_value(count: int) -> Callable[[Node, list[Volume], Volume], int]:
    return lambda node, ins, out: count * out.values


def _weighted_flops(node: Node, ins: list[Volume], out: Volume) -> int:
    return 2 * out.values * math.prod(weight_shape(node)[1:])


def _window_flops(node: Node, ins: list[Volume], out: Volume) -> int:
    kernel = node.attrs.get("kernel_shape") or (_size(ins[0].height), _size(ins[0].width))
    return out.values * kernel[0] * kernel[1]


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What the planner, the reports and dense conversion need to know of one operation.

    volume: output volume from input volumes. slides: whether every output position applies the same
    function to its own window, so that a larger image gives a map. windowed: reads through
    kernel_shape/strides/pads/dilations; pads_zero: padding is physical zeros, else windows are clipped.
    whole: every output position reads the whole input; broadcasts: inputs of height or width 1 are read at
    their only row or column everywhere.
    windows: the windows of one that reads in another way.
    """

    volume: Callable[[Node, list[Volume]], Volume]
    flops: Callable[[Node, list[Volume], Volume], int] = _no_flops
    slides: bool | Callable[[Node], bool] = True
    windowed: bool = False
    pads_zero: bool = False
    whole: bool = False
    broadcasts: bool = False
    windows: Callable[[Node, list[Volume]], Windows] | None = None


def _combining_flops(node: Node, ins: list[Volume], out: Volume) -> int:
    return (len(ins) - 1) * out.values


OPS: dict[str, OpSpec] = {
    "Conv": OpSpec(_conv_volume, _weighted_flops, windowed=True, pads_zero=True),
    "MaxPool": OpSpec(lambda node, ins: _slid(node, ins[0], ins[0].channels), _window_flops, windowed=True),
    "AveragePool": OpSpec(lambda node, ins: _slid(node, ins[0], ins[0].channels), _window_flops, windowed=True),
    "GlobalAveragePool": OpSpec(
        lambda node, ins: Volume(ins[0].channels, 1, 1), _window_flops, slides=False, whole=True
    ),
    "GlobalMaxPool": OpSpec(lambda node, ins: Volume(ins[0].channels, 1, 1), _window_flops, slides=False, whole=True),
    "LpPool": OpSpec(lambda node, ins: _slid(node, ins[0], ins[0].channels), _window_flops, windowed=True),
    "GlobalLpPool": OpSpec(lambda node, ins: Volume(ins[0].channels, 1, 1), _window_flops, slides=False, whole=True),
    "LocallyConnected": OpSpec(
        _local_volume,
        lambda node, ins, out: 2 * out.values * node.params["weight"].shape[3],
        slides=False,
        windowed=True,
    ),
    "Gemm": OpSpec(_gemm_volume, _weighted_flops),
    "Flatten": OpSpec(_flatten_volume),
    "BatchNormalization": OpSpec(_same, _flops_per_value(2)),
    "GroupNormalization": OpSpec(_grouped, _flops_per_value(7), slides=False, whole=True),
    "LayerNormalization": OpSpec(_same, _flops_per_value(7)),
    "LpNormalization": OpSpec(_same, _flops_per_value(3)),
    "Affine": OpSpec(_same, _flops_per_value(2)),
    **{name: OpSpec(_same, _flops_per_value(activation.flops)) for name, activation in ACTIVATIONS.items()},
    "PRelu": OpSpec(_same, _flops_per_value(2)),
    **{name: OpSpec(_broadcast_volume, _combining_flops, broadcasts=True) for name in COMBINATIONS},
    "Concat": OpSpec(_concat_volume),
    "LRN": OpSpec(_same, lambda node, ins, out: (2 * node.attrs["size"] + 5) * out.values),
    "Softmax": OpSpec(_same, _flops_per_value(5)),
    "LogSoftmax": OpSpec(_same, _flops_per_value(5)),
    "ChannelShuffle": OpSpec(_grouped),
    "Identity": OpSpec(_same),
    "Slice": OpSpec(moves.slice_volume, slides=moves.keeps_places, windows=moves.slice_windows),
    "Pad": OpSpec(moves.pad_volume, slides=moves.keeps_places, windows=moves.pad_windows),
    "Resize": OpSpec(moves.resize_volume, moves.resize_flops, slides=False, windows=moves.resize_windows),
    "DepthToSpace": OpSpec(moves.depth_to_space_volume, slides=False, windows=moves.depth_to_space_windows),
    "SpaceToDepth": OpSpec(moves.space_to_depth_volume, windows=moves.space_to_depth_windows),
    "ConvTranspose": OpSpec(
        transposed.transposed_volume, transposed.transposed_flops, slides=False, windows=transposed.transposed_windows
    ),
}


def slides(node: Node) -> bool:
    """Tell whether every output position of a node applies the same function to its own window."""
    found = OPS[node.op].slides
    return found if isinstance(found, bool) else found(node)


def windows(node: Node, index: int, ins: list[Volume]) -> Windows:
    """Return the (vertical, horizontal) Window through which a node reads its input number index."""
    spec, volume = OPS[node.op], ins[index]
    if spec.windowed and index == 0:
        return _sliding_windows(node, volume)
    if node.op == "Flatten":
        return Window(node.attrs["kernel_shape"][0]), Window(node.attrs["kernel_shape"][1])
    if spec.whole:
        return _whole(volume)
    if spec.windows:
        return spec.windows(node, ins)
    if spec.broadcasts:
        out = spec.volume(node, ins)
        vertical = Window(stride=0) if volume.height == 1 and out.height != 1 else POINT
        horizontal = Window(stride=0) if volume.width == 1 and out.width != 1 else POINT
        return vertical, horizontal
    return POINT, POINT


def infer_volumes(graph: Graph, height: int | None = None, width: int | None = None) -> dict[str, Volume]:
    """Return the volume of every tensor for an image of height x width (default: the graph's own input size).

    Raises ShapeError where a layer's window does not fit or a side is longer than LARGEST_SIDE, ModelError where
    volumes contradict weights.
    """
    declared = graph.input_volume
    if max(height or 0, width or 0) > LARGEST_SIDE:
        raise ShapeError(f"the image is {height}x{width}; allowed: at most {LARGEST_SIDE} pixels a side")
    volumes = {graph.input_name: Volume(declared.channels, height or declared.height, width or declared.width)}
    for node in graph.nodes:
        volumes[node.output] = OPS[node.op].volume(node, [volumes[tensor] for tensor in node.inputs])
    return volumes


def output_shapes(graph: Graph) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of each output for one image of the graph's own size, by name; None for what images decide."""
    volumes = infer_volumes(graph)
    shapes: dict[str, tuple[int | None, ...]] = {}
    for output in graph.outputs:
        volume = volumes[output.tensor]
        own = (volume.channels, volume.height, volume.width)
        shapes[output.name] = own if output.shape is None else output.shape
    return shapes
