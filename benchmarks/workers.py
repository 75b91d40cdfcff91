"""python -m benchmarks.workers: a server with one and with several worker processes, asked by others in turn.

Each caller has a connection of its own, so that there are connections to share. How busy the callers keep the machine
counts too: they compute on the same processors.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.process import ROOT
from benchmarks.serving_ask import ask, question_of
from benchmarks.serving_engines import Served, running
from benchmarks.summary import machine_text
from convserve.cli.arguments import count

__all__ = ["main"]

Row = dict[str, Any]

NETWORKS = ("lenet", "squeezenet", "alexnet")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers",
        description="Ask servers with different numbers of worker processes as fast as they answer, in turn.",
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NET", default=NETWORKS)
    parser.add_argument("--workers", nargs="+", type=count, metavar="N", default=[1, 2], help="default: 1 2")
    parser.add_argument("--callers", type=count, default=8, metavar="N", help="processes that ask (default 8)")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="turns of each server (default 3)")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="of each turn (default 5)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parser().parse_args(argv)
    document: Row = {"machine": describe_machine(), "versions": {}}
    table = Table(
        title=f"Worker processes, {options.callers} callers",
        caption=f"{options.rounds} turns of {options.seconds:g} s, in turn; a second: requests, median and best turn; "
        "ratio: of the medians, to the first;\np99: median turn; core ms: processor time of the server for each "
        f"request; MiB: anonymous memory of all its processes.\n{machine_text(document)}",
    )
    table.add_column("network")
    for heading in ("workers", "a second", "best", "ratio", "p99 ms", "core ms", "MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    with tempfile.TemporaryDirectory(prefix="convserve-workers-") as home:
        for network in options.networks:
            rows = _measured(_container(Path(home), network), options)
            for row in rows:
                cells = [f"{row['median']:.0f}", f"{row['best']:.0f}", f"{row['median'] / rows[0]['median']:.2f}"]
                cells += [f"{1e3 * row['p99_s']:.1f}", f"{1e3 * row['processor_s']:.2f}", f"{row['mib']:.0f}"]
                table.add_row("" if row is not rows[0] else network, str(row["workers"]), *cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0


def _container(home: Path, network: str) -> Path:
    folder = home / network
    folder.mkdir()
    source = network
    if network == "squeezenet":
        subprocess.run([sys.executable, "-m", "benchmarks.networks", network, str(folder)], cwd=ROOT, check=True)
        source = str(folder / "batch1.onnx")
    command = [sys.executable, "-m", "convserve", "import", source, "-o", str(folder / "net.convserve")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def _measured(folder: Path, options: argparse.Namespace) -> list[Row]:
    question = {**question_of(folder), "callers": 1, "send": "tensor"}
    turns: list[list[Row]] = [[] for _ in options.workers]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running("convserve", folder, "--workers", str(number))) for number in options.workers
        ]
        for server in servers:
            # plans are made, and callers' modules are in the page cache
            _turn(server, {**question, "seconds": min(1.0, options.seconds)}, options.callers)
        for _ in range(options.rounds):
            for server, its in zip(servers, turns, strict=True):
                its.append(_turn(server, {**question, "seconds": options.seconds}, options.callers))
        mib = [server.anonymous_bytes() / 2**20 for server in servers]
    return [
        {
            "workers": number,
            "mib": size,
            "best": max(turn["rate"] for turn in its),
            **{name: median(turn[name] for turn in its) for name in ("p99_s", "processor_s")},
            "median": median(turn["rate"] for turn in its),
        }
        for number, size, its in zip(options.workers, mib, turns, strict=True)
    ]


def _turn(server: Served, asked: Row, callers: int) -> Row:
    before = server.processor_seconds()
    with ThreadPoolExecutor(callers) as pool:
        found = list(pool.map(lambda _: ask(server, asked), range(callers)))
    latencies = sorted(latency for one in found for latency in one["latencies_s"])
    return {
        "rate": sum(one["answered"] / one["seconds"] for one in found),
        "p99_s": latencies[int(0.99 * len(latencies))],
        "processor_s": (server.processor_seconds() - before) / len(latencies),
    }


if __name__ == "__main__":
    sys.exit(main())
