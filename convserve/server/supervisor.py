"""Several worker processes on one port: begun together, changed together, begun again when one dies, ended together."""

import asyncio
import functools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from convserve import errors, settings
from convserve.engine import processors
from convserve.errors import ConvserveError, InputError, ServerUnavailable
from convserve.server.control import Control
from convserve.server.limits import RANGES
from convserve.server.notify import notify_ready
from convserve.server.port import reserved_port

__all__ = ["Supervisor", "divided", "merged"]

MOST_FAILURES = 5
"""A worker that dies as often in a row ends the server."""

LONG_LIFE_S = 60.0
"""A worker that lived as long did not die in a row with the one before."""

FIRST_DELAY_S = 0.5
"""Seconds before a worker that died is begun again; twice as long each time."""

OWN_BYTES = 16 << 20
"""Anonymous memory of the supervisor itself, at most."""

_LAST_WORDS_S = 5.0

_log = logging.getLogger("convserve.server")

State = dict[str, Any]


@dataclass(slots=True, eq=False)
class _Worker:
    number: int
    process: asyncio.subprocess.Process
    control: Control
    running: "asyncio.Task[None]"
    prepared: "asyncio.Future[None]"
    began_s: float = field(default_factory=time.monotonic)
    state: State | None = None
    # what it told last of what it had counted, by model and version
    counted: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    async def end(self) -> str:
        """Wait until the process has ended and all that it said was heard; return how it ended."""
        code = await self.process.wait()
        await asyncio.wait([self.running])
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


