"""Scripts in processes whose allocator counts calls and refuses one: allocations.c, compiled and preloaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["NET", "run_watched"]

TESTS = Path(__file__).resolve().parent
NET = TESTS.parent / "convserve/bundled/digits.convserve"

PRELUDE = """
import ctypes, gc, sys
sys.path.insert(0, "tests")
import numpy as np
import convserve
from convserve.engine.engine import Engine
from convserve.errors import MemoryBudgetError
shim = ctypes.CDLL(None)
shim.allocations_watch.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long]
shim.allocations_stop.restype = shim.allocations_held.restype = ctypes.c_long
ENGINE = b"/convserve/engine/"
NET = sys.argv[1]
"""


def compiled(folder: Path) -> Path:
    """Return the shared object; the test is skipped where there is no C compiler or another C library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or no Linux, for an allocator of our own")
    target = folder / "allocations.so"
    made = subprocess.run(
        [compiler, "-O1", "-fPIC", "-shared", "-o", str(target), str(TESTS / "allocations.c"), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        pytest.skip("the C library is not the GNU one, whose allocator is reached by its own names")
    return target


def run_watched(script: str, folder: Path) -> str:
    """Return what a script, behind the prelude, prints in a process with the allocator of allocations.c."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(NET)],
        cwd=TESTS.parent,
        env=os.environ | {"LD_PRELOAD": str(compiled(folder))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
