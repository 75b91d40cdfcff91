"""TOML files that people write: read up to a size, what is wrong in them said with the nearest name known."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convserve.errors import InputError

__all__ = ["LONGEST_BYTES", "nearest", "parse_toml", "read_toml"]

LONGEST_BYTES = 1 << 20
"""Longest file that is read, in bytes."""


def nearest(key: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of the known names, or the list of all where none is near."""
    known = list(known)
    found = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {found[0]!r}?" if found else f"; there are: {', '.join(known)}"


def parse_toml(content: bytes, what: str) -> dict[str, Any]:
    """Return the table of a TOML file; InputError that names the file where it is none."""
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{what} is no TOML: {error}") from None


def read_toml(path: str, what: str) -> dict[str, Any]:
    """Return the table of the TOML file at a path; InputError where it cannot be read, is too long or none."""
    said = f"{what} {path!r}"
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(LONGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{said} cannot be read: {error.strerror}") from None
    if len(content) > LONGEST_BYTES:
        raise InputError(f"{said} has more than {LONGEST_BYTES} bytes")
    return parse_toml(content, said)
