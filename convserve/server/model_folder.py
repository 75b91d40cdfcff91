"""A folder of models, DIR/<name>/<version>/{model.onnx|model.convserve, config.toml, labels.txt}: found and opened.

Nothing outside the folder is read: a name that leads out of it, a file with several hard links, and whatever is no
regular file are refused. A name that a client sends never becomes a path: it is looked up among those that are there.
"""

import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convserve.errors import ConvserveError, InputError, ModelFormatError, ModelNotFoundError
from convserve.loading import load
from convserve.server.model_config import ModelConfig, VersionPolicy
from convserve.server.toml_file import LONGEST_BYTES, parse_toml

if TYPE_CHECKING:
    from convserve.model import Model

__all__ = ["Candidate", "ModelFolder", "is_model_name"]

MODEL_FILES = ("model.convserve", "model.onnx")
CONFIG, LABELS = "config.toml", "labels.txt"

LONGEST_NAME = 128
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s'\"/]+/)+")
_MOST_FILES = 10_000
_LONGEST_LABELS_BYTES = 16 << 20

_log = logging.getLogger("convserve.server")


def is_model_name(name: str) -> bool:
    """Tell whether a name may stand for a model: printable, no separator, no dot in front, not longer than 128."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable() and name[0] != "." and not set(name) & set("/\\\0")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One version of a model as it lies in the folder; stamp changes whenever one of its files does."""

    name: str
    version: int
    folder: Path
    stamp: tuple[tuple[str, ...], ...]
    newest_s: float

    def settled(self, seconds: float) -> bool:
        """Tell whether its files were left alone for so long; one that is being copied is not whole."""
        return time.time() - self.newest_s >= seconds


class ModelFolder:
    """The models below one folder. defaults: what a config.toml does not say."""

    def __init__(self, root: str | os.PathLike[str], defaults: ModelConfig | None = None) -> None:
        """Raises InputError where the folder is none or cannot be read."""
        try:
            self._root = Path(root).resolve(strict=True)
            os.scandir(self._root).close()
        except OSError as error:
            raise InputError(f"the repository {os.fspath(root)!r} cannot be read: {error.strerror}") from None
        self._defaults = defaults or ModelConfig()

    def names(self) -> list[str]:
        """Return the names of the models that are there, sorted."""
        return [path.name for path in self._folders(self._root) if is_model_name(path.name)]

    def _folders(self, parent: Path) -> list[Path]:
        try:
            found = sorted(path for path in parent.iterdir() if path.is_dir())
        except OSError:
            return []
        return [path for path in found if self._is_inside(path)]

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._root)

    def candidates(self, name: str) -> tuple[VersionPolicy, dict[int, Candidate]]:
        """Return a model's policy and its versions; ModelNotFoundError where there is no model of that name.

        Where its config.toml cannot be read, every version is wanted: opening them tells why.
        """
        if name not in self.names():
            raise ModelNotFoundError(f"the repository has no model {name[:LONGEST_NAME]!r}")
        folder = self._root / name
        shared = [path for path in (folder / CONFIG, folder / LABELS) if path.exists()]
        found = {}
        for path in self._folders(folder):
            if _VERSION.fullmatch(path.name):
                states = sorted(_states([*shared, *_files(path)]))
                newest_s = max((int(state[-1]) / 1e9 for state in states), default=0.0)
                found[int(path.name)] = Candidate(name, int(path.name), path, tuple(states), newest_s)
        try:
            policy = self._config(folder, self._defaults).versions
        except ConvserveError:
            policy = VersionPolicy()
        return policy, found

    def open(self, candidate: Candidate) -> "tuple[Model, bool]":
        """Load a version, and tell whether it is to be warmed up. Raises ConvserveError without the folder's path."""
        try:
            return self._opened(candidate)
        except ConvserveError as error:
            kind = type(error) if type(error) in (InputError, ModelFormatError) else ModelFormatError
            raise kind(self._without_paths(str(error))) from error
        except OSError as error:
            raise ModelFormatError(f"a file cannot be read: {error.strerror or 'input/output error'}") from error

    def _without_paths(self, text: str) -> str:
        return _FOLDERS.sub("", text.replace(f"{self._root}{os.sep}", ""))

    def _opened(self, candidate: Candidate) -> "tuple[Model, bool]":
        folder = candidate.folder
        shared = self._config(folder.parent, self._defaults)
        config = self._config(folder, shared, versioned=True)
        there = [name for name in MODEL_FILES if os.path.lexists(folder / name)]
        if len(there) != 1:
            found = " and ".join(there) or "no model file"
            raise ModelFormatError(f"the version has {found}; it must have one of {', '.join(MODEL_FILES)}")
        path = folder / there[0]
        self._check_file(path)
        model = load(
            path,
            preprocess=config.preprocess,
            labels=self._labels(candidate, config),
            algorithm=config.algorithm,
            weights=config.weights,
            threads=config.threads,
            fit=config.fit,
            memory_budget=config.memory_budget,
            window=config.window,
            cache=config.cache,
            evict_weights=config.evict_weights,
        )
        return model, config.warm_up

    def _config(self, folder: Path, base: ModelConfig, *, versioned: bool = False) -> ModelConfig:
        path = folder / CONFIG
        if not os.path.lexists(path):
            return base
        what = self._said(path)
        table = parse_toml(self._content(path, LONGEST_BYTES), what)
        if versioned and "versions" in table:
            raise InputError(f"{what} has the key 'versions', which belongs into {folder.parent.name}/{CONFIG}")
        return base.updated(table, what)

    def _labels(self, candidate: Candidate, config: ModelConfig) -> list[str] | None:
        if isinstance(config.labels, tuple):
            return list(config.labels)
        name = config.labels or LABELS
        for path in (candidate.folder / name, candidate.folder.parent / name):
            if os.path.lexists(path):
                try:
                    return self._content(path, _LONGEST_LABELS_BYTES).decode("utf-8").splitlines()
                except UnicodeDecodeError:
                    raise InputError(f"{self._said(path)} is no UTF-8 text") from None
        if config.labels is not None:
            raise InputError(f"there is no file {name!r} for the labels of {candidate.name!r}")
        return None

    def _said(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    def _content(self, path: Path, limit_bytes: int) -> bytes:
        self._check_file(path)
        if path.stat().st_size > limit_bytes:
            raise InputError(f"{self._said(path)} has more than {limit_bytes} bytes")
        return path.read_bytes()

    def _check_file(self, path: Path) -> None:
        if not self._is_inside(path):
            raise ModelFormatError(f"{self._said(path)} leads out of the repository")
        try:
            status = path.stat()
        except OSError as error:
            raise ModelFormatError(f"{self._said(path)} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            raise ModelFormatError(f"{self._said(path)} is no regular file")
        if status.st_nlink != 1:
            raise ModelFormatError(f"{self._said(path)} has {status.st_nlink} hard links; it may have one name only")
        if status.st_mode & stat.S_IWOTH:
            _log.warning("%s may be written by everybody; who writes to it stops its being served", self._said(path))


def _files(folder: Path) -> Iterator[Path]:
    count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            count += 1
            if count > _MOST_FILES:
                return
            yield Path(parent, name)


def _states(paths: list[Path]) -> Iterator[tuple[str, ...]]:
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            yield (str(path), "gone", "0")
        else:
            newest = max(status.st_mtime_ns, status.st_ctime_ns)
            yield (str(path), str(status.st_ino), str(status.st_size), str(newest))
