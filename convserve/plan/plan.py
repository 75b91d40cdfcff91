"""The plan of a run: segments, band heights, rings, offsets and steps, and to the byte what they take."""

import math
from dataclasses import dataclass, replace

from convserve.formats.packing import is_depthwise
from convserve.graph.ir import Graph
from convserve.graph.ops import weight_shape
from convserve.plan.arena import Region, place
from convserve.plan.cost import layout_seconds
from convserve.plan.costs import CostTable, shipped_table
from convserve.plan.layout import Layout, bands_of, segments_of
from convserve.plan.program import WINOGRAD_POINTS, Operation, Program, build_program
from convserve.plan.schedule import Block, Step, schedule
from convserve.plan.search import Search

__all__ = ["Plan", "finish_plan", "make_plan"]

TILE_ROWS = 16  # CS_MR_MAX: pixels that a tile of the widest kernel takes
RING_BYTES = 80  # sizeof(Ring) in kernels/rows.pxd; the executor checks it


@dataclass(slots=True, eq=False)
class Plan:
    """Everything that a run needs to know, as plain data. Sizes are for `images` images and `threads` threads.

    predicted_s: seconds of a run as the cost table, `costs`, says.
    """

    name: str
    height: int
    width: int
    images: int
    threads: int
    layout: Layout
    program: Program
    segment_of: list[int]
    blocks: list[Block]
    arena_bytes: int
    zeros_offset: int
    zeros_bytes: int
    scratch_pitch: int
    scratch_bytes: int
    weight_bytes: int
    predicted_s: float
    costs: CostTable
    score_bytes: int = 0
    poison: bool = False

    @property
    def total_bytes(self) -> int:
        """Arena + scratch + scores held; weights are counted apart, since they are mapped and shared."""
        return self.arena_bytes + self.scratch_bytes + self.score_bytes

    @property
    def step_count(self) -> int:
        """Steps that a run executes, repetitions counted."""
        return sum(len(block.steps) * block.repeats for block in self.blocks)

    def operation(self, step: Step) -> Operation | None:
        """Return the operation of a step; None for Zero and Poison, which name a tensor."""
        return None if step.kind in ("Zero", "Poison") else self.program.operations[step.index]

    def table(self) -> str:
        """Return the rings, one a line, with the totals, as text."""
        from convserve.plan.report import ring_table

        return ring_table(self)

    def steps(self) -> str:
        """Return the steps, one a line, block by block, as text."""
        from convserve.plan.report import step_list

        return step_list(self)


def _scratch_of(operation: Operation, program: Program, group_tiles: int) -> int:
    # bytes that one thread needs for a step of the operation
    node = operation.node
    if node is None or operation.kind == "WinogradInput":
        return 0
    if operation.kind == "WinogradOutput":
        return group_tiles * (8 + WINOGRAD_POINTS * 32 * 4)
    if node.op == "Conv" and not is_depthwise(node):
        return math.prod(weight_shape(node)[2:]) * TILE_ROWS * 8
    if operation.kind == "GroupStatistics":
        return 2 * program.tensors[operation.inputs[0]].volume.channels * 8
    if node.op == "LRN":
        return (program.tensors[operation.output].volume.channels + node.attrs["size"] + 16) * 4
    return 0


def _zeros_bytes(program: Program) -> int:
    # the zeros above and below volumes are one row as long as the longest that a convolution reads
    readers = [op for op in program.operations if op.kind in ("Conv", "WinogradInput")]
    roots = [program.tensors[program.tensors[op.inputs[0]].root] for op in readers]
    return max((root.row_pitch * 4 for root in roots), default=0)


def _place_rings(
    program: Program, segments: int, images: int, zeros_bytes: int, *, share_space: bool
) -> tuple[int, int]:
    rings = [tensor for tensor in program.tensors if tensor.root == tensor.index]
    regions = [
        Region(
            tensor.ring_bytes * images,
            tensor.first_use if share_space else 0,
            tensor.last_use if share_space else segments,
            brief=tensor.brief and share_space,
        )
        for tensor in rings
    ]
    zeros = Region(zeros_bytes, 0, segments)
    arena_bytes = place([*regions, zeros])
    for tensor, region in zip(rings, regions, strict=True):
        tensor.offset = region.offset
    return arena_bytes, zeros.offset


