"""Packed weights against the index formula of the panels, and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.errors import ModelError
from convserve.formats import packing
from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.graph.ops import OPS, infer_volumes, weight_shape


def random_weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def conv(weight: np.ndarray, group: int, bias: np.ndarray | None = None) -> Node:
    attrs = {
        "kernel_shape": weight.shape[2:],
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "auto_pad": "NOTSET",
        "group": group,
        "activation": "",
    }
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return Node("Conv", "conv", ("x",), "y", attrs, params)


@settings(max_examples=60, deadline=None)
@given(
    group=st.integers(1, 3),
    per_group=st.integers(1, 35),
    channels=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_panels_hold_each_weight_where_the_formula_says(
    group: int, per_group: int, channels: int, kernel: tuple[int, int]
) -> None:
    weight = random_weight(group * per_group, channels, *kernel)
    panels = packing.pack_conv(weight, group)
    count = -(-per_group // 16)
    assert panels.shape == (group, count, kernel[0] * kernel[1] * channels, 16)
    assert panels.dtype == np.float32
    assert panels.ctypes.data % 64 == 0
    assert panels.flags.c_contiguous
    expected = np.zeros_like(panels)
    for m, c, i, j in np.ndindex(*weight.shape):
        n = m % per_group
        expected[m // per_group, n // 16, (i * kernel[1] + j) * channels + c, n % 16] = weight[m, c, i, j]
    assert np.array_equal(panels, expected)
    assert np.array_equal(packing.unpack_conv(panels, weight.shape), weight)


@settings(max_examples=40, deadline=None)
@given(group=st.integers(1, 4), per_group=st.integers(1, 40))
def test_bias_fills_each_group_with_zeros_behind_it(group: int, per_group: int) -> None:
    bias = random_weight(group * per_group)
    packed = packing.pack_bias(bias, group)
    assert packed.shape == (group, -(-per_group // 16) * 16)
    assert packed.ctypes.data % 64 == 0
    for g in range(group):
        assert np.array_equal(packed[g, :per_group], bias[g * per_group : (g + 1) * per_group])
        assert not packed[g, per_group:].any()
    assert np.array_equal(packing.unpack_bias(packed, bias.size), bias)


def test_depthwise_taps_are_rows_of_channels() -> None:
    weight = random_weight(37, 1, 3, 5)
    taps = packing.pack_depthwise(weight)
    assert taps.shape == (15, 37)
    assert taps.ctypes.data % 64 == 0
    for c, _, i, j in np.ndindex(*weight.shape):
        assert taps[i * 5 + j, c] == weight[c, 0, i, j]
    assert np.array_equal(packing.unpack_depthwise(taps, weight.shape), weight)


@pytest.mark.parametrize(
    ("shape", "group", "depthwise"),
    [((8, 1, 3, 3), 8, True), ((16, 1, 3, 3), 8, False), ((8, 2, 3, 3), 4, False), ((1, 1, 3, 3), 1, False)],
)
def test_depthwise_is_one_filter_a_channel(shape: tuple[int, int, int, int], group: int, depthwise: bool) -> None:
    node = conv(random_weight(*shape), group)
    assert packing.is_depthwise(node) is depthwise
    packed = packing.pack_node(node)
    assert packing.is_depthwise(packed) is depthwise
    assert set(packed.params) == ({"taps", "bias"} if depthwise else {"panels", "bias_panels"})
    assert {name: array.shape for name, array in packed.params.items()} == packing.packed_shapes(node)


def test_a_packed_graph_has_the_same_volumes_flops_and_weights() -> None:
    weight, bias = random_weight(20, 3, 5, 5), random_weight(20)
    relu = Node("Relu", "relu", ("y",), "z")
    graph = Graph("net", "x", Volume(3, 12, 10), [conv(weight, 1, bias), relu], [Output("z", "z")])
    packed = packing.pack_graph(graph)
    assert "weight" not in packed.nodes[0].params
    assert weight_shape(packed.nodes[0]) == (20, 3, 5, 5)
    volumes = infer_volumes(packed)
    assert volumes == infer_volumes(graph)
    flops = [OPS["Conv"].flops(g.nodes[0], [volumes["x"]], volumes["y"]) for g in (graph, packed)]
    assert flops == [2 * 20 * 8 * 6 * 75] * 2
    assert packed.nodes[1] is relu
    assert packing.pack_graph(packed).nodes[0] is packed.nodes[0]
    again = packing.unpack_graph(packed).nodes[0]
    assert np.array_equal(again.params["weight"], weight)
    assert np.array_equal(again.params["bias"], bias)
    assert again.attrs == graph.nodes[0].attrs


def test_a_missing_bias_is_packed_as_zeros() -> None:
    packed = packing.pack_node(conv(random_weight(5, 2, 1, 1), 1))
    assert packed.params["bias_panels"].shape == (1, 16)
    assert not packed.params["bias_panels"].any()


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ModelError, match=r"10 output channels cannot be divided into 3 group"):
        packing.pack_conv(random_weight(10, 1, 1, 1), 3)
