"""Denormals: zeros inside the engine, as fast as other values, the same on every instruction set; untouched outside."""

import platform
import time

import numpy as np
import pytest
from builder import Builder
from error_bounds import assert_within
from runs import ISAS, engine_of, run, run_engine, same_bits, settings
from strategies import image
from test_instruction_sets import FMA_ISAS, everything, two_with_fma

from convserve.engine.executor import CANCELLED
from convserve.graph.ir import Graph, Volume

SMALLEST = np.float32(1.17549435e-38)  # the smallest float32 that is not denormal
flushes = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"), reason="denormals are not flushed on this CPU"
)
pytestmark = flushes


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < SMALLEST, np.float32(0) * x, x)


def shrunk(x: np.ndarray, seed: int) -> np.ndarray:
    """Return x with half of its values, drawn at random, small or denormal."""
    random = np.random.default_rng(seed)
    exponents = np.where(random.random(x.shape) < 0.5, random.uniform(-46, -30, x.shape), 0)
    return (x * 10.0**exponents).astype(np.float32)


def shrink_weights(graph: Graph, seed: int) -> Graph:
    """Return the graph with half of its parameters small or denormal."""
    nodes = [
        node.changed(params={name: shrunk(array, seed + i) for name, array in node.params.items()})
        for i, node in enumerate(graph.nodes)
    ]
    return Graph(graph.name, graph.input_name, graph.input_volume, nodes, graph.outputs)


def has_denormals() -> bool:
    """Whether NumPy, in the calling thread, reads denormals as what they are and makes them."""
    small, tiny = np.full(8, 1e-20, np.float32), np.full(8, 1e-40, np.float32)
    return bool((small * small > 0).all() and (tiny > 0).all() and (tiny * np.float32(2) > tiny).all())


def moved_only(channels: int) -> Graph:
    """Operations that take values as they are or compare them."""
    build = Builder(Volume(channels, 6, 7))
    x = build.input
    pooled = build.pool("MaxPool", x, 3, pads=1)
    shuffled = build.simple("ChannelShuffle", x, group=channels)
    shown = (build.simple("Relu", x), build.simple("Identity", x), pooled, build.join("Concat", pooled, shuffled))
    return build.graph(*shown)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [3, 17, 33])
def test_no_output_is_denormal_and_all_are_those_of_zeros(isa: str, channels: int) -> None:
    for graph in (shrink_weights(everything(channels, 6), channels), moved_only(channels)):
        x = shrunk(image(graph, batch=2, seed=channels), channels)
        assert (np.abs(x[x != 0]) < SMALLEST).mean() > 0.1
        zeros = shrink_weights(graph, 0)
        zeros.nodes = [n.changed(params={k: flushed(v) for k, v in n.params.items()}) for n in graph.nodes]
        with settings(ISA=isa):
            outputs = run(graph, x, threads=2)
            assert same_bits(outputs, run(zeros, flushed(x)))
        assert_within(zeros, flushed(x), outputs)
        assert not any(((y != 0) & (np.abs(y) < SMALLEST)).any() for y in outputs)


@two_with_fma
@pytest.mark.parametrize("channels", [1, 7, 16, 33, 64])
def test_same_bits_on_every_instruction_set(channels: int) -> None:
    for graph in (shrink_weights(everything(channels, 6), channels), moved_only(channels)):
        x = shrunk(image(graph, batch=2, seed=channels), channels)
        results = []
        for isa in FMA_ISAS:
            with settings(ISA=isa):
                results.append(run(graph, x, threads=2))
        assert all(
            np.array_equal(a.view(np.int32), b.view(np.int32))
            for result in results[1:]
            for a, b in zip(results[0], result, strict=True)
        )


def test_the_callers_denormals_come_back() -> None:
    build = Builder(Volume(8, 12, 12))
    engine = engine_of(build.graph(build.conv(build.conv(build.input, 8, 3), 8, 3)))
    x = image(engine.graph, seed=1)
    assert has_denormals()
    for threads in (1, 2):
        run_engine(engine, x, threads=threads)
        assert has_denormals()
        executor = engine.executor(12, 12, threads=threads)
        with engine.execution(executor) as execution:
            execution.set_source(x.transpose(0, 2, 3, 1))
            execution.cancel()
            assert execution.advance() == CANCELLED
            assert has_denormals()
        with engine.execution(executor) as execution:
            execution.set_source(np.zeros((1, 4, 12, 8), np.float32), begin=8)
            with pytest.raises(ValueError, match="row 0 is needed"):
                execution.advance()
            assert has_denormals()


def chain(scale: float) -> Graph:
    """Convolutions, plain and depthwise, whose activations from the second on are about scale."""
    build = Builder(Volume(32, 28, 28), seed=3)
    x = build.input
    for layer in range(4):
        x = build.conv(x, 32, 3, pads=1, activation="relu")
        build.nodes[-1].params["weight"] *= scale if layer == 0 else 1
        build.nodes[-1].params["bias"] *= 0
        x = build.conv(x, 32, 3, pads=1, group=32)
        build.nodes[-1].params["bias"] *= 0
    return build.graph(x)


def seconds_of(graph: Graph, isa: str) -> tuple[float, np.ndarray]:
    """Return the best time of some runs, and the output."""
    with settings(ISA=isa):
        engine = engine_of(graph)
        x = image(graph, seed=5)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            (y,) = run_engine(engine, x)
            times.append(time.perf_counter() - start)
    return min(times), y


@pytest.mark.parametrize("isa", ISAS)
def test_denormal_activations_take_no_longer(isa: str) -> None:
    usual, y = seconds_of(chain(1.0), isa)
    denormal, z = seconds_of(chain(1e-40), isa)
    assert np.abs(y).max() > 0.1
    assert not z.any()
    assert denormal < 3 * usual
