"""Crops, and what they share: the same bits as the network on every crop, for any network, stride, edge and budget."""


from pathlib import Path

import numpy as np
import pytest
from builder import Builder
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from serving import running_server
from strategies import graphs, image, seeds
from test_dense import every_crop, padded_net
from test_ways import EDGES, divisors, streamed

import convserve
from convserve.dense.sliding import cropping
from convserve.errors import InputError, MemoryBudgetError, RunCancelled, ShapeError
from convserve.graph import sharing as sharing_module
from convserve.graph.ir import Graph, Volume
from convserve.graph.sharing import sharing

FEW = hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share wherever there is anything to share, whatever it costs."""
    monkeypatch.setattr(sharing_module, "RUN_FLOPS", 0)
    monkeypatch.setattr(sharing_module, "VALUE_FLOPS", 0)
    monkeypatch.setattr(sharing_module, "LEAST_GAIN", -1e9)


def deep_net(*, size: int = 32, gate: bool = False) -> Graph:
    build = Builder(Volume(3, size, size), seed=3, name="deep")
    x = build.conv(build.input, 8, 3, pads=1, activation="relu")
    x = build.join("Add", x, build.conv(x, 8, 3, pads=1))
    x = build.pool("MaxPool", x, 3, strides=2, pads=(0, 0, 1, 1))
    x = build.join("Concat", build.conv(x, 6, 1), build.conv(x, 10, 3, pads=1, activation="relu"))
    x = build.pool("AveragePool", x, 2, strides=2)
    if gate:
        x = build.join("Mul", x, build.conv(build.simple("GlobalAveragePool", x), 16, 1))
    x = build.conv(x, 12, 3, pads=1, activation="relu")
    return build.graph(build.gemm(build.flatten(x), 5))


# ---- the bits of crops


@FEW
@given(
    data=st.data(),
    graph=graphs(padded=True, slides=True, min_size=6, max_size=20, max_layers=6),
    seed=seeds,
    edge=st.sampled_from(EDGES),
)
@pytest.mark.usefixtures("eager")
def test_crops_that_share_have_the_bits_of_crops(data, graph, seed, edge):
    model = convserve.load(graph, threads=2, algorithm="gemm")
    own = cropping(model.graph).stride
    assume(max(own) <= 16)
    stride = tuple(data.draw(st.sampled_from([*divisors(step), 2 * step, 3, 5])) for step in own)
    x = image(graph, seed=seed, size=tuple(side + data.draw(st.integers(0, 20)) for side in model.window))
    expected = model.score_map(x, stride=stride, edge=edge, method="crops")
    if edge == "none":
        assert np.array_equal(expected.scores, every_crop(model, x, stride))
    found = model.score_map(x, stride=stride, edge=edge, method="crops-shared")
    assert (found.exactness, found.ring) == (expected.exactness, expected.ring)
    assert np.array_equal(found.scores, expected.scores)
    assert found.report.measured_bytes == found.plan.total_bytes


@pytest.mark.parametrize(
    ("network", "edge"),
    [
        ("cifar10/resnet20.onnx", "none"),
        ("cifar10/cifar10_quick.onnx", "pad"),
        ("squeezenet/squeezenet1.1.onnx", "align"),
    ],
)
@pytest.mark.usefixtures("eager")
def test_trained_networks_keep_the_bits_of_their_crops(shared_data: Path, network: str, edge: str) -> None:
    model = convserve.load(shared_data / network, algorithm="gemm", threads=2)
    height, width = model.window
    x = image(model.graph, seed=3, size=(height + 21, width + 35))
    stride = 32 if height > 100 else 5
    expected = model.score_map(x, stride=stride, edge=edge, method="crops")
    found = model.score_map(x, stride=stride, edge=edge, method="crops-shared")
    assert found.method == "crops-shared"
    assert np.array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("stride", [3, (8, 2), 40])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.usefixtures("eager")
def test_images_rows_to_come_and_bytes_give_the_same(gate: bool, stride: int | tuple[int, int], edge: str) -> None:
    # behind the gate the network cannot slide; before it, crops share
    model = convserve.load(deep_net(gate=gate), threads=2)
    options = {"stride": stride, "edge": edge}
    x = image(model.graph, seed=5, size=(79, 50))
    expected = model.score_map(x, method="crops", **options).scores
    found = model.score_map(x, method="crops-shared", **options)
    assert found.method == "crops-shared"
    assert np.array_equal(found.scores, expected)
    blocks = [scores for _, scores in model.score_stream(x, method="crops-shared", **options)]
    assert np.array_equal(np.concatenate(blocks), expected)
    for method, block in (("crops", 30), ("crops-shared", 7), ("crops-shared", 79)):
        assert np.array_equal(streamed(model, x, block, method=method, **options), expected)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("edge", EDGES)
def test_pixels_are_preprocessed_once(edge: str) -> None:
    preprocess = convserve.Preprocess(channels="bgr", scale=1 / 64, mean=[0.3, 0.1, 0.2], std=[0.5, 1, 2])
    model = convserve.load(deep_net(), preprocess=preprocess, threads=2)
    pixels = (np.random.default_rng(5).random((58, 51, 3)) * 255).astype(np.uint8)
    values = model.preprocess.apply(pixels)
    found = model.score_map(pixels, stride=4, edge=edge, method="crops-shared")
    assert np.array_equal(found.scores, model.score_map(values, stride=4, edge=edge, method="crops").scores)
    rows = model.stream(width=51, rows=np.array_split(pixels, 7), stride=4, edge=edge, method="crops-shared")
    assert np.array_equal(np.concatenate(list(rows)), found.scores)


@pytest.mark.usefixtures("eager")
def test_winograd_s_layers_differ_in_their_last_bits_alone(shared_data: Path) -> None:
    model = convserve.load(shared_data / "cifar10/resnet20.onnx", threads=2)
    assert model.algorithm == "winograd"
    x = image(model.graph, seed=3, size=(60, 50))
    maps = [model.score_map(x, stride=2, method=method) for method in ("crops", "crops-shared")]
    scale = np.abs(maps[0].scores).max()
    assert np.abs(maps[1].scores - maps[0].scores).max() <= 1e-5 * scale
    # and in nothing that depends on blocks
    some = model.score_map(x[:, :, :40, 4:].copy(), stride=2, method="crops-shared")
    assert np.array_equal(some.scores, maps[1].scores[: some.rows, 2:])


# ---- what is shared


def test_a_network_without_padding_shares_everything() -> None:
    model = convserve.build("INPUT[32x32x3] -> [CONV5-16 P0 -> RELU -> POOL2]*2 -> FC-30 -> RELU -> FC-10")
    found = sharing(model.graph, (4, 4))
    assert all(stretch.strips == ((None, None), (None, None)) for stretch in found.stretches)
    x = image(model.graph, size=(60, 70))
    assert np.array_equal(model.score_map(x, method="crops-shared").scores, model.score_map(x).scores)


def test_borders_grow_by_each_layer_s_padding() -> None:
    model = convserve.build("INPUT[64x64x3] -> [[CONV3-4 -> RELU]*2 -> POOL2]*2 -> [CONV3-4 -> RELU]*3 -> FC-5")
    borders = {one.tensor: one.borders(0) for one in sharing_module.passages(model.graph)}
    grown = [borders[tensor] for tensor in borders]
    assert grown[0] == (0, 0)
    # two convolutions, a pooling, two convolutions, a pooling, ...: docs/dense.md
    assert grown[1:7] == [(1, 1), (2, 2), (1, 1), (2, 2), (3, 3), (2, 2)]


def test_what_shares_nothing_says_why() -> None:
    model = convserve.load(padded_net(gate=True))
    found = sharing(model.graph, (4, 4))
    assert not found.stretches
    assert "share less than sharing costs" in found.note
    small = convserve.build("INPUT[2x2x3] -> CONV3-4 -> FC-3")
    assert "share nothing: behind Conv" in sharing(small.graph, (1, 1)).note
    x = image(padded_net(), size=(24, 24))
    assert model.score_map(x, stride=4, method="crops-shared").method == "crops"
    ways = model.plan_ways(24, 24, stride=4)
    assert [(way.method, way.passes, way.note) for way in ways] == [
        ("crops-shared", 9, found.note),
        ("crops", 9, ""),
    ]


def test_sharing_is_a_rule_of_network_and_stride() -> None:
    model = convserve.load(deep_net(size=64))
    chosen = [sharing(model.graph, (2, 2)) for _ in range(2)]
    assert [one.end.tensor for one in chosen[0].stretches] == [one.end.tensor for one in chosen[1].stretches]


# ---- memory, progress, cancelling


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("method", ["crops", "crops-shared"])
@pytest.mark.parametrize("edge", ["none", "align"])
def test_less_memory_gives_the_same_bits(method: str, edge: str) -> None:
    model = convserve.load(deep_net(), threads=2)
    x = image(model.graph, seed=2, size=(71, 64))
    options = {"stride": 4, "edge": edge, "method": method}
    expected = model.score_map(x, **options)
    most = expected.plan.total_bytes
    with pytest.raises(MemoryBudgetError, match="take at least") as refused:
        model.score_map(x, memory_budget=1 << 16, **options)
    least = int(str(refused.value).split(" bytes")[0].split()[-1].replace(",", ""))
    assert least < most
    for budget in (least, (least + most) // 2):
        found = model.score_map(x, memory_budget=budget, **options)
        assert found.plan.total_bytes == found.report.measured_bytes <= budget
        assert np.array_equal(found.scores, expected.scores)
    with pytest.raises(MemoryBudgetError):
        model.score_map(x, memory_budget=least - 1, **options)


@pytest.mark.usefixtures("eager")
def test_rows_to_come_take_what_was_planned() -> None:
    model = convserve.load(deep_net(), threads=2)
    for height in (32, 45, 300):
        x = image(model.graph, seed=2, size=(height, 90))[0].transpose(1, 2, 0)
        with model.row_stream(90, dtype="float32", stride=4, method="crops-shared", memory_budget="8MiB") as stream:
            rows = sum(len(scores) for _, scores in stream.feed(x)) + sum(len(scores) for _, scores in stream.finish())
            assert rows == stream.geometry(height).rows
            assert stream.allocated_bytes == stream.plan.total_bytes <= 8 << 20


def test_a_cancelled_stream_ends() -> None:
    model = convserve.load(deep_net(), threads=2)
    x = image(model.graph, seed=2, size=(200, 90))
    stream = model.score_stream(x, stride=4, method="crops-shared", memory_budget="2MiB")
    blocks = iter(stream)
    next(blocks)
    stream.close()
    with pytest.raises(RunCancelled):
        next(blocks)


@pytest.mark.usefixtures("eager")
def test_a_server_runs_crops() -> None:
    model = convserve.load(deep_net(), threads=2)
    x = image(model.graph, seed=4, size=(64, 52))
    with running_server({"deep": model}) as address, convserve.Client(address) as client:
        for method in ("crops", "crops-shared"):
            found = client.score_map(x, stride=4, edge="align", method=method)
            local = model.score_map(x, stride=4, edge="align", method=method)
            assert np.array_equal(found.scores, local.scores)
            assert (found.method, found.exactness) == (method, "exact")


# ---- bad input


@pytest.mark.parametrize("method", ["crops", "crops-shared"])
def test_what_is_refused(method: str) -> None:
    model = convserve.load(deep_net())
    x = image(model.graph, size=(40, 40))
    with pytest.raises(InputError, match="allowed: none"):
        model.score_map(x, method=method, edge="no")
    with pytest.raises(InputError, match="stride is 0"):
        model.score_map(x, method=method, stride=0)
    with pytest.raises(ShapeError, match="31x40"):
        model.score_map(x[:, :, :31], method=method)
    with pytest.raises(ShapeError, match="x31; the network's window is 32x32"):
        model.row_stream(31, method=method)
    with model.row_stream(40, method=method) as stream, pytest.raises(ShapeError, match="must be uint8"):
        list(stream.feed(np.zeros((3, 39, 3), np.uint8)))
    with model.row_stream(40, method=method) as stream, pytest.raises(ShapeError, match="window"):
        list(stream.finish())
