"""How a network slides over larger images: window, stride, positions, and which scores see padding."""

import math
from dataclasses import dataclass, replace

from convserve.errors import InputError, ModelError, ShapeError, UnsupportedOpError
from convserve.graph.ir import Graph
from convserve.graph.ops import OPS, Window, infer_volumes, slides, windows
from convserve.graph.receptive import clean_intervals
from convserve.results import Geometry

__all__ = ["Sliding", "checked_stride", "cropping", "geometry", "sliding"]


@dataclass(frozen=True, slots=True)
class Sliding:
    """How a network slides: its window and output stride in pixels, (vertical, horizontal), and what pads in it.

    padded_by: the first node that sees padding at the window, or "" where every score equals its crop's.
    """

    window: tuple[int, int]
    stride: tuple[int, int]
    channels: int
    padded_by: str

    def positions(self, height: int, width: int, stride: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return (rows, cols) of whole windows in an image, at the output stride or another one.

        Raises ShapeError where not one fits.
        """
        down, across = stride or self.stride
        if height < self.window[0] or width < self.window[1]:
            raise ShapeError(
                f"the image is {height}x{width}; the network's window is {self.window[0]}x{self.window[1]},"
                " and at least one window must fit"
            )
        return (height - self.window[0]) // down + 1, (width - self.window[1]) // across + 1


def sliding(graph: Graph) -> Sliding:
    """Return how the (rewritten) graph's first output slides over larger images.

    Raises UnsupportedOpError naming an operation that cannot slide, ModelError where the network's own
    window is unknown or gives more than one position.
    """
    height, width = graph.input_volume.height, graph.input_volume.width
    if height is None or width is None:
        raise ModelError(f"the network '{graph.name}' declares no input size; give load(..., window=(height, width))")
    volumes = infer_volumes(graph)
    stride_of = {graph.input_name: (1, 1)}
    padded_by = ""
    for node in graph.nodes:
        ins, out = [volumes[tensor] for tensor in node.inputs], volumes[node.output]
        if not slides(node):
            does = "looks at the whole image" if OPS[node.op].whole else "treats every position in its own way"
            raise UnsupportedOpError(f'{node} {does} and cannot slide; method="crops" can')
        strides = set()
        for number, tensor in enumerate(node.inputs):
            vertical, horizontal = windows(node, number, ins)
            if not vertical.stride or not horizontal.stride:
                raise UnsupportedOpError(f'{node} reads one value everywhere and cannot slide; method="crops" can')
            before = stride_of[tensor]
            strides.add((before[0] * vertical.stride, before[1] * horizontal.stride))
            down = _clipped(vertical, ins[number].height, out.height)
            if not padded_by and (down or _clipped(horizontal, ins[number].width, out.width)):
                padded_by = node.name
        if len(strides) > 1:
            raise UnsupportedOpError(f"{node} joins volumes of different strides and cannot slide")
        stride_of[node.output] = strides.pop()
    return Sliding((height, width), stride_of[graph.outputs[0].tensor], _one_position(graph), padded_by)


def cropping(graph: Graph) -> Sliding:
    """Return the same for a network that is run on every crop: it need not slide, and every score is exact.

    The stride is that of the sliding network where it slides, else the window.
    """
    try:
        return replace(sliding(graph), padded_by="")
    except UnsupportedOpError:
        height, width = graph.input_volume.height, graph.input_volume.width
        assert height is not None
        assert width is not None
        return Sliding((height, width), (height, width), _one_position(graph), "")


def _one_position(graph: Graph) -> int:
    shown = infer_volumes(graph)[graph.outputs[0].tensor]
    if (shown.height, shown.width) != (1, 1):
        raise ModelError(
            f"the network '{graph.name}' gives {shown.height}x{shown.width} positions for its own window;"
            " a score map needs a network that gives one"
        )
    return shown.channels


def checked_stride(
    stride: int | tuple[int, int] | None, slide: Sliding, *, free: bool = False
) -> tuple[int, int]:
    """Return the (vertical, horizontal) stride of a map: the network's own, or a divisor or multiple of it.

    free: any stride will do. Raises InputError for others.
    """
    if stride is None:
        return slide.stride
    steps = tuple(stride) if isinstance(stride, (tuple, list)) else (stride, stride)
    if len(steps) != 2 or not all(isinstance(step, int) and not isinstance(step, bool) and step > 0 for step in steps):
        raise InputError(f"stride is {stride!r}; it must be a whole number above 0 or (vertical, horizontal) of such")
    for step, own in zip(steps, slide.stride, strict=True):
        if not free and step % own and own % step:
            raise InputError(
                f"stride is {stride!r}; it must divide the network's output stride {own} or be a multiple of it"
            )
    return steps[0], steps[1]


def _clipped(window: Window, size: int | None, positions: int | None) -> bool:
    assert size is not None
    assert positions is not None
    return window.pad_begin > 0 or window.reads(0, positions)[1] > size


def ring(graph: Graph, height: int, width: int, rows: int, cols: int) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right): score positions at each side that see the image's own padding.

    They are the ones outside the rows and columns that receptive-field algebra finds clean.
    """
    clean = clean_intervals(graph, infer_volumes(graph, height, width))
    (top, bottom), (left, right) = clean[graph.outputs[0].tensor]
    return min(top, rows), min(left, cols), rows - min(bottom, rows), cols - min(right, cols)


def geometry(
    graph: Graph,
    slide: Sliding,
    height: int,
    width: int,
    *,
    classes: list[int],
    labels: list[str] | None,
    stride: tuple[int, int] | None = None,
) -> Geometry:
    """Return where the scores of an image of height x width lie, and how exact they are."""
    stride = stride or slide.stride
    rows, cols = slide.positions(height, width, stride)
    seen = (0, 0, 0, 0)
    if slide.padded_by:
        top, left, bottom, right = ring(graph, height, width, *slide.positions(height, width))
        # at another stride the same pixels count, rounded to whole positions
        seen = (
            min(rows, math.ceil(top * slide.stride[0] / stride[0])),
            min(cols, math.ceil(left * slide.stride[1] / stride[1])),
            min(rows, math.ceil(bottom * slide.stride[0] / stride[0])),
            min(cols, math.ceil(right * slide.stride[1] / stride[1])),
        )
    if not slide.padded_by:
        exactness = "exact"
    elif seen[0] + seen[2] < rows and seen[1] + seen[3] < cols:
        exactness = "interior-exact"
    else:
        exactness = "padded"
    return Geometry(
        rows=rows,
        cols=cols,
        stride=stride,
        window=slide.window,
        exactness=exactness,
        ring=seen,
        classes=classes,
        labels=labels,
    )
