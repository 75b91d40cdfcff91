"""Oracles: every operation of graph.ops as slow, plain float64 NumPy, written from the formulas of ONNX."""

import math
from collections.abc import Callable
from functools import reduce

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from reference_moves import conv_transpose, depth_to_space, pad, resize, slice_, space_to_depth

from convserve.graph.ir import Graph, Node

__all__ = ["ORACLES", "crops", "evaluate", "evaluate_outputs"]

Array = np.ndarray


def relu(x: Array) -> Array:
    """x where x >= 0, else 0; NaN stays, since it is not below 0."""
    return np.where(x < 0, 0.0, x)


def activated(node: Node, y: Array) -> Array:
    activation = node.attrs.get("activation", "")
    assert activation in ("", "relu"), f"the oracle knows no activation {activation!r}"
    return relu(y) if activation == "relu" else y


def axis_geometry(node: Node, axis: int, size: int) -> tuple[int, int, int]:
    """Return (output positions, pad at the beginning, pad at the end) along one axis (0 vertical, 1 horizontal)."""
    kernel = node.attrs["kernel_shape"][axis]
    stride = node.attrs["strides"][axis]
    extent = node.attrs["dilations"][axis] * (kernel - 1) + 1
    auto_pad = node.attrs["auto_pad"]
    if auto_pad != "NOTSET":
        count = -(-size // stride)
        total = max((count - 1) * stride + extent - size, 0)
        begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        return count, begin, total - begin
    begin, end = node.attrs["pads"][axis], node.attrs["pads"][axis + 2]
    count = (size + begin + end - extent) // stride + 1
    if node.attrs.get("ceil_mode", False):
        count = -(-(size + begin + end - extent) // stride) + 1
        if (count - 1) * stride >= size + begin:
            count -= 1
    return count, begin, end


def taps(node: Node, x: Array, fill: float, ceil_fill: float) -> Array:
    """Return what each output position's window sees: (N, C, rows, cols, kernel_h, kernel_w).

    Padding reads as fill; what lies behind the padding, where only ceil_mode reaches, as ceil_fill.
    """
    (kh, kw), (sh, sw), (dh, dw) = (node.attrs[name] for name in ("kernel_shape", "strides", "dilations"))
    rows, top, bottom = axis_geometry(node, 0, x.shape[2])
    cols, left, right = axis_geometry(node, 1, x.shape[3])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    more_rows = max((rows - 1) * sh + dh * (kh - 1) + 1 - padded.shape[2], 0)
    more_cols = max((cols - 1) * sw + dw * (kw - 1) + 1 - padded.shape[3], 0)
    padded = np.pad(padded, ((0, 0), (0, 0), (0, more_rows), (0, more_cols)), constant_values=ceil_fill)
    seen = np.empty((*x.shape[:2], rows, cols, kh, kw))
    for i in range(kh):
        for j in range(kw):
            last_row, last_col = i * dh + (rows - 1) * sh, j * dw + (cols - 1) * sw
            seen[..., i, j] = padded[:, :, i * dh : last_row + 1 : sh, j * dw : last_col + 1 : sw]
    return seen


def conv(node: Node, x: Array, *residual: Array) -> Array:
    """y[m] = bias[m] + the sum over c, i, j of weight[m, c, i, j] * x[c, y*s + i*d - p, x*s + j*d - p]."""
    weight, group = node.params["weight"].astype(np.float64), node.attrs["group"]
    assert weight.shape[2:] == tuple(node.attrs["kernel_shape"])
    seen = taps(node, x, 0.0, np.nan)
    filters, channels = weight.shape[0] // group, weight.shape[1]
    y = np.empty((x.shape[0], weight.shape[0], *seen.shape[2:4]))
    for g in range(group):
        of_group = slice(g * filters, (g + 1) * filters)
        sums = np.tensordot(seen[:, g * channels : (g + 1) * channels], weight[of_group], axes=((1, 4, 5), (1, 2, 3)))
        y[:, of_group] = sums.transpose(0, 3, 1, 2)
    if "bias" in node.params:
        y += node.params["bias"].astype(np.float64)[:, None, None]
    for summand in residual:
        y = y + summand
    return activated(node, y)


def locally_connected(node: Node, x: Array) -> Array:
    """As conv, with filters weight[y, x] and a bias[y, x] of each position.

    weight is (rows, cols, group, (kernel_h, kernel_w, C/group) in that order, M/group), bias (rows, cols, M).
    """
    weight, bias = (node.params[name].astype(np.float64) for name in ("weight", "bias"))
    seen = taps(node, x, 0.0, np.nan)
    group, (kh, kw) = node.attrs["group"], node.attrs["kernel_shape"]
    filters = weight.reshape(*weight.shape[:3], kh, kw, -1, weight.shape[4])
    parts = seen.reshape(len(x), group, -1, *seen.shape[2:])
    y = np.einsum("ngcrsij,rsgijcm->ngmrs", parts, filters).reshape(len(x), -1, *seen.shape[2:4])
    return activated(node, y + bias.transpose(2, 0, 1))


def max_pool(node: Node, x: Array) -> Array:
    """The largest value under the window; taps outside the input do not count; NaN wins."""
    return taps(node, x, -np.inf, -np.inf).max(axis=(4, 5))


def average_pool(node: Node, x: Array) -> Array:
    """The mean under the window, over its taps inside the input, or with count_include_pad inside input and padding.

    Taps behind the padding, where only ceil_mode reaches, never count.
    """
    include = node.attrs.get("count_include_pad", False)
    counted = taps(node, np.ones((1, 1, *x.shape[2:])), 1.0 if include else 0.0, 0.0).sum(axis=(4, 5))
    return taps(node, x, 0.0, 0.0).sum(axis=(4, 5)) / counted


def global_average_pool(node: Node, x: Array) -> Array:
    return x.mean(axis=(2, 3), keepdims=True)


def global_max_pool(node: Node, x: Array) -> Array:
    return x.max(axis=(2, 3), keepdims=True)


def lp_pool(node: Node, x: Array) -> Array:
    """(The sum of |x|^p under the window)^(1/p), over its taps inside the input."""
    p = node.attrs["p"]
    return (np.abs(taps(node, x, 0.0, 0.0)) ** p).sum(axis=(4, 5)) ** (1 / p)


def global_lp_pool(node: Node, x: Array) -> Array:
    p = node.attrs["p"]
    return (np.abs(x) ** p).sum(axis=(2, 3), keepdims=True) ** (1 / p)


def gemm(node: Node, x: Array) -> Array:
    """y = weight @ x + bias at every position, weight (outputs, inputs)."""
    y = np.einsum("oc,nchw->nohw", node.params["weight"].astype(np.float64), x)
    if "bias" in node.params:
        y += node.params["bias"].astype(np.float64)[:, None, None]
    return activated(node, y)


def flatten(node: Node, x: Array) -> Array:
    """Each window (C, kernel_h, kernel_w) becomes one position's channels, in that order; windows slide by 1."""
    kh, kw = node.attrs["kernel_shape"]
    rows, cols = x.shape[2] - kh + 1, x.shape[3] - kw + 1
    y = np.empty((x.shape[0], x.shape[1] * kh * kw, rows, cols))
    for i in range(rows):
        for j in range(cols):
            y[:, :, i, j] = x[:, :, i : i + kh, j : j + kw].reshape(x.shape[0], -1)
    return y


def batch_normalization(node: Node, x: Array) -> Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias for each channel."""
    scale, bias, mean, var = (
        node.params[name].astype(np.float64)[:, None, None] for name in ("scale", "bias", "mean", "var")
    )
    return (x - mean) / np.sqrt(var + node.attrs["epsilon"]) * scale + bias


def standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    return (x - x.mean(axis=axes, keepdims=True)) / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)


def group_normalization(node: Node, x: Array) -> Array:
    """Standardized over height, width and each group's channels, then scaled and shifted by channel."""
    groups = x.reshape(len(x), node.attrs["group"], -1, *x.shape[2:])
    return affine_by(node, standardized(groups, (2, 3, 4), node.attrs["epsilon"]).reshape(x.shape))


def layer_normalization(node: Node, x: Array) -> Array:
    """Standardized over the channels of each position, then scaled and shifted by channel."""
    return affine_by(node, standardized(x, (1,), node.attrs["epsilon"]))


def affine_by(node: Node, x: Array) -> Array:
    scale, bias = (node.params[name].astype(np.float64)[:, None, None] for name in ("scale", "bias"))
    return x * scale + bias


def lp_normalization(node: Node, x: Array) -> Array:
    """x / max((the sum of |x|^p over the channels)^(1/p), epsilon)."""
    p = node.attrs["p"]
    norm = (np.abs(x) ** p).sum(axis=1, keepdims=True) ** (1 / p)
    return x / np.maximum(norm, node.attrs["epsilon"])


def affine(node: Node, x: Array) -> Array:
    """x * scale + shift for each channel."""
    scale, shift = (node.params[name].astype(np.float64)[:, None, None] for name in ("scale", "shift"))
    return activated(node, x * scale + shift)


def combination(operation: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Arithmetic of several tensors, from the first to the last."""

    def combined(node: Node, *parts: Array) -> Array:
        with np.errstate(all="ignore"):
            return activated(node, reduce(operation, parts))

    return combined


erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.logaddexp(x, 0.0)


# x and the parameters that the node has, by name
FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Relu": relu,
    "LeakyRelu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "ThresholdedRelu": lambda x, alpha: np.where(x <= alpha, 0, x),
    "Elu": lambda x, alpha, gamma=1.0: gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "Clip": lambda x, min=-np.inf, max=np.inf: np.minimum(np.maximum(x, min), max),
    "Sigmoid": sigmoid,
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Swish": lambda x, alpha=1.0: x * sigmoid(alpha * x),
    "Tanh": np.tanh,
    "Erf": erf,
    "Gelu": lambda x: x / 2 * (1 + erf(x / np.sqrt(2))),
    "GeluTanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "Softplus": softplus,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Mish": lambda x: x * np.tanh(softplus(x)),
    "Abs": np.abs,
    "Sign": np.sign,
    "Sqrt": np.sqrt,
    "Exp": np.exp,
    "Log": np.log,
    "Reciprocal": lambda x: 1 / x,
    "Pow": lambda x, exponent: x**exponent,
}


def function(op: str) -> Callable[..., Array]:
    def applied(node: Node, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return FUNCTIONS[op](x, **node.attrs)

    return applied


def prelu(node: Node, x: Array) -> Array:
    """x where x >= 0, else slope * x, with one slope for each channel."""
    return np.where(x < 0, node.params["slope"].astype(np.float64)[:, None, None] * x, x)


def lrn(node: Node, x: Array) -> Array:
    """x[c] / (bias + alpha/size * the sum of x[i]^2, c - floor((size-1)/2) <= i <= c + ceil((size-1)/2))^beta."""
    size, channels = node.attrs["size"], x.shape[1]
    below, above = (size - 1) // 2, size // 2
    sums = np.stack(
        [(x[:, max(c - below, 0) : c + above + 1] ** 2).sum(axis=1) for c in range(channels)],
        axis=1,
    )
    return x / (node.attrs["bias"] + node.attrs["alpha"] / size * sums) ** node.attrs["beta"]


def softmax(node: Node, x: Array) -> Array:
    """exp(x[c]) / the sum of exp(x[i]) over the channels of one position."""
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_softmax(node: Node, x: Array) -> Array:
    """The logarithm of softmax, without its underflow."""
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def channel_shuffle(node: Node, x: Array) -> Array:
    """Channel i of group g becomes channel i*group + g."""
    group = node.attrs["group"]
    y = np.empty_like(x)
    per_group = x.shape[1] // group
    for g in range(group):
        for i in range(per_group):
            y[:, i * group + g] = x[:, g * per_group + i]
    return y


ORACLES: dict[str, Callable[..., Array]] = {
    "Conv": conv,
    "LocallyConnected": locally_connected,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "GlobalLpPool": global_lp_pool,
    "Gemm": gemm,
    "Flatten": flatten,
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "Affine": affine,
    **{op: function(op) for op in FUNCTIONS},
    "PRelu": prelu,
    "Add": combination(np.add),
    "Sub": combination(np.subtract),
    "Mul": combination(np.multiply),
    "Div": combination(np.divide),
    "Max": combination(np.maximum),
    "Min": combination(np.minimum),
    "Concat": lambda node, *parts: np.concatenate(parts, axis=1),
    "LRN": lrn,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "ChannelShuffle": channel_shuffle,
    "Identity": lambda node, x: x,
    "Slice": slice_,
    "Pad": pad,
    "Resize": resize,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "ConvTranspose": lambda node, x: activated(node, conv_transpose(node, x)),
}


def evaluate(graph: Graph, x: Array) -> dict[str, Array]:
    """Return every tensor of the graph, the input included, as float64 (N, C, H, W), for x of (N, C, H, W).

    Parameters are read in ONNX's layouts ("weight", "bias", ...), so packed graphs cannot be evaluated.
    """
    tensors = {graph.input_name: np.asarray(x, dtype=np.float64)}
    for node in graph.nodes:
        tensors[node.output] = ORACLES[node.op](node, *(tensors[name] for name in node.inputs))
    return tensors


def evaluate_outputs(graph: Graph, x: Array) -> dict[str, Array]:
    """Return the network's outputs by their names, in the shapes that they declare, as float64."""
    tensors = evaluate(graph, x)
    shown = {}
    for output in graph.outputs:
        y = tensors[output.tensor]
        shape = y.shape[1:] if output.shape is None else [-1 if dim is None else dim for dim in output.shape]
        if list(shape).count(-1) > 1:
            shape = y.shape[1:]
        shown[output.name] = y.reshape(y.shape[0] * output.rows, *shape) if output.rows else y.reshape(1, -1)
    return shown


def crops(x: Array, window: tuple[int, int], stride: int | tuple[int, int]) -> Array:
    """Return a view of every whole window of an image, (rows, cols, C, window_h, window_w), for x of (C, H, W).

    x may also be (1, C, H, W). Window (i, j) begins at pixel (i*stride, j*stride).
    """
    vertical, horizontal = (stride, stride) if isinstance(stride, int) else stride
    (image,) = x if x.ndim == 4 else (x,)
    seen = sliding_window_view(image, window, axis=(1, 2))[:, ::vertical, ::horizontal]
    return seen.transpose(1, 2, 0, 3, 4)
