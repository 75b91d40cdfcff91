"""Executors: plans bound to weights and to the kernels of one instruction set, in C structures."""

import mmap

import numpy as np

from convserve.errors import MemoryBudgetError, UnsupportedOpError
from convserve.formats.packing import is_depthwise, is_winograd, winograd_tile
from convserve.formats.storage import stored_type
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.moves import taps
from convserve.plan.cost import parts_of, step_seconds, work_of

from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free

from convserve.engine.team cimport MOST_PARTS
from convserve.kernels cimport dispatch
from convserve.kernels.dispatch cimport (
    CS_ABS, CS_ADD, CS_BF16, CS_CLIP, CS_DIV, CS_ELU, CS_ERF, CS_EXP, CS_F16, CS_F32, CS_GELU, CS_GELU_TANH,
    CS_HARD_SIGMOID, CS_HARD_SWISH, CS_LEAKY_RELU, CS_LOG, CS_MAX, CS_MIN, CS_MISH, CS_MUL, CS_POW, CS_RECIPROCAL,
    CS_RELU, CS_SIGMOID, CS_SIGN, CS_SOFTPLUS, CS_SOFTSIGN, CS_SQRT, CS_SUB, CS_SWISH, CS_TANH, CS_THRESHOLDED_RELU)
from convserve.kernels.elementwise cimport (
    AFFINE, COPY, LAYER_NORM, LOG_SOFTMAX, LP_NORM, PRELU, SHUFFLE, SOFTMAX, activation_rows, combine_rows,
    pixelwise_rows, read_rows, write_rows)
from convserve.kernels.gemm cimport conv_rows, depthwise_rows
from convserve.kernels.local cimport local_rows
from convserve.kernels.lrn cimport lrn_rows
from convserve.kernels.moves cimport depth_to_space_rows, sample_rows, space_to_depth_rows
from convserve.kernels.norms cimport group_normalize_rows, group_statistics_rows
from convserve.kernels.pool cimport AVERAGE_POOL, LP_POOL, MAX_POOL, pool_rows
from convserve.kernels.winograd cimport winograd_input_rows, winograd_output_rows
from convserve.kernels.rows cimport Op, RowKernel, Taps

__all__ = ["Executor"]

PAGE_BYTES = mmap.PAGESIZE


cdef RowKernel kernel_of(str kind, bint depthwise) except NULL:
    if kind == "Read":
        return read_rows
    if kind == "Write":
        return write_rows
    if kind == "Conv":
        return depthwise_rows if depthwise else conv_rows
    if kind in _POOLINGS:
        return pool_rows
    if kind == "GroupStatistics":
        return group_statistics_rows
    if kind == "GroupNormalize":
        return group_normalize_rows
    if kind == "WinogradInput":
        return winograd_input_rows
    if kind == "WinogradOutput":
        return winograd_output_rows
    if kind == "LRN":
        return lrn_rows
    if kind == "LocallyConnected":
        return local_rows
    if kind in _COMBINATIONS:
        return combine_rows
    if kind in _ACTIVATIONS:
        return activation_rows
    if kind in ("Slice", "Pad", "Resize"):
        return sample_rows
    if kind == "DepthToSpace":
        return depth_to_space_rows
    if kind in ("SpaceToDepth", "Flatten"):
        return space_to_depth_rows
    if kind in _PIXELWISE:
        return pixelwise_rows
    raise UnsupportedOpError(f"no kernel runs {kind}; a graph has to be rewritten before it is run")


_PIXELWISE = {"Identity": COPY, "PRelu": PRELU, "Affine": AFFINE, "Softmax": SOFTMAX, "LogSoftmax": LOG_SOFTMAX,
              "LayerNormalization": LAYER_NORM, "LpNormalization": LP_NORM, "ChannelShuffle": SHUFFLE}

_POOLINGS = {"MaxPool": MAX_POOL, "GlobalMaxPool": MAX_POOL, "AveragePool": AVERAGE_POOL,
             "GlobalAveragePool": AVERAGE_POOL, "LpPool": LP_POOL, "GlobalLpPool": LP_POOL}

_COMBINATIONS = {"Add": CS_ADD, "Sub": CS_SUB, "Mul": CS_MUL, "Div": CS_DIV, "Max": CS_MAX, "Min": CS_MIN}

