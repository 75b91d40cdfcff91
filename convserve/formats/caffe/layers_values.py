"""Caffe's layers that compute with values where they are: activations, normalisation, arithmetic between blobs."""

import math
from collections.abc import Callable

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.caffe import net_pb2 as pb
from convserve.formats.caffe.context import Context
from convserve.formats.caffe.layer import Layer
from convserve.formats.views import View

__all__ = ["VALUES"]


def _activation(context: Context, layer: Layer, op: str, **attrs: float) -> View:
    view = context.bottom(layer)
    return context.emit(layer, op, [view], attrs).like(view)


def _named(op: str) -> Callable[[Context, Layer], View]:
    return lambda context, layer: _activation(context, layer, op)


def relu(context: Context, layer: Layer) -> View:
    slope = layer.proto.relu_param.negative_slope
    return _activation(context, layer, "LeakyRelu", alpha=slope) if slope else _activation(context, layer, "Relu")


def prelu(context: Context, layer: Layer) -> View:
    view = context.volume(layer, context.bottom(layer))
    count = 1 if layer.proto.prelu_param.channel_shared else view.volume.channels
    name = context.name(layer)
    slope = np.broadcast_to(context.build.drawn(name, {"slope": (count,)})["slope"], (view.volume.channels,))
    return context.written(context.build.add("PRelu", name, view.tensor, {}, {"slope": slope})).like(view)


def clip(context: Context, layer: Layer) -> View:
    param = layer.proto.clip_param
    if not (param.HasField("min") and param.HasField("max")):
        raise ModelFormatError(f"{layer} must give min and max")
    return _activation(context, layer, "Clip", min=param.min, max=param.max)


def power(context: Context, layer: Layer) -> View:
    """(shift + scale * x)^power."""
    param = layer.proto.power_param
    view = context.affine(layer, context.bottom(layer), param.scale, param.shift)
    if param.power == 1:
        return view
    return context.emit(layer, "Pow", [view], {"exponent": param.power}).like(view)


def _logarithm(layer: Layer, base: float) -> float:
    if base != -1 and base <= 0:
        raise ModelFormatError(f"{layer}: base is {base}; it must be above 0, or -1 for e")
    return 1.0 if base == -1 else math.log(base)


def exponential(context: Context, layer: Layer) -> View:
    """base^(shift + scale * x)."""
    param = layer.proto.exp_param
    factor = _logarithm(layer, param.base)
    view = context.affine(layer, context.bottom(layer), factor * param.scale, factor * param.shift)
    return context.emit(layer, "Exp", [view]).like(view)


def logarithm(context: Context, layer: Layer) -> View:
    """The logarithm of shift + scale * x to the base."""
    param = layer.proto.log_param
    factor = _logarithm(layer, param.base)
    if not factor:
        raise ModelFormatError(f"{layer}: base is 1, to which there is no logarithm")
    view = context.affine(layer, context.bottom(layer), param.scale, param.shift)
    return context.affine(layer, context.emit(layer, "Log", [view]).like(view), 1 / factor, 0)


