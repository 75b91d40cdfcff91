"""python -m benchmarks.run: every network on every engine, as tables, JSON and a chart."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console

from benchmarks.chart import draw_chart
from benchmarks.engines import ENGINES, installed
from benchmarks.machine import describe_machine, measure_limits
from benchmarks.measure import compare
from benchmarks.networks import NETWORKS, title_of
from benchmarks.process import ROOT
from benchmarks.report import limits_text, one_line, result_tables
from convserve.cli.arguments import count
from convserve.engine.team import available_threads

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Time networks on convserve and its peers, float32, each in a process of its own, runs in turn.",
    )
    networks = f"of {', '.join(NETWORKS)}, or .onnx files (default: all)"
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NET", help=networks)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="E", help=f"of {', '.join(ENGINES)}; as here")
    threads = sorted({1, min(2, available_threads())})
    parser.add_argument("--threads", type=count, nargs="+", default=threads, metavar="N", help="default 1 and 2")
    parser.add_argument("--batch", type=count, nargs="+", default=[1, 8], metavar="N", help="default 1 and 8")
    parser.add_argument("--runs", type=count, default=20, metavar="N", help="timed runs of each engine (default 20)")
    parser.add_argument("--warm", type=count, default=3, metavar="N", help="runs before those (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and results there")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the most threads, smallest batch there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 where an engine failed or gave another output."""
    parser = _parser()
    options = parser.parse_args(argv)
    for network in options.networks:
        if network not in NETWORKS and not Path(network).is_file():
            parser.error(f"no network {network!r}; known: {', '.join(NETWORKS)}, or give an .onnx file")
    here = installed()
    engines = options.engines or here
    for engine in engines:
        if engine not in here:
            parser.error(f"{ENGINES[engine].title} is not installed; here are {', '.join(here)}")
    progress = Console(stderr=True, highlight=False)
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "limits": measure_limits(options.threads),
        "versions": {engine: ENGINES[engine].version() for engine in engines},
        "results": [],
    }
    for network in options.networks:
        for result in _measured(network, engines, options):
            document["results"].append({"network": network, "title": title_of(network), **result})
            progress.print(one_line(document["results"][-1]), soft_wrap=True)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 140)
    for table in result_tables(document):
        console.print(table)
    console.print(limits_text(document), soft_wrap=True)
    if options.chart:
        options.chart.parent.mkdir(parents=True, exist_ok=True)
        draw_chart(document).save(options.chart)
    for path in filter(None, (options.json, options.chart)):
        console.print(f"wrote {path}")
    return int(any("error" in one for result in document["results"] for one in result["engines"].values()))


def _measured(network: str, engines: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    with tempfile.TemporaryDirectory(prefix="convserve-bench-") as name:
        folder = Path(name)
        path = network if network in NETWORKS else str(Path(network).resolve())
        batches = sorted({1, *options.batch})
        _child("benchmarks.networks", path, name, "--batch", *map(str, batches))
        if "convserve" in engines:
            _child("convserve", "import", str(folder / "batch1.onnx"), "-o", str(folder / "net.convserve"))
        sizes = _image_size(folder / "batch1.onnx")
        for threads in options.threads:
            for batch in options.batch:
                files = {engine: folder / _file_of(engine, batch) for engine in engines}
                shape = (batch, *sizes)
                results.append(
                    compare(
                        files, threads=threads, shape=shape, runs=options.runs, warm_runs=options.warm, folder=folder
                    )
                )
    return results


def _file_of(engine: str, batch: int) -> str:
    return "net.convserve" if ENGINES[engine].suffix == ".convserve" else f"batch{batch}.onnx"


def _child(module: str, *arguments: str) -> None:
    # in a process of its own, so that this one stays small while others are measured
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _image_size(path: Path) -> tuple[int, ...]:
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    image = next(value for value in graph.input if value.name not in constants)
    sizes = tuple(dim.dim_value for dim in image.type.tensor_type.shape.dim[1:])
    if len(sizes) != 3 or 0 in sizes:
        raise SystemExit(f"the input of {path.name} is {sizes}; it must have a channel count, a height and a width")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
