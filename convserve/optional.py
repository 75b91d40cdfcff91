"""Packages that are imported only where a format needs them, named in one sentence where they are missing."""

from importlib import import_module
from typing import Any

from convserve.errors import InputError

__all__ = ["installed", "optional"]


def installed(module: str) -> bool:
    """Return whether a package can be imported."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def optional(module: str, what: str, *, extra: str = "scenes") -> Any:
    """Return an imported package; InputError, which begins with `what` it is for, where it is not installed.

    extra: of convserve, that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{what}, which takes the package {module}: pip install 'convserve[{extra}]'") from error
