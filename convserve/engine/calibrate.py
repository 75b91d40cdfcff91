"""Measures this machine for the planner: each rate from a network of one layer, run by the kernels in use."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from convserve.engine.binding import Executor
from convserve.engine.executor import Execution, Memory
from convserve.engine.limits import read_bandwidth
from convserve.formats.algorithms import choose_packing
from convserve.formats.container_writer import hold_container
from convserve.graph.ir import Graph, Node, Output, Volume
from convserve.graph.ops import infer_volumes
from convserve.plan.cost import work_of
from convserve.plan.costs import CostTable, shipped_table
from convserve.plan.layout import Layout
from convserve.plan.machine import cache_bytes, cpu_model
from convserve.plan.plan import Plan, make_plan

__all__ = ["MEASUREMENTS", "calibrate"]

RUNS = 15
LEAST_S = 0.3  # of runs for each rate
# Of a cache that other programs share, what one run may count on.
SHARE_OF_L3 = 0.75


def _window(kernel: int, *, pads: int = 0, stride: int = 1) -> dict[str, Any]:
    return {
        "kernel_shape": (kernel, kernel),
        "strides": (stride, stride),
        "dilations": (1, 1),
        "pads": (pads,) * 4,
        "auto_pad": "NOTSET",
    }


def _conv(channels: int, filters: int, *, group: int = 1) -> Node:
    weight = np.full((filters, channels // group, 3, 3), 1e-3, np.float32)
    params = {"weight": weight, "bias": np.zeros(filters, np.float32)}
    attrs = {**_window(3, pads=1), "group": group, "activation": ""}
    return Node("Conv", "y", ("x",), "y", attrs, params)


def _graph(channels: int, size: int, node: Node, kind: str, *, width: int | None = None) -> Graph:
    volume = Volume(channels, size, width or size)
    graph = Graph("calibration", "x", volume, [node], [Output("y", "y")])
    algorithm = "auto" if kind.startswith("Winograd") else "gemm"
    return hold_container(graph, packing=choose_packing(graph, algorithm)).graph


def _seconds(graph: Graph, layout: Layout, isa: str, kind: str) -> tuple[float, Plan]:
    # the best time of one operation, on one thread
    volume = graph.input_volume
    height, width = volume.height or 1, volume.width or 1
    plan = make_plan(graph, height, width, layout=layout, costs=shipped_table(isa))
    executor = Executor(plan, isa)
    x = np.ones((1, height, width, volume.channels), np.float32)
    shown = infer_volumes(graph)["y"]
    y = np.empty((1, shown.height or 1, shown.width or 1, shown.channels), np.float32)
    index = next(operation.index for operation in plan.program.operations if operation.kind == kind)
    memory = Memory(plan.arena_bytes + plan.scratch_bytes)
    best, runs, begin = float("inf"), 0, time.perf_counter()
    try:
        while runs < RUNS or time.perf_counter() - begin < LEAST_S:
            execution = Execution(executor, memory)
            execution.set_source(x)
            execution.set_sink(0, y)
            execution.advance(timed=True)
            best, runs = min(best, execution.seconds_of_operations()[index]), runs + 1
    finally:
        memory.close()
    return best, plan


def _rate(channels: int, size: int, node: Node, kind: str, band_rows: int = 4) -> Callable[[str], float]:
    def measure(isa: str) -> float:
        seconds, plan = _seconds(_graph(channels, size, node, kind), Layout((), band_rows), isa, kind)
        work = work_of(next(op for op in plan.program.operations if op.kind == kind), plan.program)
        return work.amount * work.rows / seconds

    return measure


def _spill(isa: str) -> float:
    # rows that are written to memory and read from it, beside what their transform costs near the core
    graph = _graph(64, 224, _conv(64, 64), "WinogradInput")
    near, plan = _seconds(graph, Layout((), 4), isa, "WinogradInput")
    operations = plan.program.operations
    far, _ = _seconds(graph, Layout(tuple(range(1, len(operations)))), isa, "WinogradInput")
    work = work_of(next(op for op in operations if op.kind == "WinogradInput"), plan.program)
    return (work.in_bytes + work.out_bytes) * work.rows / max(far - near, 1e-5)


def _step(isa: str) -> float:
    graph = _graph(16, 4096, Node("Relu", "y", ("x",), "y"), "Relu", width=1)
    return _seconds(graph, Layout((), 1), isa, "Relu")[0] / 4096


MEASUREMENTS: dict[str, Callable[[str], float]] = {
    "gemm": _rate(128, 28, _conv(128, 128), "Conv"),
    "winograd": _rate(128, 56, _conv(128, 128), "WinogradOutput", 16),
    "tiles": _rate(64, 56, _conv(64, 64), "WinogradInput"),
    "depthwise": _rate(128, 56, _conv(128, 128, group=128), "Conv"),
    "pool": _rate(
        64, 112, Node("MaxPool", "y", ("x",), "y", {**_window(3, stride=2), "ceil_mode": False}), "MaxPool"
    ),
    "lrn": _rate(
        64, 56, Node("LRN", "y", ("x",), "y", {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}), "LRN"
    ),
    "move": _rate(64, 112, Node("Relu", "y", ("x",), "y"), "Relu"),
    "l3": lambda isa: read_bandwidth(1, _l3_bytes(isa) // 4),
    "memory": lambda isa: read_bandwidth(1),
    "spill": _spill,
    "step_s": _step,
}


def _l3_bytes(isa: str) -> int:
    return int(SHARE_OF_L3 * (cache_bytes(3) or shipped_table(isa).l3_bytes / SHARE_OF_L3))


def calibrate(isa: str, threads: int) -> Iterator[CostTable]:
    """Measure one rate after another, and yield the table so far; the last one is the result.

    threads: those that a run may have. What is not measured is the shipped table's. Takes some seconds.
    """
    values: dict[str, Any] = {
        "measured": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "machine": cpu_model(),
        "l2_bytes": cache_bytes(2) or shipped_table(isa).l2_bytes,
        "l3_bytes": _l3_bytes(isa),
    }
    for name, measure in MEASUREMENTS.items():
        values[name] = measure(isa)
        yield replace(shipped_table(isa), **values)
    values["memory_shared"] = max(values["memory"], read_bandwidth(threads))
    yield replace(shipped_table(isa), **values)
