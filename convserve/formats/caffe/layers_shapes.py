"""Caffe's layers that join, cut and reshape blobs, or do nothing at test time."""

import math
from collections.abc import Callable
from itertools import pairwise

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.caffe.context import Context
from convserve.formats.caffe.layer import Layer
from convserve.formats.views import View, reshaped

__all__ = ["SHAPES"]


def identity(context: Context, layer: Layer) -> View:
    return context.bottom(layer)


def split(context: Context, layer: Layer) -> list[View]:
    return [context.bottom(layer)] * len(layer.tops)


def concat(context: Context, layer: Layer) -> View:
    param = layer.proto.concat_param
    views = [context.volume(layer, view) for view in context.bottoms(layer, 1, math.inf)]
    axis = layer.axis(param.concat_dim if param.HasField("concat_dim") else param.axis, views[0])
    if axis != 1:
        raise UnsupportedOpError(f"{layer} joins along axis {axis}; supported is 1, the channels")
    if len({len(view.shape) for view in views}) > 1:
        raise ModelFormatError(f"{layer} joins blobs of shapes {' and '.join(map(str, views))}")
    if len(views) == 1:
        return views[0]
    joined = context.emit(layer, "Concat", views)
    return joined.shaped(joined.dims[: len(views[0].shape)])


def slice_(context: Context, layer: Layer) -> list[View]:
    param, view = layer.proto.slice_param, context.volume(layer, context.bottom(layer))
    axis = layer.axis(param.slice_dim if param.HasField("slice_dim") else param.axis, view)
    if axis == 0:
        raise UnsupportedOpError(f"{layer} cuts the batch apart; supported are the axes behind it")
    size, parts = _known(view, axis), len(layer.tops)
    points = [int(point) for point in param.slice_point]
    if not points:
        if size % parts:
            raise ModelFormatError(f"{layer} cuts {size} positions into {parts} equal parts")
        points = [size // parts * number for number in range(1, parts)]
    bounds = [0, *points, size]
    if len(points) != parts - 1 or any(begin >= end for begin, end in pairwise(bounds)):
        raise ModelFormatError(f"{layer} cuts {size} positions at {points} into {parts} parts")
    return [
        _cut(context, layer, view, {axis: (begin, end)}, f".{number}")
        for number, (begin, end) in enumerate(pairwise(bounds))
    ]


def _known(view: View, axis: int) -> int:
    size = view.dims[axis - 1]
    assert isinstance(size, int)
    return size


def _cut(context: Context, layer: Layer, view: View, spans: dict[int, tuple[int, int]], suffix: str = "") -> View:
    """Add the slice of a view from begin to end of some axes."""
    whole = {axis: (0, _known(view, axis)) for axis in (1, 2, 3)}
    kept = {**whole, **spans}
    attrs = {
        "starts": tuple(kept[axis][0] for axis in whole),
        "ends": tuple(whole[axis][1] - kept[axis][1] for axis in whole),
        "steps": (1, 1, 1),
    }
    cut = context.emit(layer, "Slice", [view], attrs, suffix=suffix)
    return cut.shaped(cut.dims[: len(view.shape)])


def crop(context: Context, layer: Layer) -> View:
    """The first blob from an offset on, as large as the second, along its last axes."""
    param = layer.proto.crop_param
    view, like = (context.volume(layer, part) for part in context.bottoms(layer, 2))
    view, like = view.shaped(view.dims), like.shaped(like.dims)
    axis, offsets = layer.axis(param.axis, view), [int(offset) for offset in param.offset]
    if axis == 0:
        raise UnsupportedOpError(f"{layer} cuts the batch; supported are the axes behind it")
    axes = range(axis, 4)
    if len(offsets) not in (0, 1, len(axes)):
        raise ModelFormatError(f"{layer} has {len(offsets)} offsets for {len(axes)} axes")
    offsets = offsets * len(axes) if len(offsets) == 1 else offsets or [0] * len(axes)
    spans = {axis: (offset, offset + _known(like, axis)) for axis, offset in zip(axes, offsets, strict=True)}
    if any(end > _known(view, axis) for axis, (_, end) in spans.items()):
        raise ModelFormatError(f"{layer} cuts {like} at the offsets {offsets} out of {view}, which is too small")
    return _cut(context, layer, view, spans)


def flatten(context: Context, layer: Layer) -> View:
    param, view = layer.proto.flatten_param, context.bottom(layer)
    first, last = layer.axis(param.axis, view), layer.axis(param.end_axis, view, "end_axis")
    if first == 0 or first > last:
        raise UnsupportedOpError(f"{layer} flattens the axes {first} to {last}; supported are axes behind the batch")
    before, inner, behind = view.shape[: first - 1], view.shape[first - 1 : last], view.shape[last:]
    return view.shaped((*before, math.prod(inner), *behind))  # type: ignore[arg-type]


def reshape(context: Context, layer: Layer) -> View:
    param, view = layer.proto.reshape_param, context.bottom(layer)
    target, axis = [int(size) for size in param.shape.dim], layer.axis(param.axis, view)
    if param.num_axes != -1 or axis > 1:
        raise UnsupportedOpError(
            f"{layer} has axis {axis} and num_axes {param.num_axes}; supported are axis 0 or 1 and num_axes -1"
        )
    if axis == 1:
        target = [0, *target]
    return reshaped(view, target, declared_batch=context.batch, allowzero=False, what=str(layer))


SHAPES: dict[str, Callable[[Context, Layer], View | list[View]]] = {
    "Concat": concat,
    "Crop": crop,
    "Dropout": identity,
    "Flatten": flatten,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
}
