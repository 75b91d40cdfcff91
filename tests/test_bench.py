"""The benchmark in a short form: tiny networks, two runs; its files, numbers and failures, and convserve bench."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builder import Builder
from onnx_writer import runtime_session, to_onnx
from PIL import Image

from benchmarks.chart import draw_chart
from benchmarks.engines import installed
from benchmarks.measure import compare, ratios, statistics_of
from benchmarks.networks import NETWORKS, fix_batch, light_model, write_network
from benchmarks.process import EngineProcess, WorkerError
from benchmarks.report import markdown, one_line
from benchmarks.residency import resident_memory
from benchmarks.summary import geometric_means
from convserve.cli.main import main
from convserve.formats.container_writer import write_container
from convserve.graph.ir import Volume
from convserve.loading import load

ROOT = Path(__file__).parents[1]


def tiny_network(path: Path, *, seed: int, filters: int = 8) -> Path:
    net = Builder(Volume(3, 12, 12), seed=seed, name=path.stem)
    tensor = net.conv(net.input, filters, 3, pads=1, activation="relu")
    tensor = net.pool("MaxPool", tensor, 2, strides=2)
    tensor = net.conv(tensor, 5, 6)
    onnx.save(to_onnx(net.graph(tensor)), path)
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("networks")
    return [tiny_network(folder / "one.onnx", seed=1), tiny_network(folder / "two.onnx", seed=2, filters=12)]


@pytest.fixture(scope="module")
def ran(networks: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """Return the JSON, the printed text and the chart of one short benchmark."""
    folder = tmp_path_factory.mktemp("bench")
    peers = [engine for engine in ("onnxruntime", "openvino") if engine in installed()]
    command = [sys.executable, "-m", "benchmarks.run", "--networks", *map(str, networks), "--runs", "2", "--warm", "1"]
    command += ["--engines", "convserve", *peers, "--threads", "1", "--batch", "1", "2"]
    command += ["--json", str(folder / "out" / "bench.json"), "--chart", str(folder / "out" / "bench.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "bench.json").read_text()), done.stdout, folder / "out" / "bench.png"


def test_each_network_and_batch_has_a_result(ran: tuple[dict[str, Any], str, Path]) -> None:
    document, _, _ = ran
    settings = [(result["title"], result["threads"], result["batch"]) for result in document["results"]]
    assert settings == [("one", 1, 1), ("one", 1, 2), ("two", 1, 1), ("two", 1, 2)]
    assert {"cpu", "instruction_sets", "processors", "date", "python", "load_average"} <= document["machine"].keys()
    assert set(document["versions"]) == set(document["results"][0]["engines"])


def test_each_engine_has_times_memory_and_the_same_output(ran: tuple[dict[str, Any], str, Path]) -> None:
    for result in ran[0]["results"]:
        for one in result["engines"].values():
            assert "error" not in one
            assert len(one["times_ms"]) == 2
            assert 0 < one["best_ms"] <= one["median_ms"]
            assert one["images_per_s"] == pytest.approx(1e3 * result["batch"] / one["best_ms"])
            assert 0 < one["load_s"] < one["first_answer_s"]
            assert one["difference"] < 1e-4
            assert list(one["memory"]) == ["before_load", "after_load", "after_runs"]
            after = one["memory"]["after_runs"]
            assert after["high_water_bytes"] >= 0.95 * (after["anonymous_bytes"] + after["file_bytes"])
            assert after["anonymous_bytes"] > 1 << 20
        peers = [one for engine, one in result["engines"].items() if engine != "convserve"]
        fastest = min(one["best_ms"] for one in peers)
        assert max(one["ratio"] for one in peers) == 1
        own = result["engines"]["convserve"]
        assert own["ratio"] == pytest.approx(fastest / own["best_ms"])


def test_the_screen_shows_tables_and_the_chart_is_a_picture(ran: tuple[dict[str, Any], str, Path]) -> None:
    document, text, chart = ran
    assert "1 thread, batch 2, float32, best and median of 2 runs in turn" in text
    assert text.count("geometric mean") == 2
    assert document["machine"]["cpu"] in text
    with Image.open(chart) as picture:
        assert picture.size[0] == 1800
        orange = np.asarray(picture.convert("RGB"))[..., 0].astype(int) - np.asarray(picture.convert("RGB"))[..., 2]
        assert (orange > 120).sum() > 1000


def test_markdown_has_a_row_for_each_network(ran: tuple[dict[str, Any], str, Path]) -> None:
    document, _, _ = ran
    rows = [line for line in markdown(document).splitlines() if line.startswith(("| one", "| two", "| geometric"))]
    assert len(rows) == 6
    ratio = document["results"][0]["engines"]["convserve"]["ratio"]
    assert rows[0].endswith(f" {ratio:.2f} |")


def test_an_unknown_network_or_engine_is_wrong_usage() -> None:
    for arguments in (["--networks", "lenet6"], ["--engines", "abacus"]):
        command = [sys.executable, "-m", "benchmarks.run", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 2
        assert "usage:" in done.stderr


# ---- comparing


def test_an_engine_that_cannot_load_is_an_error_beside_the_others_times(networks: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.convserve"
    broken.write_bytes(b"no network")
    write_network(str(networks[0]), tmp_path, [1])
    files = {"convserve": broken, "onnxruntime": tmp_path / "batch1.onnx"}
    found = compare(files, threads=1, shape=(1, 3, 12, 12), runs=1, warm_runs=1, folder=tmp_path)
    assert "ModelFormatError" in found["engines"]["convserve"]["error"]
    assert found["engines"]["onnxruntime"]["ratio"] == 1
    assert "failed" in one_line({"title": "one", **found})


def test_an_engine_with_another_output_gets_no_time(networks: list[Path], tmp_path: Path) -> None:
    write_network(str(networks[0]), tmp_path, [1])
    write_container(tmp_path / "net.convserve", load(networks[1]).graph)
    files = {"convserve": tmp_path / "net.convserve", "onnxruntime": tmp_path / "batch1.onnx"}
    found = compare(files, threads=1, shape=(1, 3, 12, 12), runs=1, warm_runs=1, folder=tmp_path)
    assert "differs" in found["engines"]["convserve"]["error"]
    assert "best_ms" not in found["engines"]["convserve"]
    assert "best_ms" in found["engines"]["onnxruntime"]


def test_a_worker_that_has_ended_or_is_too_slow_is_told(networks: list[Path]) -> None:
    with EngineProcess("onnxruntime", networks[0], 1, (1, 3, 12, 12)) as process:
        process.ask("load")
        process.timeout_s = 0
        with pytest.raises(WorkerError, match="did not answer within 0 s"):
            process.ask("warm", runs=1)
    with (
        EngineProcess("convserve", Path("absent.convserve"), 1, (1, 3, 12, 12)) as process,
        pytest.raises(WorkerError, match="ModelNotFoundError: no model file"),
    ):
        process.ask("load")


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO, a peer from the extra bench, is not installed")
def test_openvino_sends_no_usage_data() -> None:
    code = """
