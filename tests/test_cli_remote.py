"""The command line against servers: groups of images, tokens, progress, what a server refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from foreign import foreign_server
from serving import running_server

import convserve
from convserve.cli.main import main
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer

BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT, PAGE = str(BUNDLED / "digit.png"), str(BUNDLED / "page.png")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_server({"digits": convserve.load(BUNDLED / "digits.convserve")}) as address:
        yield address


@pytest.mark.parametrize("remote", [False, True])
def test_many_images_are_classified_in_groups_and_in_order(
    address: str, remote: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convserve.cli.classify.GROUP", 3)
    names = []
    for number in range(7):
        names.append(str(tmp_path / f"{number}.png"))
        Path(names[-1]).write_bytes(Path(DIGIT).read_bytes())
    where = ["--server", address] if remote else []
    assert main(["classify", *names, "--top", "1", "--json", *where]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    assert [one["image"] for one in found] == names
    assert {one["predictions"][0]["label"] for one in found} == {"3"}


def test_the_token_comes_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Any] = {}

    class Servicer(ConvserveServicer):
        def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
            seen.update(context.invocation_metadata())
            return pb.ClassifyResponse(classifications=[pb.Classification()])

    token = tmp_path / "token"
    token.write_text("secret\n")
    with foreign_server(Servicer()) as address:
        assert main(["classify", DIGIT, "--server", address, "--token", str(token)]) == 0
    assert seen["authorization"] == "Bearer secret"
    assert "secret" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["classify", "score-map"])
def test_a_version_may_be_named(
    address: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [PAGE, "-o", str(tmp_path / "map.npz")] if command == "score-map" else [DIGIT]
    for version, code in (("1", 0), ("2", 1), ("x", 1)):
        assert main([command, *where, "--server", address, "--model-version", version]) == code
    assert "there is no version 2 of the model 'digits'; there is: 1" in capsys.readouterr().err


def test_no_bar_is_drawn_where_stderr_is_no_terminal(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["score-map", PAGE, "-o", str(tmp_path / "page.npz"), "--server", address]
    monkeypatch.setattr("convserve.progress.SILENT_S", 0.0)
    assert main(argv) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "vgg"], "there is no model 'vgg'"),
        (["--memory-budget", "1KiB"], "budget"),
        (["--stride", "3"], "stride"),
        (["--class", "eleven"], "eleven"),
        (["--fit", "pad"], "--fit cannot be given together with --server"),
    ],
)
def test_what_a_server_refuses_is_one_line_and_exit_code_1(
    address: str, options: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score-map", PAGE, "-o", str(tmp_path / "m.npz"), "--server", address, *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("convserve: ")
    assert captured.err.count("\n") == 1
    assert text in captured.err
    assert not (tmp_path / "m.npz").exists()
