"""What tables and charts both say of a benchmark: means of the ratios, and the machine in one line."""

from statistics import geometric_mean
from typing import Any

from benchmarks.engines import ENGINES

__all__ = ["geometric_means", "machine_text", "plural"]

Result = dict[str, Any]


def plural(number: int, noun: str) -> str:
    """Return the number with its noun."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def geometric_means(results: list[Result]) -> dict[str, float]:
    """Return by engine the geometric mean of its ratios over the networks that it ran."""
    ratios: dict[str, list[float]] = {}
    for result in results:
        for engine, one in result["engines"].items():
            if one.get("ratio"):
                ratios.setdefault(engine, []).append(one["ratio"])
    return {engine: geometric_mean(values) for engine, values in ratios.items()}


def machine_text(document: Result) -> str:
    """Return processor, versions and date in one line."""
    machine = document["machine"]
    engines = ", ".join(f"{ENGINES[engine].title} {text}" for engine, text in document["versions"].items())
    sets = "AVX-512" if "avx512f" in machine["instruction_sets"] else "AVX2" if machine["instruction_sets"] else ""
    processors = plural(machine["processors_available"], "processor")
    parts = (f"{machine['cpu']}", sets, processors, engines, machine["date"][:10])
    return ", ".join(part for part in parts if part)
