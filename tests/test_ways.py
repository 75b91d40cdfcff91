"""Ways to one map: shifted passes, à trous, crops, edges; whole images, rows to come and servers give the same."""

import math

import numpy as np
import pytest
from builder import Builder
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from serving import running_server
from strategies import graphs, image, seeds
from test_dense import every_crop, padded_net

import convserve
from convserve import dense
from convserve.cli.arguments import BUNDLED
from convserve.dense.sliding import sliding
from convserve.errors import InputError, UnsupportedOpError
from convserve.graph.ir import Graph, Volume
from convserve.graph.restride import begins_with_convolutions
from convserve.model import Model

FEW = hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
EDGES = ("none", "pad", "align")


def streamed(model: Model, x: np.ndarray, block: int, **options: object) -> np.ndarray:
    rows = x[0].transpose(1, 2, 0)
    blocks = (rows[i : i + block] for i in range(0, len(rows), block))
    return np.concatenate(list(model.stream(width=x.shape[3], rows=blocks, **options)))


def divisors(number: int) -> list[int]:
    return [step for step in range(1, number + 1) if number % step == 0]


@pytest.fixture(scope="module")
def lenet(shared_data) -> Model:
    return convserve.load(shared_data / "lenet/lenet.onnx", threads=2)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(3).random((1, 1, 47, 58), np.float32)


# ---- trained networks without padding: every stride, method and source


@pytest.mark.parametrize("stride", [1, 2, 4, 8, (1, 4), (2, 8), (12, 1)])
@pytest.mark.parametrize("edge", EDGES)
def test_every_way_gives_lenet_s_crops(lenet, pixels, stride, edge):
    expected = lenet.score_map(pixels, stride=stride, edge=edge, method="crops")
    for method in ("auto", "shifted", "atrous"):
        found = lenet.score_map(pixels, stride=stride, edge=edge, method=method)
        assert found.exactness == "exact"
        assert np.array_equal(found.scores, expected.scores)
        assert found.covered == expected.covered
        for block in (1, 9, 47):
            options = {"stride": stride, "edge": edge, "method": method}
            assert np.array_equal(streamed(lenet, pixels, block, **options), expected.scores)
        blocks = list(lenet.score_stream(pixels, stride=stride, edge=edge, method=method))
        assert np.array_equal(np.concatenate([scores for _, scores in blocks]), expected.scores)


def test_the_bundled_network_at_a_finer_stride():
    model = convserve.load(BUNDLED)
    x = (np.random.default_rng(5).random((47, 50, 1)) * 255).astype(np.uint8)
    expected = model.score_map(x, stride=2, method="crops").scores
    for method in ("shifted", "atrous"):
        assert np.array_equal(model.score_map(x, stride=2, method=method).scores, expected)


def test_crops_at_an_edge_of_uint8_pixels_see_the_network_s_zeros(lenet):
    model = convserve.load(
        lenet.graph, preprocess=convserve.Preprocess(channels="gray", scale=1 / 256, mean=[0.3], std=[0.5])
    )
    x = (np.random.default_rng(5).random((37, 46, 1)) * 255).astype(np.uint8)
    found = model.score_map(x, edge="pad", method="crops")
    assert np.array_equal(model.score_map(x, edge="pad").scores, found.scores)
    values = model.preprocess.apply(x)
    wide = np.pad(values, ((0, 0), (0, 0), (0, 3), (0, 2)))
    assert np.array_equal(model.score_map(wide).scores, found.scores)


