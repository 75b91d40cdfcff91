"""The state of one import: constants, views and the nodes written so far, and what node importers ask of them."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from convserve.errors import ModelError, ModelFormatError, ShapeError, UnsupportedOpError
from convserve.formats.onnx.source import Source
from convserve.formats.views import Size, Symbol, View
from convserve.graph.ir import Node, Volume
from convserve.graph.ops import OPS

__all__ = ["Context", "as_float32", "axes_behind_batch", "channel_values", "view_of"]


def view_of(tensor: str, volume: Volume, like: View | None = None) -> View:
    """Return a tensor's volume as a rank-4 view; unknown sizes get symbols of their own, or those of like."""
    height, width = like.dims[1:] if like else (Symbol(f"height of '{tensor}'"), Symbol(f"width of '{tensor}'"))
    dims: tuple[Size, Size, Size] = (
        volume.channels,
        height if volume.height is None else volume.height,
        width if volume.width is None else volume.width,
    )
    return View(tensor, volume, dims, dims)


@dataclass
class Context:
    """Constants and views by ONNX name, and the graph's nodes so far; declared_batch is the file's own batch size."""

    declared_batch: Size
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    needed: set[str] = field(default_factory=set)
    _written: dict[str, View] = field(default_factory=dict)
    _flattened: dict[str, View] = field(default_factory=dict)

    def begin(self, tensor: str, volume: Volume) -> View:
        """Make a tensor the image that the network reads, and return it."""
        self._written[tensor] = self.views[tensor] = view_of(tensor, volume)
        return self.views[tensor]

    def emit(
        self,
        source: Source,
        op: str,
        inputs: list[View],
        attrs: dict[str, Any] | None = None,
        params: dict[str, np.ndarray] | None = None,
        *,
        output: int = 0,
    ) -> View:
        """Write a graph node for a node of the file and return its output, number `output`, as a rank-4 view."""
        tensor = source.outputs[output]
        if tensor in self._written:
            tensor = self._free_name(f"{tensor}/{op.lower()}")
        name = source.name if not output else tensor
        node = Node(op, name, tuple(view.tensor for view in inputs), tensor, attrs or {}, params or {})
        try:
            volume = OPS[op].volume(node, [view.volume for view in inputs])
        except ShapeError as error:
            if any(view.volume.height is None or view.volume.width is None for view in inputs):
                raise ModelFormatError(
                    f"{source} needs the image's height and width, which the file leaves open; pass window=(h, w)"
                ) from error
            raise ModelFormatError(str(error)) from error
        except ModelError as error:
            raise ModelFormatError(str(error)) from error
        if volume.channels < 1:
            raise ModelFormatError(f"{source} gives a volume without channels")
        keeps_size = not (OPS[op].windowed or OPS[op].windows or op == "Flatten")
        view = view_of(tensor, volume, inputs[0] if keeps_size else None)
        self._written[tensor] = view
        self.nodes.append(node)
        return view

    def _free_name(self, base: str) -> str:
        name, number = base, 1
        while name in self._written or name in self.views or name in self.constants:
            number += 1
            name = f"{base}{number}"
        return name

    def view(self, source: Source, index: int, *, channels_last: bool = False) -> View:
        """Return input number index, which must come from the image; channels_last: it may stay in that order."""
        name = self._input(source, index)
        if name in self.constants:
            raise UnsupportedOpError(f"{source}: its input '{name}' is a constant, where convserve takes only volumes")
        view = self.views[name]
        if view.rows != 1:
            raise UnsupportedOpError(f"{source} reads {view}, which mixes images; such a tensor can only be an output")
        return self.in_order(source, view) if view.channels_last and not channels_last else view

    def image(self, source: Source, index: int = 0) -> View:
        """Return input number index as a rank-4 volume (N, C, H, W)."""
        view = self.volume(source, self.view(source, index))
        if len(view.shape) != 3:
            raise UnsupportedOpError(f"{source} reads a tensor of shape {view}; supported is (N, C, H, W)")
        return view

    def volume(self, source: Source, view: View) -> View:
        """Return a view that has its volume's channels as first size after the batch, or last in that order.

        Its other sizes are height and width as far as there are any. Writes what lays the values out so where it must.
        """
        if (*view.shape, 1, 1)[:3] == view.dims or view.channels_last:
            return view
        if len(view.shape) > 3 or not view.shape:
            raise UnsupportedOpError(
                f"{source} reads a tensor of shape {view} over a volume of {view.volume}; supported here are up to "
                "three sizes behind the batch"
            )
        if any(size != 1 for size in view.shape[1:]):
            first, second, third = (*self.known(source, view), 1)[:3]
            return self.laid_out(source, view, (first, second, third)).shaped(view.shape)
        self.known(source, view)
        if view.tensor not in self._flattened:
            tensor = self._free_name(f"{view.tensor}/flatten")
            node = Node("Flatten", tensor, (view.tensor,), tensor, {"kernel_shape": view.dims[1:]})
            self.nodes.append(node)
            self._flattened[view.tensor] = view_of(tensor, Volume(view.volume.values, 1, 1))
            self._written[tensor] = self._flattened[view.tensor]
        return self._flattened[view.tensor].shaped(view.shape)

    def known(self, source: Source, view: View) -> tuple[int, ...]:
        """Return a view's shape; ModelFormatError where the file leaves a size open."""
        sizes = tuple(size for size in view.shape if isinstance(size, int))
        if len(sizes) < len(view.shape) or view.volume.height is None or view.volume.width is None:
            raise ModelFormatError(
                f"{source} lays out anew a volume whose height and width the file leaves open; pass window=(h, w)"
            )
        return sizes

    def in_order(self, source: Source, view: View) -> View:
        """Return a view that has its channels last as values in the order of its shape."""
        if (view.volume.height, view.volume.width) == (1, 1):
            return replace(view, channels_last=False)
        height, width, channels = self.known(source, view)
        return self.laid_out(source, view, (height, width, channels))

    def laid_out(self, source: Source, view: View, sizes: tuple[int, int, int]) -> View:
        """Return a view's values, in its own order, as a volume of these sizes, which are its shape."""
        self.known(source, view)
        if view.dims == sizes and not view.channels_last:
            return view.shaped(sizes)
        blocks = {"blocksize": view.dims[1:], "mode": "DCR" if view.channels_last else "CRD"}
        flat = view if view.dims[1:] == (1, 1) else self.emit(source, "SpaceToDepth", [view], blocks)
        if sizes[1:] == (1, 1):
            return replace(flat, shape=sizes, channels_last=False)
        return self.emit(source, "DepthToSpace", [flat], {"blocksize": sizes[1:], "mode": "CRD"})

    def constant(self, source: Source, index: int, *, optional: bool = False) -> np.ndarray | None:
        """Return input number index as a constant; None where an optional one is left out."""
        if optional and (index >= len(source.inputs) or not source.inputs[index]):
            return None
        name = self._input(source, index)
        if name not in self.constants:
            raise UnsupportedOpError(f"{source}: its input '{name}' depends on the image; only a constant is supported")
        return self.constants[name]

    def weights(self, source: Source, index: int, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return a constant input as float32 of the given shape (None: any size)."""
        array = self.constant(source, index)
        assert array is not None
        if len(array.shape) != len(shape) or any(w not in (None, s) for w, s in zip(shape, array.shape, strict=True)):
            wanted = f"({', '.join('any' if size is None else str(size) for size in shape)})"
            raise ModelFormatError(f"{source}: its input {index} has the shape {array.shape}; it must be {wanted}")
        return as_float32(source, array)

    def _input(self, source: Source, index: int) -> str:
        if index >= len(source.inputs) or not source.inputs[index]:
            raise ModelFormatError(f"{source} lacks its input {index}")
        name = source.inputs[index]
        if name not in self.constants and name not in self.views:
            raise ModelFormatError(f"{source} reads '{name}', which nothing before it writes")
        return name

    def is_constant(self, source: Source, index: int) -> bool:
        """Tell whether input number index is a constant."""
        return self._input(source, index) in self.constants

    def axes(self, source: Source, *, since: int = 13) -> tuple[int, ...] | None:
        """Return the node's axes, from its attribute or, from the opset `since` on, its second input; or None."""
        array = self.constant(source, 1, optional=True) if source.opset >= since else None
        return source.axes([] if array is None else [array], since=since)


def axes_behind_batch(source: Source, axes: tuple[int, ...], rank: int) -> set[int]:
    """Return axes counted from the front; errors where they do not fit the rank, or change the batch."""
    positive = {axis + rank if axis < 0 else axis for axis in axes}
    if not all(0 <= axis < rank for axis in positive) or len(positive) != len(axes):
        raise ModelFormatError(f"{source}: axes {axes} do not fit a tensor of rank {rank}")
    if 0 in positive:
        raise UnsupportedOpError(f"{source} changes axis 0, the batch; supported are the axes behind it")
    return positive


def as_float32(source: Source, array: np.ndarray) -> np.ndarray:
    """Return a constant as float32, itself where it is that already; ModelFormatError where it holds no numbers."""
    if array.dtype == object or array.dtype.kind in "SUc":
        raise ModelFormatError(f"{source}: a constant of type {array.dtype} stands where numbers are wanted")
    return array.astype(np.float32, copy=False)


def channel_values(source: Source, array: np.ndarray, view: View) -> np.ndarray:
    """Return a constant that is broadcast over a view as one float64 per channel of its volume.

    Raises UnsupportedOpError where it differs between pixels or images, or makes the tensor larger.
    """
    channels, rank = view.volume.channels, len(view.shape) + 1
    numbers = as_float32(source, array).astype(np.float64)
    if view.channels_last and array.size > 1 and array.ndim <= rank:
        first = np.moveaxis(array.reshape((1,) * (rank - array.ndim) + array.shape), -1, 1)
        return channel_values(source, first, view_of(view.tensor, view.volume, view))
    if array.ndim > rank:
        raise UnsupportedOpError(f"{source}: a constant of shape {array.shape} makes a tensor of shape {view} larger")
    if array.size == 1:
        return np.full(channels, numbers.reshape(()))
    shape = (1,) * (rank - array.ndim) + array.shape
    fits = all(mine in (1, its) for mine, its in zip(shape[1:], view.shape, strict=True))
    if shape[0] != 1 or not fits:
        raise UnsupportedOpError(
            f"{source}: a constant of shape {array.shape} does not fit a tensor of shape {view}; supported are one "
            "value and one value per channel"
        )
    columns = numbers.reshape(shape[1], math.prod(shape[2:]))
    if not np.array_equal(columns, np.broadcast_to(columns[:, :1], columns.shape), equal_nan=True):
        raise UnsupportedOpError(
            f"{source}: a constant of shape {array.shape} differs from pixel to pixel (a mean image inside the graph?);"
            " supported are one value and one value per channel"
        )
    return np.broadcast_to(columns[:, 0], channels)
