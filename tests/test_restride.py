"""Forms of a network at other strides: each gives the bits of the network itself, wherever both have a position."""

from itertools import islice

import numpy as np
import pytest
from builder import Builder
from builder import vgg16 as planned_vgg16
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from runs import ISAS, engine_of, run_engine, settings
from strategies import graphs, image, seeds

from convserve.engine.engine import Engine
from convserve.errors import ShapeError, UnsupportedOpError
from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import infer_volumes
from convserve.graph.restride import coarsened, extended, least_work, refined, strides_of
from convserve.graph.rewrites import rewrite

FEW = hypothesis_settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
FORMS = 6


def shown(graph: Graph, x: np.ndarray) -> np.ndarray:
    """Return the first output, (C, H, W), of a packed graph."""
    return run_engine(Engine(graph), x)[0][0]


def divisors(number: int) -> list[int]:
    return [step for step in range(1, number + 1) if number % step == 0]


@FEW
@given(
    data=st.data(),
    graph=st.booleans().flatmap(
        lambda padded: graphs(padded=padded, slides=True, min_size=4, max_size=14, max_layers=6)
    ),
    seed=seeds,
    more=st.tuples(st.integers(0, 14), st.integers(0, 14)),
)
def test_every_finer_form_has_the_bits_of_the_network(data, graph, seed, more):
    packed = engine_of(graph).graph
    own = strides_of(packed)[packed.outputs[0].tensor]
    assume(own != (1, 1) and max(own) <= 24)
    stride = tuple(data.draw(st.sampled_from(divisors(step))) for step in own)
    x = image(graph, seed=seed, size=(graph.input_volume.height + more[0], graph.input_volume.width + more[1]))
    every = (slice(None), slice(None, None, own[0] // stride[0]), slice(None, None, own[1] // stride[1]))
    with settings(ISA=data.draw(st.sampled_from(ISAS)), POISON=data.draw(st.integers(0, 1))):
        expected = shown(packed, x)
        first = None
        for form in islice(refined(packed, stride), FORMS):
            assert strides_of(form)[form.outputs[0].tensor] == stride
            found = shown(form, x)
            rows, cols = expected.shape[1:]
            assert np.array_equal(found[every][:, :rows, :cols], expected, equal_nan=True)
            first = found if first is None else first
            assert np.array_equal(found, first, equal_nan=True)


@FEW
@given(
    data=st.data(),
    graph=st.booleans().flatmap(
        lambda padded: graphs(padded=padded, slides=True, min_size=4, max_size=14, max_layers=6)
    ),
    seed=seeds,
    more=st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_a_coarser_form_has_the_bits_of_the_network(data, graph, seed, more):
    packed = engine_of(graph).graph
    times = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    x = image(graph, seed=seed, size=(graph.input_volume.height + more[0], graph.input_volume.width + more[1]))
    with settings(POISON=data.draw(st.integers(0, 1))):
        expected = shown(packed, x)[:, :: times[0], :: times[1]]
        found = shown(coarsened(packed, times), x)
        assert np.array_equal(found[:, : expected.shape[1], : expected.shape[2]], expected, equal_nan=True)


@FEW
@given(
    data=st.data(),
    graph=st.booleans().flatmap(
        lambda padded: graphs(padded=padded, slides=True, min_size=4, max_size=14, max_layers=5)
    ),
    seed=seeds,
)
def test_an_extended_form_sees_zeros_behind_the_image(data, graph, seed):
    packed = engine_of(graph).graph
    bottom, right = data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    x = image(graph, seed=seed)
    wide = np.pad(x, ((0, 0), (0, 0), (0, bottom), (0, right)))
    assert np.array_equal(shown(extended(packed, bottom, right), x), shown(packed, wide), equal_nan=True)


# ---- which way


def vgg16() -> Graph:
    return rewrite(planned_vgg16(), window=None)


def test_the_latest_strides_of_vgg16_go():
    form = least_work(vgg16(), (8, 8))
    pools = [node for node in form.nodes if node.op == "MaxPool"]
    assert [node.attrs["strides"] for node in pools] == [(2, 2), (2, 2), (2, 2), (1, 1), (1, 1)]
    assert [node.attrs["dilations"] for node in pools] == [(1, 1), (1, 1), (1, 1), (1, 1), (2, 2)]
    last = [node for node in form.nodes if node.op == "Conv"][-6:]
    assert [node.attrs["dilations"][0] for node in last] == [2, 2, 2, 4, 1, 1]
    assert [node.attrs["pads"][0] for node in last] == [2, 2, 2, 0, 0, 0]


def test_every_way_to_stride_8_is_there():
    # two of the five strides of 2 go
    assert len(list(refined(vgg16(), (8, 8)))) == 10


def test_the_stride_of_vgg16_goes_to_its_first_converted_layer():
    form = coarsened(vgg16(), (2, 3))
    strided = [(node.op, node.attrs["kernel_shape"]) for node in form.nodes if node.attrs.get("strides") == (2, 3)]
    assert strided == [("Conv", (7, 7))]
    assert infer_volumes(form, 384, 384)[form.outputs[0].tensor] == Volume(1000, 3, 2)


def test_a_stride_behind_a_space_to_depth_that_cannot_go():
    build = Builder(Volume(3, 8, 8), seed=1)
    x = build.add_node("SpaceToDepth", build.input, {"blocksize": (2, 2), "mode": "DCR"})
    x = build.pool("MaxPool", x, 2, strides=2)
    packed = engine_of(build.graph(build.conv(x, 4, 2))).graph
    assert least_work(packed, (2, 2)) is not None
    with pytest.raises(UnsupportedOpError, match="no à trous form"):
        least_work(packed, (1, 1))


def test_a_form_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError):
        infer_volumes(least_work(vgg16(), (8, 8)), 100, 100)
