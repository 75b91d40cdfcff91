"""ONNX's products with constant matrices, which are fully-connected layers."""

from collections.abc import Callable

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.arrange import along
from convserve.formats.onnx.context import Context, as_float32
from convserve.formats.onnx.source import Source
from convserve.formats.views import View

__all__ = ["MATRIX"]


def gemm(context: Context, source: Source) -> View:
    if source.integer("transA", 0):
        raise UnsupportedOpError(f"{source} has transA=1, which would mix the images of a batch; supported is transA=0")
    rows = _rows(context, source)
    matrix = context.weights(source, 1, (None, None))
    weight = matrix if source.integer("transB", 0) else matrix.T
    alpha, beta = source.real("alpha", 1.0), source.real("beta", 1.0)
    if alpha != 1.0:
        weight = (weight.astype(np.float64) * alpha).astype(np.float32)
    bias = np.zeros(weight.shape[0], np.float32)
    summand = context.constant(source, 2, optional=True)
    if summand is not None:
        if summand.ndim > 2 or (summand.ndim == 2 and summand.shape[0] != 1):
            raise UnsupportedOpError(
                f"{source}: its input C has the shape {summand.shape}; supported is one value per output"
            )
        try:
            summand = np.broadcast_to(as_float32(source, summand).reshape(-1), bias.shape)
        except ValueError:
            raise ModelFormatError(f"{source}: {summand.size} summands do not fit {weight.shape[0]} outputs") from None
        bias = (summand.astype(np.float64) * beta).astype(np.float32) if beta != 1.0 else summand
    product = context.emit(source, "Gemm", [rows], params={"weight": weight, "bias": bias})
    return product.shaped((weight.shape[0],))


def matmul(context: Context, source: Source) -> View:
    if context.is_constant(source, 0) or not context.is_constant(source, 1):
        raise UnsupportedOpError(f"{source}: supported is a tensor of the image times a constant matrix")
    view = context.view(source, 0, channels_last=True)
    weight = context.weights(source, 1, (None, None)).T
    params = {"weight": weight, "bias": np.zeros(weight.shape[0], np.float32)}
    if len(view.shape) <= 1:
        return context.emit(source, "Gemm", [_rows(context, source)], params=params).shaped((weight.shape[0],))
    last = len(view.shape) - 1
    volume, back = along(context, source, view, last, last + 1)
    product = context.emit(source, "Gemm", [volume], params=params)
    return back(product)


def _rows(context: Context, source: Source) -> View:
    view = context.volume(source, context.view(source, 0))
    if len(view.shape) != 1:
        raise UnsupportedOpError(f"{source} reads a tensor of shape {view}; supported is (N, values)")
    return view


MATRIX: dict[str, Callable[[Context, Source], View]] = {
    "Gemm": gemm,
    "MatMul": matmul,
}
