"""PyTorch's as_strided is a Reshape where its places count up, in both forms that it exports, and nothing else is."""

import numpy as np
import pytest
from onnx_maker import agree, drawn, made, ops_of

from convserve.errors import UnsupportedOpError
from convserve.formats.onnx import load_onnx


def exported(*places: tuple, shape=(2, 6, 8, 8), weights: dict, to=(-1,)) -> bytes:
    """Return means of channels, their places in a flat tensor, and what is made of that, channels last."""
    nodes = [
        ("GlobalAveragePool", "x", "mean"),
        ("Reshape", "mean to", "flat"),
        *places,
        ("Gather", "flat places", "strided", {"axis": 0}),
        ("Transpose", "strided", "last", {"perm": [0, 2, 3, 1]}),
        ("LayerNormalization", "last s", "n"),
        ("Flatten", "n", "y"),
    ]
    return made(*nodes, shape=shape, weights={"to": np.array(to), "s": 1 + drawn(6), **weights}, opset=18)


def by_batch(**changed) -> bytes:
    """Return the form of a batch that is dynamic: places are the image's number times 6, and those of one image."""
    weights = {
        "zero": np.array(0),
        "one": np.array(1),
        "step": np.array(6),
        "axes": np.array([1, 2, 3]),
        "channel": np.arange(6).reshape(1, 6, 1, 1),
        "place": np.zeros((1, 1, 1, 1), np.int64),
        **changed,
    }
    nodes = [
        ("Shape", "x", "sizes", {"start": 0, "end": 1}),
        ("Squeeze", "sizes", "batch"),
        ("Range", "zero batch one", "numbers"),
        ("Mul", "numbers step", "begins"),
        ("Unsqueeze", "begins axes", "columns"),
        ("Add", "columns channel", "channels"),
        ("Add", "channels place", "places"),
    ]
    return exported(*nodes, shape=("N", 6, 8, 8), weights=weights)


@pytest.mark.parametrize("batch", [1, 2])
def test_places_that_count_up(batch):
    places = np.arange(6 * batch).reshape(batch, 6, 1, 1)
    graph = agree(exported(shape=(batch, 6, 8, 8), weights={"places": places}), x=drawn(batch, 6, 8, 8))
    assert ops_of(graph) == ["GlobalAveragePool", "LayerNormalization"]


@pytest.mark.parametrize("batch", [1, 3])
def test_places_by_the_number_of_the_image(batch):
    graph = agree(by_batch(), x=drawn(batch, 6, 8, 8))
    assert ops_of(graph) == ["GlobalAveragePool", "LayerNormalization"]


@pytest.mark.parametrize(
    "content",
    [
        exported(weights={"places": np.arange(12)[::-1].reshape(2, 6, 1, 1)}),
        exported(weights={"places": np.arange(6).reshape(1, 6, 1, 1)}),
        exported(weights={"places": np.arange(12).reshape(2, 6, 1, 1)}, to=(12,)),
        by_batch(one=np.array(2)),
        by_batch(zero=np.array(1)),
        by_batch(step=np.array(5)),
        by_batch(step=np.array([[6]])),
        by_batch(axes=np.array([0, 2, 3])),
        by_batch(channel=np.arange(6)[::-1].reshape(1, 6, 1, 1)),
        by_batch(place=np.ones((1, 1, 1, 1), np.int64)),
        by_batch(channel=np.arange(12).reshape(2, 6, 1, 1)),
    ],
)
def test_other_places_are_refused(content):
    with pytest.raises(UnsupportedOpError):
        load_onnx(content)
