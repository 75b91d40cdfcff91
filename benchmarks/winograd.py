"""Times single layers as GEMM and as Winograd, in turn: the figures behind the rule in formats/algorithms.py."""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from convserve.engine.engine import Engine
from convserve.formats.packing import pack_graph, pack_winograd
from convserve.graph.ir import Graph, Node, Output, Volume

SIDES = (7, 13, 14, 28, 56)
CHANNELS = ((16, 64), (32, 32), (48, 192), (64, 64), (128, 32), (128, 128), (256, 256), (512, 512))
GROUPED = ((96, 256), (256, 256), (384, 384))


def layer(channels: int, filters: int, side: int, *, kernel: int, group: int, winograd: bool) -> Graph:
    """Return a network of one padded convolution with random weights, packed."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((filters, channels // group, kernel, kernel)).astype(np.float32)
    attrs = {"kernel_shape": (kernel, kernel), "strides": (1, 1), "pads": (kernel // 2,) * 4, "dilations": (1, 1)}
    attrs["group"] = group
    attrs |= {"auto_pad": "NOTSET", "activation": "relu"}
    node = Node("Conv", "conv", ("x",), "y", attrs, {"weight": weight, "bias": np.zeros(filters, np.float32)})
    graph = pack_graph(Graph("layer", "x", Volume(channels, side, side), [node], [Output("y", "y")]))
    if winograd:
        graph.nodes[0].params["winograd_panels"] = pack_winograd(weight, group)
    return graph


def seconds_of(engine: Engine, x: np.ndarray, filters: int) -> float:
    """Return the time of the layer's own steps in one run."""
    side = x.shape[2]
    executor = engine.executor(side, side)
    y = np.empty((1, filters, side, side), np.float32)
    with engine.execution(executor) as run:
        run.set_source(x.transpose(0, 2, 3, 1))
        run.set_sink(0, y.transpose(0, 2, 3, 1))
        run.advance(timed=True)
        spent = run.seconds_of_operations()
    return sum(spent[operation.index] for operation in executor.plan.program.operations if operation.node)


def main() -> None:
    """Print the best milliseconds of both, and how many times faster Winograd is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=12, help="runs of each, taken in turn (default 12)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each (default 1)")
    parser.add_argument("--kernel", type=int, choices=(3, 5), default=3, help="side of the filters (default 3)")
    parser.add_argument("--group", type=int, choices=(1, 2), default=1, help="groups of channels (default 1)")
    options = parser.parse_args()
    shape = {"kernel": options.kernel, "group": options.group}
    layers = f"{options.kernel}x{options.kernel} layers in {options.group} group(s)"
    table = Table(title=f"{layers}, {options.threads} thread(s), best of {options.runs} runs in turn")
    for heading in ("side", "channels", "filters", "GEMM ms", "Winograd ms", "times faster"):
        table.add_column(heading, justify="right")
    for side in SIDES:
        for channels, filters in CHANNELS if options.group == 1 else GROUPED:
            engines = [
                Engine(layer(channels, filters, side, winograd=winograd, **shape), threads=options.threads)
                for winograd in (False, True)
            ]
            x = np.random.default_rng(1).standard_normal((1, channels, side, side)).astype(np.float32)
            best = [float("inf")] * 2
            for _ in range(options.runs):
                for number, engine in enumerate(engines):
                    best[number] = min(best[number], seconds_of(engine, x, filters))
            row = (f"{1e3 * best[0]:.3f}", f"{1e3 * best[1]:.3f}", f"{best[0] / best[1]:.2f}")
            table.add_row(str(side), str(channels), str(filters), *row)
    Console().print(table)


if __name__ == "__main__":
    main()
