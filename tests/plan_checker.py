"""Checks plans without any kernel: one replay follows row numbers through the rings, another computes in an arena.

Both know nothing of how a plan was found; what a step reads is worked out again from the attributes.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from reference import ORACLES, axis_geometry
from strategies_moves import MOVES

from convserve.graph.ir import Node, Volume
from convserve.graph.ops import COMBINATIONS
from convserve.plan.plan import Plan
from convserve.plan.program import Operation, Tensor
from convserve.plan.schedule import Step

__all__ = ["PlanError", "check_arena", "check_plan", "listed_steps", "replay", "rows_read", "steps_of"]


class PlanError(AssertionError):
    """A plan breaks one of the rules."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise PlanError(message)


def listed_steps(plan: Plan) -> int:
    """How many steps the plan holds, repetitions not counted."""
    return sum(len(block.steps) for block in plan.blocks)


def steps_of(plan: Plan) -> Iterator[tuple[int, Step]]:
    """Yield (segment, step) of a whole run, repetitions unrolled."""
    for block in plan.blocks:
        for repetition in range(block.repeats):
            for step in block.steps:
                moved = repetition * step.advance
                yield block.segment, replace(step, begin=step.begin + moved, end=step.end + moved)


def rows_behind(node: Node, volume: Volume) -> np.ndarray:
    """Return which rows of its input each output row of a node depends on, bool: NaN goes in row by row."""
    behind = []
    for row in range(volume.height):
        x = np.zeros((1, volume.channels, volume.height, volume.width))
        x[:, :, row] = np.nan
        behind.append(np.isnan(ORACLES[node.op](node, x)).any(axis=(0, 1, 3)))
    return np.array(behind).T


