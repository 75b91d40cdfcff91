"""Rewrites a graph into what the engine runs best: all rewrites in order, until none changes it."""

from collections.abc import Callable

from convserve.graph.fit import fit_graph
from convserve.graph.ir import Graph
from convserve.graph.rewrite_folding import drop_identities, fold_affine, lower_batch_normalization
from convserve.graph.rewrite_fusion import fuse_activation, fuse_residual
from convserve.graph.rewrite_pads import fold_pads
from convserve.graph.rewrite_spelled import name_activations
from convserve.graph.rewrite_transposed import lower_conv_transpose
from convserve.graph.rewrite_windows import flatten_to_conv, global_pooling_to_window, resolve_auto_pad

__all__ = [
    "REWRITTEN_AWAY",
    "drop_identities",
    "flatten_to_conv",
    "fold_affine",
    "fold_pads",
    "fuse_activation",
    "fuse_residual",
    "global_pooling_to_window",
    "lower_batch_normalization",
    "lower_conv_transpose",
    "name_activations",
    "resolve_auto_pad",
    "rewrite",
]


REWRITTEN_AWAY = frozenset({"BatchNormalization", "ConvTranspose", "Gemm"})
"""Operations that no rewritten graph has, and that no kernel runs."""


def rewrite(graph: Graph, *, window: tuple[int, int] | None, fit: str = "floor") -> Graph:
    """Return an equal graph of fewer and simpler nodes; the given one and its parameters stay as they are.

    window is the network's (height, width); None takes the graph's own input size, and where that is open
    too, global pooling and the padding that depends on it stay as they are. Equal means up to rounding:
    folded parameters are computed in float64 and rounded once. fit: as graph.fit has it; other than "floor" it may
    refuse the graph, or change what it computes where strides do not fit.
    """
    graph = fit_graph(graph, fit, window=window)
    passes: tuple[Callable[[Graph], Graph], ...] = (
        drop_identities,
        name_activations,
        lower_batch_normalization,
        lambda graph: resolve_auto_pad(graph, window=window),
        fold_pads,
        flatten_to_conv,
        fold_affine,
        lambda graph: global_pooling_to_window(graph, window=window),
        fuse_activation,
        lower_conv_transpose,
        lambda graph: fuse_residual(graph, window=window),
    )
    while True:
        before = graph
        for apply in passes:
            graph = apply(graph)
        if graph is before:
            graph.check()
            return graph
