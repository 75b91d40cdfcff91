"""The dense benchmark in its short form: every kind of case gives its figures, and the table shows them."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.dense import markdown
from benchmarks.dense_cases import FULL, SHORT
from benchmarks.process import ROOT


def test_the_short_benchmark_prints_and_writes_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "out" / "dense.json"
    keys = [case.key for case in SHORT if case.kind != "peers"]
    command = [sys.executable, "-m", "benchmarks.dense", "--short", "--engines", "convserve", "--json", str(path)]
    done = subprocess.run(
        [*command, "--cases", *keys], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    # 1: a figure was not reached, which depends on what else runs here
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(path.read_text())
    cases = ["crops", "shared", "shared", "ways", "ways", "scene", "scene", "scene"]
    assert [row["case"] for row in document["results"]] == cases
    for row in document["results"]:
        assert row["figure"] > 0
        assert row["met"] in (True, False, None)
        assert row["what"].split()[0] in done.stdout
    assert document["results"][1]["first"]["best_ms"] > 0
    assert "| a small network against its crops | map / 81 crops |" in markdown(document)


def test_every_kind_has_a_short_form() -> None:
    assert {case.kind for case in SHORT} == {case.kind for case in FULL}
    assert all(case.least is not None for case in FULL if case.kind == "peers")
