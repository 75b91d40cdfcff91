"""convserve info: the machine as convserve sees it, every setting, and the versions of what it stands on."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from convserve import __version__, settings
from convserve.cli.arguments import add_command
from convserve.cli.output import print_json
from convserve.errors import SettingError

__all__ = ["cgroup_cpus", "cpu_model", "gather", "register", "run"]

_PACKAGES = ("numpy", "onnx", "grpcio", "protobuf", "pillow", "safetensors", "rich")


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "info",
        help="print version, CPU, instruction sets, threads, every CONVSERVE_* setting and the packages' versions",
        example="convserve info\nCONVSERVE_ISA=avx2 convserve info --json",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print; SettingError behind the print where a CONVSERVE_* variable has a value that is not allowed."""
    found = gather()
    if args.json:
        print_json(found)
    else:
        print(_text(found))
    if found["problems"]:
        raise SettingError("; ".join(found["problems"]))


def gather() -> dict[str, Any]:
    """Return everything as JSON; what a wrong setting makes unknown is None, and problems says why."""
    from convserve.engine.team import available_threads, thread_count
    from convserve.kernels import dispatch

    problems: list[str] = []
    wrong: set[str] = set()
    values: dict[str, Any] = {}
    for name in settings.SETTINGS:
        try:
            values[name] = settings.get(name)
        except SettingError as error:
            values[name] = None
            wrong.add(name)
            problems.append(str(error))
    chosen: str | None = None
    crew = None if "THREADS" in wrong else thread_count()
    try:
        chosen = dispatch.active()
    except SettingError as error:
        problems.append(str(error))
    known = {f"CONVSERVE_{name}" for name in settings.SETTINGS}
    unknown = sorted(name for name in os.environ if name.startswith("CONVSERVE_") and name not in known)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "instruction_sets": list(dispatch.available()),
        "instruction_set": chosen,
        "threads": {
            "machine": os.cpu_count(),
            "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "cgroup_cpus": cgroup_cpus(),
            "available": available_threads(),
            "run": crew,
        },
        "settings": [
            {
                "name": f"CONVSERVE_{setting.name}",
                "value": values[setting.name],
                "set": bool(os.environ.get(f"CONVSERVE_{setting.name}", "").strip()),
                "default": setting.default,
                "help": setting.help,
            }
            for setting in settings.SETTINGS.values()
        ],
        "packages": {name: _version(name) for name in _PACKAGES},
        "unknown_settings": unknown,
        "problems": problems,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


def cgroup_cpus(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Return the processors that cgroup version 2 allows, None where it sets no limit or is absent."""
    try:
        quota, period = path.read_text(encoding="ascii").split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _text(found: dict[str, Any]) -> str:
    threads = found["threads"]
    limits = [f"{threads['machine']} in the machine"]
    if threads["affinity"] is not None:
        limits.append(f"{threads['affinity']} by affinity")
    limits.append("no cgroup limit" if threads["cgroup_cpus"] is None else f"{threads['cgroup_cpus']:g} by cgroup")
    lines = [
        f"convserve         {found['version']}",
        f"Python            {found['python']} on {found['system']}",
        f"CPU               {found['cpu']}",
        f"instruction sets  {', '.join(found['instruction_sets'])}; in use: {found['instruction_set'] or 'none'}",
        f"threads           {threads['run'] or 'none'} for a run ({', '.join(limits)})",
        "packages          " + ", ".join(f"{name} {text or 'absent'}" for name, text in found["packages"].items()),
        "settings",
    ]
    for setting in found["settings"]:
        value, state = _value_text(setting["value"]), "set" if setting["set"] else "default"
        if setting["set"] and setting["value"] is None:
            value = "not allowed"
        lines.append(f"  {setting['name']:<24} {value:<12} ({state})  {setting['help']}")
    lines += [f"  {name} is set, but there is no such setting" for name in found["unknown_settings"]]
    return "\n".join(lines)


def _value_text(value: Any) -> str:
    if value in (None, ""):
        return "unset"
    return str(int(value) if isinstance(value, bool) else value)
