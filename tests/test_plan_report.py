"""The account of a plan: its figures beside layer-by-layer execution, its rings as data, the arena as a picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from builder import Builder
from hypothesis import given, settings
from networks import network
from PIL import Image
from plan_checker import steps_of
from strategies import graphs

import convserve
from convserve.cli.main import main
from convserve.graph.ir import Graph, Volume
from convserve.images.arena import arena_map
from convserve.plan.layout import Layout
from convserve.plan.plan import Plan, make_plan
from convserve.plan.report import activation_bytes, pair_bytes, ring_list
from convserve.plan.timeline import Timeline, timeline

MIB = 1 << 20
NET = Path(convserve.__file__).parent / "bundled" / "digits.convserve"


def joined_graph(*, size: int = 24) -> Graph:
    """A padded 3x3 layer that Winograd takes, two branches that are joined, a pooling."""
    build = Builder(Volume(3, size, size))
    x = build.conv(build.input, 32, 3, pads=1)
    y = build.conv(x, 32, 3, pads=1)
    return build.graph(build.pool("MaxPool", build.join("Concat", y, build.conv(y, 8, 1)), 2, strides=2))


# ---- the notes' figures


@pytest.mark.parametrize(
    ("size", "everything", "pair"), [(224, 58.1, 24.5), (1024, 1.21 * 1024, 512), (4096, 19.4 * 1024, 8 * 1024)]
)
def test_vgg16_has_the_figures_of_the_notes_and_of_the_design(size, everything, pair):
    plan = make_plan(network("vgg16"), size, size)
    assert activation_bytes(plan) == pytest.approx(everything * MIB, rel=0.01)
    assert pair_bytes(plan) == pair * MIB


def test_tiles_and_joined_volumes_are_not_counted_twice():
    graph = joined_graph()
    plain = make_plan(graph, 24, 24)
    winograd = make_plan(convserve.load(graph).graph, 24, 24)
    assert {op.kind for op in winograd.program.operations} >= {"WinogradInput", "WinogradOutput"}
    values = 24 * 24 * (3 + 32 + 32 + 8) + 12 * 12 * 40
    assert activation_bytes(plain) == activation_bytes(winograd) == 4 * values
    assert pair_bytes(plain) == pair_bytes(winograd) == 4 * 24 * 24 * 64
    assert activation_bytes(make_plan(graph, 24, 24, images=3)) == 3 * 4 * values


def test_the_table_says_them():
    plan = make_plan(network("vgg16"), 224, 224)
    assert "24.50 MiB for the widest layer's input and output, 58.13 MiB for all activations" in plan.table()


def test_rings_as_data_are_those_of_the_plan():
    plan = make_plan(joined_graph(), 24, 24, images=2)
    rings = {ring["name"]: ring for ring in ring_list(plan)}
    assert list(rings) == [tensor.name for tensor in plan.program.tensors]
    own = [ring for ring in rings.values() if "within" not in ring]
    assert sum(ring["bytes"] for ring in own) == 2 * sum(
        tensor.ring_bytes for tensor in plan.program.tensors if tensor.root == tensor.index
    )
    inside = [ring for ring in rings.values() if "within" in ring]
    assert [ring["channel"] for ring in inside] == [0, 32]
    assert all(rings[ring["within"]]["volume"][2] == 40 for ring in inside)
    json.dumps(ring_list(plan))


# ---- over time


def moments(plan: Plan) -> dict[int, list[int]]:
    """By ring: the segments of all steps that touch it."""
    found: dict[int, list[int]] = {}
    for segment, step in steps_of(plan):
        operation = plan.operation(step)
        for index in (*operation.inputs, operation.output) if operation else ():
            if index >= 0:
                found.setdefault(plan.program.tensors[index].root, []).append(segment)
    return found


def check_timeline(plan: Plan, line: Timeline) -> None:
    assert [span.begin for span in line.segments][1:] == [span.end for span in line.segments][:-1]
    assert line.segments[-1].end == len(plan.program.operations)
    assert sum(span.steps for span in line.segments) == plan.step_count
    roots = [tensor for tensor in plan.program.tensors if tensor.root == tensor.index]
    touched = moments(plan)
    for ring, tensor in zip(line.rings, roots, strict=True):
        assert ring.reserved[0] <= ring.held[0] < ring.held[1] <= ring.reserved[1]
        first, last = line.segments[min(touched[tensor.index])], line.segments[max(touched[tensor.index])]
        assert first.begin <= ring.held[0] < first.end
        assert last.begin < ring.held[1] <= last.end
        assert ring.offset + ring.size_bytes <= line.arena_bytes


@settings(deadline=None, max_examples=50)
@given(graph=graphs(max_size=24))
def test_no_ring_of_a_random_network_is_in_use_outside_its_place(graph):
    for layout in (None, Layout((), 2), Layout((2,), 3)):
        plan = make_plan(graph, graph.input_volume.height, graph.input_volume.width, layout=layout)
        check_timeline(plan, timeline(plan))


def test_a_plan_with_repeated_blocks_is_laid_out_over_all_of_them():
    plan = make_plan(network("vgg16"), 4096, 512, layout=Layout((), 4))
    assert any(block.repeats > 10 for block in plan.blocks)
    line = timeline(plan)
    check_timeline(plan, line)
    assert len(line.segments) == 1
    assert max(ring.held[1] for ring in line.rings) == line.segments[0].end


@pytest.mark.parametrize("name", ["vgg16", "inception_v1", "shufflenet"])
def test_the_picture_shows_every_kind_in_its_colour(name):
    line = timeline(make_plan(network(name), 224, 224))
    pixels = np.asarray(arena_map(line))
    assert pixels.shape[1] == 1280
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)[::7]}
    assert len(colours) > 2 * len({ring.kind for ring in line.rings})


def test_the_blocks_lie_where_the_timeline_says():
    line = timeline(make_plan(joined_graph(size=16), 16, 16))
    pixels = np.asarray(arena_map(line)).astype(int)
    everything = pixels[96 : 96 + 460, 76:1252]
    painted = (np.ptp(everything, axis=2) > 12).mean()
    columns = line.segments[-1].end
    area = sum(ring.size_bytes * (ring.reserved[1] - ring.reserved[0]) for ring in line.rings)
    share = area / (columns * line.arena_bytes) * (460 - 12) / 460
    assert painted == pytest.approx(share, abs=0.06)


# ---- on the command line


def test_plan_writes_the_picture_and_the_rings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "arena.png"
    assert main(["plan", str(NET), "--size", "200x320", "--plot", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {path}\n")
    with Image.open(path) as picture:
        assert picture.size[0] == 1280
    assert main(["plan", str(NET), "--size", "200x320", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = convserve.load(NET).plan(200, 320)
    assert found["rings"] == ring_list(plan)
    assert (found["pair_bytes"], found["activation_bytes"]) == (pair_bytes(plan), activation_bytes(plan))


@pytest.mark.parametrize(("plot", "text"), [("arena.jpg", ".png"), ("/no/such/folder/arena.png", "/no/such/folder")])
def test_a_plot_that_cannot_be_written_is_one_line(
    plot: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(NET), "--plot", plot]) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
