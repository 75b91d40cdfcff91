"""Importing single ONNX operations, in their forms of every opset, against ONNX Runtime."""

import numpy as np
import pytest
from onnx_maker import OldestToNewest, agree, drawn, made, ops_of

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx import load_onnx
from convserve.graph.ir import Volume
from convserve.graph.ops import infer_volumes


@pytest.mark.parametrize("opset", OldestToNewest)
def test_every_opset_reads_the_everyday_network(opset):
    axes = {"axes": [2, 3]} if opset < 13 else {}
    weights = {
        "w": drawn(4, 3, 3, 3),
        "b": drawn(4),
        "scale": drawn(4),
        "shift": drawn(4),
        "mean": drawn(4),
        "var": np.abs(drawn(4)) + 0.5,
        "m": drawn(5, 4),
        "c": drawn(5),
        "axes": np.array([2, 3]),
        "no": np.array(False),
        "ratio": np.array(0.5, np.float32),
    }
    dropout = ("Dropout", "norm", "drop", {"ratio": 0.5}) if opset < 12 else ("Dropout", "norm ratio no", "drop")
    content = made(
        ("Conv", "x w b", "conv", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", "conv scale shift mean var", "norm", {"epsilon": 1e-3}),
        dropout,
        ("Relu", "drop", "relu"),
        ("MaxPool", "relu", "pool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("GlobalAveragePool", "pool", "mean1"),
        ("Squeeze", "mean1" if opset < 13 else "mean1 axes", "flat", axes),
        ("Gemm", "flat m c", "y", {"transB": 1}),
        weights=weights,
        opset=opset,
    )
    graph = agree(content)
    assert ops_of(graph) == ["Conv", "BatchNormalization", "Relu", "MaxPool", "GlobalAveragePool", "Gemm"]
    assert graph.outputs[0].shape == (5,)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"kernel_shape": [3, 2]},
        {"strides": [2, 1], "pads": [1, 0, 2, 1]},
        {"dilations": [2, 3]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID", "strides": [2, 2]},
        {"auto_pad": "NOTSET", "pads": [0, 1, 0, 1]},
    ],
)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv(attrs, group):
    content = made(
        ("Conv", "x w", "y", {**attrs, "group": group}),
        shape=("N", 4, 9, 8),
        weights={"w": drawn(8, 4 // group, 3, 2)},
    )
    conv = agree(content).nodes[0]
    assert conv.attrs["kernel_shape"] == (3, 2)
    assert conv.attrs["group"] == group
    assert conv.attrs["auto_pad"] in ("NOTSET", "SAME_UPPER", "SAME_LOWER")
    assert not conv.params["bias"].any()


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2, 2], "pads": [1, 0, 1, 2]},
        {"strides": [2, 2], "ceil_mode": 1},
        {"strides": [3, 3], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 1], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
        {"strides": [1, 2], "dilations": [2, 1]},
    ],
)
def test_pool(op, attrs):
    content = made((op, "x", "y", {"kernel_shape": [3, 3], **attrs}), opset=19)
    assert agree(content).nodes[0].attrs["ceil_mode"] is bool(attrs.get("ceil_mode"))


@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool_counts_its_padding_or_not(opset, include):
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": include}
    assert agree(made(("AveragePool", "x", "y", attrs), opset=opset)).nodes[0].attrs["count_include_pad"] is bool(
        include
    )


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "Relu", "Identity"])
def test_one_input(op):
    agree(made((op, "x", "y")))


@pytest.mark.parametrize(("opset", "axes"), [(7, [2, 3]), (13, [-1, -2]), (18, [2, 3]), (18, [-2, -1])])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_the_mean_over_height_and_width_is_global_pooling(opset, axes, keepdims):
    inputs, attrs = ("x", {"axes": axes}) if opset < 18 else ("x axes", {})
    content = made(
        ("ReduceMean", inputs, "y", {**attrs, "keepdims": keepdims}), weights={"axes": np.array(axes)}, opset=opset
    )
    graph = agree(content)
    assert ops_of(graph) == ["GlobalAveragePool"]
    assert graph.outputs[0].shape == (None if keepdims else (3,))


