"""Each rewrite: what it changes, what it must leave, and that the network computes the same before and after."""

import copy

import numpy as np
import pytest
from builder import Builder
from hypothesis import HealthCheck, given, settings
from reference import evaluate, evaluate_outputs
from strategies import graphs, image, seeds

from convserve.errors import ShapeError
from convserve.graph.ir import Graph, Output, Volume
from convserve.graph.ops import infer_volumes
from convserve.graph.rewrites import (
    drop_identities,
    flatten_to_conv,
    fold_affine,
    fold_pads,
    fuse_activation,
    fuse_residual,
    global_pooling_to_window,
    lower_batch_normalization,
    resolve_auto_pad,
    rewrite,
)

SIZE = (7, 6)
REWRITES = {
    "drop_identities": drop_identities,
    "lower_batch_normalization": lower_batch_normalization,
    "resolve_auto_pad": resolve_auto_pad,
    "flatten_to_conv": flatten_to_conv,
    "fold_affine": fold_affine,
    "fold_pads": fold_pads,
    "global_pooling_to_window": global_pooling_to_window,
    "fuse_activation": fuse_activation,
    "fuse_residual": fuse_residual,
    "rewrite": lambda graph: rewrite(graph, window=None),
}


def built(channels: int = 3, size: tuple[int | None, int | None] = SIZE) -> Builder:
    return Builder(Volume(channels, *size))


def ops_of(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def assert_same(before: Graph, after: Graph, *, tolerance: float = 1e-5, size: tuple[int, int] | None = None) -> None:
    """Both networks have the same outputs, up to the rounding of folded parameters."""
    after.check()
    assert [(output.name, output.shape) for output in after.outputs] == [
        (output.name, output.shape) for output in before.outputs
    ]
    x = image(before, batch=2, size=size)
    wanted, got = evaluate_outputs(before, x), evaluate_outputs(after, x)
    for name, values in wanted.items():
        bound = tolerance * max(np.abs(values).max(initial=0.0), 1.0)
        np.testing.assert_allclose(got[name], values, rtol=0, atol=bound)
    if before.input_volume.height is not None:
        assert {output.name: infer_volumes(before)[output.tensor] for output in before.outputs} == {
            output.name: infer_volumes(after)[output.tensor] for output in after.outputs
        }


@pytest.mark.parametrize("name", sorted(REWRITES))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), seed=seeds)
def test_random_networks_compute_the_same(name, graph, seed):
    before = copy.deepcopy(graph)
    after = REWRITES[name](graph)
    assert_same(graph, after, tolerance=1e-4)
    for kept, node in zip(before.nodes, graph.nodes, strict=True):
        assert (kept.op, kept.inputs, kept.output, kept.attrs) == (node.op, node.inputs, node.output, node.attrs)
        for param, array in kept.params.items():
            np.testing.assert_array_equal(node.params[param], array)


@pytest.mark.parametrize("name", sorted(REWRITES))
@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(graph=graphs())
def test_what_is_rewritten_is_not_rewritten_again(name, graph):
    once = REWRITES[name](graph)
    assert REWRITES[name](once) is once


def test_identities_vanish_also_behind_outputs():
    build = built()
    first = build.simple("Identity", build.input)
    conv = build.conv(build.simple("Identity", first), 4, 3)
    shown = build.simple("Identity", conv)
    graph = build.graph(first, shown, build.simple("Relu", shown))
    after = drop_identities(graph)
    assert ops_of(after) == ["Conv", "Relu"]
    assert after.outputs[:2] == [Output(first, build.input), Output(shown, conv)]
    assert_same(graph, after)


def test_batch_normalization_is_computed_in_double():
    build = built()
    graph = build.graph(build.batch_normalization(build.input, epsilon=1e-3))
    after = lower_batch_normalization(graph)
    params = graph.nodes[0].params
    scale = params["scale"].astype(np.float64) / np.sqrt(params["var"].astype(np.float64) + 1e-3)
    assert ops_of(after) == ["Affine"]
    np.testing.assert_array_equal(after.nodes[0].params["scale"], scale.astype(np.float32))
    assert_same(graph, after)


