"""A worker's side of its supervisor: it serves when told, changes models when all do, and speaks for all workers."""

import asyncio
import functools
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from convserve.errors import ServerUnavailable
from convserve.server.control import Control
from convserve.server.model_folder import ModelFolder
from convserve.server.repository import READY, SETTLED_S, ModelState, Repository
from convserve.server.statistics import Statistics

if TYPE_CHECKING:
    from convserve.model import Model
    from convserve.server.serving import Server

__all__ = ["SharedRepository", "Worker"]


class _Together(NamedTuple):
    """What all workers' repositories say, as one."""

    complete: bool
    known: list[str]
    states: list[ModelState]


class SharedRepository(Repository):
    """A worker's models. What it tells of itself is what all workers say; load() and unload() change all of them.

    model() and refresh() are the worker's own.
    """

    def __init__(
        self,
        models: "Mapping[str, Model] | None" = None,
        folder: ModelFolder | None = None,
        *,
        unloaded: Sequence[str] = (),
    ) -> None:
        """unloaded: the folder's models that are not loaded until load() asks for them."""
        super().__init__(models, folder)
        self._together: _Together | None = None
        self._ask: Callable[..., Any] | None = None
        for name in unloaded:
            if name in self._table:
                super().unload(name)

    def join(self, ask: Callable[..., Any]) -> None:
        """Let load() and unload() be done by ask(what, name=...), which blocks."""
        self._ask = ask

    def hear(self, state: Mapping[str, Any]) -> None:
        """Take over what all workers' state() is together."""
        states = [ModelState(*one) for one in state["index"]]
        self._together = _Together(state["complete"], state["known"], states)
        self._tell()

    def state(self) -> dict[str, Any]:
        """Return what this worker's own models are, as JSON."""
        return {
            "complete": self._tried,
            "known": super().known,
            "index": [[one.name, one.version, one.state, one.reason] for one in super().index()],
            "unloaded": sorted(self._unloaded),
        }

    @property
    def complete(self) -> bool:
        """Whether every model was tried once, by all workers."""
        return super().complete if self._together is None else self._together.complete

    @property
    def names(self) -> list[str]:
        """The models that are ready in all workers."""
        if self._together is None:
            return super().names
        return list(dict.fromkeys(one.name for one in self._together.states if one.state == READY))

    @property
    def known(self) -> list[str]:
        """All models, those that are not ready included."""
        return super().known if self._together is None else self._together.known

    def index(self) -> list[ModelState]:
        """Return every version of every model; one is READY if it is in all workers."""
        return super().index() if self._together is None else self._together.states

    def is_ready(self, name: str, version: str = "") -> bool:
        """Return whether all workers have such a model."""
        if not super().is_ready(name, version) or self._together is None:
            return super().is_ready(name, version)
        name = self.model(name, version).name
        return any(
            one.name == name and one.state == READY and version in ("", one.version) for one in self._together.states
        )

    def load(self, name: str) -> None:
        """Load a model in this worker, and if it can be, in the others; raises as the first that cannot."""
        self._asked("load", name)

    def unload(self, name: str) -> None:
        """Unload a model in all workers."""
        self._asked("unload", name)

    def _asked(self, what: str, name: str) -> None:
        if self._ask is None:
            raise ServerUnavailable("the server has not begun yet")
        self._ask(what, name=name)

    def load_here(self, name: str) -> None:
        """Load a model in this worker alone."""
        super().load(name)

    def unload_here(self, name: str) -> None:
        """Unload a model in this worker alone."""
        super().unload(name)


class Worker:
    """A worker process's end of the connection to its supervisor."""

    def __init__(
        self,
        end: socket.socket,
        *,
        number: int,
        restarted: bool,
        unloaded: Sequence[str] = (),
        counted: Sequence[tuple[str, str, Mapping[str, Any]]] = (),
    ) -> None:
        """number: from 1. restarted: others serve already, so this worker listens when it has tried every model.

        unloaded: the folder's models that are not loaded until somebody asks for them. counted: what Statistics were
        told() in the worker that had this number before, by model and version.
        """
        self.number = number
        self._end = end
        self._restarted, self._unloaded, self._counted = restarted, unloaded, counted
        self._repository: SharedRepository | None = None
        # not asyncio's own threads: those may all be in load(), which waits for this worker to load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="convserve-control")

    def repository(self, models: "Mapping[str, Model] | None", folder: ModelFolder | None) -> SharedRepository:
        """Return the repository that the worker is to serve."""
        self._repository = SharedRepository(models, folder, unloaded=self._unloaded)
        return self._repository

    async def follow(self, server: "Server", stop: asyncio.Event) -> None:
        """Do what the supervisor says until stop is set, which is done here where the supervisor has gone."""
        loop = asyncio.get_running_loop()
        repository = self._repository
        assert repository is not None
        told: dict[str, Any] = {}

        def tell_state() -> None:
            nonlocal told
            if (state := repository.state()) != told:
                told = state
                control.tell("state", state=state)

        def changed() -> None:
            # a model may become ready when the loop has ended already
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(tell_state)

        control = Control(
            {
                "listen": functools.partial(self._listen, server, repository, changed),
                "hear": functools.partial(self._now, repository.hear),
                "load": functools.partial(self._do, repository.load_here),
                "unload": functools.partial(self._do, repository.unload_here),
                "refresh": functools.partial(self._refresh, repository),
                "reload_access": functools.partial(self._now, server.reload_access),
                "counts": functools.partial(self._counts, server.statistics),
            }
        )
        await control.open(self._end)
        listening = asyncio.create_task(control.run())
        listening.add_done_callback(lambda _: stop.set())

        def ask(what: str, **arguments: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(control.ask(what, **arguments), loop).result()

        async def gather(model: str, version: str) -> list[Any]:
            counts: list[Any] = await control.ask("counts", model=model, version=version)
            return counts

        repository.join(ask)
        server.statistics.share(gather)
        server.statistics.go_on(self._counted)
        repository.listen(changed)
        control.tell("prepared")
        await stop.wait()

    async def _do(self, work: Callable[..., None], **arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, functools.partial(work, **arguments))

    async def _now(self, work: Callable[..., None], **arguments: Any) -> None:
        work(**arguments)

    async def _refresh(self, repository: SharedRepository, *, settled: bool = False) -> None:
        await self._do(repository.refresh, settled_s=SETTLED_S if settled else 0.0)

    async def _counts(self, statistics: Statistics, *, model: str, version: str) -> dict[str, Any]:
        return statistics.told(model, version)

    async def _listen(
        self, server: "Server", repository: SharedRepository, changed: Callable[[], None]
    ) -> dict[str, Any]:
        if self._restarted:
            await self._refresh(repository)
        address = await server.start()
        changed()
        return {"address": address, "http_address": server.http_address, "models": repository.state()["known"]}
