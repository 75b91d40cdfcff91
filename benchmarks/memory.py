"""python -m benchmarks.memory: what runs take, planned and measured, beside the peers on the same work."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.engines import ENGINES, installed
from benchmarks.machine import describe_machine
from benchmarks.memory_cases import FULL, SHORT, Case
from benchmarks.memory_table import memory_table
from benchmarks.process import ROOT, EngineProcess, WorkerError
from benchmarks.residency import Sampler
from benchmarks.servers import after_classifications, two_servers
from convserve.cli.arguments import count

__all__ = ["Networks", "main"]

Row = dict[str, Any]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description="Measure the memory of runs, maps, streams and servers, each in a process of its own.",
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="E", help=f"of {', '.join(ENGINES)}; as here")
    parser.add_argument("--cases", nargs="+", choices=[case.key for case in FULL], metavar="C", help="default: all")
    parser.add_argument("--threads", type=count, default=2, metavar="N", help="default 2")
    parser.add_argument("--short", action="store_true", help="small networks, images and numbers, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and results there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 where a figure is not reached or an engine failed."""
    options = _parser().parse_args(argv)
    engines = options.engines or installed()
    cases = [case for case in (SHORT if options.short else FULL) if case.key in (options.cases or [case.key])]
    progress = Console(stderr=True, highlight=False)
    document: Row = {
        "machine": describe_machine(),
        "versions": {engine: ENGINES[engine].version() for engine in engines},
        "results": [],
    }
    with tempfile.TemporaryDirectory(prefix="convserve-memory-") as name:
        folder = Networks(Path(name))
        for number, case in enumerate(cases, 1):
            progress.print(f"{number} of {len(cases)}: {case.title}")
            for row in _measured(case, folder, engines, options.threads):
                document["results"].append({"case": case.key, "title": case.title, **row})
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(memory_table(document))
    if options.json:
        console.print(f"wrote {options.json}")
    return int(any("error" in row or row.get("met") is False for row in document["results"]))


class Networks:
    """Files of networks, each written when it is first asked for, by a process that ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def onnx(self, network: str) -> Path:
        """Return the ONNX file of a network."""
        folder = self._folder / network
        if not folder.is_dir():
            folder.mkdir()
            _child("benchmarks.networks", network, str(folder))
        return folder / "batch1.onnx"

    def container(self, network: str) -> Path:
        """Return the native container of a network."""
        path = self._folder / network / "net.convserve"
        if not path.exists():
            source = self.onnx(network)
            _child("convserve", "import", str(source), "-o", str(path))
        return path


def _child(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise WorkerError(f"{module} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ''}")
    return done.stdout


def _measured(case: Case, networks: Networks, engines: list[str], threads: int) -> Iterator[Row]:
    if "convserve" in engines:
        for algorithm in case.algorithms:
            row: Row = {"engine": "convserve", "algorithm": algorithm}
            try:
                yield case.judged({**row, **_own(case, networks.container(case.network), algorithm, threads)})
            except WorkerError as error:
                yield {**row, "error": str(error)}
    for engine in engines if case.peer_network else []:
        if engine != "convserve":
            try:
                shape = (1, 3, *case.peer_size)
                yield {"engine": engine, **_peer(engine, networks.onnx(case.peer_network), threads, shape, case.runs)}
            except WorkerError as error:
                yield {"engine": engine, "error": str(error)}


def _own(case: Case, net: Path, algorithm: str, threads: int) -> Row:
    if case.kind == "server":
        return after_classifications(net, (*case.size, 3), case.runs, "--threads", str(threads))
    if case.kind == "servers":
        return two_servers(net, (*case.size, 3), "--threads", str(threads))
    asked = {
        "kind": case.kind,
        "net": str(net),
        "algorithm": algorithm,
        "threads": threads,
        "smallest": case.smallest,
        "height": case.size[0],
        "width": case.size[1],
        "runs": case.runs,
    }
    found: Row = json.loads(_child("benchmarks.memory_worker", json.dumps(asked)))
    return found


def _peer(engine: str, path: Path, threads: int, shape: tuple[int, ...], runs: int) -> Row:
    with EngineProcess(engine, path, threads, shape) as process:
        process.ask("load")
        loaded = process.memory()["anonymous_bytes"]
        seconds = []
        with Sampler(process.pid) as sampler:
            process.ask("warm", runs=1)
            for _ in range(runs):
                seconds.append(process.ask("run")["seconds"])
        return {
            "taken_bytes": sampler.peak_bytes - loaded,
            "process_bytes": sampler.peak_bytes,
            "seconds": min(seconds),
        }


if __name__ == "__main__":
    sys.exit(main())
