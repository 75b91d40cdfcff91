"""Importing what moves values: several outputs of a node, open sizes, spelled-out blocks, and what is refused."""

import numpy as np
import pytest
from onnx_maker import agree, drawn, made, ops_of

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx import load_onnx
from convserve.graph.rewrites import rewrite


def test_split_has_several_outputs():
    weights = {"sizes": np.array([1, 2, 3])}
    nodes = [("Split", "x sizes", ("a", "b", "c"), {"axis": 1}), ("Concat", "c a b", "y", {"axis": 1})]
    graph = agree(made(*nodes, shape=("N", 6, 5, 4), weights=weights, outputs=("b", "y")))
    assert ops_of(graph) == ["Slice", "Slice", "Slice", "Concat"]


@pytest.mark.parametrize("axis", [2, -1])
def test_split_of_rows_and_columns(axis):
    node = ("Split", "x", ("a", "b"), {"axis": axis, "num_outputs": 2})
    agree(made(node, shape=("N", 3, 7, 5), opset=18, outputs="ab"))


def test_slice_of_an_open_size_needs_no_window_where_it_is_relative():
    weights = {"s": np.array([1, 2]), "e": np.array([-1, 2**63 - 1]), "a": np.array([2, 3]), "t": np.array([1, 2])}
    agree(made(("Slice", "x s e a t", "y"), shape=("N", 3, "H", "W"), weights=weights), x=drawn(2, 3, 9, 8))
    weights["e"] = np.array([4, 5])
    content = made(("Slice", "x s e a t", "y"), shape=("N", 3, "H", "W"), weights=weights)
    with pytest.raises(ModelFormatError, match="pass window="):
        load_onnx(content)
    agree(content, x=drawn(2, 3, 9, 8), window=(9, 8))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("op", ["DepthToSpace", "SpaceToDepth"])
def test_blocks_that_are_spelled_out(op, mode):
    split, order, joined = {
        ("DepthToSpace", "DCR"): ([0, 2, 2, 3, 4, 6], [0, 3, 4, 1, 5, 2], [0, 3, 8, 12]),
        ("DepthToSpace", "CRD"): ([0, 3, 2, 2, 4, 6], [0, 1, 4, 2, 5, 3], [0, 3, 8, 12]),
        ("SpaceToDepth", "DCR"): ([0, 12, 2, 2, 3, 2], [0, 3, 5, 1, 2, 4], [0, 48, 2, 3]),
        ("SpaceToDepth", "CRD"): ([0, 12, 2, 2, 3, 2], [0, 1, 3, 5, 2, 4], [0, 48, 2, 3]),
    }[op, mode]
    nodes = [("Reshape", "x s", "r"), ("Transpose", "r", "t", {"perm": order}), ("Reshape", "t j", "y")]
    graph = agree(made(*nodes, shape=(2, 12, 4, 6), weights={"s": np.array(split), "j": np.array(joined)}))
    assert ops_of(graph) == [op]
    assert graph.nodes[0].attrs == {"blocksize": (2, 2), "mode": mode}


def test_normalisation_and_activation_behind_a_transposed_convolution_are_folded():
    weights = {"w": drawn(4, 3, 3, 3), "b": drawn(6), "scale": drawn(6), "shift": drawn(6), "mean": drawn(6)}
    weights["var"] = np.abs(drawn(6)) + 0.5
    nodes = [
        ("ConvTranspose", "x w b", "t", {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2}),
        ("BatchNormalization", "t scale shift mean var", "n"),
        ("Relu", "n", "y"),
    ]
    graph = agree(made(*nodes, shape=("N", 4, 5, 6), weights=weights))
    assert ops_of(rewrite(graph, window=None)) == ["Conv"] * 4 + ["Concat", "DepthToSpace", "Slice"]


def test_opset_6_broadcasts_from_an_axis():
    content = made(("Add", "x c", "y", {"axis": 1, "broadcast": 1}), opset=6, weights={"c": drawn(3)})
    (node,) = load_onnx(content).nodes
    np.testing.assert_array_equal(node.params["shift"], drawn(3))
    with pytest.raises(ModelFormatError, match="does not fit at axis 3 of 4"):
        load_onnx(made(("Add", "x c", "y", {"axis": 3, "broadcast": 1}), opset=6, weights={"c": drawn(3, 8)}))


HALF = {"s": np.array([1, 1, 0.5, 0.5], np.float32)}
BAD = [
    (made(("Split", "x s", ("a", "y"), {"axis": 1}), weights={"s": np.array([1, 1])}), "splits 3 positions"),
    (made(("Split", "x", ("a", "y"))), "axis 0, the batch"),
    (made(("Slice", "x s e a", "y"), weights={"s": np.array([2]), "e": np.array([2]), "a": np.array([1])}), "empty"),
    (made(("Slice", "x s e", "y"), weights={"s": np.array([1]), "e": np.array([2])}), "axis 0, the batch"),
    (made(("Slice", "x s e", "y"), weights={"s": np.array([1]), "e": np.array([2, 3])}), "do not fit together"),
    (made(("Pad", "x p", "y"), weights={"p": np.array([1, 0, 0, 0, 0, 0, 0, 0])}), "pads axis 0"),
    (made(("Pad", "x p", "y"), weights={"p": np.array([0, 0, -4, 0, 0, 0, -4, 0])}), "leaves nothing"),
    (made(("Pad", "x p", "y", {"mode": "mirror"}), weights={"p": np.zeros(8, int)}), "mode is 'mirror'"),
    (made(("DepthToSpace", "x", "y", {"blocksize": 2})), "no whole number of 2x2 blocks"),
    (made(("SpaceToDepth", "x", "y", {"blocksize": 3})), "no whole number of blocks"),
    (made(("Resize", "x", "y")), "either scales or sizes"),
    (made(("Upsample", "x s", "y", {"mode": "area"}), opset=9, weights=HALF), "mode is 'area'"),
    (made(("ConvTranspose", "x w", "y"), weights={"w": drawn(2, 3, 3, 3)}), "do not fit an input"),
    (made(("ConvTranspose", "x w", "y", {"pads": [9] * 4}), weights={"w": drawn(3, 3, 3, 3)}), "leaves nothing"),
    (made(("ConvTranspose", "x w", "y", {"strides": [0, 1]}), weights={"w": drawn(3, 3, 3, 3)}), "strides is"),
]


@pytest.mark.parametrize(("content", "text"), BAD, ids=[text for _, text in BAD])
def test_what_cannot_be_moved_is_refused_in_a_sentence(content, text):
    with pytest.raises((ModelFormatError, UnsupportedOpError), match=text):
        load_onnx(content)
