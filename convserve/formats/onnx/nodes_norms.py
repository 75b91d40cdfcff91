"""ONNX's normalisations: over the training's statistics, over neighbouring channels, to a sum of 1."""

import math
from collections.abc import Callable

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.arrange import along, pointwise
from convserve.formats.onnx.context import Context, as_float32, axes_behind_batch, channel_values
from convserve.formats.onnx.nodes_activations import affine
from convserve.formats.onnx.source import LARGEST, Source
from convserve.formats.views import Size, View

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
    view = context.view(source, 0, channels_last=True)
    rank = len(view.shape) + 1
    axis = source.integer("axis", -1 if source.opset >= 13 else 1)
    positive = axis + rank if axis < 0 else axis
    if not 0 <= positive < rank:
        raise ModelFormatError(f"{source}: axis is {axis}, but the tensor has the shape {view}")
    if not positive:
        raise UnsupportedOpError(f"{source} sums over axis 0, the batch; supported are the axes behind it")
    begin, end = positive - 1, positive if source.opset >= 13 else rank - 1
    shape, sizes = view.shape, [size for size in view.shape[begin:end] if size != 1]
    if len(shape) == 1:
        view = context.volume(source, view)
    # Whatever follows the channels must be what the volume has behind them, so that the sum is one per pixel.
    behind = [size for size in shape[end:] if size != 1] == [size for size in view.dims[1:] if size != 1]
    before = all(size == 1 for size in shape[:begin])
    if before and behind and sizes == [size for size in view.dims[:1] if size != 1] and not view.channels_last:
        return context.emit(source, source.op, [view]).shaped(shape)
    volume, back = along(context, source, view, begin, end)
    return back(context.emit(source, source.op, [volume]))


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


def layer_normalization(context: Context, source: Source) -> View | list[View]:
    view = context.view(source, 0, channels_last=True)
    if source.has("axes"):
        return _spelled(context, source, view, axes_behind_batch(source, source.integers("axes"), len(view.shape) + 1))
    axis = _axis(source, view, -1)
    if len(view.shape) == 1:
        view = context.volume(source, view)
    constants = [context.constant(source, 1), context.constant(source, 2, optional=True)]
    further = any(name in context.needed for name in source.outputs[1:])
    if axis == 1 and not further and (view.shape == view.dims or len(view.shape) == 1):
        by_channel = [None if c is None else _one_per_channel(source, c, view) for c in constants]
        if by_channel[0] is not None and (constants[1] is None) == (by_channel[1] is None):
            zeros = np.zeros(view.volume.channels)
            scale, bias = (zeros if values is None else values for values in by_channel)
            op, attrs = ("LayerNormalization", {}) if len(view.shape) == 1 else ("GroupNormalization", {"group": 1})
            return _standardized(context, source, op, view, scale, bias, **attrs)
    volume, back = along(context, source, view, axis - 1, len(view.shape))
    summed = view.shape[axis - 1 :]
    scale, bias = (np.zeros(volume.volume.channels) if c is None else _over(source, c, summed) for c in constants)
    after = back(_standardized(context, source, "LayerNormalization", volume, scale, bias))
    if not further:
        return after
    return [after, *(back(found) for found in _mean_and_deviation(context, source, volume))]


def _spelled(context: Context, source: Source, view: View, axes: set[int]) -> View:
    """Normalize over neighbouring axes, without scale and bias."""
    first, last = min(axes), max(axes)
    if len(axes) != last - first + 1:
        raise UnsupportedOpError(f"{source} normalizes the axes {sorted(axes)}; supported are those without a gap")
    volume, back = along(context, source, view, first - 1, last)
    channels = volume.volume.channels
    return back(_standardized(context, source, "LayerNormalization", volume, np.ones(channels), np.zeros(channels)))


def _one_per_channel(source: Source, array: np.ndarray, view: View) -> np.ndarray | None:
    try:
        return channel_values(source, array, view)
    except UnsupportedOpError:
        return None


def _over(source: Source, array: np.ndarray, sizes: tuple[Size, ...]) -> np.ndarray:
    """Return a constant broadcast over sizes, one value after the other."""
    shape: tuple[int, ...] = tuple(size for size in sizes if isinstance(size, int))
    try:
        fitting = as_float32(source, array).reshape(array.shape[-len(sizes) :])
        return np.broadcast_to(fitting, shape).reshape(-1)
    except ValueError:
        raise ModelFormatError(f"{source}: a constant of shape {array.shape} does not fit the sizes {shape}") from None


def _mean_and_deviation(context: Context, source: Source, volume: View) -> list[View]:
    """Return the mean of each pixel's channels, and 1 over the root of their variance + epsilon."""
    channels = volume.volume.channels
    mean = pointwise(context, source, volume, np.full((1, channels), 1 / channels))
    means = pointwise(context, source, mean, np.ones((channels, 1)))
    centred = context.emit(source, "Sub", [volume, means], {"activation": ""})
    squares = context.emit(source, "Pow", [centred], {"exponent": 2.0})
    variance = pointwise(context, source, squares, np.full((1, channels), 1 / channels))
    one, epsilon = np.ones(1), np.full(1, source.real("epsilon", 1e-5))
    root = context.emit(source, "Sqrt", [affine(context, source, variance, one, epsilon)])
    return [mean, context.emit(source, "Reciprocal", [root])]


def lp_normalization(context: Context, source: Source) -> View:
    view = context.view(source, 0, channels_last=True)
    axis, p = _axis(source, view, -1), source.integer("p", 2)
    if len(view.shape) == 1:
        view = context.volume(source, view)
    if p not in (1, 2):
        raise ModelFormatError(f"{source}: p is {p}; it must be 1 or 2")
    volume, back = along(context, source, view, axis - 1, axis)
    # a norm of 0 gives zeros
    return back(context.emit(source, "LpNormalization", [volume], {"p": p, "epsilon": 1.2e-38}))


NORMS: dict[str, Callable[[Context, Source], View | list[View]]] = {
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
