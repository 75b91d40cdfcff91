"""What the client needs: nothing compiled, no engine, no model format; and that both clients are alike."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import running_server

import convserve
from convserve.client import AsyncClient, Client

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"
UNWANTED = ("convserve.engine", "convserve.kernels", "convserve.plan", "convserve.model", "convserve.formats")
CALLS = """
import sys
import numpy
import convserve
with convserve.Client(sys.argv[1], timeout=20) as client:
    print(client.classify(sys.argv[2])[0].label, client.score_map(numpy.zeros((40, 36, 1), numpy.uint8)).scores.shape)
    print(client.list_models()[0]["name"], client.describe()["exactness"], client.plan(28, 28).weight_bytes > 0)
print(convserve.__file__)
print(*sys.modules)
"""


def imported(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_client_imports_no_engine_and_no_model_format() -> None:
    modules = imported("import convserve; convserve.Client('localhost:1'); convserve.AsyncClient('localhost:1')")
    assert "convserve.client.client" in modules
    assert not {name for name in modules if name.startswith(UNWANTED)}
    assert not modules & {"onnx", "PIL", "safetensors", "rich"}


def test_the_client_needs_nothing_compiled(tmp_path: Path) -> None:
    package = tmp_path / "convserve"
    compiled = shutil.ignore_patterns("*.so", "*.c", "*.pyx", "__pycache__")
    shutil.copytree(convserve.__path__[0], package, ignore=compiled)
    with running_server({"digits": convserve.load(BUNDLED / "digits.convserve")}) as address:
        done = subprocess.run(
            [sys.executable, "-c", CALLS, address, str(BUNDLED / "digit.png")],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    first, second, home, modules = done.stdout.splitlines()
    assert first == "3 (4, 3, 11)"
    assert second == "digits exact True"
    assert home == str(package / "__init__.py")
    assert not {name for name in modules.split() if name.startswith(UNWANTED)}
    assert not {"onnx", "PIL", "safetensors", "rich"} & set(modules.split())


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> dict[str, Any]:
        return {name: value for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")}

    blocking, waiting = public(Client), public(AsyncClient)
    assert blocking.keys() == waiting.keys()
    for name, method in blocking.items():
        assert list(inspect.signature(method).parameters) == list(inspect.signature(waiting[name]).parameters), name
        assert method.__doc__, name


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    assert {name for name in imported("import convserve") if name.startswith("convserve")} == {"convserve"}


def test_every_public_name_exists() -> None:
    for name in convserve.__all__:
        assert getattr(convserve, name) is not None, name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = convserve.nonsense  # type: ignore[attr-defined]
