"""What config.toml says of a served model: how it is loaded, what is done to images, which versions are served."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from convserve.errors import InputError
from convserve.images.preprocess import Preprocess
from convserve.server.toml_file import nearest
from convserve.settings import parse_bytes

__all__ = ["ModelConfig", "VersionPolicy"]

_ALGORITHMS = ("auto", "gemm")
_FITS = ("floor", "error", "pad", "crop")
_WEIGHTS = ("fp32", "fp16", "bf16")
_LARGEST_VERSION = 10**18 - 1


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions are served: the newest `latest` that can be, those of `numbers`, else all."""

    latest: int | None = None
    numbers: tuple[int, ...] | None = None

    def order(self, there: Iterable[int]) -> list[int]:
        """Return the versions to try, the newest first; of those that are named also what is not there."""
        return sorted(there if self.numbers is None else self.numbers, reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """How one model is loaded and served; the options of convserve.load, and versions and warm_up.

    labels: a list, or the name of a file beside config.toml; None for labels.txt, where there is one.
    warm_up: whether a run over zeros must succeed before the model is served.
    """

    preprocess: Preprocess | None = None
    labels: tuple[str, ...] | str | None = None
    memory_budget: int | None = None
    algorithm: str = "auto"
    weights: str | None = None
    threads: int | None = None
    fit: str = "floor"
    window: tuple[int, int] | None = None
    evict_weights: bool = False
    cache: bool = True
    warm_up: bool = True
    versions: VersionPolicy = field(default_factory=lambda: VersionPolicy(latest=1))

    def updated(self, table: Mapping[str, Any], what: str) -> "ModelConfig":
        """Return this with what a TOML table says instead; what: the file, for errors.

        Raises InputError that names the file, and the key or its value, for anything that cannot be meant.
        """
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for key, value in table.items():
            if key not in _PARSERS:
                raise InputError(f"{what} has the key {key!r}, which is none{nearest(key, _PARSERS)}")
            try:
                values[key] = _PARSERS[key](value)
            except InputError as error:
                raise InputError(f"{what}, key {key!r}: {error}") from None
        return ModelConfig(**values)


# ---- values


def _whole(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"it is {value!r}; allowed: whole numbers from {least} to {most}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"it is {value!r}; allowed: true, false")
    return value


def _choice(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise InputError(f"it is {value!r}; allowed: {', '.join(allowed)}")
        return str(value)

    return parse


def _budget(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise InputError(f'it is {value!r}; give bytes as a number or a text such as "64MiB"')
    return parse_bytes(value, name="it")


def _window(value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2:
        raise InputError(f"it is {value!r}; allowed: one side, or [height, width]")
    return _whole(sides[0], 1, 1 << 20), _whole(sides[1], 1, 1 << 20)


def _labels(value: Any) -> tuple[str, ...] | str:
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        return tuple(value)
    if not isinstance(value, str) or not value or set(value) & set("/\\\0") or value.startswith("."):
        raise InputError(f"it is {value!r}; allowed: a list of texts, or the name of a file in the same folder")
    return value


def _preprocess(value: Any) -> Preprocess:
    known = [one.name for one in fields(Preprocess)]
    if not isinstance(value, dict):
        raise InputError(f"it is {value!r}; it must be a table with {', '.join(known)}")
    for key in value:
        if key not in known:
            raise InputError(f"it has the key {key!r}, which is none{nearest(key, known)}")
    return Preprocess(**value)


def _versions(value: Any) -> VersionPolicy:
    if value == "all":
        return VersionPolicy()
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000:
        return VersionPolicy(latest=value)
    if isinstance(value, list) and value:
        return VersionPolicy(numbers=tuple({_whole(one, 1, _LARGEST_VERSION): None for one in value}))
    raise InputError(f'it is {value!r}; allowed: "all", the number of newest versions, or a list of versions')


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "preprocess": _preprocess,
    "labels": _labels,
    "memory_budget": _budget,
    "algorithm": _choice(*_ALGORITHMS),
    "weights": _choice(*_WEIGHTS),
    "threads": lambda value: _whole(value, 1, 256),
    "fit": _choice(*_FITS),
    "window": _window,
    "evict_weights": _flag,
    "cache": _flag,
    "warm_up": _flag,
    "versions": _versions,
}
