"""The benchmark of servers: its callers against a real server, what it measures of one alone, and what it judges."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import running_server
from triton_environment import run

import convserve
from benchmarks.process import ROOT
from benchmarks.serving_cases import CASES, KEYS, OVERLOADS
from benchmarks.serving_table import goals, goals_table, load_table, markdown

LOAD = ROOT / "benchmarks" / "serving_load.py"


def test_callers_ask_again_or_at_a_rate(triton_python: Path, model: convserve.Model) -> None:
    def found_by(**more: Any) -> Any:
        asked = {"address": address, "model": "digits", "input": "image", "shape": [1, 1, 28, 28], **more}
        return json.loads(run(triton_python, LOAD, json.dumps(asked)))

    with running_server({"digits": model}) as address:
        again = found_by(callers=2, send="tensor", seconds=0.3)
        rate = found_by(rate=10, deadline_s=20, send="jpeg", seconds=2)
        unknown = found_by(model="cats", rate=10, deadline_s=20, send="decoded", seconds=2)
    for found in (again, rate):
        assert found["answered"] == len(found["latencies_s"]) > 0
        assert found["refused"] == {}
        assert found["seconds"] > 0
    assert rate["answered"] <= 20
    assert unknown["answered"] == 0
    assert list(unknown["refused"]) == ["NOT_FOUND"]
    assert "cats" in unknown["said"]["NOT_FOUND"]


def test_a_server_alone_is_measured_without_peers(tmp_path: Path) -> None:
    path = tmp_path / "out" / "serving.json"
    command = [sys.executable, "-m", "benchmarks.serving", "--cases", "idle", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    document = json.loads(path.read_text())
    [row] = goals(document)
    assert done.returncode == int(not row["met"]), done.stderr
    assert row["what"].split(",")[0] in done.stdout
    assert 5 << 20 < document["idle"]["anonymous_bytes"] < 200 << 20
    assert document["idle"]["imports_onnx"] is False


# ---- judging


def load(case: str, callers: int, engine: str, per_second: float, p99_s: float = 0.1) -> dict[str, Any]:
    one = next(one for one in CASES if one.key == case)
    told: dict[str, Any] = {"engine_core_s": 0.006, "images_a_run": 1.0} if engine == "convserve" else {}
    return {
        "case": case,
        "network": one.network,
        "send": one.send,
        "callers": callers,
        "engine": engine,
        "per_second": per_second,
        "median_per_second": per_second - 1,
        "p50_s": p99_s / 2,
        "p99_s": p99_s,
        "processor_s": 0.01,
        "anonymous_bytes": 80 << 20,
        "refused": 0,
        **told,
    }


def document_of(**parts: Any) -> dict[str, Any]:
    machine = {"cpu": "a processor", "instruction_sets": [], "processors_available": 2, "date": "2026-11-21T00:00"}
    return {"machine": machine, "peers": {}, "callers": "1 turn", "loads": [], "overloads": {}, **parts}


def judged(**parts: Any) -> dict[str, bool | None]:
    return {row["what"]: row["met"] for row in goals(document_of(**parts))}


@pytest.mark.parametrize(("ours", "p99_s", "met"), [(400, 0.05, True), (399, 0.05, False), (400, 0.1, False)])
def test_a_ratio_and_a_lower_latency(ours: float, p99_s: float, met: bool) -> None:
    loads = [load("squeezenet", 8, "convserve", ours, p99_s), load("squeezenet", 8, "mlserver", 100)]
    found = judged(loads=loads)
    assert found["SqueezeNet, 8 callers, float32 tensors: against MLServer"] is met
    assert found["SqueezeNet, 8 callers, float32 tensors: core ms of a request outside the engine"] is None
    assert len(found) == 2


def test_more_callers_and_memory() -> None:
    loads = [load("alexnet", 1, "convserve", 100), load("alexnet", 8, "convserve", 149)]
    assert judged(loads=loads)["AlexNet, 8 callers, float32 tensors: against 1 caller"] is False
    large = {**load("vgg16", 8, "convserve", 20), "anonymous_bytes": (90 << 20) + 1}
    for one, met in ((load("vgg16", 8, "convserve", 20), True), (large, False)):
        assert judged(loads=[one])["VGG-16, 8 callers, float32 tensors: anonymous memory, all processes"] is met


OVERLOAD = {
    "seconds": 60,
    "share": 0.95,
    "goodput": 15.2,
    "offered_per_second": 48.0,
    "refused": {"RESOURCE_EXHAUSTED": 1900},
    "p99_s": 0.9,
    "peak_bytes": 1 << 28,
    "budget_bytes": 1 << 28,
}


@pytest.mark.parametrize(
    ("changed", "met"),
    [({}, [True, True]), ({"share": 0.94}, [False, True]), ({"peak_bytes": (1 << 28) + 1}, [True, False])],
)
def test_overloads(changed: dict[str, Any], met: list[bool]) -> None:
    found = judged(overloads={OVERLOADS[0].key: {**OVERLOAD, **changed}})
    assert list(found.values()) == met


@pytest.mark.parametrize(
    ("part", "met"),
    [
        ({"idle": {"anonymous_bytes": 45 << 20, "imports_onnx": False}}, True),
        ({"idle": {"anonymous_bytes": 45 << 20, "imports_onnx": True}}, False),
        ({"idle": {"anonymous_bytes": 46 << 20, "imports_onnx": False}}, False),
        ({"start": {"seconds": [0.9, 1.0, 1.1], "best_s": 0.9, "median_s": 1.0}}, True),
        ({"start": {"seconds": [0.9, 1.1, 1.1], "best_s": 0.9, "median_s": 1.1}}, False),
    ],
)
def test_a_server_alone(part: dict[str, Any], met: bool) -> None:
    assert list(judged(**part).values()) == [met]


def test_tables_show_every_goal() -> None:
    loads = [
        load(case.key, callers, engine, 500 if engine == "convserve" else 100)
        for case in CASES
        for callers in case.callers
        for engine in ("convserve", "simple", "mlserver")
    ]
    document = document_of(
        loads=loads,
        overloads={case.key: OVERLOAD for case in OVERLOADS},
        idle={"anonymous_bytes": 40 << 20, "imports_onnx": False},
        start={"seconds": [0.9], "best_s": 0.9, "median_s": 0.9},
    )
    assert load_table(document).row_count == len(loads)
    found = goals(document)
    assert goals_table(document).row_count == len(found)
    told = markdown(document)
    assert "| SqueezeNet, 8 callers, photographs | 500.0 / 100 | 100.0 / 100 | 100.0 / 100 |\n" in told
    alone = [row for row in found if row["what"].startswith("SqueezeNet, 3")]
    assert all(f"| {row['what']} | {row['measured']} |" in told for row in alone)
    assert markdown(document_of(loads=loads[:1])).count("|---|") == 1
    assert len(KEYS) == len(set(KEYS)) == len(CASES) + len(OVERLOADS) + 2
