"""Importer of ONNX's ConvTranspose: explicit pads from whatever way the file gives them."""

from collections.abc import Callable

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.context import Context
from convserve.formats.onnx.source import Source
from convserve.formats.views import View
from convserve.graph.ir import Volume

__all__ = ["TRANSPOSED"]

LARGEST = 1 << 16
Pair = tuple[int, int]


def _pair(source: Source, name: str, default: tuple[int, ...], low: int) -> Pair:
    pair = source.integers(name, default)
    if len(pair) != 2 or not all(low <= size <= LARGEST for size in pair):
        raise ModelFormatError(f"{source}: {name} is {pair}; supported are two numbers from {low} to {LARGEST}")
    return pair[0], pair[1]


def conv_transpose(context: Context, source: Source) -> View:
    image = context.image(source)
    weight = context.constant(source, 1)
    assert weight is not None
    if weight.ndim != 4:
        raise UnsupportedOpError(f"{source}: its weights have the shape {weight.shape}; supported is (C, M, kh, kw)")
    weight = context.weights(source, 1, (None, None, None, None))
    group, kernel = source.integer("group", 1), _pair(source, "kernel_shape", weight.shape[2:], 1)
    if kernel != weight.shape[2:] or group < 1 or weight.shape[0] % group or not weight.size:
        raise ModelFormatError(
            f"{source}: weights of shape {weight.shape} do not fit kernel_shape {kernel} and group {group}"
        )
    filters = weight.shape[1] * group
    bias = np.zeros(filters, np.float32)
    if context.constant(source, 2, optional=True) is not None:
        bias = context.weights(source, 2, (filters,))
    strides, dilations = _pair(source, "strides", (1, 1), 1), _pair(source, "dilations", (1, 1), 1)
    padding = _pair(source, "output_padding", (0, 0), 0)
    pads, padding = _pads(source, image.volume, kernel, strides, dilations, padding)
    attrs = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "output_padding": padding,
        "group": group,
        "activation": "",
    }
    return context.emit(source, "ConvTranspose", [image], attrs, {"weight": weight, "bias": bias})


def _pads(
    source: Source, volume: Volume, kernel: Pair, strides: Pair, dilations: Pair, padding: Pair
) -> tuple[tuple[int, ...], Pair]:
    """Return pads and output padding: as given, or those that lead to output_shape or to SAME's input * stride."""
    auto_pad = source.text("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ModelFormatError(
            f"{source}: auto_pad is '{auto_pad}'; supported are NOTSET, VALID, SAME_UPPER and SAME_LOWER"
        )
    shape = source.integers("output_shape", None)
    if shape is None and auto_pad in ("NOTSET", "VALID"):
        pads = source.integers("pads", (0, 0, 0, 0)) if auto_pad == "NOTSET" else (0, 0, 0, 0)
        if len(pads) != 4 or not all(0 <= pad <= LARGEST for pad in pads):
            raise ModelFormatError(f"{source}: pads is {pads}; supported are four numbers from 0 to {LARGEST}")
        return pads, padding
    if shape is not None and (len(shape) not in (2, 4) or not all(1 <= size <= LARGEST for size in shape[-2:])):
        raise ModelFormatError(f"{source}: output_shape is {shape}; supported are height and width to {LARGEST}")
    begins, ends, added = [], [], []
    for axis, size in enumerate((volume.height, volume.width)):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        if shape is None:
            total = extent + padding[axis] - strides[axis]
        elif size is None:
            raise ModelFormatError(f"{source} fixes the size of what the file leaves open; pass window=(h, w)")
        else:
            total = strides[axis] * (size - 1) + extent + padding[axis] - shape[-2:][axis]
        small, large = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
        begins.append(small if auto_pad == "SAME_UPPER" else large)
        ends.append(large if auto_pad == "SAME_UPPER" else small)
        # what pads below 0 would add is added behind
        added.append(padding[axis] + max(-total, 0))
    return (*begins, *ends), (added[0], added[1])


TRANSPOSED: dict[str, Callable[[Context, Source], View]] = {"ConvTranspose": conv_transpose}
