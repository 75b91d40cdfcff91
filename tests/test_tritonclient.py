"""tritonclient[grpc] as its users have it, in an environment of its own, against our server; and in one process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import add_version
from serving import running_server

import convserve
from convserve.images import decode
from convserve.server import ModelFolder, Repository

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT = BUNDLED / "digit.png"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
PATIENCE_S = 120


def install(python: Path, *packages: str) -> None:
    """Install packages into another environment; skip where they cannot be had."""
    command = [*PIP, "--python", str(python), "install", "--retries", "1", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "pip failed").splitlines()[-1]
        pytest.skip(f"{' '.join(packages)} cannot be installed here: {reason}")


@pytest.fixture(scope="module")
def python(pytestconfig: pytest.Config) -> Path:
    """The Python of an environment with tritonclient and kserve's messages, made once and kept with pytest's cache."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("tritonclient")
    made, python = folder / "made", folder / "venv" / "bin" / "python"
    if not made.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder / "venv"], check=True)
        install(python, "tritonclient[grpc]")
        install(python, "--no-deps", "kserve")
        made.touch()
    return python


def run(python: Path, *arguments: Any, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(part) for part in (python, *arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env={**kept, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_call_of_tritonclient_works(python: Path, tmp_path: Path) -> None:
    model = convserve.load(BUNDLED / "digits.convserve")
    x = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
    local: Any = model.classify(DIGIT, top=11)
    digit = np.empty((1, 11), np.float32)
    for one in local:
        digit[0, one.index] = one.score
    np.savez(
        tmp_path / "expected.npz",
        x=x,
        y=model.run(x),
        half=model.run(x.astype(np.float16).astype(np.float32)),
        digit=digit,
        pixels=decode(DIGIT, channels="gray")[None],
        map=model.score_map(DIGIT, stride=2).scores,
    )
    add_version(tmp_path / "models", "small", 1)
    models = Repository({"digits": model}, ModelFolder(tmp_path / "models"))
    models.refresh()
    with running_server(models) as address:
        script = ROOT / "tests" / "tritonclient_calls.py"
        assert run(python, script, address, DIGIT, tmp_path / "expected.npz") == "passed 7\n"


OURS = "from convserve.wire.infer_messages import oip; assert oip.ModelInferRequest(id='a').id == 'a'"
TRITON = "from tritonclient import grpc; grpc.service_pb2.ModelInferRequest(id='a')"
# without kserve's other modules, which need all that kserve needs
KSERVE = (
    "import sys, importlib.util as u, pathlib; "
    "home = pathlib.Path(u.find_spec('tritonclient').submodule_search_locations[0]).parent; "
    "path = home / 'kserve/protocol/grpc/grpc_predict_v2_pb2.py'; "
    "spec = u.spec_from_file_location('grpc_predict_v2_pb2', path); module = u.module_from_spec(spec); "
    "spec.loader.exec_module(module); assert module.ModelInferRequest(id='a').id == 'a'"
)


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("other", [TRITON, KSERVE], ids=["tritonclient", "kserve"])
def test_all_of_them_import_into_one_process(python: Path, other: str, order: str) -> None:
    run(python, "-c", "\n".join([OURS, other] if order == "first" else [other, OURS]), PYTHONPATH=str(ROOT))
