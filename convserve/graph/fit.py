"""What happens where strides do not fit, (W - F + 2P)/S not whole: rounded down, refused, padded or cropped."""

from dataclasses import replace

from convserve.errors import InputError, ShapeError
from convserve.graph.ir import Graph, Node, Volume
from convserve.graph.ops import OPS, Window, infer_volumes, windows

__all__ = ["FITS", "check_fit", "fit_graph", "fitted", "misfit_text", "unfitted"]

FITS = ("floor", "error", "pad", "crop")
"""floor: the last rows and columns that fill no window are not read, as in ONNX. error: refused. pad: zeros at the
bottom and right fill the last window. crop: the last rows and columns of the layer's input are cut off before its
padding is added."""

_AXES = ("height", "width")
_REACH = 64


def check_fit(fit: str) -> str:
    """Return fit; InputError where it is none of FITS."""
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}; allowed: {', '.join(FITS)}")
    return fit


def _sides(volume: Volume) -> tuple[int | None, int | None]:
    return volume.height, volume.width


def _rest(size: int | None, window: Window) -> int:
    """Return how many of the padded positions the last whole window leaves over."""
    free = 0 if size is None else size + window.pad_begin + window.pad_end - window.extent
    return free % window.stride if free > 0 else 0


def unfitted(node: Node, volume: Volume) -> tuple[int, int]:
    """Return the rows and columns of its padded input that no window of a node reads, (0, 0) where all fit.

    Automatic padding and ceil_mode say themselves how they round: these always fit.
    """
    spec = OPS[node.op]
    if not spec.windowed or node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or node.attrs.get("ceil_mode"):
        return 0, 0
    vertical, horizontal = windows(node, 0, [volume])
    if vertical.repeat > 1 or horizontal.repeat > 1:
        return 0, 0
    return _rest(volume.height, vertical), _rest(volume.width, horizontal)


def misfit_text(node: Node, volume: Volume) -> str:
    """Return what does not fit in a node that has unfitted rows or columns: the formula and the nearest sizes."""
    axis = 0 if unfitted(node, volume)[0] else 1
    window, size = windows(node, 0, [volume])[axis], _sides(volume)[axis]
    assert size is not None
    padding = window.pad_begin + window.pad_end
    rest = _rest(size, window)
    count = (size - window.extent + padding) / window.stride + 1
    below, above = size - rest, size - rest + window.stride
    return (
        f"the {_AXES[axis]} of its input does not fit: (W - F + 2P)/S + 1 ="
        f" ({size} - {window.extent} + {padding})/{window.stride} + 1 = {count:.6g} is not whole;"
        f" the nearest that fit are {below} and {above}"
    )


def fitted(node: Node, volume: Volume, fit: str) -> list[Node]:
    """Return the node over an input volume as fit wants it, behind a node that crops where that is needed.

    A pooling is not padded by a window that would see no pixel. Raises ShapeError under "error".
    """
    rest = unfitted(node, volume)
    if rest == (0, 0) or fit == "floor":
        return [node]
    if fit == "error":
        raise ShapeError(f"{node}: {misfit_text(node, volume)}")
    begins, ends = node.attrs["pads"][:2], node.attrs["pads"][2:]
    sliding = windows(node, 0, [volume])
    if fit == "pad":
        more = [window.stride - over if over else 0 for window, over in zip(sliding, rest, strict=True)]
        filled = [
            end + add if OPS[node.op].pads_zero or end + add < window.extent else end
            for end, add, window in zip(ends, more, sliding, strict=True)
        ]
        return [node.changed(attrs={**node.attrs, "pads": (*begins, *filled)})]
    # without padding behind it, a row that no window reads need not be cut off
    cut = [over if end else 0 for over, end in zip(rest, ends, strict=True)]
    if not any(cut):
        return [node]
    cropped = _cropping(node, cut[0], cut[1])
    return [cropped, node.changed(inputs=(cropped.output, *node.inputs[1:]))]


def _cropping(node: Node, rows: int, columns: int) -> Node:
    # a pooling of single pixels whose padding is below zero
    attrs = {
        "kernel_shape": (1, 1),
        "strides": (1, 1),
        "pads": (0, 0, -rows, -columns),
        "dilations": (1, 1),
        "auto_pad": "NOTSET",
        "ceil_mode": False,
        "count_include_pad": False,
    }
    name = f"{node.name}.crop"
    return Node("MaxPool", name, node.inputs[:1], f"{node.output}.crop", attrs)


def fit_graph(graph: Graph, fit: str, *, window: tuple[int, int] | None) -> Graph:
    """Return the graph with every layer fitted at the network's window, (height, width), default its input size.

    Raises ShapeError where a layer does not fit under "error", where fitting changes the shape that an output
    declares, or where the window is open.
    """
    if fit == "floor":
        return graph
    height, width = window or _sides(graph.input_volume)
    if height is None or width is None:
        raise ShapeError(f'fit="{fit}" needs the window, which the network leaves open; give window=(height, width)')
    volumes = infer_volumes(replace(graph, nodes=[]), height, width)
    nodes: list[Node] = []
    for node in graph.nodes:
        try:
            steps = fitted(node, volumes[node.inputs[0]], fit)
        except ShapeError as error:
            raise ShapeError(f"{error}{_images_that_fit(graph, height, width)}") from None
        for step in steps:
            nodes.append(step)
            volumes[step.output] = OPS[step.op].volume(step, [volumes[tensor] for tensor in step.inputs])
    before = infer_volumes(graph, height, width)
    for output in graph.outputs:
        old, new = before[output.tensor], volumes[output.tensor]
        if output.shape is not None and old.values != new.values:
            raise ShapeError(
                f'fit="{fit}" makes the output \'{output.name}\' {new} instead of {old}, for which the weights are'
            )
    return replace(graph, nodes=nodes)


def _images_that_fit(graph: Graph, height: int, width: int) -> str:
    """Return the nearest smaller and larger image in which all layers fit, as the end of a sentence, "" for none."""
    found = []
    for sign in (-1, 1):
        for step in range(1, _REACH + 1):
            size = height + sign * step, width + sign * step
            if min(size) > 0 and _all_fit(graph, *size):
                found.append(f"{size[0]}x{size[1]}")
                break
    return f"; every layer fits in images of {' and '.join(found)}" if found else ""


def _all_fit(graph: Graph, height: int, width: int) -> bool:
    try:
        volumes = infer_volumes(graph, height, width)
    except ShapeError:
        return False
    return all(unfitted(node, volumes[node.inputs[0]]) == (0, 0) for node in graph.nodes)
