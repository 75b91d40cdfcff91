"""Writes Graphs as ONNX models and runs them in ONNX Runtime, to compare with."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import infer_volumes

__all__ = ["runtime_outputs", "runtime_session", "to_onnx"]

WINDOW_ATTRS = ("kernel_shape", "strides", "dilations", "pads")


def onnx_nodes(node: Node) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return ONNX nodes and initializers that mean the same as a node of ours (opset 19)."""
    name, x, attrs = node.name, node.inputs[0], node.attrs
    params = {key: numpy_helper.from_array(value, f"{name}.{key}") for key, value in node.params.items()}
    column = {
        key: numpy_helper.from_array(value[:, None, None], f"{name}.{key}")
        for key, value in node.params.items()
        if value.ndim == 1
    }
    window = {key: list(attrs[key]) for key in WINDOW_ATTRS if key in attrs}
    if attrs.get("auto_pad", "NOTSET") != "NOTSET":
        window.pop("pads")
        window["auto_pad"] = attrs["auto_pad"]
    steps: list[onnx.NodeProto] = []
    last = f"{name}.sum"

    def step(op: str, inputs: list[str], output: str, **attributes) -> None:
        steps.append(helper.make_node(op, inputs, [output], **attributes))

    if node.op == "Conv":
        step("Conv", [x, f"{name}.weight", f"{name}.bias"], last, group=attrs["group"], **window)
        if len(node.inputs) == 2:
            step("Add", [last, node.inputs[1]], f"{last}2")
            last += "2"
    elif node.op in ("MaxPool", "AveragePool"):
        if node.op == "AveragePool":
            window["count_include_pad"] = int(attrs["count_include_pad"])
        step(node.op, [x], last, ceil_mode=int(attrs["ceil_mode"]), **window)
    elif node.op == "Gemm":
        params["weight"] = numpy_helper.from_array(node.params["weight"][:, :, None, None], f"{name}.weight")
        step("Conv", [x, f"{name}.weight", f"{name}.bias"], last)
    elif node.op == "Flatten":
        params["shape"] = numpy_helper.from_array(np.array([0, -1, 1, 1], dtype=np.int64), f"{name}.shape")
        step("Reshape", [x, f"{name}.shape"], last)
    elif node.op == "BatchNormalization":
        inputs = [x, *(f"{name}.{key}" for key in ("scale", "bias", "mean", "var"))]
        step(node.op, inputs, last, epsilon=attrs["epsilon"])
    elif node.op == "Affine":
        params = column
        step("Mul", [x, f"{name}.scale"], f"{last}0")
        step("Add", [f"{last}0", f"{name}.shift"], last)
    elif node.op in ("Add", "Mul"):
        step(node.op, list(node.inputs[:2]), last)
        for tensor in node.inputs[2:]:
            step(node.op, [last, tensor], f"{last}+")
            last += "+"
    elif node.op == "Concat":
        step("Concat", list(node.inputs), last, axis=1)
    elif node.op == "Softmax":
        step("Softmax", [x], last, axis=1)
    elif node.op == "LRN":
        step("LRN", [x], last, **attrs)
    elif node.op == "ChannelShuffle":
        raise NotImplementedError("ONNX has no such node; its three nodes need the volume")
    else:
        step(node.op, [x], last)
    if attrs.get("activation") == "relu":
        step("Relu", [last], f"{last}.relu")
        last += ".relu"
    steps[-1].output[0] = node.output
    return steps, list(params.values())


def shuffle_nodes(node: Node, volume: Volume) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    group, name = node.attrs["group"], node.name
    split = np.array([-1, group, volume.channels // group, volume.height, volume.width], dtype=np.int64)
    whole = np.array([-1, volume.channels, volume.height, volume.width], dtype=np.int64)
    steps = [
        helper.make_node("Reshape", [node.inputs[0], f"{name}.split"], [f"{name}.5d"]),
        helper.make_node("Transpose", [f"{name}.5d"], [f"{name}.turned"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", [f"{name}.turned", f"{name}.whole"], [node.output]),
    ]
    return steps, [numpy_helper.from_array(split, f"{name}.split"), numpy_helper.from_array(whole, f"{name}.whole")]


def to_onnx(graph: Graph, *, height: int | None = None, width: int | None = None) -> onnx.ModelProto:
    """Return an ONNX model that means the same; every output has four dimensions, the batch is free."""
    volumes = infer_volumes(graph, height, width)
    nodes, initializers = [], []
    for node in graph.nodes:
        if node.op == "ChannelShuffle":
            made, params = shuffle_nodes(node, volumes[node.output])
        else:
            made, params = onnx_nodes(node)
        nodes += made
        initializers += params
    value, image = helper.make_tensor_value_info, volumes[graph.input_name]
    shape = ["N", image.channels, image.height, image.width]
    inputs = [value(graph.input_name, TensorProto.FLOAT, shape)]
    shown = [value(output.tensor, TensorProto.FLOAT, [None] * 4) for output in graph.outputs]
    made_graph = helper.make_graph(nodes, graph.name, inputs, shown, initializers)
    return helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def runtime_session(source: str | bytes, *, threads: int = 1, optimized: bool = True) -> onnxruntime.InferenceSession:
    """Return a quiet ONNX Runtime session over a file or a serialized model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def runtime_outputs(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    """Run a graph of ours through ONNX Runtime and return its outputs, in order, as (N, C, H, W)."""
    model = to_onnx(graph, height=x.shape[2], width=x.shape[3])
    return runtime_session(model.SerializeToString(), optimized=False).run(None, {graph.input_name: x})
