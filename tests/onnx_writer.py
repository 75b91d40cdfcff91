"""Writes Graphs as ONNX models and runs them in ONNX Runtime, to compare with."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import COMBINATIONS, infer_volumes

__all__ = ["runtime_outputs", "runtime_session", "to_onnx"]

WINDOW_ATTRS = ("kernel_shape", "strides", "dilations", "pads")


def onnx_nodes(node: Node) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return ONNX nodes and initializers that mean the same as a node of ours (opset 21)."""
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
    elif node.op == "ConvTranspose":
        padding = list(attrs["output_padding"])
        inputs = [x, f"{name}.weight", f"{name}.bias"]
        step(node.op, inputs, last, group=attrs["group"], output_padding=padding, **window)
    elif node.op in ("MaxPool", "AveragePool", "LpPool"):
        if node.op == "LpPool":
            window["p"] = attrs["p"]
        if node.op == "AveragePool":
            window["count_include_pad"] = int(attrs["count_include_pad"])
        step(node.op, [x], last, ceil_mode=int(attrs["ceil_mode"]), **window)
    elif node.op == "Gemm":
        params["weight"] = numpy_helper.from_array(node.params["weight"][:, :, None, None], f"{name}.weight")
        step("Conv", [x, f"{name}.weight", f"{name}.bias"], last)
    elif node.op == "Flatten":
        params["shape"] = numpy_helper.from_array(np.array([0, -1, 1, 1], dtype=np.int64), f"{name}.shape")
        step("Reshape", [x, f"{name}.shape"], last)
    elif node.op == "GroupNormalization":
        step(node.op, [x, f"{name}.scale", f"{name}.bias"], last, num_groups=attrs["group"], epsilon=attrs["epsilon"])
    elif node.op == "LayerNormalization":
        step("Transpose", [x], f"{last}0", perm=[0, 2, 3, 1])
        step(node.op, [f"{last}0", f"{name}.scale", f"{name}.bias"], f"{last}1", axis=-1, epsilon=attrs["epsilon"])
        step("Transpose", [f"{last}1"], last, perm=[0, 3, 1, 2])
    elif node.op == "LpNormalization":
        params = {"least": numpy_helper.from_array(np.float32(attrs["epsilon"]), f"{name}.least")}
        params["axes"] = numpy_helper.from_array(np.array([1]), f"{name}.axes")
        step(f"ReduceL{attrs['p']}", [x, f"{name}.axes"], f"{last}0")
        step("Max", [f"{last}0", f"{name}.least"], f"{last}1")
        step("Div", [x, f"{last}1"], last)
    elif node.op == "BatchNormalization":
        inputs = [x, *(f"{name}.{key}" for key in ("scale", "bias", "mean", "var"))]
        step(node.op, inputs, last, epsilon=attrs["epsilon"])
    elif node.op == "Affine":
        params = column
        step("Mul", [x, f"{name}.scale"], f"{last}0")
        step("Add", [f"{last}0", f"{name}.shift"], last)
    elif node.op in COMBINATIONS:
        step(node.op, list(node.inputs[:2]), last)
        for tensor in node.inputs[2:]:
            step(node.op, [last, tensor], f"{last}+")
            last += "+"
    elif node.op == "Concat":
        step("Concat", list(node.inputs), last, axis=1)
    elif node.op in ("Softmax", "LogSoftmax"):
        step(node.op, [x], last, axis=1)
    elif node.op == "PRelu":
        params = column
        step("PRelu", [x, f"{name}.slope"], last)
    elif node.op in ("Clip", "Pow", "Swish"):
        bounds = attrs | ({"alpha": 1.0} if node.op == "Swish" and not attrs else {})
        params = {key: numpy_helper.from_array(np.float32(value), f"{name}.{key}") for key, value in bounds.items()}
        if node.op == "Swish":
            step("Mul", [x, f"{name}.alpha"], f"{last}0")
            step("Sigmoid", [f"{last}0"], f"{last}1")
            step("Mul", [x, f"{last}1"], last)
        else:
            wanted = ("min", "max") if node.op == "Clip" else ("exponent",)
            step(node.op, [x, *(f"{name}.{key}" if key in bounds else "" for key in wanted)], last)
    elif node.op in ("Gelu", "GeluTanh"):
        step("Gelu", [x], last, approximate="tanh" if node.op == "GeluTanh" else "none")
    elif node.op == "Elu":
        params = {"gamma": numpy_helper.from_array(np.float32(attrs.get("gamma", 1.0)), f"{name}.gamma")}
        step("Elu", [x], f"{last}0", alpha=attrs["alpha"])
        step("Mul", [f"{last}0", f"{name}.gamma"], last)
    elif node.op == "LRN":
        step("LRN", [x], last, **attrs)
    elif node.op == "ChannelShuffle":
        raise NotImplementedError("ONNX has no such node; its three nodes need the volume")
    else:
        step(node.op, [x], last, **(attrs if node.op in (*ACTIVATIONS, "GlobalLpPool") else {}))
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


