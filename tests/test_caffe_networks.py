"""The published networks in Caffe's spelling: as large as they are said to be, equal to others' and to our own."""

from pathlib import Path

import numpy as np
import pytest
from caffe_files import files, weights
from caffe_networks import NETWORKS, Layer, alexnet, caffenet, fully_convolutional, googlenet, newer, older
from networks import network

import convserve
from convserve.formats.caffe import CaffeFiles
from convserve.graph.assembly import no_parameters, random_parameters
from convserve.graph.ir import Graph
from convserve.graph.networks import PATTERNS, network_graph
from convserve.graph.ops import weight_shape
from convserve.graph.rewrites import rewrite


def read(folder: Path, text: str) -> Graph:
    path = folder / "deploy.prototxt"
    path.write_text(text)
    return CaffeFiles(path).untrained(no_parameters)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_networks_have_their_parameters_in_both_forms(tmp_path: Path, name: str) -> None:
    layers, side, count = NETWORKS[name]
    graphs = [read(tmp_path, form(layers(), side)) for form in (newer, older)]
    for graph in graphs:
        assert sum(array.size for node in graph.nodes for array in node.params.values()) == count
        assert [(output.name, output.shape) for output in graph.outputs] == [("prob", (1000,))]
    first, second = ([(node.op, node.name, node.inputs, node.attrs) for node in graph.nodes] for graph in graphs)
    assert first == second


def computed(graph: Graph) -> list[str]:
    """Return what each node computes; poolings without their padding, which the converter let stand for rounding up."""
    geometry = ("kernel_shape", "strides", "group", "size", "alpha", "beta", "activation")
    return sorted(
        f"{node.op} {[node.attrs.get(key) for key in geometry]}"
        f" {(node.attrs['pads'], weight_shape(node)) if 'weight' in node.params else ''}"
        for node in graph.nodes
    )


@pytest.mark.parametrize(("layers", "converted"), [(alexnet, "bvlc_alexnet"), (googlenet, "inception_v1")])
def test_they_are_the_networks_that_were_converted_to_onnx(tmp_path: Path, layers, converted: str) -> None:
    assert computed(rewrite(read(tmp_path, older(layers(), 224)), window=None)) == computed(network(converted))


def narrow(layers: list[Layer]) -> list[Layer]:
    """Return AlexNet with hidden layers of 64 values, so that a test can hold its weights."""
    return [(*layer[:4], layer[4].replace("4096", "64")) for layer in layers]


@pytest.fixture(scope="module")
def own() -> Graph:
    """Our own AlexNet, as narrow, with random weights."""
    return network_graph(PATTERNS["alexnet"].replace("4096", "64"), random_parameters(5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, own: Graph) -> Path:
    """A folder with deploy.prototxt, full_conv.prototxt and full_conv_291.prototxt, and the weights of the first."""
    path = tmp_path_factory.mktemp("alexnet")
    names = iter([name for type, name, *_ in alexnet() if type in ("Convolution", "InnerProduct")])
    blobs = {next(names): [node.params["weight"], node.params["bias"]] for node in own.nodes if "weight" in node.params}
    layers = narrow(alexnet())
    files(path, newer(layers, 227), weights(blobs), "deploy")
    (path / "full_conv.prototxt").write_text(older(fully_convolutional(layers, 6), 227))
    (path / "full_conv_291.prototxt").write_text(newer(fully_convolutional(layers, 6), 291))
    return path


def image(side: int) -> np.ndarray:
    return np.random.default_rng(side).standard_normal((1, 3, side, side), np.float32)


def test_alexnet_gives_the_bits_of_our_own_with_the_same_weights(folder: Path, own: Graph) -> None:
    model, ours = convserve.load(folder / "deploy.prototxt", cache=False), convserve.load(own)
    scores = ours.run(image(227))
    powers = np.exp(scores - np.max(scores))  # type: ignore[arg-type]
    np.testing.assert_allclose(model.run(image(227)), powers / powers.sum(), rtol=1e-5)
    without_softmax = folder / "logits.prototxt"
    without_softmax.write_text(newer(narrow(alexnet())[:-1], 227))
    model = convserve.load(without_softmax, parameters=folder / "deploy.caffemodel", cache=False)
    np.testing.assert_array_equal(model.run(image(227)), scores)  # type: ignore[arg-type]


def test_net_surgery_gives_the_bits_of_our_own_dense_conversion(folder: Path) -> None:
    given = {"parameters": folder / "deploy.caffemodel", "cache": False}
    model = convserve.load(folder / "deploy.prototxt", **given)
    surgery = convserve.load(folder / "full_conv.prototxt", **given)
    np.testing.assert_array_equal(surgery.run(image(227))[:, :, 0, 0], model.run(image(227)))  # type: ignore[index, arg-type]
    larger = convserve.load(folder / "full_conv_291.prototxt", **given).run(image(291))
    assert larger.shape == (1, 1000, 3, 3)  # type: ignore[union-attr]
    scores = model.score_map(image(291)).scores
    np.testing.assert_array_equal(larger[0].transpose(1, 2, 0), scores)  # type: ignore[index]


def test_weights_of_convolutions_go_back_into_fully_connected_layers(folder: Path, tmp_path: Path) -> None:
    blobs = {"fc": [np.random.default_rng(0).standard_normal((5, 3, 6, 6), np.float32), np.ones(5, np.float32)]}
    text = newer([("InnerProduct", "fc", "data", "fc", "inner_product_param { num_output: 5 }")], 6)
    y = convserve.load(files(tmp_path, text, weights(blobs)), cache=False).run(image(6))
    wanted = np.tensordot(blobs["fc"][0].astype(np.float64), image(6)[0], 3) + 1
    np.testing.assert_allclose(y, wanted[None], rtol=1e-4, atol=1e-4)


def test_the_order_of_pooling_and_normalisation_is_that_of_the_text(tmp_path: Path) -> None:
    ops = [[node.op for node in read(tmp_path, newer(layers(), 227)).nodes][2:4] for layers in (alexnet, caffenet)]
    assert ops == [["LRN", "MaxPool"], ["MaxPool", "LRN"]]
