"""The flat table of ONNX operations: each family's functions, from a node of the file to its output's view."""

from collections.abc import Callable

import numpy as np

from convserve.formats.onnx.context import Context
from convserve.formats.onnx.nodes_activations import ACTIVATIONS_OF_ONNX
from convserve.formats.onnx.nodes_elementwise import ELEMENTWISE
from convserve.formats.onnx.nodes_matrix import MATRIX
from convserve.formats.onnx.nodes_moves import MOVES
from convserve.formats.onnx.nodes_norms import NORMS
from convserve.formats.onnx.nodes_reductions import REDUCTIONS
from convserve.formats.onnx.nodes_shapes import SHAPES
from convserve.formats.onnx.nodes_transposed import TRANSPOSED
from convserve.formats.onnx.nodes_windows import WINDOWS
from convserve.formats.onnx.source import Source
from convserve.formats.views import View

__all__ = ["NODES"]

NODES: dict[str, Callable[[Context, Source], View | list[View] | np.ndarray]] = {
    **WINDOWS,
    **REDUCTIONS,
    **TRANSPOSED,
    **MATRIX,
    **NORMS,
    **ACTIVATIONS_OF_ONNX,
    **ELEMENTWISE,
    **SHAPES,
    **MOVES,
}
