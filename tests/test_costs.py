"""The cost table: shipped, measured, stored, damaged, foreign; and the predictions made from it."""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from builder import Builder
from test_planner import with_winograd

from convserve.cli.main import main
from convserve.engine.calibrate import MEASUREMENTS, calibrate
from convserve.errors import SettingError
from convserve.graph.ir import Volume
from convserve.kernels import dispatch
from convserve.plan.cost import parts_of
from convserve.plan.costs import RATES, SHIPPED, shipped_table
from convserve.plan.layout import Layout
from convserve.plan.machine import cache_bytes, cpu_model
from convserve.plan.plan import make_plan
from convserve.plan.stored import costs_in_use, read_costs, stored_path, write_costs

MEASURED = replace(SHIPPED["avx512"], measured="2020-02-02 02:02 UTC", machine=cpu_model(), gemm=1e9)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder of the test's own; the file of costs in it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "convserve" / "costs.json"


def test_every_instruction_set_has_a_shipped_table() -> None:
    assert set(SHIPPED) == set(dispatch.INSTRUCTION_SETS)
    for isa, table in SHIPPED.items():
        assert table.isa == isa
        assert not table.measured
        assert all(getattr(table, name) > 0 for name in RATES)


def test_a_stored_table_is_used_and_others_are_kept(home: Path) -> None:
    assert stored_path() == home
    assert read_costs("avx512") is None
    assert costs_in_use("avx512") is SHIPPED["avx512"]
    other = replace(MEASURED, isa="portable", gemm=7e9)
    assert write_costs(MEASURED) == write_costs(other) == home
    assert costs_in_use("avx512") == MEASURED
    assert costs_in_use("portable") == other
    assert costs_in_use("avx2") is SHIPPED["avx2"]
    assert [path.name for path in home.parent.iterdir()] == ["costs.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "tables": 3}', "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"format": 99, "tables": {}}', "has format 99; this version reads 1"),
        ('{"format": 1, "tables": {"avx512": 5}}', "lacks fields for avx512"),
        ('{"format": 1, "tables": {"avx512": {}}}', "lacks fields for avx512"),
        ({"gemm": -1}, "has gemm -1 for avx512; it must be a number above 0"),
        ({"gemm": "fast"}, "has gemm 'fast' for avx512"),
        ({"l3": float("nan")}, "has l3 nan for avx512"),
        ({"step_s": True}, "has step_s True for avx512"),
        ({"machine": "another processor"}, "was measured on 'another processor'"),
        ({"measured": 5}, "lacks when or where"),
    ],
)
def test_a_damaged_or_foreign_file_is_named_and_the_shipped_table_used(
    home: Path, content: str | dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(content, dict):
        content = json.dumps({"format": 1, "tables": {"avx512": {**asdict(MEASURED), **content}}})
    home.parent.mkdir(parents=True)
    home.write_text(content, encoding="utf-8")
    with pytest.raises(SettingError, match=message) as refused:
        read_costs("avx512")
    assert str(home) in str(refused.value)
    with pytest.warns(UserWarning, match="the shipped one is used"):
        assert costs_in_use("avx512") is SHIPPED["avx512"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert costs_in_use("avx512") is SHIPPED["avx512"], "told once"
    if dispatch.active() == "avx512":
        assert main(["info"]) == 0
        assert message in capsys.readouterr().out
    write_costs(MEASURED)
    assert costs_in_use("avx512") == MEASURED


def test_a_file_that_cannot_be_read_is_named(home: Path) -> None:
    home.mkdir(parents=True)
    with pytest.raises(SettingError, match="cannot be read"):
        read_costs("avx512")


def test_a_user_without_a_home_has_the_shipped_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    isa = dispatch.active()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert costs_in_use(isa) == shipped_table(isa)
    with pytest.raises(FileNotFoundError, match="XDG_CONFIG_HOME"):
        write_costs(shipped_table(isa))
    assert main(["info"]) == 0
    assert "Set XDG_CONFIG_HOME" in capsys.readouterr().out


def test_caches_as_the_system_tells_them(tmp_path: Path) -> None:
    told = (("1", "Data", "32K"), ("1", "Instruction", "64K"), ("3", "Unified", "16M"))
    for index, (level, kind, size) in enumerate(told):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert cache_bytes(1, tmp_path) == 32 << 10
    assert cache_bytes(3, tmp_path) == 16 << 20
    assert cache_bytes(2, tmp_path) is None
    assert cache_bytes(1, tmp_path / "absent") is None


# ---- measuring


def test_calibrate_measures_every_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convserve.engine.calibrate.LEAST_S", 0.0)
    monkeypatch.setattr("convserve.engine.calibrate.RUNS", 3)
    *_, table = calibrate(dispatch.active(), 1)
    assert table.measured.endswith("UTC")
    assert table.machine == cpu_model()
    assert {"gemm", "winograd", "memory", "spill"} <= set(MEASUREMENTS) <= set(RATES)
    shipped = shipped_table(dispatch.active())
    for name in RATES:
        assert getattr(table, name) > 0
        if name in MEASUREMENTS:
            assert 1e-3 < getattr(table, name) / getattr(shipped, name) < 1e3, name


def test_calibrate_stores_its_table_and_info_tells_of_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"gemm": lambda isa: 5e9, "memory": lambda isa: 1e10}
    monkeypatch.setattr("convserve.engine.calibrate.MEASUREMENTS", rates)
    assert main(["calibrate", "--dry-run"]) == 0
    assert "not stored" in capsys.readouterr().out
    assert not home.exists()
    assert main(["info"]) == 0
    assert "cost table        shipped" in capsys.readouterr().out
    assert main(["calibrate", "--json", "--threads", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(home)
    assert said["gemm"] == 5e9
    assert costs_in_use(dispatch.active()).gemm == 5e9
    assert main(["info"]) == 0
    assert f"measured {said['measured']}, {home}" in capsys.readouterr().out


# ---- predictions


def seconds(layout: Layout, **changes: float) -> float:
    costs = replace(SHIPPED["avx512"], **changes)
    return make_plan(with_winograd("vgg16"), 224, 224, layout=layout, costs=costs).predicted_s


def test_predictions_follow_the_rates() -> None:
    late_bands = Layout((12,), (4, 4))
    whole = Layout(tuple(range(1, 36)))
    assert seconds(late_bands) > 1.1 * seconds(whole), "weights that are read again for each band"
    assert seconds(whole, spill=2e9) > 1.2 * seconds(whole), "rows that leave the caches"
    assert seconds(whole, winograd=50e9) > 1.5 * seconds(whole)
    early_bands = Layout(tuple(range(10, 36)), tuple([4] + 26 * [1]))
    assert seconds(early_bands) < seconds(whole)


def test_threads_and_images_in_predictions() -> None:
    graph = with_winograd("vgg16")
    one = make_plan(graph, 224, 224).predicted_s
    assert one / 2 <= make_plan(graph, 224, 224, threads=2).predicted_s < 0.7 * one
    assert 3 * one < make_plan(graph, 224, 224, images=4).predicted_s <= 4.1 * one


def test_short_steps_are_not_shared() -> None:
    assert parts_of(1e-7, 8) == 1
    assert parts_of(1e-5, 1) == 1
    assert parts_of(1e-5, 8) == 8
    build = Builder(Volume(4, 3, 3))
    graph = build.graph(build.simple("Relu", build.input))
    assert make_plan(graph, 3, 3, threads=4).predicted_s == make_plan(graph, 3, 3).predicted_s