@pytest.mark.parametrize("attrs", [{"size": 3}, {"size": 5, "alpha": 0.5, "beta": 0.5, "bias": 2.0}])
def test_lrn(attrs):
    agree(made(("LRN", "x", "y", attrs), shape=("N", 7, 4, 4)))


@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize("attrs", [{}, {"alpha": 0.5, "beta": -2.0}])
@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("summand", [(5,), (1, 5), (1,), ()])
def test_gemm(opset, attrs, trans, summand):
    content = made(
        ("Flatten", "x", "flat"),
        ("Gemm", "flat m c", "y", {**attrs, "transB": trans}),
        weights={"m": drawn(*((5, 192) if trans else (192, 5))), "c": drawn(*summand)},
        opset=opset,
    )
    graph = agree(content)
    assert ops_of(graph) == ["Flatten", "Gemm"]
    assert graph.nodes[0].attrs == {"kernel_shape": (8, 8)}
    assert graph.nodes[1].params["weight"].shape == (5, 192)


def test_gemm_without_summand_has_a_zero_bias():
    graph = agree(made(("Flatten", "x", "f"), ("Gemm", "f m", "y"), weights={"m": drawn(192, 5)}))
    assert not graph.nodes[1].params["bias"].any()


def test_matmul_and_add_are_gemm_and_affine():
    weights = {"m": drawn(192, 5), "c": drawn(1, 5)}
    graph = agree(made(("Flatten", "x", "f"), ("MatMul", "f m", "p"), ("Add", "p c", "y"), weights=weights))
    assert ops_of(graph) == ["Flatten", "Gemm", "Affine"]


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (1, 3, 1, 1), (1, 1, 1), (3, 8, 8)])
def test_arithmetic_with_a_constant_is_affine(op, shape):
    value = np.broadcast_to(drawn(*shape[:-2], 1, 1), shape) if len(shape) > 2 else drawn(*shape)
    graph = agree(made((op, "x c", "y"), weights={"c": value}))
    assert ops_of(graph) == ["Affine"]
    assert graph.nodes[0].params["scale"].shape == (3,)
    if op != "Div":
        assert ops_of(agree(made((op, "c x", "y"), weights={"c": value}))) == ["Affine"]


def test_arithmetic_on_flattened_values():
    weights = {"c": drawn(192), "d": drawn(1, 192), "m": drawn(192, 4)}
    nodes = [("Flatten", "x", "f"), ("Mul", "f c", "g"), ("Sub", "d g", "h"), ("MatMul", "h m", "y")]
    assert ops_of(agree(made(*nodes, weights=weights))) == ["Flatten", "Affine", "Affine", "Gemm"]


@pytest.mark.parametrize("op", ["Add", "Mul", "Sum"])
def test_two_tensors(op):
    content = made(("Relu", "x", "r"), (op, "x r", "y"))
    assert ops_of(agree(content)) == ["Relu", "Mul" if op == "Mul" else "Add"]


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("inputs", ["x g", "g x"])
def test_a_pixel_over_an_image(op, inputs):
    content = made(("GlobalAveragePool", "x", "g"), (op, inputs, "y"))
    assert ops_of(agree(content)) == ["GlobalAveragePool", op]


def test_sum_of_one_three_and_a_constant():
    nodes = [("Relu", "x", "r"), ("Sum", "x r x", "s"), ("Sum", "s c", "t"), ("Sum", "t", "u"), ("Add", "u u", "y")]
    assert ops_of(agree(made(*nodes, weights={"c": drawn(3, 1, 1)}))) == ["Relu", "Add", "Affine", "Add"]


@pytest.mark.parametrize("axis", [1, -3])
def test_concat(axis):
    content = made(("Relu", "x", "r"), ("Concat", "x r x", "y", {"axis": axis}))
    assert infer_volumes(agree(content))["y"] == Volume(9, 8, 8)


def test_concat_of_flattened_tensors():
    content = made(("Flatten", "x", "f"), ("Relu", "f", "r"), ("Concat", "f r", "y", {"axis": -1}))
    assert infer_volumes(agree(content))["y"] == Volume(384, 1, 1)


