"""Winograd layers: near the oracle, the same bits for every way to run, chosen by shape alone, kept in containers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from reference import evaluate
from runs import ISAS, run_engine, settings

import convserve
from convserve.engine.engine import Engine
from convserve.errors import ModelFormatError
from convserve.formats.algorithms import takes_winograd
from convserve.formats.container import read_container
from convserve.formats.container_writer import write_container
from convserve.formats.packing import pack_winograd
from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.plan.layout import Layout


def conv(
    name: str,
    inputs: tuple[str, ...],
    channels: int,
    filters: int,
    *,
    pad: int = 1,
    seed: int = 0,
    kernel: int = 3,
    group: int = 1,
) -> Node:
    random = np.random.default_rng(seed)
    inputs_of_one = channels // group * kernel**2
    weight = random.standard_normal((filters, channels // group, kernel, kernel)) * np.sqrt(2 / inputs_of_one)
    attrs = {
        "kernel_shape": (kernel, kernel),
        "strides": (1, 1),
        "pads": (pad, pad, pad, pad),
        "dilations": (1, 1),
        "group": group,
        "auto_pad": "NOTSET",
        "activation": "relu",
    }
    params = {"weight": weight.astype(np.float32), "bias": random.standard_normal(filters).astype(np.float32)}
    return Node("Conv", name, inputs, name, attrs, params)


def three_layers(height: int, width: int, middle: int) -> Graph:
    """Padded, padded with a residual sum, unpadded."""
    nodes = [
        conv("a", ("x",), 64, middle, seed=1),
        conv("b", ("a", "x"), middle, 64, seed=2),
        conv("c", ("b",), 64, 100, pad=0, seed=3),
    ]
    return Graph("three", "x", Volume(64, height, width), nodes, [Output("c", "c")])


def larger_filters_and_groups(height: int, width: int, middle: int) -> Graph:
    """5x5 in one group, 3x3 in two groups with a residual sum, 5x5 unpadded in two groups."""
    nodes = [
        conv("a", ("x",), 64, 2 * middle, pad=2, kernel=5, seed=1),
        conv("b", ("a", "x"), 2 * middle, 64, group=2, seed=2),
        conv("c", ("b",), 64, 2 * 50, pad=0, kernel=5, group=2, seed=3),
    ]
    return Graph("larger", "x", Volume(64, height, width), nodes, [Output("c", "c")])


def images(graph: Graph, count: int) -> np.ndarray:
    volume = graph.input_volume
    return np.random.default_rng(4).standard_normal((count, 64, volume.height, volume.width)).astype(np.float32)


@pytest.mark.parametrize("size", [(16, 16, 64), (17, 23, 80), (30, 19, 65)])
@pytest.mark.parametrize("layers", [three_layers, larger_filters_and_groups])
@pytest.mark.parametrize("isa", ISAS)
def test_near_the_oracle_and_the_same_bits_for_every_way_to_run(
    isa: str, layers: Callable[..., Graph], size: tuple[int, int, int]
) -> None:
    graph = layers(*size)
    x = images(graph, 3)
    with settings(ISA=isa):
        model = convserve.load(graph, threads=1)
        assert model.algorithm == "winograd"
        kinds = [operation.kind for operation in model.plan(*size[:2]).program.operations]
        assert kinds.count("WinogradOutput") == 3
        y = model.run(x)
        expected = evaluate(graph, x)["c"]
        assert np.abs(y - expected).max() < 2e-5 * np.abs(expected).max()
        for poison in (0, 1):
            with settings(POISON=poison):
                engine = Engine(model.graph, threads=2)
                for band_rows in (1, 2, 3, 4, 8):
                    for cuts in ((), (2,), tuple(range(1, 9))):
                        again = run_engine(engine, x[:1], layout=Layout(cuts, band_rows))[0]
                        assert np.array_equal(again, y[:1])
        with settings(PLAN="off"):
            assert np.array_equal(convserve.load(graph, threads=2).run(x), y)


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(ISAS), reason="this machine has not both AVX2 and AVX-512")
@pytest.mark.parametrize("layers", [three_layers, larger_filters_and_groups])
def test_avx2_and_avx512_agree_bit_for_bit(layers: Callable[..., Graph]) -> None:
    graph = layers(17, 23, 80)
    x = images(graph, 1)
    found = []
    for isa in ("avx2", "avx512"):
        with settings(ISA=isa):
            found.append(convserve.load(graph).run(x))
    assert np.array_equal(*found)


def test_gemm_switches_it_off() -> None:
    graph = three_layers(16, 16, 64)
    model = convserve.load(graph, algorithm="gemm")
    assert model.algorithm == "gemm"
    assert {operation.kind for operation in model.plan(16, 16).program.operations} == {"Read", "Conv", "Write"}


def times_points(kernel: int) -> np.ndarray:
    """Return G: the powers of each point over the product of its distances to the others, and infinity."""
    points = [0, 1, -1, 2, -2]
    rows = [
        [point**k / np.prod([point - other for other in points if other != point]) for k in range(kernel)]
        for point in points
    ]
    return np.array([*rows, [0] * (kernel - 1) + [1]])


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from((3, 5)), st.integers(1, 3), st.integers(0, 99))
@hypothesis_settings(deadline=None, max_examples=30)
def test_transformed_weights_are_the_formula(outputs: int, channels: int, kernel: int, group: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((group * outputs, channels, kernel, kernel))
    weight = weight.astype(np.float32)
    g = times_points(kernel)
    panels = pack_winograd(weight, group)
    per_group = -(-outputs // 16)
    assert panels.shape == (36, group * per_group, channels, 16)
    for n in range(group * outputs):
        panel, lane = n // outputs * per_group + n % outputs // 16, n % outputs % 16
        for c in range(channels):
            expected = g @ weight[n, c].astype(np.float64) @ g.T
            assert np.allclose(panels[:, panel, c, lane].reshape(6, 6), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "size", "taken"),
    [
        ({}, 14, True),
        ({}, 12, True),
        ({}, 11, False),
        ({"strides": (2, 2)}, 28, False),
        ({"dilations": (2, 2), "pads": (2, 2, 2, 2)}, 28, False),
    ],
)
def test_the_rule_is_of_the_shape_alone(change: dict, size: int, taken: bool) -> None:
    node = conv("a", ("x",), 64, 64)
    node.attrs |= change
    assert takes_winograd(node, Volume(64, size, size)) is taken


def test_larger_filters_and_groups_are_taken_by_the_channels_of_a_group() -> None:
    assert takes_winograd(conv("a", ("x",), 16, 16, kernel=5), Volume(16, 6, 6))
    assert not takes_winograd(conv("a", ("x",), 16, 16, kernel=5), Volume(16, 5, 6))
    assert not takes_winograd(conv("a", ("x",), 15, 16, kernel=5), Volume(16, 6, 6))
    assert takes_winograd(conv("a", ("x",), 64, 64, group=2), Volume(64, 12, 12))
    assert not takes_winograd(conv("a", ("x",), 64, 64, group=4), Volume(64, 12, 12))
    assert not takes_winograd(conv("a", ("x",), 64, 64, kernel=7), Volume(64, 28, 28))
    assert not takes_winograd(conv("a", ("x",), 64, 64, group=64), Volume(64, 28, 28))


def test_few_channels_and_small_sides_are_left_to_the_gemm() -> None:
    assert not takes_winograd(conv("a", ("x",), 31, 32), Volume(32, 27, 27))
    assert not takes_winograd(conv("a", ("x",), 64, 31), Volume(31, 28, 28))


def test_a_network_without_padding_keeps_the_bits_of_its_crops() -> None:
    layers = [conv("a", ("x",), 64, 64, pad=0), conv("b", ("a",), 64, 64, pad=0, seed=1)]
    pool = {"kernel_shape": (28, 28), "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    pool |= {"auto_pad": "NOTSET", "ceil_mode": False, "count_include_pad": False}
    layers.append(Node("AveragePool", "c", ("b",), "c", pool))
    model = convserve.load(Graph("exact", "x", Volume(64, 32, 32), layers, [Output("c", "c")]))
    assert model.algorithm == "gemm"
    x = np.random.default_rng(0).standard_normal((1, 64, 37, 35)).astype(np.float32)
    dense, crops = model.score_map(x), model.score_map(x, method="crops")
    assert dense.exactness == "exact"
    assert np.array_equal(dense.scores, crops.scores)


def test_a_container_keeps_the_transformed_weights_and_gives_the_same_bits(tmp_path: Path) -> None:
    graph = three_layers(16, 16, 64)
    model = convserve.load(graph)
    x = images(graph, 2)
    path = tmp_path / "net.convserve"
    write_container(path, model.graph)
    mapped = convserve.load(path)
    assert mapped.algorithm == "winograd"
    assert np.array_equal(mapped.run(x), model.run(x))
    by_gemm = convserve.load(path, algorithm="gemm")
    assert np.array_equal(by_gemm.run(x), convserve.load(graph, algorithm="gemm").run(x))
    assert "winograd_panels" in read_container(path).graph.nodes[0].params


def test_a_container_with_transformed_weights_where_none_can_be_is_refused(tmp_path: Path) -> None:
    graph = convserve.load(three_layers(16, 16, 64)).graph
    node = graph.nodes[0]
    node.params["winograd_panels"] = node.params["winograd_panels"][:, :, :-1]
    with pytest.raises(ModelFormatError, match="winograd_panels"):
        write_container(tmp_path / "net.convserve", graph)
