"""ONNX's reductions over height, width, channels or whatever sizes a tensor has behind the batch."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from convserve.formats.onnx.arrange import exchanged, pointwise
from convserve.formats.onnx.context import Context, axes_behind_batch
from convserve.formats.onnx.nodes_activations import affine
from convserve.formats.onnx.source import Source
from convserve.formats.views import View

__all__ = ["REDUCTIONS"]

_POOLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ReduceL1": ("LpPool", {"p": 1}),
    "ReduceL2": ("LpPool", {"p": 2}),
    "ReduceMax": ("MaxPool", {}),
    "ReduceMean": ("AveragePool", {}),
    "ReduceMin": ("MaxPool", {}),
    "ReduceSum": ("AveragePool", {}),
}


def _times(context: Context, source: Source, view: View, factor: float) -> View:
    ones = np.ones(view.volume.channels)
    return affine(context, source, view, factor * ones, 0 * ones)


def _pooled(context: Context, source: Source, view: View, axes: set[int]) -> View:
    """Return a volume pooled over its rows (1), its columns (2) or both."""
    op, attrs = _POOLINGS[source.op]
    if axes == {1, 2}:
        return context.emit(source, f"Global{op}", [view], attrs)
    kernel = (view.volume.height if 1 in axes else 1, view.volume.width if 2 in axes else 1)
    if None in kernel:
        context.known(source, view)
    window = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "auto_pad": "NOTSET"}
    rounding = {"ceil_mode": False, "count_include_pad": False}
    return context.emit(source, op, [view], {"kernel_shape": kernel, **window, **rounding, **attrs})


def _over_channels(context: Context, source: Source, view: View) -> View:
    """Return a volume of one channel, in which the others of a volume are reduced."""
    if source.op in ("ReduceMean", "ReduceSum"):
        channels = view.volume.channels
        return pointwise(context, source, view, np.full((1, channels), 1 / channels))
    return exchanged(context, source, _pooled(context, source, exchanged(context, source, view, 1), {1}), 1)


def _reduced(context: Context, source: Source, view: View, axes: list[int]) -> View:
    """Return a view with sizes of 1 in place of those of the axes, which are counted without the batch."""
    ones = tuple(1 if axis in axes else size for axis, size in enumerate(view.shape))
    if len(view.shape) == 1:
        view = context.volume(source, view)
    if view.channels_last or (len(view.shape) in (1, 3) and (*view.shape, 1, 1)[:3] == view.dims):
        places = {(axis + 1) % 3 if view.channels_last else axis for axis in axes}
        found = _pooled(context, source, view, places - {0}) if places - {0} else view
        found = _over_channels(context, source, found) if 0 in places else found
        return replace(found, shape=ones, channels_last=view.channels_last)
    shape, begin = context.known(source, view), axes[-1]
    while begin - 1 in axes:
        begin -= 1
    end = axes[-1] + 1
    before, reduced, behind = (math.prod(part) for part in (shape[:begin], shape[begin:end], shape[end:]))
    found = _pooled(context, source, context.laid_out(source, view, (before, reduced, behind)), {1})
    found = found.shaped((*shape[:begin], *(1,) * (end - begin), *shape[end:]))
    others = [axis for axis in axes if axis < begin]
    return _reduced(context, source, found, others) if others else found


def reduce(context: Context, source: Source) -> View:
    """Write a reduction as a pooling, or over channels as a convolution where that will do."""
    view = context.view(source, 0, channels_last=True)
    axes = context.axes(source, since=13 if source.op == "ReduceSum" else 18)
    if not axes and source.integer("noop_with_empty_axes", 0):
        return view
    rank = len(view.shape) + 1
    over = [axis - 1 for axis in sorted(axes_behind_batch(source, tuple(axes or range(rank)), rank))]
    if source.op == "ReduceMin":
        view = _times(context, source, view, -1.0)
    found = _reduced(context, source, view, over)
    if source.op == "ReduceMin":
        found = _times(context, source, found, -1.0)
    if source.op == "ReduceSum":
        sizes = context.known(source, view.shaped(view.shape[axis] for axis in over))
        found = _times(context, source, found, float(math.prod(sizes)))
    if source.integer("keepdims", 1):
        return found
    if found.channels_last:
        height, width, channels = context.known(source, found)
        found = context.laid_out(source, found, (height, width, channels))
    return found.shaped(size for axis, size in enumerate(found.shape) if axis not in over)


REDUCTIONS: dict[str, Callable[[Context, Source], View]] = dict.fromkeys(_POOLINGS, reduce)