@pytest.mark.parametrize(("opset", "attrs"), [(7, {}), (11, {"axis": -1}), (13, {}), (13, {"axis": 1})])
def test_softmax_of_rank_two(opset, attrs):
    assert ops_of(agree(made(("Flatten", "x", "f"), ("Softmax", "f", "y", attrs), opset=opset))) == [
        "Flatten",
        "Softmax",
    ]


@pytest.mark.parametrize(("opset", "axis"), [(7, 1), (12, -3), (13, 1), (13, -3)])
def test_softmax_of_a_pixel(opset, axis):
    assert (
        agree(made(("Softmax", "x", "y", {"axis": axis}), shape=("N", 5, 1, 1), opset=opset)).outputs[0].shape is None
    )


def test_softmax_over_channels_of_an_image():
    agree(made(("Softmax", "x", "y", {"axis": 1}), opset=13))


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("first", [1, 0, -1])
def test_channel_shuffle(batch, first):
    weights = {"split": np.array([first, 3, 2, 8, 8]), "whole": np.array([first, 6, 8, 8])}
    nodes = [
        ("Reshape", "x split", "s"),
        ("Transpose", "s", "t", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", "t whole", "y"),
    ]
    graph = agree(made(*nodes, shape=(batch, 6, 8, 8), weights=weights), x=drawn(1, 6, 8, 8))
    assert ops_of(graph) == ["ChannelShuffle"]
    assert graph.nodes[0].attrs == {"group": 3}


def test_transpose_of_a_pixel_only_changes_the_shape():
    graph = agree(made(("Transpose", "x", "y", {"perm": [0, 2, 3, 1]}), shape=("N", 5, 1, 1)))
    assert graph.nodes == []
    assert graph.outputs[0].shape == (1, 1, 5)


@pytest.mark.parametrize("opset", [7, 11, 13])
def test_shapes_at_the_end_only_change_the_output(opset):
    before = opset < 13
    nodes = [
        ("GlobalAveragePool", "x", "p"),
        ("Squeeze", "p" if before else "p axes", "s", {"axes": [2, 3]} if before else {}),
        ("Unsqueeze", "s" if before else "s one", "u", {"axes": [1]} if before else {}),
        ("Flatten", "x", "f"),
        ("Reshape", "x shape", "r"),
    ]
    weights = {"axes": np.array([2, 3]), "one": np.array([1]), "shape": np.array([0, 0, -1])}
    graph = agree(made(*nodes, weights=weights, opset=opset, outputs=("s", "u", "f", "r", "p")))
    assert ops_of(graph) == ["GlobalAveragePool"]
    assert [output.shape for output in graph.outputs] == [(3,), (1, 3), (192,), (3, 64), None]


def test_relu_on_flattened_values_stays_before_the_flattening():
    nodes = [("Flatten", "x", "f"), ("Relu", "f", "r"), ("Gemm", "r m", "y")]
    assert ops_of(agree(made(*nodes, weights={"m": drawn(192, 5)}))) == ["Relu", "Flatten", "Gemm"]


REFUSED = [
    (made(("Det", "x", "y")), "Det 'y' is not supported; supported are: Abs, Add, AveragePool"),
    (made(("Conv", "x x", "y")), "depends on the image"),
    (made(("Conv", "x w", "y"), weights={"w": drawn(4, 3, 3)}), r"\(M, C, kh, kw\)"),
    (made(("PRelu", "x c", "y"), weights={"c": drawn(3, 8, 8)}), "differs from pixel to pixel"),
    (made(("Softmax", "x", "y", {"axis": 0})), "sums over axis 0, the batch"),
    (made(("Add", "x c", "y"), weights={"c": drawn(1, 1, 3, 1, 1)}), "larger"),
    (made(("Add", "x c", "y"), weights={"c": drawn(2, 3, 1, 1)}), "one value per channel"),
    (made(("Concat", "x x", "y", {"axis": 0})), "supported are the axes behind the batch"),
    (made(("Flatten", "x", "f", {"axis": 2}), ("Relu", "f", "y")), "mixes images"),
    (made(("Flatten", "x", "f"), ("Gemm", "f m", "y", {"transA": 1}), weights={"m": drawn(1, 4)}), "transA"),
    (made(("MatMul", "m x", "y"), weights={"m": drawn(8, 4)}), "times a constant matrix"),
    (made(("Transpose", "x", "y", {"perm": [1, 0, 2, 3]})), "reorders"),
    (made(("Reshape", "x s", "y"), weights={"s": np.array([-1, 8])}), "does not keep the batch"),
    (made(("Reshape", "x s", "y"), shape=(4, 3, 8, 8), weights={"s": np.array([1, -1])}), "does not keep the batch"),
    (made(("MaxPool", "x", ("p", "y"), {"kernel_shape": [2, 2]})), "only the first output"),
    (made(("Dropout", "x r t", "y"), weights={"r": np.float32(0.5), "t": np.array(True)}), "training mode"),
    (made(("Squeeze", "x a", "y"), shape=(1, 3, 8, 8), weights={"a": np.array([0])}), "the batch"),
    (made(("Cast", "x", "y", {"to": 7})), "casts to type 7"),
    (made(("Ceil", "x", "y")), "supported on constants only"),
    (made(("Sin", "c", "s"), ("Add", "x s", "y"), weights={"c": drawn(3, 1, 1)}), "is not supported"),
    (made(("Relu", "c", "s"), ("Add", "x s", "y"), weights={"c": drawn(3, 1, 1)}), "reads constants only"),
    (made(("Identity", "c", "y"), weights={"c": drawn(3)}), "needs 0 inputs"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_is_not_supported_says_so(content, message):
    with pytest.raises(UnsupportedOpError, match=message):
        load_onnx(content)


MALFORMED = [
    (made(("Conv", "x w", "y"), weights={"w": drawn(4, 2, 3, 3)}), "do not fit an input of 3 channels"),
    (made(("Conv", "x w", "y"), weights={"w": drawn(4, 3, 9, 9)}), "covers 9 positions, but its input has 8"),
    (made(("Conv", "x w", "y", {"kernel_shape": [5, 5]}), weights={"w": drawn(4, 3, 3, 3)}), "do not fit kernel_shape"),
    (made(("Conv", "x w", "y", {"strides": [0, 1]}), weights={"w": drawn(4, 3, 3, 3)}), "strides is"),
    (made(("Conv", "x w", "y", {"pads": [-1, 0, 0, 0]}), weights={"w": drawn(4, 3, 3, 3)}), "pads is"),
    (made(("Conv", "x w b", "y"), weights={"w": drawn(4, 3, 3, 3), "b": drawn(3)}), r"it must be \(4\)"),
    (made(("MaxPool", "x", "y")), "kernel_shape"),
    (made(("MaxPool", "x", "y", {"kernel_shape": 2})), "must be of type INTS"),
    (made(("MaxPool", "x", "y", {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]})), "padding only"),
    (made(("LRN", "x", "y")), "has no attribute 'size'"),
    (made(("Add", "x z", "y")), "needs 'z', which no node"),
    (made(("Relu", "x", "z")), "needs 'y', which no node"),
    (made(("Add", "x z", "y"), ("Relu", "x", "z")), "reads 'z', which nothing before it writes"),
    (made(("Relu", "x", "y"), ("Relu", "x", "y")), "two nodes of the graph write 'y'"),
    (made(("Relu", "x", "x"), ("Relu", "x", "y")), "writes no tensor of its own"),
    (made(("Squeeze", "x a", "y"), weights={"a": np.array([2])}), "not all of size 1"),
    (made(("Reshape", "x s", "y"), weights={"s": np.array([-1, -1])}), "is no shape"),
    (made(("Flatten", "x", "f"), ("Gemm", "f m c", "y"), weights={"m": drawn(192, 4), "c": drawn(3)}), "4 outputs"),
    (made(("Conv", "x", "y")), "lacks its input 1"),
    (
        made(("Flatten", "x", "f"), ("MatMul", "f m", "y"), weights={"m": np.zeros((192, 0), np.float32)}),
        "without channels",
    ),
    (made(("Shape", "x", "s"), ("Squeeze", "x s", "y")), "its axes are no whole numbers"),
]


@pytest.mark.parametrize(("content", "message"), MALFORMED, ids=[message[:30] for _, message in MALFORMED])
def test_what_is_malformed_says_so(content, message):
    with pytest.raises((ModelFormatError, UnsupportedOpError), match=message) as caught:
        load_onnx(content)
    assert caught.type is ModelFormatError
