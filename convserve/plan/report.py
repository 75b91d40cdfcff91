"""Plans as text: rings with their places in the arena, and the steps."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convserve.plan.plan import Plan

__all__ = ["mebibytes", "ring_table", "step_list"]


def mebibytes(size_bytes: int) -> str:
    """Return a size as "3.25 MiB"."""
    return f"{size_bytes / (1 << 20):.2f} MiB"


def ring_table(plan: "Plan") -> str:
    """Return one line a ring: volume, rows held of rows in all, bytes, offset, segments of its life; then totals."""
    lines = [f"{'ring':<28} {'volume':>16} {'rows':>11} {'bytes':>12} {'offset':>12} {'life':>9}"]
    tensors = plan.program.tensors
    everything = 0
    for tensor in tensors:
        everything += tensor.volume.values * 4 * plan.images if not tensor.parts else 0
        if tensor.root != tensor.index:
            place = f"in {tensors[tensor.root].name}, channel {tensor.channel_offset}"
            lines.append(f"{tensor.name[:28]:<28} {tensor.volume!s:>16} {place}")
            continue
        rows = f"{tensor.ring_rows}/{tensor.height}"
        life = f"{tensor.first_use}-{tensor.last_use}"
        lines.append(
            f"{tensor.name[:28]:<28} {tensor.volume!s:>16} {rows:>11} {tensor.ring_bytes * plan.images:>12,}"
            f" {tensor.offset:>12,} {life:>9}"
        )
    lines += [
        f"{plan.name}: {plan.images} image(s) of {plan.height}x{plan.width}, {plan.threads} thread(s),"
        f" {plan.segment_of[-1] + 1} segment(s), bands of {plan.layout.band_rows} rows,"
        f" {plan.step_count:,} steps ({sum(len(block.steps) for block in plan.blocks):,} listed)",
        f"arena {mebibytes(plan.arena_bytes)} + scratch {mebibytes(plan.scratch_bytes)}"
        f" + scores held {mebibytes(plan.score_bytes)} = {mebibytes(plan.total_bytes)}"
        f"; weights {mebibytes(plan.weight_bytes)}; all activations at once {mebibytes(everything)}",
    ]
    return "\n".join(lines)


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
