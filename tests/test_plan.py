"""Plans, checked without kernels: rows in rings, rings in the arena, sizes against arithmetic."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_checker import check_plan, replay
from reference import evaluate
from strategies import graphs, image, seeds

from convserve.plan.plan import Layout, make_plan

FEW = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


@st.composite
def layouts(draw, graph) -> Layout:
    operations = len(make_plan(graph, graph.input_volume.height, graph.input_volume.width).program.operations)
    cuts = draw(st.lists(st.integers(1, operations), max_size=4, unique=True))
    return Layout(tuple(sorted(cuts)), draw(st.integers(1, 9)))


@FEW
@given(data=st.data(), graph=graphs(max_size=30), poison=st.booleans(), images=st.integers(1, 3))
def test_random_network_keeps_the_rules(data, graph, poison, images):
    layout = data.draw(layouts(graph))
    plan = make_plan(
        graph, graph.input_volume.height, graph.input_volume.width, layout=layout, poison=poison, images=images
    )
    check_plan(plan)


@FEW
@given(data=st.data(), graph=graphs(max_size=12, max_layers=7), seed=seeds)
def test_random_network_replayed_in_its_arena_gives_the_oracles_numbers(data, graph, seed):
    images = data.draw(st.integers(1, 2))
    x = image(graph, batch=images, seed=seed)
    plan = make_plan(graph, *x.shape[2:], layout=data.draw(layouts(graph)), images=images)
    tensors = evaluate(graph, x)
    for got, output in zip(replay(plan, x), graph.outputs, strict=True):
        np.testing.assert_allclose(got, tensors[output.tensor], rtol=1e-9, atol=1e-9)
