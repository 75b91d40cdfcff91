"""Predicted seconds: of a step's work, and of a segment of steps, by where their operands have to come from."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convserve.formats.packing import is_depthwise, winograd_tile
from convserve.graph.ops import weight_shape
from convserve.plan.costs import CostTable
from convserve.plan.program import WINOGRAD_POINTS, Operation, Program

__all__ = [
    "Banded",
    "Work",
    "banded",
    "first_seconds",
    "layout_seconds",
    "parts_of",
    "passed_seconds",
    "segment_seconds",
    "step_seconds",
    "work_of",
]

SOLO_S = 3e-6
SHARED_S = 5e-5
PASSED_BYTES_PER_S = 8e9  # that one thread wrote and another reads: between caches less, within one more
PANEL_GROUP_BYTES = 640 << 10  # as in kernels/gemm.pyx: weights that are gone through for all tiles of a step
TRANSFORM_CHANNELS = 9  # input channels whose products cost as much as transforming their sum back
FULL_TILE = 5  # pixels from which on a tile of the kernel no longer waits for its weights


@dataclass(frozen=True, slots=True)
class Work:
    """What one operation has to do for one image.

    rows: that it produces in all. Of one row: amount, in the unit of the table's rate; in_bytes and out_bytes;
    tiles, pixels that share weights (Winograd: its tiles). weight_bytes: of each step; groups: how often a step
    goes through its input.
    """

    rows: int
    rate: str
    amount: float
    in_bytes: float
    out_bytes: float
    tiles: float = 0
    weight_bytes: int = 0
    groups: int = 1


class Banded(NamedTuple):
    """All steps of one operation in bands of one height; all but the first field add up over a segment.

    steps: their number. seconds: with rings and weights near the core. out_bytes, again_bytes: rows that they write,
    weights that they read again, both as one of the threads that share them. passed_bytes, weighed_bytes: rows
    written and weights read by all steps, weight_bytes: by one. Numbers, or arrays of one for each
    of some segments.
    """

    steps: Any
    seconds: Any
    out_bytes: Any
    again_bytes: Any
    passed_bytes: Any
    weighed_bytes: Any
    weight_bytes: Any


def _weights_of(operation: Operation) -> int:
    """Return the bytes of weights that each step of an operation reads."""
    node = operation.node
    if node is None or node.op != "Conv" or operation.kind == "WinogradInput":
        return 0
    shape = weight_shape(node)
    if operation.kind == "WinogradOutput":
        return 4 * math.prod(shape[:2]) * WINOGRAD_POINTS
    return math.prod(shape) * (node.params["panels"].itemsize if "panels" in node.params else 4)


def work_of(operation: Operation, program: Program) -> Work:
    """Return the work of an operation over the program's image size."""
    tensors, rows, node = program.tensors, program.rows_of(operation), operation.node
    out = tensors[operation.output if operation.output >= 0 else operation.inputs[0]]
    values = out.width * out.volume.channels
    in_bytes = out_bytes = 4.0 * values
    if operation.inputs:
        in_bytes = 0.0
        for index, window in zip(operation.inputs, operation.vertical, strict=True):
            height = (window.stride or window.kernel) / window.repeat
            in_bytes += 4.0 * height * tensors[index].width * tensors[index].volume.channels
    kind, weight_bytes = operation.kind, _weights_of(operation)
    if kind == "WinogradInput":
        return Work(rows, "tiles", out_bytes, in_bytes, out_bytes)
    if node is not None and kind == "WinogradOutput":
        tiles = tensors[operation.inputs[0]].width / winograd_tile(node)
        outputs, channels = weight_shape(node)[:2]
        flops = 2.0 * WINOGRAD_POINTS * tiles * outputs * (channels + TRANSFORM_CHANNELS)
        return Work(rows, "winograd", flops, in_bytes, out_bytes, tiles, weight_bytes)
    if node is not None and kind == "Conv":
        flops = 2.0 * values * math.prod(weight_shape(node)[1:])
        if is_depthwise(node):
            return Work(rows, "depthwise", flops, in_bytes, out_bytes)
        groups = -(-weight_bytes // PANEL_GROUP_BYTES)
        return Work(rows, "gemm", flops, in_bytes, out_bytes, out.width, weight_bytes, groups)
    if kind in ("LRN", "Softmax"):
        return Work(rows, "lrn", values, in_bytes, out_bytes)
    if node is not None and node.op.endswith("Pool"):
        taps = operation.vertical[0].kernel * operation.horizontal[0].kernel
        return Work(rows, "pool", float(values * taps), in_bytes, out_bytes)
    return Work(rows, "move", in_bytes + out_bytes, in_bytes, out_bytes)


def _beyond(size_bytes: Any, cache_bytes: float) -> Any:
    # the part of what is gone through again and again that a cache no longer holds
    if isinstance(size_bytes, np.ndarray):
        return np.clip(size_bytes / cache_bytes - 1.0, 0.0, 1.0)
    return min(1.0, max(0.0, size_bytes / cache_bytes - 1.0))


def _row_cost(size_bytes: Any, table: CostTable) -> Any:
    # seconds a byte of rows that are written, or read, where so many bytes are touched in between
    far = _beyond(size_bytes, table.l3_bytes)
    return _beyond(size_bytes, table.l2_bytes) * (1 - far) / table.l3 + far / table.spill


def parts_of(seconds: float, threads: int) -> int:
    """Return in how many parts a step of that length on one thread is offered to `threads` threads.

    One, where waking and waiting would cost more than they save; more than threads, where a part is long
    enough that a thread which comes late or is put aside should find or leave some.
    """
    if threads == 1 or seconds < SOLO_S:
        return 1
    return threads if seconds < SHARED_S else 2 * threads


def step_seconds(work: Work, rows: int, images: int, table: CostTable) -> float:
    """Return the predicted seconds of one step of so many rows on one thread, its weights in the third-level cache."""
    count = rows * images
    seconds = work.amount * count / getattr(table, work.rate)
    if work.weight_bytes:
        tiles = max(work.tiles * count, 1.0)
        seconds *= min(2.0, max(1.0, FULL_TILE * math.ceil(tiles / table.tile_rows) / tiles))
    step_bytes = (work.in_bytes + work.out_bytes) * count + work.weight_bytes
    seconds += work.in_bytes * count * _row_cost(step_bytes, table)
    if work.groups > 1:
        again = (work.groups - 1) * work.in_bytes * count
        seconds += again * _beyond(work.in_bytes * count, table.l2_bytes) / table.l3
    return seconds


def banded(work: Work, rows: int, images: int, threads: int, table: CostTable) -> Banded:
    """Return what all steps of an operation cost in bands of so many rows."""
    rows = max(1, min(rows, work.rows))
    steps = -(-work.rows // rows)
    alone = step_seconds(work, rows, images, table)
    crew = min(parts_of(alone, threads), threads)
    seconds = steps * (alone / crew + table.step_s + (table.share_s if crew > 1 else 0.0))
    moving = _moving(crew, table)
    written = work.out_bytes * work.rows * images
    again = work.weight_bytes * max(steps - 1, 0) / moving
    weighed = float(work.weight_bytes * steps)
    return Banded(steps, seconds, written / moving, again, written, weighed, work.weight_bytes)


def _moving(threads: int, table: CostTable) -> float:
    # all threads together read no more than the memory gives
    return min(threads, table.memory_shared / table.memory)


def _weight_cost(size_bytes: Any, table: CostTable) -> Any:
    # seconds a byte of weights, where so many bytes are gone through before they are read again; reading ahead
    # hides the third-level cache, of which rows and other programs take their part
    return _beyond(size_bytes, table.l3_bytes / 2) / table.memory


def first_seconds(works: list[Work], threads: int, table: CostTable) -> float:
    """Return the seconds of reading the weights of a network for the first time in a run."""
    size_bytes = float(sum(work.weight_bytes for work in works))
    return size_bytes / _moving(threads, table) * _weight_cost(size_bytes, table)


def segment_seconds(sums: Banded, ring_bytes: Any, table: CostTable) -> Any:
    """Return the predicted seconds of segments, floats or arrays, beside the first reading of their weights.

    sums: those of their operations, and the most steps of one. From one of these steps to the next, what lies
    further down runs more seldom and so counts less; weights push rows out of the second cache, seldom the third.
    """
    passed = sums.passed_bytes / sums.steps + np.minimum(sums.weighed_bytes / sums.steps, table.l3_bytes)
    rows_s = sums.out_bytes * _row_cost(passed, table)
    return sums.seconds + rows_s + sums.again_bytes * _weight_cost(ring_bytes + sums.weight_bytes, table)


def passed_seconds(program: Program, images: int, threads: int) -> list[float]:
    """Return by place what it costs to cut the network there between bands and whole steps.

    Threads share bands by columns and whole steps by rows, so half of what is read behind the cut changes hands.
    """
    inner = [operation for operation in program.operations if operation.kind != "Write"]
    seconds = [0.0] * (len(inner) + 1)
    if threads == 1 or images % threads == 0:
        return seconds
    made = {operation.output: operation.index for operation in inner}
    read = {leaf: op.index for op in inner for index in op.inputs for leaf in program.leaves(index)}
    for index, last in read.items():
        half = program.tensors[index].volume.values * images * 2.0 / PASSED_BYTES_PER_S
        for place in range(made[index] + 1, last + 1):
            seconds[place] += half
    return seconds


def layout_seconds(
    program: Program, segment_of: list[int], bands: list[int], *, images: int, threads: int, table: CostTable
) -> float:
    """Return the predicted seconds of a scheduled program whose steps compute so many rows."""
    works = [work_of(operation, program) for operation in program.operations]
    costs = [banded(work, rows, images, threads, table) for work, rows in zip(works, bands, strict=True)]
    total = first_seconds(works, threads, table)
    passed = passed_seconds(program, images, threads)
    for segment in range(segment_of[-1] + 1):
        members = [op for op in program.operations if segment_of[op.index] == segment]
        mine = [costs[op.index] for op in members]
        inner = [op.index for op in members if op.kind != "Write"]
        if len(inner) > 1:
            total += passed[inner[0]] + passed[inner[-1] + 1]
        roots = {program.tensors[index].root for op in members for index in (*op.inputs, op.output) if index >= 0}
        rings = sum(program.tensors[root].ring_bytes for root in roots) * images
        columns = list(zip(*mine, strict=True))
        total += float(segment_seconds(Banded(max(columns[0]), *map(sum, columns[1:])), rings, table))
    return total
