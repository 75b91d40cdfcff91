"""Plans as text and plain data: rings with their places in the arena, totals beside other executors', the steps."""

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convserve.plan.plan import Plan
    from convserve.plan.program import Tensor

__all__ = ["activation_bytes", "mebibytes", "pair_bytes", "ring_list", "ring_table", "step_list"]


def mebibytes(size_bytes: int) -> str:
    """Return a size as "3.25 MiB"."""
    return f"{size_bytes / (1 << 20):.2f} MiB"


def _is_own(plan: "Plan", tensor: "Tensor") -> bool:
    # whether the network itself has the values: not the joined volume of parts counted already, not transformed tiles
    return not tensor.parts and tensor.index not in _tiles(plan)


def _tiles(plan: "Plan") -> dict[int, int]:
    # transformed tiles, and the tensor that they are made of
    made = (operation for operation in plan.program.operations if operation.kind == "WinogradInput")
    return {operation.output: operation.inputs[0] for operation in made}


def activation_bytes(plan: "Plan") -> int:
    """Return the bytes of all volumes of the network at once, the images included: float32, without any padding."""
    return sum(4 * tensor.volume.values for tensor in plan.program.tensors if _is_own(plan, tensor)) * plan.images


def pair_bytes(plan: "Plan") -> int:
    """Return the bytes of what the widest layer reads and writes, float32: the least for one layer after another."""
    tensors, tiles = plan.program.tensors, _tiles(plan)
    widest = 0
    for operation in plan.program.operations:
        if operation.node is not None and operation.kind != "WinogradInput":
            touched = {tiles.get(index, index) for index in (*operation.inputs, operation.output)}
            widest = max(widest, sum(tensors[index].volume.values for index in touched))
    return 4 * widest * plan.images


def ring_list(plan: "Plan") -> list[dict[str, Any]]:
    """Return the rings as plain data for JSON, those inside another with its name and their first channel there."""
    tensors = plan.program.tensors
    rings = []
    for tensor in tensors:
        volume = [tensor.height, tensor.width, tensor.volume.channels]
        ring: dict[str, Any] = {"name": tensor.name, "volume": volume}
        if tensor.root != tensor.index:
            rings.append({**ring, "within": tensors[tensor.root].name, "channel": tensor.channel_offset})
            continue
        place = {"rows": tensor.ring_rows, "bytes": tensor.ring_bytes * plan.images, "offset": tensor.offset}
        rings.append({**ring, **place, "segments": [tensor.first_use, tensor.last_use]})
    return rings


def ring_table(plan: "Plan") -> str:
    """Return one line a ring: volume, rows held of rows in all, bytes, offset, segments of its life; then totals."""
    lines = [f"{'ring':<28} {'volume':>16} {'rows':>11} {'bytes':>12} {'offset':>12} {'life':>9}"]
    for ring in ring_list(plan):
        height, width, channels = ring["volume"]
        head = f"{ring['name'][:28]:<28} {f'{height}x{width}x{channels}':>16}"
        if "within" in ring:
            lines.append(f"{head} in {ring['within']}, channel {ring['channel']}")
            continue
        rows, life = f"{ring['rows']}/{height}", "{}-{}".format(*ring["segments"])
        lines.append(f"{head} {rows:>11} {ring['bytes']:>12,} {ring['offset']:>12,} {life:>9}")
    lines += [
        f"{plan.name}: {plan.images} image(s) of {plan.height}x{plan.width}, {plan.threads} thread(s),"
        f" {_segments(plan)},"
        f" {plan.step_count:,} steps ({sum(len(block.steps) for block in plan.blocks):,} listed),"
        f" predicted {f'{1e3 * plan.predicted_s:.2f} ms' if plan.predicted_s < 1 else f'{plan.predicted_s:,.1f} s'}",
        f"arena {mebibytes(plan.arena_bytes)} + scratch {mebibytes(plan.scratch_bytes)}"
        f" + scores held {mebibytes(plan.score_bytes)} = {mebibytes(plan.total_bytes)}"
        f"; weights {mebibytes(plan.weight_bytes)}",
        f"one layer after another would take {mebibytes(pair_bytes(plan))} for the widest layer's input and output,"
        f" {mebibytes(activation_bytes(plan))} for all activations at once",
    ]
    return "\n".join(lines)


def _segments(plan: "Plan") -> str:
    # an operation that is a segment of its own computes all rows at once
    members = Counter(plan.segment_of[op.index] for op in plan.program.operations if op.kind != "Write")
    rows = plan.layout.band_rows
    heights = [rows if isinstance(rows, int) else rows[segment] for segment in members if members[segment] > 1]
    text = f"{plan.segment_of[-1] + 1} segment(s)"
    if not heights:
        return text
    low, high = min(heights), max(heights)
    return f"{text}, {len(heights)} of them in bands of {low if low == high else f'{low} to {high}'} row(s)"


def step_list(plan: "Plan") -> str:
    """Return one line a step, and for each block that repeats how often, and by how many rows each step moves on."""
    lines = []
    for block in plan.blocks:
        lines.append(f"segment {block.segment}, {len(block.steps)} steps, {block.repeats} time(s)")
        for step in block.steps:
            operation = plan.operation(step)
            name = operation.name if operation else plan.program.tensors[step.index].name
            advance = f"  +{step.advance} each time" if step.advance else ""
            lines.append(f"  {step.kind:<18} {name:<28} rows {step.begin}-{step.end}{advance}")
    return "\n".join(lines)
