"""One small function per ONNX operation, in a flat table: from a node of the file to its output's view."""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.context import Context, as_float32, channel_values
from convserve.formats.onnx.source import Source
from convserve.formats.onnx.views import View, reshaped

__all__ = ["NODES"]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
# Far above any network, far below where sizes computed from it would leave 64 bits.
LARGEST = 1 << 24


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


def global_pool(context: Context, source: Source) -> View:
    return context.emit(source, source.op, [context.image(source)])


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
    return _matrix(context, source, rows, weight, bias)


def matmul(context: Context, source: Source) -> View:
    if context.is_constant(source, 0) or not context.is_constant(source, 1):
        raise UnsupportedOpError(f"{source}: supported is a tensor (N, values) times a constant matrix")
    rows = _rows(context, source)
    weight = context.weights(source, 1, (None, None)).T
    return _matrix(context, source, rows, weight, np.zeros(weight.shape[0], np.float32))


def _rows(context: Context, source: Source) -> View:
    view = context.volume(source, context.view(source, 0))
    if len(view.shape) != 1:
        raise UnsupportedOpError(f"{source} reads a tensor of shape {view}; supported is (N, values)")
    return view


def _matrix(context: Context, source: Source, rows: View, weight: np.ndarray, bias: np.ndarray) -> View:
    product = context.emit(source, "Gemm", [rows], params={"weight": weight, "bias": bias})
    return product.shaped((weight.shape[0],))


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


def relu(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    return context.emit(source, "Relu", [view]).shaped(view.shape)


def lrn(context: Context, source: Source) -> View:
    size = source.integer("size")
    if not 1 <= size <= LARGEST:
        raise ModelFormatError(f"{source}: size is {size}; it must be from 1 to {LARGEST}")
    attrs = {
        "size": size,
        "alpha": source.real("alpha", 1e-4),
        "beta": source.real("beta", 0.75),
        "bias": source.real("bias", 1.0),
    }
    return context.emit(source, "LRN", [context.image(source)], attrs)


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
            f"{source} sums over {covered.format(axis)} of a tensor of shape {view};"
            " supported is a softmax over channels"
        )
    return context.emit(source, "Softmax", [view]).shaped(view.shape)


def concat(context: Context, source: Source) -> View:
    parts = [context.volume(source, context.view(source, index)) for index in range(len(source.inputs))]
    if not parts:
        raise ModelFormatError(f"{source} has no inputs")
    rank = len(parts[0].shape) + 1
    axis = source.integer("axis")
    if (axis + rank if axis < 0 else axis) != 1 or any(len(part.shape) + 1 != rank for part in parts):
        raise UnsupportedOpError(
            f"{source} joins tensors of shapes {', '.join(map(str, parts))} along axis {axis}; supported is axis 1"
        )
    joined = context.emit(source, "Concat", parts)
    return joined.shaped((joined.dims[0], *parts[0].shape[1:]))


