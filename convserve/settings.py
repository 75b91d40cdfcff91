"""Every CONVSERVE_* environment variable: its type, default and help, read at the moment of use."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from convserve.errors import SettingError

__all__ = ["SETTINGS", "Setting", "get", "parse_budget", "parse_bytes"]

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(value: int | str, *, name: str = "memory size") -> int:
    """Return a number of bytes from an int or a text such as "64MiB" or "1.5GiB".

    Raises SettingError for an unknown unit or a size that is not positive.
    """
    text = str(value).strip().lower()
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(digits) :].strip()
    try:
        size = int(float(digits) * _UNITS[unit]) if "." in digits else int(digits) * _UNITS[unit]
    except (KeyError, ValueError, OverflowError):
        raise SettingError(
            f'{name} is {value!r}; give bytes as a number or a text such as "64MiB" (B, KiB, MiB, GiB, KB, MB or GB)'
        ) from None
    if size <= 0:
        raise SettingError(f"{name} is {value!r}; it must be above 0 bytes")
    return size


def parse_budget(value: int | str | None) -> int | None:
    """Return a memory_budget argument in bytes; None stays None. Raises SettingError as parse_bytes does."""
    return None if value is None else parse_bytes(value, name="memory_budget")


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return text

    return parse


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 256:
        raise ValueError("a whole number from 1 to 256")
    return int(text)


def _pixels(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError("a whole number above 0")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except SettingError as error:
        raise ValueError('a size such as "64MiB"') from error


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable: name without the prefix, how its text is read, default, one-line help."""

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("ISA", str, "", "instruction set of the kernels: portable, avx2 or avx512; unset takes the best one"),
        Setting("THREADS", _count, None, "threads of a run; unset takes what affinity mask and cgroup allow"),
        Setting("MEMORY_BUDGET", _size, None, 'bytes that arena, scratch and held scores may take, e.g. "64MiB"'),
        Setting(
            "PLAN",
            _choice("on", "off", "print"),
            "on",
            "off: every tensor in its own full buffer; print: show each new plan on stderr",
        ),
        Setting("POISON", _flag, False, "1: fresh arenas and freed rows are filled with NaN"),
        Setting("CACHE", _choice("on", "off"), "on", "off: ONNX files are packed into private memory at each load"),
        Setting("CACHE_BYTES", _size, 8 << 30, "most bytes of packed ONNX files in ~/.cache/convserve"),
        Setting(
            "CATCH_SIGBUS",
            _choice("on", "off"),
            "on",
            "off: no handler of SIGBUS; a model file that is cut off while a run reads it then ends the process",
        ),
        Setting("PLAN_CACHE", _size, 16 << 20, "bytes of plans that a loaded network keeps for image sizes seen"),
        Setting("MAX_PIXELS", _pixels, 1 << 28, "most pixels that an encoded image may claim"),
    )
}


def get(name: str) -> Any:
    """Return the value of CONVSERVE_<name> from the environment, or its default.

    Raises SettingError when the text is outside the allowed range.
    """
    setting = SETTINGS[name]
    text = os.environ.get("CONVSERVE_" + name, "").strip()
    if not text:
        return setting.default
    try:
        return setting.parse(text)
    except ValueError as error:
        raise SettingError(f"CONVSERVE_{name} is {text!r}; allowed: {error}") from None
