"""ONNX's changes of shape, and nodes that change nothing at inference."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.onnx.arrange import exchanged, pointwise, transposed
from convserve.formats.onnx.context import Context, as_float32, axes_behind_batch
from convserve.formats.onnx.nodes_moves import depth_to_space_of, enlarged
from convserve.formats.onnx.source import FLOATS, Source
from convserve.formats.views import BATCH, View, reshaped

__all__ = ["SHAPES"]


def concat(context: Context, source: Source) -> View:
    if not source.inputs:
        raise ModelFormatError(f"{source} has no inputs")
    parts = [context.view(source, index, channels_last=True) for index in range(len(source.inputs))]
    rank, given = len(parts[0].shape) + 1, source.integer("axis")
    axis = given + rank if given < 0 else given
    if not 1 <= axis < rank or any(len(part.shape) + 1 != rank for part in parts):
        raise UnsupportedOpError(
            f"{source} joins tensors of shapes {', '.join(map(str, parts))} along axis {given}; supported are the axes "
            "behind the batch of tensors of equal rank"
        )
    if axis == 3 and all(part.channels_last for part in parts):
        joined = context.emit(source, "Concat", parts)
        return replace(joined, shape=(*joined.dims[1:], joined.dims[0]), channels_last=True)
    parts = [context.volume(source, context.view(source, index)) for index in range(len(parts))]
    if axis > 1:
        parts = [exchanged(context, source, part, axis - 1) for part in parts]
    joined = context.emit(source, "Concat", parts)
    if axis > 1:
        joined = exchanged(context, source, joined, axis - 1)
    return joined.shaped(joined.dims[: rank - 1])


def dropout(context: Context, source: Source) -> View:
    training = context.constant(source, 2, optional=True) if source.opset >= 12 else None
    if training is not None and training.any():
        raise UnsupportedOpError(f"{source} is in training mode; export the network for inference")
    return context.view(source, 0, channels_last=True)


def identity(context: Context, source: Source) -> View:
    return context.view(source, 0, channels_last=True)


def cast(context: Context, source: Source) -> View:
    if source.integer("to") not in FLOATS:
        raise UnsupportedOpError(f"{source} casts to type {source.integer('to')}; supported are the float types")
    return context.view(source, 0, channels_last=True)


def cast_like(context: Context, source: Source) -> View | np.ndarray:
    """Return the first input; values of the image, and what is cast like them, are float32."""
    if not context.is_constant(source, 0):
        return context.view(source, 0, channels_last=True)
    array = context.constant(source, 0)
    assert array is not None
    return as_float32(source, array)


def squeeze(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    axes = context.axes(source)
    if axes is None:
        return view.shaped(size for size in view.shape if size != 1)
    dropped = axes_behind_batch(source, axes, len(view.shape) + 1)
    if any(view.shape[axis - 1] != 1 for axis in dropped):
        raise ModelFormatError(f"{source}: axes {axes} of a tensor of shape {view} are not all of size 1")
    return view.shaped(size for axis, size in enumerate(view.shape, 1) if axis not in dropped)


def unsqueeze(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    axes = context.axes(source)
    if axes is None:
        raise ModelFormatError(f"{source} names no axes")
    rank = len(view.shape) + 1 + len(axes)
    added, sizes = axes_behind_batch(source, axes, rank), iter(view.shape)
    return view.shaped(1 if axis in added else next(sizes) for axis in range(1, rank))


def reshape(context: Context, source: Source) -> View:
    given = source.integers("shape", None)
    target = context.constant(source, 1) if given is None else np.array(given)
    assert target is not None
    if target.ndim != 1 or target.dtype.kind not in "iO":
        raise ModelFormatError(f"{source}: its shape is no list of whole numbers")
    return reshaped(
        context.view(source, 0),
        target.tolist(),
        declared_batch=context.declared_batch,
        allowzero=source.opset >= 14 and bool(source.integer("allowzero", 0)),
        what=str(source),
    )


def flatten(context: Context, source: Source) -> View:
    view = context.view(source, 0)
    axis, rank = source.integer("axis", 1), len(view.shape) + 1
    if not -rank <= axis <= rank:
        raise ModelFormatError(f"{source}: axis is {axis}, but the tensor has the shape {view}")
    axis = axis + rank if axis < 0 else axis
    if axis == 1:
        return reshaped(view, (0, -1), declared_batch=context.declared_batch, allowzero=False, what=str(source))
    sizes = context.known(source, view)
    columns = math.prod(sizes[max(axis - 1, 0) :])
    return replace(view, shape=(columns,), rows=math.prod(sizes[: axis - 1]) if axis else 0)


def transpose(context: Context, source: Source) -> View:
    view = context.view(source, 0, channels_last=True)
    rank = len(view.shape) + 1
    perm = source.integers("perm", tuple(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        raise ModelFormatError(f"{source}: perm is {perm}, but the tensor has the shape {view}")
    if view.channels_last and perm == (0, 3, 1, 2):
        return replace(view, shape=view.dims, channels_last=False)
    if perm[0] == 0 and not view.channels_last:
        shape = tuple(view.shape[axis - 1] for axis in perm[1:])
        last = perm == (0, 2, 3, 1) and view.shape == view.dims
        if last and (view.volume.height, view.volume.width) == (1, 1):
            return replace(view, shape=shape, channels_last=True)
        moved = [axis for axis in perm[1:] if view.shape[axis - 1] != 1]
        if moved == sorted(moved):
            return view.shaped(shape)
        if last:
            return replace(view, shape=shape, channels_last=True)
        if rank >= 3 and perm[:3] == (0, 2, 1) and perm[3:] == tuple(range(3, rank)):
            first, second = view.shape[:2]
            if isinstance(first, int) and isinstance(second, int) and first * second == view.volume.channels:
                shuffled = context.emit(source, "ChannelShuffle", [view], {"group": first})
                return shuffled.shaped(shape)
        spread = depth_to_space_of(context, source, view, perm)
        if spread is not None:
            return spread
    if perm[0] != 0 or rank > 4:
        raise UnsupportedOpError(
            f"{source} reorders {view} to {perm}; supported are the axes behind the batch, up to three of them, and "
            "of more the channel shuffle, depth to space and its inverse"
        )
    places = (1, 2, 0) if view.channels_last else (0, 1, 2)
    volume = replace(view, shape=view.dims, channels_last=False) if view.channels_last else context.volume(source, view)
    first, second, third = (*(places[axis - 1] for axis in perm[1:]), *range(rank - 1, 3))
    after = transposed(context, source, volume, (first, second, third))
    return after.shaped(after.dims[: rank - 1])


def expand(context: Context, source: Source) -> View:
    """Write sizes of 1 so many times over: channels by a convolution with ones, rows and columns by the nearest."""
    view, target = context.view(source, 0), context.constant(source, 1)
    assert target is not None
    rank = len(view.shape) + 1
    wanted = [1] * (rank - target.size) + target.reshape(-1).tolist()
    if len(wanted) != rank or wanted[0] not in (1, BATCH, context.declared_batch):
        raise UnsupportedOpError(
            f"{source} expands {view} to {wanted}; supported are as many axes, the batch left free"
        )
    view = context.volume(source, view)
    sizes = [have if want in (1, have) else want for have, want in zip(view.shape, wanted[1:], strict=True)]
    changed = [axis for axis, size in enumerate(sizes) if size != view.shape[axis]]
    if any(view.shape[axis] != 1 for axis in changed):
        raise ModelFormatError(f"{source}: a tensor of shape {view} cannot be expanded to {wanted}")
    if not changed:
        return view
    channels, *places = context.known(source, view.shaped(sizes))
    if 0 in changed:
        view = pointwise(context, source, view, np.ones((channels, 1)))
    if set(changed) - {0}:
        view = enlarged(context, source, view, places)
    return view.shaped(sizes)


SHAPES: dict[str, Callable[[Context, Source], View | np.ndarray]] = {
    "Cast": cast,
    "CastLike": cast_like,
    "Concat": concat,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": flatten,
    "Identity": identity,
    "Reshape": reshape,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
