"""Results in place: who may overwrite whom, and the same bits as with every tensor in a place of its own."""

from collections.abc import Callable

import numpy as np
import pytest
from builder import Builder
from plan_checker import check_plan
from runs import engine_of, run_engine, same_bits, settings
from strategies import image

from convserve.formats.packing import pack_graph
from convserve.graph.ir import Graph, Volume
from convserve.plan.layout import Layout
from convserve.plan.plan import make_plan
from convserve.plan.program import build_program


def start(channels: int = 20) -> tuple[Builder, str]:
    """Return a builder, and a tensor that is not the network's input."""
    build = Builder(Volume(3, 15, 13))
    return build, build.conv(build.input, channels, kernel=3, pads=1)


def residual_block() -> Graph:
    """1x1, 3x3 and 1x1 with the sum: the 3x3 keeps the first 1x1 a row ahead of what is overwritten."""
    build, x = start()
    inner = build.conv(build.conv(x, 8, 1), 8, kernel=3, pads=1)
    return build.graph(build.conv(inner, 20, 1, residual=x, activation="relu"))


def chain() -> Graph:
    build, x = start()
    return build.graph(build.lrn(build.affine(build.simple("Relu", x)), 5))


def sum_of_branches() -> Graph:
    build, x = start()
    return build.graph(build.join("Add", build.conv(x, 20, 1), build.conv(x, 20, 1)))


def branches_apart() -> Graph:
    """A 3x3 beside the sum still needs rows above it when the sum is made."""
    build, x = start()
    later = build.conv(x, 20, kernel=3, pads=1)
    summed = build.join("Add", x, build.conv(x, 20, 1))
    return build.graph(build.join("Mul", later, summed))


def read_twice() -> Graph:
    build, x = start()
    return build.graph(build.join("Add", x, build.conv(x, 20, 1), x))


def shown() -> Graph:
    build, x = start()
    return build.graph(x, build.simple("Relu", x))


def joined() -> Graph:
    build, x = start()
    return build.graph(build.join("Concat", build.simple("Relu", x), build.conv(x, 4, 1)))


def depthwise_sum() -> Graph:
    build, x = start()
    return build.graph(build.conv(build.conv(x, 20, 1), 20, kernel=3, pads=1, group=20, residual=x))


# each result that lies in place, and what it overwrites
SHARING: dict[Callable[[], Graph], dict[str, str]] = {
    residual_block: {"conv3": "conv0"},
    chain: {"relu1": "conv0", "affine2": "conv0", "lrn3": "conv0"},
    sum_of_branches: {"add3": "conv1"},
    branches_apart: {"add3": "conv2", "mul4": "conv1"},
    read_twice: {"add2": "conv1"},
    shown: {},
    joined: {},
    depthwise_sum: {},
}


@pytest.mark.parametrize("made", SHARING, ids=lambda made: made.__name__)
def test_who_overwrites_whom(made: Callable[[], Graph]) -> None:
    tensors = build_program(pack_graph(made()), 15, 13).tensors
    parts = {part for tensor in tensors for part in tensor.parts}
    alone = [tensor for tensor in tensors if tensor.root != tensor.index and tensor.index not in parts]
    assert {tensor.name: tensors[tensor.root].name for tensor in alone} == SHARING[made]


@pytest.mark.parametrize("made", SHARING, ids=lambda made: made.__name__)
def test_the_same_bits_as_in_places_of_their_own(made: Callable[[], Graph]) -> None:
    graph = made()
    engine = engine_of(graph)
    x = image(graph, batch=2, seed=3)
    with settings(PLAN="off"):
        expected = run_engine(engine_of(graph), x)
    count = len(build_program(pack_graph(graph), 15, 13).operations)
    for poison in (0, 1):
        with settings(POISON=poison):
            for band_rows in (1, 2, 4, 32):
                for cuts in ((), (2,), (3, 4), tuple(range(1, count))):
                    layout = Layout(cuts, band_rows)
                    check_plan(make_plan(pack_graph(graph), 15, 13, layout=layout, poison=bool(poison)))
                    for threads in (1, 2):
                        assert same_bits(run_engine(engine, x, layout=layout, threads=threads), expected)


def test_a_residual_block_takes_one_volume_less() -> None:
    graph = pack_graph(residual_block())
    layout = Layout(tuple(range(1, 6)))
    apart = make_plan(graph, 15, 13, full_buffers=True)
    together = make_plan(graph, 15, 13, layout=layout)
    rings = [sum(tensor.root == tensor.index for tensor in plan.program.tensors) for plan in (apart, together)]
    assert rings[0] - rings[1] == 1
    assert np.isfinite(together.predicted_s)
