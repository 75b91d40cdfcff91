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
_VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def title_of(network: str) -> str:
    """Return how tables call a network: its usual name, or the stem of its file."""
    return NETWORKS.get(network) or Path(network).stem


def network_model(network: str) -> onnx.ModelProto:
    """Return a network by its name in NETWORKS, with random weights, or from an .onnx file as it is."""
    if network == "vgg16":
        return vgg16_model()
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


def vgg16_model(*, seed: int = 0) -> onnx.ModelProto:
    """Return VGG-16 (configuration D) with random weights."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    tensor, channels = "data", 3

    def then(op: str, name: str, parameters: tuple[str, ...] = (), **attributes: Any) -> None:
        nonlocal tensor
        nodes.append(helper.make_node(op, [tensor, *parameters], [name], name=name, **attributes))
        tensor = name

    def weighted(op: str, name: str, shape: tuple[int, ...], **attributes: Any) -> None:
        deviation = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        weight = rng.standard_normal(shape, np.float32) * deviation
        bias = 0.1 * rng.standard_normal(shape[0], np.float32)
        weights.append(numpy_helper.from_array(weight, f"{name}_w"))
        weights.append(numpy_helper.from_array(bias, f"{name}_b"))
        then(op, name, (f"{name}_w", f"{name}_b"), **attributes)

    for stage, widths in enumerate(_VGG16_WIDTHS, 1):
        for number, width in enumerate(widths, 1):
            weighted("Conv", f"conv{stage}_{number}", (width, channels, 3, 3), pads=[1, 1, 1, 1])
            then("Relu", f"relu{stage}_{number}")
            channels = width
        then("MaxPool", f"pool{stage}", kernel_shape=[2, 2], strides=[2, 2])
    then("Flatten", "flat")
    for number, shape in enumerate(((4096, 25088), (4096, 4096), (1000, 4096)), 6):
        weighted("Gemm", f"fc{number}", shape, transB=1)
        if number < 8:
            then("Relu", f"relu{number}")
    then("Softmax", "prob", axis=1)
    image = helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, [1, 3, 224, 224])
    scores = helper.make_tensor_value_info("prob", onnx.TensorProto.FLOAT, [1, 1000])
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