def rows_read(
    operation: Operation,
    number: int,
    begin: int,
    end: int,
    heights: tuple[int, int],
    behind: np.ndarray | None = None,
) -> np.ndarray:
    """Return the rows of input `number` behind output rows [begin, end); heights are of that input and the output.

    behind: what rows_behind gives for one of MOVES.
    """
    node, (height, out_height) = operation.node, heights
    rows = np.arange(begin, end)
    if node is None:
        return rows
    if behind is not None:
        rows = np.flatnonzero(behind[begin:end].any(axis=0))
    elif operation.kind.startswith("Winograd"):
        # 6x6 pixels make a tile of as many outputs a side as leave room for the filter
        tile = 7 - node.attrs["kernel_shape"][0]
        if operation.kind == "WinogradInput":
            rows = np.unique(rows[:, None] * tile - node.attrs["pads"][0] + np.arange(6))
        elif number == 0:
            rows = np.unique(rows // tile)
    elif "strides" in node.attrs and number == 0:
        _, pad, _ = axis_geometry(node, 0, height)
        taps = np.arange(node.attrs["kernel_shape"][0]) * node.attrs["dilations"][0]
        rows = np.unique(rows[:, None] * node.attrs["strides"][0] - pad + taps)
    elif node.op == "Flatten":
        rows = np.arange(begin, end - 1 + node.attrs["kernel_shape"][0])
    elif operation.kind == "GroupStatistics" or node.op.startswith("Global"):
        rows = np.arange(height)
    elif operation.kind == "GroupNormalize" and number == 0:
        pass
    elif operation.kind == "GroupNormalize" or (node.op in COMBINATIONS and height == 1 and out_height != 1):
        rows = np.zeros(1, dtype=int)
    return rows[(rows >= 0) & (rows < height)]


def moves_of(plan: Plan) -> dict[int, np.ndarray]:
    """Return rows_behind of each operation that is one of MOVES, by its index."""
    return {
        operation.index: rows_behind(operation.node, plan.program.tensors[operation.inputs[0]].volume)
        for operation in plan.program.operations
        if operation.node is not None and operation.node.op in MOVES
    }


def leaves(plan: Plan, index: int) -> list[int]:
    """Return the tensors that are written one by one to make up a tensor."""
    parts = plan.program.tensors[index].parts
    return [leaf for part in parts for leaf in leaves(plan, part)] if parts else [index]


def check_arena(plan: Plan) -> None:
    """No two rings whose lives meet overlap; every ring lies in the arena, at a multiple of 64."""
    tensors = plan.program.tensors
    life: dict[int, list[int]] = {}
    for block in plan.blocks:
        for step in block.steps:
            operation = plan.operation(step)
            touched = (step.index,) if operation is None else (*operation.inputs, operation.output)
            for index in touched:
                if index >= 0:
                    life.setdefault(tensors[index].root, []).append(block.segment)
    regions = []
    for root, segments in life.items():
        tensor = tensors[root]
        require(tensor.offset >= 0 and tensor.offset % 64 == 0, f"{tensor.name}: offset {tensor.offset}")
        size = tensor.ring_rows * tensor.row_pitch * 4 * plan.images
        values = (tensor.pad_left + tensor.width + tensor.pad_right) * tensor.volume.channels
        require(tensor.row_pitch >= values, f"{tensor.name}: a row of {values} values in a pitch of {tensor.row_pitch}")
        regions.append((tensor.name, tensor.offset, tensor.offset + size, min(segments), max(segments)))
    padded = [op for op in plan.program.operations if op.kind in ("Conv", "WinogradInput")]
    read = {tensors[op.inputs[0]].root for op in padded}
    longest = max((4 * tensors[root].row_pitch for root in read if root in life), default=0)
    overlapping: list[tuple[str, str]] = []
    regions.append(("zeros", plan.zeros_offset, plan.zeros_offset + longest, 0, plan.blocks[-1].segment))
    for number, (name, begin, end, first, last) in enumerate(regions):
        require(end <= plan.arena_bytes, f"{name}: bytes {begin}-{end} of an arena of {plan.arena_bytes}")
        for other, its_begin, its_end, its_first, its_last in regions[:number]:
            apart = end <= its_begin or its_end <= begin or last < its_first or its_last < first
            overlapping += [] if apart else [(name, other)]
    if overlapping:
        named = {tensors[root].name: root for root in life}
        known = [(named.get(name, -1), named.get(other, -1)) for name, other in overlapping]
        busy = steps_in_use(plan, {root for pair in known for root in pair})
        for (name, other), (root, its_root) in zip(overlapping, known, strict=True):
            meet = min(root, its_root) < 0 or bool((busy[root] & busy[its_root]).any())
            require(not meet, f"{name} and {other} overlap, and hold rows at the same time")


def steps_in_use(plan: Plan, roots: set[int]) -> dict[int, np.ndarray]:
    """Return for each ring at which steps of the run it holds a row that is read then or later, or is written."""
    tensors = plan.program.tensors
    steps = list(steps_of(plan))
    busy = {root: np.zeros(len(steps), bool) for root in roots}
    written: dict[tuple[int, int], int] = {}
    for number, (_, step) in enumerate(steps):
        operation = plan.operation(step)
        if operation is None:
            if step.index in roots and (step.kind == "Zero" or step.begin):
                busy[step.index][number] = True
            continue
        out_height = tensors[operation.output].height if operation.output >= 0 else 0
        for position, index in enumerate(operation.inputs):
            root = tensors[index].root
            if root in roots:
                for row in rows_read(operation, position, step.begin, step.end, (tensors[index].height, out_height)):
                    busy[root][written[root, int(row)] : number + 1] = True
        root = tensors[operation.output].root if operation.output >= 0 else -1
        if root in roots:
            busy[root][number] = True
            for row in range(step.begin, step.end):
                written.setdefault((root, row), number)
    return busy


def check_padding(plan: Plan) -> None:
    """Every ring has as many zeros left and right as each convolution that reads it touches."""
    tensors = plan.program.tensors
    for operation in plan.program.operations:
        if operation.kind != "Conv":
            continue
        x, out = tensors[operation.inputs[0]], tensors[operation.output]
        attrs = operation.node.attrs
        _, pad, _ = axis_geometry(operation.node, 1, x.width)
        extent = attrs["dilations"][1] * (attrs["kernel_shape"][1] - 1) + 1
        last = (out.width - 1) * attrs["strides"][1] - pad + extent
        root = tensors[x.root]
        require(root.pad_left >= pad, f"{operation.name}: {root.pad_left} zeros on the left, {pad} read")
        require(root.pad_right >= last - x.width, f"{operation.name}: {root.pad_right} zeros on the right")


def _share_place(a: Tensor, b: Tensor) -> bool:
    above = a.channel_offset >= b.channel_offset + b.volume.channels
    below = b.channel_offset >= a.channel_offset + a.volume.channels
    return a.root == b.root and not above and not below


def check_rows(plan: Plan) -> None:
    """Each row is written before it is read and not overwritten before its last reader; outputs come in order, once."""
    tensors, operations = plan.program.tensors, plan.program.operations
    held = {
        leaf: np.full(tensors[tensor.root].ring_rows, -1)
        for tensor in tensors
        for leaf in leaves(plan, tensor.index)
    }
    done = [0] * len(operations)
    behind = moves_of(plan)
    cleared: set[int] = set()
    written: set[int] = set()
    newest_segment = 0
    for segment, step in steps_of(plan):
        require(segment >= newest_segment, f"segment {segment} comes after {newest_segment}")
        newest_segment = segment
        operation = plan.operation(step)
        if step.kind == "Zero":
            require(step.index not in written, f"{tensors[step.index].name}: padding cleared after a row was written")
            cleared.add(step.index)
            continue
        if operation is None:
            for leaf in leaves(plan, step.index):
                held[leaf][np.arange(step.begin, step.end) % len(held[leaf])] = -1
            continue
        require(plan.segment_of[operation.index] == segment, f"{operation.name} runs in segment {segment}")
        require(
            done[operation.index] == step.begin < step.end,
            f"{operation.name}: rows {step.begin}-{step.end} after {done[operation.index]}",
        )
        done[operation.index] = step.end
        out_height = tensors[operation.output].height if operation.output >= 0 else 0
        for number, index in enumerate(operation.inputs):
            heights = tensors[index].height, out_height
            rows = rows_read(operation, number, step.begin, step.end, heights, behind.get(operation.index))
            for leaf in leaves(plan, index):
                there = held[leaf][rows % len(held[leaf])]
                wrong = rows[there != rows]
                require(
                    not wrong.size,
                    f"{operation.name}, rows {step.begin}-{step.end}, reads row {wrong[:1]} of {tensors[leaf].name}, "
                    f"whose slot holds {there[there != rows][:1]}",
                )
        if operation.output >= 0:
            root = tensors[operation.output].root
            padded = tensors[root].pad_left or tensors[root].pad_right
            require(not padded or root in cleared, f"{tensors[root].name}: written before its padding was cleared")
            written.add(root)
            rows = np.arange(step.begin, step.end)
            require(rows.size <= len(held[operation.output]), f"{operation.name}: a band higher than its ring")
            require(step.end <= out_height, f"{operation.name}: row {step.end} of {out_height}")
            for other, slots in held.items():
                if other != operation.output and _share_place(tensors[other], tensors[operation.output]):
                    slots[rows % len(slots)] = -1
            held[operation.output][rows % len(held[operation.output])] = rows
    for operation in operations:
        if operation.kind == "Write":
            wanted = plan.program.sink_rows[operation.sink]
            require(done[operation.index] == wanted, f"output {operation.sink}: {done[operation.index]} of {wanted}")


def check_plan(plan: Plan) -> None:
    """Raise PlanError unless the plan keeps every rule."""
    check_arena(plan)
    check_padding(plan)
    check_rows(plan)


def _row_view(plan: Plan, arena: np.ndarray, index: int, image: int, row: int) -> np.ndarray:
    # the (width, channels) of one tensor's row, where the plan says that it lies
    tensor = plan.program.tensors[index]
    root = plan.program.tensors[tensor.root]
    base = root.offset // 4 + image * root.ring_rows * root.row_pitch + row % root.ring_rows * root.row_pitch
    pixels = arena[base : base + root.row_pitch][: (root.pad_left + root.width + root.pad_right) * root.volume.channels]
    channels = slice(tensor.channel_offset, tensor.channel_offset + tensor.volume.channels)
    return pixels.reshape(-1, root.volume.channels)[root.pad_left : root.pad_left + root.width, channels]


def group_statistics(node: Node, x: np.ndarray) -> np.ndarray:
    """Return each channel's factor and then each one's shift, (N, 2C, 1, 1)."""
    groups = x.reshape(len(x), node.attrs["group"], -1)
    each = x.shape[1] // node.attrs["group"]
    mean, variance = (found.repeat(each, axis=1) for found in (groups.mean(axis=2), groups.var(axis=2)))
    factor = node.params["scale"] / np.sqrt(variance + node.attrs["epsilon"])
    return np.concatenate([factor, node.params["bias"] - mean * factor], axis=1)[:, :, None, None]


def group_normalize(node: Node, x: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    factor, shift = np.split(statistics, 2, axis=1)
    return x * factor + shift


STEPS = {**ORACLES, "GroupStatistics": group_statistics, "GroupNormalize": group_normalize}


def replay(plan: Plan, x: np.ndarray) -> list[np.ndarray]:
    """Run the plan's steps in NumPy, every row at its place in one arena of NaN, and return the outputs (N, C, H, W).

    Each step sees of its inputs just the rows that it may read; all others are NaN.
    """
    tensors = plan.program.tensors
    arena = np.full(plan.arena_bytes // 4, np.nan)
    behind = moves_of(plan)
    sinks = []
    for operation in plan.program.operations:
        if operation.kind == "Write":
            volume = tensors[operation.inputs[0]].volume
            rows = plan.program.sink_rows[operation.sink]
            sinks.append(np.full((plan.images, volume.channels, rows, volume.width), np.nan))
    for _, step in steps_of(plan):
        operation = plan.operation(step)
        if operation is None:
            continue
        out_height = tensors[operation.output].height if operation.output >= 0 else 0
        inputs = []
        for number, index in enumerate(operation.inputs):
            volume = tensors[index].volume
            seen = np.full((plan.images, volume.channels, volume.height, volume.width), np.nan)
            heights = volume.height, out_height
            for row in rows_read(operation, number, step.begin, step.end, heights, behind.get(operation.index)):
                for image in range(plan.images):
                    seen[image, :, row] = _row_view(plan, arena, index, image, row).T
            inputs.append(seen)
        rows = slice(step.begin, step.end)
        if operation.kind == "Write":
            sinks[operation.sink][:, :, rows] = inputs[0][:, :, rows]
            continue
        y = x if operation.node is None else STEPS[operation.kind](operation.node, *inputs)
        for row in range(step.begin, step.end):
            for image in range(plan.images):
                _row_view(plan, arena, operation.output, image, row)[...] = y[image, :, row].T
    return sinks
