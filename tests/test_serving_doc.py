"""docs/serving.md: its examples run as they stand, and it names no flag, command or file that is not there."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from serving import running
from triton_environment import run

import convserve
from convserve.cli import health, serve
from convserve.server import Access, ModelConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BUNDLED = Path(convserve.__file__).parent / "bundled"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def python_block(part: str, address: str) -> str:
    [code] = [block for block in blocks("python") if part in block]
    assert "localhost:8500" in code
    code = code.replace("localhost:8500", address)
    return re.sub(r'"(\w+\.png)"', lambda found: repr(str(BUNDLED / found[1])), code)


def test_an_image_is_classified(triton_python: Path, address: str) -> None:
    printed = run(triton_python, "-c", python_block("class_count", address))
    assert re.match(r"\[\[b'0\.\d+:3:3' ", printed)


def test_a_page_is_scored(triton_python: Path, address: str) -> None:
    printed = run(triton_python, "-c", python_block("dense_top", address))
    assert re.match(r"the best of \d+ classes: \d, at row \d+, column \d+\n", printed)


def test_every_python_example_has_a_test() -> None:
    assert len(blocks("python")) == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl, which the example runs, is absent")
def test_an_image_is_a_body_of_its_own() -> None:
    [code] = [block for block in blocks("sh") if block.startswith("curl ")]
    with running({"digits": convserve.load(BUNDLED / "digits.convserve")}, {"http_port": 0}) as server:
        command = shlex.split(code.replace("localhost:8501", server.http_address))
        done = subprocess.run([*command, "--silent"], cwd=BUNDLED, capture_output=True, timeout=60, check=True)
    scores = json.loads(done.stdout)["outputs"][0]["data"]
    assert scores.index(max(scores)) == 3


def test_the_configurations_are_read(tmp_path: Path) -> None:
    model, tokens = blocks("toml")
    config = ModelConfig().updated(tomllib.loads(model), "the example")
    assert config.memory_budget == 64 << 20
    assert config.preprocess is not None
    assert config.preprocess.crop == 224
    (tmp_path / "tokens.toml").write_text(tokens)
    (tmp_path / "tokens.toml").chmod(0o600)
    access = Access(str(tmp_path / "tokens.toml"))
    assert access.client([("authorization", "Bearer a-long-random-text")], "/convserve.v1/Classify") == "camera-7"


def flags_of(command: str) -> set[str]:
    parser = argparse.ArgumentParser()
    {"serve": serve, "health": health}[command].register(parser.add_subparsers())
    [action] = parser._subparsers._group_actions  # type: ignore[union-attr]
    return set(action.choices[command]._option_string_actions)  # type: ignore[call-overload, index]


def test_every_flag_is_one_of_ours() -> None:
    outside = re.sub(r"^```sh\n.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    known = flags_of("serve") | flags_of("health")
    # of the command line against a server
    known |= {"--certificate"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", outside))
    assert named
    assert named <= known


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)|(?<=[\s`])(deploy/[\w.]+)", TEXT))))
def test_every_file_that_it_names_exists(target: tuple[str, str]) -> None:
    link, path = target
    assert (ROOT / "docs" / link if link else ROOT / path).exists()
