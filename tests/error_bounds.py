"""How far a float32 run may be from the oracle: a rounding error bound for every value, which grows with k.

The usual model: each float32 operation errs by at most u = 2^-24 of its result, so a sum of n products in
any order errs by at most about n*u times the sum of their absolute values, and what its inputs err goes
through on top. Second-order terms and fused parameters are covered by SLACK.
"""

from collections.abc import Callable

import numpy as np
from reference import ORACLES

from convserve.graph.ir import Graph, Node

__all__ = ["assert_within", "evaluate_with_bounds"]

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


def maximum(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    return ORACLES[node.op](node, errors[0])


def average(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    kernel = node.attrs.get("kernel_shape") or ys[0].shape[2:]
    terms = kernel[0] * kernel[1] + 1
    return ORACLES[node.op](node, errors[0]) + terms * U * ORACLES[node.op](node, np.abs(ys[0]))


def moved(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    return ORACLES[node.op](node, *errors)


def relu(node: Node, ys: list[Array], errors: list[Array]) -> Array:
    return errors[0]


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


BOUNDS: dict[str, Callable[[Node, list[Array], list[Array]], Array]] = {
    "Conv": weighted,
    "Gemm": weighted,
    "MaxPool": maximum,
    "GlobalMaxPool": maximum,
    "AveragePool": average,
    "GlobalAveragePool": average,
    "Flatten": moved,
    "Concat": moved,
    "ChannelShuffle": moved,
    "Identity": moved,
    "Relu": relu,
    "Affine": affine,
    "BatchNormalization": batch_normalization,
    "Add": add,
    "Mul": mul,
    "LRN": lrn,
    "Softmax": softmax,
}


def evaluate_with_bounds(graph: Graph, x: Array) -> dict[str, tuple[Array, Array]]:
    """Return every tensor as (its float64 value, how far a float32 run may be from it)."""
    start = np.asarray(x, dtype=np.float64)
    found = {graph.input_name: (start, np.zeros_like(start))}
    for node in graph.nodes:
        ys = [found[name][0] for name in node.inputs]
        errors = [found[name][1] for name in node.inputs]
        y = ORACLES[node.op](node, *ys)
        found[node.output] = y, np.broadcast_to(BOUNDS[node.op](node, ys, errors), y.shape)
    return found


def assert_within(graph: Graph, x: Array, outputs: list[Array]) -> None:
    """Fail where an output of a float32 run leaves its bound."""
    found = evaluate_with_bounds(graph, x)
    for got, output in zip(outputs, graph.outputs, strict=True):
        oracle, bound = found[output.tensor]
        assert got.shape == oracle.shape
        excess = np.abs(got - oracle) - (SLACK * bound + TINY)
        worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
        assert not (~(excess <= 0)).any(), (
            f"{output.name}{list(map(int, worst))} is {got[worst]!r}, should be {oracle[worst]!r} +- {bound[worst]:.3g}"
        )
