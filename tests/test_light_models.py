"""The nine light networks of the onnx package, with random weights, against ONNX Runtime: "Shown by" 1."""

import numpy as np
import onnx
import pytest
from networks import LIGHT, light_path
from onnx import numpy_helper
from onnx_writer import runtime_session

import convserve

TOLERANCE = 1e-4


def with_random_weights(model: onnx.ModelProto, *, seed: int) -> onnx.ModelProto:
    """Replace every weight, which a light model draws from a constant, by random ones that keep activations near 1."""
    rng = np.random.default_rng(seed)
    graph = model.graph
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        layer, position = readers[node.output[0]][0]
        followers = {reader.op_type for reader, _ in readers.get(layer.output[0], [])}
        weight = drawn(rng, shape, layer, position, followers)
        graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    return model


def drawn(
    rng: np.random.Generator, shape: tuple[int, ...], layer: onnx.NodeProto, position: int, followers: set[str]
) -> np.ndarray:
    """Return one weight: He's deviation where a ReLU follows, small scales where a residual sum does."""
    gain = 0.2 if followers & {"Add", "Sum"} else 2 if "Relu" in followers else 1
    if layer.op_type == "BatchNormalization":
        low, high = {1: (0.8, 1.2), 2: (-0.2, 0.2), 3: (-0.2, 0.2), 4: (0.8, 1.2)}[position]
        scale = np.sqrt(gain) if position == 1 else 1
        return (scale * rng.uniform(low, high, shape)).astype(np.float32)
    if len(shape) < 2:
        return 0.1 * rng.standard_normal(shape, np.float32)
    fan_in = int(np.prod(shape[1:]))
    if layer.op_type == "Gemm":
        turned = {attribute.name: attribute.i for attribute in layer.attribute}.get("transB", 0)
        fan_in = shape[1] if turned else shape[0]
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(gain / fan_in))


def before_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the network show what its last Softmax reads, if it has one."""
    last = next(node for node in model.graph.node if node.output[0] == model.graph.output[0].name)
    if last.op_type == "Softmax":
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=last.input[0]))
        inferred = onnx.shape_inference.infer_shapes(model)
        found = [value for value in inferred.graph.value_info if value.name == last.input[0]]
        model.graph.output[0].CopyFrom(found[0])
    return model


@pytest.mark.parametrize("name", LIGHT)
def test_light_network_agrees_with_onnx_runtime(name):
    model = before_softmax(with_random_weights(onnx.load(light_path(name)), seed=len(name)))
    data = model.SerializeToString()
    del model
    x = np.random.default_rng(5).standard_normal((1, 3, 224, 224), np.float32)
    session = runtime_session(data, threads=2)
    (expected,) = session.run(None, {session.get_inputs()[0].name: x})
    del session
    got = convserve.load(data, threads=2).run(x)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    assert 1e-3 < np.abs(expected).max() < 1e3
    assert np.std(expected) > 1e-3 * np.abs(expected).max()
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()
