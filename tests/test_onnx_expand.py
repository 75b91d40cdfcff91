"""ONNX's Expand, and sizes computed beside a free batch: as the importer writes them they agree with ONNX Runtime."""

import numpy as np
import pytest
from onnx_maker import agree, drawn, made

from convserve.errors import ConvserveError
from convserve.formats.onnx import load_onnx

NONE = np.array([], np.float32)


def test_division_by_norms():
    nodes = [
        ("Flatten", "x", "f"),
        ("ReduceL2", "f", "n", {"axes": [1], "keepdims": 1}),
        ("Clip", "n low", "c"),
        ("Shape", "f", "s"),
        ("Expand", "c s", "e"),
        ("Div", "f e", "y"),
    ]
    agree(made(*nodes, shape=("N", 3, 4, 2), weights={"low": np.float32(1e-12)}))


@pytest.mark.parametrize("target", [[1, 4, 5, 6], [4, 1, 1], [1, 1, 5, 6], [1, 1, 1, 6], [1], [1, 4, 1, 6]])
def test_sizes_of_one(target):
    nodes = [("GlobalAveragePool", "x", "g"), ("Slice", "g zero one one", "s"), ("Expand", "s target", "y")]
    weights = {"zero": np.array([0]), "one": np.array([1]), "target": np.array(target)}
    agree(made(*nodes, shape=("N", 3, 4, 4), weights=weights))


def test_a_row_for_every_row():
    weights = {"w": drawn(2, 3, 8, 1), "target": np.array([1, 2, 5, 6])}
    agree(made(("Conv", "x w", "r"), ("Expand", "r target", "y"), shape=("N", 3, 8, 6), weights=weights))


def test_resize_to_sizes_computed_beside_a_free_batch():
    weights = {"begin": np.array([0]), "end": np.array([2]), "sizes": np.array([16, 12]), "none": NONE}
    nodes = [("Shape", "x", "s"), ("Slice", "s begin end", "nc"), ("Concat", "nc sizes", "t", {"axis": 0})]
    nodes.append(("Resize", "x none none t", "y", {"coordinate_transformation_mode": "asymmetric"}))
    agree(made(*nodes, shape=("N", 3, 8, 6), weights=weights))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([1, 5, 8, 8], "cannot be expanded"),
        ([7, 3, 8, 8], "the batch left free"),
        ([1, 1, 3, 8, 8], "as many axes"),
    ],
)
def test_what_is_refused(target, message):
    with pytest.raises(ConvserveError, match=message):
        load_onnx(made(("Expand", "x t", "y"), weights={"t": np.array(target)}))