_ACTIVATIONS = {
    "Relu": CS_RELU, "LeakyRelu": CS_LEAKY_RELU, "ThresholdedRelu": CS_THRESHOLDED_RELU, "Elu": CS_ELU,
    "Clip": CS_CLIP, "Sigmoid": CS_SIGMOID, "HardSigmoid": CS_HARD_SIGMOID, "HardSwish": CS_HARD_SWISH,
    "Swish": CS_SWISH, "Tanh": CS_TANH, "Erf": CS_ERF, "Gelu": CS_GELU, "GeluTanh": CS_GELU_TANH,
    "Softplus": CS_SOFTPLUS, "Softsign": CS_SOFTSIGN, "Mish": CS_MISH, "Abs": CS_ABS, "Sign": CS_SIGN,
    "Sqrt": CS_SQRT, "Exp": CS_EXP, "Log": CS_LOG, "Reciprocal": CS_RECIPROCAL, "Pow": CS_POW,
}

_KINDS = {**_PIXELWISE, **_POOLINGS, **_COMBINATIONS, **_ACTIVATIONS}


_STORED = {"fp32": CS_F32, "fp16": CS_F16, "bf16": CS_BF16}


cdef class Executor:
    """A plan in C structures, bound to the weights and to one instruction set; read-only, shared by all its runs.

    The plan's graph must be packed (formats.packing). mapping: the file that its weights are mapped from, which runs
    check. evict_weights: its pages are released from the process after their last use in a run. Raises
    MemoryBudgetError where memory is refused.
    """

    def __cinit__(self, plan, str isa, Mapping mapping=None, *, bint evict_weights=False):
        program = plan.program
        count = len(program.operations)
        self.plan, self.isa, self.mapping, self.evict_weights = plan, isa, mapping, evict_weights
        self.kept, self.kept_of = [], {}
        self.kernels = dispatch.table(isa)
        self.ops = <Op *> calloc(max(count, 1), sizeof(Op))
        self.inputs = <int64_t *> calloc(sum(len(op.inputs) for op in program.operations) + 1, sizeof(int64_t))
        self.steps = <Step *> calloc(sum(len(block.steps) for block in plan.blocks) + 1, sizeof(Step))
        self.blocks = <Block *> calloc(len(plan.blocks) + 1, sizeof(Block))
        if not (self.ops and self.inputs and self.steps and self.blocks):
            raise MemoryBudgetError("the operating system refused memory for a plan")
        self._bind_operations(plan)
        self._bind_steps(plan)
        if mapping is not None and evict_weights:
            self._bind_releases(plan)

    def __dealloc__(self):
        free(self.ops)
        free(self.inputs)
        free(self.steps)
        free(self.blocks)
        free(self.releases)

    cdef const float *_values(self, array) except? NULL:
        values = np.ascontiguousarray(array, np.float32)
        self.kept.append(values)
        return <const float *> <uintptr_t> values.ctypes.data

    cdef int _bind_panels(self, Op *op, panels) except -1:
        panels = np.ascontiguousarray(panels)
        self.kept.append(panels)
        op.panels = <const char *> <uintptr_t> panels.ctypes.data
        op.panel_type = _STORED[stored_type(panels)]
        op.panel_value_bytes = panels.itemsize
        return 0

    cdef int _bind_taps(self, Taps *bound, node, int axis, size, count) except -1:
        try:
            found = taps(node, axis, size, count)
        except MemoryError:
            raise MemoryBudgetError(f"the operating system refused memory for the positions {node} reads") from None
        bound.count = 1
        if found is not None:
            self.kept.extend(found)
            bound.at = <const int64_t *> <uintptr_t> found[0].ctypes.data
            bound.weights = <const float *> <uintptr_t> found[1].ctypes.data
            bound.count = found[0].shape[1]
        return 0

    cdef int _bind_moves(self, Op *op, node, x, y) except -1:
        cdef int64_t channel
        op.offset = node.attrs["extrapolation_value" if node.op == "Resize" else "value"] if node.op != "Slice" else 0.0
        self._bind_taps(&op.channel_taps, node, 0, x.channels, y.channels)
        self._bind_taps(&op.row_taps, node, 1, x.height, y.height)
        self._bind_taps(&op.column_taps, node, 2, x.width, y.width)
        if op.channel_taps.at != NULL:
            op.consecutive = op.channel_taps.at[0] >= 0
            for channel in range(1, <int64_t> y.channels):
                if op.channel_taps.at[channel] != op.channel_taps.at[0] + channel:
                    op.consecutive = False
        return 0

    cdef int _bind_operations(self, plan) except -1:
        cdef int64_t filled = 0
        cdef Op *op
        program = plan.program
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
            if operation.kind == "Read":
                op.scale = 1.0
            if operation.node is not None:
                before = len(self.kept)
                self._bind_node(op, operation.node, operation, program)
                self.kept_of[operation.index] = self.kept[before:]
            if operation.kind == "WinogradOutput":
                op.at_once = plan.layout.group_tiles
        return 0

    cdef int _bind_node(self, Op *op, node, operation, program) except -1:
        attrs, params = node.attrs, node.params
        op.kind = _KINDS.get(node.op, -1)
        op.relu = attrs.get("activation", "") == "relu"
        op.group = attrs.get("group", 1)
        vertical, horizontal = operation.vertical[0], operation.horizontal[0]
        op.kernel_h, op.kernel_w = vertical.kernel, horizontal.kernel
        op.stride_h, op.stride_w = vertical.stride, horizontal.stride
        op.dilation_h, op.dilation_w = vertical.dilation, horizontal.dilation
        op.pad_top, op.pad_left = vertical.pad_begin, horizontal.pad_begin
        op.pad_bottom, op.pad_right = vertical.pad_end, horizontal.pad_end
        if is_winograd(node):
            op.size = winograd_tile(node)
        if operation.kind == "WinogradOutput":
            op.weights = self._values(params["winograd_panels"])
            op.bias = self._values(params["bias_panels"])
        elif node.op == "Conv" and operation.kind == "Conv":
            if is_depthwise(node):
                op.weights = self._values(params["taps"])
                op.bias = self._values(params["bias"])
            else:
                self._bind_panels(op, params["panels"])
                op.bias = self._values(params["bias_panels"])
        elif node.op == "AveragePool":
            op.count_include_pad = attrs["count_include_pad"]
        elif node.op == "Affine":
            op.weights = self._values(params["scale"])
            op.bias = self._values(params["shift"])
        elif node.op == "LocallyConnected":
            op.weights = self._values(params["weight"])
            op.bias = self._values(params["bias"])
        elif node.op in ("LpPool", "GlobalLpPool"):
            op.size = attrs["p"]
        elif node.op in ("LayerNormalization", "GroupNormalization"):
            op.weights = self._values(params["scale"])
            op.bias = self._values(params["bias"])
            op.offset = attrs["epsilon"]
        elif node.op == "LpNormalization":
            op.size, op.offset = attrs["p"], attrs["epsilon"]
        elif node.op == "PRelu":
            op.weights = self._values(params["slope"])
        elif node.op in ACTIVATIONS:
            op.scale, op.offset = ACTIVATIONS[node.op].values(attrs)
        elif node.op in ("Slice", "Pad", "Resize"):
            tensors = program.tensors
            self._bind_moves(op, node, tensors[operation.inputs[0]].volume, tensors[operation.output].volume)
        elif node.op in ("DepthToSpace", "SpaceToDepth"):
            op.kernel_h, op.kernel_w = attrs["blocksize"]
            op.block_inside = attrs["mode"] == "CRD"
        elif node.op == "Flatten":
            op.block_inside = True
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
        works = [work_of(operation, plan.program) for operation in plan.program.operations]
        self.block_count = len(plan.blocks)
        for position, block in enumerate(plan.blocks):
            self.blocks[<int64_t> position] = Block(number, len(block.steps), block.repeats, 0, 0)
            for planned in block.steps:
                step = self.steps + number
                step.kind = kinds.get(planned.kind, RUN_STEP)
                step.index, step.begin = planned.index, planned.begin
                step.end, step.advance = planned.end, planned.advance
                operation = plan.operation(planned)
                if operation is not None:
                    depthwise = operation.node is not None and is_depthwise(operation.node)
                    step.kernel = kernel_of(planned.kind, depthwise)
                    seconds = step_seconds(works[planned.index], planned.end - planned.begin, plan.images, plan.costs)
                    step.parts = min(parts_of(seconds, plan.threads), MOST_PARTS)
                number += 1
        return 0

    cdef int _bind_releases(self, plan) except -1:
        cdef int64_t number = 0
        cdef Block *block
        begin = <uintptr_t> self.mapping.start
        end = begin + self.mapping.size_bytes
        used_last = {}
        for position, planned in enumerate(plan.blocks):
            for step in planned.steps:
                operation = plan.operation(step)
                if operation is not None:
                    used_last[operation.index] = position
        self.releases = <Release *> calloc(len(self.kept) + 1, sizeof(Release))
        if self.releases == NULL:
            raise MemoryBudgetError("the operating system refused memory for a plan")
        for position in range(len(plan.blocks)):
            block = self.blocks + <int64_t> position
            block.first_release = number
            for index, arrays in self.kept_of.items():
                for array in arrays if used_last.get(index) == position else ():
                    first, behind = array.ctypes.data, array.ctypes.data + array.nbytes
                    if begin <= first < behind <= end:
                        first -= (first - begin) % PAGE_BYTES
                        self.releases[number] = Release(<char *> <uintptr_t> first, behind - first)
                        number += 1
            block.release_count = number - block.first_release
        return 0