import sys, threading
from benchmarks.engines import ENGINES
ENGINES["openvino"].load_library()
print("openvino" in sys.modules, sys.modules["openvino_telemetry"], threading.active_count())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "None", "1"]


def test_resident_memory_sees_what_is_taken() -> None:
    before = resident_memory(os.getpid())
    # a map of its own, since an array may lie in memory that was freed but not given back
    with mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        taken.write(bytes(len(taken)))
        after = resident_memory(os.getpid())
    assert after["anonymous_bytes"] - before["anonymous_bytes"] == pytest.approx(16 << 20, rel=0.1)
    assert after["high_water_bytes"] >= before["high_water_bytes"]


def test_statistics_and_ratios_are_what_their_names_say() -> None:
    engines = {
        "convserve": statistics_of([0.002, 0.004, 0.003], 8),
        "onnxruntime": statistics_of([0.004, 0.006], 8),
        "openvino": statistics_of([0.003, 0.012], 8),
        "torch": {"error": "out of memory"},
    }
    ratios(engines)
    assert engines["convserve"]["median_ms"] == pytest.approx(3)
    assert engines["convserve"]["images_per_s"] == pytest.approx(4000)
    assert engines["convserve"]["ratio"] == pytest.approx(1.5)
    assert engines["convserve"]["median_ratio"] == pytest.approx(5 / 3)
    assert engines["onnxruntime"]["ratio"] == pytest.approx(0.75)
    assert "ratio" not in engines["torch"]
    other = {"convserve": {"ratio": 6.0}}
    assert geometric_means([{"engines": engines}, {"engines": other}])["convserve"] == pytest.approx(3)


def test_a_chart_is_drawn_of_ratios_failures_and_a_single_network() -> None:
    one = {"ratio": 7.5, "best_ms": 1.5}
    engines = {"convserve": one, "onnxruntime": {"error": "no such op"}}
    result = {"title": "VGG-16", "threads": 2, "batch": 1, "runs": 3, "engines": engines}
    machine = {
        "cpu": "A processor",
        "instruction_sets": ["avx2"],
        "processors_available": 2,
        "date": "2026-01-01T00:00",
    }
    document = {"machine": machine, "versions": {"convserve": "1", "onnxruntime": "2"}, "results": [result]}
    picture = draw_chart(document)
    assert picture.size[0] == 1800
    assert 200 < picture.size[1] < 500


