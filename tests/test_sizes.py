"""Sizes beyond 32 bits: plans of huge images, and kernels at offsets past 2^31 values (long form: make huge)."""

import numpy as np
import pytest
from builder import Builder, vgg16
from numpy.lib.stride_tricks import as_strided
from plan_checker import check_arena
from runs import ISAS, run_engine, same_bits, settings
from strategies import image
from test_instruction_sets import everything

import convserve
from convserve.engine.binding import Executor
from convserve.engine.engine import Engine
from convserve.engine.executor import DONE, Execution, Memory
from convserve.errors import InputError, MemoryBudgetError, ShapeError
from convserve.graph.ir import Graph, Volume
from convserve.graph.ops import LARGEST_SIDE
from convserve.graph.rewrites import rewrite
from convserve.plan.layout import Layout
from convserve.plan.plan import Plan, make_plan

MILLION = 10**6
FAR = 1 << 31  # values


@pytest.fixture(scope="module")
def digits() -> convserve.Model:
    return convserve.load(convserve.__path__[0] + "/bundled/digits.convserve", threads=2)


def endless(height: int, width: int) -> np.ndarray:
    """Return an image of any size in 4 bytes."""
    return as_strided(np.zeros(1, np.float32), (1, 1, height, width), (0, 0, 0, 0))


