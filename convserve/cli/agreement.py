"""How far two forms of one network are apart, on images or random inputs: what verify --against prints."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from convserve.cli.arguments import load_net
from convserve.cli.output import print_json
from convserve.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from convserve.model import Model
    from convserve.results import Predictions

__all__ = ["compare_scores", "verify_against"]


def verify_against(args: argparse.Namespace, model: "Model") -> None:
    """Run a model and the one of args.against on the same inputs, and print how their first outputs differ.

    Raises InputError where the two cannot be compared.
    """
    if args.stride is not None or args.plot is not None or args.method != "auto":
        raise InputError("--stride, --method and --plot compare with crops; they cannot be given with --against")
    reference = load_net(args.against, args, preprocess=model.preprocess)
    for what, found, wanted in (
        ("channels", model.graph.input_volume.channels, reference.graph.input_volume.channels),
        ("window", model.window, reference.window),
        ("classes", model.window and model.classes, reference.window and reference.classes),
    ):
        if found != wanted:
            raise InputError(f"{args.net!r} has {what} {found}, but {args.against!r} {wanted}: not the same network")
    reports = []
    for name, image in _inputs(args, model):
        scores, exact = _scores(model, image), _scores(reference, image)
        reports.append({"input": name, **compare_scores(scores, exact)})
    kinds = {"weights": _weights_of(model), "against_weights": _weights_of(reference)}
    document = {"network": model.name, "against": args.against, **kinds, **_overall(reports), "inputs": reports}
    if args.json:
        print_json(document)
    else:
        print(_text(document))


def _weights_of(model: "Model") -> str:
    from convserve.formats.storage import weights_of

    return weights_of(model.graph)


def _inputs(args: argparse.Namespace, model: "Model") -> "Iterator[tuple[str, Any]]":
    import numpy as np

    if args.images:
        yield from ((image, image) for image in args.images)
        return
    if model.window is None:
        raise InputError(f"the network {model.name} has no window of its own; give images to compare on")
    random = np.random.default_rng(args.seed)
    for number in range(args.random):
        shape = (1, model.graph.input_volume.channels, *model.window)
        yield f"random {number}", random.standard_normal(shape, np.float32)


def _scores(model: "Model", image: Any) -> "np.ndarray":
    import numpy as np

    predictions = cast("Predictions", model.classify([image], top=1 << 31)[0])
    scores = np.empty(len(predictions), np.float32)
    for one in predictions:
        scores[one.index] = one.score
    return scores


def compare_scores(scores: "np.ndarray", exact: "np.ndarray") -> dict[str, Any]:
    """Return how scores (classes,) differ from exact ones, as JSON; a difference that is no finite number is None.

    relative_difference: the largest difference over the largest size of an exact score.
    """
    import numpy as np

    both = np.isnan(scores) & np.isnan(exact) | (scores == exact)
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.where(both, 0.0, np.abs(scores.astype(np.float64) - exact))
    largest, size = float(differences.max()), float(np.abs(exact.astype(np.float64)).max())
    finite = np.isfinite(largest)
    return {
        "max_difference": largest if finite else None,
        "relative_difference": (largest / size if largest else 0.0) if finite and np.isfinite(size) else None,
        "same_top1": bool(scores.argmax() == exact.argmax()),
        "same_bits": bool((scores.view(np.uint32) == exact.view(np.uint32)).all()),
    }


def _overall(reports: list[dict[str, Any]]) -> dict[str, Any]:
    largest = {}
    for name in ("max_difference", "relative_difference"):
        values = [report[name] for report in reports]
        largest[name] = None if None in values else max(values)
    agreeing = sum(report["same_top1"] for report in reports)
    return {**largest, "top1_agreement": agreeing / len(reports), "compared": len(reports)}


def _text(document: dict[str, Any]) -> str:
    width = max(len(report["input"]) for report in document["inputs"])
    first = f"{document['network']} ({document['weights']})"
    lines = [f"{first} against {document['against']} ({document['against_weights']})"]
    for report in document["inputs"]:
        best = "the same best class" if report["same_top1"] else "another best class"
        bits = ", the same bits" if report["same_bits"] else ""
        lines.append(f"  {report['input']:<{width}}  {_differences(report)}; {best}{bits}")
    lines.append(
        f"  all {document['compared']}: {_differences(document)};"
        f" the same best class in {100 * document['top1_agreement']:.2f} %"
    )
    lines.append("  (relative: of the largest score)")
    return "\n".join(lines)


def _differences(report: dict[str, Any]) -> str:
    largest, relative = (
        "not finite" if report[name] is None else f"{report[name]:.3g}"
        for name in ("max_difference", "relative_difference")
    )
    return f"difference at most {largest}, relative {relative}"
