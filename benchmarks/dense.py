"""python -m benchmarks.dense: score maps against crops, other strides, maps against the peers, scenes by rows."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.dense_cases import FULL, SHORT, DenseCase
from benchmarks.engines import ENGINES, installed
from benchmarks.machine import describe_machine
from benchmarks.measure import compare, statistics_of
from benchmarks.memory import Networks
from benchmarks.process import EngineProcess
from benchmarks.residency import Sampler
from benchmarks.scenes import make_scene, measure, measure_served
from benchmarks.summary import machine_text
from convserve.cli.arguments import count
from convserve.loading import build
from convserve.model import Model

__all__ = ["dense_table", "main", "markdown"]

Row = dict[str, Any]

PREDICTED_SHARE = 0.9
"""Of the ratio that a plan predicts, what has to be measured."""
MEMORY_SHARE = 15
"""How many times less anonymous memory than the fastest peer."""
SCENE_BYTES = 300 << 20
"""What a process may take that scores a scene."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 where a figure is not reached or an engine failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="E", help=f"of {', '.join(ENGINES)}; as here")
    keys = [case.key for case in (*FULL, *SHORT)]
    parser.add_argument("--cases", nargs="+", choices=keys, metavar="C", help="default: all")
    parser.add_argument("--threads", type=count, default=2, metavar="N", help="default 2")
    parser.add_argument("--short", action="store_true", help="small networks and images, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and results there")
    options = parser.parse_args(argv)
    engines = options.engines or installed()
    cases = [case for case in (SHORT if options.short else FULL) if case.key in (options.cases or [case.key])]
    document: Row = {"machine": describe_machine(), "threads": options.threads, "results": []}
    document["versions"] = {engine: ENGINES[engine].version() for engine in engines}
    progress = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="convserve-dense-") as name:
        for number, case in enumerate(cases, 1):
            progress.print(f"{number} of {len(cases)}: {case.title}")
            for row in _MEASURES[case.kind](case, engines, options.threads, Networks(Path(name)), Path(name)):
                document["results"].append({"case": case.key, "title": case.title, **row})
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 140).print(dense_table(document))
    return int(any("error" in row or row.get("met") is False for row in document["results"]))


def _judged(what: str, figure: float, least: float | None, **more: Any) -> Row:
    return {"what": what, "figure": figure, "least": least, "met": None if least is None else figure >= least, **more}


def _in_turn(runs: int, *work: Callable[[], object]) -> list[dict[str, Any]]:
    # all of them once unmeasured, then in turn: what slows the machine down for a while slows each
    seconds: list[list[float]] = [[] for _ in work]
    for number in range(runs + 1):
        for each, taken in zip(work, seconds, strict=True):
            start = time.perf_counter()
            each()
            if number:
                taken.append(time.perf_counter() - start)
    return [statistics_of(taken, 1) for taken in seconds]



def _model(case: DenseCase, threads: int) -> tuple[Model, np.ndarray]:
    model = build(case.network, algorithm=case.algorithm, threads=threads)
    channels = model.graph.input_volume.channels
    return model, np.random.default_rng(0).standard_normal((1, channels, case.size, case.size), np.float32)


def _against_crops(
    case: DenseCase, engines: list[str], threads: int, networks: Networks, folder: Path
) -> Iterator[Row]:
    model, x = _model(case, threads)
    place = model.score_map(x, classes=[0])
    height, width = place.window
    views = np.lib.stride_tricks.sliding_window_view(x[0], place.window, axis=(1, 2))
    views = views[:, :: place.stride[0], :: place.stride[1]].transpose(1, 2, 0, 3, 4)
    crops = np.ascontiguousarray(views).reshape(-1, x.shape[1], height, width)

    def every_crop() -> None:
        for begin in range(0, len(crops), case.batch):
            model.run(crops[begin : begin + case.batch])

    dense, cropped = _in_turn(case.runs, lambda: model.score_map(x), every_crop)
    ratio = cropped["best_ms"] / dense["best_ms"]
    median = cropped["median_ms"] / dense["median_ms"]
    yield _judged(f"map / {len(crops)} crops", ratio, case.least, median=median, first=dense, second=cropped)


def _ways(case: DenseCase, engines: list[str], threads: int, networks: Networks, folder: Path) -> Iterator[Row]:
    return _two_methods(case, threads, "atrous", "shifted", "à trous / shifted passes", PREDICTED_SHARE)


def _shared(case: DenseCase, engines: list[str], threads: int, networks: Networks, folder: Path) -> Iterator[Row]:
    return _two_methods(case, threads, "crops-shared", "crops", "crops-shared / crops", None)


