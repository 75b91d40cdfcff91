"""ONNX's normalisations, norm poolings and reductions: as the importer writes them they agree with ONNX Runtime."""

import numpy as np
import pytest
from onnx_maker import agree, drawn, made, ops_of

from convserve.errors import ConvserveError
from convserve.formats.onnx import load_onnx

SCALES = {"s": 1 + drawn(3, seed=1), "b": drawn(3, seed=2)}


def test_instance_normalization():
    graph = agree(made(("InstanceNormalization", "x s b", "y", {"epsilon": 1e-3}), weights=SCALES))
    assert ops_of(graph) == ["GroupNormalization"]
    assert graph.nodes[0].attrs == {"epsilon": graph.nodes[0].attrs["epsilon"], "group": 3}


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_normalization(groups):
    weights = {"s": 1 + drawn(6, seed=1), "b": drawn(6, seed=2)}
    content = made(
        ("GroupNormalization", "x s b", "y", {"num_groups": groups}),
        shape=("N", 6, 5, 7),
        weights=weights,
        opset=21,
    )
    assert ops_of(agree(content)) == ["GroupNormalization"]


def test_group_normalization_spelled_out():
    weights = {
        "three": np.array([0, 3, -1]),
        "whole": np.array([0, 6, 5, 7]),
        "one": np.ones(3, np.float32),
        "zero": np.zeros(3, np.float32),
        "s": drawn(6, 1, 1),
        "b": drawn(6, 1, 1, seed=1),
    }
    nodes = [("Reshape", "x three", "g"), ("InstanceNormalization", "g one zero", "n"), ("Reshape", "n whole", "w")]
    graph = agree(made(*nodes, ("Mul", "w s", "m"), ("Add", "m b", "y"), shape=("N", 6, 5, 7), weights=weights))
    assert ops_of(graph) == ["GroupNormalization", "Affine", "Affine"]


def convnext_block(weights: dict[str, np.ndarray]) -> bytes:
    weights |= {"d": drawn(4, 1, 3, 3), "s": 1 + drawn(4), "b": drawn(4, seed=1)}
    weights |= {"v": drawn(4, 8), "vb": drawn(8), "w": drawn(8, 4), "wb": drawn(4, seed=2), "g": drawn(4, 1, 1)}
    nodes = [
        ("Conv", "x d", "c", {"group": 4, "pads": [1, 1, 1, 1]}),
        ("Transpose", "c", "last", {"perm": [0, 2, 3, 1]}),
        ("LayerNormalization", "last s b", "n", {"axis": -1, "epsilon": 1e-6}),
        ("MatMul", "n v", "m"),
        ("Add", "vb m", "a"),
        ("Gelu", "a", "e"),
        ("MatMul", "e w", "o"),
        ("Add", "o wb", "q"),
        ("Transpose", "q", "first", {"perm": [0, 3, 1, 2]}),
        ("Mul", "first g", "scaled"),
        ("Add", "scaled x", "y"),
    ]
    return made(*nodes, shape=("N", 4, 4, 4), weights=weights, opset=20)


def test_a_block_with_its_channels_last():
    assert ops_of(agree(convnext_block({}))) == [
        *("Conv", "LayerNormalization", "Gemm", "Affine", "Gelu", "Gemm", "Affine", "Affine", "Add")
    ]


@pytest.mark.parametrize(
    ("shape", "axis", "op"), [((3,), 1, "LayerNormalization"), ((3, 8, 8), 1, "GroupNormalization")]
)
def test_layer_normalization_of_whole_images(shape, axis, op):
    scale = np.broadcast_to((1 + drawn(3)).reshape(3, *[1] * (len(shape) - 1)), shape)
    before = [("GlobalAveragePool", "x", "p"), ("Flatten", "p", "f")] if len(shape) == 1 else [("Identity", "x", "f")]
    content = made(*before, ("LayerNormalization", "f s", "y", {"axis": axis}), weights={"s": scale}, opset=17)
    assert ops_of(agree(content))[-1] == op


@pytest.mark.parametrize("scales", [(3,), (1, 3), (1, 1, 3)])
def test_layer_normalization_of_pooled_channels(scales):
    # as ConvNeXt's classifier has it: what lies last is all that there is
    nodes = [
        ("GlobalAveragePool", "x", "p"),
        ("Transpose", "p", "last", {"perm": [0, 2, 3, 1]}),
        ("LayerNormalization", "last s b", "n", {"axis": 4 - len(scales)}),
        ("Transpose", "n", "first", {"perm": [0, 3, 1, 2]}),
        ("Flatten", "first", "y"),
    ]
    weights = {"s": 1 + drawn(*scales), "b": drawn(*scales, seed=1)}
    graph = agree(made(*nodes, weights=weights, opset=17))
    assert ops_of(graph) == ["GlobalAveragePool", "LayerNormalization"]


