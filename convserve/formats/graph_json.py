"""The packed graph as JSON and back, checked: a graph that passes cannot make the engine read outside its weights."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convserve.errors import ConvserveError, ModelFormatError
from convserve.formats.packing import is_winograd, packed_shapes, winograd_shapes
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.graph.moves import COORDINATES, NEAREST_MODES
from convserve.graph.ops import COMBINATIONS, LARGEST_P, OPS, infer_volumes

__all__ = ["check_graph", "graph_from_json", "graph_to_json"]

_LARGEST = 1 << 31
# Where a size is open, volumes are checked with this one: every window of a real network fits in it.
_TRIAL_SIZE = 4096


def _is_whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < _LARGEST


def _whole_numbers(count: int, low: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, tuple) and len(value) == count and all(_is_whole(number, low) for number in value)
    )


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_ATTRIBUTES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kernel_shape": (_whole_numbers(2, 1), "two whole numbers above 0"),
    "strides": (_whole_numbers(2, 1), "two whole numbers above 0"),
    "dilations": (_whole_numbers(2, 1), "two whole numbers above 0"),
    "pads": (_whole_numbers(4, 0), "four whole numbers from 0"),
    "weight_shape": (_whole_numbers(4, 1), "four whole numbers above 0"),
    "auto_pad": (lambda value: value in ("NOTSET", "SAME_UPPER", "SAME_LOWER"), "NOTSET, SAME_UPPER or SAME_LOWER"),
    "activation": (lambda value: value in ("", "relu"), '"" or "relu"'),
    "group": (lambda value: _is_whole(value, 1), "a whole number above 0"),
    "size": (lambda value: _is_whole(value, 1), "a whole number above 0"),
    "p": (lambda value: _is_whole(value, 1) and value <= LARGEST_P, f"a whole number from 1 to {LARGEST_P}"),
    "ceil_mode": (lambda value: isinstance(value, bool), "true or false"),
    "count_include_pad": (lambda value: isinstance(value, bool), "true or false"),
    "alpha": (_is_real, "a finite number"),
    "beta": (_is_real, "a finite number"),
    "bias": (_is_real, "a finite number"),
    "epsilon": (_is_real, "a finite number"),
    "gamma": (_is_real, "a finite number"),
    "min": (_is_real, "a finite number"),
    "max": (_is_real, "a finite number"),
    "exponent": (_is_real, "a finite number"),
}

def _one_of(*texts: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: isinstance(value, str) and value in texts), ", ".join(texts[:-1]) + f" or {texts[-1]}"


def _is_signed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


# Poolings clip their windows to the input, so that padding below 0 at its end makes them crop it.
_CROPPING_PADS: tuple[Callable[[Any], bool], str] = (
    lambda value: _whole_numbers(4, -_LARGEST)(value) and min(value[:2]) >= 0,
    "four whole numbers, the first two from 0",
)
# By the attribute's name, or where it is another thing to an operation, by both.
_ATTRIBUTES |= {
    "MaxPool.pads": _CROPPING_PADS,
    "AveragePool.pads": _CROPPING_PADS,
    "starts": (_whole_numbers(3, 0), "three whole numbers from 0"),
    "ends": (_whole_numbers(3, 0), "three whole numbers from 0"),
    "steps": (
        lambda value: isinstance(value, tuple) and len(value) == 3 and all(_is_signed(step) and step for step in value),
        "three whole numbers other than 0",
    ),
    "Pad.pads": (
        lambda value: isinstance(value, tuple) and len(value) == 6 and all(map(_is_signed, value)),
        "six whole numbers",
    ),
    "Pad.mode": _one_of("constant", "edge", "reflect", "wrap"),
    "value": (_is_real, "a finite number"),
    "blocksize": (_whole_numbers(2, 1), "two whole numbers above 0"),
    "mode": _one_of("DCR", "CRD"),
    "Resize.mode": _one_of("nearest", "linear", "cubic"),
    "coordinate_transformation_mode": _one_of(*COORDINATES),
    "nearest_mode": _one_of(*NEAREST_MODES),
    "antialias": (lambda value: isinstance(value, bool), "true or false"),
    "exclude_outside": (lambda value: isinstance(value, bool), "true or false"),
    "cubic_coeff_a": (_is_real, "a finite number"),
    "extrapolation_value": (_is_real, "a finite number"),
    "scales": (
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(_is_real(s) and s >= 0 for s in value),
        "two numbers from 0",
    ),
    "sizes": (_whole_numbers(2, 0), "two whole numbers from 0"),
    "roi": (
        lambda value: isinstance(value, tuple) and len(value) in (0, 4) and all(map(_is_real, value)),
        "four numbers or none",
    ),
}

_WINDOW = {"kernel_shape", "strides", "dilations", "pads", "auto_pad"}
_REQUIRED: dict[str, set[str]] = {
    "Conv": _WINDOW | {"group", "activation", "weight_shape"},
    "LocallyConnected": _WINDOW | {"group"},
    "MaxPool": _WINDOW,
    "AveragePool": _WINDOW,
    "LpPool": _WINDOW | {"p"},
    "GlobalLpPool": {"p"},
    "GroupNormalization": {"group", "epsilon"},
    "LayerNormalization": {"epsilon"},
    "LpNormalization": {"p", "epsilon"},
    "Flatten": {"kernel_shape"},
    "BatchNormalization": {"epsilon"},
    "LRN": {"size", "alpha", "beta", "bias"},
    "ChannelShuffle": {"group"},
    **{
        op: {name for name, default in activation.parameters.items() if default is None}
        for op, activation in ACTIVATIONS.items()
    },
    "Slice": {"starts", "ends", "steps"},
    "Pad": {"pads", "mode", "value"},
    "DepthToSpace": {"blocksize", "mode"},
    "SpaceToDepth": {"blocksize", "mode"},
    "Resize": {
        "mode",
        "coordinate_transformation_mode",
        "nearest_mode",
        "antialias",
        "exclude_outside",
        "cubic_coeff_a",
        "extrapolation_value",
        "scales",
        "sizes",
        "roi",
    },
}
_OPTIONAL: dict[str, set[str]] = {
    "MaxPool": {"ceil_mode", "count_include_pad"},
    "AveragePool": {"ceil_mode", "count_include_pad"},
    "LpPool": {"ceil_mode", "count_include_pad"},
    "Gemm": {"activation"},
    "Affine": {"activation"},
    **{op: {"activation"} for op in ("LocallyConnected", *COMBINATIONS)},
    **{op: set(activation.parameters) for op, activation in ACTIVATIONS.items()},
}
_INPUTS: dict[str, tuple[int, int]] = {
    "Conv": (1, 2),
    "Concat": (1, 1 << 16),
    **dict.fromkeys(COMBINATIONS, (2, 1 << 16)),
}
_PER_CHANNEL = {
    "Affine": ("scale", "shift"),
    "BatchNormalization": ("scale", "bias", "mean", "var"),
    "GroupNormalization": ("scale", "bias"),
    "LayerNormalization": ("scale", "bias"),
    "PRelu": ("slope",),
}


def _check_attributes(node: Node) -> None:
    required = _REQUIRED.get(node.op, set())
    allowed = required | _OPTIONAL.get(node.op, set())
    for name in sorted(required - set(node.attrs)):
        raise ModelFormatError(f"{node} lacks the attribute {name}")
    for name, value in node.attrs.items():
        if name not in allowed:
            raise ModelFormatError(f"{node} has the attribute {name!r}, which {node.op} does not have")
        fits, wanted = _ATTRIBUTES.get(f"{node.op}.{name}") or _ATTRIBUTES[name]
        if not fits(value):
            raise ModelFormatError(f"{node} has {name} = {value!r}; it must be {wanted}")


def _param_shapes(node: Node, ins: list[Volume]) -> dict[str, tuple[int, ...]]:
    if node.op == "Conv":
        return packed_shapes(node) | (winograd_shapes(node) if is_winograd(node) else {})
    if node.op == "LocallyConnected":
        rows, columns, group, taps, filters = node.params["weight"].shape
        return {"weight": (rows, columns, group, taps, filters), "bias": (rows, columns, group * filters)}
    if node.op == "Gemm":
        outputs = node.params["weight"].shape[0]
        return {"weight": (outputs, ins[0].channels), "bias": (outputs,)}
    return dict.fromkeys(_PER_CHANNEL.get(node.op, ()), (ins[0].channels,))


def _check_params(node: Node, ins: list[Volume]) -> None:
    shapes = _param_shapes(node, ins)
    if set(node.params) != set(shapes):
        raise ModelFormatError(f"{node} has the parameters {sorted(node.params)}; it must have {sorted(shapes)}")
    for name, shape in shapes.items():
        array = node.params[name]
        allowed = ("float32", "float16", "uint16 (bfloat16)") if name == "panels" else ("float32",)
        if array.dtype.name not in (text.split()[0] for text in allowed):
            raise ModelFormatError(f"{node}: the parameter {name} is {array.dtype}; it must be {' or '.join(allowed)}")
        if array.shape != shape:
            raise ModelFormatError(f"{node}: the parameter {name} has shape {array.shape}; it must be {shape}")


def _check_resize(node: Node) -> None:
    attrs = node.attrs
    if any(not scale and not size for scale, size in zip(attrs["scales"], attrs["sizes"], strict=True)):
        raise ModelFormatError(f"{node} has neither scale nor size: {attrs['scales']} and {attrs['sizes']}")
    if (attrs["coordinate_transformation_mode"] == "tf_crop_and_resize") != bool(attrs["roi"]):
        raise ModelFormatError(f"{node} has the roi {attrs['roi']}, which belongs to tf_crop_and_resize")


def _check_node(node: Node, ins: list[Volume]) -> None:
    _check_params(node, ins)
    if node.op == "Conv" and node.attrs["weight_shape"][2:] != node.attrs["kernel_shape"]:
        raise ModelFormatError(
            f"{node} has kernel_shape {node.attrs['kernel_shape']}, but weights {node.attrs['weight_shape']}"
        )
    if node.op == "LpNormalization" and node.attrs["p"] > 2:
        raise ModelFormatError(f"{node} has p = {node.attrs['p']}; it must be 1 or 2")


def check_graph(graph: Graph) -> None:
    """Raise ModelFormatError unless the container can hold the packed graph and the engine can trust it.

    Checked: operations, attributes and their types, numbers of inputs, order of tensors, volumes,
    names, shapes and dtypes of parameters, declared output shapes.
    """
    for node in graph.nodes:
        if node.op not in OPS:
            raise ModelFormatError(f"{node} is no operation that convserve knows ({', '.join(OPS)})")
        _check_attributes(node)
        if node.op == "Resize":
            _check_resize(node)
        low, high = _INPUTS.get(node.op, (1, 1))
        if not low <= len(node.inputs) <= high:
            raise ModelFormatError(f"{node} reads {len(node.inputs)} tensor(s); {node.op} reads {low} to {high}")
        # Inferring the volumes reads this shape.
        rank = {"Gemm": 2, "LocallyConnected": 5}.get(node.op)
        if rank and ("weight" not in node.params or node.params["weight"].ndim != rank):
            raise ModelFormatError(f"{node} lacks a weight of {rank} dimensions")
    try:
        graph.check()
        volume = graph.input_volume
        volumes = infer_volumes(graph, volume.height or _TRIAL_SIZE, volume.width or _TRIAL_SIZE)
        for node in graph.nodes:
            _check_node(node, [volumes[tensor] for tensor in node.inputs])
    except ModelFormatError:
        raise
    except ConvserveError as error:
        raise ModelFormatError(f"the graph contradicts itself: {error}") from error
    sized = volume.height is not None and volume.width is not None
    for output in graph.outputs:
        values = volumes[output.tensor].values
        if sized and output.shape is not None and None not in output.shape:
            declared = (output.rows or 1) * math.prod(size for size in output.shape if size is not None)
            if declared != values:
                raise ModelFormatError(f"the output '{output.name}' declares {declared} values, but has {values}")


def graph_to_json(graph: Graph, tensor_names: Mapping[tuple[int, str], str]) -> dict[str, Any]:
    """Return the graph as JSON has it; tensor_names gives each (node number, parameter)'s tensor in the file."""
    volume = graph.input_volume
    return {
        "name": graph.name,
        "input": {"name": graph.input_name, "volume": [volume.channels, volume.height, volume.width]},
        "nodes": [
            {
                "op": node.op,
                "name": node.name,
                "inputs": list(node.inputs),
                "output": node.output,
                "attrs": {name: _plain(value) for name, value in sorted(node.attrs.items())},
                "params": {param: tensor_names[number, param] for param in node.params},
            }
            for number, node in enumerate(graph.nodes)
        ],
        "outputs": [
            {
                "name": output.name,
                "tensor": output.tensor,
                "shape": None if output.shape is None else list(output.shape),
                **({} if output.rows == 1 else {"rows": output.rows}),
            }
            for output in graph.outputs
        ],
    }


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _field(record: Any, name: str, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(record, dict):
        raise ModelFormatError(f"{what} is {record!r}; it must be a JSON object")
    if name not in record:
        raise ModelFormatError(f"{what} lacks the entry '{name}'")
    if not isinstance(record[name], kind) or isinstance(record[name], bool):
        raise ModelFormatError(f"{what} has {name} = {record[name]!r}, which is of the wrong type")
    return record[name]


def _texts(values: list[Any], what: str) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str):
            raise ModelFormatError(f"{what} names the tensor {value!r}; a name must be a text")
    return tuple(values)


