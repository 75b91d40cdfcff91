"""ONNX's arithmetic value by value, with constants and between tensors."""

import math
from collections.abc import Callable

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.context import Context, channel_values
from convserve.formats.onnx.nodes_activations import affine
from convserve.formats.onnx.source import Source
from convserve.formats.onnx.views import View

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
    values = channel_values(source, array, view)
    if op in ("Max", "Min"):
        bound = float(values[0])
        if (values != bound).any() or not math.isfinite(bound):
            raise UnsupportedOpError(f"{source} has the bounds {array.reshape(-1)[:8]}; supported is one finite value")
        return context.emit(source, "Clip", [view], {"min" if op == "Max" else "max": bound}).like(view)
    if op == "Div" and reverse:
        view = context.emit(source, "Reciprocal", [view]).like(view)
    with np.errstate(divide="ignore"):
        return affine(context, source, view, *_SCALE_AND_SHIFT[op](values, reverse))


def _combined(context: Context, source: Source, op: str, views: list[View]) -> View:
    """Write what several tensors of the image make, from the first to the last."""
    first = views[0]
    orders = {(view.shape, view.dims, view.channels_last) for view in views}
    if len(orders) == 1:
        return context.emit(source, op, views, {"activation": ""}).like(first)
    parts = [context.volume(source, view) for view in views]
    sizes = {(len(part.shape), part.dims[0]) for part in parts}
    if len(sizes) > 1 or any(part.channels_last for part in parts):
        raise UnsupportedOpError(
            f"{source} combines tensors of shapes {', '.join(map(str, views))}; supported are equal shapes, and a 1x1 "
            "volume with as many channels over a larger one"
        )
    combined = context.emit(source, op, parts, {"activation": ""})
    return combined.shaped(combined.dims if len(parts[0].shape) == 3 else parts[0].shape)


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