def _two_methods(
    case: DenseCase, threads: int, faster: str, slower: str, what: str, least_share: float | None
) -> Iterator[Row]:
    model, x = _model(case, threads)
    predicted = {way.method: way.predicted_s for way in model.plan_ways(case.size, case.size, stride=case.stride)}
    expected = predicted[slower] / predicted[faster]
    first, second = _in_turn(
        case.runs,
        lambda: model.score_map(x, stride=case.stride, method=faster),
        lambda: model.score_map(x, stride=case.stride, method=slower),
    )
    ratio = second["best_ms"] / first["best_ms"]
    times = {"median": second["median_ms"] / first["median_ms"], "first": first, "second": second}
    yield _judged(what, ratio, case.least, **times)
    yield _judged("of the ratio that plan predicts", ratio / expected, least_share, predicted=expected)


def _against_peers(
    case: DenseCase, engines: list[str], threads: int, networks: Networks, folder: Path
) -> Iterator[Row]:
    wide = f"{case.network}-{case.size}"
    files = {
        engine: networks.container(case.network) if engine == "convserve" else networks.onnx(wide)
        for engine in engines
        if engine in ("convserve", "onnxruntime", "openvino")
    }
    shape = (1, 3, case.size, case.size)
    found = compare(files, threads=threads, shape=shape, runs=case.runs, warm_runs=1, folder=folder)["engines"]
    own = found["convserve"]
    if "error" in own:
        yield {"what": "convserve", "error": own["error"]}
        return
    memory = {engine: _peak(engine, path, threads, shape) for engine, path in files.items()}
    for engine, one in found.items():
        if engine == "convserve":
            continue
        name = ENGINES[engine].title
        if "error" in one:
            yield {"what": name, "error": one["error"]}
            continue
        times = {"median": one["median_ms"] / own["median_ms"], "first": own, "second": one}
        yield _judged(f"map / {name}", one["best_ms"] / own["best_ms"], case.least, **times)
    timed = [engine for engine, one in found.items() if engine != "convserve" and "best_ms" in one]
    if timed:
        fastest = min(timed, key=lambda engine: found[engine]["best_ms"])
        share = memory[fastest] / memory["convserve"]
        least = MEMORY_SHARE if case.least else None
        yield _judged(f"anonymous memory of {ENGINES[fastest].title} / ours", share, least, peak_bytes=memory)


def _peak(engine: str, path: Path, threads: int, shape: tuple[int, ...]) -> int:
    with EngineProcess(engine, path, threads, shape) as process:
        process.ask("load")
        with Sampler(process.pid) as sampler:
            process.ask("warm", runs=1)
            process.ask("run")
        return int(sampler.peak_bytes)


def _scene(case: DenseCase, engines: list[str], threads: int, networks: Networks, folder: Path) -> Iterator[Row]:
    path = folder / "scene.tif"
    make_scene(path, case.size)
    found = measure(case.network, path, folder / "map.zarr")
    served = measure_served(case.network, path, folder / "served.zarr")
    for what, one, key in (
        ("one process", found, "peak_anonymous_bytes"),
        ("a server", served, "server_peak_anonymous_bytes"),
        ("its client", served, "peak_anonymous_bytes"),
    ):
        taken = {"first": {"best_ms": 1000 * one["seconds"]}, "peak_bytes": one[key]}
        figure = SCENE_BYTES / one[key]
        yield _judged(f"{what}: 300 MiB / {one[key] / (1 << 20):.1f} MiB", figure, case.least, **taken)


_MEASURES = {
    "crops": _against_crops,
    "ways": _ways,
    "shared": _shared,
    "peers": _against_peers,
    "scene": _scene,
}


def dense_table(document: Row) -> Table:
    """Return one row for each figure."""
    table = Table(
        title="Score maps, float32: how many times faster, or less",
        caption=f"best of runs taken in turn; ratio of medians beside it\n{machine_text(document)}",
    )
    table.add_column("case")
    table.add_column("first / second")
    for heading in ("first ms", "second ms", "ratio", "median", "at least", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in document["results"]:
        table.add_row(row["title"], *_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return [row["what"], "failed", row["error"][:40]]
    times = [f"{row[name]['best_ms']:.1f}" if name in row else "" for name in ("first", "second")]
    figures = ["" if row.get(name) is None else f"{row[name]:.2f}" for name in ("figure", "median", "least")]
    return [row["what"], *times, *figures, {True: "ok", False: "MISSED", None: ""}[row["met"]]]


def markdown(document: Row) -> str:
    """Return the same as Markdown."""
    lines = ["| case | first / second | first ms | second ms | ratio | median | at least | |"]
    lines.append("|---|---|" + "---:|" * 6)
    lines += [f"| {row['title']} | " + " | ".join(_cells(row)) + " |" for row in document["results"]]
    return "\n".join([*lines, "", machine_text(document) + "."])


if __name__ == "__main__":
    sys.exit(main())
