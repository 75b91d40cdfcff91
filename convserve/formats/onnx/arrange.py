"""Lays values out as volumes of other sizes, so that what an operation works along lies where it wants it.

Spreading pixels over channels and channels over pixels again (SpaceToDepth, DepthToSpace) makes every one of these.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from convserve.formats.onnx.context import Context
from convserve.formats.onnx.source import Source
from convserve.formats.views import Size, View

__all__ = ["along", "exchanged", "pointwise", "transposed"]

ROWS, COLUMNS = 1, 2


def exchanged(context: Context, source: Source, view: View, axis: int) -> View:
    """Return a volume whose channels are the rows (axis 1) or columns (2) of a volume, and the other way round."""
    context.known(source, view)
    channels, size = view.volume.channels, (view.volume.height, view.volume.width)[axis - 1]
    if size != 1:
        blocks = (size, 1) if axis == ROWS else (1, size)
        view = context.emit(source, "SpaceToDepth", [view], {"blocksize": blocks, "mode": "CRD"})
    if channels != 1:
        blocks = (channels, 1) if axis == ROWS else (1, channels)
        view = context.emit(source, "DepthToSpace", [view], {"blocksize": blocks, "mode": "DCR"})
    return view.shaped(view.dims)


def transposed(context: Context, source: Source, view: View, order: tuple[int, int, int]) -> View:
    """Return a volume whose axes are those of a volume in another order."""
    if order[0] == 0 and order != (0, 1, 2):
        turned = exchanged(context, source, exchanged(context, source, view, ROWS), COLUMNS)
        return exchanged(context, source, turned, ROWS)
    for axis in (ROWS, COLUMNS):
        if order[0] == axis:
            view = exchanged(context, source, view, axis)
            now = [0, 1, 2]
            now[0], now[axis] = axis, 0
            rest = tuple(now.index(place) for place in order)
            return view if rest == (0, 1, 2) else transposed(context, source, view, rest)  # type: ignore[arg-type]
    return view


def along(context: Context, source: Source, view: View, begin: int, end: int) -> tuple[View, Callable[[View], View]]:
    """Return a volume whose channels are the sizes [begin, end) of a view, and what lays the like out as the view.

    That may have as many channels, or one; or of a single size any number.
    """
    if view.channels_last and (begin, end) == (2, 3):
        return view, lambda after: replace(after, shape=(*after.dims[1:], after.dims[0]), channels_last=True)
    shape, volume = view.shape, view
    if view.shape == view.dims and end == begin + 1 and not view.channels_last:
        axis = begin
    else:
        sizes = context.known(source, view)
        before, mine, behind = (math.prod(part) for part in (sizes[:begin], sizes[begin:end], sizes[end:]))
        axis = 0 if before == 1 else ROWS
        volume = context.laid_out(source, view, (mine, behind, 1) if before == 1 else (before, mine, behind))

    def back(after: View) -> View:
        laid = exchanged(context, source, after, axis) if axis else after
        kept: tuple[Size, ...] = (1,) * (end - begin) if after.volume.channels == 1 else shape[begin:end]
        if end == begin + 1:
            kept = (after.volume.channels,)
        return laid.shaped((*shape[:begin], *kept, *shape[end:]))

    return exchanged(context, source, volume, axis) if axis else volume, back


def pointwise(context: Context, source: Source, view: View, weight: np.ndarray) -> View:
    """Return a 1x1 convolution, without bias, of a volume: weight (filters, channels)."""
    attrs = {
        "kernel_shape": (1, 1),
        "strides": (1, 1),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
        "group": 1,
        "auto_pad": "NOTSET",
        "activation": "",
    }
    params = {
        "weight": weight.astype(np.float32)[:, :, None, None],
        "bias": np.zeros(len(weight), np.float32),
    }
    mixed = context.emit(source, "Conv", [view], attrs, params)
    height, width = view.dims[1:]
    return replace(mixed, dims=(len(weight), height, width), shape=(len(weight), height, width))
