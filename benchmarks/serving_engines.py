"""Servers to compare, each in a process of its own: ours, MLServer, and the twenty-line one around ONNX Runtime."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc

from benchmarks.process import ROOT, WorkerError
from benchmarks.residency import resident_memory

__all__ = ["PEERS", "Served", "peers_python", "running"]

PEERS = ("simple", "mlserver")
START_S = 120.0


def peers_python() -> Path:
    """Return the interpreter of the peers' environment, which `make bench-server` makes."""
    return ROOT / ".venv-serving" / "bin" / "python"


class Served:
    """A server that listens at address for a model called "net". start_s: from its command to its readiness."""

    def __init__(self, process: "subprocess.Popen[bytes]", address: str, start_s: float) -> None:
        self.address, self.start_s = address, start_s
        self._process = process

    def pids(self) -> list[int]:
        """Return the server's process and all that it started."""
        pids, new = [], [self._process.pid]
        while new:
            pid = new.pop()
            pids.append(pid)
            children = Path(f"/proc/{pid}/task/{pid}/children")
            new += [int(child) for child in children.read_text().split()] if children.exists() else []
        return pids

    def anonymous_bytes(self) -> int:
        """Return the resident anonymous memory of all processes."""
        total = 0
        for pid in self.pids():
            with suppress(FileNotFoundError, ProcessLookupError):
                total += resident_memory(pid)["anonymous_bytes"]
        return total

    def processor_seconds(self) -> float:
        """Return the processor time that all processes have used."""
        ticks = 0
        for pid in self.pids():
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def has_mapped(self, part: str) -> bool:
        """Return whether any process has mapped a file whose path has this part: a compiled module, for one."""
        return any(part in Path(f"/proc/{pid}/maps").read_text() for pid in self.pids())


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _home(folder: Path) -> Path:
    return folder / "mlserver"


def _command(engine: str, folder: Path, port: int, options: tuple[str, ...]) -> list[str]:
    onnx, container = folder / "batch1.onnx", folder / "net.convserve"
    if engine == "convserve":
        return [sys.executable, "-m", "convserve", "serve", f"net={container}", "--port", str(port), *options]
    if engine == "simple":
        return [str(peers_python()), str(ROOT / "benchmarks" / "simple_server.py"), str(port), str(onnx)]
    home = _home(folder)
    home.mkdir(exist_ok=True)
    # alone on the path: beside it lie modules whose names MLServer's own imports would meet
    shutil.copy(ROOT / "benchmarks" / "mlserver_model.py", home)
    ports = {"http_port": _free_port(), "grpc_port": port, "metrics_port": _free_port()}
    settings = {"host": "127.0.0.1", "debug": False, "grpc_max_message_length": 64 << 20, **ports}
    (home / "settings.json").write_text(json.dumps(settings))
    model = {"name": "net", "implementation": "mlserver_model.OnnxModel", "parameters": {"uri": str(onnx)}}
    (home / "model-settings.json").write_text(json.dumps(model))
    return [str(peers_python().with_name("mlserver")), "start", str(home)]


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


def _is_ready(engine: str, channel: grpc.Channel) -> bool:
    # ours by grpc.health.v1, others by ModelReady: for "net" both read and answer the same bytes
    ours = "grpc.health.v1.Health/Check"
    ask = channel.unary_unary("/" + (ours if engine == "convserve" else "inference.GRPCInferenceService/ModelReady"))
    try:
        return bool(ask(b"\x0a\x03net", timeout=2) == b"\x08\x01")
    except grpc.RpcError as error:
        # the twenty lines have no such method
        return bool(error.code() == grpc.StatusCode.UNIMPLEMENTED)


def _wait_until_ready(engine: str, process: "subprocess.Popen[bytes]", address: str) -> None:
    end = time.monotonic() + START_S

    def rest(seconds: float) -> None:
        if process.poll() is not None or time.monotonic() > end:
            raise WorkerError(f"{engine} was not ready within {START_S:.0f} s")
        time.sleep(seconds)

    # a channel that finds nobody waits a second before it tries again
    while not _listens(address):
        rest(0.002)
    with grpc.insecure_channel(address) as channel:
        while not _is_ready(engine, channel):
            rest(0.005)


@contextmanager
def running(engine: str, folder: Path, *options: str) -> Iterator[Served]:
    """Run "convserve" or one of PEERS over folder/batch1.onnx or folder/net.convserve until the block ends.

    options: of `convserve serve`. Raises WorkerError where it is not ready in time.
    """
    port = _free_port()
    environment = {**os.environ, "PYTHONPATH": str(_home(folder) if engine == "mlserver" else ROOT)}
    command, quiet = _command(engine, folder, port, options), subprocess.DEVNULL
    begin = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as process:
        try:
            address = f"127.0.0.1:{port}"
            _wait_until_ready(engine, process, address)
            yield Served(process, address, time.perf_counter() - begin)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
