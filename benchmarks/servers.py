"""Memory of real servers: one after many classifications, and two of them that share a network's file."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.process import ROOT
from benchmarks.residency import Sampler, proportional_bytes, resident_memory
from convserve.client import Client

__all__ = ["Serving", "after_classifications", "serving", "two_servers"]


@dataclass(frozen=True, slots=True)
class Serving:
    """A server in a process of its own."""

    pid: int
    address: str


@contextmanager
def serving(net: Path, *options: str) -> Iterator[Serving]:
    """Run `convserve serve net` with more options on a free port, and stop it at the end."""
    command = [sys.executable, "-m", "convserve", "serve", str(net), "--port", "0", "--json", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        try:
            yield Serving(process.pid, _address(process))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            return str(json.loads(text)["address"])
    raise RuntimeError(f"the server ended with code {process.wait()} before it listened")


def after_classifications(net: Path, window: tuple[int, int, int], count: int, *options: str) -> dict[str, Any]:
    """Return what of a server is resident after `count` classifications of random images (height, width, channels).

    Keys: those of resident_memory, peak_bytes (the most anonymous memory of all the time), classifications.
    """
    image = np.random.default_rng(0).integers(0, 256, window, np.uint8)
    with serving(net, *options) as server, Client(server.address, timeout=600) as client:
        with Sampler(server.pid, every_s=0.01) as sampler:
            for _ in range(count):
                client.classify(image)
        return {**resident_memory(server.pid), "peak_bytes": sampler.peak_bytes, "classifications": count}


def two_servers(net: Path, window: tuple[int, int, int], *options: str) -> dict[str, Any]:
    """Return the proportional set sizes of two servers of one file that have both classified, and the file's size."""
    image = np.random.default_rng(0).integers(0, 256, window, np.uint8)
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(net, *options)) for _ in range(2)]
        for server in servers:
            with Client(server.address, timeout=600) as client:
                for _ in range(5):
                    client.classify(image)
        sizes = [proportional_bytes(server.pid) for server in servers]
    return {"proportional_bytes": sum(sizes), "each": sizes, "file_bytes": net.stat().st_size}
