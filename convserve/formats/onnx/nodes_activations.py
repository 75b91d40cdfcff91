"""ONNX's activations and other functions of one value."""

import math
from collections.abc import Callable

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.context import Context, as_float32, channel_values
from convserve.formats.onnx.source import Source
from convserve.formats.views import View

__all__ = ["ACTIVATIONS_OF_ONNX", "affine"]


def _activation(context: Context, source: Source, op: str, **attrs: float) -> View:
    view = context.view(source, 0, channels_last=True)
    for name, value in attrs.items():
        if not math.isfinite(value):
            raise ModelFormatError(f"{source}: {name} is {value}; it must be a finite number")
    return context.emit(source, op, [view], attrs).like(view)


def _named(op: str, **defaults: float) -> Callable[[Context, Source], View]:
    """Return the importer of an activation of that name in our table, whose attributes have these defaults."""

    def activation(context: Context, source: Source) -> View:
        return _activation(context, source, op, **{name: source.real(name, value) for name, value in defaults.items()})

    return activation


def affine(context: Context, source: Source, view: View, scale: np.ndarray, shift: np.ndarray) -> View:
    """Write view * scale + shift, arrays of one value per channel of the view's volume."""
    params = {"scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}
    return context.emit(source, "Affine", [view], {"activation": ""}, params).like(view)


def negative(context: Context, source: Source) -> View:
    view = context.view(source, 0, channels_last=True)
    ones = np.ones(view.volume.channels)
    return affine(context, source, view, -ones, 0 * ones)


def scalar(context: Context, source: Source, index: int) -> float | None:
    """Return a constant input of one value, or None where it is left out."""
    array = context.constant(source, index, optional=True)
    if array is None:
        return None
    if array.size != 1:
        raise UnsupportedOpError(f"{source}: its input {index} has the shape {array.shape}; supported is one value")
    return float(as_float32(source, array).reshape(()))


def clip(context: Context, source: Source) -> View:
    given: dict[str, float | None] = {}
    for index, name in enumerate(("min", "max"), 1):
        if source.opset < 11:
            given[name] = source.real(name) if source.has(name) else None
        else:
            given[name] = scalar(context, source, index)
    bounds = {name: value for name, value in given.items() if value is not None and not math.isinf(value)}
    if bounds == {"min": 0.0}:
        return _activation(context, source, "Relu")
    return _activation(context, source, "Clip", **bounds)


def celu(context: Context, source: Source) -> View:
    alpha = source.real("alpha", 1.0)
    if alpha == 0:
        raise ModelFormatError(f"{source}: alpha is 0; it must be another number")
    view = context.view(source, 0, channels_last=True)
    if alpha != 1.0:
        ones = np.ones(view.volume.channels)
        view = affine(context, source, view, ones / alpha, 0 * ones)
    return context.emit(source, "Elu", [view], {"alpha": 1.0, "gamma": alpha}).like(view)


def gelu(context: Context, source: Source) -> View:
    approximate = source.text("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise ModelFormatError(f"{source}: approximate is '{approximate}'; supported are none and tanh")
    return _activation(context, source, "GeluTanh" if approximate == "tanh" else "Gelu")


def prelu(context: Context, source: Source) -> View:
    array = context.constant(source, 1)
    assert array is not None
    view = context.view(source, 0, channels_last=True)
    if array.size != 1:
        view = context.volume(source, view)
    if source.opset < 7 and array.ndim == 1:
        # one slope a channel, before slopes were broadcast from the last axis on
        array = array.reshape(-1, *(1,) * (len(view.shape) - 1))
    params = {"slope": channel_values(source, array, view).astype(np.float32)}
    return context.emit(source, "PRelu", [view], {}, params).like(view)


def power(context: Context, source: Source) -> View:
    exponent = scalar(context, source, 1)
    if exponent is None:
        raise ModelFormatError(f"{source} lacks its input 1")
    return _activation(context, source, "Pow", exponent=exponent)


ACTIVATIONS_OF_ONNX: dict[str, Callable[[Context, Source], View]] = {
    "Abs": _named("Abs"),
    "Celu": celu,
    "Clip": clip,
    "Elu": _named("Elu", alpha=1.0),
    "Erf": _named("Erf"),
    "Exp": _named("Exp"),
    "Gelu": gelu,
    "HardSigmoid": _named("HardSigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _named("HardSwish"),
    "LeakyRelu": _named("LeakyRelu", alpha=0.01),
    "Log": _named("Log"),
    "Mish": _named("Mish"),
    "Neg": negative,
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": _named("Reciprocal"),
    "Relu": _named("Relu"),
    "Selu": _named("Elu", alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Sigmoid": _named("Sigmoid"),
    "Sign": _named("Sign"),
    "Softplus": _named("Softplus"),
    "Softsign": _named("Softsign"),
    "Sqrt": _named("Sqrt"),
    "Swish": _named("Swish", alpha=1.0),
    "Tanh": _named("Tanh"),
    "ThresholdedRelu": _named("ThresholdedRelu", alpha=1.0),
}
