"""A Pad becomes the padding of the windows behind it only where these compute the same."""

import math

import numpy as np
import pytest
from builder import Builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_maker import agree, drawn, made, ops_of
from reference import evaluate_outputs
from runs import run
from strategies import draw_window, image, seeds

from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.rewrite_pads import fold_pads
from convserve.graph.rewrites import rewrite


def padded(build: Builder, x: str, pads: tuple[int, ...], value: float = 0.0, mode: str = "constant") -> str:
    """Add a Pad by (top, left, bottom, right), or by (channels, rows, columns) before and behind."""
    pads = pads if len(pads) == 6 else (0, *pads[:2], 0, *pads[2:])
    return build.simple("Pad", x, pads=pads, mode=mode, value=value)


def assert_same(graph: Graph, after: Graph, seed: int = 0) -> None:
    after.check()
    x = image(graph, batch=2, seed=seed)
    wanted, got = evaluate_outputs(graph, x), evaluate_outputs(after, x)
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-12)


@st.composite
def padded_windows(draw) -> Graph:
    """A Pad of any kind before a window of any kind, whose input may be positive, or read by another as well."""
    build = Builder(Volume(draw(st.integers(1, 4)), draw(st.integers(3, 7)), draw(st.integers(3, 7))), seed=draw(seeds))
    x = build.input
    if draw(st.booleans()):
        x = build.activation(*draw(st.sampled_from((("Relu", x), ("Sigmoid", x), ("Tanh", x)))))
    for _ in range(draw(st.integers(1, 2))):
        pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
        value = draw(st.sampled_from((0.0, 0.0, 0.0, 1.5)))
        x = padded(build, x, pads, value, draw(st.sampled_from(("constant", "constant", "constant", "edge"))))
    op = draw(st.sampled_from(("Conv", "MaxPool", "AveragePool", "LpPool")))
    window = draw_window(draw, build.volumes[x], pooling=op != "Conv", padded=True)
    if op == "Conv":
        y = build.conv(x, 3, **window)
    else:
        more = {"p": 3} if op == "LpPool" else {}
        y = build.pool(op, x, **window, ceil_mode=draw(st.booleans()), count_include_pad=draw(st.booleans()), **more)
    return build.graph(*((y, x) if draw(st.integers(0, 4)) == 0 else (y,)))


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(graph=padded_windows(), seed=seeds)
def test_a_padded_window_computes_the_same(graph, seed):
    after = fold_pads(graph)
    assert_same(graph, after, seed)
    assert fold_pads(after) is after


FRAME = (1, 0, 2, 1)


def folded(op: str, *, before: str = "", pads: tuple[int, ...] = FRAME, value: float = 0.0, **attrs) -> Node | None:
    """Return a 3x3 window that a Pad was folded into, or None where it stayed."""
    build = Builder(Volume(2, 6, 7))
    x = build.simple(before, build.input) if before else build.input
    x = padded(build, x, pads, value, attrs.pop("mode", "constant"))
    graph = build.graph(build.conv(x, 3, 3, **attrs) if op == "Conv" else build.pool(op, x, 3, **attrs))
    after = fold_pads(graph)
    if value > -math.inf:
        assert_same(graph, after)
    assert ("Pad" in ops_of(after)) == (after is graph)
    return None if after is graph else after.nodes[-1]


