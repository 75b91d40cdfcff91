"""What a benchmark found, as tables on screen, as Markdown for the README, and drawn again from its JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chart import draw_chart
from benchmarks.engines import ENGINES
from benchmarks.summary import geometric_means, machine_text, plural

__all__ = ["limits_text", "markdown", "one_line", "result_tables"]

Result = dict[str, Any]


def _settings(document: Result) -> list[tuple[int, int]]:
    return sorted({(result["threads"], result["batch"]) for result in document["results"]}, key=lambda s: (-s[0], s[1]))


def _results_of(document: Result, setting: tuple[int, int]) -> list[Result]:
    return [result for result in document["results"] if (result["threads"], result["batch"]) == setting]


def one_line(result: Result) -> str:
    """Return one comparison as a line: the best times, and convserve's ratio to the fastest peer."""
    times = []
    for engine, one in result["engines"].items():
        text = f"{one['best_ms']:.2f} ms" if "best_ms" in one else f"failed ({one['error']})"
        if "best_ms" in one and "error" in one:
            text += f" but {one['error']}"
        times.append(f"{ENGINES[engine].title} {text}")
    ratio = result["engines"].get("convserve", {}).get("ratio")
    tail = f"; ratio {ratio:.2f}" if ratio else ""
    setting = f"{plural(result['threads'], 'thread')}, batch {result['batch']}"
    return f"{result['title']}, {setting}: {', '.join(times)}{tail}"


def result_tables(document: Result) -> list[Table]:
    """Return one table for each number of threads and batch size."""
    tables = []
    for setting in _settings(document):
        results = _results_of(document, setting)
        threads, batch = setting
        table = Table(
            title=f"{plural(threads, 'thread')}, batch {batch}, float32,"
            f" best and median of {plural(results[0]['runs'], 'run')} in turn",
            caption="MiB: resident after load / after the runs; high: the most at any time",
        )
        table.add_column("network", no_wrap=True)
        table.add_column("engine", no_wrap=True)
        for heading in ("best ms", "median ms", "images/s", "ratio", "of medians", "load s", "to answer s"):
            table.add_column(heading, justify="right")
        for heading in ("anon MiB", "file MiB", "high MiB"):
            table.add_column(heading, justify="right")
        for result in results:
            for number, (engine, one) in enumerate(result["engines"].items()):
                style = "bold" if engine == "convserve" else ""
                last = number == len(result["engines"]) - 1
                table.add_row("" if number else result["title"], *_cells(engine, one), style=style, end_section=last)
        for number, (engine, mean) in enumerate(geometric_means(results).items()):
            table.add_row("" if number else "geometric mean", ENGINES[engine].title, "", "", "", f"{mean:.2f}")
        tables.append(table)
    return tables


def _cells(engine: str, one: Result) -> list[str]:
    title = ENGINES[engine].title
    if "best_ms" not in one:
        return [title, "failed"]
    loaded, after = one["memory"]["after_load"], one["memory"]["after_runs"]
    return [
        title,
        f"{one['best_ms']:.2f}",
        f"{one['median_ms']:.2f}",
        f"{one['images_per_s']:.1f}",
        *(f"{ratio:.2f}" if ratio else "" for ratio in (one["ratio"], one["median_ratio"])),
        f"{one['load_s']:.3f}",
        f"{one['first_answer_s']:.3f}",
        *(f"{loaded[kind] / 2**20:.0f}/{after[kind] / 2**20:.0f}" for kind in ("anonymous_bytes", "file_bytes")),
        f"{after['high_water_bytes'] / 2**20:.0f}",
    ]


def limits_text(document: Result) -> str:
    """Return machine, measured limits and what failed as text."""
    lines = [machine_text(document)]
    for threads, limits in document["limits"].items():
        lines.append(
            f"measured limits, {plural(int(threads), 'thread')}: {limits['peak_flops'] / 1e9:.0f} GFLOP/s,"
            f" reads {limits['read_bytes_per_s'] / 1e9:.1f} GB/s"
        )
    for result in document["results"]:
        for engine, one in result["engines"].items():
            if "error" in one:
                lines.append(
                    f"failed: {ENGINES[engine].title}, {result['title']}, {plural(result['threads'], 'thread')},"
                    f" batch {result['batch']}: {one['error']}"
                )
    stolen = max((result["stolen_share"] for result in document["results"]), default=0)
    lines.append(f"processors stolen by others while a network was measured: at most {stolen:.2f}")
    return "\n".join(lines)


def markdown(document: Result) -> str:
    """Return the best milliseconds and ratios as Markdown, one table for each number of threads and batch size."""
    engines = list(document["versions"])
    blocks = []
    for threads, batch in _settings(document):
        results = _results_of(document, (threads, batch))
        lines = [
            f"| {plural(threads, 'thread')}, batch {batch}: best ms | "
            + " | ".join(ENGINES[engine].title for engine in engines)
            + " | ratio to the fastest peer |",
            "|---|" + "---:|" * (len(engines) + 1),
        ]
        for result in results:
            times = [result["engines"][engine].get("best_ms") for engine in engines]
            ratio = result["engines"].get("convserve", {}).get("ratio")
            cells = ["failed" if one is None else f"{one:.2f}" for one in times] + [f"{ratio:.2f}" if ratio else ""]
            lines.append(f"| {result['title']} | " + " | ".join(cells) + " |")
        mean = geometric_means(results).get("convserve")
        if mean:
            lines.append("| geometric mean |" + " |" * len(engines) + f" {mean:.2f} |")
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, machine_text(document) + "."])


def main() -> None:
    """Show a JSON file of an earlier run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Show an earlier benchmark.")
    parser.add_argument("file", type=Path, help="what benchmarks.run --json wrote")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of tables")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the chart there")
    options = parser.parse_args()
    document = json.loads(options.file.read_text(encoding="utf-8"))
    if options.chart:

        draw_chart(document).save(options.chart)
    if options.markdown:
        print(markdown(document))
        return
    console = Console()
    for table in result_tables(document):
        console.print(table)
    console.print(limits_text(document), soft_wrap=True)


if __name__ == "__main__":
    main()