def spelled_layer_normalization(axes, *, first="x", square="Pow", shared=True, **changed):
    """Return the nodes that exporters write for a layer normalization before opset 17."""
    centred = "c" if shared else "c2"
    return [
        ("ReduceMean", first, "m", {"axes": axes}),
        ("Sub", f"{first} m", "c"),
        *([] if shared else [("Sub", f"{first} m", "c2")]),
        (square, f"{centred} {changed.get('factor', 'two')}" if square == "Pow" else f"{centred} c", "square"),
        ("ReduceMean", "square", "v", {"axes": changed.get("other", axes)}),
        ("Add", "v eps", "e"),
        ("Sqrt", "e", "root"),
        ("Div", "c root", "n"),
    ]


SPELLED = {"two": np.float32(2), "three": np.float32(3), "eps": np.float32(1e-6), "s": 1 + drawn(3), "b": drawn(3)}


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("shared", [False, True])
def test_layer_normalization_spelled_out(square, shared):
    nodes = spelled_layer_normalization([-1], first="last", square=square, shared=shared)
    nodes = [
        ("Transpose", "x", "last", {"perm": [0, 2, 3, 1]}),
        *nodes,
        ("Mul", "n s", "scaled"),
        ("Add", "scaled b", "a"),
    ]
    graph = agree(made(*nodes, ("Transpose", "a", "y", {"perm": [0, 3, 1, 2]}), weights=SPELLED))
    assert ops_of(graph) == ["LayerNormalization", "Affine", "Affine"]
    assert graph.nodes[0].attrs["epsilon"] == pytest.approx(1e-6)


@pytest.mark.parametrize("axes", [[1], [2], [2, 3], [1, 2, 3]])
def test_other_axes_of_a_normalization_spelled_out(axes):
    graph = agree(made(*spelled_layer_normalization(axes), ("Identity", "n", "y"), weights=SPELLED))
    assert "LayerNormalization" in ops_of(graph)
    assert "Sqrt" not in ops_of(graph)


@pytest.mark.parametrize("changed", [{"factor": "three"}, {"other": [2]}])
def test_what_only_looks_like_a_layer_normalization_is_none(changed):
    nodes = spelled_layer_normalization([1], **changed)
    # no root of what is below 0
    nodes = [*nodes[:-2], ("Abs", "e", "above"), ("Sqrt", "above", "root"), nodes[-1]]
    graph = agree(made(*nodes, ("Identity", "n", "y"), weights=SPELLED), tolerance=1e-4)
    assert "LayerNormalization" not in ops_of(graph)


def test_mean_variance_normalization():
    agree(made(("MeanVarianceNormalization", "x", "y", {"axes": [2, 3]})))


@pytest.mark.parametrize("p", [1, 2])
def test_division_by_norms(p):
    assert ops_of(agree(made(("LpNormalization", "x", "y", {"axis": 1, "p": p})))) == ["LpNormalization"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 2]},
        {"kernel_shape": [3, 3], "p": 1, "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 3], "p": 3, "auto_pad": "SAME_LOWER"},
    ],
)
def test_pooling_by_norms(attributes):
    assert ops_of(agree(made(("LpPool", "x", "y", attributes)))) == ["LpPool"]


def test_global_pooling_by_norms():
    agree(made(("GlobalLpPool", "x", "y", {"p": 2})))


@pytest.mark.parametrize("op", ["ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"])
@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (2,), (3,)])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduction(op, axes, keepdims):
    attributes = {"axes": axes, "keepdims": keepdims}
    inputs, weights = "x", {}
    if op == "ReduceSum":
        inputs, weights = "x axes", {"axes": np.array(attributes.pop("axes"))}
    agree(made((op, inputs, "y", attributes), shape=("N", 3, 8, 6), weights=weights), tolerance=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (made(("LpPool", "x", "y", {"kernel_shape": [2, 2], "p": 0})), "p is 0; it must be from 1"),
        (made(("LpNormalization", "x", "y", {"axis": 0})), "changes axis 0"),
        (made(("ReduceSum", "x", "y")), "changes axis 0"),
        (made(("InstanceNormalization", "x s b", "y", {"epsilon": -1.0}), weights=SCALES), "epsilon is -1.0"),
        (made(("MeanVarianceNormalization", "x", "y")), "changes axis 0"),
        (
            made(("GroupNormalization", "x s b", "y", {"num_groups": 2}), weights=SCALES, opset=21),
            "divides 3 channels into 2 groups",
        ),
        (
            made(("LayerNormalization", "x s", "y", {"axis": 2}), weights={"s": drawn(3, 8)}, opset=17),
            r"a constant of shape \(3, 8\) does not fit the sizes \(8, 8\)",
        ),
        (
            made(("Transpose", "x", "y", {"perm": [0, 2, 3, 1]}), shape=("N", 3, "H", "W")),
            r"pass window=\(h, w\)",
        ),
    ],
)
def test_what_is_refused(content, message):
    with pytest.raises(ConvserveError, match=message):
        load_onnx(content)
