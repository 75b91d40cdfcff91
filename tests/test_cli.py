"""The command line: what it prints, writes and returns, here and against a server."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model
from PIL import Image
from serving import running_server

import convserve
from convserve.cli.main import main

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE, NET = BUNDLED / "digit.png", BUNDLED / "page.png", BUNDLED / "digits.convserve"
COMMANDS = ("serve", "classify", "score-map", "import", "describe", "plan", "verify", "bench", "cache", "info", "demo")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_server({"digits": convserve.load(NET)}) as address:
        yield address


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A network of one convolution over 8x8 RGB, whose two classes are the sums of red and of blue."""
    weight = np.zeros((2, 3, 8, 8), np.float32)
    weight[0, 0] = weight[1, 2] = 1
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 1, 1])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "colours.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def ran(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    assert main([str(argument) for argument in argv]) == 0
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *argv: Any) -> dict[str, Any]:
    found = json.loads(ran(capsys, *argv, "--json"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  convserve {command}" in text
    assert "--json" in text


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^ +{command}\s", text, re.MULTILINE) for command in COMMANDS)


# ---- classify


def test_classify_prints_labels_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ran(capsys, "classify", DIGIT, PAGE.with_name("digit.png"), "--top", 2).splitlines()
    assert lines[0] == str(DIGIT)
    assert lines[1].split()[1] == "3"
    assert len(lines) == 6


def test_classify_here_and_on_a_server_agree(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    here = document(capsys, "classify", DIGIT, "--net", NET)
    there = document(capsys, "classify", DIGIT, "--server", address, "--model", "digits")
    assert here["images"][0].pop("seconds") > 0
    assert there["images"][0].pop("seconds") > 0
    assert here == there
    best = here["images"][0]["predictions"][0]
    assert (best["label"], best["index"]) == ("3", 3)


# ---- score-map


def test_arrays_hold_the_map_and_its_geometry(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = convserve.load(NET).score_map(PAGE)
    for where in ([], ["--server", address], ["--server", address, "--memory-budget", "4MiB"]):
        path = tmp_path / "page.npz"
        found = document(capsys, "score-map", PAGE, "-o", path, *where)
        assert (found["rows"], found["cols"], found["exactness"]) == (44, 74, "exact")
        assert found["plan"]["arena_bytes"] > 0
        with np.load(path, allow_pickle=False) as arrays:
            assert np.array_equal(arrays["scores"], local.scores)
            assert arrays["labels"].tolist() == local.labels
            assert arrays["stride"].tolist() == [4, 4]
            assert arrays["covered"].tolist() == [0, 0, 200, 320]


def test_a_picture_of_one_class_and_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, every = tmp_path / "one.png", tmp_path / "all.png"
    assert f"wrote {one}" in ran(capsys, "score-map", PAGE, "-o", one, "--class", "7")
    ran(capsys, "score-map", PAGE, "-o", every, "--background", "no digit")
    with Image.open(one) as first, Image.open(every) as second:
        assert first.size[0] >= 320
        assert np.asarray(first.convert("RGB")).std() > 10
        assert np.asarray(second.convert("RGB")).std() > 10


def test_classes_by_label_and_index_in_order(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.npz"
    for where in ([], ["--server", address]):
        ran(capsys, "score-map", PAGE, "-o", path, "--class-index", 10, "--class", "3", "--stride", 8, *where)
        with np.load(path, allow_pickle=False) as arrays:
            assert arrays["classes"].tolist() == [10, 3]
            assert arrays["stride"].tolist() == [8, 8]


# ---- import


def test_an_imported_network_carries_labels_and_preprocessing(
    onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, net = tmp_path / "labels.txt", tmp_path / "colours.convserve"
    labels.write_text("red\nblue\n")
    preprocessing = ["--resize", "8x8", "--channels", "bgr", "--scale", "0.5"]
    told = ran(capsys, "import", onnx_file, "-o", net, "--labels", labels, *preprocessing)
    assert "window 8x8, 2 labels" in told
    picture = tmp_path / "blue.png"
    Image.new("RGB", (40, 30), (10, 0, 200)).save(picture)
    found = document(capsys, "classify", picture, "--net", net)["images"][0]["predictions"]
    # the channels come as B, G, R: what the network calls red is the picture's blue
    assert [(one["label"], one["score"]) for one in found] == [("red", 6400.0), ("blue", 320.0)]


def test_import_reads_mean_and_std(onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "n.convserve"
    ran(capsys, "import", onnx_file, "-o", net, "--mean", "100,0,0", "--std", "1,1,2")
    preprocess = convserve.load(net).preprocess
    assert preprocess is not None
    assert (preprocess.mean, preprocess.std) == ((100.0, 0.0, 0.0), (1.0, 1.0, 2.0))


# ---- plan


def test_plan_prints_the_models_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "plan", NET, "--size", "200x320", "--batch", 2)
    plan = convserve.load(NET).plan(200, 320, batch=2)
    assert (found["height"], found["width"], found["batch"]) == (200, 320, 2)
    for name in ("arena_bytes", "scratch_bytes", "weight_bytes", "total_bytes"):
        assert found[name] == getattr(plan, name)


def test_plan_counts_what_is_held_of_the_scores(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--size", "280x400", "--json"]
    held = ["--hold-scores", "--top", "2", "--dtype", "float16", "--class", "3", "--class", "7", "--class-index", "1"]
    for more, bytes_of_position in (([], 0), (["--hold-scores"], 4 * 11), (held, 2 * (2 + 4))):
        assert main([*command, *more]) == 0
        found = json.loads(capsys.readouterr().out)["score_bytes"]
        # and, where it is reduced, the block that it is made from
        assert 0 <= found - 64 * 94 * bytes_of_position <= (28 * 94 * 4 * 3 if "--top" in more else 0)
    assert main([*command, "--top", "2"]) == 1
    assert "add --hold-scores" in capsys.readouterr().err
    assert main([*command, "--stride", "2", "--hold-scores"]) == 1
    assert "cannot be given with --hold-scores" in capsys.readouterr().err


def test_plan_prints_a_table_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    table = ran(capsys, "plan")
    assert "28x28" in table
    with_steps = ran(capsys, "plan", "--steps")
    assert len(with_steps) > len(table)


# ---- exit codes


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["classify", "/no/such.png"], "/no/such.png"),
        (["classify", "x.png", "--net", "/no/such.onnx"], "/no/such.onnx"),
        (["classify", str(DIGIT), "--server", "127.0.0.1:1"], "cannot be reached"),
        (["score-map", str(PAGE), "-o", "map.gif"], "must end in one of .png, .jpg, .npy, .npz"),
        (["score-map", str(PAGE), "-o", "m.npz", "--contact-sheet", "b.npz"], "must end in one of .png, .jpg"),
        (["score-map", str(PAGE), "-o", "m.png", "--contact-sheet", "b.png", "--argmax"], "take --top 1"),
        (["score-map", str(PAGE), "-o", "m.npz", "--dtype", "uint8"], "give value_range"),
        (["score-map", str(PAGE), "-o", "m.png", "--opacity", "2"], "opacity is 2.0"),
        (["score-map", str(PAGE), "-o", "m.png", "--side", "9"], "allowed: 64 to 16384"),
        (["score-map", str(PAGE), "-o", "m.png", "--threshold", "2", "--contact-sheet", "b.png"], "no score reaches"),
        (["score-map", str(PAGE), "-o", "/no/such/folder/map.png"], "/no/such/folder/map.png"),
        (["classify", str(DIGIT), "--server", "127.0.0.1:1", "--threads", "4"], "--threads"),
        (["classify", str(DIGIT), "--server", "127.0.0.1:1", "--memory-budget", "4MiB"], "--memory-budget"),
        (["classify", str(DIGIT), "--server", "127.0.0.1:1", "--token", "/no/token"], "/no/token"),
        (["score-map", str(PAGE), "-o", "m.png", "--server", "127.0.0.1:1", "--tls", "/no/roots.pem"], "roots.pem"),
        (["score-map", str(DIGIT), "-o", "m.png", "--class", "eleven"], "eleven"),
        (["import", str(DIGIT), "-o", "x.convserve"], "digit.png"),
        (["import", str(NET), "-o", "x.onnx"], ".convserve"),
        (["plan", str(NET), "--size", "20x20"], "28x28"),
        (["plan", str(NET), "--size", "2000x2000", "--memory-budget", "1KiB"], "budget"),
        (["serve", f"a={NET}", f"a={NET}"], "'a'"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_code_1(
    argv: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("convserve: ")
    assert captured.err.count("\n") == 1
    assert text in captured.err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["classify"],
        ["nonsense"],
        ["classify", "x.png", "--top", "0"],
        ["classify", "x.png", "--net", "a", "--server", "b"],
        ["plan", "--size", "224by224"],
        ["plan", "--size", "0x4"],
        ["plan", "--memory-budget", "lots"],
        ["score-map", "x.png"],
        ["import", "x.onnx", "-o", "y", "--mean", "a,b"],
    ],
)
def test_wrong_usage_is_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_reader_of_the_output_that_stops_is_no_traceback() -> None:
    command = f"{sys.executable} -m convserve plan --steps | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


# ---- the demo


def test_the_demo_reads_a_digit_scores_a_page_and_leaves_nothing_running(tmp_path: Path) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "convserve", "demo", "--output", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    assert "digit.png: 3  score 0.9" in done.stdout
    assert "44x74 positions of 11 classes, exact" in done.stdout
    assert "arena" in done.stdout
    assert done.stdout.rstrip().endswith("server stopped")
    with Image.open(tmp_path / "out" / "page-scores.png") as picture:
        assert picture.size[0] >= 320


def test_a_map_at_another_stride_and_edge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.npz"
    options = ["--stride", "2", "--edge", "align", "--method", "atrous"]
    assert main(["score-map", str(PAGE), "-o", str(path), *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["method"], said["edge"]) == ("atrous", "align")
    with np.load(path) as arrays:
        assert (str(arrays["method"]), str(arrays["edge"])) == ("atrous", "align")
        assert arrays["covered"].tolist()[2:] == arrays["image"].tolist() == said["covered"][2:]


def test_ways_to_a_stride_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "lenet", "--size", "100x120", "--stride", "2", "--json"]) == 0
    ways = json.loads(capsys.readouterr().out)["ways"]
    assert {way["method"]: way["passes"] for way in ways} == {
        "shifted": 4,
        "atrous": 1,
        "crops-shared": 1739,
        "crops": 1739,
    }
    assert ways[0]["predicted_s"] <= ways[1]["predicted_s"]
    assert main(["plan", "lenet", "--size", "100x120", "--stride", "2"]) == 0
    text = capsys.readouterr().out
    assert "ways to stride 2; auto takes the first" in text
    assert "times as fast as" in text
    assert main(["plan", "lenet", "--size", "100", "--stride", "3"]) == 1
    assert "stride is 3; it must divide" in capsys.readouterr().err
    assert main(["plan", "lenet", "--size", "100", "--stride", "2", "--batch", "2"]) == 1
    assert "--batch" in capsys.readouterr().err
