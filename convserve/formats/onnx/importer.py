"""Walks an ONNX graph: what its outputs need is folded or becomes nodes of a Graph with a free batch."""

import os

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto

from convserve.errors import ModelFormatError, ShapeError, UnsupportedOpError
from convserve.formats.onnx.constants import FOLDS, fold, shape_array
from convserve.formats.onnx.context import Context
from convserve.formats.onnx.nodes import NODES
from convserve.formats.onnx.reader import OnnxFile, opset_version
from convserve.formats.onnx.source import FLOATS, Source
from convserve.formats.onnx.spelled import FileNodes
from convserve.formats.onnx.spelled_layer_norm import spelled_layer_normalization
from convserve.formats.onnx.spelled_lrn import spelled_lrn
from convserve.formats.onnx.spelled_split import spelled_split
from convserve.formats.onnx.spelled_strided import spelled_reshape
from convserve.formats.views import BATCH, Size, Symbol, View
from convserve.graph.ir import Graph, Output, Volume

__all__ = ["load_onnx"]

SEVERAL_OUTPUTS = ("LayerNormalization", "Split")


def load_onnx(
    source: str | os.PathLike[str] | bytes | OnnxFile, *, window: tuple[int, int] | None = None
) -> Graph:
    """Return the Graph of an ONNX file, given by its path, its bytes or opened.

    window is the image's (height, width) where the file leaves them open. Parameters are float32 arrays in
    ONNX's layouts; they may be read-only views of the mapped file, unaligned and with any strides. The batch
    is free even where the file fixes it. Raises ModelNotFoundError, ModelFormatError for what is no valid ONNX
    file, UnsupportedOpError for an operation or a form of one that convserve does not run, ShapeError for a
    window that contradicts the file.
    """
    file = source if isinstance(source, OnnxFile) else OnnxFile(source)
    opset = opset_version(file.model)
    proto = file.model.graph
    name = proto.name or file.name
    nodes, needed = _needed_nodes(proto, _renamed(file, proto))
    constants = {
        tensor.name: file.array(tensor, f"the initializer '{tensor.name}'")
        for tensor in proto.initializer
        if tensor.name in needed
    }
    for sparse in proto.sparse_initializer:
        if sparse.values.name in needed:
            raise UnsupportedOpError(f"the initializer '{sparse.values.name}' is sparse; supported are dense ones")
    info = _image_input(proto, needed, {tensor.name for tensor in proto.initializer})
    volume, batch = _input_volume(info, window)
    context = Context(batch, constants=constants, needed=needed)
    image = context.begin(info.name, volume)
    context.views[info.name] = image.shaped(image.shape[: len(info.type.tensor_type.shape.dim) - 1])
    shown = {value.name for value in proto.output}
    for node in nodes:
        node_source = Source(node, opset, file)
        _import_node(context, node_source)
        _lay_out_shown(context, node_source, shown)
    graph = Graph(name, info.name, volume, context.nodes, [_output(context, value.name) for value in proto.output])
    graph.check()
    return graph


def _renamed(file: OnnxFile, proto: GraphProto) -> list[NodeProto]:
    """Return the file's nodes, with one in place of the last of several where these are spelled out."""
    tensors = {tensor.name: tensor for tensor in proto.initializer}
    graph = FileNodes(proto.node, tensors, (value.name for value in proto.input), file)
    instead = {
        name: node
        for spelled in (spelled_lrn, spelled_layer_normalization, spelled_reshape, spelled_split)
        for name, node in spelled(graph).items()
    }
    return [instead.get(node.output[0], node) if node.output else node for node in proto.node]


def _needed_nodes(proto: GraphProto, nodes: list[NodeProto]) -> tuple[list[NodeProto], set[str]]:
    """Return the nodes that the outputs need, in the file's order, and the names that these read and show."""
    writers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in writers:
                raise ModelFormatError(f"two nodes of the graph write '{name}'")
            writers[name] = index
    kept: set[int] = set()
    needed: set[str] = set()
    waiting = [value.name for value in proto.output]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        writer = writers.get(name)
        if writer is not None and writer not in kept:
            kept.add(writer)
            waiting.extend(filter(None, nodes[writer].input))
    given = {value.name for value in proto.input} | {tensor.name for tensor in proto.initializer}
    missing = sorted(needed - writers.keys() - given - {sparse.values.name for sparse in proto.sparse_initializer})
    if missing:
        raise ModelFormatError(f"the graph needs '{missing[0]}', which no node, input or initializer of it gives")
    return [nodes[index] for index in sorted(kept)], needed


