"""Descriptions of networks: the notes' VGG table with its sums put right, receptive fields, and who sees padding."""

import json

import numpy as np
import pytest
from builder import Builder, no_memory, vgg16
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network

from convserve.errors import ModelError
from convserve.formats.packing import pack_graph
from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import infer_volumes
from convserve.graph.receptive import clean_intervals
from convserve.graph.rewrites import rewrite
from convserve.loading import load
from convserve.plan.describe import Description, LayerDescription, describe
from convserve.plan.plan import make_plan

# The CONV and FC weights of the notes' VGG table, where its products were worked out wrongly put right.
VGG_WEIGHTS = [
    *(1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824),
    *(1_179_648, 2_359_296, 2_359_296, 2_359_296, 2_359_296, 2_359_296),
    *(102_760_448, 16_777_216, 4_096_000),
]


def alexnet() -> Graph:
    """AlexNet as the notes describe it: 227x227, 11x11 stride 4, overlapping pools without padding."""
    build = Builder(Volume(3, 227, 227), draw=no_memory, name="alexnet")
    x = build.conv(build.input, 96, 11, strides=4, activation="relu")
    x = build.pool("MaxPool", build.lrn(x, 5), 3, strides=2)
    x = build.conv(x, 256, 5, pads=2, group=2, activation="relu")
    x = build.pool("MaxPool", build.lrn(x, 5), 3, strides=2)
    x = build.conv(x, 384, 3, pads=1, activation="relu")
    x = build.conv(x, 384, 3, pads=1, group=2, activation="relu")
    x = build.conv(x, 256, 3, pads=1, group=2, activation="relu")
    x = build.pool("MaxPool", x, 3, strides=2)
    x = build.simple("Relu", build.gemm(build.flatten(x), 4096))
    x = build.simple("Relu", build.gemm(x, 4096))
    return rewrite(build.graph(build.gemm(x, 1000)), window=None)


def layers_of(description: Description, op: str) -> list[LayerDescription]:
    return [layer for layer in description.layers if layer.op.split()[0] == op]


@pytest.fixture(scope="module")
def vgg() -> Description:
    return describe(network("vgg16"))


def test_vggs_sums_are_those_of_the_arithmetic(vgg: Description) -> None:
    # the softmax has a volume of its own; the notes count up to the class scores
    assert vgg.values - 1000 == 15_237_608
    assert round(vgg.activation_bytes / 2**20) == 58
    assert vgg.parameters == 138_357_544
    assert vgg.weights == sum(VGG_WEIGHTS)
    assert vgg.flops / 1e9 == pytest.approx(30.95, abs=0.02)
    assert (vgg.shown.stride, vgg.shown.receptive_field, vgg.window) == ((32, 32), (404, 404), (224, 224))


def test_vggs_layers_are_those_of_the_notes(vgg: Description) -> None:
    weighted = layers_of(vgg, "Conv")
    assert [layer.weights for layer in weighted] == VGG_WEIGHTS
    assert [layer.parameters - layer.weights for layer in weighted] == [layer.volume.channels for layer in weighted]
    pools = layers_of(vgg, "MaxPool")
    assert [str(pool.volume) for pool in pools] == ["112x112x64", "56x56x128", "28x28x256", "14x14x512", "7x7x512"]
    assert [pool.receptive_field[0] for pool in pools] == [6, 16, 44, 100, 212]
    assert [pool.offset[1] for pool in pools] == [-2, -6, -18, -42, -90]
    assert vgg.layers[0].op == "input"
    assert vgg.layers[0].values == 224 * 224 * 3


def test_one_of_the_49_cells_of_vggs_pool5_sees_no_padding(vgg: Description) -> None:
    pool5 = layers_of(vgg, "MaxPool")[-1]
    assert (pool5.clean_cells, pool5.cells, pool5.padded, pool5.exactness) == (1, 49, (3, 3, 3, 3), "padded")
    assert vgg.shown.clean_cells == 0
    assert (vgg.exactness, vgg.padded_by) == ("padded", "conv0")


