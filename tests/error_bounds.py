"""How far a float32 run may be from the oracle: a rounding error bound for every value, which grows with k.

The usual model: each float32 operation errs by at most u = 2^-24 of its result, so a sum of n products in
any order errs by at most about n*u times the sum of their absolute values, and what its inputs err goes
through on top. Second-order terms and fused parameters are covered by SLACK.

With k = kernel_h * kernel_w * input channels, S the sum of |x * w| over a window, and |bias|, |residual|:
    convolutions and fully-connected layers, direct, in groups or depthwise:
        2 * (2k + 4) * u * (S + |bias| + |residual|)
    Winograd, whose k is the input channels, and S the sum taken through the absolute values of its transforms:
        2 * (k + 22) * u * (S + |bias| + |residual|)
"""

from collections.abc import Callable, Collection
from functools import reduce

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from reference import ORACLES

from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Node

__all__ = ["U", "assert_within", "evaluate_with_bounds"]

Array = np.ndarray
U = 2.0**-24
SLACK = 2.0
TINY = 1e-37  # below float32's normal range


def absolute(node: Node) -> Node:
    """Return the node with absolute parameters and without activation: it maps errors to errors."""
    params = {name: np.abs(array.astype(np.float64)) for name, array in node.params.items()}
    return node.changed(attrs=node.attrs | {"activation": ""}, params=params)


