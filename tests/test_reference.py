"""The oracles themselves: against ONNX Runtime on random cases, and against numbers worked out by hand in the notes."""

import numpy as np
import pytest
from builder import Builder, no_memory, vgg16
from error_bounds import evaluate_with_bounds
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx_writer import runtime_outputs
from reference import ORACLES, crops, evaluate, evaluate_outputs
from strategies import graphs, image, op_graphs, seeds

from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import OPS, infer_volumes

FEW = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def assert_close(got: np.ndarray, oracle: np.ndarray, bound: np.ndarray, *, tolerance: float = 2e-5) -> None:
    """Compare within a share of the largest value, and what float32 may err where rounding is magnified."""
    assert got.shape == oracle.shape
    largest = max(np.abs(oracle[np.isfinite(oracle)]).max(initial=0.0), 1.0)
    within = np.abs(got - oracle) <= 4 * bound
    np.testing.assert_allclose(np.where(within, oracle, got), oracle, rtol=0, atol=tolerance * largest)


def runtime_can(graph: Graph) -> bool:
    """Whether ONNX and ONNX Runtime have everything in the graph: odd LRN sizes only, and no Flatten that slides.

    Their shape inference keeps a last window that ceil_mode lets begin behind the input, their operators drop
    it, and readers of such a pool then fail.
    """
    volumes = infer_volumes(graph)
    for node in graph.nodes:
        out = volumes[node.output]
        if node.attrs.get("ceil_mode") and node is not graph.nodes[-1]:
            x = volumes[node.inputs[0]]
            for axis, (size, count) in enumerate(((x.height, out.height), (x.width, out.width))):
                stride, pads = node.attrs["strides"][axis], node.attrs["pads"]
                extent = node.attrs["dilations"][axis] * (node.attrs["kernel_shape"][axis] - 1) + 1
                if -(-(size + pads[axis] + pads[axis + 2] - extent) // stride) + 1 > count:
                    return False
        if node.op == "LRN" and node.attrs["size"] % 2 == 0:
            return False
        if not moves_as_runtime(node, volumes[node.inputs[0]]):
            return False
        if node.op == "Flatten" and (out.height, out.width) != (1, 1):
            return False
    return True


def moves_as_runtime(node: Node, x: Volume) -> bool:
    """Whether ONNX Runtime has a move as ONNX describes it; where it does not, ONNX's own cases hold our oracle.

    It computes coordinates in float32, which tells at ties, rounds the output's length before it aligns corners, and
    has antialiasing of its own.
    """
    attrs = node.attrs
    if node.op in ("DepthToSpace", "SpaceToDepth"):
        down, across = attrs["blocksize"]
        whole = x.height % down == 0 and x.width % across == 0
        return down == across and (node.op == "DepthToSpace" or (whole and attrs["mode"] == "DCR"))
    if node.op == "ConvTranspose":
        return all(p < s for p, s in zip(attrs["output_padding"], attrs["strides"], strict=True))
    if node.op == "Pad":
        return min(attrs["pads"]) >= 0
    if node.op == "Resize":
        plain = attrs["coordinate_transformation_mode"] in ("half_pixel", "pytorch_half_pixel", "asymmetric")
        dyadic = all(scale and scale * 4 == int(scale * 4) for scale in attrs["scales"])
        return plain and dyadic and not attrs["antialias"] and not attrs["exclude_outside"]
    return True


def test_every_op_has_an_oracle():
    assert set(ORACLES) == set(OPS)


@pytest.mark.parametrize("op", sorted(OPS.keys() - {"LocallyConnected"}))  # which ONNX has not
@FEW
@given(data=st.data())
def test_op_agrees_with_onnx_runtime(op, data):
    graph = data.draw(op_graphs(op, max_channels=12, max_size=10))
    assume(runtime_can(graph))
    x = image(graph, batch=data.draw(st.integers(1, 3)), seed=data.draw(seeds))
    tensors = evaluate_with_bounds(graph, x)
    for got, output in zip(runtime_outputs(graph, x), graph.outputs, strict=True):
        oracle, bound = tensors[output.tensor]
        assert_close(got, oracle, bound)


@FEW
@given(graph=graphs(), seed=seeds)
def test_network_agrees_with_onnx_runtime(graph, seed):
    assume(runtime_can(graph))
    x = image(graph, batch=2, seed=seed)
    tensors = evaluate_with_bounds(graph, x)
    for got, output in zip(runtime_outputs(graph, x), graph.outputs, strict=True):
        oracle, bound = tensors[output.tensor]
        assert_close(got, oracle, bound, tolerance=1e-4)


@FEW
@given(graph=graphs(), seed=seeds)
def test_volumes_are_what_the_oracle_gives(graph, seed):
    volumes = infer_volumes(graph)
    for tensor, y in evaluate(graph, image(graph, seed=seed)).items():
        assert y.shape == (1, volumes[tensor].channels, volumes[tensor].height, volumes[tensor].width)


@FEW
@given(graph=graphs(padded=False, slides=True, min_size=6, max_size=14), seed=seeds)
def test_unpadded_network_shows_one_position(graph, seed):
    (y,) = evaluate_outputs(graph, image(graph, seed=seed)).values()
    assert y.shape[2:] == (1, 1)


def conv_case(weight: list, x: list, **options) -> np.ndarray:
    """Return the convolution of a one-dimensional signal along the width."""
    build = Builder(Volume(1, 1, len(x)))
    y = build.conv(build.input, 1, (1, len(weight)), **options)
    build.nodes[0].params = {
        "weight": np.array(weight, dtype=np.float32)[None, None, None],
        "bias": np.zeros(1, dtype=np.float32),
    }
    return evaluate(build.graph(y), np.array(x)[None, None, None])[y][0, 0, 0]


def test_notes_spatial_arrangement():
    # The notes' one-dimensional neuron: input of width 5, weights [1, 0, -1], zero padding 1, strides 1 and 2.
    x = [1, 2, -1, 1, -3]
    assert conv_case([1, 0, -1], x, pads=(0, 1, 0, 1)).tolist() == [-2, 2, 1, 2, 1]
    assert conv_case([1, 0, -1], x, pads=(0, 1, 0, 1), strides=(1, 2)).tolist() == [-2, 1, 1]


def test_notes_dilation():
    # "For dilation 1 the filter would instead compute w[0]*x[0] + w[1]*x[2] + w[2]*x[4]": ONNX calls that dilation 2.
    assert conv_case([2, 3, 5], [1, 10, 100, 1000, 10000], dilations=(1, 2)).tolist() == [2 + 300 + 50000]


def test_notes_max_pooling():
    slice_ = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]], dtype=float)
    build = Builder(Volume(1, 4, 4))
    y = build.pool("MaxPool", build.input, 2, strides=2)
    assert evaluate(build.graph(y), slice_[None, None])[y][0, 0].tolist() == [[6, 8], [3, 4]]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "count"),
    [(227, 11, 4, 0, 55), (7, 3, 1, 0, 5), (7, 3, 2, 0, 3), (5, 3, 2, 1, 3), (5, 3, 1, 1, 5), (224, 2, 2, 0, 112)],
)
def test_notes_volume_sizes(size, kernel, stride, pad, count):
    build = Builder(Volume(3, size, size), draw=no_memory)
    y = build.conv(build.input, 96, kernel, strides=stride, pads=pad)
    assert build.volumes[y] == Volume(96, count, count)


