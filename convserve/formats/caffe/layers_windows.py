"""Caffe's layers that look through windows, and its fully-connected one."""

from collections.abc import Callable
from typing import Any

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.caffe import net_pb2 as pb
from convserve.formats.caffe.context import Context
from convserve.formats.caffe.layer import Layer
from convserve.formats.views import View

__all__ = ["WINDOWS"]


def _filters(layer: Layer) -> dict[str, Any]:
    """Return what a convolution says of itself, in the words of Assembler.conv."""
    param = layer.proto.convolution_param
    pads = layer.pair(param, "pad", "pad", 0, 0)
    return {
        "filters": layer.whole(param, "num_output"),
        "kernel_shape": layer.pair(param, "kernel_size", "kernel", 0, 1),
        "strides": layer.pair(param, "stride", "stride", 1, 1),
        "pads": (*pads, *pads),
        "dilations": _dilations(layer),
        "group": layer.whole(param, "group"),
        "bias": param.bias_term,
    }


def _dilations(layer: Layer) -> tuple[int, int]:
    given = [int(value) for value in layer.proto.convolution_param.dilation] or [1]
    if len(given) > 2 or min(given) < 1:
        raise ModelFormatError(f"{layer}: dilation is {given}; it must be one or two numbers from 1")
    return given[0], given[-1]


def convolution(context: Context, layer: Layer) -> View:
    view = context.image(layer)
    _check_axis(layer, layer.proto.convolution_param, view)
    transposed = layer.type == "Deconvolution"
    written = context.build.conv(view.tensor, context.name(layer), **_filters(layer), transposed=transposed)
    return context.written(written)


def _check_axis(layer: Layer, param: Any, view: View) -> None:
    if layer.axis(param.axis, view) != 1:
        raise UnsupportedOpError(f"{layer} has axis {param.axis}; supported is 1, the channels")


def inner_product(context: Context, layer: Layer) -> View:
    param, view = layer.proto.inner_product_param, context.bottom(layer)
    _check_axis(layer, param, view)
    flat = context.volume(layer, view.shaped([view.volume.values]))
    outputs = layer.whole(param, "num_output")
    written = context.build.fully_connected(flat.tensor, context.name(layer), outputs, bias=param.bias_term)
    return context.written(written).shaped([outputs])


def pooling(context: Context, layer: Layer) -> View:
    param, view = layer.proto.pooling_param, context.image(layer)
    if param.pool == pb.PoolingParameter.STOCHASTIC:
        raise UnsupportedOpError(f"{layer} pools by STOCHASTIC; supported are MAX and AVE")
    op = "MaxPool" if param.pool == pb.PoolingParameter.MAX else "AveragePool"
    pads, strides = layer.pair(param, "pad", "pad", 0, 0), layer.pair(param, "stride", "stride", 1, 1)
    if param.global_pooling:
        if (pads, strides) != ((0, 0), (1, 1)):
            raise ModelFormatError(f"{layer} pools globally with pad {pads} and stride {strides}; Caffe takes 0 and 1")
        return context.emit(layer, f"Global{op}", [view])
    kernel = layer.pair(param, "kernel_size", "kernel", 0, 1)
    if any(pad >= side for pad, side in zip(pads, kernel, strict=True)):
        raise ModelFormatError(f"{layer}: pad {pads} must be less than the window {kernel}")
    rounds_up = param.round_mode == pb.PoolingParameter.CEIL
    if rounds_up and pads == (0, 0):
        _refuse_empty(layer, view, kernel, strides)
    return context.written(
        context.build.pool(
            op,
            view.tensor,
            context.name(layer),
            kernel,
            strides=strides,
            pads=(*pads, *pads),
            ceil_mode=rounds_up,
            # Caffe divides by the window as far as it lies in image and padding
            count_include_pad=op == "AveragePool",
        )
    )


def _refuse_empty(layer: Layer, view: View, kernel: tuple[int, int], strides: tuple[int, int]) -> None:
    for size, side, stride in zip((view.volume.height, view.volume.width), kernel, strides, strict=True):
        assert size is not None
        last = -(-(size - side) // stride) * stride
        if last >= size:
            raise UnsupportedOpError(
                f"{layer}: by Caffe's rounding its last window begins at {last}, behind an input of {size}, and would"
                " see no pixel; supported are round_mode: FLOOR and strides up to the window"
            )


WINDOWS: dict[str, Callable[[Context, Layer], View | list[View]]] = {
    "Convolution": convolution,
    "Deconvolution": convolution,
    "DepthwiseConvolution": convolution,
    "InnerProduct": inner_product,
    "Pooling": pooling,
}
