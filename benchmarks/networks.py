"""The networks of the benchmark, written as ONNX files with random weights, one file for each batch size.

`python -m benchmarks.networks NETWORK FOLDER --batch 1 8` writes FOLDER/batch1.onnx and FOLDER/batch8.onnx. A fixed
batch is what lets every peer plan ahead; convserve reads the file of batch 1, since its batch is always free.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convserve.graph.assembly import random_parameters
from convserve.graph.networks import network_graph
from convserve.graph.rewrites import flatten_to_conv

__all__ = ["NETWORKS", "fix_batch", "light_model", "network_model", "title_of", "vgg16_model", "write_network"]

NETWORKS = {
    "vgg16": "VGG-16",
    "vgg19": "VGG-19",
    "alexnet": "AlexNet",
    "zfnet512": "ZFNet-512",
    "googlenet": "GoogLeNet",
    "resnet50": "ResNet-50",
    "squeezenet": "SqueezeNet",
    "densenet121": "DenseNet-121",
    "shufflenet": "ShuffleNet",
}
_LIGHT_NAMES = {"alexnet": "bvlc_alexnet", "googlenet": "inception_v1"}


def title_of(network: str) -> str:
    """Return how tables call a network: its usual name, or the stem of its file."""
    return NETWORKS.get(network) or Path(network).stem


def network_model(network: str) -> onnx.ModelProto:
    """Return a network by its name in NETWORKS, with random weights, or from an .onnx file as it is.

    "vgg16-1024" is VGG-16 over images of that side.
    """
    if network.startswith("vgg16"):
        return vgg16_model(size=int(network.partition("-")[2] or 224))
    if network in NETWORKS:
        return light_model(_LIGHT_NAMES.get(network, network))
    return onnx.load(network)


def light_model(name: str, *, seed: int = 0) -> onnx.ModelProto:
    """Return light_<name>.onnx of the onnx package with random weights instead of constants."""
    model = onnx.load(Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx")
    rng, graph = np.random.default_rng(seed), model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    kept, drawn = [], []
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shape = tuple(int(size) for size in shapes[node.input[0]])
            drawn.append(numpy_helper.from_array(_weight(rng, shape, node.output[0], readers), node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    read = {tensor for node in kept for tensor in node.input}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend([*used, *drawn])
    images = [value for value in graph.input if value.name not in shapes]
    del graph.input[:]
    graph.input.extend(images)
    model.ir_version = 8  # the first that needs no input for each weight is 4
    return model


def _weight(
    rng: np.random.Generator, shape: tuple[int, ...], name: str, readers: dict[str, list[onnx.NodeProto]]
) -> np.ndarray:
    layer = readers[name][0]
    position = list(layer.input).index(name)
    if layer.op_type in ("Unsqueeze", "Reshape"):
        return _weight(rng, shape, layer.output[0], readers)
    followers = {reader.op_type for reader in readers.get(layer.output[0], [])}
    # a branch that is summed is drawn small, so that many sums in a row do not grow
    gain = 0.2 if followers & {"Add", "Sum"} else 2 if "Relu" in followers else 1
    if layer.op_type == "BatchNormalization":
        low, high = {1: (0.8, 1.2), 2: (-0.2, 0.2), 3: (-0.2, 0.2), 4: (0.8, 1.2)}[position]
        return (np.sqrt(gain if position == 1 else 1) * rng.uniform(low, high, shape)).astype(np.float32)
    if layer.op_type == "Mul":
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    if len(shape) < 2:
        return 0.1 * rng.standard_normal(shape, np.float32)
    turned = layer.op_type != "Gemm" or any(part.name == "transB" and part.i for part in layer.attribute)
    fan_in = int(np.prod(shape[1:])) if turned else shape[0]
    return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(gain / fan_in))


def vgg16_model(*, seed: int = 0, size: int = 224) -> onnx.ModelProto:
    """Return the built-in VGG-16 with random weights, a softmax behind it.

    size: side of the image; above 224 the fully-connected layers are convolutions, and the output has several
    positions, for engines that do not turn the one into the other themselves.
    """
    built = network_graph("vgg16", random_parameters(seed))
    if size > 224:
        built = flatten_to_conv(built)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    for node in built.nodes:
        names = [f"{node.name}.{param}" for param in node.params]
        weights += map(numpy_helper.from_array, node.params.values(), names)
        attributes: dict[str, Any] = {"transB": 1} if node.op == "Gemm" else {}
        if node.op in ("Conv", "MaxPool"):
            attributes = {name: node.attrs[name] for name in ("kernel_shape", "strides", "pads")}
        nodes.append(helper.make_node(node.op, [*node.inputs, *names], [node.output], name=node.name, **attributes))
    nodes.append(helper.make_node("Softmax", [nodes[-1].output[0]], ["prob"], name="prob", axis=1))
    image = helper.make_tensor_value_info(built.input_name, onnx.TensorProto.FLOAT, [1, 3, size, size])
    cells = [size // 32 - 6] * 2 if size > 224 else []
    scores = helper.make_tensor_value_info("prob", onnx.TensorProto.FLOAT, [1, 1000, *cells])
    graph = helper.make_graph(nodes, "vgg16", [image], [scores], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Give a model a batch of its own: its inputs, its outputs, and the ones in shapes that activations take."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for value in [*graph.input, *graph.output]:
        if value.name not in constants and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    del graph.value_info[:]
    fixed = set()
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] not in constants and node.input[1] in constants:
            fixed.add(node.input[1])
    for name in fixed:
        shape = numpy_helper.to_array(constants[name]).copy()
        if shape.size > 1 and shape[0] == 1:
            shape[0] = batch
            constants[name].CopyFrom(numpy_helper.from_array(shape, name))


def write_network(network: str, folder: Path, batches: list[int]) -> None:
    """Write folder/batch<N>.onnx for each batch size; two sizes differ in nothing else."""
    model = network_model(network)
    plain = model.SerializeToString() if len(batches) > 1 else b""
    for number, batch in enumerate(batches):
        if number:
            model.ParseFromString(plain)
        fix_batch(model, batch)
        onnx.save(model, folder / f"batch{batch}.onnx")


def main() -> None:
    """Write the files of one network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description="Write a network as ONNX files.")
    parser.add_argument("network", help=f"{', '.join(NETWORKS)}, or an .onnx file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    write_network(options.network, options.folder, options.batch)


if __name__ == "__main__":
    main()
