"""The worked examples of the CS231n notes on ConvNets, recomputed where the notes' print is damaged."""

import math

import numpy as np
import pytest
from builder import Builder

import convserve
from convserve.errors import PatternError
from convserve.graph.assembly import no_parameters
from convserve.graph.ir import Graph, Volume
from convserve.graph.networks import network_graph
from convserve.graph.ops import infer_volumes
from convserve.graph.patterns import pattern_graph
from convserve.graph.receptive import receptive_fields
from convserve.graph.rewrites import rewrite
from convserve.plan.describe import Description, describe


def graph_of(text: str, fit: str = "error") -> Graph:
    return pattern_graph(text, no_parameters, fit=fit)


def volumes(text: str) -> list[str]:
    """Return the volumes of a pattern that must fit, the flattening before an FC left out."""
    graph = graph_of(text)
    found = infer_volumes(graph)
    return [str(found[graph.input_name]), *(str(found[node.output]) for node in graph.nodes if node.op != "Flatten")]


def described(text: str) -> Description:
    return describe(rewrite(graph_of(text), window=None))


def conv_model(weight: np.ndarray, bias: np.ndarray, size: int, **options: int) -> convserve.Model:
    """Return a model of one convolution; weight (filters, height, width, depth) as the notes index it."""
    build = Builder(Volume(weight.shape[3], size, size))
    build.conv(build.input, len(weight), weight.shape[1:3], **options)
    graph = build.graph("conv0")
    graph.nodes[0].params = {"weight": np.ascontiguousarray(weight.transpose(0, 3, 1, 2)), "bias": bias}
    return convserve.load(graph, fit="error", threads=1, cache=False)


# ---- sizes


def test_cifar_with_twelve_filters() -> None:
    text = "INPUT[32x32x3] -> CONV3-12 -> RELU -> POOL2 -> FC-10"
    assert volumes(text) == ["32x32x3", "32x32x12", "32x32x12", "16x16x12", "1x1x10"]


@pytest.mark.parametrize(
    ("size", "window", "stride", "pad", "found"),
    [(7, 3, 1, 0, 5), (7, 3, 2, 0, 3), (5, 3, 1, 1, 5), (5, 3, 2, 1, 3), (227, 11, 4, 0, 55), (11, 5, 2, 0, 4)],
)
def test_the_formula_says_how_many_neurons_fit(size: int, window: int, stride: int, pad: int, found: int) -> None:
    text = f"INPUT[{size}x{size}x3] -> CONV{window}-1 S{stride} P{pad}"
    assert volumes(text)[1] == f"{found}x{found}x1"


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("INPUT[10x10x3] -> CONV3-8 S2 P0", "(10 - 3 + 0)/2 + 1 = 4.5 is not whole; the nearest that fit are 9 and 11"),
        ("INPUT[5x5x3] -> CONV3-8 S3 P1", "(5 - 3 + 2)/3 + 1 = 2.33333 is not whole; the nearest that fit are 4 and 7"),
        (
            "INPUT[224x224x3] -> CONV11-96 S4 P0",
            "(224 - 11 + 0)/4 + 1 = 54.25 is not whole; the nearest that fit are 223 and 227",
        ),
    ],
)
def test_strides_that_do_not_fit_are_refused_while_designing(layer: str, said: str) -> None:
    with pytest.raises(PatternError) as refused:
        graph_of(layer)
    assert said in str(refused.value)


