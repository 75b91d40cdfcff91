"""Other output strides: strides taken out of layers (à trous), or given to the last ones that look around.

A layer whose stride is divided gives more positions, of which the old ones are every so many; what reads them steps
over the new ones: its dilation and pads are multiplied. All ways give the same function of the image, also where
they read padding, since a tensor's positions are the same pixels in each; they differ in the work.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from convserve.errors import UnsupportedOpError
from convserve.graph.ir import Graph, Node
from convserve.graph.ops import OPS, infer_volumes, windows
from convserve.graph.window import POINT

__all__ = ["as_gemm", "begins_with_convolutions", "coarsened", "extended", "least_work", "refined", "strides_of"]

Pair = tuple[int, int]
Levels = dict[int, int]
"""Along one axis: the stride that tensors of each stride get, in input pixels."""

_STRIDED = ("Conv", "MaxPool", "AveragePool", "LpPool")
# Positions beside the one at the window, over which the work of forms is compared.
_MORE_POSITIONS = 8


def strides_of(graph: Graph) -> dict[str, Pair]:
    """Return the (vertical, horizontal) stride of every tensor of a graph that slides, in input pixels.

    Raises UnsupportedOpError where tensors of different strides are joined.
    """
    volumes = infer_volumes(graph)
    stride_of = {graph.input_name: (1, 1)}
    for node in graph.nodes:
        ins = [volumes[tensor] for tensor in node.inputs]
        strides = set()
        for number, tensor in enumerate(node.inputs):
            vertical, horizontal = windows(node, number, ins)
            strides.add((stride_of[tensor][0] * vertical.stride, stride_of[tensor][1] * horizontal.stride))
        if len(strides) > 1:
            raise UnsupportedOpError(f"{node} joins volumes of different strides and cannot slide")
        stride_of[node.output] = strides.pop()
    return stride_of


# ---- finer


def refined(graph: Graph, stride: Pair) -> Iterator[Graph]:
    """Yield every form of a (packed or unpacked) graph that slides at a stride which divides its own.

    Layers that get a dilation run as GEMMs, whatever ran them before. Nothing is yielded where a layer behind every
    stride that would have to go cannot be dilated.
    """
    stride_of = strides_of(graph)
    steps = [(stride_of[node.inputs[0]], stride_of[node.output]) for node in graph.nodes]
    out = stride_of[graph.outputs[0].tensor]
    ways = [
        list(_levels({(before[axis], behind[axis]) for before, behind in steps}, out[axis], stride[axis]))
        for axis in range(2)
    ]
    alike = ways[0] == ways[1]
    for down, across in zip(ways[0], ways[1], strict=True) if alike else product(*ways):
        form = _refined(graph, stride_of, (down, across))
        if form is not None:
            yield form


def least_work(graph: Graph, stride: Pair) -> Graph:
    """Return the form of least arithmetic, whatever the machine and the image; of several the first.

    Raises UnsupportedOpError where there is none.
    """
    assert graph.input_volume.height is not None
    assert graph.input_volume.width is not None
    own = strides_of(graph)[graph.outputs[0].tensor]
    height = graph.input_volume.height + _MORE_POSITIONS * own[0]
    width = graph.input_volume.width + _MORE_POSITIONS * own[1]

    def work(form: Graph) -> int:
        volumes = infer_volumes(form, height, width)
        return sum(
            OPS[node.op].flops(node, [volumes[tensor] for tensor in node.inputs], volumes[node.output])
            for node in form.nodes
        )

    best = min(refined(graph, stride), key=work, default=None)
    if best is None:
        raise UnsupportedOpError(
            f"the network '{graph.name}' has no à trous form at stride {stride[0]}x{stride[1]}: a layer behind the"
            ' strides cannot be dilated; method="shifted" can'
        )
    return best


def _levels(edges: set[Pair], own: int, wanted: int) -> Iterator[Levels]:
    # all ways along one axis; edges: strides before and behind each node
    strides = sorted({stride for edge in edges for stride in edge} | {1, own})
    inner = [stride for stride in strides if stride not in (1, own)]
    divisors = [[new for new in range(stride, 0, -1) if stride % new == 0 and wanted % new == 0] for stride in inner]
    if own == 1:
        divisors = []
    for chosen in product(*divisors):
        new = {1: 1, own: wanted, **dict(zip(inner, chosen, strict=True))}
        # a stride is divided or stays; none is multiplied
        if all(new[b] % new[a] == 0 and new[b] // new[a] <= b // a for a, b in edges):
            yield new


def _refined(graph: Graph, stride_of: dict[str, Pair], levels: tuple[Levels, Levels]) -> Graph | None:
    volumes = infer_volumes(graph)
    nodes = []
    for node in graph.nodes:
        before, behind = stride_of[node.inputs[0]], stride_of[node.output]
        finer = tuple(before[axis] // levels[axis][before[axis]] for axis in range(2))
        finer_out = tuple(behind[axis] // levels[axis][behind[axis]] for axis in range(2))
        pair = windows(node, 0, [volumes[tensor] for tensor in node.inputs])
        changed: Node | None = node
        if pair != (POINT, POINT) and finer + finer_out != (1, 1, 1, 1):
            changed = _dilated(node, finer, finer_out)
        if changed is None:
            return None
        nodes.append(changed)
    return replace(graph, nodes=nodes)


def _dilated(node: Node, finer: tuple[int, ...], finer_out: tuple[int, ...]) -> Node | None:
    # finer: new positions of the input for each old one; None where the node cannot step over them
    if node.op not in _STRIDED:
        return None
    attrs = node.attrs
    pads, strides = list(attrs["pads"]), attrs["strides"]
    if attrs.get("ceil_mode"):
        # rounding up is padding behind the end, which counts positions of the old stride
        if attrs.get("count_include_pad"):
            return None
        for axis in range(2):
            extent = attrs["dilations"][axis] * (attrs["kernel_shape"][axis] - 1) + 1
            pads[2 + axis] += strides[axis] - 1
            if pads[2 + axis] >= extent:
                return None
    changes: dict[str, Any] = {
        "strides": tuple(strides[axis] * finer[axis] // finer_out[axis] for axis in range(2)),
        "dilations": tuple(attrs["dilations"][axis] * finer[axis] for axis in range(2)),
        "pads": tuple(pads[side] * finer[side % 2] for side in range(4)),
    }
    if "ceil_mode" in attrs:
        changes["ceil_mode"] = False
    return as_gemm(node.changed(attrs={**attrs, **changes}))


def as_gemm(node: Node) -> Node:
    """Return a node without transformed weights: it runs as a GEMM."""
    return node.changed(params={name: array for name, array in node.params.items() if name != "winograd_panels"})


# ---- coarser


def coarsened(graph: Graph, times: Pair) -> Graph:
    """Return the form of a (packed or unpacked) graph that computes only every so many positions of its first output.

    The stride goes to the last layers that look around; what reads single pixels behind them is computed where it is
    asked for. A tensor that others read as well is thinned out behind them.
    """
    if times == (1, 1):
        return graph
    readers, shown = graph.readers(), graph.outputs[0].tensor
    producers, volumes = graph.producers(), infer_volumes(graph)
    changed: dict[str, Node] = {}
    thinned: dict[str, str] = {}
    added: list[Node] = []

    def thin(tensor: str) -> str:
        """Return the tensor that holds every so many positions of one."""
        if tensor in thinned:
            return thinned[tensor]
        node = producers.get(tensor)
        once = len(readers[tensor]) + (tensor == shown) == 1
        pairs = (
            []
            if node is None
            else [windows(node, number, [volumes[each] for each in node.inputs]) for number in range(len(node.inputs))]
        )
        if node is None or not once or (pairs[0] != (POINT, POINT) and node.op not in _STRIDED):
            name = f"{tensor}:thinned"
            added.append(_thinning(tensor, name, times))
            thinned[tensor] = name
            return name
        thinned[tensor] = tensor
        inputs = list(node.inputs)
        attrs = node.attrs
        if pairs[0] != (POINT, POINT):
            strides = tuple(attrs["strides"][axis] * times[axis] for axis in range(2))
            attrs = {**attrs, "strides": strides, **({"ceil_mode": False} if "ceil_mode" in attrs else {})}
        else:
            inputs[0] = thin(inputs[0])
        inputs[1:] = [thin(each) for each in inputs[1:]]
        changed[tensor] = as_gemm(node.changed(inputs=tuple(inputs), attrs=attrs))
        return tensor

    name = thin(shown)
    after = {node.inputs[0]: node for node in added}
    nodes = [after[graph.input_name]] if graph.input_name in after else []
    for node in graph.nodes:
        nodes.append(changed.get(node.output, node))
        if node.output in after:
            nodes.append(after[node.output])
    outputs = [replace(output, tensor=name if output.tensor == shown else output.tensor) for output in graph.outputs]
    return replace(graph, nodes=nodes, outputs=outputs)


def _thinning(tensor: str, name: str, times: Pair) -> Node:
    attrs = {
        "kernel_shape": (1, 1),
        "strides": times,
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
        "auto_pad": "NOTSET",
        "ceil_mode": False,
    }
    return Node("MaxPool", name, (tensor,), name, attrs)


# ---- wider


def begins_with_convolutions(graph: Graph) -> bool:
    """Tell whether nothing but convolutions reads the image."""
    first = [node for node in graph.nodes if graph.input_name in node.inputs]
    return all(node.op == "Conv" and len(node.inputs) == 1 for node in first)


def extended(graph: Graph, bottom: int, right: int) -> Graph:
    """Return the form of a graph that sees so many rows and columns of zeros behind the end of any image.

    Convolutions that read the image pad them (begins_with_convolutions); otherwise a Pad comes first, which needs the
    image's height.
    """
    if begins_with_convolutions(graph):
        nodes = []
        for node in graph.nodes:
            if graph.input_name in node.inputs:
                top, left, below, behind = node.attrs["pads"]
                node = node.changed(attrs={**node.attrs, "pads": (top, left, below + bottom, behind + right)})
            nodes.append(node)
        return replace(graph, nodes=nodes)
    name = f"{graph.input_name}:extended"
    attrs = {"pads": (0, 0, 0, 0, bottom, right), "mode": "constant", "value": 0.0}
    pad = Node("Pad", name, (graph.input_name,), name, attrs)
    nodes = [
        node.changed(inputs=tuple(name if tensor == graph.input_name else tensor for tensor in node.inputs))
        for node in graph.nodes
    ]
    outputs = [replace(out, tensor=name if out.tensor == graph.input_name else out.tensor) for out in graph.outputs]
    return replace(graph, nodes=[pad, *nodes], outputs=outputs)
