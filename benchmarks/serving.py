"""python -m benchmarks.serving: requests a second and latency of servers, ours beside peers, taken in turn."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.process import ROOT, WorkerError
from benchmarks.serving_engines import PEERS, Served, peers_python, running
from benchmarks.summary import machine_text
from convserve.cli.arguments import count
from convserve.loading import load

__all__ = ["CASES", "Case", "main"]

Row = dict[str, Any]
TITLES = {"convserve": "convserve", "simple": "twenty lines", "mlserver": "MLServer"}


@dataclass(frozen=True, slots=True)
class Case:
    """So many callers of one network. at_least: ratios of requests a second to peers that are to be reached.

    send: what a caller sends; where we take photographs, peers are sent what the caller has decoded.
    """

    key: str
    network: str
    callers: int
    at_least: dict[str, float]
    send: str = "tensor"

    @property
    def title(self) -> str:
        """What tables call it."""
        what = {"tensor": "float32 tensors", "jpeg": "photographs"}[self.send]
        return f"{self.network}, {self.callers} caller{'s' if self.callers > 1 else ''}, {what}"


CASES = (
    Case("squeezenet-1", "squeezenet", 1, {}),
    Case("squeezenet", "squeezenet", 8, {"mlserver": 4.0, "simple": 1.1}),
    Case("squeezenet-jpeg", "squeezenet", 8, {"simple": 1.2}, send="jpeg"),
    Case("alexnet-1", "alexnet", 1, {}),
    Case("alexnet", "alexnet", 8, {"simple": 3.0}),
    Case("vgg16", "vgg16", 8, {"simple": 1.8}),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Ask servers of one network as fast as they answer, in turn, and compare.",
    )
    keys = [case.key for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=keys, metavar="C", default=keys, help=f"of {', '.join(keys)}")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="turns of each server (default 3)")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="of each turn (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and results there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 where a ratio is not reached or a server failed."""
    options = _parser().parse_args(argv)
    progress = Console(stderr=True, highlight=False)
    document: Row = {"machine": describe_machine(), "peers": _versions(), "results": []}
    with tempfile.TemporaryDirectory(prefix="convserve-serving-") as name:
        for number, case in enumerate([case for case in CASES if case.key in options.cases], 1):
            progress.print(f"{number} of {len(options.cases)}: {case.title}")
            folder = _network(Path(name), case.network)
            document["results"] += _measured(case, folder, options)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 140).print(_table(document))
    return int(any(row.get("met") is False or "error" in row for row in document["results"]))


def _versions() -> dict[str, str]:
    names = ("mlserver", "onnxruntime", "tritonclient")
    text = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    done = subprocess.run([str(peers_python()), "-c", text], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _network(home: Path, network: str) -> Path:
    folder = home / network
    if not folder.is_dir():
        folder.mkdir()
        for module, *arguments in (
            ("benchmarks.networks", network, str(folder)),
            ("convserve", "import", str(folder / "batch1.onnx"), "-o", str(folder / "net.convserve")),
        ):
            subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, capture_output=True)
    return folder


def _measured(case: Case, folder: Path, options: argparse.Namespace) -> list[Row]:
    graph = load(folder / "net.convserve").graph
    volume = graph.input_volume
    asked = {"model": "net", "input": graph.input_name, "shape": [1, volume.channels, volume.height, volume.width]}
    asked |= {"callers": case.callers, "seconds": options.seconds, "rate": 0}
    engines = ["convserve", *options.peers]
    turns: dict[str, list[Row]] = {engine: [] for engine in engines}
    with ExitStack() as stack:
        servers = {engine: stack.enter_context(running(engine, folder)) for engine in engines}
        for engine, server in servers.items():
            _turn(case, server, engine, {**asked, "seconds": 1.0})
        for _ in range(options.rounds):
            for engine, server in servers.items():
                turns[engine].append(_turn(case, server, engine, asked))
        anonymous = {engine: server.anonymous_bytes() for engine, server in servers.items()}
    rows = [_summary(case, engine, turns[engine], anonymous[engine]) for engine in engines]
    for row in rows[1:]:
        row["ratio"] = rows[0]["per_second"] / row["per_second"]
        row["at_least"] = case.at_least.get(row["engine"])
        if row["at_least"]:
            row["met"] = row["ratio"] >= row["at_least"]
    return rows


def _turn(case: Case, server: Served, engine: str, asked: Row) -> Row:
    send = "decoded" if case.send == "jpeg" and engine != "convserve" else case.send
    text = json.dumps({**asked, "address": server.address, "send": send})
    before = server.processor_seconds()
    command = [str(peers_python()), str(ROOT / "benchmarks" / "serving_load.py"), text]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise WorkerError(f"asking {engine} failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    found: Row = json.loads(done.stdout)
    found["processor_s"] = (server.processor_seconds() - before) / max(1, found["answered"])
    return found


def _summary(case: Case, engine: str, turns: list[Row], anonymous: int) -> Row:
    latencies = sorted(latency for turn in turns for latency in turn["latencies_s"])
    return {
        "case": case.key,
        "title": case.title,
        "engine": engine,
        "per_second": max(turn["answered"] / turn["seconds"] for turn in turns),
        "median_per_second": median(turn["answered"] / turn["seconds"] for turn in turns),
        "p50_s": latencies[len(latencies) // 2],
        "p99_s": latencies[int(0.99 * len(latencies))],
        "processor_s": median(turn["processor_s"] for turn in turns),
        "anonymous_bytes": anonymous,
    }


def _table(document: Row) -> Table:
    table = Table(
        title="Servers beside one another",
        caption="a second: requests, best and median turn; core ms: processor time of the server for each request; MiB:"
        f" anonymous memory of all its processes\n{machine_text({**document, 'versions': {}})}, "
        + ", ".join(f"{name} {version}" for name, version in document["peers"].items()),
    )
    table.add_column("case")
    table.add_column("server", no_wrap=True)
    for heading in ("a second", "median", "p50 ms", "p99 ms", "core ms", "MiB", "ratio", "at least", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    before = ""
    for row in document["results"]:
        cells = [f"{row['per_second']:.1f}", f"{row['median_per_second']:.1f}"]
        cells += [f"{1e3 * row[key]:.1f}" for key in ("p50_s", "p99_s", "processor_s")]
        cells += [f"{row['anonymous_bytes'] / 2**20:.0f}"]
        cells += [f"{row[key]:.2f}" if row.get(key) else "" for key in ("ratio", "at_least")]
        met = {True: "ok", False: "MISSED"}.get(row.get("met"), "")
        table.add_row("" if row["case"] == before else row["title"], TITLES[row["engine"]], *cells, met)
        before = row["case"]
    return table


if __name__ == "__main__":
    sys.exit(main())
