"""A Caffe network's two files: the text of its layers, and their weights."""

import hashlib
import os
from pathlib import Path

import numpy as np

from convserve.errors import ShapeError
from convserve.formats.caffe.importer import caffe_graph
from convserve.formats.caffe.layer import Layer
from convserve.formats.caffe.weights import BlobParameters, read_blobs
from convserve.formats.mapped import MappedFiles
from convserve.graph.assembly import Parameters
from convserve.graph.ir import Graph

__all__ = ["CaffeFiles"]


class CaffeFiles(MappedFiles):
    """A .prototxt and a .caffemodel, or only the first, mapped; nothing of them is parsed yet."""

    def __init__(self, network: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> None:
        """Map both. Raises ModelNotFoundError, ModelFormatError for what cannot be read."""
        super().__init__()
        self._path = Path(network)
        self._text = self.map(self._path)
        self._what = f"'{weights}'"
        self._blobs = np.empty(0, np.uint8) if weights is None else self.map(Path(weights))

    def graph(self, window: tuple[int, int] | None = None) -> Graph:
        """Return the Graph, with parameters that may be views of the mapped weights.

        window: (height, width), which the file gives, so that it may only be the same. Raises ModelFormatError for
        what is wrong in either file, UnsupportedOpError for a layer that does not run, ShapeError for another window.
        """
        layers: dict[str, Layer] = {}
        parameters = BlobParameters(layers, read_blobs(self._blobs, self._what), self._what)
        graph = caffe_graph(self._text.tobytes(), self._path, parameters, layers)
        parameters.check_used()
        fixed = (graph.input_volume.height, graph.input_volume.width)
        if window is not None and window != fixed:
            raise ShapeError(f"window is {window[0]}x{window[1]}, but the file fixes it to {fixed[0]}x{fixed[1]}")
        return graph

    def untrained(self, parameters: Parameters) -> Graph:
        """Return the Graph with parameters from another source than a file; raises as graph() does."""
        return caffe_graph(self._text.tobytes(), self._path, parameters, {})

    def digest(self) -> bytes:
        """Return the SHA-256 of both files."""
        parts = [hashlib.sha256(content.data).digest() for content in (self._text, self._blobs)]
        return hashlib.sha256(b"".join(parts)).digest()
