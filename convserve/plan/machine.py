"""What the system tells of the processor: its name, and the bytes of its caches."""

import platform
from pathlib import Path

from convserve.errors import SettingError
from convserve.settings import parse_bytes

__all__ = ["cache_bytes", "cpu_model"]


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's own name, or the architecture where the system tells none."""
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "cpu model") and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_bytes(level: int, path: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Return the bytes of the first processor's data cache of a level, None where the system does not tell."""
    for index in sorted(path.glob("index*")):
        try:
            told = {name: (index / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")}
            if told["level"] == str(level) and told["type"] in ("Data", "Unified"):
                return parse_bytes(told["size"].replace("K", "KiB").replace("M", "MiB"))
        except (OSError, ValueError, SettingError):
            continue
    return None
