"""PyTorch's local response normalisation is recognised in both forms that it exports, and nothing else is."""

import numpy as np
import pytest
from onnx_maker import agree, made, ops_of

from convserve.errors import UnsupportedOpError
from convserve.formats.onnx import load_onnx


def exported(*, size: int = 5, lifted: str = "Reshape", square: str = "Mul", channels: int = 6, **changed) -> bytes:
    """Return x / (k + alpha * the mean of x^2 over neighbouring channels)^beta as PyTorch writes it."""
    pads = np.zeros((2, 5), np.int64)
    pads[:, 2] = size // 2, (size - 1) // 2
    weights = {
        "shape": np.array([2, 1, channels, 36 // channels, -1]),
        "whole": np.array([2, 6, 6, 7]),
        "axis": np.array([1]),
        "pads": pads.reshape(-1),
        "alpha": np.float32(0.5),
        "beta": np.float32(0.75),
        "k": np.float32(2.0),
        "two": np.float32(2.0),
        **changed,
    }
    nodes = [
        (square, "x x" if square == "Mul" else "x two", "square"),
        (lifted, "square shape" if lifted == "Reshape" else "square axis", "lifted"),
        ("Pad", "lifted pads", "padded"),
        ("AveragePool", "padded", "pooled", {"kernel_shape": [size, 1, 1], "strides": [1, 1, 1]}),
        ("Reshape", "pooled whole", "mean") if lifted == "Reshape" else ("Squeeze", "pooled axis", "mean"),
        ("Mul", "mean alpha", "scaled"),
        ("Add", "scaled k", "sum"),
        ("Pow", "sum beta", "divisor"),
        ("Div", "x divisor", "y"),
    ]
    used = {name for node in nodes for name in node[1].split()}
    return made(*nodes, shape=(2, 6, 6, 7), weights={name: weights[name] for name in weights if name in used})


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("lifted", ["Reshape", "Unsqueeze"])
@pytest.mark.parametrize("square", ["Mul", "Pow"])
def test_a_normalization_across_channels(size, lifted, square):
    graph = agree(exported(size=size, lifted=lifted, square=square))
    assert ops_of(graph) == ["LRN"]
    assert graph.nodes[0].attrs == {"size": size, "alpha": 0.5, "beta": 0.75, "bias": 2.0}


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 4},
        {"pads": np.array([0, 0, 4, 0, 0, 0, 0, 0, 0, 0])},
        {"channels": 12},
        {"alpha": np.full(6, 0.5, np.float32)},
    ],
)
def test_what_only_looks_like_it_is_refused(changed):
    with pytest.raises(UnsupportedOpError):
        load_onnx(exported(**changed))