def test_four_of_the_36_cells_of_alexnets_pool5_see_no_padding() -> None:
    description = describe(alexnet())
    pool5 = layers_of(description, "MaxPool")[-1]
    assert (str(pool5.volume), pool5.clean_cells, pool5.cells) == ("6x6x256", 4, 36)
    assert (pool5.receptive_field, pool5.stride, pool5.offset) == ((195, 195), (32, 32), (-64, -64))
    assert description.parameters == 60_965_224
    assert description.layers[1].exactness == "exact"
    assert description.padded_by == "conv3"


def test_a_network_without_padding_is_exact() -> None:
    description = describe(network("lenet"))
    assert description.parameters == 431_080
    assert (description.exactness, description.padded_by, description.stuck_at) == ("exact", "", "")
    assert all(layer.clean_cells == layer.cells for layer in description.layers)
    assert description.shown.receptive_field == description.window == (28, 28)
    assert description.shown.stride == (4, 4)


def test_squeezenets_joined_volumes_are_counted_once() -> None:
    graph = network("squeezenet")
    description = describe(graph)
    joined = layers_of(description, "Concat")
    assert len(joined) == 8
    assert all(layer.values == 0 for layer in joined)
    held = f"{description.activation_bytes / 2**20:.2f} MiB for all activations at once"
    assert held in make_plan(graph, 224, 224).table()
    assert description.parameters == 1_235_496
    # the joined branches of a fire module see 1x1 and 3x3: the join sees what either sees
    assert joined[0].receptive_field == (15, 15)
    assert joined[0].offset == (-4, -4)


def test_what_a_padded_maximum_leaves_out_counts_as_padding() -> None:
    build = Builder(Volume(1, 8, 9))
    pooled = build.pool("MaxPool", build.input, 2, strides=2, ceil_mode=True)
    layer = describe(build.graph(pooled)).shown
    # 9 columns in windows of 2: the fifth window has one column only
    assert str(layer.volume) == "4x5x1"
    assert layer.padded == (0, 0, 0, 1)
    assert (layer.clean_cells, layer.cells) == (16, 20)


def test_dilation_and_two_axes() -> None:
    build = Builder(Volume(2, 30, 40))
    x = build.conv(build.input, 4, (3, 5), strides=(1, 2), dilations=(2, 1), pads=(2, 0, 0, 1))
    layer = describe(build.graph(build.conv(x, 4, 3, strides=2))).shown
    assert (layer.receptive_field, layer.stride, layer.offset) == ((7, 9), (2, 4), (-2, 0))
    # input rows 28 = 30 + 2 - 4, the first 2 see padding: of 13 rows one; columns 19, the last sees padding: of 9 one
    assert (str(layer.volume), layer.padded) == ("13x9x4", (1, 0, 0, 1))


def test_packing_changes_no_number() -> None:
    build = Builder(Volume(3, 20, 20))
    x = build.conv(build.input, 9, 3, pads=1, activation="relu")
    x = build.affine(build.conv(x, 9, 3, group=9))
    graph = rewrite(build.graph(build.conv(x, 7, 1)), window=None)
    plain, packed = describe(graph), describe(pack_graph(graph))
    # bytes are those of the form that is there, panels with the zeros behind their last channel
    assert plain.to_dict() | {"weight_bytes": 0} == packed.to_dict() | {"weight_bytes": 0}
    assert plain.weight_bytes == 4 * plain.parameters < packed.weight_bytes
    assert plain.parameters == sum(array.size for node in graph.nodes for array in node.params.values())
    assert plain.weights == 9 * 3 * 9 + 9 * 9 + 7 * 9


def test_what_reads_the_whole_image_cannot_slide() -> None:
    build = Builder(Volume(4, 6, 6))
    squeezed = build.conv(build.pool("AveragePool", build.input, 6), 4, 1, activation="relu")
    description = describe(build.graph(build.join("Mul", build.input, squeezed)))
    assert description.stuck_at == "mul2"
    assert "'mul2'" in str(description)
    assert description.exactness == "exact"
    assert description.shown.receptive_field == (6, 6)


