"""The cache of packed networks: what is read or built is packed once into a container, which is then mapped.

In the folder lie, for each packed network, KEY.convserve and KEY.json, its seal: what the system said of the finished
file, so that a file that was touched since is packed again. The time of the seal is that of the last use. KEY is a hash
of the content that was read, external data included, or of a built network's text and seed, of the options that shape
the container, and of the code that packs.
PLACE.known holds the content's hash of an ONNX file or a state dict by its path, with what the system says of the file:
as long as that is unchanged, the file itself is not read.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from convserve import settings
from convserve.errors import ModelError
from convserve.formats.container import Container, read_container

__all__ = ["Cache", "Cached", "standard_cache"]

# A file that was written less than this ago may be written again without a change of its times.
SETTLED_NS = 2 * 10**9
MOST_KNOWN = 4096
ABANDONED_S = 3600


@dataclass(frozen=True, slots=True)
class Cached:
    """One packed network: its file, its bytes, what it was made of, and when it was last used (s)."""

    path: Path
    size_bytes: int
    source: str
    used_s: float


def standard_cache() -> "Cache":
    """Return the cache in $XDG_CACHE_HOME/convserve, by default ~/.cache/convserve, as CONVSERVE_CACHE_BYTES limits it.

    Raises OSError where the user has no home.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # a path that is not absolute is to be ignored, says the specification of these folders
        base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return Cache(base / "convserve", settings.get("CACHE_BYTES"))


@cache
def _code_digest() -> bytes:
    """Return a hash of the code that makes containers, so that nothing packed by other code is taken."""
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(path for room in ("formats", "graph") for path in (package / room).rglob("*.py")):
        found.update(path.read_bytes())
    return found.digest()


def _state(status: os.stat_result) -> list[int]:
    """Return what changes whenever a file is replaced, written or cut."""
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_record(path: Path) -> dict[str, Any]:
    """Return a small JSON file's content, {} where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


class Cache:
    """Packed networks in one folder; any number of threads and processes may use it at once."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def key(self, digest: bytes, options: str) -> str:
        """Return the name of what is packed from content of this hash under these options."""
        return hashlib.sha256(_code_digest() + digest + options.encode()).hexdigest()[:40]

    # ---- content hashes of ONNX files, by their path

    def _place(self, path: str) -> Path:
        return self.folder / (hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:40] + ".known")

    def known_digest(self, path: str | os.PathLike[str]) -> bytes | None:
        """Return the content's hash of an ONNX file that is as it was when it was remembered, else None."""
        record = _read_record(self._place(os.fspath(path)))
        try:
            for file, state in record["files"].items():
                if _state(os.stat(file)) != state:
                    return None
            return bytes.fromhex(record["digest"])
        except (OSError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def remember(self, path: str | os.PathLike[str], files: dict[str, os.stat_result], digest: bytes) -> None:
        """Keep the hash of a file's content; files: all that the content came from, as the system described them then.

        What was written within the last two seconds is not kept, since it may change without a trace.
        """
        newest = max(max(status.st_mtime_ns, status.st_ctime_ns) for status in files.values())
        if newest > time.time_ns() - SETTLED_NS:
            return
        states = {os.path.abspath(file): _state(status) for file, status in files.items()}
        self._write_record(self._place(os.fspath(path)), {"files": states, "digest": digest.hex()})

    def _write_record(self, path: Path, record: dict[str, Any]) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            draft.write_text(json.dumps(record), encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    # ---- packed networks

    def find(self, key: str) -> Container | None:
        """Return a packed network, mapped, and count it as used; None where it is absent, damaged or was touched."""
        path, seal = self._paths(key)
        try:
            if _read_record(seal).get("state") != _state(path.stat()):
                return None
            container = read_container(path)
        except (OSError, ModelError):
            return None
        with suppress(OSError):
            # a folder that can only be read serves as well
            os.utime(seal)
        return container

    def fill(self, key: str, size_bytes: int, source: str, write: Callable[[Path], None]) -> Container:
        """Return a packed network that find() did not give: write(path) packs it, once for all who wait for it.

        size_bytes: of the file that write makes. source: what it is made of, for people. Raises OSError
        where the folder cannot be written or its limit is lower than that, and what write raises.
        """
        if size_bytes > self.limit_bytes:
            raise OSError(f"it takes {size_bytes:,} bytes, and CONVSERVE_CACHE_BYTES allows {self.limit_bytes:,}")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, seal = self._paths(key)
        with self._lock(key):
            found = self.find(key)
            if found is not None:
                return found
            write(path)
            container = read_container(path)
            self._write_record(seal, {"state": _state(path.stat()), "source": source})
        self.trim(keep=key)
        return container

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.convserve", self.folder / f"{key}.json"

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        # where the file is removed while somebody waits for it, two may pack the same at once; the last one stays
        with (self.folder / f"{key}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def entries(self) -> list[Cached]:
        """Return what is packed, the last used first."""
        found = []
        for path in self._files("*.convserve"):
            seal = path.with_suffix(".json")
            with suppress(OSError):
                status = path.stat()
                used_s = seal.stat().st_mtime if seal.exists() else status.st_mtime
                source = _read_record(seal).get("source", "")
                found.append(Cached(path, status.st_size, source if isinstance(source, str) else "", used_s))
        return sorted(found, key=lambda entry: -entry.used_s)

    def _files(self, pattern: str) -> list[Path]:
        # who lists the folder while others write there does not see what has gone
        try:
            return sorted(self.folder.glob(pattern))
        except OSError:
            return []

    def trim(self, *, keep: str = "") -> None:
        """Remove what was used longest ago until the rest fits the limit, except the network of this key."""
        size = 0
        for entry in self.entries():
            size += entry.size_bytes
            if size > self.limit_bytes and entry.path.stem != keep:
                self._remove(entry.path)
                size -= entry.size_bytes
        known = sorted(self._files("*.known"), key=_modified)
        for path in known[: max(0, len(known) - MOST_KNOWN)]:
            path.unlink(missing_ok=True)
        for path in self._files(".*"):
            # drafts of processes that were killed
            if _modified(path) < time.time() - ABANDONED_S:
                path.unlink(missing_ok=True)

    def _remove(self, path: Path) -> None:
        for suffix in (".json", ".convserve", ".lock"):
            path.with_suffix(suffix).unlink(missing_ok=True)

    def clear(self) -> list[Cached]:
        """Remove everything, and return the packed networks that were there. Who has one mapped keeps it."""
        entries = self.entries()
        for pattern in ("*.json", "*.convserve", "*.lock", "*.known", ".*"):
            for path in self._files(pattern):
                path.unlink(missing_ok=True)
        return entries


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
