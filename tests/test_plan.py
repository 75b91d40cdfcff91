"""Plans, checked without kernels: rows in rings, rings in the arena, sizes against arithmetic."""

import itertools
import math

import numpy as np
import pytest
from builder import Builder
from conftest import SHARED_DATA
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from networks import LIGHT, TRAINED, network
from plan_checker import PlanError, check_plan, listed_steps, replay, steps_of
from reference import evaluate
from strategies import graphs, image, seeds

from convserve.errors import ConvserveError, MemoryBudgetError
from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import infer_volumes
from convserve.plan.arena import Region, place
from convserve.plan.budget import plan_within
from convserve.plan.layout import Layout
from convserve.plan.plan import Plan, make_plan

FEW = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
MIB = 1 << 20


@st.composite
def layouts(draw, graph: Graph) -> Layout:
    operations = len(make_plan(graph, graph.input_volume.height, graph.input_volume.width).program.operations)
    cuts = tuple(sorted(draw(st.lists(st.integers(1, operations), max_size=4, unique=True))))
    rows = st.integers(1, 9)
    heights = st.lists(rows, min_size=len(cuts) + 1, max_size=len(cuts) + 1).map(tuple)
    return Layout(cuts, draw(rows | heights), group_tiles=draw(st.sampled_from((1, 5, 14, 56))))


# ---- random networks


@FEW
@given(data=st.data(), graph=graphs(max_size=30), poison=st.booleans(), images=st.integers(1, 3))
def test_random_network_keeps_the_rules(data, graph, poison, images):
    layout = data.draw(layouts(graph))
    height, width = graph.input_volume.height, graph.input_volume.width
    check_plan(make_plan(graph, height, width, layout=layout, poison=poison, images=images))


@FEW
@given(data=st.data(), graph=graphs(max_size=14), poison=st.booleans(), more=st.integers(1, 300))
def test_random_network_over_a_taller_image_keeps_the_rules(data, graph, poison, more):
    height, width = graph.input_volume.height + more, graph.input_volume.width
    try:
        infer_volumes(graph, height, width)
    except ConvserveError:
        assume(False)
    check_plan(make_plan(graph, height, width, layout=data.draw(layouts(graph)), poison=poison))


@FEW
@given(data=st.data(), graph=graphs(max_size=12, max_layers=7), seed=seeds)
def test_random_network_replayed_in_its_arena_gives_the_oracles_numbers(data, graph, seed):
    images = data.draw(st.integers(1, 2))
    x = image(graph, batch=images, seed=seed)
    plan = make_plan(graph, *x.shape[2:], layout=data.draw(layouts(graph)), images=images)
    tensors = evaluate(graph, x)
    for got, output in zip(replay(plan, x), graph.outputs, strict=True):
        np.testing.assert_allclose(got, tensors[output.tensor], rtol=1e-9, atol=1e-9)


@FEW
@given(data=st.data(), graph=graphs(max_size=12, max_layers=6), seed=seeds)
def test_outputs_that_deliver_fewer_rows(data, graph, seed):
    x = image(graph, seed=seed)
    volumes = infer_volumes(graph)
    rows = [data.draw(st.integers(1, volumes[output.tensor].height)) for output in graph.outputs]
    plan = make_plan(graph, *x.shape[2:], layout=data.draw(layouts(graph)), sink_rows=rows)
    check_plan(plan)
    tensors = evaluate(graph, x)
    for got, output, wanted in zip(replay(plan, x), graph.outputs, rows, strict=True):
        np.testing.assert_allclose(got, tensors[output.tensor][:, :, :wanted], rtol=1e-9, atol=1e-9)


@FEW
@given(graph=graphs(max_size=30))
def test_full_buffers_hold_every_row_apart(graph):
    plan = make_plan(graph, graph.input_volume.height, graph.input_volume.width, full_buffers=True)
    check_plan(plan)
    rings = [tensor for tensor in plan.program.tensors if tensor.root == tensor.index]
    assert all(tensor.ring_rows == tensor.height for tensor in rings)
    places = sorted((tensor.offset, tensor.offset + tensor.ring_bytes) for tensor in rings)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places))