def test_a_table_has_one_line_a_layer_and_ends_in_totals(vgg: Description) -> None:
    lines = str(vgg).splitlines()
    assert lines[0].split()[:3] == ["layer", "operation", "volume"]
    rows = lines[1 : 1 + len(vgg.layers)]
    assert len({len(line) for line in (lines[0], *rows)}) == 1
    assert any("7x7x512" in row and row.endswith(" 1 of 49") for row in rows)
    text = "\n".join(lines[1 + len(vgg.layers) :])
    for part in ("138,357,544", "15,238,608 = 58.13 MiB", "output stride 32", "padded: from 'conv0'", "flops 30.9 G"):
        assert part in text


def test_json_says_what_the_table_says(vgg: Description) -> None:
    found = json.loads(json.dumps(vgg.to_dict()))
    assert found["parameters"] == vgg.parameters
    assert found["layers"][-1]["volume"] == [1, 1, 1000]
    assert found["layers"][1]["padded"] == [1, 1, 1, 1]
    assert sum(layer["flops"] for layer in found["layers"]) == found["flops"]


def test_a_model_describes_itself() -> None:
    build = Builder(Volume(3, 16, 16), name="small")
    x = build.conv(build.input, 5, 3, pads=1)
    graph = build.graph(build.gemm(build.flatten(x), 10))
    description = load(graph).describe()
    assert (description.network, description.window) == ("small", (16, 16))
    assert description.parameters == 5 * 27 + 5 + 16 * 16 * 5 * 10 + 10


def test_an_open_input_size_is_asked_for() -> None:
    build = Builder(Volume(3, 16, 16))
    graph = build.graph(build.conv(build.input, 5, 3))
    graph.input_volume = Volume(3, None, None)
    with pytest.raises(ModelError, match=r"declares no input size; give load\(\.\.\., window="):
        describe(graph)


@st.composite
def stacks(draw: st.DrawFn) -> Graph:
    """Chains of convolutions and pools with any padding, and branches that are joined."""
    build = Builder(Volume(2, draw(st.integers(8, 24)), draw(st.integers(8, 24))), draw=no_memory)
    x = build.input
    for _ in range(draw(st.integers(1, 5))):
        volume = build.volumes[x]
        kernel = draw(st.integers(1, min(4, volume.height or 1, volume.width or 1)))
        pads = tuple(draw(st.integers(0, kernel - 1)) for _ in range(4))
        strides = draw(st.integers(1, 2))
        if draw(st.booleans()):
            x = build.pool("MaxPool", x, kernel, strides=strides, pads=pads, ceil_mode=draw(st.booleans()))
        else:
            x = build.conv(x, 2, kernel, strides=strides, pads=pads)
        if draw(st.booleans()):
            x = build.join("Concat", x, build.conv(x, 2, 3, pads=1))
    return build.graph(x)


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_clean_cells_are_those_that_count_only_pixels(graph: Graph) -> None:
    # Oracle: how many of a position's taps, followed to the image, fall outside it, counted by brute force.
    volumes = infer_volumes(graph)
    outside = {graph.input_name: np.zeros((volumes[graph.input_name].height, volumes[graph.input_name].width), bool)}
    for node in graph.nodes:
        out = volumes[node.output]
        seen = np.zeros((out.height, out.width), bool)
        for tensor in node.inputs:
            source = outside[tensor]
            kernel = node.attrs.get("kernel_shape", (1, 1))
            strides, pads = node.attrs.get("strides", (1, 1)), node.attrs.get("pads", (0, 0, 0, 0))
            bordered = np.pad(source, ((pads[0], 99), (pads[1], 99)), constant_values=True)
            for row, col in np.ndindex(seen.shape):
                top, left = row * strides[0], col * strides[1]
                seen[row, col] |= bordered[top : top + kernel[0], left : left + kernel[1]].any()
        outside[node.output] = seen
    clean = clean_intervals(graph, volumes)
    for tensor, seen in outside.items():
        (top, bottom), (left, right) = clean[tensor]
        expected = np.ones_like(seen)
        expected[top:bottom, left:right] = False
        assert np.array_equal(seen, expected)


def test_vgg_of_another_size_has_the_same_parameters_up_to_the_first_fc() -> None:
    small, large = describe(rewrite(vgg16(size=64), window=None)), describe(network("vgg16"))
    assert [layer.parameters for layer in small.layers[:19]] == [layer.parameters for layer in large.layers[:19]]
    assert small.shown.stride == large.shown.stride
