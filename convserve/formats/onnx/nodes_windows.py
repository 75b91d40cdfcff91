"""ONNX's convolutions and poolings, read over (N, C, H, W)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.context import Context
from convserve.formats.onnx.source import LARGEST, Source
from convserve.formats.views import View
from convserve.graph.ops import LARGEST_P

__all__ = ["WINDOWS"]


def _pair(source: Source, name: str, default: tuple[int, ...]) -> tuple[int, int]:
    pair = source.integers(name, default)
    if len(pair) != 2 or not all(1 <= size <= LARGEST for size in pair):
        raise ModelFormatError(f"{source}: {name} is {pair}; supported are two numbers from 1 to {LARGEST}")
    return pair[0], pair[1]


def _sliding(source: Source, kernel: tuple[int, int]) -> dict[str, Any]:
    """Return the attributes that convolutions and poolings share."""
    auto_pad = source.text("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ModelFormatError(
            f"{source}: auto_pad is '{auto_pad}'; supported are NOTSET, VALID, SAME_UPPER and SAME_LOWER"
        )
    pads = source.integers("pads", (0, 0, 0, 0)) if auto_pad == "NOTSET" else (0, 0, 0, 0)
    if len(pads) != 4 or not all(0 <= pad <= LARGEST for pad in pads):
        raise ModelFormatError(f"{source}: pads is {pads}; supported are four numbers from 0 to {LARGEST}")
    return {
        "kernel_shape": kernel,
        "strides": _pair(source, "strides", (1, 1)),
        "pads": pads,
        "dilations": _pair(source, "dilations", (1, 1)),
        "auto_pad": "NOTSET" if auto_pad == "VALID" else auto_pad,
    }


def conv(context: Context, source: Source) -> View:
    image = context.image(source)
    array = context.constant(source, 1)
    assert array is not None
    if array.ndim != 4:
        raise UnsupportedOpError(f"{source}: its weights have the shape {array.shape}; supported is (M, C, kh, kw)")
    weight = context.weights(source, 1, (None, None, None, None))
    kernel = _pair(source, "kernel_shape", weight.shape[2:])
    group = source.integer("group", 1)
    if kernel != weight.shape[2:] or group < 1 or not weight.shape[0]:
        raise ModelFormatError(
            f"{source}: weights of shape {weight.shape} do not fit kernel_shape {kernel} and group {group}"
        )
    bias = np.zeros(weight.shape[0], np.float32)
    if context.constant(source, 2, optional=True) is not None:
        bias = context.weights(source, 2, (weight.shape[0],))
    attrs = {**_sliding(source, kernel), "group": group, "activation": ""}
    return context.emit(source, "Conv", [image], attrs, {"weight": weight, "bias": bias})


def pool(context: Context, source: Source) -> View:
    attrs = _sliding(source, _pair(source, "kernel_shape", ()))
    attrs["ceil_mode"] = bool(source.integer("ceil_mode", 0))
    attrs["count_include_pad"] = bool(source.integer("count_include_pad", 0)) and source.op == "AveragePool"
    if source.op == "LpPool":
        attrs["p"] = _exponent(source)
    _refuse_empty_windows(source, attrs)
    return context.emit(source, source.op, [context.image(source)], attrs)


def _refuse_empty_windows(source: Source, attrs: dict[str, Any]) -> None:
    for axis, kernel in enumerate(attrs["kernel_shape"]):
        extent = attrs["dilations"][axis] * (kernel - 1) + 1
        if max(attrs["pads"][axis], attrs["pads"][axis + 2]) >= extent:
            raise ModelFormatError(
                f"{source}: pads {attrs['pads']} are as large as the window {attrs['kernel_shape']}, "
                "so that a window may hold padding only"
            )


def _exponent(source: Source, default: int = 2) -> int:
    p = source.integer("p", default)
    if not 1 <= p <= LARGEST_P:
        raise ModelFormatError(f"{source}: p is {p}; it must be from 1 to {LARGEST_P}")
    return p


def global_pool(context: Context, source: Source) -> View:
    attrs = {"p": _exponent(source)} if source.op == "GlobalLpPool" else {}
    return context.emit(source, source.op, [context.image(source)], attrs)


WINDOWS: dict[str, Callable[[Context, Source], View]] = {
    "AveragePool": pool,
    "Conv": conv,
    "GlobalAveragePool": global_pool,
    "GlobalLpPool": global_pool,
    "GlobalMaxPool": global_pool,
    "LpPool": pool,
    "MaxPool": pool,
}
