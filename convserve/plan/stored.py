"""The cost table that `convserve calibrate` measured, in a file of the user's; which table is in use."""

import json
import math
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convserve.errors import SettingError
from convserve.plan.costs import RATES, CostTable, shipped_table
from convserve.plan.machine import cpu_model

__all__ = ["costs_in_use", "read_costs", "stored_path", "write_costs"]

FORMAT = 1

_told: set[str] = set()


def stored_path() -> Path:
    """Return where the measured table lies: $XDG_CONFIG_HOME/convserve/costs.json, by default below ~/.config.

    Raises FileNotFoundError where neither is there: the users of many containers have no home.
    """
    home = os.environ.get("XDG_CONFIG_HOME", "").strip()
    try:
        return (Path(home) if home else Path.home() / ".config") / "convserve" / "costs.json"
    except RuntimeError as error:
        raise FileNotFoundError(f"there is no place for a measured cost table: {error} Set XDG_CONFIG_HOME") from error


def read_costs(isa: str, path: Path | None = None) -> CostTable | None:
    """Return the measured table for an instruction set, None where none is stored.

    Raises SettingError, with the file and what is wrong, where it is damaged or was measured on another processor.
    """
    try:
        path = path or stored_path()
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the cost table {path} cannot be read: {error}") from None
    try:
        document = json.loads(text)
        form, tables = document["format"], document["tables"]
        entry = tables.get(isa)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SettingError(f"the cost table {path} is damaged; measure again with `convserve calibrate`") from None
    if form != FORMAT:
        raise SettingError(f"the cost table {path} has format {form!r}; this version reads {FORMAT}")
    if entry is None:
        return None
    table = _table(entry, isa, path)
    if table.machine != cpu_model():
        raise SettingError(
            f"the cost table {path} was measured on {table.machine!r}; this is {cpu_model()!r}:"
            " measure again with `convserve calibrate`"
        )
    return table


def _table(entry: Any, isa: str, path: Path) -> CostTable:
    if not isinstance(entry, dict) or set(entry) != {"isa", "measured", "machine", *RATES} or entry["isa"] != isa:
        raise SettingError(f"the cost table {path} lacks fields for {isa}; measure again with `convserve calibrate`")
    for name in RATES:
        value = entry[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise SettingError(f"the cost table {path} has {name} {value!r} for {isa}; it must be a number above 0")
    if not all(isinstance(entry[name], str) for name in ("measured", "machine")):
        raise SettingError(f"the cost table {path} lacks when or where it was measured for {isa}")
    return CostTable(**entry)


def write_costs(table: CostTable, path: Path | None = None) -> Path:
    """Store a measured table beside those of other instruction sets, at once or not at all, and return its file.

    Raises OSError where the system refuses.
    """
    path = path or stored_path()
    tables: dict[str, Any] = {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["format"] == FORMAT:
            tables = dict(kept["tables"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # nothing there that could be kept
    tables[table.isa] = asdict(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps({"format": FORMAT, "tables": tables}, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)
    return path


def costs_in_use(isa: str) -> CostTable:
    """Return the measured table where there is one that can be used, else the shipped one; warn of one that cannot."""
    try:
        return read_costs(isa) or shipped_table(isa)
    except SettingError as error:
        if str(error) not in _told:
            _told.add(str(error))
            warnings.warn(f"{error}; the shipped one is used", stacklevel=2)
        return shipped_table(isa)