def make_plan(
    graph: Graph,
    height: int,
    width: int,
    *,
    images: int = 1,
    threads: int = 1,
    layout: Layout | None = None,
    sink_rows: list[int] | None = None,
    full_buffers: bool = False,
    poison: bool = False,
    costs: CostTable | None = None,
) -> Plan:
    """Return the plan of a (packed or unpacked) graph over `images` images of height x width.

    layout: cuts and band heights; default: the smallest that is predicted nearly as fast as the fastest. sink_rows:
    rows that each output delivers (default all). full_buffers: every tensor keeps all its rows in a place of its
    own. poison: rows are filled with NaN before their first and after their last use. costs: what predictions
    are made from, default the shipped one.
    Raises ShapeError or ModelError where the image does not fit the network.
    """
    costs = costs or shipped_table()
    program = build_program(graph, height, width, sink_rows=sink_rows, in_place=not full_buffers)
    if full_buffers:
        layout = Layout(tuple(range(1, len(program.operations))))
    elif layout is None:
        layout = Search(program, images=images, threads=threads, table=costs).near_fastest().layout
        program.forget()
    segment_of = segments_of(program, layout.cuts)
    bands = bands_of(program, segment_of, layout)
    blocks = schedule(program, segment_of, bands, poison=poison)
    if full_buffers:
        for tensor in program.tensors:
            if tensor.root == tensor.index:
                tensor.ring_rows = tensor.height
    zeros_bytes = _zeros_bytes(program)
    arena_bytes, zeros_offset = _place_rings(
        program, segment_of[-1], images, zeros_bytes, share_space=not full_buffers
    )
    scratch_pitch = max(_scratch_of(operation, program, layout.group_tiles) for operation in program.operations)
    scratch_pitch = -(-scratch_pitch // 64) * 64
    table_bytes = -(-RING_BYTES * len(program.tensors) // 64) * 64
    weight_bytes = sum(
        array.nbytes
        for op in program.operations
        if op.node is not None and op.kind not in ("WinogradInput", "GroupNormalize")
        for array in op.node.params.values()
    )
    return Plan(
        name=graph.name,
        height=height,
        width=width,
        images=images,
        threads=threads,
        layout=layout,
        program=program,
        segment_of=segment_of,
        blocks=blocks,
        arena_bytes=arena_bytes,
        zeros_offset=zeros_offset,
        zeros_bytes=zeros_bytes,
        scratch_pitch=scratch_pitch,
        scratch_bytes=scratch_pitch * threads + table_bytes,
        weight_bytes=weight_bytes,
        predicted_s=layout_seconds(program, segment_of, bands, images=images, threads=threads, table=costs),
        costs=costs,
        poison=poison,
    )


def finish_plan(plan: Plan, graph: Graph, done: list[int], height: int, rows: int) -> Plan:
    """Return the plan of the remaining steps of a run whose height came to light only at the image's last row.

    plan: one segment over an image of any larger height; done: rows that each of its operations has produced;
    rows: score rows of the whole image. Rings and offsets stay where they are.
    """
    program = build_program(graph, height, plan.width, sink_rows=[rows], in_place=False)
    for tensor, before in zip(program.tensors, plan.program.tensors, strict=True):
        tensor.root, tensor.offset, tensor.spaced = before.root, before.offset, before.spaced
        tensor.pad_left, tensor.pad_right = before.pad_left, before.pad_right
    bands = bands_of(program, plan.segment_of, plan.layout)
    blocks = schedule(program, plan.segment_of, bands, poison=plan.poison, done=done)
    for tensor, before in zip(program.tensors, plan.program.tensors, strict=True):
        assert tensor.ring_rows <= before.ring_rows, f"ring of {tensor.name}"
        assert tensor.brief or not before.brief, f"ring of {tensor.name}"
        tensor.ring_rows, tensor.brief = before.ring_rows, before.brief
    return replace(plan, height=height, program=program, blocks=blocks)