def _affine(context: Context, source: Source, view: View, scale: np.ndarray, shift: np.ndarray) -> View:
    params = {"scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}
    return context.emit(source, "Affine", [view], {"activation": ""}, params).shaped(view.shape)


def _with_constant(context: Context, source: Source, op: str, view: View, array: np.ndarray, reverse: bool) -> View:
    """Write view op constant, or with reverse constant op view, as scale and shift per channel."""
    if array.size != 1:
        view = context.volume(source, view)
    values = channel_values(source, array, view)
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    if op == "Div" and reverse:
        raise UnsupportedOpError(f"{source} divides a constant by a tensor; supported is a tensor by a constant")
    with np.errstate(divide="ignore"):
        scale, shift = {
            "Add": lambda: (ones, values),
            "Sub": lambda: (-ones, values) if reverse else (ones, -values),
            "Mul": lambda: (values, zeros),
            "Div": lambda: (1.0 / values, zeros),
        }[op]()
    return _affine(context, source, view, scale, shift)


def _combined(context: Context, source: Source, op: str, views: list[View]) -> View:
    """Write the sum or product of several tensors from the image."""
    same = all((view.shape, view.dims) == (views[0].shape, views[0].dims) for view in views)
    parts = views if same else [context.volume(source, view) for view in views]
    if any(len(part.shape) != len(parts[0].shape) or part.dims[0] != parts[0].dims[0] for part in parts):
        raise UnsupportedOpError(
            f"{source} combines tensors of shapes {', '.join(map(str, views))}; supported are equal shapes, and a 1x1 "
            "volume with as many channels over a larger one"
        )
    combined = context.emit(source, op, parts, {"activation": ""})
    return combined.shaped(combined.dims if not same and len(parts[0].shape) == 3 else parts[0].shape)


def elementwise(context: Context, source: Source) -> View:
    indices = range(len(source.inputs))
    constants = [index for index in indices if context.is_constant(source, index)]
    views = [context.view(source, index) for index in indices if index not in constants]
    op = "Add" if source.op == "Sum" else source.op
    if (len(indices) != 2 and source.op != "Sum") or not views:
        raise ModelFormatError(f"{source} has {len(indices)} inputs")
    if op in ("Sub", "Div") and len(views) == 2:
        raise UnsupportedOpError(f"{source} combines two tensors of the image; supported there: Add, Mul, Sum")
    view = views[0] if len(views) == 1 else _combined(context, source, op, views)
    for index in constants:
        array = context.constant(source, index)
        assert array is not None
        view = _with_constant(context, source, op, view, array, reverse=index == 0)
    return view


def dropout(context: Context, source: Source) -> View:
    training = context.constant(source, 2, optional=True) if source.opset >= 12 else None
    if training is not None and training.any():
        raise UnsupportedOpError(f"{source} is in training mode; export the network for inference")
    return context.view(source, 0)


def identity(context: Context, source: Source) -> View:
    return context.view(source, 0)


def cast(context: Context, source: Source) -> View:
    if source.integer("to") not in FLOATS:
        raise UnsupportedOpError(f"{source} casts to type {source.integer('to')}; supported are the float types")
    return context.view(source, 0)


def _positive(source: Source, axes: tuple[int, ...], rank: int) -> set[int]:
    positive = {axis + rank if axis < 0 else axis for axis in axes}
    if not all(0 <= axis < rank for axis in positive) or len(positive) != len(axes):
        raise ModelFormatError(f"{source}: axes {axes} do not fit a tensor of rank {rank}")
    if 0 in positive:
        raise UnsupportedOpError(f"{source} changes axis 0, the batch; supported are the axes behind it")
    return positive


def _axes(context: Context, source: Source, *, since: int = 13) -> tuple[int, ...] | None:
    array = context.constant(source, 1, optional=True) if source.opset >= since else None
    return source.axes([] if array is None else [array], since=since)


def reduce_mean(context: Context, source: Source) -> View:
    view, axes = context.view(source, 0), _axes(context, source, since=18)
    if len(view.shape) != 3 or axes is None or _positive(source, axes, 4) != {2, 3}:
        raise UnsupportedOpError(
            f"{source} takes the mean of {view} over axes {axes}; supported is the mean over height and width (2, 3)"
        )
    pooled = context.emit(source, "GlobalAveragePool", [context.image(source)])
    return pooled if source.integer("keepdims", 1) else pooled.shaped(pooled.shape[:1])


def squeeze(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    axes = _axes(context, source)
    if axes is None:
        return view.shaped(size for size in view.shape if size != 1)
    dropped = _positive(source, axes, len(view.shape) + 1)
    if any(view.shape[axis - 1] != 1 for axis in dropped):
        raise ModelFormatError(f"{source}: axes {axes} of a tensor of shape {view} are not all of size 1")
    return view.shaped(size for axis, size in enumerate(view.shape, 1) if axis not in dropped)


def unsqueeze(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    axes = _axes(context, source)
    if axes is None:
        raise ModelFormatError(f"{source} names no axes")
    rank = len(view.shape) + 1 + len(axes)
    added, sizes = _positive(source, axes, rank), iter(view.shape)
    return view.shaped(1 if axis in added else next(sizes) for axis in range(1, rank))


def reshape(context: Context, source: Source) -> View:
    target = context.constant(source, 1)
    assert target is not None
    if target.ndim != 1 or target.dtype.kind not in "iO":
        raise ModelFormatError(f"{source}: its shape is no list of whole numbers")
    return reshaped(
        context.view(source, 0),
        target.tolist(),
        declared_batch=context.declared_batch,
        allowzero=source.opset >= 14 and bool(source.integer("allowzero", 0)),
        what=str(source),
    )


def flatten(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    axis = source.integer("axis", 1)
    if (axis + len(view.shape) + 1 if axis < 0 else axis) != 1:
        raise UnsupportedOpError(f"{source} flattens {view} at axis {axis}, which mixes images; supported is axis 1")
    return reshaped(view, (0, -1), declared_batch=context.declared_batch, allowzero=False, what=str(source))


def transpose(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    rank = len(view.shape) + 1
    perm = source.integers("perm", tuple(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        raise ModelFormatError(f"{source}: perm is {perm}, but the tensor has the shape {view}")
    if perm[0] == 0:
        shape = tuple(view.shape[axis - 1] for axis in perm[1:])
        moved = [axis for axis in perm[1:] if view.shape[axis - 1] != 1]
        if moved == sorted(moved):
            return view.shaped(shape)
        if rank >= 3 and perm[:3] == (0, 2, 1) and perm[3:] == tuple(range(3, rank)):
            first, second = view.shape[:2]
            if isinstance(first, int) and isinstance(second, int) and first * second == view.volume.channels:
                shuffled = context.emit(source, "ChannelShuffle", [view], {"group": first})
                return shuffled.shaped(shape)
    raise UnsupportedOpError(
        f"{source} reorders {view} to {perm}; supported are axes of size 1 and the channel shuffle (0, 2, 1, 3, 4)"
    )


NODES: dict[str, Callable[[Context, Source], View]] = {
    "Add": elementwise,
    "AveragePool": pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Concat": concat,
    "Conv": conv,
    "Div": elementwise,
    "Dropout": dropout,
    "Flatten": flatten,
    "Gemm": gemm,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "Identity": identity,
    "LRN": lrn,
    "MatMul": matmul,
    "MaxPool": pool,
    "Mul": elementwise,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Reshape": reshape,
    "Softmax": softmax,
    "Squeeze": squeeze,
    "Sub": elementwise,
    "Sum": elementwise,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