def _node_from_json(record: Any, number: int, tensors: Mapping[str, np.ndarray]) -> Node:
    what = f"node {number} of the graph"
    attrs = _field(record, "attrs", dict, what)
    params = {}
    for param, tensor in _field(record, "params", dict, what).items():
        if not isinstance(tensor, str) or tensor not in tensors:
            raise ModelFormatError(
                f"{what} takes its parameter '{param}' from the tensor {tensor!r}, which is not there"
            )
        params[param] = tensors[tensor]
    return Node(
        _field(record, "op", str, what),
        _field(record, "name", str, what),
        _texts(_field(record, "inputs", list, what), what),
        _field(record, "output", str, what),
        {name: tuple(value) if isinstance(value, list) else value for name, value in attrs.items()},
        params,
    )


def _output_from_json(record: Any, number: int) -> Output:
    what = f"output {number} of the graph"
    shape = _field(record, "shape", (list, type(None)), what)
    if shape is not None and not all(size is None or _is_whole(size, 0) for size in shape):
        raise ModelFormatError(f"{what} has the shape {shape!r}; its sizes must be whole numbers or null")
    name, tensor, rows = _field(record, "name", str, what), _field(record, "tensor", str, what), record.get("rows", 1)
    if not _is_whole(rows, 0) or (rows != 1 and shape is None):
        raise ModelFormatError(f"{what} has the rows {rows!r}; they must be a whole number, of an output with a shape")
    return Output(name, tensor, None if shape is None else tuple(shape), rows)


def graph_from_json(record: Any, tensors: Mapping[str, np.ndarray]) -> Graph:
    """Return the packed graph of what graph_to_json gave; tensors are the file's arrays by name.

    Raises ModelFormatError for anything missing, of the wrong type or contradictory.
    """
    what = "the graph"
    image = _field(record, "input", dict, what)
    volume = _field(image, "volume", list, "the graph's input")
    if (
        len(volume) != 3
        or not _is_whole(volume[0], 1)
        or not all(size is None or _is_whole(size, 1) for size in volume[1:])
    ):
        raise ModelFormatError(f"the graph's input has the volume {volume!r}; it must be channels, height, width")
    graph = Graph(
        _field(record, "name", str, what),
        _field(image, "name", str, "the graph's input"),
        Volume(*volume),
        [_node_from_json(node, number, tensors) for number, node in enumerate(_field(record, "nodes", list, what))],
        [_output_from_json(output, number) for number, output in enumerate(_field(record, "outputs", list, what))],
    )
    check_graph(graph)
    return graph