@pytest.mark.parametrize("group", [1, 2])
def test_a_chain_of_affines_folds_into_its_convolution_with_one_rounding(group):
    build = built(4)
    x = build.conv(build.input, 6, 3, group=group)
    for activation in ("", "", "relu"):
        x = build.affine(x, activation=activation)
    graph = build.graph(x)
    after = fold_affine(graph)
    assert ops_of(after) == ["Conv"]
    assert after.nodes[0].attrs["activation"] == "relu"
    scale = np.prod([node.params["scale"].astype(np.float64) for node in graph.nodes[1:]], axis=0)
    weight = graph.nodes[0].params["weight"] * scale[:, None, None, None]
    np.testing.assert_array_equal(after.nodes[0].params["weight"], weight.astype(np.float32))
    assert_same(graph, after)


def test_affines_fold_into_gemm_and_affine():
    build = built(size=(1, 1))
    gemm = build.affine(build.gemm(build.affine(build.affine(build.input)), 5))
    graph = build.graph(gemm)
    after = fold_affine(graph)
    assert ops_of(after) == ["Affine", "Gemm"]
    assert_same(graph, after)


@pytest.mark.parametrize(("op", "attrs"), [("LayerNormalization", {}), ("GroupNormalization", {"group": 2})])
def test_affines_fold_into_a_normalization(op, attrs):
    build = built(4)
    graph = build.graph(build.affine(build.affine(build.normalization(op, build.affine(build.input), **attrs))))
    after = fold_affine(graph)
    assert ops_of(after) == ["Affine", op]
    assert "activation" not in after.nodes[1].attrs
    assert_same(graph, after)


@pytest.mark.parametrize("op", ["Gemm", "LayerNormalization"])
def test_an_affine_with_activation_stays_behind_what_has_none(op):
    build = built(size=(1, 1))
    x = build.gemm(build.input, 5) if op == "Gemm" else build.normalization(op, build.input)
    graph = build.graph(build.affine(x, activation="relu"))
    assert fold_affine(graph) is graph


def test_affines_are_not_folded_where_something_else_reads_or_comes_between():
    for kind in ("reader", "output", "activation", "residual", "pool"):
        build = built()
        if kind == "residual":
            x = build.conv(build.input, 3, 3, pads=1, residual=build.input)
        else:
            x = build.conv(build.input, 3, 3, activation="relu" if kind == "activation" else "")
        y = build.affine(build.pool("MaxPool", x, 2) if kind == "pool" else x)
        shown = {"reader": (y, build.simple("Relu", x)), "output": (y, x)}.get(kind, (y,))
        graph = build.graph(*shown)
        assert fold_affine(graph) is graph, kind


def test_flatten_and_gemm_become_a_convolution_as_large_as_the_volume():
    build = built()
    graph = build.graph(build.gemm(build.simple("Relu", build.gemm(build.flatten(build.input), 5)), 4))
    after = flatten_to_conv(graph)
    assert ops_of(after) == ["Conv", "Relu", "Conv"]
    assert after.nodes[0].attrs["kernel_shape"] == SIZE
    assert after.nodes[0].params["weight"].shape == (5, 3, *SIZE)
    assert after.nodes[2].attrs["kernel_shape"] == (1, 1)
    assert_same(graph, after)
    assert_same(graph, after, size=(9, 10))
    assert infer_volumes(after, 9, 10)[after.outputs[0].tensor] == Volume(4, 3, 5)


def test_what_lies_between_flatten_and_gemm_moves_before_it():
    build = built()
    x = build.flatten(build.input)
    x = build.simple("Relu", x)
    x = build.affine(x)
    affine = build.nodes[-1]
    for name in affine.params:
        affine.params[name] = np.repeat(affine.params[name][:3], SIZE[0] * SIZE[1])
    graph = build.graph(build.gemm(build.simple("Identity", x), 5))
    after = flatten_to_conv(graph)
    assert ops_of(after) == ["Relu", "Affine", "Identity", "Conv"]
    assert after.nodes[1].params["scale"].shape == (3,)
    assert_same(graph, after)


def test_an_affine_that_differs_between_pixels_keeps_the_flatten():
    build = built()
    graph = build.graph(build.gemm(build.affine(build.flatten(build.input)), 5))
    after = flatten_to_conv(graph)
    assert ops_of(after) == ["Flatten", "Affine", "Conv"]
    assert_same(graph, after)