def lrn(context: Context, layer: Layer) -> View:
    param, view = layer.proto.lrn_param, context.image(layer)
    size = layer.whole(param, "local_size")
    if size % 2 == 0:
        raise ModelFormatError(f"{layer}: local_size is {size}; it must be odd")
    if param.norm_region == pb.LRNParameter.ACROSS_CHANNELS:
        attrs = {"size": size, "alpha": param.alpha, "beta": param.beta, "bias": param.k}
        return context.emit(layer, "LRN", [view], attrs)
    # x * (1 + alpha * the mean of x^2 over size x size pixels, zeros behind the border)^-beta
    square = context.emit(layer, "Mul", [view, view], {"activation": ""}, suffix=".square")
    mean = context.written(
        context.build.pool(
            "AveragePool",
            square.tensor,
            context.name(layer, ".mean"),
            (size, size),
            strides=(1, 1),
            pads=(size // 2,) * 4,
            count_include_pad=True,
        )
    )
    divisor = context.affine(layer, mean, param.alpha, 1, ".divisor")
    factor = context.emit(layer, "Pow", [divisor], {"exponent": -param.beta}, suffix=".factor")
    return context.emit(layer, "Mul", [view, factor], {"activation": ""})


def batch_norm(context: Context, layer: Layer) -> View:
    param, view = layer.proto.batch_norm_param, context.volume(layer, context.bottom(layer))
    if param.HasField("use_global_stats") and not param.use_global_stats:
        raise UnsupportedOpError(f"{layer} normalizes by the batch (use_global_stats: false); supported is true")
    if param.eps < 0:
        raise ModelFormatError(f"{layer}: eps is {param.eps}; it must be at least 0")
    written = context.build.batch_normalization(view.tensor, context.name(layer), epsilon=param.eps)
    return context.written(written).like(view)


def scale(context: Context, layer: Layer) -> View:
    """x * scale + bias by channel, from the weights; or the product with a second blob."""
    param = layer.proto.scale_param
    if len(layer.bottoms) == 2:
        if param.bias_term:
            raise UnsupportedOpError(f"{layer} takes its scale from a blob and its bias from the weights")
        return _broadcast(context, layer, "Mul", param.axis)
    return _by_channel(context, layer, param, {"scale": True, "bias": param.bias_term})


def bias(context: Context, layer: Layer) -> View:
    """x + bias by channel, from the weights; or the sum with a second blob."""
    if len(layer.bottoms) == 2:
        return _broadcast(context, layer, "Add", layer.proto.bias_param.axis)
    return _by_channel(context, layer, layer.proto.bias_param, {"scale": False, "bias": True})


def _by_channel(
    context: Context, layer: Layer, param: pb.ScaleParameter | pb.BiasParameter, given: dict[str, bool]
) -> View:
    view = context.volume(layer, context.bottom(layer))
    axis, axes = layer.axis(param.axis, view), param.num_axes
    if axes not in (0, 1) or (axes == 1 and axis != 1):
        raise UnsupportedOpError(f"{layer} has axis {axis} and num_axes {axes}; supported are axis 1, or num_axes 0")
    name, channels = context.name(layer), view.volume.channels
    drawn = context.build.drawn(name, {key: (channels if axes else 1,) for key, wanted in given.items() if wanted})
    values = {"scale": np.ones(1, np.float32), "bias": np.zeros(1, np.float32)} | drawn
    params = {
        new: np.broadcast_to(values[key], (channels,)) for key, new in (("scale", "scale"), ("bias", "shift"))
    }
    return context.written(context.build.add("Affine", name, view.tensor, {"activation": ""}, params)).like(view)


def _broadcast(context: Context, layer: Layer, op: str, axis: int) -> View:
    """Combine the first blob with a second that has its shape, or one value for each channel."""
    first, second = (context.volume(layer, view) for view in context.bottoms(layer, 2))
    whole, begins = first.shape == second.shape, layer.axis(axis, first)
    of_channels = second.shape[0] == first.shape[0] and second.volume.height == second.volume.width == 1
    if begins != 0 or not (whole or of_channels):
        raise UnsupportedOpError(
            f"{layer} combines {first} with {second} from axis {begins} on; supported are blobs of one shape, and one"
            " value for each channel, from axis 0 on"
        )
    return context.emit(layer, op, [first, second], {"activation": ""}).like(first)


def eltwise(context: Context, layer: Layer) -> View:
    param, views = layer.proto.eltwise_param, context.bottoms(layer, 2, math.inf)
    _check_same(layer, views)
    coefficients = list(param.coeff) or [1.0] * len(views)
    if param.coeff and param.operation != pb.EltwiseParameter.SUM:
        raise ModelFormatError(f"{layer} has coefficients for {param.EltwiseOp.Name(param.operation)}; SUM takes them")
    if len(coefficients) != len(views):
        raise ModelFormatError(f"{layer} has {len(coefficients)} coefficients for {len(views)} blobs")
    op = {pb.EltwiseParameter.SUM: "Add", pb.EltwiseParameter.PROD: "Mul"}.get(param.operation, "Max")
    terms = [
        context.affine(layer, view, coefficient, 0, f".coeff{number}")
        for number, (view, coefficient) in enumerate(zip(views, coefficients, strict=True))
    ]
    return context.emit(layer, op, terms, {"activation": ""}).like(views[0])


def _check_same(layer: Layer, views: list[View]) -> None:
    for view in views[1:]:
        if view.shape != views[0].shape or view.dims != views[0].dims:
            raise ModelFormatError(f"{layer} combines blobs of shapes {views[0]} and {view}, which must be the same")


def axpy(context: Context, layer: Layer) -> View:
    """a * x + y, one a for each channel."""
    a, x, y = (context.volume(layer, view) for view in context.bottoms(layer, 3))
    _check_same(layer, [x, y])
    if a.volume.channels != x.volume.channels or (a.volume.height, a.volume.width) != (1, 1):
        raise ModelFormatError(f"{layer} scales {x} by {a}; it must be one value for each channel")
    scaled = context.emit(layer, "Mul", [x, a], {"activation": ""}, suffix=".scaled")
    return context.emit(layer, "Add", [scaled, y], {"activation": ""}).like(x)


def softmax(context: Context, layer: Layer) -> View:
    view, axis = context.bottom(layer), layer.proto.softmax_param.axis
    if layer.axis(axis, view) != 1:
        raise UnsupportedOpError(f"{layer} has axis {axis} over {view}; supported is 1, the channels")
    volume = context.volume(layer, view)
    return context.emit(layer, "Softmax", [volume]).like(volume)


VALUES: dict[str, Callable[[Context, Layer], View | list[View]]] = {
    "AbsVal": _named("Abs"),
    "Axpy": axpy,
    "BNLL": _named("Softplus"),
    "BatchNorm": batch_norm,
    "Bias": bias,
    "Clip": clip,
    "ELU": lambda context, layer: _activation(context, layer, "Elu", alpha=layer.proto.elu_param.alpha),
    "Eltwise": eltwise,
    "Exp": exponential,
    "LRN": lrn,
    "Log": logarithm,
    "PReLU": prelu,
    "Power": power,
    "ReLU": relu,
    "ReLU6": lambda context, layer: _activation(context, layer, "Clip", min=0.0, max=6.0),
    "Scale": scale,
    "Sigmoid": _named("Sigmoid"),
    "Softmax": softmax,
    "Swish": lambda context, layer: _activation(context, layer, "Swish", alpha=layer.proto.swish_param.beta),
    "TanH": _named("Tanh"),
}
