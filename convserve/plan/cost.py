"""Predicted time of a step on one thread, from fixed rates: good enough to tell large steps from small ones."""

from convserve.graph.ops import OPS
from convserve.plan.program import Operation, Program

__all__ = ["parts_of", "row_seconds"]

FLOPS_PER_S = 6e10
BYTES_PER_S = 8e9
SOLO_S = 6e-6
SHARED_S = 1e-4


def parts_of(seconds: float, threads: int) -> int:
    """Return in how many parts a step of that length on one thread is offered to `threads` threads.

    One, where waking and waiting would cost more than they save; more than threads, where a part is long
    enough that a thread which comes late or is put aside should find or leave some.
    """
    if threads == 1 or seconds < SOLO_S:
        return 1
    return threads if seconds < SHARED_S else 2 * threads


def row_seconds(operation: Operation, program: Program) -> float:
    """Return the predicted seconds of one row of one image: arithmetic, or reading and writing, whichever is longer."""
    tensors = program.tensors
    out = tensors[operation.output if operation.output >= 0 else operation.inputs[0]]
    moved: float = out.width * out.volume.channels
    for index, window in zip(operation.inputs, operation.vertical, strict=True):
        rows = (window.stride or 1) / window.repeat
        moved += rows * tensors[index].width * tensors[index].volume.channels
    flops = 0.0
    if operation.node is not None:
        ins = [tensors[index].volume for index in operation.inputs]
        if operation.kind == "WinogradInput":
            flops = 0.0
        elif operation.kind == "WinogradOutput":
            flops = 2.25 / 9 * OPS["Conv"].flops(operation.node, ins, out.volume) / out.height
        else:
            flops = OPS[operation.node.op].flops(operation.node, ins, out.volume) / out.height
    return max(flops / FLOPS_PER_S, 4 * moved / BYTES_PER_S)