def test_the_first_layer_of_alexnet() -> None:
    [_, layer] = described("INPUT[227x227x3] -> CONV11-96 S4").layers
    assert str(layer.volume) == "55x55x96"
    assert (layer.values, layer.weights, layer.parameters) == (290_400, 34_848, 34_944)
    # im2col's matrix would be 363 x 3025
    assert (layer.weights // 96, layer.cells) == (363, 3025)


def test_without_sharing_the_first_layer_of_alexnet_has_105_million_parameters() -> None:
    [_, layer] = described("INPUT[227x227x3] -> LOCAL11-96 S4").layers
    assert str(layer.volume) == "55x55x96"
    assert layer.parameters == 290_400 * (11 * 11 * 3 + 1) == 105_705_600
    assert layer.weights == 290_400 * 363


def test_pooling_discards_three_quarters() -> None:
    [image, pool] = described("INPUT[224x224x64] -> POOL2").layers
    assert str(pool.volume) == "112x112x64"
    assert pool.values * 4 == image.values
    assert pool.parameters == 0


def test_padding_by_half_the_filter_keeps_the_size() -> None:
    for window in (1, 3, 5, 7, 9):
        assert volumes(f"INPUT[32x32x3] -> CONV{window}-4 P{(window - 1) // 2}") == volumes(
            f"INPUT[32x32x3] -> CONV{window}-4"
        )
        assert volumes(f"INPUT[32x32x3] -> CONV{window}-4")[1] == "32x32x4"


def test_three_layers_of_3x3_see_7x7_with_fewer_parameters() -> None:
    stack, single = described("INPUT[32x32x16] -> [CONV3-16 -> RELU]*3"), described("INPUT[32x32x16] -> CONV7-16")
    assert [layer.receptive_field[0] for layer in stack.layers] == [1, 3, 5, 7]
    assert single.layers[-1].receptive_field == (7, 7)
    assert (stack.weights, single.weights) == (27 * 16**2, 49 * 16**2)


def test_dilation_makes_the_receptive_field_grow_quicker() -> None:
    # the notes' dilation 0 is 1 everywhere else
    for text, field in (("[CONV3-4]*2", 5), ("CONV3-4 -> CONV3-4 D2", 7), ("[CONV3-4 D2]*2", 9)):
        graph = graph_of(f"INPUT[32x32x3] -> {text}")
        vertical, horizontal = receptive_fields(graph, infer_volumes(graph))[graph.nodes[-1].output]
        assert (vertical.size, horizontal.size) == (field, field)


def test_three_layers_of_64_filters_make_ten_million_activations() -> None:
    found = described("INPUT[224x224x3] -> [CONV3-64 -> RELU]*3")
    activations = found.values - 224 * 224 * 3
    assert activations == 3 * 224 * 224 * 64
    assert 9.6e6 < activations < 10e6


@pytest.mark.parametrize(
    ("text", "convolutions", "fully_connected"),
    [
        ("FC-10", 0, 1),
        ("CONV3-8 -> RELU -> FC-10", 1, 1),
        ("[CONV3-8 -> RELU -> POOL2]*2 -> FC-32 -> RELU -> FC-10", 2, 2),
        ("[CONV3-8 -> RELU -> CONV3-8 -> RELU -> POOL2]*3 -> [FC-32 -> RELU]*2 -> FC-10", 6, 3),
    ],
)
def test_the_common_architectures_are_networks(text: str, convolutions: int, fully_connected: int) -> None:
    model = convserve.build(f"INPUT[32x32x3] -> {text}", fit="error", threads=1, cache=False)
    assert np.asarray(model.run(np.zeros((2, 3, 32, 32), np.float32))).shape == (2, 10)
    ops = [node.op for node in graph_of(f"INPUT[32x32x3] -> {text}").nodes]
    assert (ops.count("Conv"), ops.count("Gemm")) == (convolutions, fully_connected)


# ---- sums


def test_the_conv_layer_example() -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(-4, 5, (11, 11, 4)).astype(np.float32)  # X[x, y, d]
    (w0, w1), (b0, b1) = rng.integers(-4, 5, (2, 5, 5, 4)).astype(np.float32), np.float32([3, -2])
    # x runs along the width, so that rows of the image are the second index
    model = conv_model(np.stack([w0, w1]).transpose(0, 2, 1, 3), np.array([b0, b1]), 11, strides=2)
    out = np.asarray(model.run(np.ascontiguousarray(volume.transpose(2, 1, 0))[None]))[0].transpose(2, 1, 0)
    assert out.shape == (4, 4, 2)
    assert out[0, 0, 0] == np.sum(volume[:5, :5, :] * w0) + b0
    assert out[1, 0, 0] == np.sum(volume[2:7, :5, :] * w0) + b0
    assert out[2, 0, 0] == np.sum(volume[4:9, :5, :] * w0) + b0
    assert out[3, 0, 0] == np.sum(volume[6:11, :5, :] * w0) + b0
    assert out[0, 0, 1] == np.sum(volume[:5, :5, :] * w1) + b1
    assert out[1, 0, 1] == np.sum(volume[2:7, :5, :] * w1) + b1
    assert out[2, 0, 1] == np.sum(volume[4:9, :5, :] * w1) + b1
    assert out[3, 0, 1] == np.sum(volume[6:11, :5, :] * w1) + b1
    assert out[0, 1, 1] == np.sum(volume[:5, 2:7, :] * w1) + b1
    assert out[2, 3, 1] == np.sum(volume[4:9, 6:11, :] * w1) + b1


DEMO_INPUT = np.array(
    [
        [[2, 0, 2, 1, 0], [2, 1, 0, 2, 0], [2, 1, 1, 0, 0], [0, 0, 2, 2, 0], [0, 1, 0, 2, 0]],
        [[1, 1, 0, 2, 0], [1, 2, 0, 1, 0], [2, 2, 2, 1, 1], [2, 1, 2, 2, 0], [0, 0, 1, 2, 0]],
        [[0, 1, 0, 1, 2], [0, 2, 1, 0, 2], [1, 2, 2, 0, 0], [1, 0, 0, 2, 1], [1, 0, 2, 0, 0]],
    ],
    np.float32,
)
DEMO_FILTERS = np.array(
    [
        [
            [[-1, 0, 1], [-1, 0, -1], [-1, -1, 1]],
            [[0, 1, 0], [0, 0, 0], [-1, 1, 1]],
            [[0, 0, 1], [0, 0, 0], [1, -1, -1]],
        ],
        [
            [[1, 1, 1], [1, 1, 0], [1, 0, -1]],
            [[-1, 0, 0], [0, 0, -1], [-1, 1, -1]],
            [[-1, 0, 0], [-1, 0, 1], [0, 1, -1]],
        ],
    ],
    np.float32,
)
DEMO_BIAS = np.array([1, 0], np.float32)
# the first two columns of each are legible in the print, and the same
DEMO_OUTPUT = [[[1, 1, -5], [6, 2, -4], [2, 4, -3]], [[-2, -3, 3], [7, -7, 2], [0, 2, 0]]]


def test_the_convolution_demo() -> None:
    model = conv_model(DEMO_FILTERS.transpose(0, 2, 3, 1), DEMO_BIAS, 5, strides=2, pads=1)
    out = np.asarray(model.run(DEMO_INPUT[None]))[0]
    assert out.shape == (2, 3, 3)
    padded = np.pad(DEMO_INPUT, ((0, 0), (1, 1), (1, 1)))
    for d, row, column in np.ndindex(2, 3, 3):
        seen = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        assert out[d, row, column] == np.sum(seen * DEMO_FILTERS[d]) + DEMO_BIAS[d]
    assert out.tolist() == DEMO_OUTPUT


def test_a_dilated_filter_skips_pixels() -> None:
    x, w = np.arange(1, 10, dtype=np.float32) ** 2, np.float32([2, -3, 5])
    row = np.zeros((1, 1, 9, 9), np.float32)
    row[0, 0, 0] = x
    for dilation in (1, 2):
        model = conv_model(w.reshape(1, 1, 3, 1), np.zeros(1, np.float32), 9, dilations=dilation)
        y = np.asarray(model.run(row))[0, 0, 0]
        assert y[0] == w[0] * x[0] + w[1] * x[dilation] + w[2] * x[2 * dilation]


# ---- fully-connected layers as convolutions


def test_a_fully_connected_layer_is_a_convolution() -> None:
    graph = rewrite(graph_of("INPUT[7x7x512] -> FC-4096 -> FC-4096 -> FC-1000"), window=None)
    attrs = [(node.op, node.attrs["kernel_shape"], node.attrs["strides"], node.attrs["pads"]) for node in graph.nodes]
    assert attrs == [("Conv", (size, size), (1, 1), (0, 0, 0, 0)) for size in (7, 1, 1)]
    sizes = [str(infer_volumes(graph)[node.output]) for node in graph.nodes]
    assert sizes == ["1x1x4096", "1x1x4096", "1x1x1000"]


def test_384_pixels_give_6x6_scores() -> None:
    graph = rewrite(network_graph("vgg16", no_parameters), window=None)
    found = infer_volumes(graph, 384, 384)
    assert str(found["features.30"]) == "12x12x512"
    assert str(found[graph.outputs[0].tensor]) == "6x6x1000"
    fields = receptive_fields(graph, found)[graph.outputs[0].tensor]
    assert (fields[0].jump, fields[1].jump) == (32, 32)


@pytest.mark.parametrize("stride", [None, 2])
def test_one_pass_gives_what_every_crop_gives(stride: int | None) -> None:
    # without padding, as the notes' sentence on crops needs; 16 pixels over 32 are here 2 over 4, in four passes
    text = "INPUT[22x22x3] -> [CONV3-8 P0 -> RELU -> POOL2]*2 -> [FC-16 -> RELU]*1 -> FC-5"
    model = convserve.build(text, fit="error", threads=1, cache=False)
    image = np.random.default_rng(0).standard_normal((1, 3, 42, 42)).astype(np.float32)
    found = model.score_map(image, stride=stride)
    assert found.scores.shape == (6, 6, 5) if stride is None else (11, 11, 5)
    assert found.exactness == "exact"
    step = stride or 4
    for row, column in np.ndindex(*found.scores.shape[:2]):
        top, left = row * step, column * step
        crop = np.ascontiguousarray(image[:, :, top : top + 22, left : left + 22])
        np.testing.assert_array_equal(found.scores[row, column], np.asarray(model.run(crop))[0])


def test_the_volumes_of_a_network_sum_to_its_activations() -> None:
    for name in ("lenet", "alexnet", "resnet18"):
        found = describe(rewrite(network_graph(name, no_parameters), window=None))
        assert found.values == sum(layer.values for layer in found.layers)
        assert found.activation_bytes == 4 * sum(math.prod(layer.to_dict()["volume"]) for layer in found.layers)
