"""Every algorithm of a convolution on every instruction set: near the float64 reference, the same bits however it runs.

The bound is stated at the top of error_bounds.py; shapes are drawn at random. The last test says what errors are usual.
"""

from collections.abc import Callable

import numpy as np
import pytest
from builder import Builder
from error_bounds import U, assert_within
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from reference import evaluate
from runs import ISAS, run_engine, same_bits, settings
from strategies import draw_window, image, seeds
from test_instruction_sets import FMA_ISAS, two_with_fma
from test_plan import layouts

import convserve
from convserve.engine.engine import Engine
from convserve.formats.packing import is_depthwise, is_winograd
from convserve.graph.ir import Graph, Node, Volume

FEW = hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


def layer(draw, volume: Volume, filters: int, group: int = 1, **window) -> Graph:
    """Return one convolution under random attributes, with or without ReLU and a residual sum."""
    build = Builder(volume, seed=draw(seeds))
    window = window or draw_window(draw, volume, pooling=False, padded=True)
    activation = draw(st.sampled_from(("", "relu")))
    residual = None
    if draw(st.booleans()):
        residual = build.conv(build.input, filters, group=group, **window)
    return build.graph(
        build.conv(build.input, filters, group=group, activation=activation, residual=residual, **window)
    )


def draw_volume(draw, low: int, high: int, smallest: int = 1, largest: int = 20) -> Volume:
    side = st.integers(smallest, largest)
    return Volume(draw(st.integers(low, high)), draw(side), draw(side))


def draw_direct(draw) -> Graph:
    return layer(draw, draw_volume(draw, 11, 300, largest=12), draw(st.integers(1, 70)))


def draw_few_channels(draw) -> Graph:
    return layer(draw, draw_volume(draw, 1, 15), draw(st.integers(1, 70)))


def draw_grouped(draw) -> Graph:
    group = draw(st.integers(2, 6))
    volume = draw_volume(draw, 1, 40, largest=14)
    volume = Volume(volume.channels * group, volume.height, volume.width)
    return layer(draw, volume, group * draw(st.integers(1, 40)), group)


def draw_depthwise(draw) -> Graph:
    volume = draw_volume(draw, 2, 80)
    return layer(draw, volume, volume.channels, volume.channels)


def draw_winograd(draw) -> Graph:
    kernel, group = draw(st.sampled_from((3, 5))), draw(st.integers(1, 2))
    pads = tuple(draw(st.integers(0, kernel - 1)) for _ in range(4))
    assume(any(pads))
    volume = draw_volume(draw, 32, 90 // group, smallest=16, largest=24)
    volume = Volume(volume.channels * group, volume.height, volume.width)
    return layer(draw, volume, group * draw(st.integers(32, 90 // group)), group, kernel=kernel, pads=pads)


def draw_fully_connected(draw) -> Graph:
    build = Builder(draw_volume(draw, 1, 60, largest=7), seed=draw(seeds))
    return build.graph(build.gemm(build.flatten(build.input), draw(st.integers(1, 300))))


def is_grouped(node: Node) -> bool:
    return node.attrs["group"] > 1 and not is_depthwise(node) and not is_winograd(node)


def is_direct(node: Node) -> bool:
    return node.attrs["group"] == 1 and not is_winograd(node)


ALGORITHMS: dict[str, tuple[Callable[..., Graph], Callable[[Node], bool]]] = {
    "direct": (draw_direct, is_direct),
    "few channels": (draw_few_channels, is_direct),
    "grouped": (draw_grouped, is_grouped),
    "depthwise": (draw_depthwise, is_depthwise),
    "winograd": (draw_winograd, is_winograd),
    "fully connected": (draw_fully_connected, is_direct),
}


def drawn(data, algorithm: str) -> tuple[Graph, Engine, set[str]]:
    """Return a graph that the algorithm runs, its engine, and the names of the nodes that Winograd runs."""
    draw, runs_by = ALGORITHMS[algorithm]
    graph = draw(data.draw)
    packed = convserve.load(graph).graph
    assume(all(runs_by(node) for node in packed.nodes if node.op == "Conv"))
    assert packed.nodes
    return graph, Engine(packed), {node.name for node in packed.nodes if is_winograd(node)}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@FEW
@given(data=st.data())
def test_within_the_bound(algorithm, isa, data):
    graph, engine, by_winograd = drawn(data, algorithm)
    x = image(graph, batch=data.draw(st.integers(1, 2)), seed=data.draw(seeds))
    with settings(ISA=isa, POISON=1):
        assert_within(graph, x, run_engine(engine, x, threads=data.draw(st.integers(1, 2))), by_winograd)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@FEW
@given(data=st.data())
def test_same_bits_for_any_threads_batch_and_bands(algorithm, isa, data):
    graph, engine, _ = drawn(data, algorithm)
    x = image(graph, batch=3, seed=data.draw(seeds))
    with settings(ISA=isa):
        expected = run_engine(engine, x, threads=1)
        for threads in (1, 2, 3):
            first = data.draw(st.integers(0, 2))
            last = data.draw(st.integers(first + 1, 3))
            some = run_engine(engine, x[first:last], threads=threads, layout=data.draw(layouts(engine.graph)))
            assert same_bits(some, [y[first:last] for y in expected])


@two_with_fma
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@FEW
@given(data=st.data())
def test_same_bits_on_every_instruction_set_with_fma(algorithm, data):
    graph, engine, _ = drawn(data, algorithm)
    x = image(graph, seed=data.draw(seeds))
    results = []
    for isa in FMA_ISAS:
        with settings(ISA=isa):
            results.append(run_engine(engine, x, threads=2))
    assert all(same_bits(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [32, 512])
def test_usual_errors_grow_with_the_root_of_k(channels, isa):
    """Over normal values, the root mean square of the error in that of the outputs: what the worst case above hides."""
    build = Builder(Volume(channels, 14, 14), seed=1)
    graph = build.graph(build.conv(build.input, 40, 3, pads=1))
    x = image(graph, seed=2)
    oracle = evaluate(graph, x)[graph.outputs[0].tensor]
    for algorithm, most in (("gemm", 0.5 * np.sqrt(9 * channels)), ("auto", 5 * np.sqrt(channels))):
        with settings(ISA=isa):
            (y,) = run_engine(Engine(convserve.load(graph, algorithm=algorithm).graph), x)
        assert np.sqrt(np.mean((y - oracle) ** 2) / np.mean(oracle**2)) < most * U