def _image_input(proto: GraphProto, needed: set[str], initializers: set[str]) -> ValueInfoProto:
    inputs = [value for value in proto.input if value.name not in initializers]
    used = [value for value in inputs if value.name in needed]
    if len(used) != 1:
        names = ", ".join(f"'{value.name}'" for value in used) or "none"
        raise UnsupportedOpError(
            f"the network needs {len(used)} inputs that are no constants ({names}); supported is one image"
        )
    return used[0]


def _input_volume(info: ValueInfoProto, window: tuple[int, int] | None) -> tuple[Volume, Size]:
    """Return the image's volume and the batch that the file declares."""
    declared = info.type.tensor_type
    dims = declared.shape.dim
    if info.type.WhichOneof("value") != "tensor_type" or declared.elem_type not in FLOATS:
        raise UnsupportedOpError(f"the input '{info.name}' is no tensor of floats; supported is a float image")
    if len(dims) not in (2, 4):
        raise UnsupportedOpError(
            f"the input '{info.name}' has {len(dims)} dimensions; supported are (N, C, H, W) and (N, values)"
        )
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]
    batch, channels = sizes[:2]
    if channels is None:
        raise UnsupportedOpError(f"the input '{info.name}' leaves its channels open; they must be fixed in the file")
    height, width = sizes[2:] or (1, 1)
    if window is not None:
        if len(window) != 2 or any(size < 1 for size in window):
            raise ShapeError(f"window is {window!r}; it must be a height and a width above 0")
        if height not in (None, window[0]) or width not in (None, window[1]):
            raise ShapeError(
                f"window is {window[0]}x{window[1]}, but the file fixes it to {height or 'any'}x{width or 'any'}"
            )
        height, width = window
    return Volume(channels, height, width), batch or BATCH


def _import_node(context: Context, source: Source) -> None:
    if source.domain not in ("", "ai.onnx"):
        raise UnsupportedOpError(
            f"{source} is an operation of the domain '{source.domain}'; supported are ONNX's own: {_supported()}"
        )
    if source.op not in NODES and source.op not in FOLDS:
        raise UnsupportedOpError(f"{source} is not supported; supported are: {_supported()}")
    further = [name for name in source.outputs[1:] if name in context.needed]
    if further and source.op not in SEVERAL_OUTPUTS:
        raise UnsupportedOpError(f"{source}: its output '{further[0]}' is read; only the first output is supported")
    names = list(source.inputs)
    while names and not names[-1]:
        names.pop()
    for name in filter(None, names):
        if name not in context.constants and name not in context.views:
            raise ModelFormatError(f"{source} reads '{name}', which nothing before it writes")
    if not source.outputs or any(name in context.constants or name in context.views for name in source.outputs):
        raise ModelFormatError(f"{source} writes no tensor of its own")
    result: np.ndarray | View | list[View]
    if all(name in context.constants for name in names):
        result = fold(source, [context.constants[name] for name in names])
    elif source.op == "Shape":
        result = shape_array(source.cut_shape((BATCH, *context.view(source, 0).shape)))
    elif source.op not in NODES:
        raise UnsupportedOpError(
            f"{source} is supported on constants only, but its input depends on the image; "
            f"supported on volumes: {', '.join(sorted(NODES))}"
        )
    else:
        result = NODES[source.op](context, source)
    if isinstance(result, np.ndarray):
        context.constants[source.outputs[0]] = result
        return
    for name, view in zip(source.outputs, result if isinstance(result, list) else [result], strict=False):
        context.views[name] = view


def _lay_out_shown(context: Context, source: Source, shown: set[str]) -> None:
    """Write what brings outputs with their channels last into that order."""
    for name in shown.intersection(source.outputs):
        view = context.views.get(name)
        if view and view.channels_last:
            context.views[name] = context.in_order(source, view)


def _supported() -> str:
    return ", ".join(sorted(NODES.keys() | FOLDS.keys()))


def _output(context: Context, name: str) -> Output:
    if name in context.constants:
        raise UnsupportedOpError(f"the output '{name}' is a constant; supported are outputs that depend on the image")
    if name not in context.views:
        raise ModelFormatError(f"nothing writes the output '{name}'")
    view = context.views[name]
    shape = tuple(None if isinstance(size, Symbol) else size for size in view.shape)
    return Output(name, view.tensor, None if view.shape == view.dims else shape, view.rows)
