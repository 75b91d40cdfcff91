"""The machine that a benchmark ran on: processor, memory, versions, and its measured limits."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import convserve
from convserve.cli.info import cpu_model
from convserve.engine.limits import peak_flops, read_bandwidth
from convserve.engine.processors import cgroup_limit
from convserve.engine.team import available_threads
from convserve.kernels import dispatch

__all__ = ["describe_machine", "measure_limits", "stolen_seconds"]

_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def describe_machine() -> dict[str, Any]:
    """Return the machine, its load, the date and the versions, as JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "instruction_sets": [flag for flag in _FLAGS if flag in _cpu_flags()],
        "processors": os.cpu_count(),
        "processors_available": available_threads(),
        "cgroup_cpus": cgroup_limit(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "convserve": convserve.__version__,
        "convserve_kernels": dispatch.active(),
    }


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[1].split()}


def measure_limits(threads: list[int]) -> dict[str, dict[str, float]]:
    """Return peak flop/s and read bytes/s by number of threads, measured now."""
    return {
        str(count): {"peak_flops": peak_flops(count), "read_bytes_per_s": read_bandwidth(count)} for count in threads
    }


def stolen_seconds() -> float:
    """Return the processor time that other tenants of the host have taken since boot, 0 where nothing tells."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