def test_a_flatten_with_other_readers_stays_for_them():
    build = built()
    x = build.flatten(build.input)
    y = build.simple("Relu", x)
    graph = build.graph(build.gemm(x, 5), build.gemm(y, 4), y, build.simple("Softmax", x))
    after = flatten_to_conv(graph)
    assert ops_of(after) == ["Flatten", "Relu", "Conv", "Conv", "Softmax"]
    assert after.nodes[2].inputs == (build.input,)
    assert after.nodes[3].inputs == (y,)
    assert_same(graph, after)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pooling_takes_the_size_of_the_window(op):
    build = built()
    graph = build.graph(build.simple(op, build.conv(build.input, 4, 3)))
    after = global_pooling_to_window(graph)
    assert ops_of(after) == ["Conv", op.removeprefix("Global")]
    assert after.nodes[1].attrs["kernel_shape"] == (5, 4)
    assert_same(graph, after)
    assert global_pooling_to_window(graph, window=(12, 13)).nodes[1].attrs["kernel_shape"] == (10, 11)


def test_global_pooling_stays_where_the_window_is_open():
    build = built(size=(None, 6))
    graph = build.graph(build.simple("GlobalAveragePool", build.conv(build.input, 4, 3)))
    assert global_pooling_to_window(graph) is graph
    assert ops_of(rewrite(graph, window=None)) == ["Conv", "GlobalAveragePool"]
    assert ops_of(rewrite(graph, window=(7, 6))) == ["Conv", "AveragePool"]


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("strides", [1, 2, 3])
def test_automatic_padding_becomes_the_pads_that_it_has_at_the_window(auto_pad, strides):
    build = built()
    x = build.conv(build.input, 4, (4, 3), strides=strides, auto_pad=auto_pad)
    graph = build.graph(build.pool("AveragePool", x, 2, auto_pad=auto_pad))
    after = resolve_auto_pad(graph)
    assert {node.attrs["auto_pad"] for node in after.nodes} == {"NOTSET"}
    assert_same(graph, after)


def test_automatic_padding_in_an_open_window_is_resolved_where_its_size_does_not_matter():
    build = built(size=(None, None))
    build.conv(build.input, 4, 3, auto_pad="SAME_UPPER")
    graph = build.graph(build.pool("MaxPool", build.nodes[0].output, 3, pads=1))
    graph.nodes[1].attrs.update(auto_pad="SAME_UPPER", strides=(2, 2))
    after = resolve_auto_pad(graph)
    assert [node.attrs["auto_pad"] for node in after.nodes] == ["NOTSET", "SAME_UPPER"]
    assert after.nodes[0].attrs["pads"] == (1, 1, 1, 1)
    assert {node.attrs["auto_pad"] for node in resolve_auto_pad(graph, window=(9, 8)).nodes} == {"NOTSET"}


def test_relu_goes_into_what_can_apply_it():
    build = built()
    conv = build.simple("Relu", build.conv(build.input, 3, 3, pads=1))
    affine = build.simple("Relu", build.affine(conv))
    add = build.simple("Relu", build.join("Add", conv, affine))
    mul = build.simple("Relu", build.join("Mul", conv, add))
    graph = build.graph(build.simple("Relu", build.pool("MaxPool", mul, 2)))
    after = fuse_activation(graph)
    assert ops_of(after) == ["Conv", "Affine", "Add", "Mul", "MaxPool", "Relu"]
    assert [node.attrs["activation"] for node in after.nodes[:4]] == ["relu"] * 4
    assert [node.output for node in after.nodes[:4]] == [conv, affine, add, mul]
    assert_same(graph, after)


def test_relu_stays_where_its_input_is_needed_too():
    build = built()
    conv = build.conv(build.input, 3, 3)
    relu = build.simple("Relu", conv)
    shown = build.graph(relu, conv)
    assert fuse_activation(shown) is shown
    twice = build.graph(build.join("Add", relu, conv))
    assert fuse_activation(twice) is twice


def residual_block(build: Builder, x: str, *, shortcut: bool) -> str:
    y = build.conv(x, 4, 3, pads=1, activation="relu")
    y = build.conv(y, 4, 3, pads=1)
    return build.join("Add", y, build.conv(x, 4, 1) if shortcut else x, activation="relu")


