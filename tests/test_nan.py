"""NaN goes through every operation, on every instruction set; otherwise poisoned memory would prove nothing."""

from dataclasses import replace

import numpy as np
import pytest
from builder import Builder
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from reference import evaluate
from runs import ISAS, engine_of, run, run_engine, settings
from strategies import graphs, image, op_graphs, seeds

from convserve.engine.binding import Executor
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import OPS
from convserve.plan.layout import Layout
from convserve.plan.plan import make_plan

FEW = hypothesis_settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
FEWER = hypothesis_settings(FEW, max_examples=8)


def planted(data, graph: Graph, *, batch: int = 1) -> np.ndarray:
    """Return an input with one NaN somewhere."""
    x = image(graph, batch=batch, seed=data.draw(seeds))
    x[tuple(data.draw(st.integers(0, size - 1)) for size in x.shape)] = np.nan
    return x


def assert_nan_where_the_oracle_has_it(graph: Graph, x: np.ndarray, outputs: list[np.ndarray]) -> None:
    tensors = evaluate(graph, x)
    for got, output in zip(outputs, graph.outputs, strict=True):
        expected = np.isnan(tensors[output.tensor])
        lost, leaked = expected & ~np.isnan(got), np.isnan(got) & ~expected
        assert not lost.any(), f"NaN lost at {np.argwhere(lost)[0]}"
        assert not leaked.any(), f"NaN out of nowhere at {np.argwhere(leaked)[0]}"


def check_nan_through(op: str, isa: str, data: st.DataObject) -> None:
    graph = data.draw(op_graphs(op))
    x = planted(data, graph, batch=2)
    with settings(ISA=isa):
        assert_nan_where_the_oracle_has_it(graph, x, run(graph, x, threads=2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", sorted(OPS.keys() - ACTIVATIONS))
@FEW
@given(data=st.data())
def test_nan_before_an_op_comes_out(op, isa, data):
    check_nan_through(op, isa, data)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", sorted(ACTIVATIONS))
@FEWER
@given(data=st.data())
def test_nan_before_an_activation_comes_out(op, isa, data):
    check_nan_through(op, isa, data)


@pytest.mark.parametrize("isa", ISAS)
@FEW
@given(data=st.data(), graph=graphs())
def test_nan_goes_through_random_networks(isa, data, graph):
    x = planted(data, graph)
    with settings(ISA=isa, POISON=data.draw(st.integers(0, 1))):
        assert_nan_where_the_oracle_has_it(graph, x, run(graph, x, layout=Layout((), data.draw(st.integers(1, 5)))))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 5, 8, 16, 19, 32, 35])
def test_nan_in_each_lane(channels, isa):
    """A NaN in each single channel goes through each operation that works along lanes, and touches no other lane."""
    build = Builder(Volume(channels, 2, 2), seed=channels)
    shown = [
        build.simple("Relu", build.input),
        build.affine(build.input, activation="relu"),
        build.join("Add", build.input, build.input, activation="relu"),
        build.join("Mul", build.input, build.input, activation="relu"),
        build.pool("MaxPool", build.input, 2),
        build.pool("AveragePool", build.input, 2),
        build.conv(build.input, channels, 2, group=channels, activation="relu"),
        build.conv(build.input, channels, 1, activation="relu"),
        build.lrn(build.input, 3, beta=0.75),
        build.lrn(build.input, 3, beta=0.6),
        build.simple("Softmax", build.input),
    ]
    graph = build.graph(*shown)
    with settings(ISA=isa):
        engine = engine_of(graph)
        for channel in range(channels):
            x = image(graph, seed=channel)
            x[0, channel, 1, 0] = np.nan
            assert_nan_where_the_oracle_has_it(graph, x, run_engine(engine, x))


def small_graph() -> Graph:
    build = Builder(Volume(3, 12, 9), seed=3)
    x = build.conv(build.input, 9, 3, pads=1, activation="relu")
    x = build.pool("MaxPool", build.join("Concat", x, build.affine(x)), 3, strides=2)
    return build.graph(build.conv(x, 5, 2, activation="relu"))


def run_plan(graph: Graph, plan, x: np.ndarray) -> np.ndarray:
    engine = engine_of(graph)
    with engine.execution(Executor(plan, ISAS[-1])) as execution:
        out = plan.program.tensors[plan.program.operations[-1].inputs[0]].volume
        y = np.full((1, out.channels, out.height, out.width), np.nan, np.float32)
        execution.set_source(x.transpose(0, 2, 3, 1))
        execution.set_sink(0, y.transpose(0, 2, 3, 1))
        execution.advance()
    return y


def test_poison_shows_every_step_that_is_left_out():
    graph = small_graph()
    packed = engine_of(graph).graph
    x = image(graph, seed=5)

    def plan():
        return make_plan(packed, 12, 9, layout=Layout((), 2), poison=True)

    assert not np.isnan(run_plan(graph, plan(), x)).any()
    computing = 0
    for number, block in enumerate(plan().blocks):
        for position, step in enumerate(block.steps):
            if step.kind == "Poison":
                continue
            broken = plan()
            del broken.blocks[number].steps[position]
            assert np.isnan(run_plan(graph, broken, x)).any(), step
            computing += 1
    assert computing > 20


def test_poison_shows_rows_that_are_freed_too_early():
    graph = small_graph()
    packed = engine_of(graph).graph
    x = image(graph, seed=5)
    plan = make_plan(packed, 12, 9, layout=Layout((), 2), poison=True)
    early = [
        (block, position)
        for block in plan.blocks
        for position, step in enumerate(block.steps)
        if step.kind == "Poison" and position > 8 and plan.program.tensors[step.index].name == graph.input_name
    ]
    assert early
    for block, position in early:
        step = block.steps[position]
        block.steps[position] = replace(step, end=step.end + 1)
    assert np.isnan(run_plan(graph, plan, x)).any()
