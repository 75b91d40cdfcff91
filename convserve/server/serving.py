"""One listening server: its address, its threads, its limits, and how it drains."""

import asyncio
import gc
import ipaddress
import logging
import resource
import signal
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from convserve.errors import ConvserveError, InputError
from convserve.optional import optional
from convserve.server.access import Access
from convserve.server.admission import Admission
from convserve.server.batching import Batcher
from convserve.server.heap import keep_heap_small, set_objects_aside, trim_heap
from convserve.server.inference import Inference
from convserve.server.interceptors import ErrorInterceptor
from convserve.server.ledger import Ledger
from convserve.server.limits import Limits
from convserve.server.notify import notify_ready
from convserve.server.open_inference import OpenInferenceService, add_open_inference
from convserve.server.repository import SETTLED_S, Repository
from convserve.server.runs import Runs
from convserve.server.service import ConvserveService
from convserve.server.standard import CONVSERVE, Health, add_reflection
from convserve.server.statistics import Statistics, levels_of
from convserve.server.tls import Certificates
from convserve.server.tracing import NoTracing
from convserve.server.worker import Worker
from convserve.wire.convserve_pb2_grpc import add_ConvserveServicer_to_server
from convserve.wire.open_inference import OPEN_INFERENCE

if TYPE_CHECKING:
    from convserve.server.http_listener import HttpListener

__all__ = ["Server", "serve"]

# Calls beyond the engine's queue: those that are being refused, health watches, reflection.
_LIGHT_CALLS = 256
_LAST_WORDS_S = 0.2
_MOST_DESCRIPTORS = 1 << 16

_log = logging.getLogger("convserve.server")


