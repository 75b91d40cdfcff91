"""What every result says of its run: the plan, the bytes that were allocated, the seconds; here and over the wire."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import running_server

import convserve
from convserve.cli.main import main
from convserve.client import Client

BUNDLED = Path(convserve.__file__).parent / "bundled"
NET, DIGIT, PAGE = BUNDLED / "digits.convserve", BUNDLED / "digit.png", BUNDLED / "page.png"


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(NET, threads=2)


@pytest.fixture(scope="module")
def client(model: convserve.Model) -> Iterator[Client]:
    with running_server({"digits": model}) as address, Client(address) as client:
        yield client


def check(report: convserve.RunReport, within_s: float) -> None:
    assert report.measured_bytes == report.plan.total_bytes > 0
    assert report.plan.weight_bytes > 0
    assert 0 < report.seconds < within_s


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 1, 28, 28), np.float32)


# ---- here


def test_measure_gives_what_run_gives_and_the_report(model: convserve.Model) -> None:
    start = time.perf_counter()
    y, report = model.measure(images(3))
    check(report, time.perf_counter() - start)
    assert np.array_equal(y, model.run(images(3)))
    assert report.plan.total_bytes == model.plan(28, 28, batch=3).total_bytes


def test_predictions_are_lists_with_the_report_of_their_call(model: convserve.Model) -> None:
    one = model.classify(DIGIT, top=2)
    check(one.report, 60)
    assert one == list(one)
    assert one.report.plan.total_bytes == model.plan(28, 28).total_bytes
    several = model.classify([DIGIT, DIGIT])
    assert [found.report.plan.total_bytes for found in several] == [model.plan(28, 28, batch=2).total_bytes] * 2
    assert model.classify([]) == []


def test_a_batch_in_groups_reports_its_largest(model: convserve.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convserve.engine.engine.BATCH_ARENA_BYTES", 3 * model.plan(28, 28).arena_bytes)
    _, report = model.measure(images(8))
    assert report.plan.images == 3
    check(report, 60)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"stride": 8}, {"method": "crops", "stride": 30}])
def test_a_score_map_reports_what_it_held_too(model: convserve.Model, options: dict[str, Any]) -> None:
    found = model.score_map(PAGE, classes=[3, 4], **options)
    check(found.report, 60)
    assert found.plan.score_bytes == found.scores.nbytes
    assert (found.plan, found.seconds) == (found.report.plan, found.report.seconds)


# ---- over the wire


def test_a_servers_predictions_come_with_its_report(model: convserve.Model, client: Client) -> None:
    for found in (client.classify(DIGIT), client.classify([DIGIT] * 4)[3]):
        check(found.report, 60)
        assert found == model.classify(DIGIT)
    assert found.report.plan.arena_bytes == model.plan(28, 28, batch=4).arena_bytes


@pytest.mark.parametrize("stride", [None, 2])
def test_a_servers_map_comes_with_its_report(client: Client, stride: int | None) -> None:
    report = client.score_map(PAGE, stride=stride).report
    assert 0 < report.seconds < 60
    # the server holds a block of scores, and no map
    block = report.measured_bytes - report.plan.arena_bytes - report.plan.scratch_bytes
    assert 0 < block < 200 * 320 * 11


# ---- on the command line


def test_commands_print_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [["classify", str(DIGIT)], ["score-map", str(PAGE), "-o", str(tmp_path / "page.npz")]]
    for command in commands:
        assert main([*command, "--net", str(NET), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        found = found["images"][0] if command[0] == "classify" else found
        assert found["measured_bytes"] == found["plan"]["total_bytes"] > 0
        assert found["seconds"] > 0
