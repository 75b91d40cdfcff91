"""From a network as it was read or built to its container: mapped from the cache, or in private memory."""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from convserve import settings
from convserve.errors import InputError
from convserve.formats.algorithms import ALGORITHMS, choose_packing, without_winograd
from convserve.formats.cache import Cache, standard_cache
from convserve.formats.container import Container
from convserve.formats.container_writer import container_bytes, hold_container, write_container
from convserve.formats.packing import Packing
from convserve.formats.storage import WEIGHT_TYPES
from convserve.graph.fit import check_fit
from convserve.graph.ir import Graph
from convserve.graph.rewrites import rewrite

__all__ = ["Form", "file_container", "held_container", "text_container"]

_log = logging.getLogger(__name__)


class _File(Protocol):
    """A file that is open, with the others that its content lies in."""

    files: dict[str, os.stat_result]

    def digest(self) -> bytes: ...

    def check_unchanged(self) -> None: ...


_AnyFile = TypeVar("_AnyFile", bound=_File)


@dataclass(frozen=True, slots=True)
class Form:
    """What a network is made into: the options that shape its graph and its packed weights."""

    algorithm: str
    weights: str | None
    fit: str
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise InputError(f"algorithm is {self.algorithm!r}; allowed: {', '.join(ALGORITHMS)}")
        if self.weights not in (None, *WEIGHT_TYPES):
            raise InputError(f"weights is {self.weights!r}; allowed: {', '.join(WEIGHT_TYPES)}")
        check_fit(self.fit)

    def __str__(self) -> str:
        return f"{self.algorithm} {self.weights or 'fp32'} {self.window} {self.fit}"

    def rewritten(self, graph: Graph) -> Graph:
        """Return the graph as the engine runs it best."""
        return rewrite(graph, window=self.window, fit=self.fit)

    def packing(self, graph: Graph) -> Packing:
        """Return how the weights of a rewritten graph are laid out."""
        return choose_packing(graph, self.algorithm, weights=self.weights)


def held_container(graph: Graph, form: Form) -> Container:
    """Return a rewritten graph's container in private memory."""
    if form.algorithm == "gemm":
        graph = without_winograd(graph)
    return hold_container(graph, packing=form.packing(graph))


def file_container(
    path: str | os.PathLike[str],
    opened: Callable[[str | os.PathLike[str]], _AnyFile],
    read: Callable[[_AnyFile], Graph],
    form: Form,
    *,
    options: str,
    cache: bool,
) -> tuple[Container, str]:
    """Return the container of a file, mapped from the cache, or in private memory with the reason why.

    read: gives the rewritten graph of what opened(path) gives. options: all that shapes it besides the file's content.
    """

    def cached(store: Cache) -> Container:
        digest = store.known_digest(path)
        container = None if digest is None else store.find(store.key(digest, options))
        if container is not None:
            return container
        file = opened(path)
        graph = read(file)
        digest = file.digest()
        key = store.key(digest, options)
        container = store.find(key)
        if container is None:
            container = _packed(store, key, graph, form, source=os.path.abspath(path), check=file.check_unchanged)
        store.remember(path, file.files, digest)
        return container

    def held() -> Container:
        file = opened(path)
        container = held_container(read(file), form)
        file.check_unchanged()
        return container

    return _through_cache(cached, held, what=os.fspath(path), cache=cache)


def text_container(
    text: str, made: Callable[[], Graph], form: Form, *, what: str, cache: bool
) -> tuple[Container, str]:
    """Return the container of a graph that follows from a text, as file_container does; what: names it for people."""

    def cached(store: Cache) -> Container:
        key = store.key(hashlib.sha256(text.encode()).digest(), str(form))
        return store.find(key) or _packed(store, key, made(), form, source=what)

    return _through_cache(cached, lambda: held_container(made(), form), what=repr(what), cache=cache)


def _through_cache(
    cached: Callable[[Cache], Container], held: Callable[[], Container], *, what: str, cache: bool
) -> tuple[Container, str]:
    """Return what the cache gives, or what held() gives, in private memory, with the reason why."""
    because = "" if cache else "loaded without the cache"
    if cache and settings.get("CACHE") == "off":
        because = "CONVSERVE_CACHE is off"
    if not because:
        try:
            return cached(standard_cache()), ""
        except OSError as error:
            because = f"the cache cannot be used: {error.strerror or error}"
            _log.warning("the weights of %s take private memory: %s", what, because)
    return held(), because


def _packed(
    store: Cache, key: str, graph: Graph, form: Form, *, source: str, check: Callable[[], None] | None = None
) -> Container:
    """Return a graph's container, written into the cache; check is called when all of its weights were read."""
    packing = form.packing(graph)

    def write(target: Path) -> None:
        write_container(target, graph, packing=packing, check=check)

    return store.fill(key, container_bytes(graph, packing=packing), source, write)
