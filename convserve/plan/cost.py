"""Predicted time of a step on one thread, from fixed rates: good enough to tell large steps from small ones."""

from convserve.graph.ops import OPS
from convserve.plan.program import Operation, Program

__all__ = ["SOLO_S", "row_seconds"]

FLOPS_PER_S = 6e10
BYTES_PER_S = 8e9
SOLO_S = 6e-6
"""Below this a step is not worth a barrier: one thread does it."""


def row_seconds(operation: Operation, program: Program) -> float:
    """Return the predicted seconds of one row of one image: arithmetic, or reading and writing, whichever is longer."""
    tensors = program.tensors
    out = tensors[operation.output if operation.output >= 0 else operation.inputs[0]]
    moved = out.width * out.volume.channels
    for index, window in zip(operation.inputs, operation.vertical, strict=True):
        rows = window.stride or 1
        moved += rows * tensors[index].width * tensors[index].volume.channels
    flops = 0.0
    if operation.node is not None:
        ins = [tensors[index].volume for index in operation.inputs]
        flops = OPS[operation.node.op].flops(operation.node, ins, out.volume) / out.height
    return max(flops / FLOPS_PER_S, 4 * moved / BYTES_PER_S)
