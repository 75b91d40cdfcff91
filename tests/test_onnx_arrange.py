"""What works along other axes than channels, or on shapes that are no volumes, agrees with ONNX Runtime."""

from itertools import permutations

import numpy as np
import pytest
from onnx_maker import agree, drawn, made, newest_session, ops_of

import convserve

SHAPE = ("N", 3, 4, 6)
X = drawn(2, 3, 4, 6)


def of(*nodes, **options):
    """Compare a model with ONNX Runtime, by the oracle and by the engine; return the graph."""
    content = made(*nodes, **{"shape": SHAPE, **options})
    graph = agree(content, tolerance=2e-5)
    model = convserve.load(content, cache=False, threads=1)
    volume = graph.input_volume
    x = drawn(2, volume.channels, volume.height or 8, volume.width or 8)
    expected = newest_session(content).run(None, {"x": x})
    got = model.run(x)
    for wanted, found in zip(expected, got.values() if isinstance(got, dict) else [got], strict=True):
        assert wanted.shape == found.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * max(1.0, np.abs(wanted).max()))
    return graph


@pytest.mark.parametrize("perm", [(0, *rest) for rest in permutations((1, 2, 3))])
def test_every_order_of_an_image(perm):
    of(("Transpose", "x", "t", {"perm": perm}), ("Relu", "t", "y"))
    of(("Transpose", "x", "t", {"perm": (0, 2, 3, 1)}), ("Transpose", "t", "y", {"perm": perm}))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("axis", [1, 2, 3, -1, -2, -3])
def test_softmax_over_any_axis(op, opset, axis):
    of((op, "x", "y", {"axis": axis}), opset=opset)


def test_softmax_over_channels_that_lie_last():
    turn = ("Transpose", "x", "t", {"perm": (0, 2, 3, 1)})
    graph = of(turn, ("Softmax", "t", "s", {"axis": -1}), ("Transpose", "s", "y", {"perm": (0, 3, 1, 2)}))
    assert ops_of(graph) == ["Softmax"]
    of(turn, ("Softmax", "t", "y", {"axis": 1}))


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
@pytest.mark.parametrize("outputs", [("y",), ("y", "m", "d"), ("d", "y")])
def test_layer_normalization_over_any_axes(axis, outputs):
    sizes = X.shape[axis:]
    weights = {"s": drawn(*sizes), "b": drawn(*sizes[-1:], seed=1)}
    of(("LayerNormalization", "x s b", ("y", "m", "d"), {"axis": axis}), weights=weights, opset=17, outputs=outputs)


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("p", [1, 2])
def test_norms_over_any_axis(axis, p):
    of(("LpNormalization", "x", "y", {"axis": axis, "p": p}))


@pytest.mark.parametrize("op", ["ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"])
@pytest.mark.parametrize("axes", [(1,), (1, 3), (1, 2, 3), (-1, -2)])
def test_reductions(op, axes):
    nodes = [("Transpose", "x", "t", {"perm": (0, 2, 3, 1)})]
    nodes += [(op, f"{x} axes", f"{x}{keep}", {"keepdims": keep}) for x in "xt" for keep in (0, 1)]
    of(*nodes, weights={"axes": axes}, opset=18, outputs=("x0", "x1", "t0", "t1"))


def test_reductions_of_matrices():
    for axes in ([1], [2], [1, 2]):
        nodes = (("Reshape", "x shape", "r"), ("ReduceMax", "r axes", "y"))
        of(*nodes, weights={"shape": [0, 8, 9], "axes": axes}, opset=18)
    nodes = (("Reshape", "x shape", "r"), ("ReduceMean", "r axes", "y"))
    of(*nodes, weights={"shape": [0, 2, 3, 3, 4], "axes": [1, 3]}, opset=18)
    of(("Flatten", "x", "f"), ("ReduceMean", "f", "m", {"axes": [1]}), ("Sub", "f m", "y"), opset=13)


