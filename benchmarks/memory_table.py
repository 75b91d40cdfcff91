"""What the memory benchmark found, as a table on screen, or drawn again from its JSON as Markdown."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.engines import ENGINES
from benchmarks.summary import machine_text

__all__ = ["markdown", "memory_table"]

HEADINGS = ("planned", "taken", "process", "best ms", "figure", "at most", "")


def memory_table(document: dict[str, Any]) -> Table:
    """Return one row for each case and engine."""
    table = Table(
        title="Memory in MiB, float32",
        caption="planned: arena, scratch, scores held; taken: anonymous memory at its peak, above that before the run;"
        f" process: all of it\n{machine_text(document)}",
    )
    table.add_column("case")
    table.add_column("engine", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    before = ""
    rows = document["results"]
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1]["case"] != row["case"]
        style = "bold" if row["engine"] == "convserve" else ""
        table.add_row("" if row["case"] == before else row["title"], *_cells(row), style=style, end_section=last)
        before = row["case"]
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    name = ENGINES[row["engine"]].title
    if row.get("algorithm") == "gemm":
        name += ", gemm"
    if "error" in row:
        return [name, "failed", row["error"][:40]]
    process = row.get("process_bytes", row.get("anonymous_bytes"))
    seconds = row.get("seconds", row.get("default_s"))
    sizes = [_mebibytes(size) for size in (row.get("planned_bytes"), row.get("taken_bytes"), process)]
    met = {True: "ok", False: "MISSED"}.get(row.get("met"), "")
    figures = ["" if row.get(key) is None else f"{row[key]:.2f}" for key in ("figure", "limit")]
    return [name, *sizes, "" if seconds is None else f"{1e3 * seconds:.1f}", *figures, met]


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.2f}" if size < 100 << 20 else f"{size / 2**20:.0f}"


def markdown(document: dict[str, Any]) -> str:
    """Return the same as Markdown."""
    lines = [
        "| case | engine | planned | taken | process | best ms | figure | at most | |",
        "|---|---|" + "---:|" * 6 + "---|",
    ]
    lines += [f"| {row['title']} | " + " | ".join(_cells(row)) + " |" for row in document["results"]]
    return "\n".join([*lines, "", machine_text(document) + "."])


def main() -> None:
    """Show a JSON file of an earlier run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_table", description="Show an earlier benchmark.")
    parser.add_argument("file", type=Path, help="what benchmarks.memory --json wrote")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")
    options = parser.parse_args()
    document = json.loads(options.file.read_text(encoding="utf-8"))
    if options.markdown:
        print(markdown(document))
    else:
        Console().print(memory_table(document))


if __name__ == "__main__":
    main()
