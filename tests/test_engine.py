"""The engine keeps one image to the same bits: any batch, threads, cuts, bands, instruction set and run."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from builder import Builder
from error_bounds import assert_within
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from runs import ISAS, engine_of, run, run_engine, same_bits, settings
from strategies import graphs, image, seeds
from test_plan import layouts

from convserve.engine.executor import CANCELLED, DONE, NEEDS_ROWS, WROTE_ROWS, Execution, Memory
from convserve.graph.ir import Graph, Volume
from convserve.plan.layout import Layout

FEW = hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
FMA_ISAS = [isa for isa in ISAS if isa != "portable"]


@FEW
@given(graph=graphs(), seed=seeds, batch=st.integers(1, 3))
def test_random_network_is_within_its_bound(graph, seed, batch):
    x = image(graph, batch=batch, seed=seed)
    assert_within(graph, x, run(graph, x, threads=2))


@FEW
@given(data=st.data(), graph=graphs(), seed=seeds)
def test_same_bits_for_any_layout_threads_and_settings(data, graph, seed):
    x = image(graph, batch=2, seed=seed)
    engine = engine_of(graph)
    expected = run_engine(engine, x)
    for _ in range(3):
        layout = data.draw(layouts(engine.graph))
        threads = data.draw(st.integers(1, 4))
        with settings(POISON=data.draw(st.integers(0, 1))):
            assert same_bits(run_engine(engine, x, layout=layout, threads=threads), expected)
    with settings(PLAN="off"):
        assert same_bits(run_engine(engine, x), expected)
    with settings(PLAN="off", POISON=1):
        assert same_bits(run_engine(engine, x, threads=2), expected)


@FEW
@given(data=st.data(), graph=graphs(slides=True, max_size=12), seed=seeds, more=st.integers(1, 300))
def test_same_bits_over_tall_images_whose_steps_repeat(data, graph, seed, more):
    x = image(graph, seed=seed, size=(graph.input_volume.height + more, graph.input_volume.width))
    engine = engine_of(graph)
    with settings(PLAN="off"):
        expected = run_engine(engine, x)
    layout = data.draw(layouts(engine.graph))
    with settings(POISON=data.draw(st.integers(0, 1))):
        assert same_bits(run_engine(engine, x, layout=layout, threads=2), expected)


@FEW
@given(graph=graphs(), seed=seeds, batch=st.integers(2, 5))
def test_same_bits_alone_and_in_a_batch(graph, seed, batch):
    x = image(graph, batch=batch, seed=seed)
    engine = engine_of(graph)
    together = run_engine(engine, x, threads=2)
    for i in range(batch):
        assert same_bits(run_engine(engine, x[i : i + 1]), [y[i : i + 1] for y in together])


@pytest.mark.skipif(len(FMA_ISAS) < 2, reason=f"this machine has only {', '.join(ISAS)}")
@FEW
@given(graph=graphs(max_channels=40), seed=seeds)
def test_same_bits_on_every_instruction_set_with_fma(graph, seed):
    x = image(graph, batch=2, seed=seed)
    engine = engine_of(graph)
    results = []
    for isa in FMA_ISAS:
        with settings(ISA=isa):
            results.append(run_engine(engine, x))
    assert all(same_bits(result, results[0]) for result in results[1:])


# ---- one network of some size, with most kinds of layer


def residual_net(*, channels: int = 24, size: int = 40) -> Graph:
    build = Builder(Volume(3, size, size), seed=11, name="residual")
    x = build.conv(build.input, channels, 5, strides=2, pads=2, activation="relu")
    x = build.pool("MaxPool", x, 3, strides=2, ceil_mode=True)
    for _ in range(2):
        y = build.conv(x, channels, 3, pads=1, group=channels, activation="relu")
        x = build.join("Add", x, build.batch_normalization(build.conv(y, channels, 1)), activation="relu")
        x = build.join("Concat", x, build.conv(x, 8, 3, pads=1), build.pool("AveragePool", x, 3, pads=1))
        channels = build.volumes[x].channels
    x = build.lrn(x, 5, alpha=0.1)
    return build.graph(build.simple("Softmax", build.gemm(build.flatten(x), 10)), x)


def test_eight_threads_on_one_engine_give_the_answers_of_one():
    engine = engine_of(residual_net(), threads=2)
    images = [image(engine.graph, batch=1 + i % 3, seed=i) for i in range(24)]
    expected = [run_engine(engine, x) for x in images]
    start = threading.Barrier(8)

    def answers(worker: int) -> bool:
        start.wait()
        order = np.random.default_rng(worker).permutation(len(images))
        return all(same_bits(run_engine(engine, images[i], threads=1 + worker % 3), expected[i]) for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(answers, range(8)))


def test_one_run_and_the_next_give_the_same_bits():
    engine = engine_of(residual_net(), threads=2)
    x = image(engine.graph, batch=2, seed=1)
    expected = run_engine(engine, x)
    assert all(same_bits(run_engine(engine, x), expected) for _ in range(20))


def test_poison_reaches_nothing_in_a_larger_network():
    x = image(residual_net(), seed=2)
    expected = run(residual_net(), x)
    assert not any(np.isnan(y).any() for y in expected)
    with settings(POISON=1):
        for band_rows in (1, 2, 3, 8):
            assert same_bits(run(residual_net(), x, threads=2, layout=Layout((), band_rows)), expected)


@FEW
@given(data=st.data(), graph=graphs(max_size=12), threads=st.integers(1, 4), images=st.integers(1, 3))
def test_planned_bytes_are_allocated_bytes(data, graph, threads, images):
    engine = engine_of(graph)
    height, width = graph.input_volume.height, graph.input_volume.width
    layout = data.draw(layouts(engine.graph))
    executor = engine.executor(height, width, images=images, threads=threads, layout=layout)
    with engine.execution(executor) as execution:
        assert execution.memory.size_bytes == executor.plan.arena_bytes + executor.plan.scratch_bytes
        assert executor.plan.total_bytes == execution.memory.size_bytes


def test_memory_of_another_size_is_refused():
    engine = engine_of(residual_net())
    executor = engine.executor(40, 40)
    with pytest.raises(ValueError, match="less than its plan says"):
        Execution(executor, Memory(executor.plan.total_bytes - 64))


# ---- leaving and entering a run between steps


def test_rows_pushed_in_blocks_give_the_same_bits():
    graph = residual_net()
    engine = engine_of(graph)
    x = image(graph, seed=4)
    expected = run_engine(engine, x)
    rows = x.transpose(0, 2, 3, 1)
    executor = engine.executor(40, 40, layout=Layout((), 2))
    shown = [np.zeros_like(y) for y in expected]
    with engine.execution(executor) as execution:
        for number, y in enumerate(shown):
            execution.set_sink(number, y.transpose(0, 2, 3, 1))
        begin = paused = 0
        execution.set_source(rows[:, :0])
        while (status := execution.advance()) == NEEDS_ROWS:
            paused += 1
            block = np.ascontiguousarray(rows[:, begin : execution.rows_needed])
            execution.set_source(block, begin=begin)
            begin = execution.rows_needed
    assert status == DONE
    assert paused > 5
    assert same_bits(shown, expected)


def test_rows_come_out_as_they_become_final():
    build = Builder(Volume(3, 64, 16), seed=5)
    x = build.conv(build.input, 8, 3, strides=2, activation="relu")
    graph = build.graph(build.pool("MaxPool", x, 2, strides=2))
    engine = engine_of(graph)
    data = image(graph, seed=6)
    (expected,) = run_engine(engine, data)
    shown = np.full_like(expected, np.nan)
    executor = engine.executor(64, 16, layout=Layout((), 4))
    with engine.execution(executor) as execution:
        execution.set_source(data.transpose(0, 2, 3, 1))
        execution.set_sink(0, shown.transpose(0, 2, 3, 1))
        done = 0
        while execution.advance(pause_after_write=True) == WROTE_ROWS:
            output, begin, end = execution.written
            assert (output, begin) == (0, done)
            done = end
            assert np.array_equal(shown[:, :, :done], expected[:, :, :done])
            assert np.isnan(shown[:, :, done:]).all()
    assert done == expected.shape[2]


def test_cancelled_run_stops():
    engine = engine_of(residual_net())
    x = image(engine.graph, seed=7)
    executor = engine.executor(40, 40)
    with engine.execution(executor) as execution:
        execution.set_source(x.transpose(0, 2, 3, 1))
        execution.cancel()
        assert execution.advance() == CANCELLED
    assert same_bits(run_engine(engine, x), run_engine(engine, x))


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_values_that_begin_at_any_byte(offset: int, channels_last: bool) -> None:
    graph = residual_net()
    engine, x = engine_of(graph), image(graph)
    values = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if channels_last else x
    there = np.frombuffer(bytes(offset) + values.tobytes(), np.float32, offset=offset).reshape(values.shape)
    there = there.transpose(0, 3, 1, 2) if channels_last else there
    assert not there.flags.aligned
    for isa in ISAS:
        with settings(ISA=isa):
            assert same_bits(run_engine(engine, there), run_engine(engine, x))