def test_pads_of_both_are_summed():
    node = folded("Conv", pads=(1, 0, 2, 1), strides=2)
    assert node is not None
    assert node.attrs["pads"] == (1, 0, 2, 1)
    node = folded("Conv", pads=(1, 0, 2, 3), auto_pad="NOTSET", activation="relu")
    assert node is not None
    assert node.attrs["pads"] == (1, 0, 2, 3)
    build = Builder(Volume(2, 6, 7))
    graph = build.graph(build.conv(padded(build, padded(build, build.input, (1, 0, 2, 3)), (0, 4, 0, 0)), 3, 3, pads=1))
    after = fold_pads(graph)
    assert [node.attrs["pads"] for node in after.nodes] == [(2, 5, 3, 4)]
    assert_same(graph, after)


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("AveragePool", {"count_include_pad": True}),
        ("AveragePool", {"strides": 2}),
        ("LpPool", {"p": 2}),
        ("MaxPool", {"before": "Relu"}),
        ("MaxPool", {"before": "Softmax", "strides": 2}),
        ("MaxPool", {"value": -math.inf}),
    ],
)
def test_poolings_whose_padding_means_the_same(op, given):
    node = folded(op, **given)
    assert node is not None
    assert node.attrs["pads"] == (1, 0, 2, 1)
    assert node.attrs["count_include_pad"] == (op == "AveragePool")


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("Conv", {"value": 1.0}),
        ("Conv", {"mode": "edge"}),
        ("Conv", {"mode": "reflect"}),
        ("Conv", {"pads": (-1, 0, 0, 0)}),
        ("Conv", {"pads": (1, 0, 0, 0, 0, 0)}),
        ("Conv", {"auto_pad": "SAME_UPPER"}),
        ("MaxPool", {}),
        ("MaxPool", {"before": "Tanh"}),
        ("MaxPool", {"before": "Relu", "pads": (3, 0, 0, 0)}),
        ("MaxPool", {"before": "Relu", "ceil_mode": True, "strides": 2}),
        ("MaxPool", {"before": "Relu", "dilations": 2}),
        ("AveragePool", {"pads": (1, 1, 1, 1), "ceil_mode": True}),
        ("AveragePool", {"value": -math.inf}),
    ],
)
def test_pads_that_mean_something_else_stay(op, given):
    assert folded(op, **given) is None


def test_a_padded_average_without_the_padding_keeps_its_pad():
    build = Builder(Volume(2, 6, 7))
    x = padded(build, build.input, (1, 1, 1, 1))
    graph = build.graph(build.pool("AveragePool", x, 3, pads=1))
    assert fold_pads(graph) is graph


def test_a_pad_that_others_read_or_see_stays():
    build = Builder(Volume(2, 6, 7))
    x = padded(build, build.input, (1, 1, 1, 1))
    y = build.conv(x, 2, 3)
    assert ops_of(fold_pads(build.graph(y, x))) == ["Pad", "Conv"]
    assert ops_of(fold_pads(build.graph(y, build.simple("Tanh", x)))) == ["Pad", "Conv", "Tanh"]
    assert ops_of(fold_pads(build.graph(y, build.conv(x, 1, 5)))) == ["Conv", "Conv"]
    residual = build.graph(build.conv(build.conv(x, 2, 1), 2, 1, residual=x))
    assert ops_of(fold_pads(residual)) == ["Pad", "Conv", "Conv"]


def test_an_export_from_tensorflow_slides_and_agrees():
    """ZeroPadding2D before strided convolutions and a pooling, as Keras' ResNet has them."""
    content = made(
        ("Pad", "x pads", "p"),
        ("Conv", "p w", "c", {"strides": [2, 2]}),
        ("Relu", "c", "r"),
        ("Pad", "r ones", "q"),
        ("MaxPool", "q", "m", {"kernel_shape": [3, 3], "strides": [2, 2]}),
        ("GlobalAveragePool", "m", "y"),
        shape=("N", 3, 21, 19),
        weights={"pads": [0, 0, 3, 3, 0, 0, 3, 3], "ones": [0, 0, 1, 1, 0, 0, 1, 1], "w": drawn(4, 3, 7, 7)},
    )
    graph = agree(content)
    after = rewrite(graph, window=None)
    assert ops_of(after) == ["Conv", "MaxPool", "AveragePool"]
    assert [node.attrs["pads"] for node in after.nodes[:2]] == [(3, 3, 3, 3), (1, 1, 1, 1)]
    x = image(graph, batch=2)
    np.testing.assert_allclose(run(after, x)[0], evaluate_outputs(graph, x)["y"], rtol=0, atol=1e-5)