def weighted(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    weight = node.params["weight"]
    terms = weight[0].size + 1
    errors_only = absolute(node)
    errors_only.params["bias"] = np.zeros_like(errors_only.params["bias"])
    magnitude = ORACLES[node.op](absolute(node), *(np.abs(y) for y in ys))
    return ORACLES[node.op](errors_only, *errors) + (2 * terms + 2) * U * magnitude


def local(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    errors_only = absolute(node)
    errors_only.params["bias"] = np.zeros_like(errors_only.params["bias"])
    magnitude = ORACLES[node.op](absolute(node), np.abs(ys[0]))
    return ORACLES[node.op](errors_only, *errors) + (2 * node.params["weight"].shape[3] + 4) * U * magnitude


def transformed(node: Node, x: Array) -> Array:
    """Return A^T (sum over c of (G |g| G^T) * (B^T |d| B)) A of each 6x6 tile d, with absolute values throughout.

    Its tiles have 4x4 outputs for 3x3 filters g, and 2x2 for 5x5 ones.
    """
    weight, group = np.abs(node.params["weight"].astype(np.float64)), node.attrs["group"]
    kernel = weight.shape[2]
    size = 7 - kernel
    b = np.array([[4, 0, 5, 0, 1, 0], *[[0, 4, 4, 1, 1, 0]] * 2, *[[0, 2, 1, 2, 1, 0]] * 2, [0, 4, 0, 5, 0, 1]])
    powers = np.array([0.0, 1, 1, 2, 2])[:, None] ** np.arange(kernel)
    g = np.vstack([powers / np.array([4, 6, 6, 24, 24])[:, None], np.eye(kernel)[-1]])
    a = np.hstack([np.array([0.0, 1, 1, 2, 2]) ** np.arange(size)[:, None], np.eye(size)[:, -1:]])
    top, left, bottom, right = node.attrs["pads"]
    height, width = x.shape[2] + top + bottom - kernel + 1, x.shape[3] + left + right - kernel + 1
    rows, columns = -(-height // size), -(-width // size)
    more = (size * rows - height, size * columns - width)
    padded = np.pad(np.abs(x), ((0, 0), (0, 0), (top, bottom + more[0]), (left, right + more[1])))
    tiles = sliding_window_view(padded, (6, 6), axis=(2, 3))[:, :, ::size, ::size]
    v = b @ tiles @ b.T
    products = [
        np.einsum("mcij,nctuij->nmtuij", g @ filters @ g.T, points, optimize=True)
        for filters, points in zip(np.split(weight, group), np.split(v, group, axis=1), strict=True)
    ]
    y = a @ np.concatenate(products, axis=1) @ a.T
    return y.transpose(0, 1, 2, 4, 3, 5).reshape(*y.shape[:2], size * rows, size * columns)[:, :, :height, :width]


def winograd(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    through = absolute(node)
    magnitude = transformed(node, ys[0]) + np.abs(node.params["bias"].astype(np.float64))[:, None, None]
    for residual in ys[1:]:
        magnitude = magnitude + np.abs(residual)
    through.params["bias"] = np.zeros_like(through.params["bias"])
    return ORACLES["Conv"](through, *errors) + (node.params["weight"].shape[1] + 22) * U * magnitude


def maximum(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    return ORACLES[node.op](node, errors[0])


def average(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    kernel = node.attrs.get("kernel_shape") or ys[0].shape[2:]
    terms = kernel[0] * kernel[1] + 1
    return ORACLES[node.op](node, errors[0]) + terms * U * ORACLES[node.op](node, np.abs(ys[0]))


def lp_pool(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    """A norm of the input's errors, by the triangle inequality, and rounding of sums, powers and the root."""
    kernel, p = node.attrs.get("kernel_shape") or ys[0].shape[2:], node.attrs["p"]
    y = ORACLES[node.op](node, ys[0])
    with np.errstate(divide="ignore"):
        root = 4 * np.abs(np.log(np.maximum(y, TINY))) if p > 2 else 0.0
    lost = (kernel[0] * kernel[1] * TINY) ** (1 / p)  # powers below float32's normal range
    return ORACLES[node.op](node, errors[0]) + (kernel[0] * kernel[1] / p + p + 8 + root) * U * y + lost


def standardizing(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    """What a value errs, in itself and, at most, through mean and deviation of all; and rounding."""
    x, error = ys[0], errors[0]
    axes: tuple[int, ...] = (1,)
    if node.op == "GroupNormalization":
        shape = (len(x), node.attrs["group"], -1, *x.shape[2:])
        grouped, spread, axes = x.reshape(shape), error.reshape(shape), (2, 3, 4)
    else:
        grouped, spread = x, error
    deviation = np.sqrt(grouped.var(axis=axes, keepdims=True) + node.attrs["epsilon"])
    mean = np.abs(grouped.mean(axis=axes, keepdims=True))
    z = np.abs(grouped - grouped.mean(axis=axes, keepdims=True)) / deviation
    most = spread.max(axis=axes, keepdims=True)
    through = (spread + most + 2 * z * most) / deviation + 3 * U * ((np.abs(grouped) + mean) / deviation)
    scale, bias = (np.abs(node.params[name].astype(np.float64))[:, None, None] for name in ("scale", "bias"))
    return scale * through.reshape(x.shape) + 2 * U * (scale * z.reshape(x.shape) + bias)


def lp_normalization(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    p, x = node.attrs["p"], ys[0]
    norms = [(np.abs(part) ** p).sum(axis=1, keepdims=True) ** (1 / p) for part in (x, errors[0])]
    size = np.maximum(norms[0], node.attrs["epsilon"])
    return (errors[0] + np.abs(x) / size * norms[1]) / size + 2 * U * np.abs(x) / size


def moved(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    return ORACLES[node.op](node, *errors)


# errors of the function alone, in u, for what is not just a few of the result's: of x, its value and its parameters
OWN: dict[str, Callable[..., Array]] = {
    "Relu": lambda x, y: 0 * y,
    "Clip": lambda x, y, **bounds: np.abs(y),  # bounds are rounded to float32
    "HardSigmoid": lambda x, y, alpha, beta: 4 * (np.abs(alpha * x) + np.abs(beta)),
    "HardSwish": lambda x, y: 4 * np.abs(x) * (np.abs(x) / 6 + 1),
    "Swish": lambda x, y, alpha=1.0: (10 + 4 * np.abs(alpha * x)) * np.abs(y),
    "Gelu": lambda x, y: 10 * np.abs(x),
    "GeluTanh": lambda x, y: 10 * np.abs(x),
    # where e^x leaves float32's normal range, it is 0
    "Mish": lambda x, y: 10 * np.abs(y) + np.abs(x) * TINY / U,
    "Pow": lambda x, y, exponent: (10 + 4 * np.abs(exponent * (1 + np.abs(np.log(np.abs(x)))))) * np.abs(y),
}


def function(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    """What the input errs, through the function's largest change within it, and the function's own error."""
    x, error = ys[0], errors[0]
    y = ORACLES[node.op](node, x)
    with np.errstate(all="ignore"):
        through = np.maximum(*(np.abs(ORACLES[node.op](node, x + side * error) - y) for side in (1, -1)))
        own = OWN[node.op](x, y, **node.attrs) if node.op in OWN else 10 * np.abs(y)
    return np.where(error > 0, through, 0) + U * own


def prelu(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    slope = np.abs(node.params["slope"].astype(np.float64))[:, None, None]
    return np.maximum(slope, 1) * errors[0] + U * slope * np.abs(ys[0])


def affine(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    scale, shift = (np.abs(node.params[name].astype(np.float64))[:, None, None] for name in ("scale", "shift"))
    return scale * errors[0] + 2 * U * (scale * np.abs(ys[0]) + shift)


def batch_normalization(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    scale, bias, mean, var = (
        node.params[name].astype(np.float64)[:, None, None] for name in ("scale", "bias", "mean", "var")
    )
    slope = np.abs(scale / np.sqrt(var + node.attrs["epsilon"]))
    return slope * errors[0] + 4 * U * (slope * (np.abs(ys[0]) + np.abs(mean)) + np.abs(bias))


def add(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    return sum(errors[1:], errors[0]) + len(ys) * U * sum((np.abs(y) for y in ys[1:]), np.abs(ys[0]))


def mul(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    product, error = np.abs(ys[0]), errors[0]
    for y, more in zip(ys[1:], errors[1:], strict=True):
        product, error = product * np.abs(y), error * np.abs(y) + (product + error) * more + U * product * np.abs(y)
    return error


def quotient(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    value, error = np.abs(ys[0]), errors[0]
    with np.errstate(all="ignore"):
        for y, more in zip(ys[1:], errors[1:], strict=True):
            least = np.maximum(np.abs(y) - more, 0)
            value, error = value / np.abs(y), (error + value / np.abs(y) * more) / least
            error = error + U * (value + error)
    return error


def extreme(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    return reduce(np.maximum, errors)


def lrn(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    attrs, x, error = node.attrs, ys[0], errors[0]
    below, above = (attrs["size"] - 1) // 2, attrs["size"] // 2
    windows = [slice(max(c - below, 0), c + above + 1) for c in range(x.shape[1])]
    spread = np.stack([(np.abs(x) * error)[:, window].sum(axis=1) for window in windows], axis=1)
    squares = np.stack([(x**2)[:, window].sum(axis=1) for window in windows], axis=1)
    factor = np.abs(attrs["alpha"]) / attrs["size"]
    y = np.abs(ORACLES["LRN"](node, x))
    divisor = attrs["bias"] + factor * squares
    shrink = divisor ** -attrs["beta"]
    slope = attrs["beta"] * np.abs(x) * shrink / divisor * factor * 2 * spread
    return shrink * error + slope + (8 + attrs["beta"] * (attrs["size"] + 4)) * U * y


def softmax(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    x, error = ys[0], errors[0].max(axis=1, keepdims=True)
    y = ORACLES["Softmax"](node, x)
    exponents = x.max(axis=1, keepdims=True) - x
    exponents = np.maximum(exponents, (y * exponents).sum(axis=1, keepdims=True))
    return y * (2 * np.expm1(2 * error) + (2 * exponents + x.shape[1] + 8) * U)


def log_softmax(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    x, error = ys[0], errors[0].max(axis=1, keepdims=True)
    spread = x.max(axis=1, keepdims=True) - x
    return 2 * error + (2 * spread + x.shape[1] + 12) * U + 2 * U * np.abs(ORACLES[node.op](node, x))


def conv_transposed(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    """As `weighted`: at most all taps of all channels of a group meet in one output."""
    weight, group = node.params["weight"], node.attrs["group"]
    terms = weight.size // (weight.shape[1] * group) + 1
    errors_only = absolute(node)
    errors_only.params["bias"] = np.zeros_like(errors_only.params["bias"])
    magnitude = ORACLES[node.op](absolute(node), np.abs(ys[0]))
    return ORACLES[node.op](errors_only, errors[0]) + (2 * terms + 2) * U * magnitude


def padded(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    return ORACLES[node.op](node.changed(attrs=node.attrs | {"value": 0.0}), *errors)


def resized(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    """Weights lie within (-2, 2) and differ by two roundings; no more than these many taps meet in one output."""
    terms = 64 if node.attrs["antialias"] else 16
    largest = np.abs(ys[0]).max(axis=(2, 3), keepdims=True)
    return 4 * errors[0].max(axis=(2, 3), keepdims=True) + terms * 8 * U * largest + 0 * moved(node, ys, errors)


BOUNDS: dict[str, Callable[[Node, list[Array], list[Array]], Array]] = {
    "Conv": weighted,
    "Gemm": weighted,
    "LocallyConnected": local,
    "MaxPool": maximum,
    "GlobalMaxPool": maximum,
    "AveragePool": average,
    "GlobalAveragePool": average,
    "LpPool": lp_pool,
    "GlobalLpPool": lp_pool,
    "GroupNormalization": standardizing,
    "LayerNormalization": standardizing,
    "LpNormalization": lp_normalization,
    "Flatten": moved,
    "Concat": moved,
    "Slice": moved,
    "DepthToSpace": moved,
    "SpaceToDepth": moved,
    "Pad": padded,
    "Resize": resized,
    "ConvTranspose": conv_transposed,
    "ChannelShuffle": moved,
    "Identity": moved,
    **dict.fromkeys(ACTIVATIONS, function),
    "PRelu": prelu,
    "Affine": affine,
    "BatchNormalization": batch_normalization,
    "Add": add,
    "Sub": add,
    "Mul": mul,
    "Div": quotient,
    "Max": extreme,
    "Min": extreme,
    "LRN": lrn,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
}


def evaluate_with_bounds(
    graph: Graph, x: Array, by_winograd: Collection[str] = ()
) -> dict[str, tuple[Array, Array]]:
    """Return every tensor as (its float64 value, how far a float32 run may be from it).

    by_winograd: names of the convolutions that run by Winograd.
    """
    start = np.asarray(x, dtype=np.float64)
    found = {graph.input_name: (start, np.zeros_like(start))}
    for node in graph.nodes:
        ys = [found[name][0] for name in node.inputs]
        errors = [found[name][1] for name in node.inputs]
        y = ORACLES[node.op](node, *ys)
        bound = winograd if node.name in by_winograd else BOUNDS[node.op]
        found[node.output] = y, np.broadcast_to(bound(node, ys, errors), y.shape)
    return found


def assert_within(graph: Graph, x: Array, outputs: list[Array], by_winograd: Collection[str] = ()) -> None:
    """Fail where an output of a float32 run leaves its bound, or is a number where the oracle has none."""
    found = evaluate_with_bounds(graph, x, by_winograd)
    for got, output in zip(outputs, graph.outputs, strict=True):
        oracle, bound = found[output.tensor]
        assert got.shape == oracle.shape
        with np.errstate(invalid="ignore"):
            oracle = np.where(np.abs(oracle) > np.finfo(np.float32).max, np.sign(oracle) * np.inf, oracle)
            excess = np.abs(got - oracle) - (SLACK * bound + TINY)
        # no number on both sides, or the same infinity, is an agreement
        excess = np.where((got == oracle) | (np.isnan(got) & np.isnan(oracle)), 0.0, excess)
        worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
        assert not (~(excess <= 0)).any(), (
            f"{output.name}{list(map(int, worst))} is {got[worst]!r}, should be {oracle[worst]!r} +- {bound[worst]:.3g}"
        )
