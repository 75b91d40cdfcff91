"""Operations that move values: slices, pads, resizes, and depth to space; what each reads along each axis.

Attributes: Slice has starts, ends and steps, each (channels, rows, columns): positions from starts on, without the
last `ends`, and where a step is negative from the last to the first. Pad has pads, (channels, rows, columns) before
and then behind, negative where values are cut off, a mode and a value. Resize has scales, or sizes where a scale is 0,
each (rows, columns), and ONNX's attributes. DepthToSpace and SpaceToDepth have a blocksize (rows, columns) and a mode.

Slice, Pad and Resize read each axis by itself, so a table for each axis says all: `taps`.
"""

import math
from fractions import Fraction

import numpy as np

from convserve.errors import ModelError, ShapeError
from convserve.graph.ir import Node, Volume
from convserve.graph.window import POINT, Window, Windows, whole

__all__ = [
    "COORDINATES",
    "NEAREST_MODES",
    "Taps",
    "depth_to_space_volume",
    "depth_to_space_windows",
    "keeps_places",
    "pad_volume",
    "pad_windows",
    "resize_flops",
    "resize_volume",
    "resize_windows",
    "slice_volume",
    "slice_windows",
    "space_to_depth_volume",
    "space_to_depth_windows",
    "taps",
]

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)
"""Resize's coordinate_transformation_mode: how the place of an output becomes one of the input."""

NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
"""Resize's nearest_mode: how a place is rounded."""

Taps = tuple[np.ndarray, np.ndarray]
"""Of one axis: the positions that each output reads, int64 (outputs, taps), and their weights, float32 of that shape.

A position of -1 stands for the constant that a Pad adds, or Resize outside its region.
"""

# Ratios of a resize up to this many outputs are found again period by period; others read whole columns.
LARGEST_PERIOD = 64
ROWS, COLUMNS = 1, 2


def _known(size: int | None, node: Node) -> int:
    if size is None:
        raise ShapeError(f"{node}: the image's height and width must be known here")
    return size


def _sizes(volume: Volume) -> tuple[int | None, ...]:
    return volume.channels, volume.height, volume.width


def _volume(node: Node, sizes: list[int | None]) -> Volume:
    if any(size is not None and size < 1 for size in sizes):
        raise ShapeError(f"{node} leaves nothing of its input: {'x'.join(map(str, sizes))}")
    channels, height, width = sizes
    assert channels is not None
    return Volume(channels, height, width)


def keeps_places(node: Node) -> bool:
    """Tell whether a Slice or Pad leaves rows and columns as they are."""
    if node.op == "Slice":
        cuts = [node.attrs[name][1:] for name in ("starts", "ends", "steps")]
        return cuts == [(0, 0), (0, 0), (1, 1)]
    pads = node.attrs["pads"]
    return not any(pads[1:3] + pads[4:])