@FEW
@given(
    data=st.data(),
    graph=graphs(padded=False, slides=True, min_size=4, max_size=12, max_layers=5),
    seed=seeds,
    edge=st.sampled_from(EDGES),
)
def test_every_way_gives_the_crops_of_an_unpadded_network(data, graph, seed, edge):
    model = convserve.load(graph, threads=2)
    own = sliding(model.graph).stride
    assume(max(own) <= 16)
    stride = tuple(data.draw(st.sampled_from([*divisors(step), 2 * step, 3 * step])) for step in own)
    x = image(graph, seed=seed, size=tuple(side + data.draw(st.integers(0, 20)) for side in model.window))
    expected = model.score_map(x, stride=stride, edge=edge, method="crops")
    if edge == "none":
        assert np.array_equal(expected.scores, every_crop(model, x, stride))
    for method in ("auto", "shifted", "atrous"):
        try:
            found = model.score_map(x, stride=stride, edge=edge, method=method)
        except UnsupportedOpError:
            assert method == "atrous"
            continue
        assert np.array_equal(found.scores, expected.scores)
        if math.prod(max(1, wide // step) for wide, step in zip(own, stride, strict=True)) > dense.MOST_PASSES:
            continue
        options = {"stride": stride, "edge": edge, "method": method}
        if edge == "pad" and not begins_with_convolutions(model.graph):
            with pytest.raises(InputError, match="begin with convolutions"):
                model.row_stream(x.shape[3], dtype="float32", **options)
            continue
        assert np.array_equal(streamed(model, x, data.draw(st.integers(1, 30)), **options), expected.scores)


# ---- padded networks: the ring


@FEW
@given(
    data=st.data(),
    graph=graphs(padded=True, slides=True, min_size=4, max_size=12, max_layers=5),
    seed=seeds,
    method=st.sampled_from(("shifted", "atrous")),
    edge=st.sampled_from(EDGES),
)
def test_outside_the_ring_every_way_and_every_larger_image_give_the_same(data, graph, seed, method, edge):
    model = convserve.load(graph, threads=2, algorithm="gemm")
    own = sliding(model.graph).stride
    assume(max(own) <= 16)
    stride = tuple(data.draw(st.sampled_from([*divisors(step), 2 * step])) for step in own)
    inner_size = [side + data.draw(st.integers(0, 24)) for side in model.window]
    shift = [data.draw(st.integers(0, 3)) for _ in range(2)]
    size = [n + s * by + data.draw(st.integers(0, 9)) for n, s, by in zip(inner_size, shift, stride, strict=True)]
    large = image(graph, seed=seed, size=tuple(size))
    top, left = shift[0] * stride[0], shift[1] * stride[1]
    small = np.ascontiguousarray(large[:, :, top : top + inner_size[0], left : left + inner_size[1]])
    try:
        inner = model.score_map(small, stride=stride, method=method, edge=edge)
    except UnsupportedOpError:
        assume(False)
    outer = model.score_map(large, stride=stride, method="shifted")
    ring = inner.ring
    kept = inner.scores[ring[0] : inner.rows - ring[2], ring[1] : inner.cols - ring[3]]
    if inner.exactness == "exact" and edge != "none":
        kept = inner.scores[: (inner_size[0] - model.window[0]) // stride[0] + 1]
        kept = kept[:, : (inner_size[1] - model.window[1]) // stride[1] + 1]
    down, across = ring[0] + shift[0], ring[1] + shift[1]
    if inner.exactness == "exact" or not kept.size:
        return
    # of the larger image, what its own ring says nothing about either
    wide = outer.scores[down : down + kept.shape[0], across : across + kept.shape[1]]
    clean = np.zeros(outer.scores.shape[:2], bool)
    clean[outer.ring[0] : outer.rows - outer.ring[2], outer.ring[1] : outer.cols - outer.ring[3]] = True
    clean = clean[down : down + kept.shape[0], across : across + kept.shape[1]]
    assert np.array_equal(wide[clean], kept[clean])


@pytest.mark.parametrize("method", ["shifted", "atrous"])
@pytest.mark.parametrize("size", [(40, 28), (41, 33), (43, 35), (39, 50)])
def test_the_ring_is_no_wider_than_where_scores_differ(method, size):
    # on random weights a score that sees padding differs from the same pixels' in a larger image
    model = convserve.load(deeply_padded())
    large = image(deeply_padded(), seed=4, size=(120, 120))
    found = model.score_map(large[:, :, 32 : 32 + size[0], 40 : 40 + size[1]].copy(), stride=2, method=method)
    around = model.score_map(large, stride=2, method="shifted")
    assert min(around.ring) <= 8
    there = around.scores[16 : 16 + found.rows, 20 : 20 + found.cols]
    differs = (found.scores != there).any(axis=2)
    reported = np.ones(differs.shape, bool)
    reported[found.ring[0] : found.rows - found.ring[2], found.ring[1] : found.cols - found.ring[3]] = False
    assert np.array_equal(differs, reported)


def deeply_padded() -> Graph:
    build = Builder(Volume(3, 24, 24), seed=9, name="deeply padded")
    x = build.conv(build.input, 6, 3, pads=1)
    x = build.pool("AveragePool", build.conv(x, 6, 3, pads=1), 2, strides=2)
    x = build.pool("AveragePool", build.conv(x, 6, 3, pads=1), 2, strides=2)
    return build.graph(build.gemm(build.flatten(x), 4))


# ---- edges


def test_boxes_of_aligned_windows_end_with_the_image(lenet, pixels):
    found = lenet.score_map(pixels, stride=4, edge="align")
    assert (found.rows, found.cols) == (6, 9)
    assert found.box(4, 7) == (16, 28, 44, 56)
    assert found.box(5, 8) == found.box(-1, -1) == (19, 30, 47, 58)
    assert found.covered == (0, 0, 47, 58)
    crop = pixels[:, :, 19:47, 16:44]
    assert np.array_equal(found.scores[5, 4], lenet.run(crop)[0])


def test_boxes_of_padded_windows_leave_the_image(lenet, pixels):
    found = lenet.score_map(pixels, stride=4, edge="pad")
    assert found.box(-1, -1) == (20, 32, 48, 60)
    assert found.covered == (0, 0, 47, 58)
    assert found.ring == (0, 0, 1, 1)
    crop = np.pad(pixels[:, :, 20:, 32:], ((0, 0), (0, 0), (0, 1), (0, 2)))
    assert np.array_equal(found.scores[-1, -1], lenet.run(crop)[0])
    assert lenet.score_map(pixels, stride=4).covered == (0, 0, 44, 56)


def test_an_image_without_a_remainder_needs_no_edge(lenet):
    x = np.random.default_rng(1).random((1, 1, 40, 44), np.float32)
    maps = [lenet.score_map(x, edge=edge) for edge in EDGES]
    assert len({found.scores.tobytes() for found in maps}) == 1
    assert {found.box(-1, -1) for found in maps} == {(12, 16, 40, 44)}


def test_a_padded_network_s_aligned_row_is_in_the_ring():
    model = convserve.load(padded_net())
    found = model.score_map(image(padded_net(), size=(41, 28)), edge="align")
    assert (found.rows, found.cols) == (14, 7)
    assert found.ring == (1, 1, 2, 1)


# ---- through a server


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("method", ["auto", "shifted", "atrous"])
def test_a_server_gives_the_same(lenet, pixels, edge, method):
    options = {"stride": 2, "edge": edge, "method": method}
    local = lenet.score_map(pixels, **options)
    with running_server({"lenet": lenet}) as address, convserve.Client(address) as client:
        found = client.score_map(pixels, **options)
        assert np.array_equal(found.scores, local.scores)
        assert (found.edge, found.method, found.image, found.ring) == (edge, local.method, (47, 58), local.ring)
        assert found.box(-1, -1) == local.box(-1, -1)
        assert found.report.measured_bytes > 0
        blocks = (block for block in np.array_split(pixels[0].transpose(1, 2, 0), 5))
        assert np.array_equal(np.concatenate(list(client.stream(width=58, rows=blocks, **options))), local.scores)


# ---- what is chosen, and what is refused


def test_auto_takes_what_is_predicted_faster():
    model = convserve.build("INPUT[64x64x3] -> [CONV5-16 P0 -> RELU -> POOL2]*3 -> FC-10")
    engine = model.engine(model.graph.outputs[0].name)
    ways = dense.sliding_ways(engine, 2)
    seconds = {name: dense.predicted_seconds(way, 400, 300) for name, way in ways.items()}
    assert set(seconds) == {"shifted", "atrous"}
    best = min(seconds, key=seconds.__getitem__)
    assert dense.choose_way(engine, "auto", 2, height=400, width=300).method == best == "atrous"


def test_auto_of_a_padded_network_does_not_depend_on_the_image():
    model = convserve.load(deeply_padded())
    engine = model.engine(model.graph.outputs[0].name)
    sizes = [(24, 24), (100, 30), (30, 4000), (None, 24), (None, 9000)]
    assert len({dense.choose_way(engine, "auto", 2, height=h, width=w).method for h, w in sizes}) == 1


def test_too_many_passes_at_once_are_refused():
    model = convserve.build("INPUT[64x64x3] -> [CONV3-4 P0 -> POOL2]*4 -> FC-3")
    with pytest.raises(InputError, match="256 shifted passes, of 64"):
        model.row_stream(80, stride=1, method="shifted")
    with model.row_stream(80, stride=1) as stream:
        assert stream.geometry(80).method == "atrous"


@pytest.mark.parametrize("options", [{"method": "best"}, {"edge": "reflect"}, {"method": "crops", "edge": "no"}])
def test_a_method_or_edge_that_does_not_exist(lenet, pixels, options):
    with pytest.raises(InputError, match=r"allowed: (auto|none), "):
        lenet.score_map(pixels, **options)


def test_a_network_without_an_a_trous_form_says_so():
    build = Builder(Volume(3, 8, 8), seed=1)
    x = build.pool("MaxPool", build.input, 2, strides=2)
    x = build.add_node("SpaceToDepth", x, {"blocksize": (2, 2), "mode": "DCR"})
    model = convserve.load(build.graph(build.conv(x, 4, 2)))
    x = np.random.default_rng(2).random((1, 3, 30, 33), np.float32)
    with pytest.raises(UnsupportedOpError, match=r'no à trous form at stride 1x1.*"shifted" can'):
        model.score_map(x, stride=1, method="atrous")
    assert model.score_map(x, stride=1).method == "shifted"


# ---- scores over pixels


def test_upsampled_scores_stand_at_their_windows_centres(lenet, pixels):
    found = lenet.score_map(pixels, stride=4, edge="align")
    large = found.upsample(2 * 47, 2 * 58)
    assert large.shape == (94, 116, 10)
    assert large.dtype == np.float32
    for row, col in ((0, 0), (2, 3), (5, 8)):
        top, left, bottom, right = found.box(row, col)
        # the centre of a window of 28 lies between two pixels of the map that is twice as large
        around = large[top + bottom - 1 : top + bottom + 1, left + right - 1 : left + right + 1]
        assert np.abs(around.mean((0, 1)) - found.scores[row, col]).max() <= 0.1
        assert around.min() >= found.scores.min()
    assert np.array_equal(large[0, 0], found.scores[0, 0])
    assert np.array_equal(large[-1, -1], found.scores[-1, -1])


def test_upsampled_scores_are_bilinear(lenet):
    x = np.random.default_rng(1).random((1, 1, 32, 36), np.float32)
    found = lenet.score_map(x)
    centre = found.upsample(32, 36)[15, 17]
    # pixel (15, 17) has its centre 1.5 pixels below row 0's and 3.5 pixels right of column 0's
    down, across = np.float32(1.5 / 4), np.float32(3.5 / 4)
    upper = (1 - across) * found.scores[0, 0] + across * found.scores[0, 1]
    lower = (1 - across) * found.scores[1, 0] + across * found.scores[1, 1]
    assert np.allclose(centre, (1 - down) * upper + down * lower, atol=1e-6)


def test_what_cannot_be_upsampled(lenet, pixels):
    with pytest.raises(InputError, match="height is 0"):
        lenet.score_map(pixels).upsample(0, 5)
    with pytest.raises(InputError, match="best classes"):
        lenet.score_map(pixels, reduce=convserve.Reduction(top=2)).upsample(5, 5)


# ---- trained networks with padding


@pytest.mark.parametrize(("name", "size"), [("squeezenet/squeezenet1.1", 352), ("cifar10/cifar10_quick", 60)])
@pytest.mark.parametrize("finer", [1, 4])
def test_a_padded_trained_network_s_interior_does_not_depend_on_the_image(shared_data, name, size, finer):
    model = convserve.load(shared_data / f"{name}.onnx", algorithm="gemm")
    own = sliding(model.graph).stride[0]
    x = np.random.default_rng(8).random((1, 3, size, size), np.float32)
    cut = 2 * own
    stride = own // finer
    small = np.ascontiguousarray(x[:, :, cut:, : size - cut])
    inner, outer = (model.score_map(part, stride=stride) for part in (small, x))
    assert inner.exactness in ("interior-exact", "padded")
    top, left, bottom, right = inner.ring
    kept = inner.scores[top : inner.rows - bottom, left : inner.cols - right]
    there = outer.scores[cut // stride + top :, left:][: kept.shape[0], : kept.shape[1]]
    assert np.array_equal(there, kept)
