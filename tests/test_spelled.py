"""Activations that exporters spell out become one node, and other products stay what they are."""

import numpy as np
import pytest
from onnx_maker import made, ops_of
from onnx_writer import runtime_session
from runs import run

from convserve.formats.onnx import load_onnx
from convserve.graph.rewrites import rewrite

CONSTANTS = {
    name: np.float32(value)
    for name, value in {
        "half": 0.5,
        "one": 1,
        "two": 2,
        "three": 3,
        "four": 4,
        "sixth": 1 / 6,
        "six": 6,
        "zero": 0,
        "root": np.sqrt(2),
        "reciprocal": np.sqrt(0.5),
        "a": 0.044715,
        "b": np.sqrt(2 / np.pi),
        "k": 1.702,
    }.items()
}
ERF = [("Div", "x root", "d"), ("Erf", "d", "e"), ("Add", "e one", "s")]
TANH = [
    *(("Pow", "x three", "c"), ("Mul", "a c", "q"), ("Add", "x q", "r")),
    *(("Mul", "r b", "i"), ("Tanh", "i", "t"), ("Add", "one t", "s")),
]
SPELLED = {
    "SiLU": ("Swish", [("Sigmoid", "x", "s"), ("Mul", "x s", "y")]),
    "SiLU, gate first": ("Swish", [("Sigmoid", "x", "s"), ("Mul", "s x", "y")]),
    "quick GELU": ("Swish", [("Mul", "x k", "v"), ("Sigmoid", "v", "s"), ("Mul", "x s", "y")]),
    "hard swish": ("HardSwish", [("HardSigmoid", "x", "s", {"alpha": 1 / 6}), ("Mul", "x s", "y")]),
    "hard swish, clipped": (
        "HardSwish",
        [("Add", "x three", "v"), ("Clip", "v zero six", "s"), ("Mul", "x s", "m"), ("Div", "m six", "y")],
    ),
    "hard swish, divided first": (
        "HardSwish",
        [("Add", "x three", "v"), ("Clip", "v zero six", "c"), ("Mul", "c sixth", "s"), ("Mul", "s x", "y")],
    ),
    "Mish": ("Mish", [("Softplus", "x", "p"), ("Tanh", "p", "t"), ("Mul", "x t", "y")]),
    "GELU": ("Gelu", [*ERF, ("Mul", "x s", "m"), ("Mul", "m half", "y")]),
    "GELU, half of x first": ("Gelu", [*ERF, ("Mul", "half x", "h"), ("Mul", "h s", "y")]),
    "GELU, half of the gate": ("Gelu", [*ERF, ("Mul", "s half", "h"), ("Mul", "x h", "y")]),
    "GELU by tanh": ("GeluTanh", [*TANH, ("Mul", "x half", "h"), ("Mul", "h s", "y")]),
}
OTHERS = {
    "the gate of another": [("Tanh", "x", "o"), ("Sigmoid", "o", "s"), ("Mul", "x s", "y")],
    "no half": [*ERF, ("Mul", "x s", "y")],
    "another bound": [("Add", "x one", "v"), ("Clip", "v zero six", "s"), ("Mul", "x s", "m"), ("Div", "m six", "y")],
    "softplus alone": [("Softplus", "x", "p"), ("Mul", "x p", "y")],
}


def checked(nodes: list[tuple], opset: int = 14) -> list[str]:
    """Return the operations of the rewritten network, which gives what ONNX Runtime gives."""
    used = {name for node in nodes for name in node[1].split()}
    weights = {name: value for name, value in CONSTANTS.items() if name in used}
    content = made(*nodes, weights=weights, opset=opset)
    graph = rewrite(load_onnx(content), window=None)
    x = np.linspace(-9, 9, 192, dtype=np.float32).reshape(1, 3, 8, 8)
    (expected,) = runtime_session(content, optimized=False).run(None, {"x": x})
    np.testing.assert_allclose(run(graph, x)[0], expected, rtol=0, atol=3e-6)
    return ops_of(graph)


@pytest.mark.parametrize("name", SPELLED)
def test_what_is_spelled_out_gets_its_name(name):
    op, nodes = SPELLED[name]
    assert checked(nodes) == [op]


def test_response_normalization_within_a_channel_and_norm_pooling_run_as_they_are_spelled():
    mean = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    within = [("Mul", "x x", "q"), ("AveragePool", "q", "m", mean), ("Mul", "m sixth", "v"), ("Add", "v one", "w")]
    assert checked([*within, ("Pow", "w half", "d"), ("Div", "x d", "y")]) == [
        *("Mul", "AveragePool", "Affine", "Pow", "Div")
    ]
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    norm = [("Pow", "x two", "q"), ("AveragePool", "q", "m", window), ("Sign", "m", "s"), ("Abs", "m", "n")]
    norm += [("Relu", "n", "r"), ("Mul", "s r", "t"), ("Mul", "t four", "u"), ("Pow", "u half", "y")]
    assert checked(norm)[-1] == "Pow"


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_stay(name):
    assert "Mul" in checked(OTHERS[name])


def test_a_gate_that_is_shown_stays():
    nodes = [("Sigmoid", "x", "s"), ("Mul", "x s", "y")]
    graph = rewrite(load_onnx(made(*nodes, outputs=("y", "s"))), window=None)
    assert ops_of(graph) == ["Sigmoid", "Swish"]
