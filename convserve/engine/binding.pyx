"""Executors: plans bound to weights and to the kernels of one instruction set, in C structures."""

import numpy as np

from convserve.errors import MemoryBudgetError, UnsupportedOpError
from convserve.formats.packing import is_depthwise
from convserve.plan.cost import parts_of, row_seconds
from convserve.plan.plan import packs_windows

from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free

from convserve.kernels cimport dispatch
from convserve.kernels.elementwise cimport (ADD, AFFINE, COPY, MUL, RELU, SHUFFLE, SOFTMAX, combine_rows, flatten_rows,
                                            pixelwise_rows, read_rows, write_rows)
from convserve.kernels.gemm cimport conv_rows, depthwise_rows
from convserve.kernels.lrn cimport lrn_rows
from convserve.kernels.pool cimport average_pool_rows, max_pool_rows
from convserve.kernels.winograd cimport winograd_input_rows, winograd_output_rows
from convserve.kernels.rows cimport Op, RowKernel

__all__ = ["Executor"]


cdef RowKernel kernel_of(str kind, bint depthwise) except NULL:
    if kind == "Read":
        return read_rows
    if kind == "Write":
        return write_rows
    if kind == "Conv":
        return depthwise_rows if depthwise else conv_rows
    if kind in ("MaxPool", "GlobalMaxPool"):
        return max_pool_rows
    if kind in ("AveragePool", "GlobalAveragePool"):
        return average_pool_rows
    if kind == "WinogradInput":
        return winograd_input_rows
    if kind == "WinogradOutput":
        return winograd_output_rows
    if kind == "LRN":
        return lrn_rows
    if kind in ("Add", "Mul"):
        return combine_rows
    if kind == "Flatten":
        return flatten_rows
    if kind in ("Identity", "Relu", "Affine", "Softmax", "ChannelShuffle"):
        return pixelwise_rows
    raise UnsupportedOpError(f"no kernel runs {kind}; a graph has to be rewritten before it is run")


_PIXELWISE = {"Identity": COPY, "Relu": RELU, "Affine": AFFINE, "Softmax": SOFTMAX, "ChannelShuffle": SHUFFLE,
              "Add": ADD, "Mul": MUL}


cdef class Executor:
    """A plan in C structures, bound to the weights and to one instruction set; read-only, shared by all its runs.

    The plan's graph must be packed (formats.packing). Raises MemoryBudgetError where memory is refused.
    """

    def __cinit__(self, plan, str isa):
        program = plan.program
        count = len(program.operations)
        self.plan, self.isa, self.kept = plan, isa, []
        self.kernels = dispatch.table(isa)
        self.ops = <Op *> calloc(max(count, 1), sizeof(Op))
        self.inputs = <int64_t *> calloc(sum(len(op.inputs) for op in program.operations) + 1, sizeof(int64_t))
        self.steps = <Step *> calloc(sum(len(block.steps) for block in plan.blocks) + 1, sizeof(Step))
        self.blocks = <Block *> calloc(len(plan.blocks) + 1, sizeof(Block))
        if not (self.ops and self.inputs and self.steps and self.blocks):
            raise MemoryBudgetError("the operating system refused memory for a plan")
        self._bind_operations(program)
        self._bind_steps(plan)

    def __dealloc__(self):
        free(self.ops)
        free(self.inputs)
        free(self.steps)
        free(self.blocks)

    cdef const float *_values(self, array) except? NULL:
        values = np.ascontiguousarray(array, np.float32)
        self.kept.append(values)
        return <const float *> <uintptr_t> values.ctypes.data

    cdef int _bind_operations(self, program) except -1:
        cdef int64_t filled = 0
        cdef Op *op
        for operation in program.operations:
            op = self.ops + <int64_t> operation.index
            op.inputs = self.inputs + filled
            op.input_count = len(operation.inputs)
            op.output = operation.output
            op.group = 1
            for index in operation.inputs:
                self.inputs[filled] = index
                filled += 1
            if operation.kind == "Write":
                op.size = operation.sink
            if operation.node is not None:
                self._bind_node(op, operation.node, operation, program)
        return 0

    cdef int _bind_node(self, Op *op, node, operation, program) except -1:
        attrs, params = node.attrs, node.params
        op.kind = _PIXELWISE.get(node.op, -1)
        op.relu = attrs.get("activation", "") == "relu"
        op.group = attrs.get("group", 1)
        vertical, horizontal = operation.vertical[0], operation.horizontal[0]
        op.kernel_h, op.kernel_w = vertical.kernel, horizontal.kernel
        op.stride_h, op.stride_w = vertical.stride, horizontal.stride
        op.dilation_h, op.dilation_w = vertical.dilation, horizontal.dilation
        op.pad_top, op.pad_left = vertical.pad_begin, horizontal.pad_begin
        op.pad_bottom, op.pad_right = vertical.pad_end, horizontal.pad_end
        if operation.kind == "WinogradOutput":
            op.weights = self._values(params["winograd_panels"])
            op.bias = self._values(params["bias_panels"])
        elif node.op == "Conv" and operation.kind == "Conv":
            op.packed = packs_windows(node) and not is_depthwise(node)
            op.weights = self._values(params["taps" if "taps" in params else "panels"])
            op.bias = self._values(params["bias" if "taps" in params else "bias_panels"])
        elif node.op == "AveragePool":
            op.count_include_pad = attrs["count_include_pad"]
        elif node.op == "Affine":
            op.weights = self._values(params["scale"])
            op.bias = self._values(params["shift"])
        elif node.op == "LRN":
            op.size = attrs["size"]
            op.below = (attrs["size"] - 1) // 2
            op.scale = attrs["alpha"] / attrs["size"]
            op.beta = attrs["beta"]
            op.offset = attrs["bias"]
        return 0

    cdef int _bind_steps(self, plan) except -1:
        cdef int64_t number = 0
        cdef Step *step
        kinds = {"Read": READ_STEP, "Write": WRITE_STEP, "Zero": ZERO_STEP, "Poison": POISON_STEP}
        self.block_count = len(plan.blocks)
        for position, block in enumerate(plan.blocks):
            self.blocks[<int64_t> position] = Block(number, len(block.steps), block.repeats)
            for planned in block.steps:
                step = self.steps + number
                step.kind = kinds.get(planned.kind, RUN_STEP)
                step.index, step.begin = planned.index, planned.begin
                step.end, step.advance = planned.end, planned.advance
                operation = plan.operation(planned)
                if operation is not None:
                    depthwise = operation.node is not None and is_depthwise(operation.node)
                    step.kernel = kernel_of(planned.kind, depthwise)
                    seconds = row_seconds(operation, plan.program) * (planned.end - planned.begin) * plan.images
                    step.parts = parts_of(seconds, plan.threads)
                number += 1
        return 0