class Server:
    """A gRPC server over a repository, to be used inside one event loop."""

    def __init__(
        self,
        repository: Repository,
        *,
        host: str = "127.0.0.1",
        port: int = 8500,
        http_port: int | None = None,
        limits: Limits | None = None,
        on_rest: Callable[[], None] | None = None,
        on_ready: Callable[[], None] | None = None,
        poll_s: float | None = None,
        certificates: Certificates | None = None,
        access: Access | None = None,
        tracing: NoTracing | None = None,
        shares_port: bool = False,
    ) -> None:
        """Prepare a server on host:port; port 0 takes a free one.

        http_port: of REST, health and metrics, on the same host; None for none, 0 for a free one.
        on_rest: called when work has ended for a while. on_ready: called once, when every model was tried.
        poll_s: seconds between looks at the repository's folder. certificates: to speak TLS, None for plain text.
        access: who may call, None for everybody. tracing: where calls leave traces. shares_port: other processes
        listen there as well, and the system shares connections among them.
        """
        for name, value in (("port", port), ("http_port", http_port or 0)):
            if not 0 <= value <= 65535:
                raise InputError(f"{name} is {value}; allowed: 0 to 65535")
        self._host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        self._wanted_port = port
        self._limits = limits or Limits()
        self._repository = repository
        ledger = Ledger(self._limits.memory_budget, relieve=self._give_back)
        self._limits = self._limits.within(ledger.capacity_bytes)
        self._on_rest = on_rest
        self._admission = Admission(
            max_running=self._limits.max_running,
            max_waiting=self._limits.max_waiting,
            ledger=ledger,
            on_rest=self._rest,
        )
        self._batcher = Batcher(
            self._admission, max_batch=self._limits.max_batch, max_delay_s=self._limits.max_delay_s
        )
        runs = Runs(self._admission, self._batcher)
        self.statistics = Statistics()
        """Of this process's requests."""
        self.statistics.levels = partial(levels_of, self._admission)
        self._tracing = tracing or NoTracing()
        if tracing is not None:
            self.statistics.on_record = tracing.record
        self._service = ConvserveService(repository, self._admission, runs, self._limits, self.statistics)
        self._certificates, self._access, self._on_ready = certificates, access, on_ready
        self._inference = Inference(repository, self._admission, runs, self._limits, self.statistics)
        self._open_inference = OpenInferenceService(self._inference, self._admission, self._limits)
        self._interceptor = ErrorInterceptor(ledger, self._limits, self.statistics, access, self._tracing)
        self._server: grpc.aio.Server | None = None
        self._poll_s = poll_s
        self._shares_port = shares_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._http = None if http_port is None else self._http_listener(http_port)
        self.address = ""
        """host:port that the server listens on, known after start()."""
        self.http_address = ""
        """The same of the HTTP port, "" where there is none."""

    def _http_listener(self, port: int) -> "HttpListener":
        for module in ("uvicorn", "starlette", "prometheus_client"):
            optional(module, "http_port serves REST and metrics", extra="http")
        from convserve.server.http_listener import HttpListener
        from convserve.server.rest import application

        paths = application(
            self._open_inference, self._inference, self._admission, self._limits, self._access, self._tracing
        )
        return HttpListener(
            paths, host=self._host, port=port, certificates=self._certificates, shares_port=self._shares_port
        )

    async def start(self) -> str:
        """Listen, and return the address as host:port; InputError where that is not possible."""
        most_calls = self._limits.max_running + self._limits.max_waiting + _LIGHT_CALLS
        server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=[
                # without so_reuseport=0 two servers would share a port without a word
                ("grpc.so_reuseport", int(self._shares_port)),
                ("grpc.max_receive_message_length", self._limits.message_bytes),
                ("grpc.max_send_message_length", -1),
                # above the bound of calls, beyond which gRPC says RESOURCE_EXHAUSTED; of streams it says nothing
                ("grpc.max_concurrent_streams", 2 * most_calls),
                # else windows grow with the network's speed, and with them what comes unread
                ("grpc.http2.bdp_probe", int(self._limits.memory_budget is None)),
                # a client whose machine has gone is found out within 40 s
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.max_pings_without_data", 0),
                # connections that only stay open: before they speak gRPC, and without a call afterwards
                ("grpc.server_handshake_timeout_ms", 20_000),
                ("grpc.max_connection_idle_ms", 600_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ],
            maximum_concurrent_rpcs=most_calls,
        )
        add_ConvserveServicer_to_server(self._service, server)
        add_open_inference(self._open_inference, server)
        self._health = Health(server, self._repository, [CONVSERVE, OPEN_INFERENCE])
        add_reflection(server)
        wanted = f"{self._host}:{self._wanted_port}"
        try:
            if self._certificates is None:
                port = server.add_insecure_port(wanted)
            else:
                port = server.add_secure_port(wanted, self._certificates.credentials())
        except RuntimeError as error:
            raise InputError(f"cannot listen on {wanted}; it is in use, not allowed, or no address here") from error
        if self._http is not None:
            self.http_address = await self._http.start()
        await server.start()
        self._server = server
        self.address = f"{self._host}:{port}"
        loop = asyncio.get_running_loop()

        def listener() -> None:
            # a model may become ready when the loop has ended already
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._look_at_models)

        self._repository.listen(listener)
        await self._tell_health()
        self._keep(self._plan_batches())
        if not self._repository.complete:
            self._refresh()
        if self._poll_s is not None:
            self._keep(self._poll(self._poll_s))
        return self.address

    def _give_back(self) -> None:
        # failed calls leave circles of exceptions and frames, which hold images
        gc.collect()
        self._repository.release_idle()
        trim_heap()

    def _rest(self) -> None:
        gc.collect()
        if self._limits.memory_budget is not None:
            self._repository.release_idle()
        if self._on_rest is not None:
            self._on_rest()

    def reload(self) -> None:
        """Read the tokens again, and begin to bring every model to what the repository has by now; returns at once."""
        self.reload_access()
        self._refresh()

    def reload_access(self) -> None:
        """Read the tokens again, if there are any."""
        if self._access is not None:
            self._access.reload()

    def _refresh(self) -> None:
        self._keep(asyncio.to_thread(self._repository.refresh))

    async def _poll(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self._repository.refresh, settled_s=SETTLED_S)

    async def _tell_health(self) -> None:
        await self._health.tell()
        if self._repository.complete and self._on_ready is not None:
            on_ready, self._on_ready = self._on_ready, None
            on_ready()

    def _look_at_models(self) -> None:
        self._keep(self._tell_health())
        self._keep(self._plan_batches())

    async def _plan_batches(self) -> None:
        # before a request has to wait for it
        for name in self._repository.names:
            with suppress(ConvserveError):
                await asyncio.to_thread(self._batcher.joint, self._repository.model(name).model)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, grace_s: float = 30.0) -> None:
        """Say NOT_SERVING, refuse new calls, let those in work end within grace_s seconds, cancel the rest."""
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            self._open_inference.drain()
            with suppress(TimeoutError):
                # a watch that is not read must not hold the others up
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._health.drain()
            stopping = asyncio.create_task(self._server.stop(grace_s))
            idle = asyncio.create_task(self._interceptor.idle())
            closing = None if self._http is None else asyncio.create_task(self._http.drain(grace_s))
            await asyncio.wait([stopping, idle], return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            if closing is not None:
                await closing
            # health watches never end by themselves
            await self._server.stop(_LAST_WORDS_S)
            await stopping
        self._admission.close()
        await asyncio.to_thread(self._tracing.close)


def serve(
    repository: Repository,
    *,
    host: str = "127.0.0.1",
    port: int = 8500,
    http_port: int | None = None,
    limits: Limits | None = None,
    grace_s: float = 30.0,
    poll_s: float | None = None,
    certificates: Certificates | None = None,
    access: Access | None = None,
    tracing: NoTracing | None = None,
    on_start: Callable[[str, str], None] = print,
    worker: Worker | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; SIGHUP reads repository and tokens again.

    on_start is called with host:port of gRPC and of HTTP ("" for none) once it listens; the models of a folder are
    loaded after that, and then a service manager is told that the server is ready (NOTIFY_SOCKET). worker: one of
    several that share the ports; its supervisor says when to listen, what to read again, and handles SIGINT and SIGHUP.

    The process is the server's: its C heap is set up to give back what it does not use.
    """
    keep_heap_small()
    _take_descriptors()
    # of strange pictures, one for each text: clients would fill the log with them
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if not _is_loopback(host) and (certificates is None or access is None):
        missing = [name for name, one in (("TLS", certificates), ("tokens", access)) if one is None]
        _log.warning("listening beyond this machine, on %s, without %s", host, " and without ".join(missing))
    server = Server(
        repository,
        host=host,
        port=port,
        http_port=http_port,
        limits=limits,
        on_rest=trim_heap,
        on_ready=notify_ready,
        poll_s=poll_s,
        certificates=certificates,
        access=access,
        tracing=tracing,
        shares_port=worker is not None,
    )
    asyncio.run(_serve(server, grace_s, on_start, worker))


def _take_descriptors() -> None:
    # each connection takes one, and 1024 are soon held by idle clients
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


async def _serve(
    server: Server, grace_s: float, on_start: Callable[[str, str], None], worker: Worker | None
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if worker is not None:
        await worker.follow(server, stop)
    else:
        loop.add_signal_handler(signal.SIGINT, stop.set)
        address = await server.start()
        loop.add_signal_handler(signal.SIGHUP, server.reload)
        set_objects_aside()
        on_start(address, server.http_address)
        await stop.wait()
    await server.drain(grace_s)
