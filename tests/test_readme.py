"""The README: its examples run as they stand, and it leaves out no setting and no command."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model
from PIL import Image
from serving import running_server

import convserve
from convserve.cli.main import main
from convserve.settings import SETTINGS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CLASSES = 300


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the examples name: a network of 224x224 with 300 classes, its labels, photographs."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(np.float32) / 50 for shape in ((8, 3, 32, 32), (CLASSES, 8, 7, 7))]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w0"], ["a"], strides=[32, 32]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w1"], ["c"]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Softmax", ["d"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "net.onnx"))
    labels = [f"class {number}" for number in range(CLASSES)]
    labels[281] = "tabby, tabby cat"
    (tmp_path / "labels.txt").write_text("\n".join(labels) + "\n")
    for name, size in (("cat.jpg", (300, 260)), ("dog.jpg", (260, 300)), ("street.jpg", (520, 400))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    # where `convserve calibrate` stores what it measures
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def served(folder: Path) -> Iterator[str]:
    preprocess = convserve.Preprocess(resize=256, crop=224)
    model = convserve.load(folder / "net.onnx", labels=folder / "labels.txt", preprocess=preprocess)
    with running_server({"net": model}) as address:
        yield address


def commands(start: str = "convserve ") -> list[list[str]]:
    """Return the arguments of every `convserve` line, those of continued lines joined."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line[len(start) :], comments=True) for line in lines if line.startswith(start)]


def test_the_python_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = [block for block in blocks("python") if "convserve.load(" in block]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "class " in printed
    assert f"{CLASSES})" in printed
    assert "(0, 160, 224, 384) (32, 32) exact" in printed


def test_the_built_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = [block for block in blocks("python") if "convserve.build(" in block]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "classifier.2" in printed
    assert "lenet: 1 image(s) of 1024x1024" in printed


def test_the_client_example_runs(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = [block for block in blocks("python") if "Client(" in block]
    assert "localhost:8500" in code
    exec(compile(code.replace("localhost:8500", served), "README.md", "exec"), {})
    assert f", {CLASSES})" in capsys.readouterr().out


def test_the_pytorch_example_runs(folder: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch, which writes the network of this example, is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript, which PyTorch needs to write ONNX, is not installed")
    [code] = [block for block in blocks("python") if "torch" in block]
    exec(compile(code, "README.md", "exec"), {})
    model = convserve.load("net.onnx")
    assert (model.window, model.classes) == ((224, 224), 10)
    assert model.run(np.zeros((3, 3, 224, 224), np.float32)).shape == (3, 10)  # type: ignore[union-attr]


def test_the_commands_run(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = commands()
    assert {argv[0] for argv in shown} >= {"import", "serve", "classify", "score-map", "plan", "describe", "verify"}
    for argv in shown:
        # a server that waits, and a measurement that takes long, have tests of their own
        if argv[0] not in ("serve", "bench"):
            assert main([part.replace("localhost:8500", served) for part in argv]) == 0, argv
    assert Path("cats.png").exists()
    assert Path("street.npz").exists()
    capsys.readouterr()


def test_the_aerial_picture_is_drawn(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("squeezenet1.1.onnx", "synset.txt"):
        (tmp_path / name).symlink_to(shared_data / "squeezenet" / name)
    with Image.open(shared_data / "aerial" / "drone_4032x3024.jpg") as photograph:
        photograph.crop((2500, 700, 2900, 1020)).save(tmp_path / "drone_4032x3024.jpg")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    drawing = [argv for argv in commands("python -m convserve ") if argv[0] in ("import", "score-map")]
    assert [main(argv) for argv in drawing] == [0, 0]
    with Image.open(tmp_path / "docs" / "aerial-scores.jpg") as picture:
        assert picture.size[0] == 1280


def test_every_setting_and_every_command_is_told_of() -> None:
    for setting in SETTINGS.values():
        value = int(setting.default) if isinstance(setting.default, bool) else setting.default
        default = "unset" if value in (None, "") else value
        assert f"| `CONVSERVE_{setting.name}` | {default} | {setting.help} |" in TEXT
    for command in ("serve", "classify", "score-map", "import", "describe", "plan", "verify", "bench", "info", "demo"):
        assert re.search(rf"(convserve|make) {command}\b", TEXT), command


def test_every_file_that_it_links_exists() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target
