"""python -m benchmarks.serving: servers under load, ours beside peers, taken in turn; what was to be reached."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from rich.console import Console

from benchmarks.machine import describe_machine
from benchmarks.process import ROOT, WorkerError
from benchmarks.serving_alone import idle, overloaded, starts
from benchmarks.serving_ask import ask, engine_core_s, question_of
from benchmarks.serving_cases import CASES, KEYS, OVERLOADS, Case
from benchmarks.serving_engines import PEERS, Served, peers_python, running
from benchmarks.serving_table import goals, goals_table, load_table, markdown
from convserve.cli.arguments import count
from convserve.wire.open_inference import METHODS, OPEN_INFERENCE

__all__ = ["main"]

Row = dict[str, Any]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Ask servers of one network as fast as they answer, in turn, and compare; then ask ours for more.",
    )
    parser.add_argument("--cases", nargs="+", choices=KEYS, metavar="C", default=KEYS, help=f"of {', '.join(KEYS)}")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="turns of each server (default 3)")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="of each turn (default 5)")
    parser.add_argument("--overload-seconds", type=float, default=60, metavar="S", help="of too many requests (60)")
    parser.add_argument("--deadline", type=float, default=2, metavar="S", help="each of them has at least (2)")
    parser.add_argument("--starts", type=count, default=7, metavar="N", help="of a server that is timed (default 7)")
    parser.add_argument("--short", action="store_true", help="one turn of a second each, a short overload, two starts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and results there")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show what --json has written")
    parser.add_argument("--markdown", action="store_true", help="print the figures as Markdown as well")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 where something was not reached or a server failed."""
    options = _parser().parse_args(argv)
    if options.short:
        options.rounds, options.seconds, options.overload_seconds, options.starts = 1, 1.0, 4.0, 2
    document = json.loads(options.show.read_text(encoding="utf-8")) if options.show else _measured_all(options)
    screen = Console(width=None if sys.stdout.isatty() else 140)
    for table in (load_table(document), goals_table(document)):
        if table.row_count:
            screen.print(table)
    if options.markdown:
        print(markdown(document))
    return int(any(row["met"] is False for row in goals(document)))


def _measured_all(options: argparse.Namespace) -> Row:
    progress = Console(stderr=True, highlight=False)
    document: Row = {"machine": describe_machine(), "peers": {}, "loads": [], "overloads": {}}
    document["callers"] = f"{options.rounds} turns of {options.seconds:g} s"
    with tempfile.TemporaryDirectory(prefix="convserve-serving-") as name:
        home = Path(name)
        for number, key in enumerate([key for key in KEYS if key in options.cases], 1):
            progress.print(f"{number} of {len(set(options.cases))}: {key}")
            for case in CASES:
                if case.key == key:
                    document["peers"] = _versions()
                    document["loads"] += _compared(case, _network(home, case.network), options)
            for overload in OVERLOADS:
                if overload.key == key:
                    folder = _network(home, overload.network)
                    document["overloads"][key] = overloaded(overload, folder, options)
            if key == "idle":
                document["idle"] = idle(_network(home, "squeezenet"))
            if key == "start":
                document["start"] = starts(_network(home, "vgg16"), options.starts)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _versions() -> dict[str, str]:
    names = ("mlserver", "onnxruntime", "tritonclient")
    text = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    try:
        done = subprocess.run([str(peers_python()), "-c", text], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise WorkerError("callers and peers have an environment of their own: make .venv-serving/made") from error
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _network(home: Path, network: str) -> Path:
    folder = home / network
    if not folder.is_dir():
        folder.mkdir()
        # pixels become values from 0 to 1, as for the caller who decodes
        container = ("-o", str(folder / "net.convserve"), "--scale", str(1 / 255))
        for module, *arguments in (
            ("benchmarks.networks", network, str(folder)),
            ("convserve", "import", str(folder / "batch1.onnx"), *container),
        ):
            subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, capture_output=True)
    return folder


def _compared(case: Case, folder: Path, options: argparse.Namespace) -> list[Row]:
    question, engines = question_of(folder), ["convserve", *options.peers]
    turns: dict[tuple[int, str], list[Row]] = {}
    images: dict[int, list[float]] = {callers: [] for callers in case.callers}
    engine_s: dict[int, list[float]] = {callers: [] for callers in case.callers}
    with ExitStack() as stack:
        servers = {engine: stack.enter_context(running(engine, folder)) for engine in engines}
        for round_number in range(options.rounds + 1):
            for callers in case.callers:
                for engine, server in servers.items():
                    send = "decoded" if case.send == "jpeg" and engine != "convserve" else case.send
                    # the first round is there to be warm
                    seconds = options.seconds if round_number else min(1.0, options.seconds)
                    before = _counts(server) if engine == "convserve" else (0, 0)
                    found = ask(server, {**question, "callers": callers, "seconds": seconds, "send": send})
                    if not round_number:
                        continue
                    turns.setdefault((callers, engine), []).append(found)
                    if engine == "convserve":
                        now = _counts(server)
                        images[callers].append((now[0] - before[0]) / max(1, now[1] - before[1]))
                        # in the same turn, since what else runs on a machine changes what processor time is worth
                        engine_s[callers].append(engine_core_s(folder, max(1, round(images[callers][-1]))))
        anonymous = {engine: server.anonymous_bytes() for engine, server in servers.items()}
    rows = []
    for callers in case.callers:
        for engine in engines:
            row = {"case": case.key, "network": case.network, "callers": callers, "send": case.send, "engine": engine}
            row |= _summary(turns[callers, engine]) | {"anonymous_bytes": anonymous[engine]}
            if engine == "convserve":
                row |= {"engine_core_s": median(engine_s[callers]), "images_a_run": median(images[callers])}
            rows.append(row)
    return rows


def _counts(server: Served) -> tuple[int, int]:
    # images and runs so far
    method = METHODS["ModelStatistics"]
    with grpc.insecure_channel(server.address) as channel:
        path = f"/{OPEN_INFERENCE}/ModelStatistics"
        ask_it = channel.unary_unary(path, method.request.SerializeToString, method.response.FromString)
        [told] = ask_it(method.request(name="net"), timeout=20).model_stats
    return told.inference_count, told.execution_count


def _summary(turns: list[Row]) -> Row:
    latencies = sorted(latency for turn in turns for latency in turn["latencies_s"])
    rates = [turn["answered"] / turn["seconds"] for turn in turns]
    return {
        "per_second": max(rates),
        "median_per_second": median(rates),
        "p50_s": latencies[len(latencies) // 2],
        "p99_s": latencies[int(0.99 * len(latencies))],
        "processor_s": median(turn["processor_s"] for turn in turns),
        "refused": sum(sum(turn["refused"].values()) for turn in turns),
    }


if __name__ == "__main__":
    sys.exit(main())
