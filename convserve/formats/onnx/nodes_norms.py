"""ONNX's normalisations: over the training's statistics, over neighbouring channels, to a sum of 1."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.context import Context, axes_behind_batch, channel_values
from convserve.formats.onnx.source import LARGEST, Source
from convserve.formats.onnx.views import View

__all__ = ["NORMS"]


def batch_normalization(context: Context, source: Source) -> View:
    if source.opset < 9 and source.integer("spatial", 1) != 1:
        raise UnsupportedOpError(f"{source} normalizes each pixel by itself (spatial=0); supported is spatial=1")
    if source.integer("training_mode", 0):
        raise UnsupportedOpError(f"{source} is in training mode; export the network for inference")
    view = context.volume(source, context.view(source, 0))
    channels = (view.volume.channels,)
    params = {name: context.weights(source, i, channels) for i, name in enumerate(("scale", "bias", "mean", "var"), 1)}
    attrs = {"epsilon": source.real("epsilon", 1e-5)}
    return context.emit(source, "BatchNormalization", [view], attrs, params).shaped(view.shape)


def lrn(context: Context, source: Source) -> View:
    size = source.integer("size")
    if not 1 <= size <= LARGEST:
        raise ModelFormatError(f"{source}: size is {size}; it must be from 1 to {LARGEST}")
    image = context.image(source)
    if source.integer("channels", 0) not in (0, image.volume.channels):
        raise UnsupportedOpError(f"{source} takes means along another axis than the {image.volume.channels} channels")
    attrs = {
        "size": size,
        "alpha": source.real("alpha", 1e-4),
        "beta": source.real("beta", 0.75),
        "bias": source.real("bias", 1.0),
    }
    return context.emit(source, "LRN", [image], attrs)


def softmax(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    rank = len(view.shape) + 1
    axis = source.integer("axis", -1 if source.opset >= 13 else 1)
    axis = axis + rank if axis < 0 else axis
    if len(view.shape) == 1:
        view = context.volume(source, view)
    outer, summed, inner = view.shape[: max(axis - 1, 0)], view.shape[axis - 1 : axis], view.shape[axis:]
    if source.opset < 13:
        summed, inner = view.shape[max(axis - 1, 0) :], ()
    over_channels = axis >= 1 and all(size == 1 for size in outer)
    over_channels = over_channels and [size for size in summed if size != 1] in ([], [view.dims[0]])
    # Whatever follows the channels must be what the volume has behind them, so that the sum is one per pixel.
    places = [size for size in inner if size != 1] == [size for size in view.dims[1:] if size != 1]
    if not over_channels or not places or (view.dims[0] != 1 and view.dims[0] not in summed):
        covered = "axis {} and all behind it" if source.opset < 13 else "axis {}"
        raise UnsupportedOpError(
            f"{source} sums over {covered.format(axis)} of a tensor of shape {view}; supported is a sum over channels"
        )
    return context.emit(source, source.op, [view]).shaped(view.shape)


def _standardized(
    context: Context, source: Source, op: str, view: View, scale: np.ndarray, bias: np.ndarray, **attrs: float
) -> View:
    epsilon = source.real("epsilon", 1e-5)
    if not epsilon >= 0 or math.isinf(epsilon):
        raise ModelFormatError(f"{source}: epsilon is {epsilon}; it must be a finite number from 0")
    params = {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
    return context.emit(source, op, [view], {"epsilon": epsilon, **attrs}, params).like(view)


def _grouped(context: Context, source: Source, view: View, group: int, scales: int) -> View:
    """Write a GroupNormalization whose scale and bias have one value for each of `scales` runs of channels."""
    channels = view.volume.channels
    if group < 1 or channels % group:
        raise ModelFormatError(f"{source} divides {channels} channels into {group} groups")
    scale, bias = (np.repeat(context.weights(source, i, (scales,)), channels // scales) for i in (1, 2))
    return _standardized(context, source, "GroupNormalization", view, scale, bias, group=group)


def instance_normalization(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    group = view.shape[0] if view.shape else 0
    if not isinstance(group, int) or group < 1 or view.volume.channels % group or len(view.shape) < 2:
        raise UnsupportedOpError(
            f"{source} reads a tensor of shape {view} over a volume of {view.volume}; supported are its channels, "
            "or groups of them, before all else"
        )
    return _grouped(context, source, view, group, group)


def group_normalization(context: Context, source: Source) -> View:
    view = context.image(source)
    group = source.integer("num_groups")
    return _grouped(context, source, view, group, group if source.opset < 21 else view.volume.channels)


def mean_variance_normalization(context: Context, source: Source) -> View:
    view = context.image(source)
    axes = axes_behind_batch(source, source.integers("axes", (0, 2, 3)), 4)
    if axes not in ({2, 3}, {1, 2, 3}):
        raise UnsupportedOpError(f"{source} normalizes over axes {sorted(axes)}; supported are (2, 3) and (1, 2, 3)")
    channels = view.volume.channels
    ones = np.ones(channels, np.float32)
    attrs = {"group": 1 if 1 in axes else channels, "epsilon": 1e-18}
    return context.emit(source, "GroupNormalization", [view], attrs, {"scale": ones, "bias": 0 * ones})


def _axis(source: Source, view: View, default: int) -> int:
    rank = len(view.shape) + 1
    (axis,) = axes_behind_batch(source, (source.integer("axis", default),), rank)
    return axis


def layer_normalization(context: Context, source: Source) -> View:
    given = view = context.view(source, 0, channels_last=True)
    axis = _axis(source, view, -1)
    constants = [context.constant(source, 1), context.constant(source, 2, optional=True)]
    whole = all(size == 1 for size in view.shape[: axis - 1])
    if whole and (len(view.shape) == 1 or (view.volume.height, view.volume.width) == (1, 1)):
        # wherever the channels of the one position lie, a constant has them in order
        constants = [c if c is None or c.ndim > len(view.shape) - axis + 1 else c.reshape(-1) for c in constants]
        shape = view.shape if len(view.shape) == 1 else (view.volume.channels,)
        view = context.volume(source, replace(view, shape=shape, channels_last=False))
        op = "LayerNormalization"
    elif view.channels_last and axis == len(view.shape):
        op = "LayerNormalization"
    elif whole and not view.channels_last:
        op = "GroupNormalization"
    else:
        raise UnsupportedOpError(
            f"{source} normalizes the axes from {axis} on of a tensor of shape {view}; supported are all axes behind "
            "the batch, and channels that lie last"
        )
    channels = view.volume.channels
    scale, bias = (np.zeros(channels) if c is None else channel_values(source, c, view) for c in constants)
    attrs = {"group": 1} if op == "GroupNormalization" else {}
    return _standardized(context, source, op, view, scale, bias, **attrs).like(given)


def lp_normalization(context: Context, source: Source) -> View:
    view = context.view(source, 0, channels_last=True)
    axis, p = _axis(source, view, -1), source.integer("p", 2)
    if len(view.shape) == 1:
        view = context.volume(source, view)
    if axis != (len(view.shape) if view.channels_last else 1) or (view.shape != view.dims and len(view.shape) == 3):
        raise UnsupportedOpError(f"{source} divides by norms over axis {axis} of {view}; supported are channels")
    if p not in (1, 2):
        raise ModelFormatError(f"{source}: p is {p}; it must be 1 or 2")
    # a norm of 0 gives zeros
    return context.emit(source, "LpNormalization", [view], {"p": p, "epsilon": 1.2e-38}).like(view)


NORMS: dict[str, Callable[[Context, Source], View]] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": softmax,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "Softmax": softmax,
}