def test_alexnet_first_layer_parameters_of_the_notes():
    build = Builder(Volume(3, 227, 227), draw=no_memory)
    build.conv(build.input, 96, 11, strides=4)
    assert build.nodes[0].params["weight"].size == 34_848
    assert build.nodes[0].params["bias"].size == 96
    out = build.volumes["conv0"]
    assert out.values == 290_400


def test_vgg16_sums_by_arithmetic():
    graph = vgg16()
    volumes = infer_volumes(graph)
    shown = [graph.input_name] + [node.output for node in graph.nodes if node.op in ("Conv", "MaxPool", "Gemm")]
    assert round(sum(volumes[tensor].values for tensor in shown) / 1e6, 1) == 15.2
    sizes = [node.params["weight"].size for node in graph.nodes if node.op == "Conv"]
    assert sizes[:9] == [1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648, 2_359_296]
    assert sum(array.size for node in graph.nodes for array in node.params.values()) == 138_357_544


def test_notes_384_image_gives_six_by_six():
    graph = vgg16()
    convolved = [node for node in graph.nodes if node.op in ("Conv", "MaxPool")]
    pool5 = convolved[-1].output
    assert infer_volumes(Graph("", "x", graph.input_volume, convolved, graph.outputs), 384, 384)[pool5].height == 12
    assert infer_volumes(graph, 384, 384)[graph.nodes[-1].output] == Volume(1000, 6, 6)


