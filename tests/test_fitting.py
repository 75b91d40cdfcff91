"""What fits a budget, and what weights take: the numbers are the planner's own, at their very edge."""

import itertools
import json
from pathlib import Path

import pytest
from builder import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network

import convserve
from convserve.cli.main import main
from convserve.dense import capacity
from convserve.dense.fitting import largest
from convserve.errors import InputError, MemoryBudgetError, SettingError
from convserve.graph.ir import Graph, Volume
from convserve.plan.budget import plan_within
from convserve.plan.describe import describe
from convserve.plan.weights import weigh

NET = Path(convserve.__file__).parent / "bundled" / "digits.convserve"
MIB = 1 << 20


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(NET, threads=2)


# ---- the search


@settings(deadline=None, max_examples=300)
@given(edge=st.integers(-1, 10**6), guess=st.integers(-5, 2 * 10**6), most=st.integers(0, 10**6))
def test_the_largest_that_fits_is_found_from_any_guess(edge: int, guess: int, most: int) -> None:
    asked = []

    def fits(number: int) -> bool:
        assert 0 <= number <= most
        asked.append(number)
        return number <= edge

    assert largest(fits, guess=guess, most=most) == min(edge, most)
    assert len(asked) == len(set(asked)) < 60


# ---- what fits


def refused(model: convserve.Model, height: int, width: int, **options: object) -> bool:
    try:
        model.plan(height, width, **options)
    except MemoryBudgetError:
        return True
    return False


@pytest.mark.parametrize("budget", [100_000, 400_000, "4MiB"])
def test_one_more_of_anything_does_not_fit(model: convserve.Model, budget: int | str) -> None:
    found = model.capacity(budget)
    size = {"memory_budget": budget}
    assert found.batch > 0
    assert not refused(model, 28, 28, batch=found.batch, **size)
    assert refused(model, 28, 28, batch=found.batch + 1, **size)
    side = found.square_side
    assert side > 28
    assert not refused(model, side, side, hold_scores=True, **size)
    assert refused(model, side + 4, side + 4, hold_scores=True, **size)
    width = found.stream_width
    model.row_stream(width, memory_budget=budget).close()
    with pytest.raises(MemoryBudgetError):
        model.row_stream(width + 4, memory_budget=budget)
    assert (width - 28) % 4 == (side - 28) % 4 == 0


def test_too_small_a_budget_fits_nothing_and_says_so(model: convserve.Model) -> None:
    found = model.capacity(5000)
    assert (found.batch, found.stream_width, found.square_side) == (0, 0, 0)
    assert "a batch of 0 image(s) of 28x28" in found.text()


def test_a_wider_budget_fits_more() -> None:
    graph = network("vgg16")
    sizes = [capacity(graph, window=(224, 224), budget_bytes=budget * MIB) for budget in (8, 64, 512)]
    for smaller, larger in itertools.pairwise(sizes):
        assert smaller.batch < larger.batch
        assert smaller.stream_width < larger.stream_width
        assert smaller.square_side < larger.square_side
    # the rings of VGG-16 take 42 MiB at 4096 pixels, and grow with the width alone
    assert sizes[1].stream_width > 4096
    plan_within(graph, 10**6, sizes[1].stream_width, budget_bytes=64 * MIB, streamed=True)


def test_a_network_that_cannot_slide_only_has_a_batch() -> None:
    build = Builder(Volume(3, 8, 8))
    fixed = build.graph(build.gemm(build.flatten(build.input), 10))
    found = convserve.load(fixed).capacity("1MiB")
    slides = found.stream_width is not None
    assert slides == (found.square_side is not None)
    assert found.batch > 1
    assert ("streamed" in found.text()) == slides


def test_budgets_come_from_the_model_or_the_environment(
    model: convserve.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVSERVE_MEMORY_BUDGET", raising=False)
    with pytest.raises(InputError, match="no memory budget"):
        model.capacity()
    assert convserve.load(NET, memory_budget="1MiB").capacity().budget_bytes == MIB
    monkeypatch.setenv("CONVSERVE_MEMORY_BUDGET", "2MiB")
    assert model.capacity().budget_bytes == 2 * MIB
    with pytest.raises(SettingError, match="lots"):
        model.capacity("lots")


# ---- weights


def padded_graph() -> Graph:
    build = Builder(Volume(3, 24, 24))
    x = build.conv(build.conv(build.input, 36, 3, pads=1), 64, 3, pads=1)
    return build.graph(build.affine(build.pool("MaxPool", build.conv(x, 64, 3, pads=1, group=64), 2)))


def test_bytes_of_weights_are_those_of_the_arrays() -> None:
    graph = convserve.load(padded_graph()).graph
    table = weigh(graph, describe(graph))
    first, second, depthwise, affine = table.layers
    # 36 output channels are three panels of 16
    assert (first.parameters, first.direct_bytes) == (36 * 27 + 36, 4 * 48 * 27)
    assert (first.transformed_bytes, first.other_bytes) == (0, 4 * 48)
    assert (second.direct_bytes, second.transformed_bytes) == (4 * 64 * 9 * 36, 4 * 64 * 36 * 36)
    assert (depthwise.direct_bytes, depthwise.other_bytes) == (4 * 9 * 64, 4 * 64)
    assert (affine.direct_bytes, affine.other_bytes) == (0, 8 * 64)
    assert table.total.total_bytes == sum(array.nbytes for node in graph.nodes for array in node.params.values())


def test_the_models_weights_are_those_that_its_plan_counts(model: convserve.Model) -> None:
    assert model.weights().total.total_bytes == model.plan(28, 28).weight_bytes
    assert model.weights().total.parameters == model.describe().parameters


def test_describe_memory_prints_weights_and_what_fits(
    model: convserve.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CONVSERVE_MEMORY_BUDGET", raising=False)
    assert main(["describe", str(NET), "--memory"]) == 0
    assert capsys.readouterr().out == model.weights().table() + "\n"
    assert main(["describe", str(NET), "--memory", "--memory-budget", "2MiB"]) == 0
    assert capsys.readouterr().out.endswith(convserve.load(NET).capacity("2MiB").text() + "\n")
    monkeypatch.setenv("CONVSERVE_MEMORY_BUDGET", "1MiB")
    assert main(["describe", str(NET), "--memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total_bytes"] == model.weights().total.total_bytes
    assert found["capacity"] == json.loads(json.dumps(convserve.load(NET).capacity("1MiB").to_dict()))


def test_a_budget_without_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(NET), "--memory-budget", "1MiB"]) == 1
    assert "--memory" in capsys.readouterr().err
