"""A split as a sequence, and constants that are computed in the file, as PyTorch writes both without optimization."""

import numpy as np
import pytest
from onnx_maker import agree, drawn, made, ops_of

from convserve.errors import UnsupportedOpError
from convserve.formats.onnx import load_onnx


def split(*taken: int, sizes=(2, 4), axis: int = 1, **attributes: int) -> bytes:
    nodes = [("SplitToSequence", "x sizes", "parts", {"axis": axis, **attributes})]
    nodes += [("SequenceAt", f"parts at{place}", f"part{place}") for place in taken]
    nodes += [("Relu", f"part{taken[0]}", "first"), ("Concat", f"first part{taken[-1]}", "y", {"axis": 1})]
    weights = {"sizes": np.array(sizes), **{f"at{place}": np.array(place) for place in taken}}
    return made(*nodes, shape=("N", 6, 8, 8), weights=weights, opset=18)


@pytest.mark.parametrize("taken", [(0, 1), (1, 0), (-1, 0), (0, -1)])
def test_a_sequence_of_parts(taken):
    assert set(ops_of(agree(split(*taken)))) == {"Slice", "Relu", "Concat"}


def test_parts_of_one_size():
    agree(split(0, 2, sizes=2))
    agree(split(0, 1, sizes=4))


@pytest.mark.parametrize("content", [split(0, 2), split(0, -1, sizes=3), split(0, 1, sizes=(6, 0))])
def test_other_sequences_are_refused(content):
    with pytest.raises(UnsupportedOpError, match="SplitToSequence"):
        load_onnx(content)


def test_a_bias_that_is_zeros_like_the_image():
    nodes = [
        ("Shape", "w", "sizes", {"start": 0, "end": 1}),
        ("Expand", "sizes one", "shape"),
        ("CastLike", "zero x", "like"),
        ("Expand", "like shape", "bias"),
        ("Conv", "x w bias", "c"),
        ("CastLike", "c w", "y"),
    ]
    weights = {"w": drawn(4, 3, 3, 3), "one": np.array([1]), "zero": np.array(0)}
    graph = agree(made(*nodes, weights=weights, opset=18))
    assert ops_of(graph) == ["Conv"]
    np.testing.assert_array_equal(graph.nodes[0].params["bias"], np.zeros(4, np.float32))


def test_places_that_the_file_counts():
    nodes = [
        ("GlobalAveragePool", "x", "mean"),
        ("Neg", "one", "to"),
        ("Reshape", "mean to", "flat"),
        ("Range", "zero six step", "counted"),
        ("Reshape", "counted shape", "places"),
        ("Gather", "flat places", "y"),
    ]
    weights = {"one": np.array([1]), "zero": np.array(0), "six": np.array(6), "step": np.array(1)}
    weights["shape"] = np.array([1, 6, 1, 1])
    content = made(*nodes, shape=(1, 6, 8, 8), weights=weights, opset=18)
    assert ops_of(agree(content, x=drawn(1, 6, 8, 8))) == ["GlobalAveragePool"]
