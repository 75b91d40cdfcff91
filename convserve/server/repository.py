"""The models that a server answers for, by name and version: loaded, replaced and unloaded while it runs."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from convserve.errors import (
    ConvserveError,
    InputError,
    ModelError,
    ModelFormatError,
    ModelNotFoundError,
    ServerUnavailable,
)
from convserve.server.heap import collect_garbage, trim_heap
from convserve.server.model_folder import Candidate, ModelFolder, is_model_name

if TYPE_CHECKING:
    from convserve.model import Model

__all__ = ["LOADING", "READY", "SETTLED_S", "UNAVAILABLE", "ModelState", "Repository", "Served", "warm_up"]

READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"

SETTLED_S = 2.0
"""A poll leaves alone files that were written to less than so many seconds ago: they may not be whole yet."""

_log = logging.getLogger("convserve.server")


class Served(NamedTuple):
    """What a request is answered with: the model's name, its version as text, and the model."""

    name: str
    version: str
    model: "Model"


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model in the index: state READY, LOADING or UNAVAILABLE, and the reason of what failed."""

    name: str
    version: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Version:
    # stamp: of the files that were tried last, which are not the model's own where they failed
    model: "Model | None"
    stamp: object = None
    reason: str = ""
    loading: bool = False

    @property
    def state(self) -> str:
        if self.model is not None:
            return READY
        return LOADING if self.loading else UNAVAILABLE


def warm_up(model: "Model") -> None:
    """Run a model over zeros, one image of its window, if it has one; raises what the run raises."""
    if model.window is not None:
        model.run(np.zeros((1, model.graph.input_volume.channels, *model.window), np.float32))


class Repository:
    """Models by name and version; every method may be called from any thread.

    Those that are given stay, as version 1. Those of a folder come and go by load(), unload() and refresh(), which
    block while they load and come one after another; meanwhile all others are answered for. A request holds the model
    that it began with, so it ends on that one, and its memory is free when the last such request has ended.
    """

    def __init__(self, models: "Mapping[str, Model] | None" = None, folder: ModelFolder | None = None) -> None:
        """Raises InputError where there is neither, or for a name that cannot be one, or that both have."""
        models = models or {}
        if not models and folder is None:
            raise InputError("a server needs at least one model")
        for name in models:
            if not is_model_name(name):
                raise InputError(
                    f"the model name {name[:200]!r} is empty or too long, begins with a dot, or has characters that "
                    "cannot be printed or separate paths"
                )
        for name in folder.names() if folder is not None else ():
            if name in models:
                raise InputError(f"two networks are called {name!r}, one of them in the repository")
        self._folder = folder
        self._given = frozenset(models)
        # replaced as a whole at every change, so that readers need no lock
        self._table: dict[str, dict[int, _Version]] = {
            name: {1: _Version(self._watched(model))} for name, model in models.items()
        }
        self._changing = threading.RLock()
        self._replacing = threading.RLock()
        self._unloaded: set[str] = set()
        self._listeners: list[Callable[[], None]] = []
        self._tried = folder is None
        for name in folder.names() if folder is not None else ():
            self._table[name] = {}

    # ---- what is there

    @property
    def complete(self) -> bool:
        """Whether every model was tried once."""
        return self._tried

    @property
    def names(self) -> list[str]:
        """The models that are ready, in the order in which they came."""
        table = self._table
        return [name for name, versions in table.items() if any(one.model is not None for one in versions.values())]

    @property
    def known(self) -> list[str]:
        """All models, those that are not ready included."""
        return list(self._table)

    def index(self) -> list[ModelState]:
        """Return every version of every model, the newest first; version "" where no version is known."""
        table, complete = self._table, self._tried
        found = []
        for name, versions in table.items():
            if not versions:
                waiting = ModelState(name, "", LOADING)
                found.append(ModelState(name, "", UNAVAILABLE, "it has no version") if complete else waiting)
            for number in sorted(versions, reverse=True):
                one = versions[number]
                found.append(ModelState(name, str(number), one.state, one.reason))
        return found

    def model(self, name: str, version: str = "") -> Served:
        """Return the model of a name and version: "" stands for the only model, and for the newest version served.

        Raises ModelNotFoundError for an unknown name or version, or for no name where there are several models;
        InputError for a version that is no number from 1; ServerUnavailable for one that is being loaded, or whose file
        was written to since it was.
        """
        table = self._table
        if not name and len(table) == 1:
            name = next(iter(table))
        if name not in table:
            known = ", ".join(list(table)[:20]) + (", ..." if len(table) > 20 else "")
            if not name:
                raise ModelNotFoundError(f"the request names no model; there is: {known or 'none'}")
            raise ModelNotFoundError(f"there is no model {name[:100]!r}; there is: {known or 'none'}")
        versions = table[name]
        if version and not (version.isascii() and version.isdigit() and version[0] != "0" and len(version) <= 18):
            raise InputError(f"the model's version is {version[:100]!r}; allowed: whole numbers from 1, or none")
        if not version:
            number = max((number for number, one in versions.items() if one.model is not None), default=0)
        else:
            number = int(version)
        found = versions.get(number)
        if found is not None and found.model is not None:
            if _is_spoilt(found):
                self._drop_spoilt()
                raise ServerUnavailable(f"the model {name!r} was damaged on the server, and has to be loaded again")
            return Served(name, str(number), found.model)
        wanted = f"the model {name!r}" + (f" in version {version}" if version else "")
        if (found is not None and found.loading) or (not version and self._is_coming(versions)):
            raise ServerUnavailable(f"{wanted} is being loaded")
        there = ", ".join(str(number) for number, one in versions.items() if one.model is not None)
        if version and there:
            raise ModelNotFoundError(f"there is no version {version} of the model {name!r}; there is: {there}")
        raise ModelNotFoundError(f"{wanted} is not loaded")

    def is_ready(self, name: str, version: str = "") -> bool:
        """Return whether model() gives one of this name and version; InputError for a version that is none."""
        try:
            self.model(name, version)
        except (ModelNotFoundError, ServerUnavailable):
            return False
        return True

    def _watched(self, model: "Model") -> "Model":
        # a run that finds its file changed says so at once, and not only to the request that it was for
        if model.storage is not None and model.storage.mapping is not None:
            model.storage.mapping.listen(self._drop_spoilt)
        return model

    def _drop_spoilt(self) -> None:
        with self._replacing:
            for name, versions in self._table.items():
                for number in [number for number, one in versions.items() if _is_spoilt(one)]:
                    reason = "its file was written to while it was served; replace files by renaming"
                    self._set(name, number, _Version(None, reason=reason))
                    _log.error("model %s, version %d: %s", name, number, reason)

    def _is_coming(self, versions: dict[int, _Version]) -> bool:
        return any(one.loading for one in versions.values()) or not (versions or self._tried)

    def release_idle(self) -> None:
        """Have every model give memory back that it keeps for coming runs."""
        for versions in list(self._table.values()):
            for one in list(versions.values()):
                if one.model is not None:
                    one.model.release_idle()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call listener, on whatever thread, whenever names, versions or states have changed."""
        self._listeners.append(listener)

    # ---- changes

    def load(self, name: str) -> None:
        """Load what the folder has of a model by now, beside what is served, and serve it in its place.

        Raises ModelNotFoundError where the folder has no such model, ModelError or InputError where a version cannot
        be loaded: what was served before then is served on, and the index tells why.
        """
        with self._changing:
            if name in self._given:
                return
            if self._folder is None:
                raise ModelNotFoundError(f"there is no model {name[:100]!r}, and no repository to load it from")
            self._folder.candidates(name)
            self._unloaded.discard(name)
            error = self._bring(name, again=True)
        if error is not None:
            raise error

    def unload(self, name: str) -> None:
        """Answer for a model no more, until it is loaded again; requests in work end first, then its memory is free.

        Raises ModelNotFoundError for an unknown name, InputError for a model that was given at the start.
        """
        with self._changing:
            if name in self._given:
                raise InputError(f"the model {name!r} was given when the server began, and stays")
            if name not in self._table:
                raise ModelNotFoundError(f"there is no model {name[:100]!r}")
            self._unloaded.add(name)
            versions = self._table[name]
            self._put(name, {number: _Version(None, reason="unloaded") for number in versions})
        del versions
        _give_back()
        _log.info("model %s: unloaded", name)

    def refresh(self, *, settled_s: float = 0.0) -> None:
        """Bring every model to what the folder has by now, except those that were unloaded by name.

        What fails is told by the index and the log, and tried again when its files have changed. settled_s: leave files
        for later that were written to less than so many seconds ago.
        """
        with self._changing:
            if self._folder is not None:
                names = self._folder.names()
                for name in names:
                    if name not in self._unloaded and name not in self._given:
                        self._bring(name, settled_s=settled_s)
                gone = [name for name in self._table if name not in names and name not in self._given]
                for name in gone:
                    self._unloaded.discard(name)
                    self._put(name, None)
                    _log.info("model %s: gone", name)
                if gone:
                    _give_back()
            if not self._tried:
                self._tried = True
                self._tell()
                self._tell_what_is_empty()

    def _tell_what_is_empty(self) -> None:
        # a folder one level too high or too deep looks like models without versions, or like none
        looked_for = "a version is NAME/VERSION/model.convserve, or model.onnx; VERSION is a number"
        empty = [name for name, versions in self._table.items() if not versions]
        if self._folder is not None and not self._table:
            _log.warning("the repository has no model; %s", looked_for)
        if empty:
            _log.warning("without a version: %s; %s", ", ".join(empty[:10]), looked_for)

    def _put(self, name: str, versions: dict[int, _Version] | None) -> None:
        with self._replacing:
            table = {known: one for known, one in self._table.items() if known != name or versions is not None}
            if versions is not None:
                table[name] = versions
            self._table = table
        self._tell()

    def _set(self, name: str, number: int, version: _Version) -> _Version:
        with self._replacing:
            self._put(name, {**self._table.get(name, {}), number: version})
        return version

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _bring(self, name: str, *, again: bool = False, settled_s: float = 0.0) -> ConvserveError | None:
        """Serve the versions that the policy wants, as the folder has them; return the first error there was."""
        assert self._folder is not None
        self._drop_spoilt()
        try:
            policy, there = self._folder.candidates(name)
        except ConvserveError as error:
            return error
        first: ConvserveError | None = None
        kept: dict[int, _Version] = {}
        good = 0
        for number in policy.order(there):
            if policy.latest is not None and good == policy.latest:
                break
            before = self._table.get(name, {}).get(number)
            candidate = there.get(number)
            if candidate is not None and not candidate.settled(settled_s):
                if before is None:
                    continue
                now, failure = before, None
            else:
                now, failure = self._opened(name, number, candidate, before, again=again)
            first = first or failure
            kept[number] = now
            good += now.model is not None
        dropped = any(one.model is not None for number, one in self._table.get(name, {}).items() if number not in kept)
        if kept != self._table.get(name):
            self._put(name, kept)
        if dropped:
            _give_back()
        return first

    def _opened(
        self, name: str, number: int, candidate: Candidate | None, before: _Version | None, *, again: bool
    ) -> tuple[_Version, ConvserveError | None]:
        """Return a version as it now is, loaded if its files are new, or again is set for one that failed."""
        assert self._folder is not None
        if candidate is None:
            missing = ModelNotFoundError(f"there is no version {number} of the model {name!r}")
            return self._set(name, number, _Version(None, reason=str(missing))), missing
        is_same = before is not None and before.stamp == candidate.stamp
        if before is not None and is_same and not (again and before.reason):
            return before, None
        error: ConvserveError
        model = None if before is None else before.model
        if model is None:
            self._set(name, number, _Version(None, loading=True))
        try:
            fresh, warm = self._folder.open(candidate)
            if warm:
                warm_up(fresh)
        except ConvserveError as caught:
            # without the traceback, which would hold what was loaded
            error = type(caught)(str(caught))
        except MemoryError:
            error = ModelError("there is not the memory to load it")
        except Exception:
            _log.exception("model %s, version %d", name, number)
            error = ModelFormatError("loading it failed")
        else:
            _log.info("model %s, version %d: ready", name, number)
            return self._set(name, number, _Version(self._watched(fresh), candidate.stamp)), None
        _log.error("model %s, version %d cannot be loaded: %s", name, number, error)
        return self._set(name, number, _Version(model, candidate.stamp, str(error))), error


def _is_spoilt(version: _Version) -> bool:
    storage = None if version.model is None else version.model.storage
    return storage is not None and storage.mapping is not None and not storage.mapping.is_intact


def _give_back() -> None:
    # what a model held in cycles, and what the C heap keeps of it
    collect_garbage()
    trim_heap()
