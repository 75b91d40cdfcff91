"""Weights stored as float16 and bfloat16: rounded once, widened exactly, and computed with as if they were float32."""

from pathlib import Path

import numpy as np
import pytest
from builder import Builder
from container_files import every_operation
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from runs import ISAS, run_engine, same_bits, settings
from safetensors import safe_open
from strategies import image, op_graphs, seeds
from test_winograd import images, three_layers

import convserve
from convserve.engine.engine import Engine
from convserve.errors import InputError, ModelError
from convserve.formats.container import read_container
from convserve.formats.container_writer import hold_container, write_container
from convserve.formats.packing import Packing, pack_graph, unpack_graph
from convserve.formats.storage import WEIGHT_TYPES, narrowed, rounding_error, stored_type, weights_of, widened
from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.graph.rewrites import rewrite
from convserve.plan.layout import Layout

HALVES = ("fp16", "bf16")
PATTERNS = np.arange(1 << 16, dtype=np.uint16)
FEW = hypothesis_settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


def stored_as(graph: Graph, weights: str) -> Graph:
    """Return a graph packed with its weights stored so, in memory of its own."""
    return hold_container(graph, packing=Packing(weights=weights)).graph


def all_values(weights: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all 65536 stored values, and the float32 that each stands for."""
    if weights == "fp16":
        return PATTERNS.view(np.float16), PATTERNS.view(np.float16).astype(np.float32)
    sign, exponent, fraction = PATTERNS >> 15, (PATTERNS >> 7 & 255).astype(int), (PATTERNS & 127).astype(float)
    with np.errstate(over="ignore", invalid="ignore"):
        normal = np.ldexp(1 + fraction / 128, exponent - 127)
        size = np.where(exponent == 0, np.ldexp(fraction / 128, -126), normal)
        size[exponent == 255] = np.where(fraction[exponent == 255] > 0, np.nan, np.inf)
        return PATTERNS, np.where(sign == 1, -size, size).astype(np.float32)


def rounded(weight: np.ndarray, weights: str) -> np.ndarray:
    """Return float32 values rounded to a stored type, found among all of its values."""
    if weights == "fp16":
        return weight.astype(np.float16).astype(np.float32)
    known = all_values("bf16")[1].astype(np.float64)
    finite = np.unique(known[np.isfinite(known)])
    above = np.clip(np.searchsorted(finite, weight), 1, len(finite) - 1)
    low, high = finite[above - 1], finite[above]
    # the even one of two neighbours has a fraction of an even number of 128ths
    even_high = np.abs(high).astype(np.float32).view(np.uint32) >> 16 & 1 == 0
    middle = (low + high) / 2
    return np.where((weight > middle) | ((weight == middle) & even_high), high, low).astype(np.float32)


def test_rounding_is_to_nearest_with_ties_to_even() -> None:
    random = np.random.default_rng(0)
    spread = random.standard_normal(20_000) * 10.0 ** random.integers(-30, 30, 20_000)
    # ties, and their neighbours on both sides
    ties = (all_values("bf16")[0][:0x7F00].astype(np.uint32) << 16 | 0x8000).view(np.float32)
    values = np.concatenate([spread.astype(np.float32), ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf)])
    values = np.concatenate([values, -values]).astype(np.float32)
    assert np.array_equal(widened(narrowed(values, "bf16")), rounded(values, "bf16"))
    small = values[np.abs(values) < 65000]
    assert np.array_equal(widened(narrowed(small, "fp16")), rounded(small, "fp16"))
    assert narrowed(values, "bf16").ctypes.data % 64 == 0


@pytest.mark.parametrize("weights", HALVES)
def test_every_stored_value_is_kept_by_widening_and_rounding_again(weights: str) -> None:
    stored, values = all_values(weights)
    assert np.array_equal(widened(stored), values, equal_nan=True)
    again = narrowed(values, weights)
    assert stored_type(again) == weights
    assert np.array_equal(again.view(np.uint16)[~np.isnan(values)], PATTERNS[~np.isnan(values)])
    assert np.isnan(widened(again)[np.isnan(values)]).all()


@pytest.mark.parametrize("pixels", [1, 5])
@pytest.mark.parametrize("weights", HALVES)
@pytest.mark.parametrize("isa", ISAS)
def test_kernels_widen_every_stored_value_exactly(isa: str, weights: str, pixels: int) -> None:
    build = Builder(Volume(1, 1, pixels))
    graph = pack_graph(build.graph(build.conv(build.input, 1 << 16, 1)))
    stored, values = all_values(weights)
    params = graph.nodes[0].params
    params["panels"], params["bias_panels"] = stored.reshape(1, -1, 1, 16), np.zeros((1, 1 << 16), np.float32)
    with settings(ISA=isa):
        y = run_engine(Engine(graph, threads=1), np.ones((1, 1, 1, pixels), np.float32))[0]
    # denormals are zeros while the engine computes
    expected = np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values)
    for pixel in range(pixels):
        assert np.array_equal(y[0, :, 0, pixel], expected, equal_nan=True)


def with_rounded(graph: Graph, weights: str) -> Graph:
    """Return the graph with the weights rounded that are stored as panels: all but those of depthwise layers."""
    nodes = []
    for node in pack_graph(graph).nodes:
        if "panels" in node.params:
            params = {**node.params, "panels": rounded(node.params["panels"], weights)}
            node = node.changed(params=params)
        nodes.append(node)
    return unpack_graph(Graph(graph.name, graph.input_name, graph.input_volume, nodes, graph.outputs))


@pytest.mark.parametrize("weights", HALVES)
@pytest.mark.parametrize("isa", ISAS)
@FEW
@given(data=st.data())
def test_a_convolution_has_the_bits_of_rounded_float32_weights(isa: str, weights: str, data: st.DataObject) -> None:
    graph = data.draw(op_graphs("Conv"))
    x = image(graph, batch=data.draw(st.integers(1, 3)), seed=data.draw(seeds))
    threads = data.draw(st.integers(1, 2))
    with settings(ISA=isa, POISON=1):
        stored = run_engine(Engine(stored_as(graph, weights), threads=threads), x)
        exact = run_engine(Engine(pack_graph(with_rounded(graph, weights)), threads=1), x)
    assert same_bits(stored, exact)


def fully_connected(inputs: int = 300, outputs: int = 150) -> Graph:
    build = Builder(Volume(inputs, 1, 1), seed=5)
    return rewrite(build.graph(build.gemm(build.gemm(build.input, outputs), 37)), window=None)


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 32, 33, 48, 49, 64, 65, 128, 129])
@pytest.mark.parametrize("isa", ISAS)
def test_one_image_has_its_bits_of_any_batch_and_threads(isa: str, outputs: int, weights: str) -> None:
    graph = stored_as(fully_connected(outputs=outputs), weights)
    x = image(graph, batch=9, seed=1)
    with settings(ISA=isa):
        all_at_once = run_engine(Engine(graph, threads=2), x)[0]
        for threads in (1, 2, 3):
            engine = Engine(graph, threads=threads)
            assert np.array_equal(run_engine(engine, x[:1])[0], all_at_once[:1])
            assert np.array_equal(run_engine(engine, x[3:5])[0], all_at_once[3:5])


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(ISAS), reason="this machine has not both AVX2 and AVX-512")
@pytest.mark.parametrize("weights", HALVES)
def test_avx2_and_avx512_agree_bit_for_bit(weights: str) -> None:
    for graph, x in ((three_layers(17, 23, 80), None), (fully_connected(), None), (every_operation(), None)):
        x = image(graph, batch=2, seed=8)
        found = []
        for isa in ("avx2", "avx512"):
            with settings(ISA=isa):
                model = convserve.load(graph, weights=weights)
                found.append(run_engine(Engine(model.graph, threads=2), x))
        assert same_bits(*found)


@pytest.mark.parametrize("weights", HALVES)
@pytest.mark.parametrize("isa", ISAS)
def test_a_network_with_winograd_layers_has_the_bits_of_rounded_weights(isa: str, weights: str) -> None:
    graph = three_layers(17, 23, 80)
    x = images(graph, 2)
    with settings(ISA=isa):
        model = convserve.load(graph, weights=weights)
        assert model.algorithm == "winograd"
        assert all(node.params["winograd_panels"].dtype == np.float32 for node in model.graph.nodes)
        y = model.run(x)
        assert np.array_equal(y, convserve.load(with_rounded(graph, weights)).run(x))
        for band_rows in (1, 3, 8):
            again = run_engine(Engine(model.graph, threads=2), x[:1], layout=Layout((), band_rows))[0]
            assert np.array_equal(again, y[:1])
        by_gemm = convserve.load(graph, weights=weights, algorithm="gemm").run(x)
        assert np.array_equal(by_gemm, convserve.load(with_rounded(graph, weights), algorithm="gemm").run(x))


@pytest.mark.parametrize("weights", HALVES)
def test_a_container_keeps_what_was_stored(tmp_path: Path, weights: str) -> None:
    model = convserve.load(every_operation(), weights=weights)
    path = tmp_path / "net.convserve"
    write_container(path, model.graph)
    read = read_container(path)
    assert weights_of(read.graph) == weights
    for node, other in zip(model.graph.nodes, read.graph.nodes, strict=True):
        for name, array in node.params.items():
            mapped = other.params[name]
            assert mapped.dtype == array.dtype
            assert array.dtype == np.float32 or name == "panels"
            assert np.array_equal(mapped, array)
            assert not mapped.flags.owndata
            assert mapped.ctypes.data % 64 == 0
    mapped_model = convserve.load(path)
    x = image(model.graph, batch=2, seed=2)
    expected, found = model.run(x), mapped_model.run(x)
    assert isinstance(expected, dict)
    assert isinstance(found, dict)
    assert same_bits(list(expected.values()), list(found.values()))
    with safe_open(path, framework="numpy") as opened:
        assert opened.metadata()["format_version"] == "2"


def test_a_container_of_float32_stays_readable_by_older_versions(tmp_path: Path) -> None:
    write_container(tmp_path / "net.convserve", every_operation())
    with safe_open(tmp_path / "net.convserve", framework="numpy") as opened:
        assert opened.metadata()["format_version"] == "1"


def test_the_same_half_graph_gives_the_same_bytes_and_half_of_them(tmp_path: Path) -> None:
    graph = pack_graph(fully_connected(inputs=3000))
    sizes = {}
    for weights in WEIGHT_TYPES:
        contents = set()
        for name in "ab":
            write_container(tmp_path / name, stored_as(graph, weights))
            contents.add((tmp_path / name).read_bytes())
        assert len(contents) == 1
        sizes[weights] = len(contents.pop())
    assert sizes["fp16"] == sizes["bf16"] < 0.52 * sizes["fp32"]


def test_plans_and_descriptions_count_what_is_stored() -> None:
    graph = fully_connected()
    exact, half = (convserve.load(graph, weights=weights) for weights in (None, "bf16"))
    stored = sum(node.params["panels"].nbytes for node in exact.graph.nodes)
    assert exact.plan(1, 1).weight_bytes - half.plan(1, 1).weight_bytes == stored // 2
    described = half.describe()
    assert (described.weight_type, described.weight_bytes) == ("bf16", half.plan(1, 1).weight_bytes)
    assert described.parameters == exact.describe().parameters
    assert "weights as packed: bf16, " in described.table()
    half.graph.nodes[0].params["panels"] = exact.graph.nodes[0].params["panels"]
    assert weights_of(half.graph) == "mixed"


def test_a_container_is_loaded_in_another_type_on_request(tmp_path: Path) -> None:
    graph = three_layers(16, 16, 64)
    x = images(graph, 1)
    path = tmp_path / "net.convserve"
    write_container(path, convserve.load(graph).graph)
    assert np.array_equal(convserve.load(path, weights="fp16").run(x), convserve.load(graph, weights="fp16").run(x))
    write_container(path, convserve.load(graph, weights="fp16").graph)
    wide = convserve.load(path, weights="fp32")
    assert weights_of(wide.graph) == "fp32"
    assert np.array_equal(wide.run(x), convserve.load(path).run(x))


def one_weight(value: float) -> Graph:
    weight = np.array([[[[0.5]], [[value]]]], np.float32)
    attrs = {"kernel_shape": (1, 1), "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1}
    attrs |= {"auto_pad": "NOTSET", "activation": ""}
    node = Node("Conv", "large", ("x",), "y", attrs, {"weight": weight, "bias": np.zeros(1, np.float32)})
    return Graph("one", "x", Volume(2, 1, 1), [node], [Output("y", "y")])


@pytest.mark.parametrize(
    ("value", "weights", "message"),
    [
        (65520.0, "fp16", r"large.* has the weight 65520, too large for fp16; bf16 can hold it"),
        (-1e30, "fp16", r"has the weight -1e\+30, too large for fp16; bf16 can hold it"),
        (3.4e38, "bf16", r"has the weight 3\.4e\+38, too large for bf16; fp32 can hold it"),
    ],
)
def test_a_weight_beyond_the_type_is_refused(value: float, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        convserve.load(one_weight(value), weights=weights)


@pytest.mark.parametrize("value", [65519.0, np.inf, -np.inf, np.nan])
def test_the_largest_weight_and_those_that_are_no_numbers_are_kept(value: float) -> None:
    y = convserve.load(one_weight(value), weights="fp16").run(np.ones((1, 2, 1, 1), np.float32))
    assert isinstance(y, np.ndarray)
    assert np.array_equal(y.ravel(), [np.float32(0.5) + np.float32(np.float16(value))], equal_nan=True)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(InputError, match=r"weights is 'int8'; allowed: fp32, fp16, bf16"):
        convserve.load(fully_connected(), weights="int8")


@pytest.mark.parametrize("weights", HALVES)
def test_the_rounding_error_is_that_of_all_weights(weights: str) -> None:
    graph = pack_graph(fully_connected())
    stored = stored_as(graph, weights)
    before = np.concatenate([node.params["weight"].ravel() for node in fully_connected().nodes]).astype(np.float64)
    difference = rounded(before.astype(np.float32), weights) - before
    largest, relative = rounding_error(graph.nodes, stored.nodes)
    assert largest == np.abs(difference).max() > 0
    assert relative == pytest.approx(np.sqrt((difference**2).sum() / (before**2).sum()))
    assert rounding_error(graph.nodes, graph.nodes) == (0, 0)
