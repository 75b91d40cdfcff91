"""Importers of ONNX operations that move values: Split, Slice, Pad, Resize, Upsample, DepthToSpace and its inverse."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.constants import shape_array
from convserve.formats.onnx.context import Context
from convserve.formats.onnx.source import Source
from convserve.formats.views import BATCH, View
from convserve.graph.moves import COORDINATES, NEAREST_MODES

__all__ = ["MOVES", "depth_to_space_of", "enlarged"]

# Ends from here on mean the end of the axis, as exporters write it.
ENDLESS = (1 << 31) - 1
LARGEST = 1 << 24
Triple = tuple[int, int, int]


def _volume(context: Context, source: Source) -> tuple[View, list[int | None]]:
    """Return the input as a volume, and its sizes from the channels on, None where the image decides."""
    view = context.volume(source, context.view(source, 0))
    sizes = [view.volume.channels, view.volume.height, view.volume.width]
    return view, sizes[: len(view.shape)]


def _numbers(context: Context, source: Source, index: int, *, batch: bool = False) -> tuple[int, ...] | None:
    """Return a constant of whole numbers, None where it is left out; batch: the free batch may come first, as a 1."""
    array = context.constant(source, index, optional=True)
    if array is None:
        return None
    if batch and array.dtype == object and array.size and array.flat[0] == BATCH:
        array = shape_array([1, *array.flat[1:]])
    if array.dtype.kind not in "iu":
        raise UnsupportedOpError(f"{source}: its input {index} is no list of whole numbers that the file fixes")
    return tuple(int(value) for value in array.reshape(-1))


def _axes(source: Source, axes: Sequence[int] | None, rank: int, count: int) -> list[int]:
    """Return the axes, counted from 0 with the batch, that `count` values belong to."""
    positive = [axis + rank if axis < 0 else axis for axis in (range(count) if axes is None else axes)]
    if len(positive) != count or len(set(positive)) != count or not all(0 <= axis < rank for axis in positive):
        raise ModelFormatError(f"{source}: axes {axes} do not fit {count} values for a tensor of rank {rank}")
    return positive


def _triple(values: Sequence[int]) -> Triple:
    return values[0], values[1], values[2]


def _emit_slice(
    context: Context, source: Source, view: View, cuts: dict[int, tuple[int, int, int]], *, output: int = 0
) -> View:
    """Write a Slice; cuts: for an axis (0 channels), start, positions left out at the end, and step."""
    starts, ends, steps = zip(*(cuts.get(axis, (0, 0, 1)) for axis in range(3)), strict=True)
    attrs = {"starts": _triple(starts), "ends": _triple(ends), "steps": _triple(steps)}
    return _reshaped(view, context.emit(source, "Slice", [view], attrs, output=output))


def _reshaped(before: View, after: View) -> View:
    return after.shaped(after.shape[: len(before.shape)])


def split(context: Context, source: Source) -> list[View]:
    view, sizes = _volume(context, source)
    rank = len(view.shape) + 1
    (axis,) = _axes(source, (source.integer("axis", 0),), rank, 1)
    if axis == 0:
        raise UnsupportedOpError(f"{source} splits axis 0, the batch; supported are the axes behind it")
    size = sizes[axis - 1]
    if size is None:
        raise ModelFormatError(f"{source} splits what the file leaves open; pass window=(h, w)")
    parts = source.integers("split", None) if source.opset < 13 else _numbers(context, source, 1)
    if parts is None:
        count = source.integer("num_outputs", len(source.outputs))
        if count != len(source.outputs) or not 1 <= count <= size:
            raise ModelFormatError(f"{source} splits {size} positions into {count} parts, for {len(source.outputs)}")
        part = -(-size // count)
        parts = tuple(min(part, size - part * number) for number in range(count))
    if len(parts) != len(source.outputs) or sum(parts) != size or min(parts) < 0:
        raise ModelFormatError(f"{source} splits {size} positions into {parts}, for {len(source.outputs)} outputs")
    views, start = [], 0
    for number, part in enumerate(parts):
        if source.outputs[number]:
            if not part:
                raise UnsupportedOpError(f"{source} gives an empty tensor; supported are parts of at least 1")
            cut = {axis - 1: (start, size - start - part, 1)}
            views.append(_emit_slice(context, source, view, cut, output=number))
        else:
            views.append(view)
        start += part
    return views


def slice_(context: Context, source: Source) -> View:
    view, sizes = _volume(context, source)
    rank = len(view.shape) + 1
    axes: tuple[int, ...] | None
    steps: tuple[int, ...]
    if source.opset < 10 or source.has("starts"):
        starts, ends = source.integers("starts"), source.integers("ends")
        axes, steps = source.integers("axes", None), ()
    else:
        starts, ends = _numbers(context, source, 1) or (), _numbers(context, source, 2) or ()
        axes, steps = _numbers(context, source, 3), _numbers(context, source, 4) or ()
    steps = steps or (1,) * len(starts)
    if not len(starts) == len(ends) == len(steps) or 0 in steps:
        raise ModelFormatError(f"{source}: starts {starts}, ends {ends} and steps {steps} do not fit together")
    cuts = {}
    for axis, start, end, step in zip(_axes(source, axes, rank, len(starts)), starts, ends, steps, strict=True):
        if axis == 0:
            if (start, step) != (0, 1) or end < ENDLESS:
                raise UnsupportedOpError(f"{source} slices axis 0, the batch; supported are the axes behind it")
            continue
        cuts[axis - 1] = _cut(source, sizes[axis - 1], start, end, step)
    return _emit_slice(context, source, view, cuts)


def _cut(source: Source, size: int | None, start: int, end: int, step: int) -> tuple[int, int, int]:
    if size is None:
        if start < 0 or 0 <= end < ENDLESS or step < 0:
            raise ModelFormatError(
                f"{source} slices from {start} to {end} what the file leaves open; pass window=(h, w)"
            )
        return start, 0 if end >= 0 else -end, step
    places = range(size)[slice(start, end, step)]
    if not places:
        raise UnsupportedOpError(f"{source} gives an empty tensor: {start} to {end} by {step} of {size} positions")
    return min(places[0], places[-1]) if step < 0 else places[0], size - 1 - max(places[0], places[-1]), step


def pad(context: Context, source: Source) -> View:
    view, _ = _volume(context, source)
    rank = len(view.shape) + 1
    mode = source.text("mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise ModelFormatError(f"{source}: mode is '{mode}'; supported are constant, edge, reflect and wrap")
    axes: tuple[int, ...] | None = None
    if source.opset < 11:
        pads, value = source.integers("pads"), source.real("value", 0.0)
    else:
        pads, axes = _numbers(context, source, 1) or (), _numbers(context, source, 3)
        constant = context.constant(source, 2, optional=True)
        if constant is not None and constant.size != 1:
            raise ModelFormatError(f"{source}: its constant has the shape {constant.shape}; it must be one value")
        value = 0.0 if constant is None else float(constant.reshape(()))
    if len(pads) % 2 or any(abs(pad) > LARGEST for pad in pads):
        raise ModelFormatError(f"{source}: pads is {pads}; supported are two whole numbers to {LARGEST} for an axis")
    whole = [0] * 6
    for place, axis in enumerate(_axes(source, axes, rank, len(pads) // 2)):
        before, behind = pads[place], pads[place + len(pads) // 2]
        if axis == 0 and (before or behind):
            raise UnsupportedOpError(f"{source} pads axis 0, the batch; supported are the axes behind it")
        if axis:
            whole[axis - 1], whole[axis + 2] = before, behind
    return _reshaped(view, context.emit(source, "Pad", [view], {"pads": tuple(whole), "mode": mode, "value": value}))


def _block(source: Source) -> tuple[int, int]:
    size = source.integer("blocksize")
    if not 1 <= size <= LARGEST:
        raise ModelFormatError(f"{source}: blocksize is {size}; it must be from 1 to {LARGEST}")
    return size, size


def depth_to_space(context: Context, source: Source) -> View:
    mode = source.text("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise ModelFormatError(f"{source}: mode is '{mode}'; supported are DCR and CRD")
    image, block = context.image(source), _block(source)
    for size, what in ((image.volume.height, "height"), (image.volume.width, "width")):
        if source.op == "SpaceToDepth" and size is not None and size % block[0]:
            raise ModelFormatError(f"{source}: the {what} {size} is no whole number of blocks of {block[0]}")
    return context.emit(source, source.op, [image], {"blocksize": block, "mode": mode})


def depth_to_space_of(context: Context, source: Source, view: View, perm: tuple[int, ...]) -> View | None:
    """Return the DepthToSpace or SpaceToDepth of which this Transpose is the middle, under its shape, or None.

    Exporters write both as a Reshape that splits axes into blocks, the Transpose, and a Reshape that joins them.
    """
    shape, (channels, height, width) = view.shape, view.dims
    if len(shape) != 5 or any(not isinstance(size, int) for size in (*shape, channels, height, width)):
        return None
    turned = tuple(shape[axis - 1] for axis in perm[1:])
    for mode, order, front in (("CRD", (0, 1, 4, 2, 5, 3), 1), ("DCR", (0, 3, 4, 1, 5, 2), 0)):
        blocks = shape[front], shape[front + 1]
        if perm == order and shape[3:] == (height, width):
            attrs = {"blocksize": blocks, "mode": mode}
            return context.emit(source, "DepthToSpace", [view], attrs).shaped(turned)
    depth, rows, down, columns, across = (size for size in shape if isinstance(size, int))
    for mode, order in (("CRD", (0, 1, 3, 5, 2, 4)), ("DCR", (0, 3, 5, 1, 2, 4))):
        if perm == order and (depth, rows * down, columns * across) == (channels, height, width):
            attrs = {"blocksize": (down, across), "mode": mode}
            return context.emit(source, "SpaceToDepth", [view], attrs).shaped(turned)
    return None


def upsample(context: Context, source: Source) -> View:
    image = context.image(source)
    scales = source.reals("scales") if source.opset < 9 else _reals(context, source, 1)
    return _resized(context, source, image, scales, None, {"coordinate_transformation_mode": "asymmetric"})


def _reals(context: Context, source: Source, index: int) -> list[float] | None:
    array = context.constant(source, index, optional=True)
    if array is None or not array.size:
        return None
    if array.dtype.kind != "f":
        raise ModelFormatError(f"{source}: its input {index} is {array.dtype}; it must be a list of floats")
    return [float(value) for value in array.reshape(-1)]


def resize(context: Context, source: Source) -> View:
    image = context.image(source)
    if source.opset < 11:
        scales = _reals(context, source, 1)
        return _resized(context, source, image, scales, None, {"coordinate_transformation_mode": "asymmetric"})
    attrs = {
        "coordinate_transformation_mode": source.text("coordinate_transformation_mode", "half_pixel"),
        "nearest_mode": source.text("nearest_mode", "round_prefer_floor"),
        "antialias": bool(source.integer("antialias", 0)),
        "exclude_outside": bool(source.integer("exclude_outside", 0)),
        "cubic_coeff_a": source.real("cubic_coeff_a", -0.75),
        "extrapolation_value": source.real("extrapolation_value", 0.0),
    }
    if attrs["coordinate_transformation_mode"] not in COORDINATES:
        raise ModelFormatError(
            f"{source}: coordinate_transformation_mode is '{attrs['coordinate_transformation_mode']}'; supported are "
            + ", ".join(COORDINATES)
        )
    sizes = _numbers(context, source, 3, batch=not source.has("axes"))
    return _resized(context, source, image, _reals(context, source, 2), sizes or None, attrs)


_UNSAID: dict[str, Any] = {
    "nearest_mode": "floor",
    "antialias": False,
    "exclude_outside": False,
    "cubic_coeff_a": -0.75,
    "extrapolation_value": 0.0,
    "roi": (),
}


def enlarged(context: Context, source: Source, image: View, sizes: Sequence[int]) -> View:
    """Write an image of one row, one column or both, so many times over."""
    place = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "scales": (0.0, 0.0)}
    return context.emit(source, "Resize", [image], {**_UNSAID, **place, "sizes": tuple(sizes)})


def _resized(
    context: Context,
    source: Source,
    image: View,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    attrs: dict[str, Any],
) -> View:
    attrs = _UNSAID | attrs
    if (scales is None) == (sizes is None):
        raise ModelFormatError(f"{source} must have either scales or sizes")
    given = scales if sizes is None else sizes
    assert given is not None
    axes = _axes(source, source.integers("axes", None), 4, len(given))
    attrs["mode"] = source.text("mode", "nearest")
    if attrs["mode"] not in ("nearest", "linear", "cubic") or attrs["nearest_mode"] not in NEAREST_MODES:
        raise ModelFormatError(
            f"{source}: mode is '{attrs['mode']}' and nearest_mode '{attrs['nearest_mode']}'; supported are nearest, "
            f"linear and cubic, and {', '.join(NEAREST_MODES)}"
        )
    by_axis = dict(zip(axes, given, strict=True))
    if scales is not None:
        if any(not 0 < scale <= LARGEST or not math.isfinite(scale) for scale in scales):
            raise ModelFormatError(f"{source}: scales are {scales}; they must be above 0 and at most {LARGEST}")
        if by_axis.get(0, 1.0) != 1.0 or by_axis.get(1, 1.0) != 1.0:
            raise UnsupportedOpError(f"{source} scales batch or channels; supported are height and width")
        attrs |= {"scales": (by_axis.get(2, 1.0), by_axis.get(3, 1.0)), "sizes": (0, 0)}
    else:
        attrs |= _by_size(source, image, by_axis)
    if attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        roi = _reals(context, source, 1)
        if roi is None or len(roi) != 2 * len(axes) or not all(map(math.isfinite, roi)):
            raise ModelFormatError(f"{source} must have a roi of {2 * len(axes)} numbers; it has {roi}")
        begins, ends = (dict(zip(axes, part, strict=True)) for part in (roi[: len(axes)], roi[len(axes) :]))
        if any((begins.get(axis, 0.0), ends.get(axis, 1.0)) != (0.0, 1.0) for axis in (0, 1)):
            raise UnsupportedOpError(f"{source} crops batch or channels; supported are height and width")
        attrs["roi"] = (begins.get(2, 0.0), begins.get(3, 0.0), ends.get(2, 1.0), ends.get(3, 1.0))
    return context.emit(source, "Resize", [image], attrs)


def _by_size(source: Source, image: View, by_axis: dict[int, int | float]) -> dict[str, Any]:
    """Return scales and sizes of a Resize to given sizes; a scale of 0 is that of the sizes."""
    policy = source.text("keep_aspect_ratio_policy", "stretch")
    if policy not in ("stretch", "not_larger", "not_smaller"):
        raise ModelFormatError(
            f"{source}: keep_aspect_ratio_policy is '{policy}'; supported are stretch, not_larger and not_smaller"
        )
    wanted = {axis: int(size) for axis, size in by_axis.items()}
    if any(not 1 <= size <= LARGEST for axis, size in wanted.items() if axis):
        raise ModelFormatError(f"{source}: sizes are {tuple(wanted.values())}; they must be from 1 to {LARGEST}")
    if wanted.get(1, image.volume.channels) != image.volume.channels:
        raise UnsupportedOpError(f"{source} resizes the channels; supported are height and width")
    have = {2: image.volume.height, 3: image.volume.width}
    if policy == "stretch":
        return {
            "scales": (0.0 if 2 in wanted else 1.0, 0.0 if 3 in wanted else 1.0),
            "sizes": (wanted.get(2, 0), wanted.get(3, 0)),
        }
    ratios = [wanted[axis] / size for axis, size in have.items() if axis in wanted and size is not None]
    if len(ratios) != len(wanted.keys() & have.keys()):
        raise ModelFormatError(f"{source} keeps the ratio of what the file leaves open; pass window=(h, w)")
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    sizes = [math.floor(scale * (size or 0) + 0.5) if axis in wanted else 0 for axis, size in have.items()]
    return {
        "scales": (scale if 2 in wanted else 1.0, scale if 3 in wanted else 1.0),
        "sizes": (max(sizes[0], 1) if 2 in wanted else 0, max(sizes[1], 1) if 3 in wanted else 0),
    }


MOVES: dict[str, Callable[[Context, Source], View | list[View]]] = {
    "DepthToSpace": depth_to_space,
    "Pad": pad,
    "Resize": resize,
    "Slice": slice_,
    "SpaceToDepth": depth_to_space,
    "Split": split,
    "Upsample": upsample,
}