def move_nodes(node: Node, x: Volume) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the one node that moves values, with its lists of numbers; x: its input's volume."""
    attrs, name, made = node.attrs, node.name, []

    def constant(what: str, values: list, dtype: str = "i8") -> str:
        made.append(numpy_helper.from_array(np.array(values, dtype), f"{name}.{what}"))
        return f"{name}.{what}"

    options = {}
    if node.op == "Slice":
        cuts = zip((x.channels, x.height, x.width), attrs["starts"], attrs["ends"], attrs["steps"], strict=True)
        # backwards from the last of the part to before its first, which stands for the end where it is 0
        ranges = [
            (start, size - end, step) if step > 0 else (size - end - 1, start - 1 if start else -size - 1, step)
            for size, start, end, step in cuts
        ]
        starts, ends, steps = (list(part) for part in zip(*ranges, strict=True))
        inputs = [constant("starts", starts), constant("ends", ends), constant("axes", [1, 2, 3])]
        inputs.append(constant("steps", steps))
    elif node.op == "Pad":
        inputs = [constant("pads", list(attrs["pads"])), constant("value", attrs["value"], "f4")]
        inputs.append(constant("axes", [1, 2, 3]))
        options["mode"] = attrs["mode"]
    elif node.op == "Resize":
        by_scale = attrs["scales"][0] > 0
        inputs = [constant("roi", list(attrs["roi"]), "f4")]
        inputs += (
            [constant("scales", list(attrs["scales"]), "f4"), ""]
            if by_scale
            else ["", constant("sizes", list(attrs["sizes"]))]
        )
        options = {key: attrs[key] for key in attrs if key not in ("roi", "scales", "sizes")}
        options |= {"antialias": int(attrs["antialias"]), "exclude_outside": int(attrs["exclude_outside"])}
        options["axes"] = [2, 3]
    else:
        inputs, options["blocksize"] = [], attrs["blocksize"][0]
        if node.op == "DepthToSpace":
            options["mode"] = attrs["mode"]
    return [helper.make_node(node.op, [node.inputs[0], *inputs], [node.output], **options)], made


def to_onnx(graph: Graph, *, height: int | None = None, width: int | None = None) -> onnx.ModelProto:
    """Return an ONNX model that means the same; every output has four dimensions, the batch is free."""
    volumes = infer_volumes(graph, height, width)
    nodes, initializers = [], []
    for node in graph.nodes:
        if node.op == "ChannelShuffle":
            made, params = shuffle_nodes(node, volumes[node.output])
        elif node.op in ("Slice", "Pad", "Resize", "DepthToSpace", "SpaceToDepth"):
            made, params = move_nodes(node, volumes[node.inputs[0]])
        else:
            made, params = onnx_nodes(node)
        nodes += made
        initializers += params
    value, image = helper.make_tensor_value_info, volumes[graph.input_name]
    shape = ["N", image.channels, image.height, image.width]
    inputs = [value(graph.input_name, TensorProto.FLOAT, shape)]
    shown = [value(output.tensor, TensorProto.FLOAT, [None] * 4) for output in graph.outputs]
    made_graph = helper.make_graph(nodes, graph.name, inputs, shown, initializers)
    return helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=9)


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
