"""How a network slides over larger images: window, stride, positions, and which scores see padding."""

from dataclasses import dataclass, replace

from convserve.errors import InputError, ModelError, ShapeError, UnsupportedOpError
from convserve.graph.ir import Graph
from convserve.graph.ops import OPS, Window, infer_volumes, slides, windows
from convserve.graph.receptive import Field, receptive_fields
from convserve.graph.restride import strides_of

__all__ = ["Sliding", "checked_stride", "cropping", "positions_along", "sliding"]


@dataclass(frozen=True, slots=True)
class Sliding:
    """How a network slides: its window and output stride in pixels, (vertical, horizontal), and what pads in it.

    padded_by: the first node that sees padding at the window, or "" where every score equals its crop's.
    beyond: pixels that a score sees above, left of, below and right of its window: padding, where the image ends.
    """

    window: tuple[int, int]
    stride: tuple[int, int]
    channels: int
    padded_by: str
    beyond: tuple[int, int, int, int] = (0, 0, 0, 0)

    def positions(
        self, height: int, width: int, stride: tuple[int, int] | None = None, edge: str = "none"
    ) -> tuple[int, int]:
        """Return (rows, cols) of windows in an image, at the output stride or another one; edge as ways.EDGES.

        Raises ShapeError where not one fits.
        """
        if height < self.window[0] or width < self.window[1]:
            raise ShapeError(
                f"the image is {height}x{width}; the network's window is {self.window[0]}x{self.window[1]},"
                " and at least one window must fit"
            )
        down, across = stride or self.stride
        return (
            positions_along(height, self.window[0], down, edge),
            positions_along(width, self.window[1], across, edge),
        )


def positions_along(size: int, window: int, stride: int, edge: str) -> int:
    """Return how many windows lie along an axis of that many pixels; with an edge other than "none", up to its end."""
    free = size - window
    return (free // stride if edge == "none" else -(-free // stride)) + 1


def sliding(graph: Graph) -> Sliding:
    """Return how the (rewritten) graph's first output slides over larger images.

    Raises UnsupportedOpError naming an operation that cannot slide, ModelError where the network's own
    window is unknown or gives more than one position.
    """
    height, width = graph.input_volume.height, graph.input_volume.width
    if height is None or width is None:
        raise ModelError(f"the network '{graph.name}' declares no input size; give load(..., window=(height, width))")
    volumes = infer_volumes(graph)
    padded_by = ""
    for node in graph.nodes:
        ins, out = [volumes[tensor] for tensor in node.inputs], volumes[node.output]
        if not slides(node):
            does = "looks at the whole image" if OPS[node.op].whole else "treats every position in its own way"
            raise UnsupportedOpError(f'{node} {does} and cannot slide; method="crops" can')
        for number in range(len(node.inputs)):
            vertical, horizontal = windows(node, number, ins)
            if not vertical.stride or not horizontal.stride:
                raise UnsupportedOpError(f'{node} reads one value everywhere and cannot slide; method="crops" can')
            down = _clipped(vertical, ins[number].height, out.height)
            if not padded_by and (down or _clipped(horizontal, ins[number].width, out.width)):
                padded_by = node.name
    shown = graph.outputs[0].tensor
    stride, channels = strides_of(graph)[shown], _one_position(graph)
    fields = receptive_fields(graph, volumes)[shown] if padded_by else (Field(), Field())
    above = [max(0, -field.offset) for field in fields]
    below = [max(0, field.offset + field.size - side) for field, side in zip(fields, (height, width), strict=True)]
    return Sliding((height, width), stride, channels, padded_by, (above[0], above[1], below[0], below[1]))


def cropping(graph: Graph) -> Sliding:
    """Return the same for a network that is run on every crop: it need not slide, and every score is exact.

    The stride is that of the sliding network where it slides, else the window.
    """
    try:
        return replace(sliding(graph), padded_by="", beyond=(0, 0, 0, 0))
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
