"""Score maps: equal to every crop bit for bit where they say "exact", honest about the ring where they do not."""

import gzip

import numpy as np
import pytest
from builder import Builder
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from reference import crops
from runs import ISAS, settings
from strategies import graphs, image, seeds

import convserve
from convserve.errors import InputError, MemoryBudgetError, RunCancelled, ShapeError, UnsupportedOpError
from convserve.graph.ir import Graph, Volume
from convserve.model import Model
from convserve.plan.layout import Layout
from convserve.results import ScoreMap

FEW = hypothesis_settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))


def every_crop(model: Model, x: np.ndarray, stride: tuple[int, int], *, batch: int = 7) -> np.ndarray:
    """Return float32 (rows, cols, classes): model.run on each window, `batch` at a time."""
    windows = crops(x, model.window, stride)
    rows, cols = windows.shape[:2]
    flat = np.ascontiguousarray(windows).reshape(-1, *windows.shape[2:])
    scores = [model.run(flat[i : i + batch]).reshape(len(flat[i : i + batch]), -1) for i in range(0, len(flat), batch)]
    return np.concatenate(scores).reshape(rows, cols, -1)


def collected(model: Model, x: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the map that score_stream gives under a layout, whose blocks must come in order without a gap."""
    stream = model.score_stream(x, layout=layout)
    blocks, done = [], 0
    for first, rows in stream:
        assert first == done
        assert rows.dtype == np.float32
        done += len(rows)
        blocks.append(rows.copy())
    assert done == stream.geometry.rows
    return np.concatenate(blocks)


# ---- LeNet over a page of digits


@pytest.fixture(scope="module")
def page(shared_data) -> np.ndarray:
    """Six test digits in two loose rows, float32 (1, 1, 67, 104), as LeNet takes them: pixel / 256."""
    with gzip.open(shared_data / "mnist/t10k-images-idx3-ubyte.gz") as file:
        digits = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    page = np.zeros((1, 1, 67, 104), np.float32)
    for number, digit in enumerate(digits[:6]):
        top, left = number // 3 * 35 + number % 2 * 3, number % 3 * 36 + number // 3
        page[0, 0, top : top + 28, left : left + 28] = digit / np.float32(256)
    return page


@pytest.fixture(scope="module")
def lenet_path(shared_data) -> str:
    return str(shared_data / "lenet/lenet.onnx")


@pytest.fixture(scope="module")
def page_scores(lenet_path, page) -> np.ndarray:
    """LeNet on each of the page's 10 x 20 windows, one by one, on one thread."""
    return every_crop(convserve.load(lenet_path, threads=1), page, (4, 4), batch=1)


def test_lenet_map_says_what_it_is(lenet_path, page):
    found = convserve.load(lenet_path).score_map(page)
    assert (found.rows, found.cols) == (10, 20)
    assert found.scores.shape == (10, 20, 10)
    assert found.scores.dtype == np.float32
    assert (found.stride, found.window, found.offset) == ((4, 4), (28, 28), (0, 0))
    assert (found.exactness, found.ring) == ("exact", (0, 0, 0, 0))
    assert found.box(0, 0) == (0, 0, 28, 28)
    assert found.box(-1, -1) == found.box(9, 19) == (36, 76, 64, 104)
    assert found.covered == (0, 0, 64, 104)
    assert found.classes == list(range(10))
    assert found.scores.max() > 0.99


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_lenet_map_equals_every_crop(lenet_path, page, page_scores, isa, threads):
    with settings(ISA=isa):
        model = convserve.load(lenet_path, threads=threads)
        expected = page_scores if isa != "portable" else every_crop(model, page, (4, 4))
        assert np.array_equal(model.score_map(page).scores, expected)
        assert np.array_equal(every_crop(model, page, (4, 4), batch=13), expected)


@pytest.mark.parametrize("band_rows", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("cuts", [(), (2,), (1, 3, 4)])
def test_lenet_map_is_the_same_for_every_layout(lenet_path, page, page_scores, band_rows, cuts):
    model = convserve.load(lenet_path, threads=2)
    assert np.array_equal(collected(model, page, Layout(cuts, band_rows)), page_scores)


def test_lenet_map_without_a_plan_and_under_poison(lenet_path, page, page_scores):
    model = convserve.load(lenet_path)
    with settings(PLAN="off"):
        assert np.array_equal(model.score_map(page).scores, page_scores)
    with settings(POISON=1):
        assert np.array_equal(model.score_map(page).scores, page_scores)


def test_lenet_map_at_other_strides_equals_every_crop(lenet_path, page):
    model = convserve.load(lenet_path)
    for stride in ((2, 2), (1, 4), (8, 12)):
        found = model.score_map(page, stride=stride)
        assert found.stride == stride
        assert np.array_equal(found.scores, every_crop(model, page, stride))
        assert np.array_equal(model.score_map(page, stride=stride, method="crops").scores, found.scores)
    by_crops = model.score_map(page, stride=(5, 7), method="crops")
    assert np.array_equal(by_crops.scores, every_crop(model, page, (5, 7)))


def test_chosen_classes_are_the_map_s_own(lenet_path, page, page_scores):
    model = convserve.load(lenet_path, labels=list("0123456789"))
    found = model.score_map(page, classes=[7, "2"])
    assert found.classes == [7, 2]
    assert found.labels == ["7", "2"]
    assert np.array_equal(found.scores, page_scores[..., [7, 2]])


def test_uint8_pixels_give_the_bits_of_preprocessed_ones(lenet_path, page, page_scores):
    model = convserve.load(lenet_path, preprocess=convserve.Preprocess(channels="gray", scale=1 / 256))
    pixels = (page[0, 0] * 256).astype(np.uint8)
    assert np.array_equal(model.score_map(pixels[..., None]).scores, page_scores)


@pytest.mark.parametrize("block", [1, 5, 28, 67])
def test_rows_that_come_in_blocks_give_the_same_map(lenet_path, page, page_scores, block):
    model = convserve.load(lenet_path)
    rows = page[0].transpose(1, 2, 0)
    blocks = (rows[i : i + block] for i in range(0, len(rows), block))
    scores = np.concatenate(list(model.stream(width=page.shape[3], rows=blocks)))
    assert np.array_equal(scores, page_scores)


def test_a_closed_stream_stops(lenet_path, page):
    stream = convserve.load(lenet_path).score_stream(page, layout=Layout((), 1))
    blocks = iter(stream)
    next(blocks)
    stream.close()
    with pytest.raises(RunCancelled):
        list(blocks)


def test_eight_maps_at_once_are_the_same(lenet_path, page, page_scores):
    from concurrent.futures import ThreadPoolExecutor

    model = convserve.load(lenet_path, threads=2)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: model.score_map(page).scores, range(16)):
            assert np.array_equal(found, page_scores)


def test_plan_is_what_the_map_took(lenet_path, page):
    model = convserve.load(lenet_path)
    planned = model.plan(67, 104, hold_scores=True)
    found = model.score_map(page)
    assert found.plan.arena_bytes == planned.arena_bytes
    assert found.plan.score_bytes == planned.score_bytes == found.scores.nbytes
    assert found.plan.total_bytes == planned.total_bytes


def test_budget_of_a_map(lenet_path, page, page_scores):
    model = convserve.load(lenet_path)
    with pytest.raises(MemoryBudgetError, match=r"67x104|64x104"):
        model.score_map(page, memory_budget="4KiB")
    assert np.array_equal(model.score_map(page, memory_budget="1MiB").scores, page_scores)


# ---- random networks


@FEW
@given(
    data=st.data(),
    graph=graphs(padded=False, slides=True, min_size=4, max_size=14, max_layers=6),
    seed=seeds,
    more=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_random_unpadded_network_equals_every_crop(data, graph, seed, more):
    model = convserve.load(graph, threads=data.draw(st.integers(1, 2)))
    x = image(graph, seed=seed, size=(model.window[0] + more[0], model.window[1] + more[1]))
    with settings(ISA=data.draw(st.sampled_from(ISAS)), POISON=data.draw(st.integers(0, 1))):
        found = model.score_map(x)
        assert found.exactness == "exact"
        expected = every_crop(model, x, found.stride, batch=data.draw(st.integers(1, 9)))
        assert np.array_equal(found.scores, expected)
        layout = Layout(tuple(sorted(data.draw(st.sets(st.integers(1, 9), max_size=3)))), data.draw(st.integers(1, 9)))
        assert np.array_equal(collected(model, x, layout), expected)


@FEW
@given(
    data=st.data(),
    graph=graphs(padded=False, slides=True, min_size=4, max_size=12, max_layers=5),
    seed=seeds,
)
def test_random_unpadded_network_streamed_equals_every_crop(data, graph, seed):
    model = convserve.load(graph, threads=2)
    height, width = (side + data.draw(st.integers(0, 30)) for side in model.window)
    x = image(graph, seed=seed, size=(height, width))
    rows, blocks = x[0].transpose(1, 2, 0), []
    while len(rows):
        count = data.draw(st.integers(1, 12))
        blocks.append(rows[:count])
        rows = rows[count:]
    scores = np.concatenate(list(model.stream(width=width, rows=blocks)))
    assert np.array_equal(scores, model.score_map(x).scores)


@FEW
@given(
    data=st.data(),
    graph=graphs(padded=True, slides=True, min_size=4, max_size=12, max_layers=5),
    seed=seeds,
    streamed=st.booleans(),
)
def test_outside_the_ring_a_score_does_not_depend_on_where_the_image_ends(data, graph, seed, streamed):
    model = convserve.load(graph, threads=2)
    stride = model.score_map(image(graph)).stride
    inner_size = [side + data.draw(st.integers(0, 24)) for side in model.window]
    shift = [data.draw(st.integers(0, 3)) for _ in range(2)]
    size = [n + s * by + data.draw(st.integers(0, 9)) for n, s, by in zip(inner_size, shift, stride, strict=True)]
    large = image(graph, seed=seed, size=tuple(size))
    top, left = shift[0] * stride[0], shift[1] * stride[1]
    small = np.ascontiguousarray(large[:, :, top : top + inner_size[0], left : left + inner_size[1]])
    inner, outer = model.score_map(small), model.score_map(large)
    ring = inner.ring
    kept = inner.scores[ring[0] : inner.rows - ring[2], ring[1] : inner.cols - ring[3]]
    assert (inner.exactness == "padded") == (not kept.size)
    if inner.exactness == "exact":
        assert ring == (0, 0, 0, 0)
        assert np.array_equal(inner.scores, every_crop(model, small, stride))
    down, across = ring[0] + shift[0], ring[1] + shift[1]
    assert np.array_equal(outer.scores[down : down + kept.shape[0], across : across + kept.shape[1]], kept)
    if streamed:
        scores = np.concatenate(list(model.stream(width=size[1], rows=iter([large[0].transpose(1, 2, 0)]))))
        assert np.array_equal(scores, outer.scores)


@FEW
@given(
    data=st.data(),
    graph=graphs(padded=False, slides=True, min_size=4, max_size=10, max_layers=4),
    seed=seeds,
)
def test_finer_and_coarser_strides_equal_every_crop(data, graph, seed):
    model = convserve.load(graph)
    x = image(graph, seed=seed, size=tuple(side + data.draw(st.integers(0, 12)) for side in model.window))
    own = model.score_map(x).stride
    wanted = []
    for step in own:
        divisors = [d for d in range(1, step + 1) if step % d == 0]
        wanted.append(data.draw(st.sampled_from([*divisors, 2 * step, 3 * step])))
    stride = tuple(wanted)
    assume(all(step <= 40 for step in stride))
    try:
        found = model.score_map(x, stride=stride)
    except InputError:
        # one side finer and the other coarser is allowed to be refused, but not silently wrong
        assert any(step < by for step, by in zip(stride, own, strict=True))
        assert any(step > by for step, by in zip(stride, own, strict=True))
        return
    assert np.array_equal(found.scores, every_crop(model, x, stride))


# ---- what cannot slide, and what does not fit


def padded_net(*, size: int = 16, gate: bool = False) -> Graph:
    build = Builder(Volume(3, size, size), seed=9, name="padded")
    x = build.conv(build.input, 6, 3, pads=1, activation="relu")
    if gate:
        x = build.join("Mul", x, build.conv(build.simple("GlobalAveragePool", x), 6, 1))
    x = build.pool("MaxPool", build.conv(x, 6, 3, pads=1, activation="relu"), 2, strides=2)
    return build.graph(build.gemm(build.flatten(x), 4))


def test_padded_network_tells_its_ring():
    model = convserve.load(padded_net())
    found: ScoreMap = model.score_map(image(padded_net(), size=(40, 28)))
    assert (found.rows, found.cols) == (13, 7)
    # Two 3x3 convolutions see two pixels beyond each side; one position of stride 2 covers them.
    assert (found.exactness, found.ring) == ("interior-exact", (1, 1, 1, 1))
    assert model.score_map(image(padded_net())).exactness == "padded"


def test_crops_of_a_padded_network_are_its_own():
    model = convserve.load(padded_net())
    x = image(padded_net(), seed=2, size=(27, 30))
    found = model.score_map(x, method="crops", stride=3)
    assert found.exactness == "exact"
    assert np.array_equal(found.scores, every_crop(model, x, (3, 3)))


def test_a_gate_cannot_slide_but_its_crops_can():
    model = convserve.load(padded_net(gate=True))
    x = image(padded_net(), seed=3, size=(20, 24))
    with pytest.raises(UnsupportedOpError, match="cannot slide"):
        model.score_map(x)
    found = model.score_map(x, method="crops", stride=4)
    assert np.array_equal(found.scores, every_crop(model, x, (4, 4)))


def test_image_smaller_than_the_window():
    model = convserve.load(padded_net())
    with pytest.raises(ShapeError, match=r"15x40.*16x16"):
        model.score_map(image(padded_net(), size=(15, 40)))


@pytest.mark.parametrize("stride", [0, -2, 3, (2, 5)])
def test_stride_that_the_network_cannot_take(stride):
    model = convserve.load(padded_net())
    with pytest.raises(InputError, match="stride"):
        model.score_map(image(padded_net(), size=(40, 40)), stride=stride)