def slice_volume(node: Node, ins: list[Volume]) -> Volume:
    """Return the volume of a Slice. Raises ShapeError where nothing is left."""
    attrs = zip(*(node.attrs[name] for name in ("starts", "ends", "steps")), strict=True)
    return _volume(
        node,
        [
            None if size is None else -(-(size - start - end) // abs(step))
            for size, (start, end, step) in zip(_sizes(ins[0]), attrs, strict=True)
        ],
    )


def slice_windows(node: Node, ins: list[Volume]) -> Windows:
    """Return what a Slice reads: single positions, or in reversed order all."""

    def along(axis: int) -> Window:
        start, end, step = (node.attrs[name][axis] for name in ("starts", "ends", "steps"))
        if step < 0:
            return whole(_known(_sizes(ins[0])[axis], node))
        return Window(stride=step, pad_begin=-start, pad_end=-end)

    return along(ROWS), along(COLUMNS)


def pad_volume(node: Node, ins: list[Volume]) -> Volume:
    """Return the volume of a Pad. Raises ShapeError where nothing is left, or nothing is there to be repeated."""
    pads = node.attrs["pads"]
    if node.attrs["mode"] != "constant":
        for axis, size in enumerate(_sizes(ins[0])):
            if size is not None and size + min(pads[axis], 0) + min(pads[axis + 3], 0) < 1:
                raise ShapeError(f"{node} leaves nothing of its input to be repeated: {ins[0]} with pads {pads}")
    return _volume(
        node,
        [None if size is None else size + pads[axis] + pads[axis + 3] for axis, size in enumerate(_sizes(ins[0]))],
    )


def pad_windows(node: Node, ins: list[Volume]) -> Windows:
    """Return what a Pad reads: its place, or what is repeated there."""

    def along(axis: int) -> Window:
        before, behind = node.attrs["pads"][axis], node.attrs["pads"][axis + 3]
        left, right, mode = max(before, 0), max(behind, 0), node.attrs["mode"]
        if mode == "constant" or not (left or right):
            return Window(pad_begin=before, pad_end=behind)
        size = _known(_sizes(ins[0])[axis], node)
        if mode == "wrap" or max(left, right) >= size + min(before, 0) + min(behind, 0):
            return whole(size)
        # a repeated border lies up to that far from its place, a reflected one twice as far
        far = 2 if mode == "reflect" else 1
        reach_back, reach_on = far * right, far * left
        return Window(kernel=reach_back + reach_on + 1, pad_begin=before + reach_back, pad_end=behind + reach_on)

    return along(ROWS), along(COLUMNS)


def _scale(node: Node, axis: int, size: int) -> float:
    given: float = node.attrs["scales"][axis]
    return given or node.attrs["sizes"][axis] / size


def resize_volume(node: Node, ins: list[Volume]) -> Volume:
    """Return the volume of a Resize. Raises ShapeError where nothing is left."""
    sizes: list[int | None] = [ins[0].channels]
    for axis, size in enumerate((ins[0].height, ins[0].width)):
        wanted: int | None = node.attrs["sizes"][axis] or None
        if not wanted and size is not None:
            wanted = math.floor(np.float32(size) * np.float32(node.attrs["scales"][axis]))
        sizes.append(wanted)
    return _volume(node, sizes)


def _stays(node: Node, axis: int, size: int, count: int | None) -> bool:
    """Tell whether a Resize leaves an axis (0 rows, 1 columns) as it is."""
    shifts = node.attrs["coordinate_transformation_mode"] in ("tf_crop_and_resize", "tf_half_pixel_for_nn")
    return size == count and _scale(node, axis, size) == 1.0 and not shifts


def _support(node: Node, scale: float) -> int:
    """How far from its place a Resize reads, in input positions."""
    reach = {"nearest": 1, "linear": 1, "cubic": 2}[node.attrs["mode"]]
    return math.ceil(reach / min(scale, 1.0)) if node.attrs["antialias"] else reach


def resize_windows(node: Node, ins: list[Volume]) -> Windows:
    """Return what a Resize reads: the neighbours of its place where ratio and coordinates repeat, else all."""
    out = resize_volume(node, ins)

    def along(axis: int) -> Window:
        size = _known((ins[0].height, ins[0].width)[axis], node)
        scale = _scale(node, axis, size)
        if _stays(node, axis, size, (out.height, out.width)[axis]):
            return POINT
        ratio = Fraction(scale).limit_denominator(LARGEST_PERIOD)
        drift = abs(float(1 / ratio) - 1 / scale) * (out.height or 0, out.width or 0)[axis] if ratio else 1.0
        plain = node.attrs["coordinate_transformation_mode"] in ("half_pixel", "asymmetric", "tf_half_pixel_for_nn")
        if not plain or not ratio or ratio.numerator > LARGEST_PERIOD or drift > 0.5:
            return whole(size)
        reach = _support(node, scale) + 2
        period, step = ratio.numerator, ratio.denominator
        return Window(kernel=step + 2 * reach, stride=step, pad_begin=reach, pad_end=reach, repeat=period)

    return along(0), along(1)


def resize_flops(node: Node, ins: list[Volume], out: Volume) -> int:
    """Return the products and sums of a Resize."""
    return 0 if node.attrs["mode"] == "nearest" else 2 * (2 if node.attrs["mode"] == "linear" else 4) ** 2 * out.values


def _blocks(node: Node) -> tuple[int, int]:
    blocks: tuple[int, int] = node.attrs["blocksize"]
    return blocks


def depth_to_space_volume(node: Node, ins: list[Volume]) -> Volume:
    """Return the volume of a DepthToSpace. Raises ModelError where the channels are no whole number of blocks."""
    down, across = _blocks(node)
    if ins[0].channels % (down * across):
        raise ModelError(f"{node}: {ins[0].channels} channels are no whole number of {down}x{across} blocks")
    height, width = (
        None if size is None else size * block
        for size, block in ((ins[0].height, down), (ins[0].width, across))
    )
    return Volume(ins[0].channels // (down * across), height, width)


def depth_to_space_windows(node: Node, ins: list[Volume]) -> Windows:
    """Return what a DepthToSpace reads: one pixel for each block."""
    down, across = _blocks(node)
    return Window(repeat=down), Window(repeat=across)


def space_to_depth_volume(node: Node, ins: list[Volume]) -> Volume:
    """Return the volume of a SpaceToDepth; what is no whole block at the end is left out."""
    down, across = _blocks(node)
    sizes = [ins[0].channels * down * across]
    return _volume(
        node,
        [*sizes, *(None if n is None else n // b for n, b in ((ins[0].height, down), (ins[0].width, across)))],
    )


def space_to_depth_windows(node: Node, ins: list[Volume]) -> Windows:
    """Return what a SpaceToDepth reads: whole blocks."""
    down, across = _blocks(node)
    return Window(kernel=down, stride=down), Window(kernel=across, stride=across)


def taps(node: Node, axis: int, size: int, count: int) -> Taps | None:
    """Return what each of `count` outputs of a Slice, Pad or Resize reads along an axis of that size.

    axis: 0 channels, 1 rows, 2 columns. None where every output reads its own place.
    """
    if node.op == "Resize":
        if not axis or _stays(node, axis - 1, size, count):
            return None
        return _resize_taps(node, axis - 1, size, count)
    if node.op == "Slice":
        start, end, step = (node.attrs[name][axis] for name in ("starts", "ends", "steps"))
        if (start, end, step) == (0, 0, 1):
            return None
        places = np.arange(start, size - end)[::step]
    else:
        before, behind = node.attrs["pads"][axis], node.attrs["pads"][axis + 3]
        if not (before or behind):
            return None
        inner = np.arange(max(-before, 0), size - max(-behind, 0))
        if node.attrs["mode"] == "constant":
            places = np.arange(-before, size + behind)
            places[(places < 0) | (places >= size)] = -1
        else:
            places = np.pad(inner, (max(before, 0), max(behind, 0)), node.attrs["mode"])
    places = places.astype(np.int64)[:, None]
    return places, np.ones(places.shape, np.float32)


def _coordinates(node: Node, axis: int, size: int, count: int) -> np.ndarray:
    """Return the place in the input, float64, of each output along an axis (0 rows, 1 columns)."""
    scale, mode = _scale(node, axis, size), node.attrs["coordinate_transformation_mode"]
    outputs = np.arange(count, dtype=np.float64)
    if mode == "asymmetric":
        return outputs / scale
    if mode == "align_corners":
        # as ONNX computes it: the last place of the output, whole or not
        last = (node.attrs["scales"][axis] * size or count) - 1
        return outputs * (size - 1) / last if last > 0 else outputs
    if mode == "tf_crop_and_resize":
        begin, end = node.attrs["roi"][axis], node.attrs["roi"][axis + 2]
        if count == 1:
            return np.full(1, 0.5 * (begin + end) * (size - 1))
        return begin * (size - 1) + outputs * (end - begin) * (size - 1) / (count - 1)
    if mode == "pytorch_half_pixel" and count == 1:
        return outputs
    if mode == "tf_half_pixel_for_nn":
        return (outputs + 0.5) / scale
    moved = size / 2 * (1 - count / (scale * size)) if mode == "half_pixel_symmetric" else 0.0
    return moved + (outputs + 0.5) / scale - 0.5


def _weights(node: Node, distance: np.ndarray) -> np.ndarray:
    away = np.abs(distance)
    if node.attrs["mode"] == "linear":
        return np.maximum(1 - away, 0)
    a = node.attrs["cubic_coeff_a"]
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
    return np.where(away <= 1, near, np.where(away < 2, far, 0))


def _resize_taps(node: Node, axis: int, size: int, count: int) -> Taps:
    places = _coordinates(node, axis, size, count)
    if node.attrs["mode"] == "nearest":
        halves = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(node.attrs["nearest_mode"], 0.0)
        up = node.attrs["nearest_mode"] in ("round_prefer_floor", "ceil")
        rounded = np.ceil(places + halves) if up else np.floor(places + halves)
        indices, weights = rounded[:, None].astype(np.int64), np.ones((count, 1))
    else:
        scale = _scale(node, axis, size)
        shrink = min(scale, 1.0) if node.attrs["antialias"] else 1.0
        reach = (1 if node.attrs["mode"] == "linear" else 2) / shrink
        around = np.arange(math.floor(-reach) + 1, math.ceil(reach) + 1)
        indices = np.floor(places)[:, None].astype(np.int64) + around
        weights = _weights(node, (indices - places[:, None]) * shrink)
        if node.attrs["exclude_outside"]:
            weights = np.where((indices >= 0) & (indices < size), weights, 0)
        if node.attrs["antialias"] or node.attrs["exclude_outside"]:
            total = weights.sum(axis=1, keepdims=True)
            # an output outside the region may have no tap at all
            weights /= np.where(total == 0, 1, total)
    indices = np.clip(indices, 0, size - 1)
    if node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        indices[(places < 0) | (places > size - 1)] = -1
    return indices, weights.astype(np.float32)
