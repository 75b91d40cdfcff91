"""An environment of its own with tritonclient[grpc,http], as its users have it, and what runs in it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

__all__ = ["environment", "run"]

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
PATIENCE_S = 300


def _install(python: Path, *packages: str) -> None:
    command = [*PIP, "--python", str(python), "install", "--no-compile", "--retries", "1", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "pip failed").splitlines()[-1]
        pytest.skip(f"{' '.join(packages)} cannot be installed here: {reason}")


def environment(cache: pytest.Cache) -> Path:
    """Return the Python of an environment with tritonclient, Pillow and kserve's messages, made once and kept.

    Skips the test where it cannot be made.
    """
    folder = cache.mkdir("tritonclient")
    made, python = folder / "made-with-http", folder / "venv" / "bin" / "python"
    if not made.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder / "venv"], check=True)
        _install(python, "tritonclient[grpc,http]", "pillow")
        _install(python, "--no-deps", "kserve")
        made.touch()
    return python


def run(python: Path, *arguments: Any, **environment: str) -> str:
    """Return what a script prints there; AssertionError where it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(part) for part in (python, *arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env={**kept, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