def test_the_attention_of_cbam_over_channels():
    """The mean and the largest value of the channels, a convolution, and a gate of one channel over all."""
    nodes = [
        ("ReduceMean", "x", "a", {"axes": [1]}),
        ("ReduceMax", "x", "b", {"axes": [1]}),
        ("Concat", "a b", "c", {"axis": 1}),
        ("Conv", "c w", "g", {"pads": [1, 1, 1, 1]}),
        ("Sigmoid", "g", "s"),
        ("Mul", "x s", "y"),
    ]
    of(*nodes, weights={"w": drawn(1, 2, 3, 3)})


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_concatenation_along_any_axis(axis):
    of(("Relu", "x", "r"), ("Concat", "x r x", "y", {"axis": axis}))
    turn = ("Transpose", "x", "t", {"perm": (0, 2, 3, 1)})
    of(turn, ("Relu", "t", "r"), ("Concat", "t r", "y", {"axis": axis}))


def test_shapes_that_are_no_volumes():
    reshape = ("Reshape", "x shape", "r")
    weights = {"shape": [0, 6, 4, 3], "w": drawn(5, 6, 2, 2), "m": drawn(12, 5), "s": drawn(6), "half": [3, 3]}
    of(reshape, ("Conv", "r w", "y"), weights=weights)
    of(reshape, ("Split", "r half", ("y", "z"), {"axis": 1}), weights=weights, outputs=("y", "z"))
    weights["shape"] = [0, 6, 12]
    of(reshape, ("MatMul", "r m", "y"), weights=weights)
    of(reshape, ("Transpose", "r", "t", {"perm": (0, 2, 1)}), ("Softmax", "t", "y", {"axis": 1}), weights=weights)
    of(reshape, ("BatchNormalization", "r s s s v", "y"), weights=weights | {"v": np.ones(6, np.float32)})
    of(reshape, ("Slice", "r b e a", "y"), weights=weights | {"b": [3], "e": [8], "a": [2]})


def test_linear_layers_over_the_last_axis():
    of(("MatMul", "x m", "y"), weights={"m": drawn(6, 5)})
    of(("MatMul", "x m", "z"), ("Add", "z b", "y"), weights={"m": drawn(6, 5), "b": drawn(5)})


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_constants_that_differ_from_pixel_to_pixel(op):
    for sizes in ((3, 4, 6), (1, 4, 1), (1, 3, 1, 6), (6,), (4, 6)):
        of((op, "x c", "y"), weights={"c": 2 + np.abs(drawn(*sizes))})
    constant = {"c": 2 + np.abs(drawn(3, 4, 6)), "three": np.float32(3)}
    of(("Abs", "x", "a"), ("Add", "a three", "r"), (op, "c r", "y"), weights=constant)
    turn = ("Transpose", "x", "t", {"perm": (0, 2, 3, 1)})
    of(turn, (op, "t c", "y"), weights={"c": 2 + np.abs(drawn(4, 6, 3))})
    of(("Flatten", "x", "f"), (op, "f c", "y"), weights={"c": 2 + np.abs(drawn(72))})


def test_gates_with_their_channels_last():
    nodes = [
        ("Transpose", "x", "t", {"perm": (0, 2, 3, 1)}),
        ("ReduceMean", "t", "m", {"axes": [1, 2]}),
        ("MatMul", "m w", "g"),
        ("Sigmoid", "g", "s"),
        ("Mul", "t s", "p"),
        ("Transpose", "p", "y", {"perm": (0, 3, 1, 2)}),
    ]
    assert ops_of(of(*nodes, weights={"w": drawn(3, 3)})) == ["GlobalAveragePool", "Gemm", "Sigmoid", "Mul"]


@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4, -1, -2, -4])
def test_a_matrix_of_all_images_can_be_shown(axis, tmp_path):
    content = made(("Relu", "x", "r"), ("Flatten", "r", "y", {"axis": axis}), shape=SHAPE)
    of(("Relu", "x", "r"), ("Flatten", "r", "y", {"axis": axis}))
    (tmp_path / "net.onnx").write_bytes(content)
    model = convserve.load(tmp_path / "net.onnx")
    again = convserve.load(tmp_path / "net.onnx")
    np.testing.assert_array_equal(model.run(X), again.run(X))
    wanted = np.maximum(X, 0).reshape(int(np.prod(X.shape[: axis])), -1)
    np.testing.assert_array_equal(again.run(X), wanted)


def test_values_are_cast_like_those_of_the_image():
    of(("CastLike", "c x", "d"), ("CastLike", "x d", "e"), ("Mul", "e d", "y"), weights={"c": 3}, opset=15)
