"""The state of one import: what each name of the network stands for by now, and the graph that is being assembled."""

from typing import Any

import numpy as np

from convserve.errors import ModelFormatError, UnsupportedOpError
from convserve.formats.caffe.layer import Layer
from convserve.formats.views import View
from convserve.graph.assembly import Assembler
from convserve.graph.ir import Volume

__all__ = ["Context"]


def _view(tensor: str, volume: Volume) -> View:
    assert volume.height is not None
    assert volume.width is not None
    dims = (volume.channels, volume.height, volume.width)
    return View(tensor, volume, dims, dims)


class Context:
    """Views by the names of the network's blobs, over the tensors of the graph; layers by the names of their nodes.

    A layer may write what it reads, so a name stands for one tensor after another.
    """

    def __init__(self, build: Assembler, layers: dict[str, Layer], batch: int) -> None:
        self.build = build
        self.batch = batch
        self.views = {build.input: _view(build.input, build.volumes[build.input])}
        self._layers = layers
        self._flattened: dict[str, View] = {}

    def name(self, layer: Layer, suffix: str = "") -> str:
        """Return a name for a node of a layer that no other has."""
        base, number = f"{layer.name}{suffix}", 1
        name = base
        while name in self.build.volumes:
            number += 1
            name = f"{base}.{number}"
        self._layers[name] = layer
        return name

    def written(self, tensor: str) -> View:
        """Return a tensor of the graph as a rank-4 view."""
        return _view(tensor, self.build.volumes[tensor])

    def emit(
        self,
        layer: Layer,
        op: str,
        views: list[View],
        attrs: dict[str, Any] | None = None,
        params: dict[str, np.ndarray] | None = None,
        *,
        suffix: str = "",
    ) -> View:
        """Add an operation for a layer and return what it writes, as a rank-4 view."""
        inputs = tuple(view.tensor for view in views)
        return self.written(self.build.add(op, self.name(layer, suffix), inputs, attrs, params))

    def affine(self, layer: Layer, view: View, scale: float, shift: float, suffix: str = "") -> View:
        """Add view * scale + shift, or nothing where that is the view."""
        if (scale, shift) == (1, 0):
            return view
        ones = np.ones(view.volume.channels)
        params = {"scale": (scale * ones).astype(np.float32), "shift": (shift * ones).astype(np.float32)}
        return self.emit(layer, "Affine", [view], {"activation": ""}, params, suffix=suffix).like(view)

    def bottoms(self, layer: Layer, least: int = 1, most: float | None = None) -> list[View]:
        """Return what the layer reads; ModelFormatError where these are fewer or more."""
        names, most = layer.bottoms, least if most is None else most
        if not least <= len(names) <= most:
            wanted = str(least) if least == most else f"at least {least}"
            raise ModelFormatError(f"{layer} reads {len(names)} blob(s); it must read {wanted}")
        return [self.views[name] for name in names]

    def bottom(self, layer: Layer) -> View:
        """Return the one blob that the layer reads."""
        return self.bottoms(layer)[0]

    def volume(self, layer: Layer, view: View) -> View:
        """Return a view whose first size is its volume's channels, others 1 or its rows and columns; may flatten."""
        if view.shape == view.dims:
            return view
        if not view.shape or any(size != 1 for size in view.shape[1:]):
            raise UnsupportedOpError(
                f"{layer} reads a blob of shape {view}, which was reshaped; supported here are (N, C, H, W) and (N, C)"
            )
        if (view.volume.height, view.volume.width) == (1, 1):
            return view
        if view.tensor not in self._flattened:
            kernel = {"kernel_shape": (view.volume.height, view.volume.width)}
            self._flattened[view.tensor] = self.emit(layer, "Flatten", [view], kernel, suffix=".flatten")
        return self._flattened[view.tensor].shaped(view.shape)

    def image(self, layer: Layer) -> View:
        """Return the one blob that the layer reads as channels, height and width."""
        view = self.volume(layer, self.bottom(layer))
        return view.shaped(view.dims)
