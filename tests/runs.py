"""Runs Graphs through the engine under chosen layouts, threads and settings, to compare the bits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from convserve.engine.engine import Engine
from convserve.formats.packing import pack_graph
from convserve.graph.ir import Graph
from convserve.graph.ops import infer_volumes
from convserve.graph.rewrites import rewrite
from convserve.kernels import dispatch
from convserve.plan.layout import Layout

__all__ = ["ISAS", "engine_of", "run", "run_engine", "same_bits", "settings"]

ISAS = dispatch.available()


@contextmanager
def settings(**values: object) -> Iterator[None]:
    """Set CONVSERVE_* variables for a while: settings(ISA="avx2", POISON=1)."""
    before = {name: os.environ.get(f"CONVSERVE_{name}") for name in values}
    os.environ.update({f"CONVSERVE_{name}": str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[f"CONVSERVE_{name}"]
            else:
                os.environ[f"CONVSERVE_{name}"] = value


def engine_of(graph: Graph, *, threads: int = 1) -> Engine:
    """Return an engine over the rewritten and packed graph."""
    return Engine(pack_graph(rewrite(graph, window=None)), threads=threads)


def run_engine(
    engine: Engine, x: np.ndarray, *, layout: Layout | None = None, threads: int | None = None
) -> list[np.ndarray]:
    """Return the engine's outputs, in order, as float32 (N, C, H, W), for x of (N, C, H, W)."""
    height, width = x.shape[2:]
    volumes = infer_volumes(engine.graph, height, width)
    executor = engine.executor(height, width, images=len(x), layout=layout, threads=threads)
    shown = []
    with engine.execution(executor) as execution:
        execution.set_source(x.transpose(0, 2, 3, 1))
        for number, output in enumerate(engine.graph.outputs):
            volume = volumes[output.tensor]
            y = np.full((len(x), volume.channels, volume.height, volume.width), np.nan, np.float32)
            execution.set_sink(number, y.transpose(0, 2, 3, 1))
            shown.append(y)
        execution.advance()
    return shown


def run(graph: Graph, x: np.ndarray, *, threads: int = 1, layout: Layout | None = None) -> list[np.ndarray]:
    """Return the outputs of a graph that the engine runs once."""
    return run_engine(engine_of(graph, threads=threads), x, layout=layout)


def same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Whether all arrays hold the same bits; two NaN of different bits count as the same."""
    return len(a) == len(b) and all(np.array_equal(p, q, equal_nan=True) for p, q in zip(a, b, strict=True))
