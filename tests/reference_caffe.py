"""Caffe's layers as slow, plain float64 NumPy, written from the formulas of Caffe: window by window, value by value."""

import math
from collections.abc import Callable

import numpy as np

from convserve.formats.caffe import net_pb2 as pb

__all__ = ["evaluate"]

Array = np.ndarray
Blob = Callable[[str, int, tuple[int, ...]], Array]
"""(layer, index, shape) -> a layer's parameters."""


def sides(param: object, name: str, short: str, default: int) -> tuple[int, int]:
    given = getattr(param, name)
    values = list(given) if hasattr(given, "extend") else [given] if param.HasField(name) else []
    if not values:
        values = [
            getattr(param, f"{short}_{side}") if param.HasField(f"{short}_{side}") else default for side in ("h", "w")
        ]
    return values[0], values[-1]


def convolution(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    """y[m, oy, ox] = bias[m] + the sum of w[m, c, i, j] * x[c, oy*s - p + i*d, ox*s - p + j*d] over its group."""
    p = layer.convolution_param
    (kh, kw), (sh, sw) = sides(p, "kernel_size", "kernel", 0), sides(p, "stride", "stride", 1)
    (ph, pw), dilation = sides(p, "pad", "pad", 0), list(p.dilation) or [1]
    dh, dw = dilation[0], dilation[-1]
    group, filters = p.group, p.num_output // p.group
    channels = x.shape[1] // group
    weight = blob(layer.name, 0, (p.num_output, channels, kh, kw))
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    rows = (x.shape[2] + 2 * ph - (dh * (kh - 1) + 1)) // sh + 1
    columns = (x.shape[3] + 2 * pw - (dw * (kw - 1) + 1)) // sw + 1
    y = np.zeros((len(x), p.num_output, rows, columns))
    for g in range(group):
        inputs, outputs = slice(g * channels, (g + 1) * channels), slice(g * filters, (g + 1) * filters)
        for oy in range(rows):
            for ox in range(columns):
                seen = padded[
                    :, inputs, oy * sh : oy * sh + dh * (kh - 1) + 1 : dh, ox * sw : ox * sw + dw * (kw - 1) + 1 : dw
                ]
                y[:, outputs, oy, ox] = np.einsum("ncij,mcij->nm", seen, weight[outputs])
    return y + blob(layer.name, 1, (p.num_output,))[:, None, None] if p.bias_term else y


def deconvolution(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    """Every x[c, i, j] adds x * w[c, m] to the window of the output that begins at (i*s - p, j*s - p)."""
    p = layer.convolution_param
    (kh, kw), (sh, sw) = sides(p, "kernel_size", "kernel", 0), sides(p, "stride", "stride", 1)
    (ph, pw), dilation = sides(p, "pad", "pad", 0), list(p.dilation) or [1]
    dh, dw = dilation[0], dilation[-1]
    group, filters, channels = p.group, p.num_output // p.group, x.shape[1]
    weight = blob(layer.name, 0, (channels, filters, kh, kw))
    rows, columns = ((size - 1) * s + d * (k - 1) + 1 for size, s, d, k in
                     ((x.shape[2], sh, dh, kh), (x.shape[3], sw, dw, kw)))
    y = np.zeros((len(x), p.num_output, rows, columns))
    for c in range(channels):
        outputs = slice(c // (channels // group) * filters, (c // (channels // group) + 1) * filters)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                y[:, outputs, i * sh : i * sh + dh * (kh - 1) + 1 : dh, j * sw : j * sw + dw * (kw - 1) + 1 : dw] += (
                    x[:, c, i, j][:, None, None, None] * weight[c]
                )
    y = y[:, :, ph : rows - ph, pw : columns - pw]
    return y + blob(layer.name, 1, (p.num_output,))[:, None, None] if p.bias_term else y


def inner_product(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    p, flat = layer.inner_product_param, x.reshape(len(x), -1)
    shape = (p.num_output, flat.shape[1])
    weight = blob(layer.name, 0, shape[::-1]).T if p.transpose else blob(layer.name, 0, shape)
    y = flat @ weight.T
    return y + blob(layer.name, 1, (p.num_output,)) if p.bias_term else y


def pooled_size(size: int, kernel: int, stride: int, pad: int, *, up: bool, padded: bool) -> int:
    free = (size + 2 * pad - kernel) / stride
    count = (math.ceil(free) if up else math.floor(free)) + 1
    # the last window has to begin inside the image or the padding before it
    return count - 1 if padded and (count - 1) * stride >= size + pad else count


def pooling(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    """The largest or the mean value of each window; the mean divides by the window, clipped to image and padding."""
    p, (height, width) = layer.pooling_param, x.shape[2:]
    (kh, kw), (sh, sw) = sides(p, "kernel_size", "kernel", 0), sides(p, "stride", "stride", 1)
    if p.global_pooling:
        kh, kw = height, width
    ph, pw = sides(p, "pad", "pad", 0)
    up, padded = p.round_mode == pb.PoolingParameter.CEIL, bool(ph or pw)
    rows = pooled_size(height, kh, sh, ph, up=up, padded=padded)
    columns = pooled_size(width, kw, sw, pw, up=up, padded=padded)
    y = np.zeros((*x.shape[:2], rows, columns))
    for oy in range(rows):
        for ox in range(columns):
            top, left = oy * sh - ph, ox * sw - pw
            bottom, right = min(top + kh, height + ph), min(left + kw, width + pw)
            area = (bottom - top) * (right - left)
            seen = x[:, :, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            if p.pool == pb.PoolingParameter.MAX:
                y[:, :, oy, ox] = seen.max(axis=(2, 3))
            else:
                y[:, :, oy, ox] = seen.sum(axis=(2, 3)) / area
    return y


def lrn(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    """Across channels x * (k + alpha/n * sum of x^2)^-beta; within one x * (1 + alpha/n^2 * sum of x^2)^-beta."""
    p = layer.lrn_param
    n, half = p.local_size, p.local_size // 2
    y = np.zeros_like(x)
    across = p.norm_region == pb.LRNParameter.ACROSS_CHANNELS
    pads = ((0, 0), (half, half), (0, 0), (0, 0)) if across else ((0, 0), (0, 0), (half, half), (half, half))
    squares = np.pad(x**2, pads)
    for c in range(x.shape[1]):
        if across:
            y[:, c] = p.k + p.alpha / n * squares[:, c : c + n].sum(axis=1)
            continue
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                y[:, c, i, j] = 1 + p.alpha / n**2 * squares[:, c, i : i + n, j : j + n].sum(axis=(1, 2))
    return x * y**-p.beta


def batch_norm(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    channels = (x.shape[1],)
    factor = blob(layer.name, 2, (1,))[0]
    factor = 1 / factor if factor else 0
    mean, variance = (by_channel(factor * blob(layer.name, index, channels), x) for index in (0, 1))
    return (x - mean) / np.sqrt(variance + layer.batch_norm_param.eps)


def by_channel(values: Array, x: Array) -> Array:
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))


def scale(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    y = x * by_channel(blob(layer.name, 0, (x.shape[1],)), x)
    return y + by_channel(blob(layer.name, 1, (x.shape[1],)), x) if layer.scale_param.bias_term else y


def prelu(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    slope = blob(layer.name, 0, (1,) if layer.prelu_param.channel_shared else (x.shape[1],))
    return np.maximum(x, 0) + by_channel(slope, x) * np.minimum(x, 0)


def based(base: float) -> float:
    return 1.0 if base == -1 else math.log(base)


def softmax(layer: pb.LayerParameter, x: Array, blob: Blob) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


FROM_ONE: dict[str, Callable[[pb.LayerParameter, Array, Blob], Array]] = {
    "AbsVal": lambda layer, x, blob: np.abs(x),
    "BNLL": lambda layer, x, blob: np.log(1 + np.exp(x)),
    "BatchNorm": batch_norm,
    "Bias": lambda layer, x, blob: x + by_channel(blob(layer.name, 0, (x.shape[1],)), x),
    "Clip": lambda layer, x, blob: np.clip(x, layer.clip_param.min, layer.clip_param.max),
    "Convolution": convolution,
    "Deconvolution": deconvolution,
    "Dropout": lambda layer, x, blob: x,
    "ELU": lambda layer, x, blob: np.where(x > 0, x, layer.elu_param.alpha * (np.exp(np.minimum(x, 0)) - 1)),
    "Exp": lambda layer, x, blob: np.exp(
        based(layer.exp_param.base) * (layer.exp_param.shift + layer.exp_param.scale * x)
    ),
    "Flatten": lambda layer, x, blob: x.reshape(len(x), -1),
    "InnerProduct": inner_product,
    "LRN": lrn,
    "Log": lambda layer, x, blob: np.log(layer.log_param.shift + layer.log_param.scale * x)
    / based(layer.log_param.base),
    "PReLU": prelu,
    "Pooling": pooling,
    "Power": lambda layer, x, blob: (layer.power_param.shift + layer.power_param.scale * x) ** layer.power_param.power,
    "ReLU": lambda layer, x, blob: np.maximum(x, 0) + layer.relu_param.negative_slope * np.minimum(x, 0),
    "Reshape": lambda layer, x, blob: x.reshape(
        [size or x.shape[at] for at, size in enumerate(layer.reshape_param.shape.dim)]
    ),
    "Scale": scale,
    "Sigmoid": lambda layer, x, blob: 1 / (1 + np.exp(-x)),
    "Softmax": softmax,
    "Swish": lambda layer, x, blob: x / (1 + np.exp(-layer.swish_param.beta * x)),
    "TanH": lambda layer, x, blob: np.tanh(x),
}


def several(layer: pb.LayerParameter, inputs: list[Array]) -> list[Array]:
    first = inputs[0]
    if layer.type == "Concat":
        return [np.concatenate(inputs, axis=1)]
    if layer.type == "Split":
        return [first] * len(layer.top)
    if layer.type == "Slice":
        points = list(layer.slice_param.slice_point) or len(layer.top)
        return np.split(first, points, axis=layer.slice_param.axis)
    if layer.type == "Crop":
        axis, offsets = layer.crop_param.axis, list(layer.crop_param.offset) or [0]
        whole = [slice(None)] * axis
        for at in range(axis, 4):
            begin = offsets[at - axis] if len(offsets) > 1 else offsets[0]
            whole.append(slice(begin, begin + inputs[1].shape[at]))
        return [first[tuple(whole)]]
    assert layer.type == "Eltwise", layer.type
    p = layer.eltwise_param
    if p.operation == pb.EltwiseParameter.SUM:
        factors = list(p.coeff) or [1] * len(inputs)
        return [sum(factor * part for factor, part in zip(factors, inputs, strict=True))]
    return [np.prod(inputs, axis=0) if p.operation == pb.EltwiseParameter.PROD else np.max(inputs, axis=0)]


def evaluate(net: pb.NetParameter, inputs: dict[str, Array], blob: Blob) -> dict[str, Array]:
    """Return every blob of a network in the newer form, in float64, as it is at the end."""
    blobs = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
    for layer in net.layer:
        if layer.type in ("Input", "Silence"):
            continue
        read = [blobs[name] for name in layer.bottom]
        results = [FROM_ONE[layer.type](layer, read[0], blob)] if layer.type in FROM_ONE else several(layer, read)
        blobs |= dict(zip(layer.top, results, strict=True))
    return blobs
