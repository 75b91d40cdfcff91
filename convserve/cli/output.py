"""What commands print: JSON documents, tables of predictions, sizes."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convserve.results import Prediction, RunReport, SizedPlan

__all__ = ["plan_fields", "prediction_fields", "prediction_lines", "print_json", "report_fields", "size_text"]


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)


def prediction_fields(prediction: "Prediction") -> dict[str, Any]:
    """Return a prediction as JSON."""
    return {"label": prediction.label, "index": prediction.index, "score": prediction.score}


def prediction_lines(predictions: "list[Prediction]") -> list[str]:
    """Return one line for each prediction: score, then label."""
    return [f"{one.score:10.4f}  {one.label}" for one in predictions]


def plan_fields(plan: "SizedPlan") -> dict[str, int]:
    """Return a plan's sizes, in bytes, as JSON."""
    names = ("arena_bytes", "scratch_bytes", "weight_bytes", "score_bytes", "total_bytes")
    return {name: getattr(plan, name) for name in names}


def report_fields(report: "RunReport") -> dict[str, Any]:
    """Return what a call was planned to take and what was measured as JSON."""
    return {"plan": plan_fields(report.plan), "measured_bytes": report.measured_bytes, "seconds": report.seconds}


def size_text(size_bytes: int) -> str:
    """Return a size as "512 B", "3.2 KiB" or "1.04 MiB"."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    if size_bytes < 1 << 20:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / (1 << 20):.2f} MiB"
