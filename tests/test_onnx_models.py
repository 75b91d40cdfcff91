"""Importing whole ONNX networks: exporters' patterns, the free batch, open sizes, named and trained networks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper
from onnx_maker import agree, drawn, made, ops_of
from onnx_writer import runtime_session, to_onnx
from reference import evaluate, evaluate_outputs
from strategies import graphs, image, seeds

from convserve.errors import ModelFormatError, ShapeError, UnsupportedOpError
from convserve.formats.onnx import load_onnx
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import infer_volumes
from convserve.graph.rewrites import rewrite

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# Behind the last one of an op, how many of it there are, and the volume that the weights and layers behind it take.
NAMED = {
    "bvlc_alexnet": ("MaxPool", 3, Volume(256, 6, 6)),
    "densenet121": ("Concat", 58, Volume(1024, 7, 7)),
    "inception_v1": ("Concat", 9, Volume(1024, 6, 6)),
    "inception_v2": ("Concat", 10, Volume(1024, 7, 7)),
    "resnet50": ("Add", 16, Volume(2048, 7, 7)),
    "shufflenet": ("ChannelShuffle", 16, Volume(544, 7, 7)),
    "squeezenet": ("Concat", 8, Volume(512, 13, 13)),
    "vgg19": ("MaxPool", 5, Volume(512, 7, 7)),
    "zfnet512": ("MaxPool", 3, Volume(512, 6, 6)),
}


def nth(graph: Graph, op: str, count: int) -> str:
    return [node.output for node in graph.nodes if node.op == op][count - 1]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_light_networks_have_the_right_volumes(name):
    graph = load_onnx(LIGHT / f"light_{name}.onnx")
    op, count, volume = NAMED[name]
    volumes = infer_volumes(graph)
    assert graph.input_volume == Volume(3, 224, 224)
    assert sum(node.op == op for node in graph.nodes) == count
    assert volumes[nth(graph, op, count)] == volume
    assert volumes[graph.outputs[0].tensor] == Volume(1000, 1, 1)
    rewritten = rewrite(graph, window=None)
    kept = {node.op for node in rewritten.nodes}
    assert not kept & {"BatchNormalization", "Gemm", "Flatten", "GlobalAveragePool", "Identity"}
    assert infer_volumes(rewritten)[rewritten.outputs[0].tensor] == Volume(1000, 1, 1)
    assert sum(len(node.inputs) == 2 for node in rewritten.nodes if node.op == "Conv") == {
        "resnet50": 16,
        "shufflenet": 13,
    }.get(name, 0)


def test_light_weights_take_no_memory():
    graph = load_onnx(LIGHT / "light_vgg19.onnx")
    sizes = [node.params["weight"].nbytes for node in graph.nodes if "weight" in node.params]
    owned = [node.params["weight"].base is None for node in graph.nodes if "weight" in node.params]
    assert sum(sizes) > 570_000_000
    assert not any(owned)


TRAINED = {
    "squeezenet/squeezenet1.1.onnx": (1, 60),
    "lenet/lenet.onnx": (3, 1),
    "mnist/mnist_ort.onnx": (1, 255),
    "cifar10/cifar10_quick.onnx": (3, 60),
    "cifar10/resnet20.onnx": (3, 1),
}


@pytest.mark.parametrize("path", sorted(TRAINED))
def test_trained_networks_agree_with_onnx_runtime(shared_data, path):
    batch, scale = TRAINED[path]
    graph = load_onnx(shared_data / path)
    x = drawn(batch, graph.input_volume.channels, graph.input_volume.height, graph.input_volume.width, scale=scale)
    wanted = runtime_session(str(shared_data / path)).run(None, {graph.input_name: x})[0]
    bound = 1e-5 * max(np.abs(wanted).max(), 0.01)
    for network in (graph, rewrite(graph, window=None)):
        (shown,) = evaluate_outputs(network, x).values()
        assert shown.shape == wanted.shape
        np.testing.assert_allclose(shown, wanted, rtol=0, atol=bound)


def is_onnx(node: Node, x: np.ndarray) -> bool:
    """Whether ONNX has a SpaceToDepth like this: in its one order of channels, over a whole number of blocks."""
    whole = all(size % block == 0 for size, block in zip(x.shape[2:], node.attrs["blocksize"], strict=True))
    return whole and node.attrs["mode"] == "DCR"


@settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), seed=seeds)
def test_random_networks_survive_the_journey_through_onnx(graph, seed):
    x = image(graph, batch=2, seed=seed)
    tensors = evaluate(graph, x)
    if any(node.op == "Flatten" and tensors[node.output].shape[2:] != (1, 1) for node in graph.nodes):
        return
    if any(len(set(node.attrs.get("blocksize", ()))) > 1 for node in graph.nodes):
        return  # ONNX's blocks are square
    if any(node.op == "SpaceToDepth" and not is_onnx(node, tensors[node.inputs[0]]) for node in graph.nodes):
        return
    imported = load_onnx(to_onnx(graph).SerializeToString())
    for network in (imported, rewrite(imported, window=None)):
        shown = evaluate_outputs(network, x)
        for output in graph.outputs:
            np.testing.assert_allclose(shown[output.name], tensors[output.tensor], rtol=1e-4, atol=1e-4)


HEAD = {"m": drawn(192, 4)}


BATCHES = [(1, [1, 192]), (1, [1, -1]), (1, [0, -1]), (1, [-1, 192]), ("N", [1, -1]), ("N", [0, 192]), (5, [5, -1])]


@pytest.mark.parametrize(("declared", "target"), BATCHES)
def test_the_batch_is_free_through_reshape_constants(declared, target):
    content = made(
        ("Reshape", "x s", "f"),
        ("MatMul", "f m", "y"),
        shape=(declared, 3, 8, 8),
        weights={**HEAD, "s": np.array(target)},
    )
    graph = load_onnx(content)
    x = drawn(7, 3, 8, 8)
    (shown,) = evaluate_outputs(graph, x).values()
    np.testing.assert_allclose(shown, x.reshape(7, 192) @ HEAD["m"], atol=1e-4)


def test_a_shape_that_is_computed_as_exporters_do():
    nodes = [
        ("Shape", "x", "shape"),
        ("Constant", "", "zero", {"value_int": 0}),
        ("Gather", "shape zero", "batch"),
        ("Unsqueeze", "batch axis", "batch1"),
        ("Constant", "", "rest", {"value_ints": [-1]}),
        ("Concat", "batch1 rest", "target", {"axis": 0}),
        ("Reshape", "x target", "f"),
        ("MatMul", "f m", "y"),
    ]
    agree(made(*nodes, weights={**HEAD, "axis": np.array([0])}))


def test_a_size_that_is_computed_as_exporters_do():
    nodes = [
        ("Shape", "x", "shape"),
        ("Slice", "shape from to axes", "size"),
        ("Cast", "size", "float", {"to": TensorProto.FLOAT}),
        ("Div", "float two", "half"),
        ("Floor", "half", "floor"),
        ("Cast", "floor", "int", {"to": TensorProto.INT64}),
        ("Mul", "int twos", "double"),
        ("Shape", "x", "shape2", {"end": 1}),
        ("Concat", "shape2 channels double", "target", {"axis": 0}),
        ("Reshape", "x target", "r"),
        ("Relu", "r", "y"),
    ]
    weights = {
        "from": np.array([2]),
        "to": np.array([2**63 - 1]),
        "axes": np.array([0]),
        "two": np.float32(2),
        "twos": np.array([2, 2]),
        "channels": np.array([3]),
    }
    assert ops_of(agree(made(*nodes, weights=weights, opset=15))) == ["Relu"]


def test_weights_that_are_computed_are_folded():
    nodes = [
        ("ConstantOfShape", "size", "ones", {"value": numpy_helper.from_array(np.ones(1, np.float32))}),
        ("Mul", "ones three", "threes"),
        ("Unsqueeze", "threes axes", "column"),
        ("Add", "x column", "z"),
        ("Transpose", "wt", "w", {"perm": [3, 2, 0, 1]}),
        ("Squeeze", "b2 axis0", "b"),
        ("Conv", "z w b", "c"),
        ("Identity", "c", "y"),
    ]
    weights = {
        "size": np.array([3]),
        "three": np.float32(3),
        "axes": np.array([1, 2]),
        "wt": drawn(3, 3, 3, 4),
        "b2": drawn(1, 4),
        "axis0": np.array([0]),
    }
    assert ops_of(agree(made(*nodes, weights=weights))) == ["Affine", "Conv"]


def test_initializers_that_are_inputs_too_are_initializers():
    content = made(("Conv", "x w", "y"), weights={"w": drawn(4, 3, 3, 3)}, also_inputs=["w"])
    assert agree(content).input_name == "x"


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_become_float32(dtype):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {"w": drawn(4, 3, 3, 3).astype(dtype), "b": drawn(4).astype(dtype)}
    content = made(("Conv", "x w b", "c"), ("Relu", "c", "y"), weights=weights, element=element)
    graph = load_onnx(content)
    assert {array.dtype for array in graph.nodes[0].params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(graph.nodes[0].params["weight"], weights["w"].astype(np.float32))


def test_bfloat16_weights_become_float32():
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 3, 1, 1], drawn(12).tolist())
    model = onnx.load_model_from_string(made(("Conv", "x w", "y")))
    model.graph.initializer.append(tensor)
    weight = load_onnx(model.SerializeToString()).nodes[0].params["weight"]
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight.reshape(-1), drawn(12), rtol=1e-2)


def test_float16_casts_inside_a_network_are_dropped():
    nodes = [("Cast", "x", "h", {"to": 10}), ("Conv", "h w", "c"), ("Cast", "c", "y", {"to": 1})]
    graph = load_onnx(made(*nodes, weights={"w": drawn(4, 3, 3, 3).astype(np.float16)}))
    assert ops_of(graph) == ["Conv"]


OPEN = ("N", 3, "H", None)


def test_an_open_size_stays_open():
    nodes = [("Conv", "x w", "c"), ("MaxPool", "c", "p", {"kernel_shape": [2, 2]}), ("Concat", "p p", "y", {"axis": 1})]
    graph = agree(made(*nodes, shape=OPEN, weights={"w": drawn(4, 3, 3, 3)}))
    assert graph.input_volume == Volume(3, None, None)
    assert infer_volumes(graph, 20, 30)["y"] == Volume(8, 17, 27)


def test_an_open_size_passes_through_computed_shapes():
    nodes = [
        ("Relu", "x", "r"),
        ("Shape", "r", "shape"),
        ("Gather", "shape sides", "size"),
        ("Shape", "x", "shape2", {"end": 1}),
        ("Concat", "shape2 parts size", "split", {"axis": 0}),
        ("Reshape", "r split", "s"),
        ("Transpose", "s", "t", {"perm": [0, 2, 1, 3, 4]}),
        ("Concat", "shape2 channels size", "whole", {"axis": 0}),
        ("Reshape", "t whole", "u"),
        ("Relu", "u", "y"),
    ]
    weights = {"sides": np.array([2, 3]), "parts": np.array([2, 3]), "channels": np.array([6])}
    graph = agree(made(*nodes, shape=("N", 6, "H", "W"), weights=weights, opset=15))
    assert ops_of(graph) == ["Relu", "ChannelShuffle", "Relu"]


def test_what_needs_a_size_asks_for_the_window():
    content = made(("Flatten", "x", "f"), ("MatMul", "f m", "y"), shape=OPEN, weights=HEAD)
    with pytest.raises(ModelFormatError, match="pass window="):
        load_onnx(content)
    assert agree(content, window=(8, 8)).input_volume == Volume(3, 8, 8)


def test_computing_with_an_open_size_asks_for_the_window():
    nodes = [("Shape", "x", "s"), ("Mul", "s s", "t"), ("Reshape", "x t", "y")]
    with pytest.raises(UnsupportedOpError, match="window="):
        load_onnx(made(*nodes, shape=OPEN))


@pytest.mark.parametrize("window", [(7, 8), (8, 9), (0, 8)])
def test_a_window_that_contradicts_the_file_is_refused(window):
    with pytest.raises(ShapeError, match="window is"):
        load_onnx(made(("Relu", "x", "y")), window=window)


def test_only_what_the_outputs_need_is_imported():
    nodes = [("Tanh", "x", "t"), ("Conv", "t w", "u"), ("Relu", "x", "y"), ("Dropout", "y", ("d", "mask"))]
    assert ops_of(load_onnx(made(*nodes, weights={"w": drawn(4, 3, 3, 3)}))) == ["Relu"]


def test_several_outputs_keep_their_names_and_order():
    nodes = [("Relu", "x", "r"), ("Identity", "r", "second"), ("Flatten", "r", "first"), ("Dropout", "x", "image")]
    graph = agree(made(*nodes, outputs=("first", "second", "r", "image")))
    assert [output.tensor for output in graph.outputs] == ["r", "r", "r", "x"]
    assert ops_of(graph) == ["Relu"]
