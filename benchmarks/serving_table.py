"""What the benchmark of servers found, as tables: servers beside one another, and what was to be reached."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from benchmarks.networks import title_of
from benchmarks.serving_cases import CASES, OVERLOADS, title_of_load
from benchmarks.summary import machine_text

__all__ = ["goals", "goals_table", "load_table", "markdown"]

Row = dict[str, Any]

TITLES = {"convserve": "convserve", "simple": "twenty lines", "mlserver": "MLServer"}
MEMORY_GOALS = {"vgg16": 90}
IDLE_MIB = 45
START_S = 1.0
GOODPUT = 0.95
MORE_CALLERS = {"alexnet": 1.5}


def load_table(document: Row) -> Table:
    """Return every server under every number of callers."""
    table = Table(
        title="Servers beside one another",
        caption=f"{document['callers']}, in turn; a second: requests, best and median turn; core ms: processor time of"
        f" the server for each request;\nMiB: anonymous memory of all its processes. {_machine(document)}",
    )
    table.add_column("case")
    table.add_column("server", no_wrap=True)
    for heading in ("a second", "median", "p50 ms", "p99 ms", "core ms", "MiB", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = ""
    for row in document["loads"]:
        title = title_of_load(row["network"], row["callers"], row["send"])
        ours = _load(document, row["case"], row["callers"], "convserve")
        cells = [f"{row['per_second']:.1f}", f"{row['median_per_second']:.1f}"]
        cells += [f"{1e3 * row[key]:.1f}" for key in ("p50_s", "p99_s", "processor_s")]
        cells += [f"{row['anonymous_bytes'] / 2**20:.0f}"]
        cells += [] if ours is None or ours is row else [f"{ours['per_second'] / row['per_second']:.2f}"]
        table.add_row("" if title == before else title, TITLES[row["engine"]], *cells)
        before = title
    return table


def goals_table(document: Row) -> Table:
    """Return what was to be reached, and what was."""
    table = Table(title="What was to be reached", caption=_machine(document))
    for heading in ("what", "goal", "measured"):
        table.add_column(heading)
    table.add_column("", no_wrap=True)
    for row in goals(document):
        table.add_row(row["what"], row["goal"], row["measured"], _verdict(row))
    return table


def markdown(document: Row) -> str:
    """Return every load with all servers, and what was found of ours alone, as Markdown."""
    engines = [engine for engine in TITLES if any(row["engine"] == engine for row in document["loads"])]
    lines = [
        "| requests a second / p99 ms | " + " | ".join(TITLES[engine] for engine in engines) + " |",
        "|---|" + "---:|" * len(engines),
    ]
    for row in document["loads"]:
        if row["engine"] == "convserve":
            found = [_load(document, row["case"], row["callers"], engine) for engine in engines]
            cells = ["" if one is None else f"{one['per_second']:.1f} / {1e3 * one['p99_s']:.0f}" for one in found]
            title = title_of_load(row["network"], row["callers"], row["send"])
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    alone = [*_overload_goals(document), *_alone_goals(document)]
    table = ["| convserve alone | measured |", "|---|---|"]
    table += [f"| {row['what']} | {row['measured']} |" for row in alone]
    parts = [lines] * bool(document["loads"]) + [table] * bool(alone)
    return "\n\n".join(["\n".join(part) for part in parts] + [_machine(document) + "."])


def goals(document: Row) -> list[Row]:
    """Return what is judged of a document: dicts of what, goal, measured (texts) and met (None: only told)."""
    return [*_load_goals(document), *_overload_goals(document), *_alone_goals(document)]


def _goal(what: str, goal: str, measured: str, met: bool | None) -> Row:
    return {"what": what, "goal": goal, "measured": measured, "met": met}


def _load_goals(document: Row) -> Iterator[Row]:
    for case in CASES:
        most = max(case.callers)
        ours = _load(document, case.key, most, "convserve")
        if ours is None:
            continue
        title = title_of_load(case.network, most, case.send)
        for peer, least in case.at_least.items():
            other = _load(document, case.key, most, peer)
            if other is None:
                continue
            ratio = ours["per_second"] / other["per_second"]
            medians = ours["median_per_second"] / other["median_per_second"]
            text, met = f"{ratio:.2f} times; of medians {medians:.2f}", ratio >= least
            if case.lower_p99:
                text += f"; p99 {1e3 * ours['p99_s']:.1f} ms against {1e3 * other['p99_s']:.1f}"
                met = met and ours["p99_s"] < other["p99_s"]
            goal = f"{least:g} times" + (", lower p99" if case.lower_p99 else "")
            yield _goal(f"{title}: against {TITLES[peer]}", goal, text, met)
        outside = ours["processor_s"] - ours["engine_core_s"]
        yield _goal(
            f"{title}: core ms of a request outside the engine",
            "told",
            f"{1e3 * outside:.2f} of {1e3 * ours['processor_s']:.2f}, {ours['images_a_run']:.1f} images a run",
            None,
        )
        if case.key in MEMORY_GOALS:
            size, limit = ours["anonymous_bytes"] / 2**20, MEMORY_GOALS[case.key]
            yield _goal(f"{title}: anonymous memory, all processes", f"{limit} MiB", f"{size:.1f} MiB", size <= limit)
        one = _load(document, case.key, 1, "convserve")
        if case.key in MORE_CALLERS and one is not None:
            ratio = ours["per_second"] / one["per_second"]
            least = MORE_CALLERS[case.key]
            yield _goal(f"{title}: against 1 caller", f"{least:g} times", f"{ratio:.2f} times", ratio >= least)


def _overload_goals(document: Row) -> Iterator[Row]:
    for case in OVERLOADS:
        found = document["overloads"].get(case.key)
        if found is None:
            continue
        title = f"{title_of(case.network)}, {case.times:g} times what it can answer for {found['seconds']:g} s"
        refused = ", ".join(f"{count:,} {status}" for status, count in sorted(found["refused"].items())) or "nothing"
        text = (
            f"{found['share']:.2f} ({found['goodput']:.1f} a second, {found['offered_per_second']:.0f} offered);"
            f" p99 {1e3 * found['p99_s']:.0f} ms; refused {refused}"
        )
        yield _goal(f"{title}: goodput against capacity", f"{GOODPUT:g}", text, found["share"] >= GOODPUT)
        peak, budget = found["peak_bytes"], found["budget_bytes"]
        told = f"{peak / 2**20:.1f} MiB of {budget / 2**20:.0f}"
        yield _goal(f"{title}: memory at any time", "within the budget", told, peak <= budget)


def _alone_goals(document: Row) -> Iterator[Row]:
    if "idle" in document:
        size, imports = document["idle"]["anonymous_bytes"] / 2**20, document["idle"]["imports_onnx"]
        told = f"{size:.1f} MiB, onnx {'' if imports else 'not '}imported"
        met = size <= IDLE_MIB and not imports
        yield _goal("SqueezeNet, idle, from the container: anonymous memory", f"{IDLE_MIB} MiB", told, met)
    if "start" in document:
        best, median = document["start"]["best_s"], document["start"]["median_s"]
        told = f"best {best:.2f} s, median {median:.2f} s of {len(document['start']['seconds'])}"
        yield _goal("VGG-16 from the container: start to SERVING", f"{START_S:.1f} s", told, median <= START_S)


def _load(document: Row, key: str, callers: int, engine: str) -> Row | None:
    wanted = (key, callers, engine)
    for row in document["loads"]:
        if (row["case"], row["callers"], row["engine"]) == wanted:
            found: Row = row
            return found
    return None


def _machine(document: Row) -> str:
    versions = [f"{name} {version}" for name, version in document["peers"].items()]
    return ", ".join([machine_text({**document, "versions": {}}), *versions])


def _verdict(row: Row) -> str:
    return {True: "ok", False: "MISSED", None: ""}[row["met"]]
