"""The memory benchmark in its short form: what it measures, what it judges, and what it says where something fails."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engines import installed
from benchmarks.memory_cases import FULL, SHORT, Case
from benchmarks.memory_table import markdown
from benchmarks.memory_worker import smallest_bytes
from benchmarks.process import ROOT
from convserve.errors import MemoryBudgetError

MIB = 1 << 20
CASES = ("smallest", "default", "evicted", "layouts", "server", "servers")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """Return the rows and the printed table of the short benchmark."""
    path = tmp_path_factory.mktemp("memory") / "out" / "memory.json"
    peers = [engine for engine in ("onnxruntime",) if engine in installed()]
    command = [sys.executable, "-m", "benchmarks.memory", "--short", "--json", str(path), "--cases", *CASES]
    done = subprocess.run(
        [*command, "--engines", "convserve", *peers], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text())
    assert "| squeezenet 224, smallest plan | convserve, gemm |" in markdown(document)
    return document["results"], done.stdout


def rows_of(rows: list[dict[str, Any]], case: str) -> dict[str, dict[str, Any]]:
    return {row.get("algorithm", row["engine"]): row for row in rows if row["case"] == case}


def test_every_case_has_a_row_for_each_algorithm_and_peer(ran: tuple[list[dict[str, Any]], str]) -> None:
    for case in SHORT:
        if case.key in CASES:
            peers = {"onnxruntime"} & set(installed()) if case.peer_network else set()
            assert set(rows_of(ran[0], case.key)) == {*case.algorithms, *peers}
            assert case.title.split(",")[0].split(":")[0][:20] in ran[1]


def test_runs_take_what_was_planned(ran: tuple[list[dict[str, Any]], str]) -> None:
    for case in ("smallest", "default"):
        for algorithm, row in rows_of(ran[0], case).items():
            if algorithm != "onnxruntime":
                assert row["planned_bytes"] == row["allocated_bytes"]
                assert row["taken_bytes"] <= row["planned_bytes"] + 2 * MIB
            assert row["seconds"] > 0
    assert rows_of(ran[0], "layouts")["auto"]["figure"] >= 1
    smallest, default = (rows_of(ran[0], case)["gemm"]["planned_bytes"] for case in ("smallest", "default"))
    assert smallest < default


def test_servers_are_whole_processes(ran: tuple[list[dict[str, Any]], str]) -> None:
    server, two = rows_of(ran[0], "server")["auto"], rows_of(ran[0], "servers")["auto"]
    assert server["classifications"] == 20
    assert 10 * MIB < server["anonymous_bytes"] <= server["peak_bytes"] + MIB
    assert two["proportional_bytes"] == sum(two["each"])


# ---- judging


def case(**changes: Any) -> Case:
    known: dict[str, Any] = {"limits": {"gemm": 2.0}, "figure": "planned_bytes", "kind": "run"}
    return Case(key="k", title="t", network="n", size=(8, 8), **{**known, **changes})


@pytest.mark.parametrize(
    ("row", "met"),
    [
        ({}, True),
        ({"planned_bytes": 3 * MIB, "allocated_bytes": 3 * MIB}, False),
        ({"allocated_bytes": MIB + 1}, False),
        ({"taken_bytes": 3 * MIB}, True),
        ({"taken_bytes": 3 * MIB + 1}, False),
        ({"algorithm": "auto", "planned_bytes": 9 * MIB, "allocated_bytes": 9 * MIB}, True),
    ],
)
def test_a_row_is_judged_by_its_plan_and_its_limit(row: dict[str, Any], met: bool) -> None:
    sound = {"algorithm": "gemm", "planned_bytes": MIB, "allocated_bytes": MIB, "taken_bytes": MIB}
    assert case().judged({**sound, **row})["met"] is met


def test_other_figures_are_ratios_and_sizes() -> None:
    returned = case(figure="returned", kind="returned", limits={"auto": 1.01})
    row = {"algorithm": "auto", "before_bytes": 1000, "after_bytes": 1011}
    assert returned.judged(row)["met"] is False
    assert returned.judged({**row, "after_bytes": 1010})["met"] is True
    beside = case(figure="beside_file", kind="servers", limits={"auto": 200})
    assert beside.judged({"algorithm": "auto", "proportional_bytes": 300 * MIB, "file_bytes": 100 * MIB})["met"] is True


def test_the_full_form_has_the_figures_that_were_asked_for() -> None:
    limits = {one.key: one.limits for one in FULL}
    assert limits["smallest"] == {"gemm": 3.5, "auto": 6}
    assert limits["default"] == {"gemm": 8, "auto": 16}
    assert limits["middle"] == {"gemm": 6, "auto": 8}
    assert limits["map-plan"] == {"gemm": 64, "auto": 160}
    assert limits["stream"] == {"gemm": 400, "auto": 700}
    assert limits["server"] == {"auto": 90}
    assert [one.key for one in SHORT] == list(limits)


def test_the_smallest_plan_is_read_from_the_refusal() -> None:
    def refuse(size: int) -> None:
        raise MemoryBudgetError(f"it takes at least 1,234,567 bytes (arena); the memory budget is {size} bytes")

    assert smallest_bytes(refuse) == 1234567
    with pytest.raises(RuntimeError):
        smallest_bytes(lambda size: None)


def test_an_engine_that_is_not_here_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--short", "--cases", "no-such"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no-such" in done.stderr
