"""ONNX's arithmetic value by value, with constants and between tensors."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.arrange import pointwise
from convserve.formats.onnx.context import Context, as_float32, channel_values
from convserve.formats.onnx.nodes_activations import affine
from convserve.formats.onnx.source import Source
from convserve.formats.views import View

__all__ = ["ELEMENTWISE"]


# what one tensor of the image and constants make, without a tensor between: scale and shift of (constant, reverse)
_SCALE_AND_SHIFT: dict[str, Callable[[np.ndarray, bool], tuple[np.ndarray, np.ndarray]]] = {
    "Add": lambda values, reverse: (np.ones_like(values), values),
    "Sub": lambda values, reverse: (-np.ones_like(values), values) if reverse else (np.ones_like(values), -values),
    "Mul": lambda values, reverse: (values, np.zeros_like(values)),
    "Div": lambda values, reverse: (values if reverse else 1.0 / values, np.zeros_like(values)),
}


def _with_constant(context: Context, source: Source, op: str, view: View, array: np.ndarray, reverse: bool) -> View:
    """Write view op constant, or with reverse constant op view, as scale and shift per channel or as a bound."""
    if array.size != 1:
        view = context.volume(source, view)
    by_pixel = _by_pixel(source, op, view, array)
    if by_pixel is not None:
        if op == "Div" and reverse:
            view = context.emit(source, "Reciprocal", [view]).like(view)
        return _affine_by_pixel(context, source, view, *_scale_and_shift(op, by_pixel, reverse))
    values = channel_values(source, array, view)
    if op in ("Max", "Min"):
        bound = float(values[0])
        if (values != bound).any() or not math.isfinite(bound):
            raise UnsupportedOpError(f"{source} has the bounds {array.reshape(-1)[:8]}; supported is one finite value")
        return context.emit(source, "Clip", [view], {"min" if op == "Max" else "max": bound}).like(view)
    if op == "Div" and reverse:
        view = context.emit(source, "Reciprocal", [view]).like(view)
    return affine(context, source, view, *_scale_and_shift(op, values, reverse))


def _scale_and_shift(op: str, values: np.ndarray, reverse: bool) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore"):
        return _SCALE_AND_SHIFT[op](values, reverse)


def _by_pixel(source: Source, op: str, view: View, array: np.ndarray) -> np.ndarray | None:
    """Return a constant that differs from pixel to pixel as float64 (rows, columns, channels), or None."""
    sizes = tuple(size for size in view.shape if isinstance(size, int))
    if op not in _SCALE_AND_SHIFT or len(sizes) != len(view.shape) or array.ndim > len(sizes) + 1 or array.size == 1:
        return None
    shape = (1,) * (len(sizes) + 1 - array.ndim) + array.shape
    if shape[0] != 1 or any(mine not in (1, its) for mine, its in zip(shape[1:], sizes, strict=True)):
        return None
    values = np.broadcast_to(as_float32(source, array).astype(np.float64).reshape(shape[1:]), sizes)
    values = values.reshape((*sizes, 1, 1)[: max(len(sizes), 3)])
    if not view.channels_last:
        values = np.moveaxis(values, 0, -1)
    return None if (values == values[:1, :1]).all() else values


def _affine_by_pixel(context: Context, source: Source, view: View, scale: np.ndarray, shift: np.ndarray) -> View:
    """Write view * scale + shift, arrays of (rows, columns, channels), as a 1x1 filter at each position."""
    rows, columns, channels = scale.shape
    attrs = {
        "kernel_shape": (1, 1),
        "strides": (1, 1),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
        "auto_pad": "NOTSET",
        "group": channels,
        "activation": "",
    }
    weight = scale.astype(np.float32).reshape(rows, columns, channels, 1, 1)
    params = {"weight": weight, "bias": shift.astype(np.float32)}
    after = context.emit(source, "LocallyConnected", [view], attrs, params)
    return replace(after, shape=view.shape, channels_last=view.channels_last)


def _combined(context: Context, source: Source, op: str, views: list[View]) -> View:
    """Write what several tensors of the image make, from the first to the last."""
    first = views[0]
    orders = {(view.shape, view.dims, view.channels_last) for view in views}
    if len(orders) == 1:
        return context.emit(source, op, views, {"activation": ""}).like(first)
    parts = [context.volume(source, view) for view in views]
    if len({(len(part.shape), part.channels_last) for part in parts}) > 1:
        raise UnsupportedOpError(
            f"{source} combines tensors of shapes {', '.join(map(str, views))}; supported are shapes of equal rank, "
            "with a size of 1 over any other"
        )
    channels = max(part.volume.channels for part in parts)
    parts = [
        part if part.volume.channels != 1 or channels == 1 else pointwise(context, source, part, np.ones((channels, 1)))
        for part in parts
    ]
    combined = context.emit(source, op, parts, {"activation": ""})
    if first.channels_last:
        depth, height, width = combined.dims
        return replace(combined, shape=(height, width, depth), channels_last=True)
    return combined.shaped(combined.dims[: len(parts[0].shape)])


def _from_axis(source: Source, array: np.ndarray, rank: int) -> np.ndarray:
    """Return a constant whose first size stands at the attribute axis, as in opset 6, with 1s behind."""
    axis = source.integer("axis")
    behind = rank - array.ndim - (axis + rank if axis < 0 else axis)
    if behind < 0:
        raise ModelFormatError(f"{source}: a constant of shape {array.shape} does not fit at axis {axis} of {rank}")
    return array.reshape(array.shape + (1,) * behind)


def elementwise(context: Context, source: Source) -> View:
    indices = range(len(source.inputs))
    constants = [index for index in indices if context.is_constant(source, index)]
    views = [context.view(source, index, channels_last=True) for index in indices if index not in constants]
    op = {"Sum": "Add", "Mean": "Add"}.get(source.op, source.op)
    if (len(indices) != 2 and source.op in ("Add", "Sub", "Mul", "Div")) or not views:
        raise ModelFormatError(f"{source} has {len(indices)} inputs")
    view = views[0] if len(views) == 1 else _combined(context, source, op, views)
    for index in constants:
        array = context.constant(source, index)
        assert array is not None
        if source.opset < 7 and source.has("axis"):
            array = _from_axis(source, array, len(views[0].shape) + 1)
        view = _with_constant(context, source, op, view, array, reverse=index == 0)
    if source.op == "Mean" and len(indices) > 1:
        view = _with_constant(context, source, "Div", view, np.array(len(indices), np.float32), reverse=False)
    return view


ELEMENTWISE: dict[str, Callable[[Context, Source], View]] = dict.fromkeys(
    ("Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum"), elementwise
)