@FEW
@given(data=st.data(), graph=graphs(max_size=30))
def test_poison_changes_no_size_and_kills_every_row(data, graph):
    layout = data.draw(layouts(graph))
    height, width = graph.input_volume.height, graph.input_volume.width
    clean = make_plan(graph, height, width, layout=layout)
    poisoned = make_plan(graph, height, width, layout=layout, poison=True)
    assert poisoned.arena_bytes == clean.arena_bytes
    assert [t.offset for t in poisoned.program.tensors] == [t.offset for t in clean.program.tensors]
    rows_killed = dict.fromkeys(range(len(poisoned.program.tensors)), 0)
    for _, step in steps_of(poisoned):
        if step.kind == "Poison":
            rows_killed[step.index] = max(rows_killed[step.index], step.end)
    read = {poisoned.program.tensors[index].root for op in poisoned.program.operations for index in op.inputs}
    for root in read:
        tensor = poisoned.program.tensors[root]
        assert rows_killed[root] >= min(tensor.rows_needed, tensor.ring_rows), tensor.name


@FEW
@given(regions=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_arena_regions_never_overlap(regions):
    made = [Region(size, min(a, b), max(a, b)) for size, a, b in regions]
    arena_bytes = place(made)
    for number, region in enumerate(made):
        assert region.offset % 64 == 0
        assert region.offset + region.size_bytes <= arena_bytes
        for other in made[:number]:
            together = region.first <= other.last and other.first <= region.last
            apart = (
                region.offset + region.size_bytes <= other.offset or other.offset + other.size_bytes <= region.offset
            )
            assert apart or not together


# ---- the checker itself


def small_plan(**options: object) -> Plan:
    build = Builder(Volume(3, 20, 9))
    x = build.conv(build.input, 4, 3, pads=1)
    y = build.pool("MaxPool", build.conv(x, 5, 3, pads=1), 2, strides=2)
    return make_plan(build.graph(build.join("Concat", y, y)), 20, 9, layout=Layout((), 2), **options)


def test_checker_passes_a_sound_plan():
    check_plan(small_plan())
    check_plan(small_plan(poison=True))


@pytest.mark.parametrize("ring", range(4))
def test_checker_sees_a_ring_that_is_too_low(ring):
    plan = small_plan()
    rings = [tensor for tensor in plan.program.tensors if tensor.root == tensor.index]
    rings[ring].ring_rows -= 1
    with pytest.raises(PlanError):
        check_plan(plan)


def test_checker_sees_rings_that_overlap():
    plan = small_plan()
    rings = [tensor for tensor in plan.program.tensors if tensor.root == tensor.index]
    rings[1].offset = rings[0].offset
    with pytest.raises(PlanError, match="same time"):
        check_plan(plan)


def test_checker_sees_missing_padding():
    plan = small_plan()
    plan.program.tensors[0].pad_right = 0
    with pytest.raises(PlanError, match="zeros on the right"):
        check_plan(plan)


def test_checker_sees_every_step_that_is_left_out():
    steps = listed_steps(small_plan())
    for left_out in range(steps):
        plan = small_plan()
        position = 0
        for block in plan.blocks:
            if position <= left_out < position + len(block.steps):
                del block.steps[left_out - position]
                break
            position += len(block.steps)
        with pytest.raises(PlanError):
            check_plan(plan)


def test_checker_sees_steps_in_another_order():
    plan = small_plan()
    steps = [step for block in plan.blocks for step in block.steps for _ in range(block.repeats)]
    assert len(steps) > 10
    plan.blocks[0].steps.reverse()
    with pytest.raises(PlanError):
        check_plan(plan)


# ---- named networks


no_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the trained networks of ../shared/data")
NAMED = ["vgg16", *LIGHT, *(pytest.param(name, marks=no_shared_data) for name in TRAINED)]


def taller(name: str) -> int:
    """A height that is larger than the network's own, or its own where it takes no other."""
    graph = network(name)
    height = graph.input_volume.height * 3 + 5
    try:
        infer_volumes(graph, height, graph.input_volume.width)
    except ConvserveError:
        return graph.input_volume.height
    return height


@pytest.mark.parametrize("name", NAMED)
def test_named_network_keeps_the_rules(name):
    graph = network(name)
    height, width = graph.input_volume.height, graph.input_volume.width
    check_plan(make_plan(graph, height, width))
    check_plan(make_plan(graph, height, width, full_buffers=True))
    operations = len(make_plan(graph, height, width).program.operations)
    for band_rows in (1, 2, 4, 7):
        check_plan(make_plan(graph, height, width, layout=Layout((), band_rows)))
    for cuts in ((operations // 3,), (operations // 4, operations // 2, operations * 3 // 4), (1, 2, 3)):
        check_plan(make_plan(graph, height, width, layout=Layout(cuts, 3), images=2))
    check_plan(make_plan(graph, taller(name), width, layout=Layout((), 4), poison=True))


@pytest.mark.parametrize("name", NAMED)
def test_plan_does_not_grow_with_the_image(name):
    graph = network(name)
    height, width = graph.input_volume.height, graph.input_volume.width
    if taller(name) == height:
        pytest.skip("the network takes no other image size")
    for band_rows in (1, 4):
        layout = Layout((), band_rows)
        # Steps repeat every so many rows, so heights that differ by whole periods have equally long plans.
        low, high = (make_plan(graph, height + 64 * 9 * 4 * periods, width, layout=layout) for periods in (6, 48))
        assert listed_steps(low) == listed_steps(high)
        assert low.arena_bytes == high.arena_bytes
        assert high.step_count > 7 * low.step_count


@pytest.mark.parametrize(
    ("size", "rings_1", "rings_4"),
    [(224, 2.1, 6.5), (1024, 10.4, 34), (4096, 42, 140), (16384, 169, 560)],
)
def test_vgg16_rings_are_as_small_as_computed(size, rings_1, rings_4):
    graph = network("vgg16")
    for band_rows, computed in ((1, rings_1), (4, rings_4)):
        plan = make_plan(graph, size, size, layout=Layout((), band_rows))
        assert plan.arena_bytes <= 1.1 * computed * MIB
        if size <= 4096:
            check_plan(plan)


@pytest.mark.parametrize(
    ("name", "rings_1", "rings_4"),
    [
        ("bvlc_alexnet", 0.5, 1.5),
        ("zfnet512", 0.7, 2.1),
        ("inception_v1", 2.0, 5.8),
        ("resnet50", 4.3, 15),
        ("densenet121", 5.7, 20),
        ("squeezenet", 1.2, 2.6),
        ("shufflenet", 1.8, 5.7),
    ],
)
def test_rings_of_other_networks_are_as_small_as_computed(name, rings_1, rings_4):
    for band_rows, computed in ((1, rings_1), (4, rings_4)):
        plan = make_plan(network(name), 224, 224, layout=Layout((), band_rows))
        assert plan.arena_bytes <= 1.15 * computed * MIB


def test_vgg16_at_its_window_takes_less_than_four_and_a_half_mebibytes():
    plan = make_plan(network("vgg16"), 224, 224)
    check_plan(plan)
    assert plan.arena_bytes <= 4.5 * MIB


def test_a_million_rows_are_planned():
    plan = make_plan(network("vgg16"), 1 << 20, 1024)
    assert plan.step_count > 100_000
    assert listed_steps(plan) < 10_000
    assert plan.arena_bytes < 64 * MIB


# ---- what a plan says


def test_sizes_add_up():
    plan = small_plan(images=2, threads=3)
    rings = [tensor for tensor in plan.program.tensors if tensor.root == tensor.index]
    assert plan.arena_bytes >= sum(tensor.ring_bytes for tensor in rings) * 2
    assert plan.scratch_bytes >= 3 * plan.scratch_pitch
    assert plan.total_bytes == plan.arena_bytes + plan.scratch_bytes + plan.score_bytes
    weights = sum(array.nbytes for op in plan.program.operations if op.node for array in op.node.params.values())
    assert plan.weight_bytes == weights


def test_printed_steps_are_the_plans_steps():
    plan = small_plan()
    text = plan.steps()
    assert text.count("\n") + 1 == listed_steps(plan) + len(plan.blocks)
    for operation in plan.program.operations:
        assert operation.name in text
    assert f"{plan.arena_bytes / MIB:.2f} MiB" in plan.table()


def test_budget_takes_a_smaller_plan_or_says_what_would_do():
    graph = network("vgg16")
    free = plan_within(graph, 448, 448, budget_bytes=None)
    smaller = plan_within(graph, 448, 448, budget_bytes=free.total_bytes - 1)
    assert smaller.total_bytes < free.total_bytes
    check_plan(smaller)
    with pytest.raises(MemoryBudgetError, match=r"448x448.*takes at least [\d,]+ bytes") as refused:
        plan_within(graph, 448, 448, budget_bytes=1000)
    enough = int(str(refused.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))
    assert plan_within(graph, 448, 448, budget_bytes=enough).total_bytes == enough
    assert math.isclose(enough, smaller.total_bytes, rel_tol=1)
