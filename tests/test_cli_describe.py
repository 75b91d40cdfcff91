"""convserve describe and convserve info: what they print, and what they say of settings that are wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

import convserve
from convserve.cli.info import cpu_model
from convserve.cli.main import main
from convserve.kernels import dispatch
from convserve.settings import SETTINGS

NET = Path(convserve.__file__).parent / "bundled" / "digits.convserve"


@pytest.fixture
def open_net(tmp_path: Path) -> Path:
    """A padded convolution and a global pooling, over images of any size."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="edges", pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["c"], ["y"], name="mean"),
        ],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 1, 1])],
        [numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")],
    )
    path = tmp_path / "open.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CONVSERVE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("command", ["describe", "verify", "info"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  convserve {command}" in text
    assert "--json" in text


# ---- describe


def test_describe_prints_the_models_own_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(NET)]) == 0
    named = capsys.readouterr().out
    assert named == convserve.load(NET).describe().table() + "\n"
    assert main(["describe"]) == 0
    assert capsys.readouterr().out == named
    assert "exact: no score sees padding" in named


def test_describe_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(NET), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = convserve.load(NET)
    assert (found["network"], found["window"], found["exactness"]) == ("digits", [28, 28], "exact")
    assert found["parameters"] == model.describe().parameters
    assert found["layers"][-1]["volume"] == [1, 1, model.classes]


def test_describe_takes_the_window_that_a_file_leaves_open(open_net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(open_net)]) == 1
    assert "declares no input size" in capsys.readouterr().err
    assert main(["describe", str(open_net), "--window", "6x8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["window"], found["exactness"], found["padded_by"]) == ([6, 8], "padded", "edges")
    assert (found["layers"][1]["clean_cells"], found["layers"][1]["cells"]) == (4 * 6, 6 * 8)
    assert found["layers"][2]["receptive_field"] == [8, 10]


# ---- info


@pytest.mark.usefixtures("no_settings")
def test_info_lists_every_setting_and_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for setting in SETTINGS.values():
        assert f"CONVSERVE_{setting.name} " in text
        assert setting.help in text
    assert f"in use: {dispatch.active()}" in text
    assert convserve.__version__ in text
    assert f"numpy {np.__version__}" in text


@pytest.mark.usefixtures("no_settings")
def test_info_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CONVSERVE_ISA", "portable")
    monkeypatch.setenv("CONVSERVE_THREADS", "3")
    monkeypatch.setenv("CONVSERVE_MEMORY_BUDGET", "2MiB")
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["instruction_sets"] == list(dispatch.available())
    assert found["instruction_set"] == "portable"
    assert found["threads"]["run"] == 3
    assert found["threads"]["affinity"] == len(os.sched_getaffinity(0))
    assert found["problems"] == []
    values = {setting["name"]: (setting["value"], setting["set"]) for setting in found["settings"]}
    assert set(values) == {f"CONVSERVE_{name}" for name in SETTINGS}
    assert values["CONVSERVE_MEMORY_BUDGET"] == (2 << 20, True)
    assert values["CONVSERVE_POISON"] == (False, False)
    assert {"numpy", "onnx", "grpcio", "protobuf", "pillow"} <= set(found["packages"])
    assert all(found["packages"].values())


@pytest.mark.usefixtures("no_settings")
def test_info_tells_all_that_is_wrong_and_still_prints_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVSERVE_ISA", "sse9")
    monkeypatch.setenv("CONVSERVE_THREADS", "many")
    monkeypatch.setenv("CONVSERVE_MEMORY_BUDGT", "1GiB")
    assert main(["info"]) == 1
    captured = capsys.readouterr()
    assert "instruction sets  portable" in captured.out
    assert "CONVSERVE_MEMORY_BUDGT is set, but there is no such setting" in captured.out
    assert "'sse9'" in captured.err
    assert "'many'" in captured.err
    assert captured.err.count("\n") == 1


def test_the_cpus_name_is_read_from_the_system(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n")
    assert cpu_model(cpuinfo) == "Some CPU @ 3 GHz"
    assert cpu_model(tmp_path / "absent")
