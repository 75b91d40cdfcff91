"""The plan of a run: segments, band heights, rings, offsets and steps, and to the byte what they take."""

from dataclasses import dataclass, replace

from convserve.formats.packing import is_depthwise
from convserve.graph.ir import Graph, Node
from convserve.graph.ops import weight_shape
from convserve.plan.arena import Region, place
from convserve.plan.layout import Layout, bands_of, default_layout, segments_of
from convserve.plan.program import WINOGRAD_GROUP, WINOGRAD_POINTS, Operation, Program, build_program
from convserve.plan.schedule import Block, Step, schedule

__all__ = ["Plan", "finish_plan", "make_plan", "packs_windows"]

TILE_ROWS = 16  # CS_MR_MAX: pixels that a tile of the widest kernel takes
RING_BYTES = 80  # sizeof(Ring) in kernels/rows.pxd; the executor checks it


@dataclass(slots=True, eq=False)
class Plan:
    """Everything that a run needs to know, as plain data. Sizes are for `images` images and `threads` threads."""

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
    scratch_pitch: int
    scratch_bytes: int
    weight_bytes: int
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


def packs_windows(node: Node) -> bool:
    """Whether a convolution copies the windows of a tile into rows first: short runs of memory, small windows.

    A fixed rule of the layer's shape; the order of the sum is the same either way.
    """
    _, channels, kernel_h, kernel_w = weight_shape(node)
    run = channels * (kernel_w if node.attrs["group"] == 1 and node.attrs["dilations"][1] == 1 else 1)
    return run < 32 and kernel_h * kernel_w > 1 and channels * kernel_h * kernel_w <= 1024


def _scratch_of(operation: Operation, program: Program) -> int:
    # bytes that one thread needs for a step of the operation
    node = operation.node
    if node is None or operation.kind == "WinogradInput":
        return 0
    if operation.kind == "WinogradOutput":
        return WINOGRAD_GROUP * (8 + WINOGRAD_POINTS * 32 * 4)
    if node.op == "Conv" and not is_depthwise(node):
        _, channels, kernel_h, kernel_w = weight_shape(node)
        pointers = kernel_h * kernel_w * TILE_ROWS * 8
        return pointers + (TILE_ROWS * kernel_h * kernel_w * channels * 4 if packs_windows(node) else 0)
    if node.op == "LRN":
        return (program.tensors[operation.output].volume.channels + node.attrs["size"] + 16) * 4
    return 0


def _place_rings(program: Program, segments: int, images: int, *, share_space: bool) -> tuple[int, int]:
    # the zeros behind the image's top and bottom are one row as long as the longest that is padded
    rings = [tensor for tensor in program.tensors if tensor.root == tensor.index]
    longest = max(tensor.row_pitch for tensor in rings) * 4
    regions = [
        Region(
            tensor.ring_bytes * images,
            tensor.first_use if share_space else 0,
            tensor.last_use if share_space else segments,
        )
        for tensor in rings
    ]
    zeros = Region(longest, 0, segments)
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
) -> Plan:
    """Return the plan of a (packed or unpacked) graph over `images` images of height x width.

    layout: cuts and band height; default: the fixed heuristic of plan.layout. sink_rows: rows that each
    output delivers (default all). full_buffers: every tensor keeps all its rows in a place of its own.
    poison: rows are filled with NaN before their first and after their last use.
    Raises ShapeError or ModelError where the image does not fit the network.
    """
    program = build_program(graph, height, width, sink_rows=sink_rows)
    if full_buffers:
        layout = Layout(tuple(range(1, len(program.operations))))
    elif layout is None:
        layout = default_layout(graph, height, width, sink_rows=sink_rows)
    segment_of = segments_of(program, layout.cuts)
    blocks = schedule(program, segment_of, bands_of(program, segment_of, layout), poison=poison)
    if full_buffers:
        for tensor in program.tensors:
            if tensor.root == tensor.index:
                tensor.ring_rows = tensor.height
    arena_bytes, zeros_offset = _place_rings(program, segment_of[-1], images, share_space=not full_buffers)
    scratch_pitch = max(_scratch_of(operation, program) for operation in program.operations)
    scratch_pitch = -(-scratch_pitch // 64) * 64
    table_bytes = -(-RING_BYTES * len(program.tensors) // 64) * 64
    weight_bytes = sum(
        array.nbytes
        for op in program.operations
        if op.node is not None and op.kind != "WinogradInput"
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
        scratch_pitch=scratch_pitch,
        scratch_bytes=scratch_pitch * threads + table_bytes,
        weight_bytes=weight_bytes,
        poison=poison,
    )


def finish_plan(plan: Plan, graph: Graph, done: list[int], height: int, rows: int) -> Plan:
    """Return the plan of the remaining steps of a run whose height came to light only at the image's last row.

    plan: one segment over an image of any larger height; done: rows that each of its operations has produced;
    rows: score rows of the whole image. Rings and offsets stay where they are.
    """
    program = build_program(graph, height, plan.width, sink_rows=[rows])
    for tensor, before in zip(program.tensors, plan.program.tensors, strict=True):
        tensor.offset, tensor.spaced = before.offset, before.spaced
        tensor.pad_left, tensor.pad_right = before.pad_left, before.pad_right
    bands = bands_of(program, plan.segment_of, plan.layout)
    blocks = schedule(program, plan.segment_of, bands, poison=plan.poison, done=done)
    for tensor, before in zip(program.tensors, plan.program.tensors, strict=True):
        assert tensor.ring_rows <= before.ring_rows, f"ring of {tensor.name}"
        tensor.ring_rows = before.ring_rows
    return replace(plan, height=height, program=program, blocks=blocks)