# ---- the networks


def test_a_batch_is_fixed_and_means_the_same() -> None:
    model = light_model("shufflenet")
    single = runtime_session(model.SerializeToString())
    fix_batch(model, 2)
    onnx.checker.check_model(model)
    double = runtime_session(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)
    name = single.get_inputs()[0].name
    assert double.get_inputs()[0].shape == [2, 3, 224, 224]
    both = double.run(None, {name: x})[0]
    each = np.concatenate([single.run(None, {name: x[index : index + 1]})[0] for index in range(2)])
    assert both.shape == (2, 1000)
    np.testing.assert_allclose(both, each, rtol=1e-3, atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 1e-4


def test_every_network_of_the_case_studies_has_a_source() -> None:
    assert list(NETWORKS) == [
        "vgg16", "vgg19", "alexnet", "zfnet512", "googlenet", "resnet50", "squeezenet", "densenet121", "shufflenet",
    ]  # fmt: skip
    model = light_model("squeezenet")
    assert {node.op_type for node in model.graph.node}.isdisjoint({"ConstantOfShape"})
    assert [value.name for value in model.graph.input] == ["data_0"]


def test_pytorch_computes_the_same_network() -> None:
    pytest.importorskip("torch", reason="PyTorch, a peer that is not in the extra, is not installed")
    import torch

    from benchmarks.torch_graph import GraphModule
    from convserve.formats.onnx import load_onnx
    from convserve.graph.rewrites import rewrite

    data = light_model("squeezenet").SerializeToString()
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    with torch.inference_mode():
        y = GraphModule(rewrite(load_onnx(data), window=None))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, load(data, threads=1).run(x), rtol=1e-3, atol=1e-6)


# ---- convserve bench


def test_the_command_times_whole_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--runs", "2", "--threads", "1", "--batch", "3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("digits: 3 images a run, 1 thread(s), 2 runs\n")
    assert "images/s" in text
    assert "share" not in text


def test_the_layers_are_all_operations_with_the_networks_flops(
    networks: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(networks[0]), "--runs", "2", "--threads", "1", "--batch", "2", "--layers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"best_ms", "median_ms", "images_per_s", "load_s", "plan", "limits", "layers_ms"} <= found.keys()
    layers = found["layers"]
    assert [layer["operation"].split()[0] for layer in layers] == ["Read", "Conv", "MaxPool", "Conv", "Write"]
    assert sum(layer["flops"] for layer in layers) == 2 * load(networks[0]).describe().flops
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    assert sum(layer["best_ms"] for layer in layers) == pytest.approx(found["layers_ms"])
    assert all(layer["best_ms"] <= layer["median_ms"] for layer in layers)
    first = layers[1]
    assert first["volume"] == [12, 12, 8]
    # the image and the volume of each of two images, and one packed panel with its biases
    assert first["bytes"] == 2 * 4 * (12 * 12 * 3 + 12 * 12 * 8) + 4 * (27 * 16 + 16)
    assert first["flops_per_s"] == pytest.approx(1e3 * first["flops"] / first["best_ms"])
    assert first["peak_share"] == pytest.approx(first["flops_per_s"] / found["limits"]["peak_flops"])


def test_winograd_layers_count_what_they_multiply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Builder(Volume(64, 18, 16), seed=1)
    onnx.save(to_onnx(net.graph(net.conv(net.input, 64, 3, pads=1))), tmp_path / "net.onnx")
    assert main(["bench", str(tmp_path / "net.onnx"), "--runs", "1", "--threads", "1", "--layers", "--json"]) == 0
    _, tiles, products, _ = json.loads(capsys.readouterr().out)["layers"]
    assert tiles["algorithm"] == products["algorithm"] == "winograd"
    assert (tiles["flops"], products["flops"]) == (0, 2 * 18 * 16 * 64 * 64 * 9)
    # 5x4 tiles of 36 products, where 18x16 positions take 9 each
    assert products["executed_flops"] == 2 * 5 * 4 * 36 * 64 * 64
    assert tiles["volume"][:2] == [5, 4]
    assert products["bytes"] > 4 * 36 * 64 * 64


def test_the_layer_table_names_algorithms(networks: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(networks[0]), "--runs", "1", "--layers"]) == 0
    text = capsys.readouterr().out
    assert "Conv F3 P1 +relu" in text
    assert "indirection" in text
    assert "sum of the best of each" in text
