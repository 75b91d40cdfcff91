"""convserve info: the machine as convserve sees it, every setting, and the versions of what it stands on."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from convserve import __version__, settings
from convserve.cli.arguments import add_command
from convserve.cli.output import print_json
from convserve.engine.processors import cgroup_limit
from convserve.errors import SettingError
from convserve.plan.machine import cpu_model
from convserve.plan.stored import read_costs, stored_path

__all__ = ["cpu_model", "gather", "register", "run"]

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
    costs: dict[str, Any] = {"file": None, "measured": None, "problem": None}
    try:
        costs["file"] = str(stored_path())
        stored = read_costs(chosen) if chosen else None
        costs["measured"] = stored.measured if stored else None
    except (SettingError, FileNotFoundError) as error:
        costs["problem"] = str(error)
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
            "cgroup_cpus": cgroup_limit(),
            "available": available_threads(),
            "run": crew,
        },
        "costs": costs,
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
        f"cost table        {_costs_text(found['costs'])}",
        "settings",
    ]
    for setting in found["settings"]:
        value, state = _value_text(setting["value"]), "set" if setting["set"] else "default"
        if setting["set"] and setting["value"] is None:
            value = "not allowed"
        lines.append(f"  {setting['name']:<24} {value:<12} ({state})  {setting['help']}")
    lines += [f"  {name} is set, but there is no such setting" for name in found["unknown_settings"]]
    return "\n".join(lines)


def _costs_text(costs: dict[str, Any]) -> str:
    if costs["measured"]:
        return f"measured {costs['measured']}, {costs['file']}"
    return f"shipped; {costs['problem'] or '`convserve calibrate` measures this machine'}"


def _value_text(value: Any) -> str:
    if value in (None, ""):
        return "unset"
    return str(int(value) if isinstance(value, bool) else value)