@pytest.mark.parametrize("shortcut", [False, True])
def test_a_residual_sum_goes_into_the_later_convolution(shortcut):
    build = built(4)
    graph = build.graph(residual_block(build, build.input, shortcut=shortcut))
    after = fuse_residual(graph)
    assert ops_of(after) == ["Conv"] * (3 if shortcut else 2)
    last = after.nodes[-1]
    assert last.name == graph.nodes[2 if shortcut else 1].name
    assert last.inputs[1] == (graph.nodes[1].output if shortcut else build.input)
    assert last.attrs["activation"] == "relu"
    assert_same(graph, after)


def test_a_fused_convolution_stands_where_the_sum_stood():
    build = built(4)
    early = build.conv(build.input, 4, 1)
    late = build.pool("MaxPool", build.input, 3, pads=1)
    graph = build.graph(build.join("Add", early, late))
    after = fuse_residual(graph)
    assert ops_of(after) == ["MaxPool", "Conv"]
    assert after.nodes[1].inputs == (build.input, late)
    assert_same(graph, after)


def test_a_sum_of_sums_takes_one_residual_each():
    build = built(4)
    x = residual_block(build, build.input, shortcut=True)
    graph = build.graph(residual_block(build, x, shortcut=False))
    after = fuse_residual(graph)
    assert [len(node.inputs) for node in after.nodes] == [1, 1, 2, 1, 2]
    assert_same(graph, after)


def test_sums_that_are_no_residual_stay():
    for kind in ("three", "pixel", "twice", "reader", "output", "activation", "no conv"):
        build = built(4)
        conv = build.conv(build.input, 4, 1, activation="relu" if kind == "activation" else "")
        if kind == "no conv":
            conv = build.pool("MaxPool", conv, 1)
        other = build.simple("GlobalAveragePool" if kind == "pixel" else "Relu", build.input)
        terms = {"three": (conv, other, build.input), "twice": (conv, conv)}.get(kind, (conv, other))
        add = build.join("Add", *terms)
        shown = {"reader": (add, build.simple("Relu", conv)), "output": (add, conv)}.get(kind, (add,))
        graph = build.graph(*shown)
        assert fuse_residual(graph) is graph, kind


def test_summands_that_fit_at_the_window_only_are_refused_elsewhere():
    build = built(4, size=(7, 7))
    pool = build.pool("MaxPool", build.input, 2, strides=2)
    graph = build.graph(build.join("Add", build.conv(build.input, 4, 3, strides=2), pool))
    after = fuse_residual(graph)
    assert ops_of(after) == ["MaxPool", "Conv"]
    assert_same(graph, after)
    with pytest.raises(ShapeError, match="the residual volume 4x4x4 does not fit its output 3x3x4"):
        infer_volumes(after, 8, 8)


def test_a_resnet_block_becomes_its_convolutions():
    build = built(4)
    x = build.batch_normalization(build.conv(build.input, 4, 3, pads=1))
    y = build.batch_normalization(build.conv(build.simple("Relu", x), 4, 3, pads=1))
    y = build.simple("Relu", build.join("Add", y, build.batch_normalization(build.conv(build.input, 4, 1))))
    y = build.gemm(build.flatten(build.simple("GlobalAveragePool", y)), 3)
    graph = build.graph(build.simple("Softmax", build.simple("Identity", y)))
    after = rewrite(graph, window=None)
    assert ops_of(after) == ["Conv", "Conv", "Conv", "AveragePool", "Conv", "Softmax"]
    assert [node.attrs["activation"] for node in after.nodes[:3]] == ["relu", "", "relu"]
    assert len(after.nodes[2].inputs) == 2
    assert_same(graph, after)


def test_outputs_inside_a_network_survive_with_their_values():
    build = built(4)
    conv = build.conv(build.input, 4, 3, pads=1)
    norm = build.batch_normalization(conv)
    relu = build.simple("Relu", norm)
    add = build.join("Add", relu, build.conv(relu, 4, 1))
    graph = build.graph(conv, norm, relu, add, build.simple("Relu", add))
    after = rewrite(graph, window=None)
    assert {output.name for output in after.outputs} <= evaluate(after, image(after)).keys()
    assert_same(graph, after)
