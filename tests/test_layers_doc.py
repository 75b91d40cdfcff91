"""docs/layers.md against the table of operations: a row for every one, which says what dense conversion does to it."""

import re
from pathlib import Path

import pytest
from builder import Builder

from convserve.dense.sliding import sliding
from convserve.errors import UnsupportedOpError
from convserve.graph.ir import Node, Volume
from convserve.graph.ops import OPS
from convserve.graph.rewrite_windows import global_pooling_to_window

TEXT = (Path(__file__).parents[1] / "docs" / "layers.md").read_text(encoding="utf-8")
ROWS = {row[0]: row[-1] for row in re.findall(r"^\| `(\w+)` \|(.*)\| ([a-z ]+) \|$", TEXT, re.MULTILINE)}


def dense_of(op: str) -> str:
    """Return what dense conversion does to an operation, as the code has it."""
    if OPS[op].slides:
        return "slides"
    build = Builder(Volume(2, 3, 3))
    build.nodes.append(Node(op, "y", (build.input,), "y", {"p": 2} if op == "GlobalLpPool" else {}))
    if op.startswith("Global"):
        build.volumes["y"] = Volume(2, 1, 1)
        (rewritten,) = global_pooling_to_window(build.graph("y")).nodes
        assert OPS[rewritten.op].slides
        return "becomes a window"
    return "cannot slide"


def test_every_operation_has_one_row():
    assert sorted(ROWS) == sorted(OPS)
    assert TEXT.count("\n| `") == len(OPS)


@pytest.mark.parametrize("op", sorted(OPS))
def test_the_row_says_what_dense_conversion_does(op):
    assert ROWS[op] == dense_of(op)


@pytest.mark.parametrize(
    ("op", "reason"),
    [("GroupNormalization", "looks at the whole image"), ("LocallyConnected", "treats every position in its own way")],
)
def test_what_cannot_slide_is_named(op, reason):
    build = Builder(Volume(4, 3, 3))
    if op == "LocallyConnected":
        x = build.locally_connected(build.input, 2, 3)
    else:
        x = build.conv(build.normalization(op, build.input, group=2), 2, 3)
    with pytest.raises(UnsupportedOpError, match=rf'{op} .*{reason} and cannot slide; method="crops" can'):
        sliding(build.graph(x))
