"""Walks the layers of a Caffe network in their order: each becomes nodes of a Graph with a free batch."""

import math
from pathlib import Path

from convserve.errors import ModelError, ModelFormatError, ShapeError, UnsupportedOpError
from convserve.formats.caffe import net_pb2 as pb
from convserve.formats.caffe.context import Context
from convserve.formats.caffe.layer import Layer
from convserve.formats.caffe.layers import LAYERS, SOURCES, TRAINING
from convserve.formats.caffe.text import parse_network, test_layers
from convserve.formats.views import LARGEST, View
from convserve.graph.assembly import Assembler, Parameters
from convserve.graph.ir import Graph, Output, Volume

__all__ = ["caffe_graph"]

_KNOWN = {*LAYERS, *TRAINING, "Input", "Silence"}
_Shapes = dict[str, tuple[int, ...]]


def caffe_graph(content: bytes, path: Path, parameters: Parameters, nodes: dict[str, Layer]) -> Graph:
    """Return the Graph of a .prototxt, as its layers run in phase TEST.

    content: the text. path: of its file, for errors, and for the name where the text gives none. parameters: their
    source. nodes: filled with the layer of each node, by the node's name, before its parameters are asked for. What
    no layer reads is shown as an output. Raises ModelFormatError, and UnsupportedOpError for a layer that does not run.
    """
    what = f"'{path}'"
    net = parse_network(content, what, _KNOWN)
    layers = list(test_layers(net))
    for layer in layers:
        _check(layer, what)
    image, shape = _image(net, layers, what)
    volume = Volume(*shape[1:]) if len(shape) == 4 else Volume(shape[1], 1, 1)
    build = Assembler(net.name or path.stem, volume, parameters, input_name=image)
    context = Context(build, nodes, shape[0])
    context.views[image] = context.views[image].shaped(shape[1:])
    unread: dict[str, None] = {}
    for layer in layers:
        if layer.type not in TRAINING and layer.type != "Input":
            _add(context, layer)
            for bottom in layer.bottoms:
                unread.pop(bottom, None)
            unread |= dict.fromkeys(layer.tops)
    if not build.nodes or not unread:
        raise ModelFormatError(f"{what} has no layer that computes an output")
    outputs = [_output(name, context.views[name]) for name in unread]
    graph = Graph(build.name, build.input, volume, build.nodes, outputs).showing(outputs)
    graph.check()
    return graph


def _check(layer: Layer, what: str) -> None:
    if layer.type in SOURCES:
        raise UnsupportedOpError(
            f"{layer} feeds images of a training, as in the network that trains; give the one that is deployed"
            " (deploy.prototxt), whose image is an Input layer or an 'input'"
        )
    if layer.type not in _KNOWN:
        raise UnsupportedOpError(f"{layer} is not supported; supported are: {', '.join(sorted(_KNOWN))}")
    layer.check_numbers()


def _image(net: pb.NetParameter, layers: list[Layer], what: str) -> tuple[str, tuple[int, ...]]:
    """Return the name and the shape, batch first, of the one input that a layer reads."""
    shapes = _inputs(net, what)
    for layer in layers:
        if layer.type == "Input":
            given = [tuple(shape.dim) for shape in layer.proto.input_param.shape]
            if len(given) not in (1, len(layer.tops)):
                raise ModelFormatError(f"{layer} has {len(layer.tops)} blobs and {len(given)} shapes")
            shapes |= dict(zip(layer.tops, given * (len(layer.tops) if len(given) == 1 else 1), strict=True))
    known = set(shapes)
    for layer in layers:
        _check_read(layer, known)
        known.update(layer.tops)
    read = {bottom for layer in layers if layer.type not in TRAINING for bottom in layer.bottoms}
    used = [name for name in shapes if name in read]
    if len(used) != 1:
        names = ", ".join(f"'{name}'" for name in used) or "none"
        raise UnsupportedOpError(f"{what}: the network reads {len(used)} inputs ({names}); supported is one image")
    name, shape = used[0], shapes[used[0]]
    if len(shape) not in (2, 4) or not all(1 <= size <= LARGEST for size in shape):
        raise ModelFormatError(
            f"{what}: the input '{name}' has the shape {shape}; it must be batch, channels, height and width, each"
            f" from 1 to {LARGEST}"
        )
    return name, shape


def _check_read(layer: Layer, known: set[str]) -> None:
    for bottom in layer.bottoms:
        if bottom not in known and layer.type not in TRAINING:
            raise ModelFormatError(f"{layer} reads '{bottom}', which no input and no layer before it gives")


def _inputs(net: pb.NetParameter, what: str) -> _Shapes:
    """Return the inputs that the older files give before the layers."""
    names = list(net.input)
    shapes = [tuple(shape.dim) for shape in net.input_shape]
    dims = list(net.input_dim)
    if not shapes:
        shapes = [tuple(dims[at : at + 4]) for at in range(0, len(dims), 4)]
    elif dims:
        raise ModelFormatError(f"{what} gives both input_shape and input_dim")
    if len(shapes) != len(names) or len(dims) % 4:
        raise ModelFormatError(
            f"{what} has {len(names)} input(s), but {len(net.input_shape)} input_shape and {len(dims)} input_dim; it"
            " must have one input_shape or four input_dim for each"
        )
    return dict(zip(names, shapes, strict=True))


def _add(context: Context, layer: Layer) -> None:
    """Add one layer to the graph, and let its tops stand for what it writes."""
    for top in layer.tops:
        if top in context.views and top not in layer.bottoms:
            raise ModelFormatError(f"{layer} writes '{top}', which exists already and which it does not read")
    if layer.type == "Silence":
        context.bottoms(layer, 0, math.inf)
        return
    try:
        result = LAYERS[layer.type](context, layer)
    except (ModelFormatError, UnsupportedOpError):
        raise
    except (ModelError, ShapeError) as error:
        raise ModelFormatError(str(error)) from error
    views = result if isinstance(result, list) else [result]
    if len(views) != len(layer.tops) or len(set(layer.tops)) != len(views):
        raise ModelFormatError(f"{layer} writes {layer.tops}; it must write {len(views)} blob(s), each of its own name")
    context.views |= dict(zip(layer.tops, views, strict=True))


def _output(name: str, view: View) -> Output:
    shape = tuple(size for size in view.shape if isinstance(size, int))
    return Output(name, view.tensor, None if view.shape == view.dims else shape)
