"""ONNX's activations and arithmetic: as the importer writes them they agree with ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx_maker import agree, drawn, made, ops_of

from convserve.errors import ConvserveError
from convserve.formats.onnx import load_onnx

ACTIVATIONS = [
    ("Abs", {}),
    ("Celu", {}),
    ("Celu", {"alpha": 0.7}),
    ("Elu", {"alpha": 0.6}),
    ("Erf", {}),
    ("Exp", {}),
    ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": 1 / 6}),
    ("HardSwish", {}),
    ("LeakyRelu", {}),
    ("LeakyRelu", {"alpha": 0.3}),
    ("Mish", {}),
    ("Neg", {}),
    ("Reciprocal", {}),
    ("Relu", {}),
    ("Selu", {}),
    ("Selu", {"alpha": 2.0, "gamma": 3.0}),
    ("Sigmoid", {}),
    ("Sign", {}),
    ("Softplus", {}),
    ("Softsign", {}),
    ("Tanh", {}),
    ("ThresholdedRelu", {}),
    ("ThresholdedRelu", {"alpha": 0.5}),
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
]


@pytest.mark.parametrize(("op", "attributes"), ACTIVATIONS)
def test_activation(op, attributes):
    agree(made((op, "x", "y", attributes), opset=20), tolerance=1e-4 if op == "Reciprocal" else 1e-5)


@pytest.mark.parametrize("opset", [10, 11, 13])
@pytest.mark.parametrize(
    ("bounds", "op"),
    [({"min": 0.0, "max": 6.0}, "Clip"), ({"min": 0.0}, "Relu"), ({"max": 0.5}, "Clip"), ({}, "Clip")],
)
def test_clip(bounds, op, opset):
    if opset < 11:
        content = made(("Clip", "x", "y", bounds), opset=opset)
    else:
        inputs = ["x", *(name if name in bounds else "" for name in ("min", "max"))]
        node = ("Clip", "", "y")
        content = made(node, weights={name: np.float32(value) for name, value in bounds.items()}, opset=opset)
        content = with_inputs(content, inputs)
    assert ops_of(agree(content)) == [op]


def with_inputs(content: bytes, inputs: list[str]) -> bytes:
    """Return a model of one node with these inputs, of which some may be left out."""
    model = onnx.load_model_from_string(content)
    model.graph.node[0].input.extend(inputs)
    return model.SerializeToString()


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (1, 3, 1, 1)])
def test_prelu(shape):
    assert ops_of(agree(made(("PRelu", "x slope", "y"), weights={"slope": drawn(*shape)}))) == ["PRelu"]


@pytest.mark.parametrize("exponent", [2.0, 3.0, -1.0, 0.0])
def test_power(exponent):
    agree(made(("Pow", "x e", "y"), weights={"e": np.float32(exponent)}), tolerance=1e-4)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Max", "Min"])
def test_two_tensors(op):
    graph = agree(made(("Sigmoid", "x", "s"), (op, "s x", "y")))
    assert ops_of(graph) == ["Sigmoid", op]


def test_a_quotient_of_tensors():
    agree(made(("Softplus", "x", "s"), ("Div", "x s", "y")))


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_tensors(op, count):
    agree(made(("Sigmoid", "x", "s"), ("Tanh", "x", "t"), (op, " ".join("xst"[:count]), "y")))


@pytest.mark.parametrize("op", ["Max", "Min", "Sub", "Div"])
@pytest.mark.parametrize("inputs", ["x c", "c x"])
def test_a_constant(op, inputs):
    agree(made((op, inputs, "y"), weights={"c": np.float32(0.3)}), tolerance=1e-4)


def test_squeeze_and_excite():
    weights = {"a": drawn(2, 3, 1, 1), "b": drawn(3, 2, 1, 1)}
    nodes = [("GlobalAveragePool", "x", "g"), ("Conv", "g a", "s"), ("HardSwish", "s", "h"), ("Conv", "h b", "e")]
    agree(made(*nodes, ("HardSigmoid", "e", "f", {"alpha": 1 / 6}), ("Mul", "f x", "y"), weights=weights, opset=14))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (made(("Max", "x c", "y"), weights={"c": drawn(3, 1, 1)}), "supported is one finite value"),
        (made(("Pow", "x c", "y"), weights={"c": drawn(3, 1, 1)}), "supported is one value"),
        (made(("LeakyRelu", "x", "y", {"alpha": float("nan")})), "alpha is nan; it must be a finite number"),
        (made(("Gelu", "x", "y", {"approximate": "sine"}), opset=20), "'sine'; supported are none and tanh"),
        (made(("Celu", "x", "y", {"alpha": 0.0})), "alpha is 0"),
        (made(("PRelu", "x c", "y"), weights={"c": drawn(8, 8)}), "differs from pixel to pixel"),
    ],
)
def test_what_is_refused(content, message):
    with pytest.raises(ConvserveError, match=message):
        load_onnx(content)