class Supervisor:
    """Begins workers and keeps them; holds no model and computes nothing."""

    def __init__(
        self,
        command: Sequence[str],
        settings: Mapping[str, Any],
        *,
        count: int,
        host: str,
        port: int,
        http_port: int | None = None,
        grace_s: float,
        poll_s: float | None = None,
        first_delay_s: float = FIRST_DELAY_S,
    ) -> None:
        """Prepare count workers of a command, which gets the number of a socket as its last argument.

        settings: JSON that each worker is told first, with number, ports, and before: what was before it. The others as
        serve() takes them.
        """
        self._command, self._settings = command, settings
        self._count, self._host, self._port, self._http_port = count, host, port, http_port
        self._grace_s, self._poll_s, self._first_delay_s = grace_s, poll_s, first_delay_s
        self._alive: list[_Worker] = []
        self._serving: list[_Worker] = []
        self._shared: State | None = None
        self._ready = False
        # of workers that have died, by their numbers, until others have taken their places
        self._left: dict[int, dict[tuple[str, str], dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # one change at a time, so that all workers have the same models
        self._changing = asyncio.Lock()

    async def run(self, on_start: Callable[[str, str, list[str]], None]) -> None:
        """Serve until SIGTERM or SIGINT, then let all workers drain; SIGHUP is for all of them.

        on_start: called with host:port of gRPC and of HTTP, "" for none, and the models' names once all workers listen.
        Raises what the first worker could not begin for, InputError where a port cannot be had, and ConvserveError
        where a worker dies again and again.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, stop.set)
        host = self._host.strip("[]")
        with ExitStack() as held:
            self._port = held.enter_context(reserved_port(host, self._port))
            if self._http_port is not None:
                self._http_port = held.enter_context(reserved_port(host, self._http_port))
            try:
                # not cut short, since a process half begun would be nobody's
                for number in range(1, self._count + 1):
                    self._serving.append(await self._begin(number, restarted=False))
                serving, stopping = self._run(self._serve(on_start)), asyncio.create_task(stop.wait())
                await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if serving.done():
                    await serving
            finally:
                tasks = list(self._tasks)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.gather(*map(self._ended, self._alive))

    async def _serve(self, on_start: Callable[[str, str, list[str]], None]) -> None:
        await asyncio.gather(*(worker.prepared for worker in self._serving))
        found = await asyncio.gather(*(worker.control.ask("listen") for worker in self._serving))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        on_start(found[0]["address"], found[0]["http_address"], found[0]["models"])
        if self._poll_s is not None:
            self._run(self._poll(self._poll_s))
        await asyncio.gather(*(self._run(self._keep(worker)) for worker in self._serving))

    # ---- processes

    async def _begin(self, number: int, *, restarted: bool) -> _Worker:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        # a service manager hears of the supervisor alone
        environment.pop("NOTIFY_SOCKET", None)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
            )
        prepared = asyncio.get_running_loop().create_future()
        handlers: dict[str, Any] = {}
        control = Control(handlers)
        await control.open(ours)
        worker = _Worker(number, process, control, asyncio.create_task(control.run()), prepared)
        handlers |= {
            "prepared": functools.partial(self._prepared, worker),
            "failed": functools.partial(self._failed, worker),
            "state": functools.partial(self._state, worker),
            "load": functools.partial(self._change, "load", worker),
            "unload": functools.partial(self._change, "unload", worker),
            "counts": self._counts,
        }
        self._alive.append(worker)
        self._run(self._watch(worker))
        unloaded = sorted({name for one in self._serving if one.state for name in one.state["unloaded"]})
        ports = {"port": self._port, "http_port": self._http_port}
        counted = [[*key, told] for key, told in self._left.get(number, {}).items()]
        before = {"restarted": restarted, "unloaded": unloaded, "counted": counted}
        control.tell("begin", number=number, ports=ports, before=before, **self._settings)
        return worker

    async def _watch(self, worker: _Worker) -> None:
        how = await worker.end()
        self._alive.remove(worker)
        if not worker.prepared.done():
            worker.prepared.set_exception(ConvserveError(f"worker {worker.number} {how} before it served"))
            # it may be that nobody waits for it any more
            worker.prepared.exception()

    async def _prepared(self, worker: _Worker) -> None:
        worker.prepared.set_result(None)

    async def _failed(self, worker: _Worker, *, kind: str, text: str) -> None:
        if not worker.prepared.done():
            worker.prepared.set_exception(getattr(errors, kind)(f"worker {worker.number}: {text}"))

    async def _ended(self, worker: _Worker) -> None:
        _terminate(worker)
        try:
            async with asyncio.timeout(self._grace_s + _LAST_WORDS_S):
                await worker.end()
        except TimeoutError:
            _log.error("worker %d did not end in time and is killed", worker.number)
            worker.process.kill()
            await worker.end()

    async def _keep(self, worker: _Worker) -> None:
        """Begin a worker again whenever it has died; ConvserveError where that is no help."""
        number, failures = worker.number, 0
        while True:
            how = await worker.end()
            self._leave(worker)
            long_life = time.monotonic() - worker.began_s > LONG_LIFE_S
            failures = 1 if long_life else failures + 1
            if failures == MOST_FAILURES:
                raise ConvserveError(f"worker {number} {how}, for the {failures}th time in a row; the server ends")
            delay = self._first_delay_s * 2 ** (failures - 1)
            _log.error("worker %d (process %d) %s; it begins again in %.3g s", number, worker.process.pid, how, delay)
            await asyncio.sleep(delay)
            async with self._changing:
                worker = await self._begin(number, restarted=True)
                try:
                    await worker.prepared
                    await worker.control.ask("listen")
                except ConvserveError as error:
                    _log.error("worker %d cannot begin: %s", number, error)
                    _terminate(worker)
                    continue
                self._serving.append(worker)
                worker.counted = self._left.pop(number, {})
                self._share(again=True)
                await self._refreshed(settled=False)
            _log.info("worker %d (process %d) serves again", number, worker.process.pid)

    def _leave(self, worker: _Worker) -> None:
        if worker in self._serving:
            self._serving.remove(worker)
            self._left[worker.number] = worker.counted
            self._share()

    def _run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- models

    async def _state(self, worker: _Worker, *, state: State) -> None:
        worker.state = state
        if worker in self._serving:
            self._share()

    def _share(self, *, again: bool = False) -> None:
        state = merged([worker.state for worker in self._serving])
        if again or state != self._shared:
            if state["complete"] and not self._ready:
                self._ready = True
                notify_ready()
            self._shared = state
            for worker in self._serving:
                worker.control.tell("hear", state=state)

    async def _change(self, what: str, asker: _Worker, *, name: str) -> None:
        # who asked goes first, so that what cannot be loaded changes nothing elsewhere
        async with self._changing:
            await self._each(what, first=asker, name=name)

    async def _each(self, what: str, *, first: _Worker | None = None, **arguments: Any) -> None:
        for worker in sorted(self._serving, key=lambda one: one is not first):
            try:
                await worker.control.ask(what, **arguments)
            except ServerUnavailable:
                # it has died, and will have the same when it has begun again
                continue

    async def _counts(self, *, model: str, version: str) -> list[Any]:
        """Return what all workers have counted; for one that has died what it told last, so that sums do not fall."""
        key, workers = (model, version), list(self._serving)
        asked = (worker.control.ask("counts", model=model, version=version) for worker in workers)
        for worker, one in zip(workers, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(one, dict):
                worker.counted[key] = one
        here = [worker.counted[key] for worker in self._serving if key in worker.counted]
        left = [its[key] for its in self._left.values() if key in its]
        # what has ended takes no memory any more
        return here + [{**its, "levels": {}} if "levels" in its else its for its in left]

    async def _refreshed(self, *, settled: bool) -> None:
        await self._each("refresh", settled=settled)

    async def _poll(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            async with self._changing:
                await self._refreshed(settled=True)

    def _reload(self) -> None:
        self._run(self._reloaded())

    async def _reloaded(self) -> None:
        for worker in self._serving:
            worker.control.tell("reload_access")
        async with self._changing:
            await self._refreshed(settled=False)


def _terminate(worker: _Worker) -> None:
    with suppress(ProcessLookupError):
        worker.process.terminate()


def divided(options: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the options of a server as each of count workers gets them: threads, queues and memory divided among them.

    Raises InputError where a memory budget does not suffice for so many.
    """
    mask = processors.affinity()
    available = min(len(mask), processors.quota(mask) or len(mask))
    if count > available:
        _log.warning("%d workers share %d processor(s): more than processors only take more memory", count, available)
    shares = {name: -(-options[name] // count) for name in ("max_running", "max_waiting")}
    if options["threads"] is None and settings.get("THREADS") is None:
        shares["threads"] = max(1, available // count)
    if options["memory_budget"] is not None:
        share = (options["memory_budget"] - OWN_BYTES) // count
        if share < (least := int(RANGES["memory_budget"][0])):
            raise InputError(
                f"the memory budget is {options['memory_budget']} bytes; {count} workers and what keeps them take at"
                f" least {count * least + OWN_BYTES}"
            )
        shares["memory_budget"] = share
    return {**options, **shares}


def merged(states: Sequence[State | None]) -> State:
    """Return what workers' states are together; None stands for a worker that has told nothing yet.

    A version of a model is READY if it is in all of them, UNAVAILABLE if no worker is loading it, else LOADING.
    """
    told = [state for state in states if state is not None]
    tables = [{(name, version): (what, why) for name, version, what, why in state["index"]} for state in told]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    versions = {name for name, version in keys if version}
    index = []
    for name, version in keys:
        if not version and name in versions:
            continue
        found = [table.get((name, version), ("LOADING", "")) for table in tables]
        found += [("LOADING", "")] * (len(states) - len(told))
        kinds = {what for what, _ in found}
        kind = kinds.pop() if len(kinds) == 1 else "LOADING" if "LOADING" in kinds else "UNAVAILABLE"
        index.append([name, version, kind, next((why for _, why in found if why), "")])
    return {
        "complete": 0 < len(told) == len(states) and all(state["complete"] for state in told),
        "known": list(dict.fromkeys(name for state in told for name in state["known"])),
        "index": index,
    }