@pytest.mark.parametrize("band_rows", [1, 4])
def test_bytes_of_a_plan_of_a_million_by_a_million(band_rows: int) -> None:
    """Rings are as high as in a small image's plan, and as long as arithmetic says."""
    graph = rewrite(vgg16(), window=None)
    layout = Layout((), band_rows)
    huge = make_plan(graph, MILLION, MILLION, layout=layout)
    small = make_plan(graph, 2048, 2048, layout=layout)
    check_arena(huge)
    total = longest = 0
    for tensor, other in zip(huge.program.tensors, small.program.tensors, strict=True):
        assert tensor.ring_rows == other.ring_rows
        assert tensor.pixel_pitch == other.pixel_pitch
        pads = tensor.pad_left + tensor.pad_right
        row = -(-(pads + tensor.width) * tensor.pixel_pitch // 16) * 64
        longest = max(longest, row)
        total += -(-tensor.ring_rows * row // 64) * 64
    assert total + longest <= huge.arena_bytes < total + longest + 8192
    assert huge.arena_bytes > 4 * FAR
    assert huge.total_bytes == huge.arena_bytes + huge.scratch_bytes
    assert sum(len(block.steps) for block in huge.blocks) < 20_000


def test_scores_of_a_million_by_a_million_are_counted(digits: convserve.Model) -> None:
    plan = digits.plan(MILLION, MILLION, hold_scores=True)
    rows = (MILLION - 28) // 4 + 1
    assert plan.score_bytes == rows * rows * 11 * 4
    assert plan.total_bytes == plan.arena_bytes + plan.scratch_bytes + plan.score_bytes


def test_a_budget_refuses_a_huge_run_before_it_begins(digits: convserve.Model) -> None:
    with pytest.raises(MemoryBudgetError, match=r"at least [\d,]{13,} bytes .*; the memory budget is 67,108,864 bytes"):
        digits.score_map(endless(MILLION, MILLION), memory_budget="64MiB")
    with pytest.raises(MemoryBudgetError, match="the memory budget is 67,108,864 bytes"):
        digits.plan(MILLION, MILLION, memory_budget="64MiB")


@pytest.mark.parametrize("side", [FAR - 1, FAR, FAR + 28, 1 << 33, LARGEST_SIDE])
def test_sides_past_32_bits(digits: convserve.Model, side: int) -> None:
    plan = digits.plan(side, side)
    assert plan.arena_bytes > side * 4
    check_arena(plan)
    for height, width in ((28, side), (side, 28)):
        with pytest.raises(MemoryBudgetError, match="the memory budget is 1,048,576 bytes"):
            digits.score_map(endless(height, width), memory_budget="1MiB")


@pytest.mark.parametrize("side", [LARGEST_SIDE + 1, 1 << 62, 1 << 63, 1 << 64, 1 << 70, 10**100])
def test_a_side_that_no_image_has_is_refused(digits: convserve.Model, side: int) -> None:
    for height, width in ((side, 28), (28, side), (side, side)):
        with pytest.raises(ShapeError, match=rf"the image is {height}x{width}; allowed: at most {LARGEST_SIDE} pixels"):
            digits.plan(height, width)


def test_a_batch_that_no_memory_holds_is_refused(digits: convserve.Model) -> None:
    plan = digits.plan(28, 28, batch=1 << 70)
    assert plan.arena_bytes > 1 << 70
    with pytest.raises(MemoryBudgetError, match=f"system refused {plan.arena_bytes:,} bytes"):
        Memory(plan.arena_bytes)
    with pytest.raises(InputError, match="batch is 0"):
        digits.plan(28, 28, batch=0)


# ---- kernels at far offsets: one ring at a time is given so many rows that the second image's lies past 2^31 values


def far_plan(engine: Engine, height: int, width: int, index: int) -> Plan | None:
    """Return a plan over two images one of whose rings is 8 GiB for each; None for a tensor without its own ring.

    Only the pages that are used will take memory. The zeros beside its rows are those of fresh memory.
    """
    plan = make_plan(engine.graph, height, width, images=2, threads=2, layout=Layout((), 2))
    tensor = plan.program.tensors[index]
    if tensor.root != index:
        return None
    tensor.ring_rows = FAR // tensor.row_pitch + 1
    tensor.offset = plan.arena_bytes
    used_bytes = tensor.ring_rows * tensor.row_pitch * 4 + tensor.height * tensor.row_pitch * 4
    plan.arena_bytes += -(-used_bytes // 4096) * 4096
    for block in plan.blocks:
        block.steps = [step for step in block.steps if step.kind != "Zero" or step.index != index]
    return plan


def run_plan(plan: Plan, x: np.ndarray, isa: str) -> list[np.ndarray]:
    try:
        memory = Memory(plan.arena_bytes + plan.scratch_bytes)
    except MemoryBudgetError:
        pytest.skip("the system gives a process no 9 GiB of address space")
    execution = Execution(Executor(plan, isa), memory)
    execution.set_source(x.transpose(0, 2, 3, 1))
    shown = []
    for number, tensor in enumerate(plan.program.shown()):
        y = np.full((2, tensor.volume.channels, tensor.height, tensor.width), np.nan, np.float32)
        execution.set_sink(number, y.transpose(0, 2, 3, 1))
        shown.append(y)
    assert execution.advance() == DONE
    memory.close()
    return shown


def winograd_net() -> Graph:
    build = Builder(Volume(32, 17, 19), seed=9)
    y = build.conv(build.input, 40, 3, pads=1, activation="relu")
    return build.graph(build.conv(y, 32, 3, pads=1, residual=build.input))


def other_kernels() -> Graph:
    build = Builder(Volume(6, 14, 15), seed=2)
    x = build.conv(build.input, 12, (3, 5), pads=(1, 2, 1, 2), dilations=(1, 2), group=2)
    x = build.conv(build.pool("MaxPool", x, 2, strides=2), 12, 3, pads=1, group=12)
    gate = build.conv(build.simple("GlobalMaxPool", x), 12, 1)
    x = build.simple("ChannelShuffle", build.join("Mul", x, gate), group=3)
    return build.graph(build.gemm(build.flatten(build.simple("Relu", x)), 9), build.simple("Softmax", x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("graph", "kinds"),
    [
        (everything(7, 9), {"Conv", "MaxPool", "AveragePool", "Affine", "LRN", "Softmax", "Add", "Mul"}),
        (other_kernels(), {"Conv", "MaxPool", "ChannelShuffle", "Mul", "Relu", "Read", "Write"}),
        (winograd_net(), {"WinogradInput", "WinogradOutput"}),
    ],
    ids=["everything", "others", "winograd"],
)
def test_kernels_at_offsets_past_31_bits(graph: Graph, kinds: set[str], isa: str) -> None:
    engine = Engine(convserve.load(graph).graph)
    x = image(graph, batch=2, seed=3)
    height, width = x.shape[2:]
    with settings(ISA=isa):
        expected = run_engine(engine, x)
        reached = set()
        for index in range(len(engine.executor(height, width).plan.program.tensors)):
            plan = far_plan(engine, height, width, index)
            if plan is not None:
                assert same_bits(run_plan(plan, x, isa), expected), plan.program.tensors[index].name
                reached |= {op.kind for op in plan.program.operations if index in (*op.inputs, op.output)}
    assert reached >= kinds
