"""Which results lie in place: an elementwise operation writes over the rows that it is the last to read."""

from typing import TYPE_CHECKING

from convserve.formats.packing import is_depthwise
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ops import COMBINATIONS

if TYPE_CHECKING:
    from convserve.plan.program import Operation, Program, Tensor

__all__ = ["lay_in_place"]

# Kinds whose kernel reads each value of an input just before it writes the one in its place, and those inputs; what
# is given to an operation twice it may read again later
_OVER: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(ACTIVATIONS, (0,)),
    **dict.fromkeys(COMBINATIONS, (0, 1)),
    **dict.fromkeys(("PRelu", "Affine", "LRN", "Softmax", "LogSoftmax"), (0,)),
    **dict.fromkeys(("LayerNormalization", "LpNormalization", "GroupNormalize"), (0,)),
    "Conv": (1,),
    "WinogradOutput": (1,),
}
# Rows that are looked at: how far readers are ahead repeats after a few, as strides and Winograd's tiles do
_ROWS = 64


def lay_in_place(program: "Program") -> None:
    """Let outputs share the ring of an input whose every row has no reader left by the time it is overwritten."""
    for operation in program.operations:
        if operation.output < 0 or (operation.node is not None and is_depthwise(operation.node)):
            continue
        for number in _OVER.get(operation.kind, ()):
            if number < len(operation.inputs) and _may_overwrite(program, operation, number):
                program.tensors[operation.output].root = program.tensors[operation.inputs[number]].root
                break


def _may_overwrite(program: "Program", operation: "Operation", number: int) -> bool:
    tensors = program.tensors
    index = operation.inputs[number]
    x, y = tensors[index], tensors[operation.output]
    if x.volume != y.volume or not _fills_its_ring(tensors, x) or not _fills_its_ring(tensors, y):
        return False
    if operation.inputs.count(index) > 1:
        return False
    readers = [reader for reader in program.operations if reader is not operation and index in reader.inputs]
    if any(reader.index > operation.index for reader in readers):
        return False
    return all(_is_ahead(program, reader, operation, index) for reader in readers)


def _fills_its_ring(tensors: "list[Tensor]", tensor: "Tensor") -> bool:
    root = tensors[tensor.root]
    return not root.parts and not tensor.parts and root.volume == tensor.volume


def _is_ahead(program: "Program", reader: "Operation", operation: "Operation", index: int) -> bool:
    """Whether a row of an operation waits for all rows of a reader that need the same row of tensor `index`."""
    limit = program.rows_of(reader)
    for row in range(min(_ROWS, program.rows_of(operation))):
        done = _rows_before(program, operation, row + 1, reader)
        for number, read in enumerate(reader.inputs):
            if read == index and done < limit and reader.vertical[number].reads(done, done + 1)[0] <= row:
                return False
    return True


def _rows_before(program: "Program", operation: "Operation", rows: int, reader: "Operation") -> int:
    # how many rows of an earlier operation the first rows of a later one wait for, through all between them
    waiting: dict[int, int] = {}

    def wait(op: "Operation", end: int) -> None:
        for number, read in enumerate(op.inputs):
            tensor = program.tensors[read]
            needed = min(tensor.height, op.vertical[number].reads(0, end)[1])
            for leaf in program.leaves(read):
                waiting[leaf] = max(waiting.get(leaf, 0), needed)

    wait(operation, rows)
    for op in reversed(program.operations[reader.index + 1 : operation.index]):
        if waiting.get(op.output, 0) > 0:
            wait(op, waiting[op.output])
    return min(waiting.get(reader.output, 0), program.rows_of(reader))
