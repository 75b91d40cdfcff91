"""What a stranger installs: sdist and wheel are whole, and work in a fresh environment outside the source folder."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "convserve"
NEEDED = ("setuptools", "Cython", "grpc_tools", "pip")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="there is no source tree here to build"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed here, but needed to build: {', '.join(MISSING)}"),
]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with nothing of this process's Python paths; fail with its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CONVSERVE_"))}
    argv = [str(part) for part in command]
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def built(kind: str, *, source: Path, into: Path) -> Path:
    """Build as pip does, but with the build requirements of this environment: no network is needed."""
    into.mkdir(exist_ok=True)
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}({str(into)!r})", cwd=source)
    [found] = into.iterdir()
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    # a clean copy: whatever was built in the tree must not reach the archive
    outside = {".git", ".venv", "build", "dist", "demo-out", ".hypothesis"}
    built_here = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", "*_pb2*.py*", "*.binpb", ".*_cache")

    def ignored(path: str, names: list[str]) -> set[str]:
        generated = {name for name in names if name.endswith(".c") and not name.startswith("cs_")}
        return built_here(path, names) | generated | (outside & set(names) if Path(path) == ROOT else set())

    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    return built("sdist", source=folder / "source", into=folder / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    return built("wheel", source=source, into=folder / "dist")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel; the packages that it depends on are those of this environment."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    install = ("install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=folder.parent)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "of-the-suite.pth").write_text(sysconfig.get_path("platlib") + "\n")
    return folder


def names_of(folder: Path, *patterns: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for pattern in patterns for path in folder.rglob(pattern)}


def test_the_sdist_has_all_sources_and_nothing_generated(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    written = names_of(PACKAGE, "*.pyx", "*.pxd", "cs_*.[ch]", "py.typed") | names_of(ROOT / "protos", "*.proto")
    written |= {name for name in names_of(PACKAGE, "*.py", "*.pyi") if "_pb2" not in name}
    written |= {name for name in names_of(PACKAGE / "bundled", "*") if Path(name).suffix}
    written |= {name for name in names_of(ROOT / "tests", "*.py") if "__pycache__" not in name}
    written |= {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "setup.py"}
    written |= {"docs/architecture.md", "docs/page-scores.png"}
    assert not written - names
    assert not {name for name in names if name.endswith((".so", ".pyc", ".binpb")) or "_pb2" in name}
    assert not {name for name in names if name.endswith(".c") and not Path(name).name.startswith("cs_")}


def test_the_wheel_has_what_runs_and_no_sources_of_what_is_compiled(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [entry_points] = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert "convserve = convserve.__main__:main" in entry_points
    wanted = {name for name in names_of(PACKAGE, "*.py", "*.pyi", "py.typed") if "_pb2" not in name}
    wanted |= {name for name in names_of(PACKAGE / "bundled", "*") if Path(name).suffix}
    wanted |= {f"convserve/wire/convserve_pb2{end}" for end in (".py", ".pyi", "_grpc.py")}
    wanted |= {"convserve/wire/open_inference.binpb"}
    assert not wanted - names
    modules = {name.split(".", 1)[0] for name in names if name.endswith(".so")}
    assert modules == {name.removesuffix(".pyx") for name in names_of(PACKAGE, "*.pyx")}
    assert not {name for name in names if name.endswith((".pyx", ".pxd", ".c", ".h", ".pyc"))}
    assert not {name for name in names if not name.startswith(("convserve/", "convserve-"))}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_package_is_the_one_that_is_imported(environment: Path, tmp_path: Path) -> None:
    code = "import convserve; print(convserve.__file__, convserve.__version__, convserve.load.__module__)"
    home, version, _ = run(environment / "bin" / "python", "-c", code, cwd=tmp_path).split()
    assert Path(home).is_relative_to(environment)
    assert version == "0.1.0"


def test_the_installed_command_works(environment: Path, tmp_path: Path) -> None:
    command = environment / "bin" / "convserve"
    [bundled] = environment.glob("lib/python*/site-packages/convserve/bundled")
    found = json.loads(run(command, "info", "--json", cwd=tmp_path))
    assert found["version"] == "0.1.0"
    assert found["problems"] == []
    classified = json.loads(run(command, "classify", bundled / "digit.png", "--json", cwd=tmp_path))
    assert classified["images"][0]["predictions"][0]["label"] == "3"
    run(command, "score-map", bundled / "page.png", "-o", "page.npz", cwd=tmp_path)
    with np.load(tmp_path / "page.npz") as arrays:
        assert arrays["scores"].shape == (44, 74, 11)


def test_the_installed_server_and_client_work(environment: Path, tmp_path: Path) -> None:
    found = json.loads(run(environment / "bin" / "convserve", "demo", "--json", "-o", "out", cwd=tmp_path))
    assert found["predictions"][0]["label"] == "3"
    assert (found["rows"], found["cols"]) == (44, 74)
    assert (tmp_path / "out" / "page-scores.png").stat().st_size > 1000