def test_im2col_sizes_of_the_notes():
    # 55*55 receptive fields of 11*11*3 values.
    x = np.zeros((3, 227, 227))
    fields = crops(x, (11, 11), 4)
    assert fields.shape == (55, 55, 3, 11, 11)
    assert fields[0, 0].size == 363


def average(x: np.ndarray, **options) -> np.ndarray:
    build = Builder(Volume(1, *x.shape))
    y = build.pool("AveragePool", build.input, (1, 3), **options)
    return evaluate(build.graph(y), x[None, None])[y][0, 0, 0]


def test_average_pool_divisors():
    x = np.array([[3.0, 6.0, 9.0, 12.0]])
    pads = (0, 1, 0, 1)
    assert average(x, pads=pads).tolist() == [4.5, 6, 9, 10.5]
    assert average(x, pads=pads, count_include_pad=True).tolist() == [3, 6, 9, 7]
    # Windows begin at -1, 1 and (ceil_mode) 3; the last sees the value 12, a padding zero and one tap behind it.
    assert average(x, pads=pads, strides=(1, 2), ceil_mode=True).tolist() == [4.5, 9, 12]
    assert average(x, pads=pads, strides=(1, 2), ceil_mode=True, count_include_pad=True).tolist() == [3, 9, 6]


def test_lrn_windows_of_even_size_reach_one_further_up():
    build = Builder(Volume(4, 1, 1))
    y = build.lrn(build.input, 2, alpha=2.0, beta=1.0, bias=0.0)
    x = np.array([1.0, 2.0, 3.0, 4.0])
    got = evaluate(build.graph(y), x[None, :, None, None])[y].ravel()
    np.testing.assert_allclose(got, [1 / 5, 2 / 13, 3 / 25, 4 / 16])


@FEW
@given(data=st.data(), op=st.sampled_from(sorted(OPS)))
def test_nan_comes_out_where_it_is_read(data, op):
    """Each output that changes when one input value changes is NaN when that value is."""
    graph = data.draw(op_graphs(op, max_channels=6, max_size=7))
    x = image(graph, seed=data.draw(seeds)).astype(np.float64)
    where = tuple(data.draw(st.integers(0, size - 1)) for size in x.shape)
    y = graph.outputs[0].tensor
    before = evaluate(graph, x)[y]
    changed, poisoned = x.copy(), x.copy()
    changed[where] += 1e3
    poisoned[where] = np.nan
    after = evaluate(graph, poisoned)[y]
    moved = np.abs(evaluate(graph, changed)[y] - before) > 0
    assert np.isnan(after[moved]).all()


def test_crops_are_views_of_every_whole_window():
    x = np.arange(2 * 7 * 9, dtype=np.float32).reshape(1, 2, 7, 9)
    seen = crops(x, (3, 4), (2, 3))
    assert seen.shape == (3, 2, 2, 3, 4)
    assert np.shares_memory(seen, x)
    for i in range(3):
        for j in range(2):
            assert np.array_equal(seen[i, j], x[0, :, 2 * i : 2 * i + 3, 3 * j : 3 * j + 4])


def test_outputs_take_their_declared_shape():
    build = Builder(Volume(3, 4, 5))
    graph = build.graph(build.gemm(build.flatten(build.input), 6))
    graph.outputs = [type(graph.outputs[0])("scores", graph.outputs[0].tensor, (6,))]
    assert evaluate_outputs(graph, image(graph, batch=2))["scores"].shape == (2, 6)
